"""Using a model in one thread while another trains it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from ddim_keras.sampling.engine import Engine
from ddim_keras.support import backend
from ddim_keras.support.locks import FairLock
from ddim_keras.support.types import Callbacks, Logs


class _Turns(keras.callbacks.Callback):
    """Keeps other threads from the weights during a step, and lets them have their turn between
    two.
    """

    def __init__(self, lock: FairLock):
        super().__init__()
        self._lock = lock
        self._held = 0

    def _take(self, batch: int, logs: Logs | None = None) -> None:
        self._lock.acquire()
        self._held += 1

    def _give(self, batch: int, logs: Logs | None = None) -> None:
        if self._held:
            self._held -= 1
            self._lock.release()

    on_train_batch_begin = on_test_batch_begin = _take
    on_train_batch_end = on_test_batch_end = _give

    def give_all(self) -> None:
        """After a step that raised."""
        while self._held:
            self._give(0)


@contextlib.contextmanager
def taking_turns(engine: Engine, callbacks: Callbacks) -> Iterator[Any]:
    """Yield the callbacks for a `fit` or `evaluate` whose model other threads may use meanwhile.

    On TensorFlow a graph reads the weights by itself. On JAX each step overwrites the arrays that
    hold them.

    Args:
        engine: of the model.
        callbacks: as the user gave them: None, a callback, a list of them or Keras's
            `CallbackList`.
    """
    given = getattr(
        callbacks, "callbacks", callbacks
    )  # of a `CallbackList`, such as `fit` hands to `evaluate`
    given = keras.tree.flatten([] if given is None else given)
    if not backend.BACKEND_HOLDS_WEIGHTS or any(isinstance(callback, _Turns) for callback in given):
        yield callbacks
        return
    turns = _Turns(engine.lock)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.callbacks.insert(0, turns)
        shared = callbacks
    else:
        shared = [turns, *given]
    try:
        yield shared
    finally:
        turns.give_all()
