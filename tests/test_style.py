"""The house rules that a linter does not know, each as a test over the syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import ROOT, code_lines, imports, module_name, python_files, tree

LINE_LENGTH_MAX = 120
BODY_LINES_MAX = 70
LONG_FUNCTIONS_PER_FILE_MAX = 1  # house style: when one must be long, let it be the only one

SHIPPED = python_files("raftdb", "tools")
EVERYTHING = python_files("raftdb", "tools", "tests", "examples")

#: Modules that turn bytes into behaviour, and the one file that may import pickle: its unpickler knows plain data only.
UNSAFE_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "jsonpickle",
    "code",
    "codeop",
}
PICKLE_HOME = "raftdb.storage.pickled"
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
#: What would let two replicas compute different states, or one simulation run differ from its repetition.
CLOCKS_AND_CHANCE = {"time", "datetime", "random", "secrets", "uuid", "locale", "threading", "socket", "os", "select"}
IN_COMMANDS_ALLOWED = {"os", "threading"}  # the table is shared by threads; nothing of `os` is called while applying
# Spelt apart, so that this file does not contain them.
LEFTOVERS = re.compile(
    r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b|breakpoint\(\)|\bset_trace\("
)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def called_names(path: Path) -> Iterator[tuple[str, int]]:
    """Plain names that are called: `eval(x)`, not `re.compile(x)`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node.lineno


def tracked_text_files() -> list[Path]:
    """What git tracks, or in an unpacked archive without git: everything that looks like text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or list(EVERYTHING)
    return [path for path in paths if path.suffix in {".py", ".md", ".toml", ".txt", ".js", ""} and path.is_file()]


@pytest.mark.parametrize("path", EVERYTHING, ids=ids)
def test_lines_fit(path):
    long = [n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > LINE_LENGTH_MAX]
    assert not long, f"lines over {LINE_LENGTH_MAX} characters: {long}"


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_module_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(tree(path)), "no module docstring"


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_functions_fit_a_screen(path):
    source = path.read_text(encoding="utf-8").splitlines()
    long = {f.name: n for f in functions(path) if (n := code_lines(f, source)) > BODY_LINES_MAX}
    assert len(long) <= LONG_FUNCTIONS_PER_FILE_MAX, f"more than {BODY_LINES_MAX} lines of code: {long}"


def test_no_leftovers():
    found = [
        f"{ids(path)}:{number}: {line.strip()}"
        for path in tracked_text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if LEFTOVERS.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_bytes_never_become_code(path):
    name = module_name(path)
    modules = [
        f"line {found.line}: import {found.module}"
        for found in imports(path)
        if found.module.partition(".")[0] in UNSAFE_MODULES and name != PICKLE_HOME
    ]
    calls = [f"line {line}: {called}()" for called, line in called_names(path) if called in UNSAFE_CALLS]
    assert not modules + calls


def test_the_unpickler_knows_plain_data_only():
    """In the one file that imports pickle nothing but a subclass of Unpickler reads, and find_class refuses."""
    path = ROOT.joinpath(*PICKLE_HOME.split(".")).with_suffix(".py")
    if not path.exists():
        pytest.skip("there is no unpickler yet")
    attributes = {
        node.attr
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
    }
    if not attributes:
        return
    assert not attributes & {"load", "loads"}
    assert any(f.name == "find_class" for f in functions(path))


@pytest.mark.parametrize("path", [p for p in SHIPPED if "consensus" in p.parts or "commands" in p.parts], ids=ids)
def test_replicas_have_no_clock_and_no_chance(path):
    forbidden = CLOCKS_AND_CHANCE - (IN_COMMANDS_ALLOWED if "commands" in path.parts else set())
    found = [f"line {i.line}: {i.module}" for i in imports(path) if i.module.partition(".")[0] in forbidden]
    # hash() of str and bytes differs between processes
    found += [f"line {line}: hash()" for called, line in called_names(path) if called == "hash"]
    assert not found


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_no_exception_is_swallowed_unnamed(path):
    bare = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler) and node.type is None]
    assert not bare, f"`except:` without a name: {bare}"


def test_the_checks_see_what_they_look_for(tmp_path):
    """A test that cannot fail proves nothing: each finder is shown one file that breaks its rule."""
    bad = tmp_path / "bad.py"
    body = "\n".join(f"    x = {n}" for n in range(BODY_LINES_MAX + 1))
    bad.write_text(f'import pickle\ndef long():\n    """Doc."""\n    # remark\n\n{body}\nexec("1")\nhash("a")\n')
    (long,) = functions(bad)
    assert code_lines(long, bad.read_text().splitlines()) == BODY_LINES_MAX + 1
    assert [name for name, _ in called_names(bad)] == ["exec", "hash"]
    assert LEFTOVERS.search("# TO" + "DO: later")
    assert not LEFTOVERS.search("a method and a todolist")
