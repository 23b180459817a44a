"""Decisions about the members: what a wish becomes, what may be repeated, what a peer may send, who was removed."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import msgpack
import pytest

from raftdb.config import Config
from raftdb.consensus.handshake import Greeting
from raftdb.consensus.membership import ChangeKind
from raftdb.errors import CommandError, PeerError, Uncertain, Unexecuted, UsageError
from raftdb.net.peers import SeedStatus
from raftdb.net.wire import Reason
from raftdb.node.forming import decode_answer, places_of
from raftdb.node.members import (
    Wish,
    change_for,
    decode_outcome,
    decode_wish,
    encode_outcome,
    holds,
    may_repeat,
)
from raftdb.node.peering import (
    INVITED,
    encode_formed,
    listed_addresses,
    listed_names,
    never_member,
    outside_reason,
    refusal_of,
    was_removed,
)
from raftdb.types import Member, Membership, NodeRef, Role


def member(node_id: str, incarnation: int, voter: bool = True) -> Member:
    number = node_id[1:]
    return Member(node_id, incarnation, f"h{number}:5010", f"h{number}:5011", voter)


N1, N2, N3 = (member(f"n{number}", number) for number in (1, 2, 3))
INVITED_N4 = member("n4", INVITED, voter=False)
GROUP = Membership(7, (N1, N2, N3))


def wish(verb: str, node_id: str, incarnation: int | None = None, repeated: bool = False, address: str = "") -> Wish:
    return Wish(verb, node_id, address, incarnation, repeated)


# --- wishes ---------------------------------------------------------------------------------------------------------


def test_a_new_node_gets_a_place_that_counts_for_nothing() -> None:
    change = change_for(GROUP, wish("add", "n4", address="h4:5010"))
    assert change is not None
    assert (change.kind, change.member) == (ChangeKind.ADD_LEARNER, INVITED_N4)


def test_adding_what_is_there_is_done_and_another_address_is_refused() -> None:
    assert change_for(GROUP, wish("add", "n2", address="h2:5010")) is None
    with pytest.raises(CommandError, match="n2 is a member at h2:5010"):
        change_for(GROUP, wish("add", "n2", address="elsewhere:1"))
    with pytest.raises(CommandError, match="address of node n2"):
        change_for(GROUP, wish("add", "n4", address="h2:5010"))


def test_an_invitation_may_be_moved_and_taken_back_but_not_promoted() -> None:
    group = Membership(8, (*GROUP.members, INVITED_N4))
    moved = change_for(group, wish("add", "n4", address="other:1"))
    assert moved is not None
    assert moved.kind is ChangeKind.ADDRESS
    removed = change_for(group, wish("remove", "n4", INVITED))
    assert removed is not None
    assert removed.kind is ChangeKind.REMOVE
    with pytest.raises(CommandError, match="has not come yet"):
        change_for(group, wish("promote", "n4", INVITED))


def test_who_is_no_member_cannot_be_removed_unless_it_was_one_before() -> None:
    with pytest.raises(CommandError, match="not a member"):
        change_for(GROUP, wish("remove", "n9"))
    assert change_for(GROUP, wish("remove", "n9", 9, repeated=True)) is None


def test_a_repeated_removal_never_hits_who_has_taken_the_place() -> None:
    """n3 (incarnation 3) was removed by the first attempt; then n3 came back with a new disk."""
    group = Membership(9, (N1, N2, member("n3", 33)))
    assert change_for(group, wish("remove", "n3", 3, repeated=True)) is None
    first = change_for(group, wish("remove", "n3", 3))
    assert first is not None
    assert first.member.incarnation == 33  # a first attempt means who is there: the asked node was behind


def test_an_unpinned_removal_is_not_repeated() -> None:
    assert not may_repeat(wish("remove", "n3"))
    assert may_repeat(wish("remove", "n3", 3))
    assert may_repeat(wish("add", "n3", address="h:1"))
    assert not holds(GROUP, wish("remove", "n9", None, repeated=True))


def test_promoting_is_a_step_or_done() -> None:
    change = change_for(Membership(7, (N1, N2, member("n3", 3, False))), wish("promote", "n3", 3))
    assert change is not None
    assert change.kind is ChangeKind.PROMOTE
    assert change_for(GROUP, wish("promote", "n3", 3)) is None


# --- on the wire ----------------------------------------------------------------------------------------------------


def test_wishes_and_outcomes_survive_the_wire() -> None:
    for sent in (wish("add", "n4", address="h:1"), wish("remove", "n3", 3, True), wish("transfer", "")):
        assert decode_wish(msgpack.packb(sent)) == sent
    for error in (CommandError("ERR no"), Unexecuted("TRYAGAIN later"), Uncertain("UNCERTAIN who knows")):
        back = decode_outcome(encode_outcome(error))
        assert (type(back), str(back)) == (type(error), str(error))
    assert decode_outcome(encode_outcome(None)) is None


@pytest.mark.parametrize(
    "row",
    [
        None,
        7,
        [],
        ["add"],
        ["explode", "n1", "", None, False],
        ["remove", "", "", None, False],
        ["remove", "n,1", "", None, False],
        ["remove", "n1", "", -1, False],
        ["remove", "n1", "", True, False],
        ["remove", "n1", "", None, 0],
        ["add", "n1", "no address", None, False],
        ["add", "n1", ":1", None, False],
        ["add", "n1", "h:65535", None, False],
        ["add", "x" * 256, "h:1", None, False],
        [["add"], "n1", "h:1", None, False],
    ],
)
def test_what_no_node_sends_is_refused(row: object) -> None:
    with pytest.raises(PeerError):
        decode_wish(msgpack.packb(row))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x91" * 2000, msgpack.packb(["bad", "text"]), msgpack.packb([1, "x"])]
)
def test_answers_that_no_node_sends_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_outcome(data)


def test_invitations_are_no_members_to_a_node_that_looks_for_a_cluster() -> None:
    """Otherwise the invited node would be told that its id is taken by other data."""
    answer = decode_answer(encode_formed("c", (N1, INVITED_N4)))
    assert answer.members == (N1,)  # type: ignore[union-attr]


# --- who is let in --------------------------------------------------------------------------------------------------


def core(**changes: object) -> SimpleNamespace:
    found = SimpleNamespace(
        me=N1.ref,
        role=Role.LEADER,
        leader=N1.ref,
        term=5,
        commit=10,
        noop_index=3,
        change_open=False,
        membership=GROUP,
        previous=None,
        retired={},
        peers={ref: SimpleNamespace(match=9) for ref in (N2.ref, N3.ref)},
    )
    found.__dict__.update(changes)
    found.is_member = lambda ref: (row := found.membership.get(ref.id)) is not None and row.ref == ref
    return found


def greeting(ref: NodeRef, last: int, term: int = 5) -> Greeting:
    return Greeting(ref, 1, term, last)


def test_a_node_with_an_empty_log_may_ask_for_the_place_of_its_lost_self() -> None:
    assert refusal_of(core(), greeting(NodeRef("n3", 33), 0)) is None  # type: ignore[arg-type]
    refused = refusal_of(core(), greeting(NodeRef("n3", 33), 4))  # type: ignore[arg-type]
    assert refused is not None
    assert refused.reason is Reason.RESTORED


def test_a_removed_incarnation_is_refused_even_with_an_empty_log() -> None:
    retired = core(retired={NodeRef("n4", 4): None})
    refused = refusal_of(retired, greeting(NodeRef("n4", 4), 0))  # type: ignore[arg-type]
    assert refused is not None
    assert refused.reason is Reason.REMOVED


def test_only_a_leader_with_a_settled_membership_says_that_somebody_was_removed() -> None:
    stranger = NodeRef("n9", 9)
    assert was_removed(core(), stranger, 4)  # type: ignore[arg-type]
    assert not was_removed(core(), stranger, 0)  # type: ignore[arg-type]
    assert not was_removed(core(role=Role.FOLLOWER), stranger, 4)  # type: ignore[arg-type]
    assert not was_removed(core(change_open=True), stranger, 4)  # type: ignore[arg-type]
    assert not was_removed(core(commit=2), stranger, 4)  # type: ignore[arg-type]
    assert not was_removed(core(peers={stranger: None}), stranger, 4)  # type: ignore[arg-type]
    assert not was_removed(core(), N2.ref, 4)  # type: ignore[arg-type]


def test_a_backup_that_holds_less_than_it_has_acknowledged_is_refused() -> None:
    refused = refusal_of(core(), greeting(N2.ref, 8))  # type: ignore[arg-type]
    assert refused is not None
    assert refused.reason is Reason.RESTORED
    assert refusal_of(core(), greeting(N2.ref, 9)) is None  # type: ignore[arg-type]
    refused = refusal_of(core(), greeting(N2.ref, 0))  # type: ignore[arg-type]
    assert refused is not None  # an empty log of a member is no joining node


# --- what a node says of itself -------------------------------------------------------------------------------------

HERE = Path("/data/n1")


def outside(refusals: dict[str, str] | None = None, anew: bool = False, **changes: object) -> str:
    changes = {"role": Role.FOLLOWER, "leader": None, **changes}
    return outside_reason(core(**changes), refusals or {}, HERE, anew)  # type: ignore[arg-type]


def test_a_member_says_nothing_and_a_removed_one_says_how_to_come_back() -> None:
    assert outside() == ""
    assert outside(leader=N2.ref) == ""
    without = Membership(8, (N2, N3))
    said = outside(membership=without, retired={N1.ref: None}, leader=N2.ref)
    assert "removed" in said
    assert str(HERE) in said


def test_a_removal_that_is_not_known_to_be_committed_is_no_request_for_a_place() -> None:
    """The node was killed between the entry and the news that it is committed."""
    said = outside(membership=Membership(8, (N2, N3)), previous=GROUP, change_open=True)
    assert "being removed" in said


def test_a_refused_member_names_who_refuses_it() -> None:
    said = outside({"n2": "n1 was removed from the cluster"})
    assert said.startswith("waiting")
    assert "n2: n1 was removed" in said
    assert str(HERE) in said
    assert outside({"n2": "n1 was removed from the cluster"}, leader=N2.ref) == ""


def test_a_leader_that_removes_itself_goes_on_until_that_is_committed() -> None:
    assert outside(role=Role.LEADER, leader=N1.ref, membership=Membership(8, (N2, N3)), change_open=True) == ""


def test_a_node_that_joins_waits_until_its_log_says_that_it_is_a_member() -> None:
    empty = Membership(0, ())
    assert "waiting to be added" in outside(membership=empty)
    assert "waiting to be added" in outside(membership=empty, leader=N2.ref)
    assert "waiting to be added" in outside(anew=True)


def test_whose_place_was_never_committed_may_ask_again() -> None:
    joined = Membership(8, (N1, N2, N3))
    before = Membership(7, (N2, N3))
    assert never_member(core(membership=joined, previous=before, change_open=True))  # type: ignore[arg-type]
    assert not never_member(core(membership=joined, previous=before))  # type: ignore[arg-type]
    assert not never_member(core(membership=before, previous=joined, change_open=True))  # type: ignore[arg-type]
    assert not never_member(core(membership=before, retired={N1.ref: None}))  # type: ignore[arg-type]
    assert never_member(core(membership=Membership(0, ())))  # type: ignore[arg-type]


# --- the list -------------------------------------------------------------------------------------------------------


def listed(ensemble: str, address: str = "127.0.0.1:5010") -> tuple[tuple[str, ...], bool]:
    return listed_addresses(Config(address=address, ensemble=ensemble))


def test_the_list_in_all_its_forms() -> None:
    assert listed("2/127.0.0.1:5020, 3/127.0.0.1:5030") == (("127.0.0.1:5021", "127.0.0.1:5031"), False)
    assert listed("127.0.0.1:5020,127.0.0.1:5010,127.0.0.1:5020") == (("127.0.0.1:5021",), False)
    assert listed("[::1]:5020,[2001:db8::1]:5020") == (("[::1]:5021", "[2001:db8::1]:5021"), False)
    assert listed("group.example:5020") == (("group.example:5021",), True)
    assert listed("1/group.example:5020") == (("group.example:5021",), False)
    assert listed("a.example:5020,b.example:5020") == (("a.example:5021", "b.example:5021"), False)
    assert listed("localhost:5020") == (("localhost:5021",), False)
    (own,), _ = listed(":5020")
    assert own.endswith(":5021")
    assert len(own) > len(":5021")


@pytest.mark.parametrize("ensemble", ["h", "h:0", "h:65535", "h:x", "::1:5020", "2/h:1,h"])
def test_a_list_that_cannot_be_meant_is_a_usage_error(ensemble: str) -> None:
    with pytest.raises(UsageError):
        listed(ensemble)


def test_who_is_waited_for_is_called_as_the_operator_did() -> None:
    names = listed_names(Config(address="h:1", ensemble="n2/127.0.0.1:5020,127.0.0.1:5030"))
    assert names == {"127.0.0.1:5021": "n2 at 127.0.0.1:5020", "127.0.0.1:5031": "127.0.0.1:5030"}


def seed(address: str, endpoint: str, node: NodeRef | None, *, myself: bool = False, up: bool = True) -> SeedStatus:
    return SeedStatus(address, endpoint, node, myself, up and node is not None, "")


def test_a_host_name_is_one_node_as_long_as_one_answers() -> None:
    rows = [seed("a:1", "[::1]:1", None, up=False), seed("a:1", "127.0.0.1:1", N2.ref)]
    for order in itertools.permutations(rows):
        assert places_of(order, is_dns=False) == {"a:1": {N2.ref}}
    both = [seed("a:1", "10.0.0.1:1", N2.ref), seed("a:1", "10.0.0.2:1", N3.ref)]
    assert places_of(both, is_dns=False) == {"a:1": {N2.ref, N3.ref}}
    assert places_of(both, is_dns=True) == {"10.0.0.1:1": {N2.ref}, "10.0.0.2:1": {N3.ref}}
    own = [seed("a:1", "10.0.0.1:1", N1.ref, myself=True)]
    assert places_of(own, is_dns=False) == {"a:1": {None}}
    assert places_of([seed("a:1", "", None)], is_dns=True) == {}
