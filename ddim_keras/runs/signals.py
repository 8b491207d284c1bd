"""What signals do: stop a training after its step, or end a command."""

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


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Within, a request to terminate raises KeyboardInterrupt, as Ctrl-C does, so that what was
    half written is removed.
    """

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, where signals arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
