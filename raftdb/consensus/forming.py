"""How nodes without data become a cluster, or find the one there is: decided here, spoken by the node.

    no -e                          a cluster of one
    -e, somebody has a cluster     join it, as a learner that its leader promotes
    -e, nobody has                 form a new one, but only when nobody who is listed could have one without our knowing

The danger is two clusters where one is meant, or one that is formed anew over the remains of an old one. Hence:

- A node of the list that has not answered may hold the data of years: nothing is formed until **every** listed node has
  answered "I have no data". A DNS name says nothing about who is missing, so it forms only with `--expect N` and
  exactly N distinct nodes; without it, it can only join.
- Every one of them must report that it has met the same nodes, (id, incarnation) each, and that its own list is
  complete. So A and B, who see {A, B}, and C, D, E, who see {C, D, E}, form nothing where five are expected.
- One node proposes: the one with the smallest id. It accepts its own plan durably before it sends it; everybody durably
  accepts one plan, once. Whoever accepted is formed, may elect with a majority of the plan, and hands the plan to the
  rest. What -e calls the nodes changes nothing: a node has the id that it says itself.
- Two nodes with one id, listed nodes of two clusters, or a cluster that knows this node's id with another disk: stop,
  and name them. The last is a disk that was lost: `-o` replaces it (the old incarnation is removed, this one joins).

A value like the core: answers in, one decision out. Nothing is sent, stored, resolved or timed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from raftdb.types import Member, NodeRef


class Plan(NamedTuple):
    """A new cluster. Accepted durably, once; then it is the membership at index 0."""

    cluster_id: str
    members: tuple[Member, ...]  # ordered by id, all voters


class Blank(NamedTuple):
    """An answer: "I have no data"."""

    member: Member
    met: tuple[NodeRef, ...]  # everybody of its own list who says the same, itself included, ordered
    complete: bool  # that is everybody it waits for


class Formed(NamedTuple):
    """An answer: "I belong to this cluster"."""

    cluster_id: str
    members: tuple[Member, ...]


Answer: TypeAlias = Blank | Formed


class Wait(NamedTuple):
    """Nothing can be done yet. The text says for whom, in a line for the log and for clients."""

    text: str


class Join(NamedTuple):
    """Ask that cluster, through any member's leader, to add this node. `replaces`: the incarnation to remove first."""

    cluster_id: str
    via: tuple[str, ...]  # addresses that answered for it, ordered
    replaces: NodeRef | None


class Accept(NamedTuple):
    """Store this plan durably, then call `accepted`, then send it to the other members until each has it."""

    plan: Plan


class Stop(NamedTuple):
    """Only the operator can mend this."""

    reason: str


Decision: TypeAlias = Wait | Join | Accept | Stop


