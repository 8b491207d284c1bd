"""A lock that threads get in turn."""

from __future__ import annotations

import threading
from typing import Any


class FairLock:
    """A re-entrant lock for which a waiting thread comes before the one that has just released it.

    A training takes its lock again a moment after each step; with Python's own lock, others would
    hardly ever get it.
    """

    def __init__(self) -> None:
        self._lock, self._queue = threading.Lock(), threading.Lock()
        self._owner: int | None = None
        self._depth = 0

    def acquire(self) -> None:
        if self._owner != threading.get_ident():
            with (
                self._queue
            ):  # who waits for the lock keeps the others, the last owner too, waiting behind
                self._lock.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: Any) -> None:
        self.release()
