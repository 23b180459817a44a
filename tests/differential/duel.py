"""Play programs on both sides, stop at the first difference, and shrink the program that shows it."""

from __future__ import annotations

from typing import NamedTuple

from . import compare
from .players import CLIENTS, RaftdbPlayer, RedisPlayer, WirePlayer
from .programs import Program, Step
from .wire import Reply

SHRINK_ROUNDS_MAX = 400
MULTI_COMMANDS = frozenset((b"MULTI", b"EXEC", b"DISCARD"))


class Difference(NamedTuple):
    program: Program
    at: int  # number of the step; len(steps): the contents afterwards
    ours: str
    theirs: str

    def __str__(self) -> str:
        steps = "\n".join(f"    {step}" for step in self.program.steps[: self.at + 1])
        return f"RESP{self.program.protocol}\n{steps}\n  raftdb: {self.ours}\n  redis:  {self.theirs}"


class Duel:
    """Both players, kept over many programs."""

    def __init__(self, redis_server: str, ours: RaftdbPlayer | WirePlayer) -> None:
        self.theirs = RedisPlayer(redis_server)
        self.ours = ours
        self.commands = 0
        self.in_multi = [False] * CLIENTS

    def play(self, program: Program) -> Difference | None:
        """The first difference, if there is one."""
        self.ours.begin(program.protocol)
        self.theirs.begin(program.protocol)
        self.in_multi = [False] * CLIENTS
        for at, step in enumerate(program.steps):
            self.commands += 1
            one, other = self._step(step)
            if one is not None:
                return Difference(program, at, str(one), str(other))
        return self._contents(program)

    def _step(self, step: Step) -> tuple[object, object]:
        """(None, None) when they agree."""
        if self.in_multi[step.client] and compare.is_alone(step):
            step = Step(step.client, (b"PING",))
        if compare.is_scan(step):
            ours, theirs = compare.iterate(self.ours, step), compare.iterate(self.theirs, step)
            if isinstance(ours, Reply) and isinstance(theirs, Reply):
                return (None, None) if ours.raw == theirs.raw else (ours, theirs)
            return (None, None) if ours == theirs else (ours, theirs)
        one, other = self.ours.play(step), self.theirs.play(step)
        if step.argv[0].upper() in MULTI_COMMANDS and len(step.argv) == 1:
            self.in_multi[step.client] = step.argv[0].upper() == b"MULTI"
        return (None, None) if compare.same(step, one, other) else (one, other)

    def _contents(self, program: Program) -> Difference | None:
        for player in (self.ours, self.theirs):
            player.play(Step(1, (b"DISCARD",)))
            player.play(Step(0, (b"DISCARD",)))
        ours, theirs = compare.contents(self.ours), compare.contents(self.theirs)
        if ours == theirs:
            return None
        name = next(name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name))
        return Difference(program, len(program.steps), f"{name!r} {ours.get(name)}", f"{name!r} {theirs.get(name)}")

    def shrink(self, found: Difference) -> Difference:
        """A shorter program with a difference: whole runs of steps are left out, then single ones."""
        size = max(len(found.program.steps) // 2, 1)
        rounds = 0
        while size and rounds < SHRINK_ROUNDS_MAX:
            at, shorter = 0, None
            while at < len(found.program.steps) and rounds < SHRINK_ROUNDS_MAX:
                rounds += 1
                steps = found.program.steps[:at] + found.program.steps[at + size :]
                shorter = self.play(Program(found.program.protocol, steps))
                if shorter is not None:
                    found = Difference(
                        Program(shorter.program.protocol, shorter.program.steps[: shorter.at + 1]), *shorter[1:]
                    )
                else:
                    at += size
            size = size // 2 if size > 1 else (1 if shorter is not None else 0)
        return found

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