class Forming:
    """One node without data, from its start until it is formed, joins or stops."""

    def __init__(
        self,
        me: Member,
        listed: Iterable[str],
        cluster_id: str,
        *,
        is_dns: bool = False,
        expect: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """`listed`: peer addresses of -e; `cluster_id`: drawn by the caller, used if this node proposes."""
        self.me = me._replace(voter=True)
        self.cluster_id = cluster_id
        self.is_dns = is_dns
        self.expect = expect
        self.overwrite = overwrite
        self.own_addresses = {me.peer_addr}
        self.answers: dict[str, Answer] = {}
        self.plan: Plan | None = None
        self.is_formed = False
        self.listed: tuple[str, ...] = ()
        self.resolve(listed)

    # --- inputs -----------------------------------------------------------------------------------------------------

    def resolve(self, listed: Iterable[str]) -> None:
        """The addresses of the list (a DNS name may give others each time). The own one among them is dropped."""
        self.listed = tuple(sorted(set(listed) - self.own_addresses))
        self.answers = {address: answer for address, answer in self.answers.items() if address in self.listed}

    def answer(self, address: str, answer: Answer) -> None:
        """What the node at `address` says now."""
        if isinstance(answer, Blank) and answer.member.ref == self.me.ref:
            self.own_addresses.add(address)
            self.resolve(self.listed)
        elif address in self.listed:
            self.answers[address] = answer

    def silent(self, address: str) -> None:
        """The node at `address` does not answer (any more): what it said before does not count."""
        self.answers.pop(address, None)

    def offered(self, plan: Plan) -> str | None:
        """A member of `plan` hands it over. None: `decide` says Accept; else why it is not accepted.

        That this (id, incarnation) is in it says enough: the plan was made from what this node itself has reported.
        """
        if self.plan is not None:
            return None if plan == self.plan else "another plan was accepted before"
        if all(member.ref != self.me.ref for member in plan.members):
            return f"this node is {self.me.id}, incarnation {self.me.incarnation:016x}, which is not in the plan"
        self.plan = plan
        return None

    def accepted(self) -> None:
        """The plan is durable here."""
        assert self.plan is not None
        self.is_formed = True

    # --- outputs ----------------------------------------------------------------------------------------------------

    def report(self) -> Answer:
        """What this node answers to others."""
        if self.is_formed and self.plan is not None:
            return Formed(self.plan.cluster_id, self.plan.members)
        return Blank(self.me, tuple(sorted(self._met())), self._missing() is None)

    def decide(self) -> Decision:
        """What to do now, from all that is known."""
        if self.plan is not None:
            return Accept(self.plan)
        return self._clash() or self._join() or self._wait_for_nodes() or self._form()

    # --- rules ------------------------------------------------------------------------------------------------------

    def _blank(self) -> list[Member]:
        """This node and everybody who says that it has no data, each once."""
        members = {answer.member.ref: answer.member for answer in self.answers.values() if isinstance(answer, Blank)}
        members[self.me.ref] = self.me
        return [members[ref]._replace(voter=True) for ref in sorted(members)]

    def _met(self) -> frozenset[NodeRef]:
        return frozenset(member.ref for member in self._blank())

    def _clash(self) -> Stop | None:
        """What only the operator can mend."""
        clusters = {a.cluster_id: address for address, a in sorted(self.answers.items()) if isinstance(a, Formed)}
        if len(clusters) > 1:
            (one, at_one), (two, at_two) = sorted(clusters.items())[:2]
            return Stop(f"the list names two clusters: {one} at {at_one} and {two} at {at_two}")
        blank = self._blank()
        at: dict[str, str] = {}
        for member in blank:
            if member.id in at:
                return Stop(f"two nodes call themselves {member.id}: {at[member.id]} and {member.peer_addr}")
            at[member.id] = member.peer_addr
        return None

    def _join(self) -> Join | Stop | None:
        formed = {address: a for address, a in self.answers.items() if isinstance(a, Formed)}
        if not formed:
            return None
        cluster_id = next(iter(formed.values())).cluster_id
        known = [m for a in formed.values() for m in a.members if m.id == self.me.id]
        strangers = [m.ref for m in known if m.incarnation != self.me.incarnation]
        if strangers and not self.overwrite:
            where = ", ".join(sorted(formed))
            return Stop(
                f"cluster {cluster_id} ({where}) knows {self.me.id} with other data: use -o to replace that node"
            )
        return Join(cluster_id, tuple(sorted(formed)), min(strangers) if strangers else None)

    def _missing(self) -> str | None:
        """For whom to wait before anything may be formed."""
        if not self.is_dns:
            silent = [address for address in self.listed if not isinstance(self.answers.get(address), Blank)]
            return "waiting for " + ", ".join(silent) if silent else None
        if self.expect is None:
            return "waiting for a cluster to join (a DNS name forms one only with --expect)"
        met = len(self._met())
        return None if met == self.expect else f"waiting: {met} nodes have answered, {self.expect} are expected"

    def _wait_for_nodes(self) -> Wait | None:
        missing = self._missing()
        return None if missing is None else Wait(missing)

    def _form(self) -> Wait | Accept:
        """Everybody has answered. Do they all see the same, and whose turn is it?"""
        met = self._met()
        for address, answer in sorted(self.answers.items()):
            if isinstance(answer, Blank) and (not answer.complete or frozenset(answer.met) != met):
                return Wait(f"waiting for {answer.member.id} at {address} to meet the same nodes")
        members = tuple(self._blank())
        if members[0].ref != self.me.ref:
            return Wait(f"waiting for {members[0].id} to form the cluster")
        self.plan = Plan(self.cluster_id, members)
        return Accept(self.plan)
