"""How many steps fit into the minutes that there are."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np

from ddim_keras.model import DiffusionModel
from ddim_keras.support.types import Data, Logs

_STEPS = 30


class _StepTimes(keras.callbacks.Callback):
    """Collect when steps end."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.ends.append(time.perf_counter())


def steps_within(minutes: float, model: DiffusionModel, data: Data) -> int:
    """Return how many steps of training take that long, of which a few are tried.

    Args:
        minutes: of training alone; validations come on top.
        model: compiled, its normalizer adapted; it is trained, so that another one is needed
            afterwards.
        data: endless batches.
    """
    times = _StepTimes()
    options: dict[str, Any] = {"epochs": 1, "steps_per_epoch": _STEPS, "verbose": 0}
    model.fit(data, callbacks=[times], **options)
    # Of the quicker half: whatever else runs only slows a step.
    seconds = float(np.median(sorted(np.diff(times.ends))[: _STEPS // 2]))
    return max(1, int(60.0 * minutes / seconds))
