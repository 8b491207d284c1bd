"""What signals do: stop a training after its step, or end a command."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SOON = 0.01  # seconds


class StopRequest:
    """Whether the training was asked to stop."""

    asked = False


@contextlib.contextmanager
def stopping_after_the_step() -> Iterator[StopRequest]:
    """Within, the first Ctrl-C, or request to terminate, is written down; the second raises
    KeyboardInterrupt.
    """
    request = StopRequest()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        with contextlib.suppress(OSError):  # of a terminal that is closed
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
    half written is removed. Neither is lost where Python ignores exceptions: in what it calls by
    itself, such as finalizers and the callbacks of its collector, of which JAX has one.
    """
    try:
        before = signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:  # not the main thread, where signals arrive
        yield
        return
    report = sys.unraisablehook

    def raise_again(ignored: Any) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            # Not by `threading`, whose locks may be held where this is called.
            _thread.start_new_thread(_interrupt_soon, ())
        else:
            report(ignored)

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = report
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _interrupt_soon() -> None:
    time.sleep(_SOON)
    _thread.interrupt_main(signal.SIGTERM)  # nothing, where that is the system's affair again
