"""Transcripts of forming: nodes without data that ask each other. Commands:

cluster a/n1 b/n2              a formed cluster: its members answer for it (address/id; an incarnation after a colon)
node a n1 [list=b,c] [dns=b,c] [expect=3] [overwrite=yes] [incarnation=2]    a node at address a that starts
hear a b                       b answers a's question
silent a b                     b does not answer a
decide a                       what a does now (an accepted plan is stored at once)
offer a b                      a hands its plan to b
resolve a b,c,d                the DNS name of a gives these addresses now
crash a                        a starts again; it remembers an accepted plan, and nothing else
"""

from __future__ import annotations

from raftdb.consensus.forming import Accept, Blank, Formed, Forming, Join, Plan, Stop, Wait
from raftdb.types import Member, NodeRef


class FormingScript:
    """The interpreter."""

    def __init__(self) -> None:
        self.nodes: dict[str, Forming] = {}
        self.formed: dict[str, Formed] = {}
        self.options: dict[str, dict[str, str]] = {}

    def run(self, command: str) -> list[str]:
        words = command.split()
        options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        arguments = [word for word in words[1:] if "=" not in word]
        line = getattr(self, "do_" + words[0])(*arguments, **options)
        return [line] if line else []

    def do_cluster(self, name: str, *places: str) -> None:
        rows = []
        for place in places:
            address, _, who = place.partition("/")
            node_id, _, incarnation = who.partition(":")
            rows.append(Member(node_id, int(incarnation or 1), address, address, True))
        answer = Formed(name, tuple(sorted(rows)))
        self.formed.update({row.peer_addr: answer for row in rows})

    def do_node(self, address: str, node_id: str, **options: str) -> None:
        self.options[address] = {"id": node_id, **options}
        names = options.get("dns", options.get("list", ""))
        self.formed.pop(address, None)
        self.nodes[address] = Forming(
            Member(node_id, int(options.get("incarnation", "1")), address, address, True),
            [name for name in names.split(",") if name],
            f"cluster-of-{node_id}",
            is_dns="dns" in options,
            expect=int(options["expect"]) if "expect" in options else None,
            overwrite=options.get("overwrite") == "yes",
        )

    def do_resolve(self, address: str, names: str) -> None:
        self.nodes[address].resolve(names.split(","))

    def do_hear(self, address: str, other: str) -> str:
        answer = self.formed[other] if other in self.formed else self.nodes[other].report()
        self.nodes[address].answer(other, answer)
        if isinstance(answer, Blank):
            met = " ".join(ref.id for ref in answer.met)
            return f"{other} says: no data, met {met}" + ("" if answer.complete else ", not complete")
        return f"{other} says: {answer.cluster_id} of {' '.join(row.id for row in answer.members)}"

    def do_silent(self, address: str, other: str) -> None:
        self.nodes[address].silent(other)

    def do_decide(self, address: str) -> str:
        node = self.nodes[address]
        decision = node.decide()
        if isinstance(decision, Accept):
            node.accepted()
        return f"{node.me.id} {decision_text(decision)}"

    def do_offer(self, address: str, other: str) -> str:
        node, target = self.nodes[address], self.nodes[other]
        assert node.plan is not None
        reason = target.offered(node.plan)
        return f"{target.me.id} " + ("takes the plan" if reason is None else f"refuses: {reason}")

    def do_crash(self, address: str) -> None:
        old = self.nodes[address]
        options = dict(self.options[address])
        self.do_node(address, options.pop("id"), **options)
        if old.is_formed:
            self.nodes[address].plan = old.plan
            self.nodes[address].is_formed = True


def decision_text(decision: Wait | Join | Accept | Stop) -> str:
    if isinstance(decision, Wait):
        return decision.text if decision.text.startswith("waiting") else f"waits: {decision.text}"
    if isinstance(decision, Stop):
        return f"stops: {decision.reason}"
    if isinstance(decision, Join):
        return f"joins {decision.cluster_id} via {', '.join(decision.via)}" + replaced_text(decision.replaces)
    return f"stores {plan_text(decision.plan)}"


def replaced_text(ref: NodeRef | None) -> str:
    return "" if ref is None else f", replacing {ref.id}:{ref.incarnation}"


def plan_text(plan: Plan) -> str:
    return f"{plan.cluster_id} of {' '.join(row.id for row in plan.members)}"
