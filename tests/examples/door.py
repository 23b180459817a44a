"""The program of test_door.py: a subclass of RaftNode whose callbacks misbehave, with commands that tell about it."""

from __future__ import annotations

import argparse
import json
import threading
from typing import Any

from raftdb import raft

#: PYRAFT.md, 1.3: what programs of the forerunner look at.
ATTRIBUTES = (
    *("nid", "term", "index", "state", "addr", "ip", "port", "shutdown_flag", "last_checkpoint", "commit_index"),
    *("last_applied", "overwrite_peer"),
)


class Misbehaving(raft.RaftNode):
    """Every callback notes itself and the state it finds, then does what it should not."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: list[tuple[str, str]] = []
        self.stamped = 0  # how often the replicated handler ran here

    def on_start(self) -> None:
        self.seen.append(("on_start", self.state))
        raise RuntimeError("on_start raises")

    def on_candidate(self) -> None:
        self.seen.append(("on_candidate", self.state))
        raise RuntimeError("on_candidate raises")

    def on_follower(self) -> None:
        self.seen.append(("on_follower", self.state))
        self.request("hincrby", "followed", self.nid, 1)  # calls back into the node

    def on_leader(self) -> None:
        self.seen.append(("on_leader", self.state))
        print(f"node {self.nid} leads", flush=True)
        threading.Event().wait()  # hangs for ever

    def on_shutdown(self) -> None:
        print(f"node {self.nid} ends", flush=True)


def told(value: Any) -> str:
    return json.dumps(value, default=repr)


def attributes(node: Misbehaving, words: list[str]) -> str:
    found = {name: getattr(node, name) for name in ATTRIBUTES}
    found["peers"] = {nid: vars(peer) for nid, peer in node.peers.items()}
    found["data"] = dict(node.data)
    found["ttl"] = dict(node.ttl)
    found["seen"] = node.seen
    found["stamped"] = node.stamped
    found["log"] = [node.log.first, node.log.last]
    found["locked"] = node.data_lock.acquire(timeout=1)
    node.data_lock.release()
    node.logger.info("asked for its attributes")
    found["pending"] = node.get_pending_time()
    found["worker"] = sorted(node.worker.handler)
    found["waiting"] = node.q_entry.qsize()
    return told(found)


def stamp(node: Misbehaving, words: list[str]) -> str:
    """Replicated: time and chance are the entry's. Counts how often it ran on this very node, outside of the data."""
    node.stamped += 1
    node.data[f"stamp_{words[1]}"] = text = f"{node.now!r} {node.random.below(1 << 60)}"
    return text


def call(node: Misbehaving, words: list[str]) -> str:
    """A method of the node, in this node's process: its answer, or its exception."""
    arguments = [words[2:]] if words[1] == "propose" else words[2:]
    try:
        return told(getattr(node, words[1])(*arguments))
    except raft.RaftException as error:
        return told({"raised": str(error)})


def later(node: Misbehaving, words: list[str]) -> str:
    futures = [node.request_async(*words[1:]) for _ in range(3)]
    return told([future.get(10) for future in futures])


def main() -> None:
    args = raft.parse_default_args(argparse.ArgumentParser())
    node = Misbehaving(args.nid, args.addr, args.ensemble_map, config={"data_dir": args.data_dir})
    if args.load:
        assert node.load(args.load)
    node.worker.handler["attributes"] = [attributes, "r", 0, 0]
    node.worker.handler["stamp"] = [stamp, "we", 1, 1]
    node.worker.handler["call"] = [call, "r", 1, -1]
    node.worker.handler["later"] = [later, "r", 1, -1]
    node.start()
    node.join()


if __name__ == "__main__":
    main()
