"""How the tools print: text for people, JSON for programs, one line for what went wrong.

JSON keeps bytes exactly: UTF-8 text becomes a string, anything else `{"base64": "..."}`.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

import lmdb

from raftdb.errors import RaftdbError, UsageError

EXIT_DAMAGED: Final = 5
EXIT_USAGE: Final = 2


def plain(value: Any) -> Any:
    """A value as JSON can hold it: bytes as text or base64, tuples as lists, NamedTuples as objects."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(getattr(value, name)) for name in value._fields}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def print_json(value: Any) -> None:
    """One object on one line. Not-a-number and infinities (scores) become text: JSON has no word for them."""
    print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False))


def print_all(records: Iterable[Any], as_json: bool, text: Callable[[Any], str]) -> None:
    for record in records:
        if as_json:
            print_json(record)
        else:
            print(text(record))


def fail(program: str, message: str, code: int) -> NoReturn:
    """One line on standard error, whatever the message contains, and the exit code."""
    line = " ".join(message.split()) or "failed"
    printable = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in line)
    print(f"{program}: {printable}", file=sys.stderr)
    sys.exit(code)


def run(program: str, command: Callable[..., Any]) -> NoReturn:
    """Runs a click command as a program: 0 done, 2 the user's mistake, 5 damage was read. Never a traceback."""
    try:
        command(prog_name=program)
    except UsageError as error:
        fail(program, str(error), EXIT_USAGE)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (RaftdbError, lmdb.Error) as error:
        fail(program, str(error), EXIT_DAMAGED)
    except OSError as error:
        fail(program, f"{error.filename or 'input'}: {error.strerror or error}", EXIT_USAGE)
    except (ValueError, LookupError, TypeError, RecursionError, MemoryError) as error:
        # Bytes that passed every check and still make no sense: hostile, or a mistake in this program. Either way the
        # file cannot be read, and its reader is told in one line.
        fail(program, f"cannot be read: {type(error).__name__}: {error}", EXIT_DAMAGED)
    sys.exit(0)
