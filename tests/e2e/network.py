"""The wires between the nodes of a LocalCluster: one proxy, a listener per node at its advertised peer address."""

from __future__ import annotations

from tests.e2e.processes import LocalCluster, NodeProcess
from tests.proxy import Proxy


class Network:
    """What fault sets do to wires, in terms of nodes. A context manager; make it before the nodes start."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.proxy = Proxy()
        self.cluster = cluster
        names = {node.bind: node.id for node in cluster.all}
        for node in cluster.all:
            assert node.bind != node.host, "the cluster was not made with proxied=True"
            self.proxy.listen(
                node.id, (node.bind, node.port + 1), classify=names.get, host=node.host, port=node.port + 1
            )

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *exc: object) -> None:
        self.proxy.close()

    def cut(self, one: NodeProcess, other: NodeProcess) -> None:
        """Connections between the two are reset, new ones refused, whoever dials."""
        self.proxy.link(one.id, other.id).cut()

    def silence(self, speaker: NodeProcess, listener: NodeProcess) -> None:
        """What `speaker` says does not reach `listener`; neither side sees a connection end."""
        self.proxy.link(speaker.id, listener.id).hold()

    def reset_after(self, one: NodeProcess, other: NodeProcess, count: int) -> None:
        self.proxy.link(one.id, other.id).close_after(count)

    def delay(self, one: NodeProcess, other: NodeProcess, delay_ms: float) -> None:
        self.proxy.link(one.id, other.id).delay(delay_ms / 1000, delay_ms / 2000)

    def throttle(self, one: NodeProcess, other: NodeProcess, bytes_per_s: float) -> None:
        self.proxy.link(one.id, other.id).throttle(bytes_per_s)

    def heal(self) -> None:
        self.proxy.heal()
