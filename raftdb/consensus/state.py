"""The state of a node, and the moves that every role shares: terms, votes, commit, membership.

The roles (follower.py, candidate.py, leader.py) are functions over this state; core.py puts them into one table and
adds the verbs that the outside uses. Effects are queued here: `early` may leave before the next Persist is durable,
`late` only after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

from raftdb.consensus import membership as members
from raftdb.consensus.chance import SplitMix64
from raftdb.consensus.log import LogView, RaftLog
from raftdb.consensus.messages import Append, Envelope, Message
from raftdb.consensus.progress import Progress
from raftdb.consensus.reads import Reads
from raftdb.consensus.ready import ReadReady, Ready, RoleChange
from raftdb.errors import Bug, RaftdbError, UsageError
from raftdb.types import ChainOf, HardState, Membership, NodeRef, Role, SnapshotMeta

RETIRED_MAX = 1024

#: A cell of HANDLERS: None when the message was taken, else why it was ignored or refused.
Handler: TypeAlias = Callable[[Any, NodeRef, Any], "str | None"]


class CoreConfig(NamedTuple):
    """Limits and timers. Times are ticks (50 ms by default)."""

    heartbeat_ticks: int = 2
    election_ticks_min: int = 15  # also: check-quorum, stickiness, stalled log, end of a transfer
    election_ticks_max: int = 30
    resend_ticks: int = 6  # an append that a later heartbeat reply does not show is lost after this
    inflight_messages_max: int = 16  # appends under way per follower: 1, 2, 16
    inflight_bytes_max: int = 4 << 20
    append_bytes_max: int = 1 << 20  # one Append holds at most this, but always one entry
    catch_up_bytes_per_turn: int = 256 << 10  # read back from the log between two inputs, all followers together
    uncommitted_bytes_max: int = 64 << 20  # propose raises Busy above it
    reads_waiting_max: int = 100_000
    read_wait_ticks: int = 100  # a read that nobody answered is refused
    snapshot_retry_ticks: int = 40
    term_jump_max: int = 1 << 32  # a message whose term is further ahead is refused
    promote_learners: bool = True


def check_config(config: CoreConfig) -> None:
    """Raises UsageError for limits and timers with which no cluster works."""
    for name, value in config._asdict().items():
        if name != "promote_learners" and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    heartbeat, low, high = config.heartbeat_ticks, config.election_ticks_min, config.election_ticks_max
    if not heartbeat < low <= high:
        raise UsageError(
            "the election timeout must be longer than the time between heartbeats, and not end before it begins: "
            f"heartbeat {heartbeat}, election {low}-{high} ticks"
        )


class NotLeader(RaftdbError):
    """Only the leader can do that; `leader` is who it is, as far as this node knows."""

    def __init__(self, leader: NodeRef | None) -> None:
        super().__init__(leader)
        self.leader = leader

    def __str__(self) -> str:
        return f"not the leader; that is {self.leader.id if self.leader else 'unknown'}"


class Busy(RaftdbError):
    """Not now, certainly not done: too much is uncommitted, or leadership is being handed over."""


class State:
    """Everything a node knows. One owner, no locks: a value that verbs move on."""

    tables: ClassVar[dict[Role, dict[type[Any], Handler]]]

    __slots__ = (
        "age_ms",
        "applied",
        "budget_bytes",
        "chance",
        "change_open",
        "commit",
        "config",
        "confirmed_new",
        "confirmed_round",
        "contact",
        "done_reads",
        "duties_tick",
        "early",
        "elapsed",
        "fetch_new",
        "fetching",
        "fit",
        "hand_over_tick",
        "handlers",
        "hard_dirty",
        "heartbeat_elapsed",
        "hold_news",
        "late",
        "leader",
        "lease_end",
        "lease_floor",
        "lease_new",
        "log",
        "made",
        "me",
        "membership",
        "membership_dirty",
        "news_held",
        "noop_index",
        "open",
        "open_late",
        "open_ticks",
        "others",
        "outbound",
        "own",
        "peers",
        "pre",
        "previous",
        "reads",
        "refused_tick",
        "released_commit",
        "retired",
        "role",
        "role_reason",
        "role_told",
        "round",
        "round_new",
        "sizes",
        "snapshot",
        "starved",
        "term",
        "ticks",
        "timeout",
        "transfer_failed",
        "transfer_tick",
        "transferred",
        "transferring",
        "uncommitted_bytes",
        "vote",
        "voters",
        "votes",
        "wall_ms",
        "want_round",
    )

    def __init__(
        self,
        me: NodeRef,
        config: CoreConfig,
        log: LogView,
        hard: HardState,
        membership: Membership,
        previous_membership: Membership | None,
        commit: int,
        applied: int,
        chain_of: ChainOf,
        seed: int,
        starts: int,
        stamp: int,
        snapshot: SnapshotMeta | None,
    ) -> None:
        check_config(config)
        self.me = me
        self.config = config
        self.log = RaftLog(log, chain_of, stamp)
        self.chance = SplitMix64(seed)
        # Hard state and its shadow.
        self.term = hard.term
        self.vote = hard.vote
        self.hard_dirty = False
        # Log positions: applied <= commit <= last (I13).
        self.commit = max(commit, applied, self.log.first - 1)
        self.applied = applied
        self.released_commit = applied
        self.starved = applied < self.log.first - 1  # the state machine is older than the log: only a snapshot helps
        if not applied <= self.commit <= self.log.last:
            raise Bug(f"start: applied {applied}, commit {self.commit}, last {self.log.last}")
        # Membership: adopted on append, so it may be ahead of commit.
        self.membership = membership
        self.previous = previous_membership
        self.membership_dirty = False
        self.change_open = membership.index > self.commit
        self.retired: dict[NodeRef, None] = {}  # removed (id, incarnation) pairs: they never return
        # Time.
        self.ticks = 0
        self.elapsed = 0  # since contact, a granted vote, or the start of a campaign
        self.contact = 0  # since a leader was heard, or since the start: no votes below election_ticks_min
        self.timeout = 0
        self.fit = True
        self.wall_ms = 0
        self.age_ms: int | None = None
        # Follower and candidate.
        self.leader: NodeRef | None = None
        self.refused_tick: int | None = None  # learner: when it refused a voter whose log is behind
        self.votes: dict[NodeRef, bool] = {}
        self.pre = False
        self.fetching: SnapshotMeta | None = None
        # Leader.
        self.peers: dict[NodeRef, Progress] = {}
        self.others: list[Progress] = []  # without this node, ordered
        self.voters: list[Progress] = []  # those that count, this node included
        self.own = Progress(me, False, 0, 0)
        self.noop_index = 0
        self.round = 0
        self.confirmed_round = 0
        self.heartbeat_elapsed = 0
        self.duties_tick = 0  # when the leader last looked after quorum, learners, snapshots and transfers
        self.want_round = False
        self.outbound = False
        self.hold_news = False  # set by the driver: the news of a commit may wait for the next append or heartbeat
        self.news_held = False  # leader: some member has not been told of the commit index for that reason
        self.made: tuple[int, Append, int, int] | None = None  # the last Append of this flush, for those at its place
        self.budget_bytes = config.catch_up_bytes_per_turn
        self.sizes: deque[tuple[int, int]] = deque()  # (last index, bytes) per proposed batch
        self.uncommitted_bytes = 0
        self.transferring: NodeRef | None = None
        self.transfer_tick = 0
        self.transfer_failed: set[NodeRef] = set()  # voters that did not take over when they were asked
        self.hand_over_tick = 0  # an unfit leader does not try again before
        self.transferred = False  # TimeoutNow was sent in this term: no leases any more
        self.lease_floor = 0  # rounds up to this one give no lease
        self.snapshot = snapshot
        # Effects.
        self.early: list[Envelope] = []
        self.late: list[Envelope] = []
        self.done_reads: list[ReadReady] = []
        self.reads = Reads(starts)
        self.round_new = 0
        self.confirmed_new = 0
        self.lease_new = 0
        self.lease_end = False
        self.fetch_new: SnapshotMeta | None = None
        self.role_reason = ""
        self.role_told: RoleChange | None = None
        self.open: Ready | None = None
        self.open_late: list[Envelope] = []
        self.open_ticks = 0
        self.retire()
        self.set_role(self.resting_role())
        self.draw_timeout()

    # --- roles and terms --------------------------------------------------------------------------------------------

    def set_role(self, role: Role) -> None:
        self.role = role
        self.handlers = self.tables[role]

    def resting_role(self) -> Role:
        """What a node is that neither leads nor campaigns."""
        return Role.FOLLOWER if self.may_be_voter() else Role.LEARNER

    def may_be_voter(self) -> bool:
        """A voter of the newest membership, or of the one before while the change is not known to be committed.

        The second half is dissertation 4.2.2: a leader that appended its own removal and then lost touch holds the
        longest log; it may have to win once more (without counting its own vote) for the change to commit.
        """
        if is_voter(self.membership, self.me):
            return True
        return self.change_open and self.previous is not None and is_voter(self.previous, self.me)

    def is_sole_voter(self) -> bool:
        voters = self.membership.voters
        return len(voters) == 1 and voters[0].ref == self.me

    def is_alone(self) -> bool:
        """The only voter of a committed membership: nobody else can lead.

        While the change that made it the only one is open, the leader who removes itself may still lead, and hold a
        lease that this node has confirmed.
        """
        return not self.change_open and self.is_sole_voter()

    def is_member(self, ref: NodeRef) -> bool:
        member = self.membership.get(ref.id)
        return member is not None and member.incarnation == ref.incarnation

    def draw_timeout(self) -> None:
        self.timeout = self.chance.between(self.config.election_ticks_min, self.config.election_ticks_max)

    def set_term(self, term: int, vote: NodeRef | None) -> None:
        """Move to a higher term, or cast the one vote of this term (I2, I3). Durable with the next Persist."""
        if term < self.term:
            raise Bug(f"term {self.term} would fall to {term}")
        if term == self.term and self.vote is not None and vote != self.vote:
            raise Bug(f"second vote in term {term}: {vote} after {self.vote}")
        if term != self.term or vote != self.vote:
            self.term, self.vote = term, vote
            self.hard_dirty = True

    def become_follower(self, term: int, leader: NodeRef | None, reason: str = "") -> None:
        """Follow `leader` (None: unknown) in `term`. From leader: nothing of the leadership stays."""
        if term != self.term:
            self.set_term(term, None)
        if self.role is Role.LEADER:
            self._leave_leadership(reason)
        if self.role is Role.CANDIDATE:
            self.votes = {}
        if self.leader != leader:
            self.leader = leader
            self.refused_tick = None
            self.reads.restart()
            self.fetching = None
        if self.role is Role.LEADER or self.role is Role.CANDIDATE or leader is not None:
            self.elapsed = 0
            self.draw_timeout()
        self.set_role(self.resting_role())

    def _leave_leadership(self, reason: str) -> None:
        self.lease_end = True
        self.role_reason = reason
        self.contact = self.config.election_ticks_min  # its own promise to itself ends with its leadership
        self.peers = {}
        self.others = []
        self.voters = []
        self.sizes.clear()
        self.uncommitted_bytes = 0
        self.transferring = None
        self.want_round = self.outbound = self.news_held = False
        self.round_new = self.confirmed_new = self.lease_new = 0

    def heard_leader(self, sender: NodeRef) -> None:
        """A message of the leader of this term arrived."""
        if self.leader != sender:
            if self.leader is not None:
                raise Bug(f"two leaders in term {self.term}: {self.leader.id} and {sender.id}")
            self.become_follower(self.term, sender)
        self.elapsed = 0
        self.contact = 0

    # --- commit and membership --------------------------------------------------------------------------------------

    def commit_to(self, index: int) -> None:
        """Entries up to `index` are committed (I9: never back, never beyond the log)."""
        if index <= self.commit:
            return
        if index > self.log.last:
            raise Bug(f"commit {index} beyond the last entry {self.log.last}")
        self.commit = index
        if self.change_open and index >= self.membership.index:
            self._change_committed()

    def _change_committed(self) -> None:
        self.change_open = False
        self.retire()
        if self.role is Role.FOLLOWER or self.role is Role.LEARNER:
            self.set_role(self.resting_role())

    def retire(self) -> None:
        """Once a change is committed, the members it removed are strangers for good."""
        if self.change_open or self.previous is None:
            return
        current = members.refs(self.membership)
        for ref in sorted(members.refs(self.previous) - current):
            if ref.incarnation != members.RESERVED:
                self.retired[ref] = None
        for ref in current:
            self.retired.pop(ref, None)
        while len(self.retired) > RETIRED_MAX:
            del self.retired[next(iter(self.retired))]

    def adopt(self, membership: Membership) -> None:
        """A membership entry was appended: it holds from now on, committed or not (I15)."""
        if membership.index <= self.membership.index:
            raise Bug(f"membership {membership.index} adopted after {self.membership.index}")
        if self.membership.members and not members.is_single_step(self.membership, membership):
            raise Bug(f"membership {membership.index} is more than one step from {self.membership.index}")
        self.previous = self.membership
        self.membership = membership
        self.change_open = True
        self.membership_dirty = True
        if self.role is Role.FOLLOWER or self.role is Role.LEARNER:
            self.set_role(self.resting_role())

    def truncate(self, index: int) -> None:
        """Drop entries from `index` on, and the membership that one of them had made."""
        self.log.truncate(index, self.commit)
        if self.membership.index >= index:
            if self.previous is None or self.previous.index >= index:
                raise Bug(f"truncation at {index} passes two memberships")
            self.membership = self.previous
            self.membership_dirty = True
            self.change_open = self.membership.index > self.commit
            self.set_role(self.resting_role())

    # --- damage -----------------------------------------------------------------------------------------------------

    def acknowledgeable(self, index: int) -> int:
        """How much of `index` may be acknowledged: nothing at or beyond a damaged entry."""
        return min(index, self.log.first_open_hole - 1) if self.log.holes else index

    # --- effects ----------------------------------------------------------------------------------------------------

    def send_early(self, to: NodeRef, message: Message) -> None:
        self.early.append(Envelope(to, message))

    def send_late(self, to: NodeRef, message: Message) -> None:
        self.late.append(Envelope(to, message))


def is_voter(membership: Membership, ref: NodeRef) -> bool:
    member = membership.get(ref.id)
    return member is not None and member.voter and member.incarnation == ref.incarnation
