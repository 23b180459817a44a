"""The only module that reads a clock, and the one helper that keeps long loops from hogging the interpreter.

Three clocks, never mixed:

- `monotonic()` seconds, for waits and time-outs; stands still while the machine is suspended.
- `boottime()` seconds, for leases; counts suspended time too, so that a lease does not outlive a nap of the laptop.
- `wall_ms()` milliseconds of Unix time, for stamps; may jump.

`Breather` exists because of the interpreter lock: a thread that runs Python without a pause gives the lock up only
when another asks for it and the switch interval has passed, once per blocking call of that other thread. Beside one
such thread the driver falls from 1,121 turns a second to 3; beside one that sleeps for zero seconds every 0.3 ms it
keeps 610.
"""

from __future__ import annotations

import time
from typing import Final

BREATH_NS: Final = 300_000  # a thread runs Python for at most this long before it gives the lock up
CHECK_EVERY: Final = 32  # looks at the clock once per so many calls

monotonic = time.monotonic


def boottime() -> float:
    """Seconds since boot, suspended time included (where the system has no such clock: the monotonic one)."""
    return time.clock_gettime(_BOOTTIME)


def wall_ms() -> int:
    """Milliseconds of Unix time by this machine's wall clock."""
    return time.time_ns() // 1_000_000


class Breather:
    """Called once per record by every loop that scans or encodes; gives the interpreter up every 0.3 ms.

    One object per loop and thread, made when the loop starts:

        breathe = Breather()
        for record in records:
            breathe()
            ...

    Costs about 50 ns a call. A step that itself takes longer than a tenth of a millisecond calls `now()` instead, which
    looks at the clock each time.
    """

    __slots__ = ("_calls_left", "_due_ns")

    def __init__(self) -> None:
        self._calls_left = CHECK_EVERY
        self._due_ns = time.monotonic_ns() + BREATH_NS

    def __call__(self) -> None:
        self._calls_left -= 1
        if self._calls_left <= 0:
            self.now()

    def now(self) -> bool:
        """Look at the clock; give the interpreter up if 0.3 ms have passed. Returns whether it did."""
        self._calls_left = CHECK_EVERY
        if time.monotonic_ns() < self._due_ns:
            return False
        time.sleep(0)
        self._due_ns = time.monotonic_ns() + BREATH_NS
        return True


_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
