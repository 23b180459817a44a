"""Elections: who may campaign, what a campaign sends, and how anyone answers a request for a vote.

A campaign has two phases in one role. Pre-vote (dissertation 9.6) asks "would you?" and changes nobody's term, so that
a node that was cut off cannot depose a leader by coming back. Then the vote proper: the own vote counts only when it is
durable, like everybody's (`persisted` counts it).

Nobody votes within the least election timeout after it heard a leader, or after its own start: it may have answered a
heartbeat just before, and the leader's lease counts on that answer. The one exception is a request that carries
`transfer`: the leader has given up its leases for the term before it sent TimeoutNow. A node that is alone for certain
is bound to nobody.
"""

from __future__ import annotations

from typing import Final

from raftdb.consensus import leader
from raftdb.consensus.messages import TERM_MAX, VoteReply, VoteRequest
from raftdb.consensus.quorum import majority
from raftdb.consensus.state import State, is_voter
from raftdb.errors import Bug
from raftdb.types import NodeRef, Role

NEEDED_TICKS_FACTOR: Final = 4
"""How many election timeouts a refusal of its own makes a learner campaign."""


def may_campaign(core: State) -> bool:
    """A voter with a whole log that its state machine can follow, and fit to lead (a sole voter always is)."""
    if core.log.holes or core.starved or not (core.may_be_voter() or is_needed(core)):
        return False
    return core.fit or core.is_sole_voter()


def is_needed(core: State) -> bool:
    """A learner that had to refuse a voter, whose log is behind its own, campaigns in that voter's place.

    It may be a voter of a membership that it has not, and hold an entry that no voter who is up has; then nobody else
    can win. It counts no vote of its own, and hands over once it leads.
    """
    refused = core.refused_tick
    if refused is None or core.contact < core.config.election_ticks_min:
        return False
    return core.ticks - refused < NEEDED_TICKS_FACTOR * core.config.election_ticks_max and core.is_member(core.me)


def campaign(core: State) -> None:
    """The election timeout has passed."""
    if core.is_sole_voter():
        elect(core, transfer=False)
    else:
        _start(core, pre=True)
        _ask(core, core.term + 1, transfer=False)
        count_own(core)


def elect(core: State, transfer: bool) -> None:
    """Ask for votes in the next term. The own vote is counted when it is durable."""
    if core.term >= TERM_MAX:
        raise Bug(f"term {core.term} is the last one")
    _start(core, pre=False)
    core.set_term(core.term + 1, core.me)
    _ask(core, core.term, transfer)


def _start(core: State, pre: bool) -> None:
    if core.role is Role.LEADER:
        raise Bug("a leader campaigns")
    if core.leader is not None:
        core.leader = None
        core.reads.restart()
        core.fetching = None
    core.set_role(Role.CANDIDATE)
    core.pre = pre
    core.votes = {}
    core.elapsed = 0
    core.draw_timeout()


def _ask(core: State, term: int, transfer: bool) -> None:
    request = VoteRequest(term, core.log.last, core.log.last_term, core.pre, transfer)
    send = core.send_early if core.pre else core.send_late
    for member in core.membership.voters:
        if member.ref != core.me:
            send(member.ref, request)


def vote_reply(core: State, sender: NodeRef, message: VoteReply) -> str | None:
    if message.pre != core.pre:
        return "late: of another phase"
    if not is_voter(core.membership, sender):
        return "not a voter"
    if message.granted and message.term != core.term + (1 if core.pre else 0):
        return "late: of another term"
    count(core, sender, message.granted)
    return None


def count(core: State, voter: NodeRef, granted: bool) -> None:
    """One vote per voter (id, incarnation); the first answer holds."""
    core.votes.setdefault(voter, granted)
    voters = core.membership.voters
    answers = [core.votes.get(member.ref) for member in voters]
    needed = majority(len(voters))
    if answers.count(True) >= needed:
        if core.pre:
            elect(core, transfer=False)
        else:
            leader.become_leader(core)
    elif answers.count(False) > len(voters) - needed:
        core.become_follower(core.term, None)


def count_own(core: State) -> None:
    """The own vote counts like any other: if this node is a voter, and once it is durable."""
    if is_voter(core.membership, core.me):
        count(core, core.me, True)


def tick(core: State) -> None:
    core.elapsed += 1
    if core.elapsed >= core.timeout:
        if may_campaign(core):
            campaign(core)
        else:
            core.become_follower(core.term, None)


# --- answering, in every role ---------------------------------------------------------------------------------------


def vote_request(core: State, sender: NodeRef, message: VoteRequest) -> str | None:
    """RequestVote. A higher term has been adopted already, unless this is a pre-vote."""
    reason = _refusal(core, sender, message)
    if reason is None and not message.pre:
        core.set_term(core.term, sender)
        core.elapsed = 0
    core.send_late(sender, VoteReply(core.term if reason else message.term, reason is None, message.pre))
    return reason


def _refusal(core: State, sender: NodeRef, message: VoteRequest) -> str | None:
    if is_bound_to_leader(core) and not message.transfer:
        return "a leader may be alive"
    if core.log.holes:
        return "damaged entries: no votes"
    if message.pre:
        if message.term <= core.term:
            return "the term is not ahead"
    elif core.vote is not None and core.vote != sender:
        return "voted for another"
    if (message.last_term, message.last_index) < (core.log.last_term, core.log.last):
        if core.role is Role.LEARNER:
            core.refused_tick = core.ticks
        return "its log is behind"
    return None


def is_bound_to_leader(core: State) -> bool:
    """Stickiness: a leader was heard, or this node started, less than the least election timeout ago."""
    if core.role is Role.LEADER:
        return True
    return core.contact < core.config.election_ticks_min and not core.is_alone()
