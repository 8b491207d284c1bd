"""Stopping a training after its step when a signal asks for it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any


class StopRequest:
    """Whether the training was asked to stop."""

    asked = False


@contextlib.contextmanager
def stopping_after_the_step() -> Iterator[StopRequest]:
    """Within, the first Ctrl-C, or request to terminate, is written down; the second raises
    KeyboardInterrupt.
    """
    request = StopRequest()

    def ask_to_stop(number: int, frame: Any) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        # Not by print: a signal may arrive in the middle of one.
        os.write(2, b"\nStopping after this step; once more stops at once\n")

    before: dict[int, Callable | int | None] = {}
    try:
        for expected in (signal.SIGINT, signal.SIGTERM):
            before[expected] = signal.signal(expected, ask_to_stop)
    except ValueError:  # not the main thread, where signals arrive
        pass
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
