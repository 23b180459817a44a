"""Planting bugs: modules are loaded with pieces of their source exchanged.

`plant` must be called before any of the modules it names is imported, so each mutant runs in a process of its own. A
piece that is not found exactly once in the source is an error: a mutant that no longer changes anything would be
"caught" by nobody and prove nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import NamedTuple


class Patch(NamedTuple):
    """In `module`, `old` becomes `new`."""

    module: str
    old: str
    new: str


class PatchFailed(Exception):
    """The source has changed: the mutant must be written anew."""


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the patched source."""

    def __init__(self, name: str, path: str, patches: list[Patch]) -> None:
        super().__init__(name, path)
        self.patches = patches

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        return compile(patched(source, self.patches), path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, patches: Sequence[Patch]) -> None:
        self.patches = patches

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        mine = [patch for patch in self.patches if patch.module == fullname]
        if not mine:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.origin is None:
            raise PatchFailed(f"no module {fullname}")
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, mine)
        )


def patched(source: str, patches: Sequence[Patch]) -> str:
    """The source with every patch in it."""
    for patch in patches:
        found = source.count(patch.old)
        if found != 1:
            raise PatchFailed(f"{patch.module}: found {found} times instead of once: {patch.old!r}")
        source = source.replace(patch.old, patch.new)
    return source


def plant(patches: Sequence[Patch]) -> None:
    """From now on imports give the patched modules."""
    for patch in patches:
        if patch.module in sys.modules:
            raise PatchFailed(f"{patch.module} is imported already")
    sys.meta_path.insert(0, _Finder(patches))
