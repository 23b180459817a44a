"""The forms in which nodes may be named: HOSTNAME, :PORT, ID/HOST:PORT, HOST:PORT; and lists that cannot be meant."""

from __future__ import annotations

import socket

import pytest

from raftdb.config import own_host
from tests.e2e.nemesis import wait_until_member
from tests.e2e.processes import LocalCluster, NodeProcess, wait_for
from tests.e2e.test_membership import cluster_ids, read, voters, write
from tests.ports import free_port

pytestmark = pytest.mark.e2e

SECRET = "0123456789abcdef0123456789abcdef\n"


def as_typed(cluster: LocalCluster, node: NodeProcess, node_id: str, address: str, ensemble: str = "") -> NodeProcess:
    """The node is told this on its command line; for the test it is where `:PORT` means."""
    secret = cluster.directory / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    node.typed_id, node.typed_address, node.ensemble = node_id, address, ensemble
    node.host = node.bind = own_host()
    node.flags += ["--protected-mode", "no", "--cluster-secret-file", str(secret)]
    return node


def test_the_names_of_this_machine(tmp_path):
    """-i HOSTNAME and -a :PORT, found by -e :PORT; without -i the id is the address."""
    with LocalCluster(tmp_path, 3) as cluster:
        n1, n2, n3 = cluster.nodes
        for node, port in zip(cluster.nodes, _ports(3), strict=True):
            node.port = port
        one, two, three = (f":{node.port}" for node in cluster.nodes)
        as_typed(cluster, n1, "HOSTNAME", one).start().wait_serving()
        n1.id = socket.gethostname()
        write(n1, "k", "v")
        as_typed(cluster, n2, "", two, one).start().wait_serving()
        n2.id = f"{own_host()}{two}"
        wait_until_member(cluster, n2)
        as_typed(cluster, n3, "three", three, f"{n1.id}/{one},{two}").start().wait_serving()
        n3.id = "three"
        wait_until_member(cluster, n3)
        wait_for("three voters", lambda: [voters(node) for node in cluster.nodes] == [3] * 3)
        rows = {str(row["id"]): str(row["addr"]) for name, row in n1.info().items() if name.startswith("raft_peer")}
        assert rows == {node.id: f"{own_host()}:{node.port}" for node in cluster.nodes}
        assert [read(node, "k") for node in cluster.nodes] == ["v"] * 3


def test_forming_by_ports_alone(tmp_path):
    """All three start empty, each with `-e :PORT,:PORT`."""
    with LocalCluster(tmp_path, 3) as cluster:
        ports = _ports(3)
        for node, port in zip(cluster.nodes, ports, strict=True):
            node.port = port
            as_typed(cluster, node, node.id, f":{port}", ",".join(f":{p}" for p in ports))  # the own one is dropped
            node.start()
        cluster.wait_leader()
        wait_for("three voters", lambda: [voters(node) for node in cluster.nodes] == [3] * 3)
        assert len(cluster_ids(cluster.nodes)) == 1


@pytest.mark.parametrize("named", [False, True], ids=["HOST:PORT", "ID/HOST:PORT"])
def test_a_list_of_two_clusters_ends_with_exit_code_2_and_a_line_that_names_them(tmp_path, named):
    with LocalCluster(tmp_path, 3) as cluster:
        n1, n2, n3 = cluster.nodes
        n1.ensemble = n2.ensemble = ""
        for node in (n1, n2):
            node.start().wait_serving()
        n3.ensemble = ",".join((f"{n.id}/" if named else "") + f"{n.host}:{n.port}" for n in (n1, n2))
        n3.start()
        assert n3.wait_exit() == 2
        (line,) = [line for line in n3.log.splitlines() if line.startswith("raftdb: ")]
        assert "two" in line or "different clusters" in line
        for node in (n1, n2):
            assert str(node.info()["raft_cluster_id"]) in line
            assert f"{node.host}:{node.port + 1}" in line or node.id in line
        assert "Traceback" not in n3.log
        assert not n3.directory.exists()
        assert (voters(n1), voters(n2)) == (1, 1)


def _ports(count: int) -> list[int]:
    """Ports that are free on this host's own address, each with the next one."""
    found: list[int] = []
    while len(found) < count:
        port = free_port([own_host()])
        if not {port - 1, port, port + 1} & set(found):
            found.append(port)
    return found
