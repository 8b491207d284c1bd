"""What signals do: stop a training after its step, or end a command."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SOON = 0.01  # seconds
_ALARM = [signal.SIGALRM] if hasattr(signal, "SIGALRM") else []  # Windows has none


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
            _interrupt(number, frame)
            return
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
    half written is removed. Neither is lost where Python would ignore an exception.
    """
    before: dict[int, Any] = {}
    # Not of a program that calls this and has an alarm of its own.
    numbers = [alarm for alarm in _ALARM if signal.getsignal(alarm) is signal.SIG_DFL]
    numbers.append(signal.SIGTERM)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not of what a shell shields
        numbers.append(signal.SIGINT)
    try:
        for number in numbers:
            before[number] = signal.signal(number, _interrupt)
    except ValueError:  # not the main thread, where signals arrive
        pass
    try:
        yield
    finally:
        for _ in before.keys() & _ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for changed, handler in before.items():
            signal.signal(changed, signal.SIG_DFL if handler is None else handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; a moment later, where it would be ignored now."""
    is_repeated = any(signal.getsignal(alarm) is _interrupt for alarm in _ALARM)
    if is_repeated and _ignores_exceptions(frame):
        signal.setitimer(signal.ITIMER_REAL, _SOON)
        return
    raise KeyboardInterrupt


def _ignores_exceptions(frame: FrameType | None) -> bool:
    """Whether a frame lies in what Python calls by itself: a collector's callback, as JAX has one,
    a finalizer, or what forgets the lock of an imported module.
    """
    callbacks = {getattr(each, "__code__", None) for each in gc.callbacks}
    while frame is not None:
        code = frame.f_code
        forgets = code.co_name == "cb" and code.co_filename.startswith("<frozen importlib")
        if code in callbacks or code.co_name == "__del__" or forgets:
            return True
        frame = frame.f_back
    return False
