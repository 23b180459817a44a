"""What CI and campaigns run of this folder: `python -m tests.commands ci|campaign|summary [--minutes N] [--seed S]`.

A campaign goes on until its ledger (tests/differential/ledger.jsonl) holds `--commands` without a difference on the
code as it is, with seeds that were never used: it may be stopped and taken up at any time. Every fifth part is played
over TCP against a server process.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.differential.__main__ import main as differential
from tests.differential.__main__ import search
from tests.differential.players import RaftdbPlayer, WirePlayer
from tests.ledger import CLEAN, Ledger

CI_COMMANDS = 30_000
CAMPAIGN_COMMANDS = 500_000
PART = 50_000  # of a campaign: the log that is replayed at the end of a run stays in memory
WIRE_PART = 10_000
WIRE_EVERY = 5
FIRST_SEED = 1_000
LEDGER = Path(__file__).parents[1] / "differential" / "ledger.jsonl"
#: What decides a reply; the generator too, since it decides what is asked.
SOURCES = (
    *("raftdb/commands", "raftdb/storage", "raftdb/net/resp.py", "raftdb/net/session.py", "raftdb/types.py"),
    "tests/differential",
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.commands", description=__doc__)
    parser.add_argument("share", choices=["ci", "campaign", "summary"])
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1, help="of the share of CI")
    parser.add_argument("--commands", type=int, default=CAMPAIGN_COMMANDS, help="of a campaign")
    parser.add_argument("--redis-server", default="redis-server")
    options = parser.parse_args(argv)
    if options.share == "ci":
        words = ["--commands", str(CI_COMMANDS), "--seed", str(options.seed), "--minutes", f"{options.minutes:.3f}"]
        return differential(words)
    ledger = Ledger(LEDGER, *SOURCES)
    code = campaign(ledger, options) if options.share == "campaign" else 0
    print(f"differential: {ledger.summary('commands')}")
    return code


def campaign(ledger: Ledger, options: argparse.Namespace) -> int:
    """Parts until enough is there, the time is up, or a difference is found."""
    deadline = time.monotonic() + 60 * options.minutes
    while (left := options.commands - ledger.total("commands")) > 0:
        minutes = (deadline - time.monotonic()) / 60
        if minutes <= 0:
            break
        seed = ledger.next_seed(FIRST_SEED)
        wire = seed % WIRE_EVERY == 0
        ours = WirePlayer() if wire else RaftdbPlayer(seed)
        part = min(left, WIRE_PART if wire else PART)
        commands, difference = search(options.redis_server, ours, part, seed, minutes)
        ledger.append(seed=seed, over="tcp" if wire else "machine", commands=commands, verdict=difference or CLEAN)
        print(difference or f"differential: {commands} commands, seed {seed}: no difference", flush=True)
        if difference:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
