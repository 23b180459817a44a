"""Who is not let in is refused again and again, and both sides say so once: not at each attempt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.nemesis import wait_until_member
from tests.e2e.network import Network
from tests.e2e.processes import LocalCluster, NodeProcess, wait_for
from tests.e2e.test_membership import voters, waits, write

pytestmark = pytest.mark.e2e

ATTEMPTS = 8  # the back-off ends at 2 s: connections made after the first refusal
OTHERS = ("waiting for", "connection refused", "reset by peer")  # lines about a node that is not there
WORDS = ("refuse", "secret", "removed", "backup", "another cluster", "started", "incarnation")


class Doorbell:
    """How often a stranger and its peers have connected, and what they have logged, since this was made."""

    def __init__(self, network: Network, stranger: NodeProcess, peers: list[NodeProcess]) -> None:
        self.network = network
        self.stranger = stranger
        self.peers = peers
        self.word = ""
        self.read = {node.id: len(node.log) for node in (stranger, *peers)}
        self.before = self.connections()

    def connections(self) -> int:
        pairs = [pair for peer in self.peers for pair in ((peer.id, self.stranger.id), (self.stranger.id, peer.id))]
        return sum(self.network.proxy.link(*pair).connections for pair in pairs)

    def lines(self, node: NodeProcess) -> list[str]:
        """What was logged about refusals and lost connections."""
        return [
            line
            for line in node.log[self.read[node.id] :].splitlines()
            if any(word in line.lower() for word in WORDS)
            and not any(word in line for word in OTHERS)
            and (self.word == "secret" or "during the proof" not in line)  # else: it was killed in the middle of one
        ]

    def check(self, word: str) -> None:
        """Many attempts, and per peer at most two lines on either side: each dials the other."""
        self.word = word
        wait_for("the first refusal", lambda: any(word in line for line in self.lines(self.stranger)))
        base = self.connections()
        wait_for("more attempts", lambda: self.connections() >= base + ATTEMPTS, 60)
        # The stranger also says to its operator what it makes of it.
        assert len(self.lines(self.stranger)) <= 2 * len(self.peers) + 1, self.lines(self.stranger)
        for peer in self.peers:
            assert len(self.lines(peer)) <= 2, self.lines(peer)


def secret_file(path: Path, text: str) -> str:
    path.write_text(text * 32 + "\n")
    path.chmod(0o600)
    return str(path)


def test_another_secret(tmp_path):
    with LocalCluster(tmp_path, 2, proxied=True) as cluster, Network(cluster) as network:
        n1, n2 = cluster.nodes
        n1.ensemble = ""
        n1.start().wait_serving()
        cluster.wait_leader()
        n2.ensemble = f"{n1.host}:{n1.port}"
        n2.flags += ["--cluster-secret-file", secret_file(tmp_path / "other", "x")]
        bell = Doorbell(network, n2, [n1])
        n2.start()
        bell.check("secret")
        assert voters(n1) == 1
        assert waits(n2)


def test_another_cluster(tmp_path):
    """Where a member was, a node of another cluster answers now: the members go on dialling it."""
    with LocalCluster(tmp_path, 3, proxied=True) as cluster, Network(cluster) as network:
        cluster.start()
        other = cluster.followers()[0]
        rest = [node for node in cluster.nodes if node is not other]
        other.kill()
        shutil.rmtree(other.directory)
        other.ensemble = ""
        bell = Doorbell(network, other, rest)
        other.start().wait_serving()
        write(other, "k", "theirs")
        bell.check("of cluster")
        write(rest[0], "k", "ours")
        assert (voters(other), voters(rest[0]), voters(rest[1])) == (1, 3, 3)
        with other.client() as client:
            assert client.get("k") == b"theirs"


def test_former_selves_of_a_member(tmp_path):
    """Put back from before later starts; of a replaced incarnation; put back from before later entries; removed."""
    with LocalCluster(tmp_path, 3, proxied=True) as cluster, Network(cluster) as network:
        cluster.start()
        leader = cluster.wait_leader()
        former = cluster.followers()[0]
        peers = [node for node in cluster.nodes if node is not former]

        def put_back(copy: Path) -> Doorbell:
            former.kill()
            shutil.rmtree(former.directory)
            shutil.copytree(copy, former.directory)
            bell = Doorbell(network, former, peers)
            former.start()
            return bell

        former.stop()
        shutil.copytree(former.directory, tmp_path / "early")
        for _ in range(2):
            former.start()
            wait_for("it to follow", lambda: (former.info() or {}).get("raft_leader_id") == leader.id)
            former.stop()
        put_back(tmp_path / "early").check("start")
        former.kill()
        shutil.rmtree(former.directory)
        former.start("-o")
        wait_until_member(cluster, former)
        put_back(tmp_path / "early").check("refuse")  # of an incarnation that was replaced
        former.kill()
        shutil.rmtree(former.directory)
        former.start("-o")
        wait_until_member(cluster, former)
        former.stop()
        shutil.copytree(former.directory, tmp_path / "late")
        former.start()
        wait_for("it to follow", lambda: (former.info() or {}).get("raft_leader_id") == leader.id)
        for number in range(30):
            write(leader, f"k{number}", "v")
        cluster.wait_equal()
        put_back(tmp_path / "late").check("copies")  # as many starts as the peers have seen, in another life
        former.kill()
        bell = Doorbell(network, former, peers)
        former.start()  # more starts than they have seen, fewer entries than it has acknowledged
        bell.check("backup")
        former.kill()
        shutil.rmtree(former.directory)
        former.start("-o")
        wait_until_member(cluster, former)
        bell = Doorbell(network, former, peers)
        with leader.client() as client:
            assert client.execute_command("DEL_NODE", former.id)
        bell.check("removed")
