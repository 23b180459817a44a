"""Nodes in this process, on free ports, with their data in tmp_path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftdb.config import MIB, Config
from raftdb.node.node import Node
from tests.ports import free_port

StartNode = Callable[..., Node]
READY_S = 20.0


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """start_node(node_id, **settings) -> a running node; all are stopped at the end."""
    nodes: list[Node] = []

    def start(
        node_id: str = "n1", *, commands: Any = (), ready: bool = True, alone: bool = False, **settings: Any
    ) -> Node:
        settings.setdefault("address", f"127.0.0.1:{free_port()}")
        settings.setdefault("data_dir", str(tmp_path / node_id))
        settings.setdefault("min_free_bytes", 0)
        settings.setdefault("map_size_bytes", 256 * MIB)
        node = Node(Config(node_id=node_id, **settings), commands=commands)
        node.alone_in_process = alone  # as `raftdb serve` says
        node.start()
        nodes.append(node)
        if ready:
            assert node.wait_ready(READY_S), node.failure
        return node

    yield start
    for node in nodes:
        node.stop()
