"""Callbacks for `DiffusionModel.fit`."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
import warnings
from typing import Any

import keras
import numpy as np

from ddim_keras import plotting
from ddim_keras.data.image_checks import as_unit_range
from ddim_keras.runs.checkpoints import weights_are_finite
from ddim_keras.support import files, reading
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.progress import progress
from ddim_keras.support.types import Condition, Logs


class TrainingProgress(keras.callbacks.Callback):
    """One progress bar for the whole training: steps, losses and the time left until the last epoch
    ends. In a file or a pipe it is a line now and then.

    Keras's own bar starts anew each epoch and shows only that epoch's time. Use it with `fit(...,
    verbose=0)`.

    Raises:
        ValueError: when training starts on data of unknown length.
    """

    def on_train_begin(self, logs: Logs | None = None) -> None:
        if not self.params.get("steps"):
            raise ValueError(
                "TrainingProgress needs data of known length: give fit steps_per_epoch, or use its "
                "own bar"
            )
        self._steps = self.params["steps"]
        self._target = self._steps * self.params["epochs"]
        names = [metric.name for metric in self.model.metrics]
        self._bar = progress(self._target, "steps", stateful_metrics=names)
        self._epoch = self._done = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._done = self._epoch * self._steps + batch + 1
        if self._done < self._target:  # the last update belongs to on_train_end: it ends the line
            self._bar.update(self._done, list((logs or {}).items()))

    def on_train_end(self, logs: Logs | None = None) -> None:
        shown = {name: value for name, value in (logs or {}).items() if not name.startswith("val_")}
        # A training may end before its last epoch.
        self._bar.update(self._done, list(shown.items()), finalize=True)


class Throughput(keras.callbacks.Callback):
    """Add `images_per_second` to each epoch's logs: of training, data included, without the first
    step, which compiles.

    Put it before the callbacks that are to see it, such as `keras.callbacks.CSVLogger`.

    Args:
        batch_size: images in a step.

    Raises:
        ValueError: `batch_size` is not a positive integer.

    Examples:

    >>> callback = Throughput(batch_size=64)
    """

    def __init__(self, batch_size: int):
        super().__init__()
        self.batch_size = positive_int("batch_size", batch_size)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._ends: list[float] = [time.perf_counter()]

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._ends.append(time.perf_counter())

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        ends = self._ends[1:] if len(self._ends) > 2 else self._ends
        if logs is not None and ends[-1] > ends[0]:
            logs["images_per_second"] = self.batch_size * (len(ends) - 1) / (ends[-1] - ends[0])


class SampleImages(keras.callbacks.Callback):
    """Write generated images to a folder as the training goes on: always from the same noises, so
    that progress shows.

    Args:
        folder: gets `samples_0001.png`, ..., a grid of images, and with `trajectory` also
            `trajectory_0001.png`, ..., two noises on their way. A model with classes has a row for
            each; above images made from other images stand those. Of images that have neither 1, 3
            nor 4 channels, the first channel is shown.
        every: epochs between them.
        num_images: images in a grid, at most; of more classes than this, the first are shown.
        diffusion_steps: S, as for `DiffusionModel.generate`; None for the model's default.
        seed: fixes the noises.
        trajectory: whether to draw the walks too.
        scale: each pixel becomes scale x scale.
        tensorboard: folder of a TensorBoard log to write the grids to as well, or None; needs
            TensorFlow.
        **sampling: as for `DiffusionModel.generate`: sampler, labels, condition, guidance, ...

    Raises:
        ValueError: a number that is not a positive integer.
        NotADirectoryError, PermissionError: when training starts, a folder that cannot be written
            to.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        every: int = 1,
        num_images: int = 16,
        diffusion_steps: int | None = None,
        seed: int = 0,
        trajectory: bool = True,
        scale: int = 2,
        tensorboard: str | os.PathLike | None = None,
        **sampling: Any,
    ):
        super().__init__()
        self.folder = files.expanded(folder)
        self.every = positive_int("every", every)
        self.num_images = positive_int("num_images", num_images)
        self.scale = positive_int("scale", scale)
        self.trajectory = trajectory
        self.tensorboard = None if tensorboard is None else str(files.expanded(tensorboard))
        self.sampling = {"diffusion_steps": diffusion_steps, "seed": seed, "verbose": 0, **sampling}
        self._writer: Any = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        files.check_folder(self.folder)  # not after the first epoch

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if (epoch + 1) % self.every:
            return
        number, columns, sampling = self._arguments()
        images = self.model.generate(number, **sampling)
        if self.model.objective.spec.takes_images and sampling.get("condition") is not None:
            images, columns = _below(sampling["condition"], images), number
        grids = {"samples": (images, columns)}
        if self.trajectory:
            two = _first(min(2, number), sampling)
            _, walked = self.model.generate(min(2, number), return_trajectory=True, **two)
            grids["trajectory"] = (plotting.trajectory_images(self.model, walked), None)
        for name, (images, columns) in grids.items():
            plotting.save_images(
                self.folder / f"{name}_{epoch + 1:04d}.png", images, columns, scale=self.scale
            )
            if self.tensorboard is not None:
                grid = plotting.image_grid(images, columns, scale=self.scale)
                self._summarize(name, grid, epoch)

    def _arguments(self) -> tuple[int, int | None, dict[str, Any]]:
        """How many images, in how many columns, and what else `generate` is given."""
        sampling, columns = dict(self.sampling), None
        classes = self.model.num_classes
        if classes is not None and not {"labels", "condition"} & set(sampling):
            rows = min(classes, self.num_images)
            columns = self.num_images // rows
            sampling["labels"] = [row for row in range(rows) for _ in range(columns)]
        number = min([self.num_images, *map(len, _one_each(sampling).values())])
        return number, columns, _first(number, sampling)

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _summarize(self, name: str, grid: np.ndarray, epoch: int) -> None:
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self.tensorboard)
        with self._writer.as_default():
            tf.summary.image(name, grid[None], step=epoch)


