"""What watches a run: its checkpoints, its log, its progress."""

from __future__ import annotations

import csv
import pathlib
import time
from typing import Any

import keras
import numpy as np

from ddim_keras.runs.checkpoints import Checkpoints, DivergedError
from ddim_keras.runs.config import RunConfig
from ddim_keras.runs.signals import StopRequest
from ddim_keras.runs.snapshots import Snapshots
from ddim_keras.support import backend, files, reading
from ddim_keras.support.progress import ProgressLines
from ddim_keras.support.types import Logs

_ADVICE = "move it away, and the log begins anew"
_AGREED_EVERY = 10  # steps, among several processes


class Stopped(Exception):
    """Ends `fit` after a step, as asked."""


class KeepCheckpoints(keras.callbacks.Callback):
    """Save by step and time, and when asked to stop; end a training whose loss is not finite.

    Snapshots of averages are stored on the way, each before a checkpoint of the same step: a
    training that resumes from there would not make it any more.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: RunConfig,
        step: int,
        request: StopRequest,
        snapshots: Snapshots | None = None,
    ):
        super().__init__()
        self.snapshots = snapshots
        self.checkpoints, self.config, self.step, self.request = checkpoints, config, step, request
        self.saved_step, self.saved_time = step, time.monotonic()
        self.processes = backend.process()[1]
        self._stopped = False

    def is_stopped(self) -> bool:
        """Whether the training was asked to stop: of several processes, whether all know it."""
        return self._stopped or (self.processes == 1 and self.request.asked)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.step += 1
        if self.snapshots is not None and self.snapshots.is_due(self.step):
            self._check(logs)
            self.snapshots.save(self.model, self.step)
        minutes = (time.monotonic() - self.saved_time) / 60.0
        asked, late = self._agreed(self.request.asked, minutes >= self.config.checkpoint_minutes)
        due = self.step % self.config.checkpoint_every == 0 or late
        if due or asked or self.step == self.config.steps:
            self.save(logs)
        elif self.step % 50 == 0:
            self._check(logs)
        if asked:
            self._stopped = True
            raise Stopped

    def _agreed(self, *flags: bool) -> tuple[bool, ...]:
        """What is so in any process: now and then, as all have to ask for it at the same step."""
        if self.processes == 1:
            return flags
        if self.step % _AGREED_EVERY and self.step != self.config.steps:
            return (False,) * len(flags)
        found = backend.largest_of_processes([float(flag) for flag in flags])
        return tuple(flag > 0 for flag in found)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        # Before images are made of weights that are not finite. A metric may be NaN by itself.
        self._check(
            {name: (logs or {})[name] for name in ("n_loss", "loss") if name in (logs or {})}
        )

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if self.request.asked and self.processes == 1:
            self.save(None)
            raise Stopped

    def save(self, logs: Logs | None) -> None:
        self._check(logs)
        if self.step != self.saved_step:
            self.checkpoints.save(self.model, self.step)
            self.saved_step, self.saved_time = self.step, time.monotonic()

    def _check(self, logs: Logs | None) -> None:
        if logs and not all(np.isfinite(float(value)) for value in logs.values()):
            raise DivergedError(
                f"the loss is not finite at step {self.step}. {self.checkpoints.advice()}"
            )


class LearningRate(keras.callbacks.Callback):
    """Add the learning rate at the epoch's end to its logs."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if logs is not None:
            logs["learning_rate"] = float(
                keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
            )


class Log(keras.callbacks.Callback):
    """Add a line of figures for each epoch to a CSV file, which may hold those of other figures
    from before.

    The file is written beside and renamed.

    Args:
        path: of the file.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        self._write([*self._rows(), {"epoch": epoch, **figures}])

    def forget_from(self, epoch: int) -> None:
        """Take out the lines of epochs that will be gone through again.

        Raises:
            ValueError: the file is damaged.
        """
        rows = self._rows()
        with reading.refusing_damage(self.path, _ADVICE):
            kept = [
                row
                for row in rows
                if str(row.get("epoch") or "").isdecimal() and int(row["epoch"]) < epoch
            ]
        if len(kept) < len(rows):
            self._write(kept)

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with reading.refusing_damage(self.path, _ADVICE), open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        names = sorted({name for row in rows for name in row if name and name != "epoch"})
        with files.written_beside(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", *names], restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


class StepLines(keras.callbacks.Callback):
    """Print how far the training is, a line now and then, where nobody watches a bar.

    Args:
        keeper: knows the step.
        steps: in all.
    """

    def __init__(self, keeper: KeepCheckpoints, steps: int):
        super().__init__()
        self.keeper, self.lines = keeper, ProgressLines(steps, "steps")

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.lines.update(self.keeper.step, list((logs or {}).items()))
