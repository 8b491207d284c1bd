"""Python functions that tf.data's threads call, kept away from an interpreter that ends."""

from __future__ import annotations

import atexit
import functools
import time
from collections.abc import Callable
from typing import Any

_REST = 0.2  # seconds without a call after which the threads' buffers are full of refusals
_PATIENCE = 10.0


class _Gate:
    """Counts who is inside, and lets nobody in once it is closed."""

    def __init__(self) -> None:
        self.closed = False
        self.inside: dict[object, None] = {}
        self.last_call = 0.0

    def guard(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def guarded(*arguments: Any) -> Any:
            self.last_call = time.monotonic()
            if self.closed:
                raise RuntimeError("the interpreter ends")
            call = object()
            self.inside[call] = None
            try:
                return function(*arguments)
            finally:
                del self.inside[call]
                self.last_call = time.monotonic()

        return guarded

    def close(self) -> None:
        """Refuse calls, and wait until none comes any more: a thread that wants Python after its
        end hangs or aborts.
        """
        self.closed = True
        start = time.monotonic()
        if start - self.last_call > _PATIENCE and not self.inside:
            return
        while time.monotonic() - start < _PATIENCE:
            time.sleep(_REST / 10)
            if not self.inside and time.monotonic() - max(start, self.last_call) > _REST:
                return


_gate = _Gate()


def ended_before_python(function: Callable) -> Callable:
    """Return the function for `tf.numpy_function` of a data set: when the interpreter ends, its
    calls have ended.
    """
    # After TensorFlow's own hooks are registered, so before they run; close is registered once.
    atexit.unregister(_gate.close)
    atexit.register(_gate.close)
    return _gate.guard(function)
