"""Sessions that end when nobody has touched them for a while: `TOUCH_SESSION name`, `SESSIONS`.

    python examples/session_expiry.py -a 127.0.0.1:5010 -i 1 --keep 60
    redis-cli -p 5010 touch_session anna

The time of a session is the log's (`node.now`), not a clock: the command runs on every replica, and each must come to
the same answer, today and when the log is read again after a restart. The end itself is the store's expiry, so no
watcher has to be alive for it; the leader only tells who has gone.
"""

from __future__ import annotations

import argparse
import threading

from raftdb import raft

PREFIX = "session_"


def touch_session(keep_s: float):
    """The command: (re)start the session of words[1]; answers for how many seconds it is good."""

    def run(node: raft.RaftNode, words: list[str]) -> int:
        key = PREFIX + words[1]
        node.data[key] = str(int(node.now))
        node.set_ttl(key, node.now + keep_s)
        return int(keep_s)

    return run


def sessions(node: raft.RaftNode, words: list[str]) -> list[str]:
    """The command: names of the living sessions, in order."""
    return sorted(key.removeprefix(PREFIX) for key in node.data if key.startswith(PREFIX))


def watch(node: raft.RaftNode, every_s: float, wake: threading.Event) -> None:
    """On the leader: say which sessions have ended."""
    known: set[str] = set()
    while node.state == "l" and not node.shutdown_flag:
        living = set(node.request("sessions"))
        for name in sorted(known - living):
            print(f"node {node.nid}: session {name} has ended", flush=True)
        known = living
        wake.wait(every_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=60.0, help="seconds that a session lasts untouched")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    args = raft.parse_default_args(parser)
    wake = threading.Event()

    def start_watching(node: raft.RaftNode) -> None:
        threading.Thread(target=watch, args=(node, args.every, wake), daemon=True).start()

    node = raft.make_default_node(args)
    node.worker.handler["touch_session"] = [touch_session(args.keep), "we", 1, 1]
    node.worker.handler["sessions"] = [sessions, "r", 0, 0]
    node.worker.handler["on_leader"] = start_watching
    node.start()
    node.join()


if __name__ == "__main__":
    main()
