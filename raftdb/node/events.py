"""Callbacks of an embedding application: told in order, after the state has changed, by a thread of their own.

A callback may raise (logged), hang, or call back into the node: consensus goes on, only later callbacks wait. At most
`QUEUE_EVENTS_MAX` events wait; beyond that the oldest are dropped with one line, since an application that has been
stuck through a thousand role changes is better told the newest state than an ancient one.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger("raftdb.events")

NAMES: Final = ("on_start", "on_leader", "on_follower", "on_candidate", "on_shutdown")
QUEUE_EVENTS_MAX: Final = 1_000

Callback = Callable[[Any], object]


class Events:
    """`subscribe` callbacks, `emit` names, `stop` when the node ends. Each callback gets the node."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._callbacks: dict[str, list[Callback]] = {name: [] for name in NAMES}
        self._queue: deque[str] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def subscribe(self, name: str, callback: Callback) -> None:
        """Call `callback(node)` for each event `name` from now on. Raises KeyError for an unknown name."""
        self._callbacks[name].append(callback)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="raftdb-events", daemon=True)
        self._thread.start()

    def emit(self, name: str) -> None:
        """Queue an event. Any thread; never blocks on a callback."""
        with self._changed:
            if len(self._queue) >= QUEUE_EVENTS_MAX:
                log.warning("callbacks do not keep up: event %s is dropped", self._queue.popleft())
            self._queue.append(name)
            self._changed.notify()

    def stop(self, wait_s: float) -> None:
        """Deliver what is queued, waiting at most wait_s; a callback that hangs is left behind (daemon thread)."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(wait_s)

    def _run(self) -> None:
        while (name := self._next()) is not None:
            for callback in list(self._callbacks[name]):
                self._deliver(name, callback)

    def _next(self) -> str | None:
        with self._changed:
            while not self._queue and not self._stopping:
                self._changed.wait()
            return self._queue.popleft() if self._queue else None

    def _deliver(self, name: str, callback: Callback) -> None:
        """An application's code: whatever it raises is the application's affair and must not stop the others."""
        try:
            callback(self._node)
        except Exception:
            log.exception("callback %s raised", name)
