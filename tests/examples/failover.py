"""How long nobody checks the URLs when the leader is killed: `python -m tests.examples.failover --kills 12`.

Three processes of examples/url_checker.py; from kill -9 of the leader to the first check by another.
"""

from __future__ import annotations

import argparse
import http.server
import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.e2e.processes import wait_for
from tests.sources import ROOT

from .programs import Program, leader_of, programs

EVERY_S = 0.1


class Site(http.server.BaseHTTPRequestHandler):
    """A web site that is up."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def moves(running: list[Program]) -> float:
    """Kill the leader; seconds until another checks."""
    first = wait_for("a leader", lambda: leader_of(running))
    wait_for("it to check", lambda: "url_site is ok" in first.output)
    others = [(program, len(program.output)) for program in running if program is not first]
    killed_s = time.monotonic()
    first.kill()
    wait_for("another to check", lambda: any("url_site is ok" in p.output[seen:] for p, seen in others), 60)
    taken_s = time.monotonic() - killed_s
    first.start()
    wait_for("it to be back", first.answers, 60)
    return taken_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=12)
    kills = parser.parse_args().kills
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    script = ROOT / "examples" / "url_checker.py"
    with (
        tempfile.TemporaryDirectory() as directory,
        programs(Path(directory), script, 3, "--every", str(EVERY_S)) as running,
    ):
        with running[0].client() as client:
            client.set("url_site", f"http://127.0.0.1:{site.server_address[1]}/")
        times_s = sorted(moves(running) for _ in range(kills))
    print(f"url checker: {kills} kills, median {statistics.median(times_s):.2f} s, worst {times_s[-1]:.2f} s")


if __name__ == "__main__":
    main()
