"""The bookkeeping of ReadIndex."""

from __future__ import annotations

from raftdb.consensus.reads import Reads, Waiting
from raftdb.consensus.ready import ReadReady
from tests.consensus.cluster import ref


def reads_with(*ids: int, starts: int = 3) -> Reads:
    reads = Reads(starts)
    reads.waiting += [Waiting(read_id, 0) for read_id in ids]
    return reads


def test_a_round_answers_what_came_before_it_started() -> None:
    reads = reads_with(1, 2)
    reads.start_round(5, 40)
    reads.waiting.append(Waiting(3, 0))
    assert reads.confirmed(4) == []
    (batch,) = reads.confirmed(5)
    assert (batch.index, [read.read_id for read in batch.local]) == (40, [1, 2])
    assert [read.read_id for read in reads.waiting] == [3]


def test_a_later_round_answers_the_earlier_batches_too() -> None:
    reads = reads_with(1)
    reads.start_round(5, 40)
    reads.waiting.append(Waiting(2, 0))
    reads.start_round(6, 41)
    assert [batch.index for batch in reads.confirmed(6)] == [40, 41]
    assert reads.count() == 0


def test_a_round_without_reads_makes_no_batch() -> None:
    reads = reads_with()
    reads.start_round(1, 1)
    assert not reads.batches


def test_one_open_context_per_asker() -> None:
    reads = reads_with()
    reads.remote[ref("n2")] = 7
    reads.remote[ref("n2")] = 8
    assert reads.has_waiting
    reads.start_round(1, 9)
    (batch,) = reads.confirmed(1)
    assert batch.remote == {ref("n2"): 8}


def test_an_answer_matches_its_question_only() -> None:
    reads = reads_with(1, 2)
    context = reads.ask(10)
    assert reads.answered(context + 1, 9) is None
    assert reads.answered(context, 9) == [ReadReady(1, 9), ReadReady(2, 9)]
    assert reads.answered(context, 9) is None, "once"
    assert Reads(3).answered(0, 9) is None


def test_contexts_of_two_lives_differ() -> None:
    first, second = reads_with(1, starts=3), reads_with(1, starts=4)
    assert first.ask(0) != second.ask(0)
    assert {first.context >> 32, second.context >> 32} == {3, 4}
    huge = Reads(1 << 40)
    assert 0 < huge.ask(0) < 1 << 64


def test_asking_again_keeps_the_order_and_voids_the_old_question() -> None:
    reads = reads_with(1)
    old = reads.ask(0)
    reads.waiting.append(Waiting(2, 0))
    reads.ask_again()
    assert [read.read_id for read in reads.waiting] == [1, 2]
    assert reads.answered(old, 9) is None


def test_lost_leadership_keeps_own_reads_and_forgets_those_of_others() -> None:
    reads = reads_with(1)
    reads.remote[ref("n2")] = 7
    reads.start_round(1, 1)
    reads.waiting.append(Waiting(2, 0))
    reads.restart()
    assert [read.read_id for read in reads.waiting] == [1, 2]
    assert not reads.remote
    assert not reads.batches


def test_expiry() -> None:
    reads = reads_with()
    reads.waiting += [Waiting(1, 0), Waiting(2, 5)]
    assert reads.expire(9, 10) == []
    assert reads.expire(10, 10) == [ReadReady(1, -1)]
    reads.ask(10)
    assert reads.expire(15, 10) == [ReadReady(2, -1)], "what was asked and never answered expires as well"
    assert reads.count() == 0
