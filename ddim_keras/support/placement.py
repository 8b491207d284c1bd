"""A core of its own for each of TensorFlow's worker threads, while a model trains or generates.

On some virtual machines Linux leaves two of them on one core for minutes, and a step takes nearly
twice as long. Only on Linux, on a processor, where there are as many workers as cores. The
environment variable DDIM_KERAS_PLACE_WORKERS=0 turns it off.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from ddim_keras.support import cores as processor

SWITCH = "DDIM_KERAS_PLACE_WORKERS"
# The workers are found by what a product of matrices keeps busy.
_PROBE_SECONDS, _PROBE_SIZE = 0.03, 600
_LEAST_SHARE = 0.05  # of the probe's time; other threads rest
_TRIES = 3
# How often the threads are freed that a placed one has started, which are born where it is.
_FREEING_SECONDS = 0.5


class _Placement:
    """Whose threads they are, and how many of the process's own are using them placed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before: dict[int, set[int]] = {}
        self.workers: list[int] = []
        self.tries_left = _TRIES
        self.ended = threading.Event()
        self.there_before: set[int] = set()

    def enter(self) -> None:
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.place()

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.undo()

    def place(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            return
        if not self.workers and self.tries_left:
            self.tries_left -= 1
            self.workers = _busiest_threads(len(cores))
        if len(self.workers) != len(cores):
            return
        self.there_before = _threads()
        try:
            for worker, core in zip(self.workers, cores):
                self.before[worker] = os.sched_getaffinity(worker)
                os.sched_setaffinity(worker, {core})
        except OSError:  # not allowed here, or the thread is gone
            self.undo()
            self.workers, self.tries_left = [], 0
            return
        self.ended = threading.Event()
        threading.Thread(target=self.keep_others_free, args=(self.ended,), daemon=True).start()

    def keep_others_free(self, ended: threading.Event) -> None:
        while not ended.wait(_FREEING_SECONDS):
            with self.lock:
                if not ended.is_set():
                    self.free_others()

    def free_others(self) -> None:
        """Free threads that only inherited a core."""
        everywhere = set().union(*self.before.values())
        for thread in _threads() - self.there_before:
            with contextlib.suppress(OSError):  # ended meanwhile
                if len(os.sched_getaffinity(thread)) == 1:
                    os.sched_setaffinity(thread, everywhere)

    def undo(self) -> None:
        self.ended.set()
        if self.before:
            self.free_others()
        for worker, cores in self.before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(worker, cores)
        self.before = {}


_PLACEMENT = _Placement()


@contextlib.contextmanager
def workers_placed() -> Iterator[None]:
    """Within, each of TensorFlow's worker threads has a core of its own. Undone at the end."""
    if not _is_wanted():
        yield
        return
    _PLACEMENT.enter()
    try:
        yield
    finally:
        _PLACEMENT.leave()


def _is_wanted() -> bool:
    return (
        os.environ.get(SWITCH, "1") != "0"
        and hasattr(os, "sched_setaffinity")
        and os.path.isdir("/proc/self/task")
        and processor.computes_on_tensorflows_workers()
    )


def _busiest_threads(number: int) -> list[int]:
    """The threads that compute, as many as asked for; none where it is not clear which."""
    before, start = _busy_seconds(), time.perf_counter()
    while time.perf_counter() - start < _PROBE_SECONDS:
        processor.keep_workers_busy(_PROBE_SIZE)
    seconds = time.perf_counter() - start
    after = _busy_seconds()
    own = threading.get_native_id()
    busy = {
        thread: value - before.get(thread, 0.0) for thread, value in after.items() if thread != own
    }
    found = sorted(busy, key=lambda thread: -busy[thread])[:number]
    return sorted(found) if all(busy[each] > _LEAST_SHARE * seconds for each in found) else []


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _busy_seconds() -> dict[int, float]:
    """How long each thread of the process has run."""
    found = {}
    for name in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # ended meanwhile
            with open(f"/proc/self/task/{name}/schedstat") as file:
                found[int(name)] = int(file.read().split()[0]) / 1e9
    return found
