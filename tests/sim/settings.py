"""What a seed means: the shape of the cluster and the rates of every kind of trouble, drawn anew for each seed.

A simulator with fixed rates explores one corner of the space over and over: with everything going wrong all the time
nothing ever gets far enough to go wrong in an interesting way. So each seed draws its own rates, and switches whole
classes of faults off (swarm testing). Spans are microseconds of simulated time.
"""

from __future__ import annotations

import random
from typing import NamedTuple

MS = 1_000
TICK = 50 * MS
NEVER = 1 << 60


class Settings(NamedTuple):
    """One swarm member. An interval is the mean time between two faults of the kind; NEVER switches it off."""

    seed: int
    voters: int
    spares: int  # node ids that may be added later
    haste: int  # 0 usual election timeouts, 1 and 2 short ones: more leader changes per event
    overlap: bool  # the node goes on while its disk is busy
    in_flight: int  # uncommitted entries that the leader's node allows
    clients: int
    think: int  # mean time between the answer of a client and its next request
    batch: int  # commands per entry, at most
    reads: float  # share of reads
    leases: float  # share of reads on leases
    patience: int  # a client waits this long for an answer
    drop: float
    duplicate: float
    delay: int  # usual one-way delay
    late: float  # share of messages that take very long
    sync: int  # mean time of a flush
    slow_disk: float  # share of flushes that take a hundred times as long
    apply: int  # mean time until what is committed is applied; 0: at once
    drift: float  # clocks of nodes run at 1 - drift .. 1 + drift
    cut_every: int
    cut_style: int  # 0 halves, 1 the leader alone, 2 one direction, 3 a random set of links, 4 a mixture
    crash_every: int
    power: float  # share of crashes that take the unsynced state with them
    torn: float  # share of what a loss of power takes that is not lost, but there in part
    stop_every: int  # in good order
    blackout_every: int  # all nodes at once
    pause_every: int
    jump_every: int  # wall clocks
    transfer_every: int
    member_every: int
    wipe_every: int
    restore_every: int
    damage_every: int
    pull_every: int  # the power fails on a node that is pulling a file, if there is one
    trap_every: int  # for leases: the leader is cut off or paused while somebody reads there
    snapshot_entries: int  # a snapshot after this many applied entries
    keep_entries: int  # the log is kept this far below the older snapshot
    files: int  # mean time that a snapshot file is being written or pulled, beyond a blink
    aim: float  # share of the faults that look for the leader
    hold_news: bool  # the news of a commit waits for the next append while there is something to propose


def draw(seed: int) -> Settings:
    """The settings of a seed."""
    rng = random.Random(seed)
    files_rng = random.Random(~seed)  # (of its own: seeds that are known for what they found go on finding it)

    def sometimes(chance: float, low: int, high: int) -> int:
        span = int(low * (high / low) ** rng.random())
        return span if rng.random() < chance else NEVER

    def rate(chance: float, high: float) -> float:
        value = high * rng.random() ** 2
        return value if rng.random() < chance else 0.0

    voters = rng.choice((1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7))
    calm = rng.random() < 0.04
    quiet = 0.0 if calm else 1.0
    files = files_rng.choice((0, 0, 0, 200, 1_500)) * MS
    settings = Settings(
        seed=seed,
        voters=voters,
        spares=rng.choice((0, 0, 1, 1, 2)) if voters < 6 else rng.choice((0, 1)),
        haste=rng.choice((0, 0, 1, 1, 2)),
        overlap=rng.random() < 0.3,
        in_flight=rng.choice((1, 2, 16)),
        clients=rng.choice((1, 2, 4, 6)),
        think=int(5 * MS * 60 ** rng.random()),
        batch=rng.choice((1, 1, 2, 16)),
        reads=rng.choice((0.0, 0.2, 0.5, 0.8)),
        leases=rng.choice((0.0, 0.5, 1.0)),
        patience=rng.choice((300, 1_000, 3_000)) * MS,
        drop=rate(0.6 * quiet, 0.4),
        duplicate=rate(0.5 * quiet, 0.5),
        delay=int(1 * MS * 40 ** rng.random()),
        late=rate(0.5 * quiet, 0.2),
        sync=rng.choice((0, 0, 1, 5, 20)) * MS,
        slow_disk=rate(0.3 * quiet, 0.1),
        apply=rng.choice((0, 0, 0, 2, 30)) * MS,
        drift=rng.choice((0.0, 0.0, 0.01, 0.03)),
        cut_every=sometimes(0.6 * quiet, 500 * MS, 10_000 * MS),
        cut_style=rng.randrange(5),
        crash_every=sometimes(0.6 * quiet, 300 * MS, 10_000 * MS),
        power=rng.choice((0.0, 0.5, 1.0)),
        torn=files_rng.choice((0.0, 0.5, 0.9)),
        stop_every=int(500 * MS * 16 ** files_rng.random()) if files_rng.random() < 0.25 * quiet else NEVER,
        blackout_every=sometimes(0.2 * quiet, 2_000 * MS, 15_000 * MS),
        pause_every=sometimes(0.4 * quiet, 500 * MS, 10_000 * MS),
        jump_every=sometimes(0.3 * quiet, 500 * MS, 10_000 * MS),
        transfer_every=sometimes(0.35 * quiet, 500 * MS, 10_000 * MS),
        member_every=sometimes(0.45, 400 * MS, 8_000 * MS),
        wipe_every=sometimes(0.15 * quiet, 3_000 * MS, 15_000 * MS),
        restore_every=sometimes(0.3 * quiet, 700 * MS, 8_000 * MS),
        damage_every=sometimes(0.25 * quiet, 1_000 * MS, 8_000 * MS),
        trap_every=sometimes(0.3 * quiet, 300 * MS, 4_000 * MS),
        pull_every=files // 2 if files and not calm else NEVER,
        snapshot_entries=rng.choice((3, 5, 10, 40, 100_000)),
        keep_entries=rng.choice((0, 0, 2, 20)),
        files=files,
        aim=rng.choice((0.0, 0.3, 0.8)),
        hold_news=random.Random(~seed << 1).random() < 0.4,
    )
    return readers(settings, rng) if rng.random() < 0.25 else settings


def readers(settings: Settings, rng: random.Random) -> Settings:
    """A seed that looks for stale reads: a busy cluster that works well, traps all the time, messages that come
    twice or late."""
    return settings._replace(
        voters=rng.choice((3, 3, 3, 5)),
        clients=6,
        think=5 * MS,
        in_flight=16,
        reads=0.5,
        leases=rng.choice((0.0, 0.7, 1.0)),
        patience=1_000 * MS,
        drop=0.0,
        duplicate=rng.choice((0.0, 0.3)),
        delay=rng.choice((1, 4, 10)) * MS,
        late=rng.choice((0.0, 0.05)),
        sync=rng.choice((0, 0, 1)) * MS,
        apply=rng.choice((0, 0, 2, 30)) * MS,
        slow_disk=0.0,
        crash_every=NEVER,
        stop_every=NEVER,
        blackout_every=NEVER,
        jump_every=NEVER,
        trap_every=rng.choice((150, 400, 1_000)) * MS,
    )
