"""Ledgers of long searches: append-only files beside the tests, one JSON line per run, on which code it was.

A row tells the commit and, since a working tree may differ from it, a digest of the sources that were tested. Both
are taken when the Ledger is made, which is when the process has loaded its modules.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DIGEST_BYTES = 6
CLEAN = "clean"


class Ledger:
    """One file; `sources` are the files and folders under the root whose change makes older rows count for less."""

    def __init__(self, path: Path, *sources: str) -> None:
        self._path = path
        self.code = digest_of(sources)
        self.commit = git("rev-parse", "--short=12", "HEAD") or "unknown"

    def rows(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines() if line]

    def append(self, **facts: Any) -> None:
        """`verdict` is among the facts: "clean", or what was found. A person may add a `note` about it."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"when": when, "commit": self.commit, "code": self.code, **facts}) + "\n")

    def next_seed(self, first: int) -> int:
        """Seeds are not used twice."""
        return max((int(row["seed"]) + 1 for row in self.rows() if "seed" in row), default=first)

    def total(self, counted: str, **facts: Any) -> int:
        """The sum of `counted` over the clean rows of the code as it is now, of those with these facts."""
        return sum(
            int(row.get(counted, 0))
            for row in self.rows()
            if row["code"] == self.code and row["verdict"] == CLEAN and all(row.get(k) == v for k, v in facts.items())
        )

    def summary(self, counted: str) -> str:
        rows = self.rows()
        ever = sum(int(row.get(counted, 0)) for row in rows)
        found = sum(row["verdict"] != CLEAN and "note" not in row for row in rows)
        return f"{counted}: {self.total(counted):,} on this code, {ever:,} in all; {found} runs with findings"


def digest_of(sources: Sequence[str]) -> str:
    """Of the names and contents of all Python files there."""
    found = blake2b(digest_size=DIGEST_BYTES)
    for source in sources:
        path = ROOT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
