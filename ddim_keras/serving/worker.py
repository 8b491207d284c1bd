"""One thread that does the work of all requests, in turn."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from ddim_keras.serving.limits import Busy, OutOfTime, Stopped


class Job:
    """A piece of work, and what became of it.

    Args:
        work: called with the job, so that it can `check` on its way.
        seconds: from now until it is given up.

    Attributes:
        future: gets what `work` returns or raises.
    """

    def __init__(self, work: Callable[[Job], Any], seconds: float):
        self.work, self.seconds = work, seconds
        self.future: concurrent.futures.Future = concurrent.futures.Future()
        self._end = time.monotonic() + seconds
        self._dropped = threading.Event()

    def drop(self) -> None:
        """Say that nobody wants it any more."""
        self._dropped.set()

    def check(self) -> None:
        """Raise where the work is not to go on.

        Raises:
            Stopped: it was dropped.
            OutOfTime: its time is over.
        """
        if self._dropped.is_set():
            raise Stopped("the server is shutting down, or the client has disconnected")
        if time.monotonic() > self._end:
            raise OutOfTime(
                f"not done within {self.seconds:g} seconds: ask for fewer images or steps, or later"
            )

    def run(self) -> None:
        """Do the work, if it is still wanted."""
        try:
            self.check()
            result = self.work(self)
        except BaseException as error:  # whoever waits for it is told
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Worker:
    """Works on one job at a time, in the order in which they came.

    Args:
        waiting: jobs that may wait.
    """

    def __init__(self, waiting: int):
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._waiting, self._lock = waiting, threading.Lock()
        self._open: set[Job] = set()
        self._ends = False
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    @property
    def unfinished(self) -> int:
        """Jobs that are worked on or wait."""
        with self._lock:
            return len(self._open)

    def submit(self, work: Callable[[Job], Any], seconds: float) -> Job:
        """Take a job.

        Raises:
            Busy: as many wait as may.
            Stopped: the worker ends.
        """
        job = Job(work, seconds)
        with self._lock:
            if self._ends:
                raise Stopped("the server is shutting down")
            if len(self._open) > self._waiting:
                raise Busy(
                    f"{self._waiting} requests are waiting, the most that may: ask again later"
                )
            self._open.add(job)
        self._jobs.put(job)
        return job

    def stop(self, seconds: float = 30.0) -> None:
        """Drop all jobs, and end. What is worked on ends after its step."""
        with self._lock:
            self._ends = True
            for job in self._open:
                job.drop()
        self._jobs.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            with self._lock:
                self._open.discard(job)
            del job  # its result is whose request it was
