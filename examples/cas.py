"""A replicated compare-and-set: `CAS key expected value`, with the handler table.

    python examples/cas.py -a 127.0.0.1:5010 -i 1
    redis-cli -p 5010 cas color none red

Answers what the key held when the comparison failed, nil when it does not exist; `none` as expected value stands for
"may be absent".
"""

from __future__ import annotations

from raftdb import raft


def cas(node: raft.RaftNode, words: list[str]) -> str | None:
    """The command. Runs on every replica: nothing but its words and the data goes in."""
    _, key, expected, value = words
    held = node.data.get(key)
    if held is None and expected.lower() != "none":
        return None
    if held is not None and held != expected:
        return held
    node.data[key] = value
    node.clear_ttl(key)
    return expected


def main() -> None:
    node = raft.make_default_node()
    node.worker.handler["cas"] = [cas, "we", 3, 3]  # function, flags (e: through the log), least and most parameters
    node.start()
    node.join()


if __name__ == "__main__":
    main()
