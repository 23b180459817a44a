"""pyraft's tree: TMK, TSET, TGET, TLS, TRM. A node is a hash under its path; its attributes are the fields.

    a/b/c         the key of the node c below b below a
    field "/"     says that there is a node, also when it has no attributes
    field "/b"    says that b is a child (so an attribute's name must not begin with a slash)

A hash that HSET made is a node without children. Attributes are text, as all fields are: a number that came in JSON is
kept as it was written, an object becomes a child. Finding a node costs O(log n), listing O(its fields), removing O(the
nodes below it): their records are reclaimed later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from ..errors import CommandError
from ..types import OK, Reply
from .args import Bytes, Key, Many, Optional
from .context import REPLY_ITEM_BYTES, Context
from .hashes import Hash
from .table import MAY_SHRINK, READ, WRITE, Command, command

NODE: Final = b"/"
JSON_FACTOR: Final = 6  # bytes of "\\u0000", which one byte may become
DEPTH_MAX: Final = 64  # of a path, and of the objects in one JSON text
NO_NODE: Final = "ERR node does not exist"
NO_ATTRIBUTE: Final = "ERR attribute does not exist"
TAKEN: Final = "ERR node or attribute exists already"
BAD_PATH: Final = f"ERR a path is one to {DEPTH_MAX} names with slashes between them"
BAD_NAME: Final = "ERR the name of an attribute or node is not empty and has no slash"
BAD_JSON: Final = f"ERR not a JSON object of strings, numbers, true, false, null and such objects, {DEPTH_MAX} deep"
BAD_PAIRS: Final = "ERR attributes are pairs of name and value, or one JSON object"


def _names(path: bytes) -> list[bytes]:
    names = path.strip().split(b"/")
    if not all(names) or len(names) > DEPTH_MAX:
        raise CommandError(BAD_PATH)
    return names


def _existing(ctx: Context, path: bytes) -> Hash:
    """The node at this path. Raises CommandError."""
    node = Hash(ctx, b"/".join(_names(path)))
    if node.head() is None:
        raise CommandError(NO_NODE)
    return node


def _attributes(words: list[bytes]) -> dict[bytes, Any]:
    """name -> bytes or, for a child, a dict, from one JSON text or from pairs."""
    if len(words) == 1:
        return _from_json(words[0])
    if len(words) % 2:
        raise CommandError(BAD_PAIRS)
    return {_name(name): value for name, value in zip(words[::2], words[1::2], strict=True)}


def _name(name: bytes) -> bytes:
    if not name or b"/" in name:
        raise CommandError(BAD_NAME)
    return name


def _from_json(text: bytes) -> dict[bytes, Any]:
    """Numbers stay text, so that nothing depends on how this Python prints them."""
    if _nesting(text) > DEPTH_MAX:
        raise CommandError(BAD_JSON)
    try:
        document = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except ValueError:
        raise CommandError(BAD_JSON) from None
    return _checked(document)


def _nesting(text: bytes) -> int:
    """At least the depth of the document: a deeper one would exhaust the stack of the JSON parser."""
    depth = deepest = 0
    for byte in text:
        if byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"}]":
            depth -= 1
    return deepest


def _checked(document: Any) -> dict[bytes, Any]:
    if not isinstance(document, dict):
        raise CommandError(BAD_JSON)
    return {_name(_encoded(name)): _value(value) for name, value in document.items()}


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return _checked(value)
    if value is None or isinstance(value, bool):
        return {None: b"null", True: b"true", False: b"false"}[value]
    if isinstance(value, str):
        return _encoded(value)
    raise CommandError(BAD_JSON)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise CommandError(BAD_JSON) from None


def _store(ctx: Context, path: bytes, attributes: dict[bytes, Any]) -> None:
    """Set the attributes of a node, making it and the children in them if need be."""
    pairs = [(name, value) for name, value in attributes.items() if not isinstance(value, dict)]
    children = [(name, value) for name, value in attributes.items() if isinstance(value, dict)]
    Hash(ctx, path).set_many([(NODE, b""), *pairs, *((NODE + name, b"") for name, _ in children)])
    for name, below in children:
        _store(ctx, path + b"/" + name, below)


@command(
    "TMK",
    Key(name="path"),
    Many(Bytes("json-or-attribute"), least=0),
    flags=WRITE,
    group="tree",
    summary="Make a node below an existing one, with attributes from JSON or from pairs",
)
def tmk(ctx: Context, path: bytes, words: list[bytes]) -> Reply:
    names = _names(path)
    attributes = _attributes(words) if words else {}
    if len(names) > 1:
        parent = _existing(ctx, b"/".join(names[:-1]))
        if parent.get(NODE + names[-1]) is not None or parent.get(names[-1]) is not None:
            raise CommandError(TAKEN)
        parent.set_many([(NODE, b""), (NODE + names[-1], b"")])
    full = b"/".join(names)
    if ctx.head(full) is not None:
        raise CommandError(TAKEN)
    _store(ctx, full, attributes)
    return OK


@command(
    "TSET",
    Key(name="path"),
    Many(Bytes("json-or-attribute")),
    flags=WRITE,
    group="tree",
    summary="Set attributes of a node, from JSON or from pairs",
)
def tset(ctx: Context, path: bytes, words: list[bytes]) -> Reply:
    node, attributes = _existing(ctx, path), _attributes(words)
    for name, value in attributes.items():
        is_child = node.get(NODE + name) is not None
        if is_child != isinstance(value, dict) and (is_child or node.get(name) is not None):
            raise CommandError(TAKEN)
    _store(ctx, node.name, attributes)
    return OK


def _node_size(ctx: Context, argv: list[bytes]) -> int:
    head = ctx.head(b"/".join(_names(argv[1])))
    return 1 if head is None else head.count


@command(
    "TGET",
    Key(name="path"),
    Optional(Bytes("attribute")),
    flags=READ,
    group="tree",
    size=_node_size,
    summary="One attribute of a node, or all of them as JSON",
    words_max=3,
)
def tget(ctx: Context, path: bytes, attribute: bytes | None) -> Reply:
    node = _existing(ctx, path)
    if attribute is None:
        found: dict[bytes, bytes] = {}
        for _, name, text in node.items():
            if not name.startswith(NODE):
                ctx.keep(JSON_FACTOR * (REPLY_ITEM_BYTES + len(name) + len(text)))
                found[name] = text
        texts = {_text(name): _text(found[name]) for name in sorted(found)}
        return json.dumps(texts).encode()
    value = None if attribute.startswith(NODE) else node.get(attribute)
    if value is None:
        raise CommandError(NO_ATTRIBUTE)
    return value


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@command("TLS", Key(name="path"), flags=READ, group="tree", size=_node_size, summary="Names of the children of a node")
def tls(ctx: Context, path: bytes) -> Reply:
    return sorted(ctx.kept(_children(_existing(ctx, path))))


def _children(node: Hash) -> Iterator[bytes]:
    return (name[1:] for _, name, _value in node.items() if name.startswith(NODE) and len(name) > 1)


@command(
    "TRM",
    Key(name="path"),
    Many(Bytes("attribute"), least=0),
    flags=WRITE | MAY_SHRINK,
    group="tree",
    summary="Remove attributes of a node, or the node with all below it",
)
def trm(ctx: Context, path: bytes, attributes: list[bytes]) -> Reply:
    node = _existing(ctx, path)
    if attributes:
        if any(name.startswith(NODE) or node.get(name) is None for name in attributes):
            raise CommandError(NO_ATTRIBUTE)
        node.set_many([(NODE, b"")])
        node.delete(*attributes)
        return OK
    parent, _, name = node.name.rpartition(b"/")
    if parent:
        Hash(ctx, parent).delete(NODE + name)
    _remove(ctx, node)
    return OK


def _remove(ctx: Context, node: Hash) -> None:
    """The node and all below it, without recursion: a tree made node by node is only as deep as a path can be."""
    waiting = [node]
    while waiting:
        here = waiting.pop()
        waiting += [Hash(ctx, here.name + b"/" + name) for name in _children(here)]
        ctx.writing().drop_head(ctx.db, here.name)


COMMANDS: list[Command] = [tmk, tset, tget, tls, trm]
