"""One measurement: so many requests of one kind from so many clients, by redis-benchmark.

redis-benchmark ends at the first error reply; such a run is a failure with the server's words, never a figure.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from typing import Any, Final, NamedTuple

from .processes import Failed

VALUE_BYTES: Final = 100
KEYS: Final = 100_000
RUN_TIMEOUT_S: Final = 60.0
PILOT_S: Final = 0.3
PILOT_REQUESTS: Final = 2_000


class Cell(NamedTuple):
    """What is asked of a system."""

    command: str  # SET, GET
    clients: int
    pipeline: int
    value_bytes: int = VALUE_BYTES
    keys: int = KEYS

    def __str__(self) -> str:
        text = f"{self.command} {self.clients} client{'s' if self.clients > 1 else ''}"
        text += f", pipelines of {self.pipeline}" if self.pipeline > 1 else ""
        text += f", {self.keys:,} keys" if self.keys != KEYS else ""
        return text + (f", {self.value_bytes:,} bytes" if self.value_bytes != VALUE_BYTES else "")


class Sample(NamedTuple):
    """What came out: requests a second and latencies in milliseconds, or why there is no figure."""

    rate: float
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    failure: str | None = None
    timed_out: bool = False  # it would not do better in other cells


def redis_benchmark(port: int, cell: Cell, requests: int) -> Sample:
    """One run of redis-benchmark. A failed request makes the whole sample a failure."""
    argv = [shutil.which("redis-benchmark") or "redis-benchmark", "-p", str(port), "--csv"]
    options: dict[str, Any] = {
        "-t": cell.command.lower(),
        "-n": requests,
        "-c": cell.clients,
        "-P": cell.pipeline,
        "-d": cell.value_bytes,
        "-r": cell.keys,
    }
    argv += [str(word) for pair in options.items() for word in pair]
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Sample(0.0, failure=f"not done after {RUN_TIMEOUT_S:.0f} s", timed_out=True)
    except OSError as error:
        raise Failed(f"redis-benchmark: {error.strerror}; install the package redis-tools") from None
    return _parsed(ran.returncode, ran.stdout, ran.stderr)


def _parsed(code: int, output: str, errors: str) -> Sample:
    rows = list(csv.DictReader(io.StringIO(output)))
    # CONFIG is asked first and may be unknown to the server: that is no failed request.
    complaint = " ".join(" ".join(line for line in errors.splitlines() if "CONFIG" not in line).split())
    if code != 0 or "error" in complaint.lower() or len(rows) != 1:
        return Sample(0.0, failure=complaint or f"redis-benchmark ended with code {code}")
    row = rows[0]
    p50, p95, p99, longest = (float(row[f"{name}_latency_ms"]) for name in ("p50", "p95", "p99", "max"))
    return Sample(float(row["rps"]), p50, p95, p99, longest)


def requests_for(rate: float, cell: Cell, seconds: float) -> int:
    """How many requests fill the time at this rate; at least a few for every client."""
    return max(int(rate * seconds), 4 * cell.clients * cell.pipeline)


def timed(port: int, cell: Cell, seconds: float) -> Sample:
    """A short pilot, which also warms up, then a run of about the given length."""
    pilot = redis_benchmark(port, cell, max(PILOT_REQUESTS, 4 * cell.clients * cell.pipeline))
    if pilot.failure:
        return pilot
    return redis_benchmark(port, cell, requests_for(pilot.rate, cell, seconds))