def _one_each(sampling: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of `generate` that hold something for each image."""
    ranks = {"labels": 0, "condition": 1}
    return {
        name: sampling[name]
        for name, rank in ranks.items()
        if sampling.get(name) is not None and np.ndim(sampling[name]) > rank
    }


def _first(number: int, sampling: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` for the first of many images."""
    each = {name: values[:number] for name, values in _one_each(sampling).items()}
    return {**sampling, **each}


def _below(condition: Condition, images: np.ndarray) -> np.ndarray:
    """A row of conditions, brought to the images' size and channels, and below it the images."""
    seen = keras.ops.convert_to_numpy(as_unit_range(np.asarray(condition)))
    rows, columns = (
        np.arange(size) * small // size for size, small in zip(images.shape[1:3], seen.shape[1:3])
    )
    seen = seen[:, rows][:, :, columns]
    channels = images.shape[-1]
    if seen.shape[-1] != channels:
        seen = np.repeat(seen[..., :1], channels, axis=-1)
    return np.concatenate([seen, images])


class KeepBest(keras.callbacks.Callback):
    """Keep the best epoch's whole model in one `.keras` file, written beside and renamed.

    The best figure so far stands in a file beside it, `best_score.json` for `best.keras`, so that a
    resumed training does not replace a better model.

    Args:
        path: of the `.keras` file.
        monitor: name of the figure in the epoch's logs, such as "val_kid" or "val_i_loss".
        mode: "min" or "max": which is better.

    Raises:
        ValueError: another suffix or mode; at the first epoch's end, a figure that is not in the
            logs.
        IsADirectoryError, NotADirectoryError, PermissionError: when training starts, a file that
            cannot be written.
    """

    def __init__(self, path: str | os.PathLike, monitor: str = "val_kid", mode: str = "min"):
        super().__init__()
        self.path = files.expanded(path)
        if self.path.suffix != ".keras":
            raise ValueError(f"the model's file must end in .keras, got {str(path)!r}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        self.monitor, self.mode = monitor, mode
        self._note = self.path.with_name(f"{self.path.stem}_score.json")
        self._older_note = self.path.with_suffix(".best.json")  # as version 0.1 called it

    def on_train_begin(self, logs: Logs | None = None) -> None:
        files.check_file(self.path)
        self.best = math.inf if self.mode == "min" else -math.inf
        found = [note for note in (self._note, self._older_note) if note.is_file()]
        if self.path.is_file() and found:
            try:
                self.best = self._noted(found[0])
            except ValueError as error:
                warnings.warn(str(error), stacklevel=2)

    def _noted(self, path: pathlib.Path) -> float:
        """The best figure so far by a note; what it says of another figure does not count."""
        advice = f"how good {self.path} is is not known, so the next epoch's model replaces it"
        note = reading.json_of(path, advice)
        with reading.refusing_damage(path, advice):
            if note["monitor"] != self.monitor:
                return self.best
            value = float(note["value"])
            if not math.isfinite(value):
                raise ValueError(f"its value is {value}")
            return value

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        logs = logs or {}
        if self.monitor not in logs:
            raise ValueError(
                f"there is no {self.monitor!r} among this epoch's figures {sorted(logs)}: give "
                "validation_data, and for "
                "'val_kid' compile(metrics=[ddim_keras.metrics.KID()])"
            )
        value = float(logs[self.monitor])
        if not (value < self.best if self.mode == "min" else value > self.best):  # NaN never is
            return
        self.model.synchronize()
        if not weights_are_finite(self.model):  # a figure may be blind to it
            return
        self.best = value
        self.model.save(self.path)
        with files.written_beside(self._note) as temporary:
            temporary.write_text(
                json.dumps({"monitor": self.monitor, "value": value, "epoch": epoch + 1}) + "\n"
            )
        self._older_note.unlink(missing_ok=True)
