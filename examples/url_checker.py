"""Check the URLs stored under `url_*`, on the leader only; when the leader dies, the next one goes on.

    python examples/url_checker.py -a 127.0.0.1:5010 -i 1 -e 2/127.0.0.1:5020,3/127.0.0.1:5030
    redis-cli -p 5010 set url_docs https://www.python.org

Every node runs the same program. `on_leader` starts a thread, which looks before each round whether it still leads.
A round that was begun just before leadership moved may be repeated by the next leader: checks like these must be
harmless when done twice.
"""

from __future__ import annotations

import argparse
import threading
import urllib.error
import urllib.request

from raftdb import raft

TIMEOUT_S = 5.0


def check(url: str) -> str:
    """'ok', or what is wrong."""
    if "://" not in url:
        url = f"https://{url}"
    if not url.startswith(("http://", "https://")):
        return "not an http address"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # the scheme was looked at above
            answer.read(1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"bad: {error}"
    return "ok"


def check_all(node: raft.RaftNode, every_s: float, wake: threading.Event) -> None:
    """Rounds for as long as this node leads."""
    while node.state == "l" and not node.shutdown_flag:
        for name, url in node.data.items():
            if name.startswith("url_") and node.state == "l":
                print(f"node {node.nid}: {name} is {check(url)}", flush=True)
        wake.wait(every_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two rounds")
    args = raft.parse_default_args(parser)
    wake = threading.Event()

    def start_checking(node: raft.RaftNode) -> None:
        print(f"node {node.nid} leads and checks", flush=True)
        threading.Thread(target=check_all, args=(node, args.every, wake), daemon=True).start()

    node = raft.make_default_node(args)
    node.worker.handler["on_leader"] = start_checking
    node.worker.handler["on_shutdown"] = lambda _: wake.set()
    node.start()
    node.join()


if __name__ == "__main__":
    main()
