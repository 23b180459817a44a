"""Tickets are answered once, and say what is known: executed, not executed, unknown."""

from __future__ import annotations

from typing import Any

from raftdb.net.resp import encode
from raftdb.node.pending import LEADERSHIP_LOST, OVERWRITTEN, TIMED_OUT, Batch, Pending, Ticket


class FakeSession:
    written_index = 0


class FakeConnection:
    """Records what is queued."""

    def __init__(self) -> None:
        self.session = FakeSession()
        self.ticket = 7
        self.answers: list[tuple[bytes, int]] = []

    def queue(self, data: bytes, answered: int = 1) -> None:
        self.answers.append((data, answered))


def ticket(commands: int = 1, protocol: int = 2) -> Any:
    items = [object()] * commands
    return Ticket(FakeConnection(), protocol, items, items, 10, 100.0)  # type: ignore[arg-type]


def batch(term: int, *tickets: Any, since_s: float = 100.0) -> Batch:
    return Batch(term, list(tickets), [], since_s)


def test_a_ticket_is_answered_once_by_whoever_claims_it_first() -> None:
    one = ticket(2)
    one.answer([1, None], 5)
    one.fail(TIMED_OUT)
    one.answer([2, None], 6)
    assert one.conn.answers == [(b":1\r\n$-1\r\n", 2)]
    assert one.conn.session.written_index == 5
    assert not one.claim()


def test_an_error_stands_for_every_command_and_nobody_is_answered_who_wants_no_answers() -> None:
    one, silent = ticket(3), ticket(2, protocol=0)
    one.fail(TIMED_OUT)
    silent.fail(TIMED_OUT)
    assert one.conn.answers == [(encode(TIMED_OUT, 2) * 3, 3)]
    assert silent.conn.answers == [(b"", 2)]


def test_a_committed_entry_of_another_term_proves_that_ours_was_not_executed() -> None:
    pending, one = Pending(), ticket()
    pending.add(4, batch(2, one))
    pending.settled(4, 3)
    assert one.conn.answers == [(encode(OVERWRITTEN, 2), 1)]


def test_proposing_again_at_an_index_proves_nothing_about_the_entry_that_stood_there() -> None:
    """S1 leads term 2 with 4@2 on S1 and S2; S5 truncates S1; S1 leads term 4 and proposes at 4 again.

    S1 may fail before that is on a majority, and S2, whose last entry is 4@2, may win term 5 and commit 4@2.
    """
    pending, one, other = Pending(), ticket(), ticket()
    pending.add(4, batch(2, one))
    pending.add(4, batch(4, other))
    assert one.conn.answers == [(encode(LEADERSHIP_LOST, 2), 1)]
    assert pending.get(4, 4) is not None
    assert pending.get(4, 2) is None


def test_what_a_snapshot_skips_is_unknown() -> None:
    pending, below, above = Pending(), ticket(), ticket()
    pending.add(4, batch(2, below))
    pending.add(9, batch(2, above))
    pending.skipped(8)
    assert below.conn.answers == [(encode(LEADERSHIP_LOST, 2), 1)]
    assert above.conn.answers == []


def test_a_time_out_answers_but_does_not_forget() -> None:
    pending, old, young = Pending(), ticket(), ticket()
    pending.add(4, batch(2, old, since_s=1.0))
    pending.add(5, batch(2, young, since_s=9.0))
    pending.expire(5.0)
    assert old.conn.answers == [(encode(TIMED_OUT, 2), 1)]
    assert young.conn.answers == []
    found = pending.get(4, 2)
    assert found is not None
    found.tickets[0].answer([1], 4)  # it is applied after all: too late to say so
    assert len(old.conn.answers) == 1
