"""What callbacks watch: the figures that exist, in the direction in which they are better."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import keras

from ddim_keras.support.types import Callbacks


@contextlib.contextmanager
def watching_what_exists(
    callbacks: Callbacks, metrics: Sequence[keras.metrics.Metric], only_these: bool
) -> Iterator[None]:
    """Within, callbacks know which way their figure is better, and those that wait for a KID in
    vain have another figure.

    The Keras example always computes its KID; here it is a metric like others. Keras would only
    warn, never save, and the script would fail on the missing checkpoint after the whole training.
    Afterwards the callbacks are as they were.

    Args:
        callbacks: as the user gave them to `fit`: None, a callback, a list or Keras's
            `CallbackList`.
        metrics: those that were compiled.
        only_these: whether a validation has no other figures than theirs and the losses. There may
            be no validation, or a `test_step` of a subclass's own that has figures of its own.
    """
    computed = {metric.name for metric in metrics}
    changed = []
    callbacks = getattr(callbacks, "callbacks", callbacks)  # of a CallbackList
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        monitor = getattr(callback, "monitor", None)
        if monitor == "val_kid" and "kid" not in computed and only_these:
            warnings.warn(
                f"{type(callback).__name__} monitors 'val_kid', but no metric named 'kid' was "
                "compiled: it will monitor "
                "'val_i_loss' instead. To have a KID, give one to compile(metrics=[...])",
                stacklevel=4,
            )
            changed.append((callback, "monitor", monitor))
            callback.monitor = "val_i_loss"
        # Keras infers the direction of its own compiled metrics alone.
        if getattr(callback, "mode", None) == "auto" and isinstance(monitor, str):
            direction = direction_of(callback.monitor.removeprefix("val_"), metrics)
            if direction is not None:
                changed.append((callback, "mode", "auto"))
                callback.mode = direction
    try:
        yield
    finally:
        for callback, name, value in changed:
            setattr(callback, name, value)


def direction_of(figure: str, metrics: Sequence[keras.metrics.Metric]) -> str | None:
    """Return whether a logged figure is better when it is "min" or "max"; None if nobody knows."""
    if figure in ("n_loss", "i_loss", "loss", "gradient_norm", "memorization"):
        return "min"
    for metric in metrics:
        if figure in getattr(metric, "result_names", [metric.name]):
            return {"up": "max", "down": "min"}.get(getattr(metric, "_direction", None) or "")
    return None
