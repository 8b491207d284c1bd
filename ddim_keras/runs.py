"""Training runs that live in a folder: begun, watched, killed, and gone on with as if nothing had happened."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import inspect
import io
import json
import os
import pathlib
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import yaml

from ddim_keras import callbacks, data, metrics, presets
from ddim_keras.model import DiffusionModel
from ddim_keras.support import backend, files
from ddim_keras.support.arguments import integer, positive_int

# What does not touch the weights.
_MAY_CHANGE = {"cache", "keep", "checkpoint_every", "checkpoint_minutes", "samples", "samples_every", "tensorboard"}
_FEATURES = ("inception_v3", "fashion_mnist")  # what can run within a compiled step


class DivergedError(ArithmeticError):
    """The loss or the weights are not finite any more; the message names the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything about a run: `config.yaml` in its folder holds just this.

    Attributes:
        data: what `load_dataset` takes: "embedded", a TFDS name, a folder.
        steps: batches in all.
        image_size: side in pixels, or [height, width].
        channels: 1, 3 or 4; None for the data set's own.
        split, fit, unreadable, data_dir, cache: as for `load_dataset`.
        preset: whose network and recipe to take.
        model: arguments of `DiffusionModel` that differ from the preset's.
        training: settings of `presets.Training` that differ from the preset's.
        precision: a Keras dtype policy, or "auto": bfloat16 where the hardware computes in it.
        jit: compile with XLA: True, False or "auto".
        seed: fixes weights, order, noises and sampled images.
        validate_every: steps between validations, sampled images and lines of the log; None for one pass over the data, but at
            least 100.
        validation_images: how many images of the validation part to validate on, about, from all over it; None for all.
        kid: features by which validation works out a KID: "inception_v3", "fashion_mnist", or None for no KID. "auto" becomes
            the first for colour images where its weights can be had, and the second otherwise.
        samples: images generated after validations, to look at; 0 for none.
        samples_every: validations between them.
        tensorboard: whether to write a TensorBoard log.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: minutes between them at the most.
        keep: how many of the newest checkpoints to keep.

    Raises:
        ValueError: a setting out of its range.
    """

    data: str = "embedded"
    steps: int = 5000
    image_size: int | list[int] = 32
    channels: int | None = None
    split: Any = None
    fit: str = "crop"
    unreadable: str = "refuse"
    data_dir: str | None = None
    cache: bool | str = True
    preset: str = "fashion_mnist_32"
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    precision: str = "auto"
    jit: bool | str = "auto"
    seed: int = 0
    validate_every: int | None = None
    validation_images: int | None = 2000
    kid: str | None = "auto"
    samples: int = 16
    samples_every: int = 1
    tensorboard: bool = True
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 10.0
    keep: int = 3

    def __post_init__(self) -> None:
        for name in ("model", "training"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} must hold settings by name, got {getattr(self, name)!r}")
        if not isinstance(self.data, str):
            raise ValueError(f"data must be a name or a folder, got {self.data!r}")
        # As a file would give it back, so that a run equals its own.
        plain = yaml.safe_load(yaml.safe_dump(_plain(dataclasses.asdict(self))))
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        for name in ("steps", "checkpoint_every", "keep", "samples_every"):
            positive_int(name, getattr(self, name))
        integer("samples", self.samples, minimum=0)
        integer("seed", self.seed, minimum=0, below=2**32)
        for name in ("validate_every", "validation_images"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        if not isinstance(self.cache, (bool, str)):
            raise ValueError(f"cache must be true, false or a folder, got {self.cache!r}")
        if not isinstance(self.checkpoint_minutes, (int, float)) or not self.checkpoint_minutes > 0.0:
            raise ValueError(f"checkpoint_minutes must be positive, got {self.checkpoint_minutes}")
        if self.kid not in (None, "auto", *_FEATURES):
            raise ValueError(f"kid must be one of {['auto', *_FEATURES]}, or None, got {self.kid!r}")
        self.recipe()

    def recipe(self) -> presets.Training:
        """Return the preset's training with this run's changes."""
        known = {field.name for field in dataclasses.fields(presets.Training)}
        arguments = set(inspect.signature(DiffusionModel).parameters) - {"name", "network", "seed", "dtype"}
        if unknown := sorted(set(self.model) - arguments):
            raise ValueError(f"unknown model settings {unknown}: expected some of {sorted(arguments)}")
        if unknown := sorted(set(self.training) - known):
            raise ValueError(f"unknown training settings {unknown}: expected some of {sorted(known)}")
        return dataclasses.replace(presets.training(self.preset), **self.training)

    def write(self, path: pathlib.Path) -> None:
        with files.written_beside(path) as temporary:
            temporary.write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))

    @classmethod
    def read(cls, path: str | os.PathLike) -> RunConfig:
        """Read a `config.yaml`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no YAML, or has settings that are unknown or out of range.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no configuration at {path}")
        try:
            values = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold settings as NAME: VALUE, a line each, got {values!r}")
        if unknown := sorted(set(values) - known, key=str):
            raise ValueError(f"{path} has unknown settings {unknown}: expected some of {sorted(known)}")
        return cls(**values)


class Checkpoints:
    """Whole training states by step, each with its checksum.

    Args:
        folder: where they are.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, model: DiffusionModel, step: int) -> pathlib.Path:
        """Write the state at a step, beside and renamed, then remove the oldest beyond `keep`.

        Raises:
            DivergedError: a weight is not finite; nothing is written.
            OSError: the disk is full, say; the older checkpoints stay.
        """
        model.synchronize()
        if not all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in model.ema_network.weights):
            raise DivergedError(f"the weights hold NaN or infinity at step {step}. {self.advice()}")
        path = self.folder / f"step_{step:09d}.weights.h5"
        model.save_weights(path)
        # The checksum last: a state without one was not finished.
        with files.written_beside(self._note(path)) as temporary:
            temporary.write_text(json.dumps({"step": step, "sha256": _sha256(path)}) + "\n")
        paths = self.paths()
        newer = [
            other for other in paths if other.name > path.name
        ]  # damaged, as the training went on from an older one
        for old in newer + paths[len(newer) + self.keep :]:
            self._note(old).unlink(missing_ok=True)
            old.unlink()
        return path

    def paths(self) -> list[pathlib.Path]:
        """Return the checkpoints there are, the newest first."""
        return sorted(self.folder.glob("step_*.weights.h5"), reverse=True)

    def newest_whole(self) -> tuple[pathlib.Path, int] | None:
        """Return (path, step) of the newest checkpoint that is whole, warning of newer ones that are not; None without any."""
        for path in self.paths():
            try:
                note = json.loads(self._note(path).read_text())
                if note["sha256"] == _sha256(path):
                    return path, int(note["step"])
                problem = "its checksum is wrong"
            except (OSError, ValueError, KeyError) as error:
                problem = f"its checksum cannot be read ({error})"
            warnings.warn(f"the checkpoint {path} is damaged: {problem}. Trying the one before", stacklevel=3)
        return None

    def advice(self) -> str:
        newest = self.newest_whole()
        if newest is None:
            return "There is no checkpoint before it. Lower the learning rate, or clip the gradients (clip_norm)"
        return f"The last good checkpoint is {newest[0]}. Lower the learning rate, or clip the gradients (clip_norm)"

    @staticmethod
    def _note(path: pathlib.Path) -> pathlib.Path:
        return path.with_name(path.name.replace(".weights.h5", ".json"))


class _Stopped(Exception):
    """Ends `fit` after a step, as asked."""


class _KeepCheckpoints(keras.callbacks.Callback):
    """Save by step and time, and when asked to stop; end a training whose loss is not finite."""

    def __init__(self, checkpoints: Checkpoints, config: RunConfig, step: int):
        super().__init__()
        self.checkpoints, self.config, self.step = checkpoints, config, step
        self.saved_step, self.saved_time = step, time.monotonic()
        self.stop_asked = False

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.step += 1
        minutes = (time.monotonic() - self.saved_time) / 60.0
        due = self.step % self.config.checkpoint_every == 0 or minutes >= self.config.checkpoint_minutes
        if due or self.stop_asked or self.step == self.config.steps:
            self.save(logs)
        elif self.step % 50 == 0:
            self._check(logs)
        if self.stop_asked:
            raise _Stopped

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.stop_asked:
            self.save(None)
            raise _Stopped

    def save(self, logs: dict[str, Any] | None) -> None:
        self._check(logs)
        if self.step != self.saved_step:
            self.checkpoints.save(self.model, self.step)
            self.saved_step, self.saved_time = self.step, time.monotonic()

    def _check(self, logs: dict[str, Any] | None) -> None:
        if logs and not all(np.isfinite(float(value)) for value in logs.values()):
            raise DivergedError(f"the loss is not finite at step {self.step}. {self.checkpoints.advice()}")


class _LearningRate(keras.callbacks.Callback):
    """Add the learning rate at the epoch's end to its logs."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What `train` did.

    Attributes:
        model: the model as it stands.
        step: steps taken in all.
        finished: False if it was asked to stop.
    """

    model: DiffusionModel
    step: int
    finished: bool


def train(
    config: RunConfig, folder: str | os.PathLike, tell: Callable[[str], None] = print, verbose: int = 1
) -> RunResult:
    """Train in a folder, from the start or from where an earlier run with the same configuration was interrupted.

    A run that was killed at any moment, and gone on with, ends with the same weights as one that was not, on one machine.
    The first Ctrl-C (or SIGTERM) saves and stops after the step; the second stops at once.

    The folder holds `config.yaml`, `checkpoints/`, `log.csv`, `samples/`, `tensorboard/`, `best.keras` (by validation KID, or
    image loss), and at the end `model.keras`.

    Args:
        config: what to do.
        folder: where.
        tell: called with a line for each thing a user should know.
        verbose: as for `fit`.

    Raises:
        ValueError: the folder holds a run with another configuration; or data or settings that cannot be used.
        DivergedError: the loss or the weights are not finite any more.
    """
    folder = pathlib.Path(folder)
    settings = folder / "config.yaml"
    if settings.is_file():
        found = RunConfig.read(settings)
        if config.kid == "auto":  # as it was found out then
            config = dataclasses.replace(config, kid=found.kid)
        _refuse_other_config(config, found, folder)
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"{folder} holds something other than a run: choose another folder, or empty it")

    keras.utils.set_random_seed(config.seed)  # before the data: TensorFlow mixes its seed into their order
    recipe = config.recipe()
    training_data, validation = data.load_dataset(
        config.data,
        tuple(config.image_size) if isinstance(config.image_size, list) else config.image_size,
        recipe.batch_size,
        split=tuple(config.split) if isinstance(config.split, list) else config.split,
        channels=config.channels,
        fit=config.fit,
        unreadable=config.unreadable,
        flip=recipe.flip,
        seed=config.seed,
        data_dir=config.data_dir,
        cache=config.cache,
    )
    validation = _spread_over(validation, config.validation_images, recipe.batch_size)
    if config.kid == "auto":
        config = dataclasses.replace(config, kid=_features_for(validation, tell))
    model = _make_model(config, recipe, training_data)
    config.write(settings)  # now that it is known to work
    checkpoints = Checkpoints(folder / "checkpoints", config.keep)
    for place in (folder, checkpoints.folder, folder / "samples"):
        files.remove_leftovers(place)
    step = 0
    newest = checkpoints.newest_whole()
    if newest is not None:
        model.load_weights(newest[0])
        step = newest[1]
        tell(f"Going on from step {step} of {config.steps}, {newest[0]}")
    elif checkpoints.paths():
        tell("No checkpoint is whole: starting again from the first step")
    if not model.normalizer.adapted:
        tell("Measuring the images' mean and variance")
        model.normalizer.adapt(training_data)

    keeper = _KeepCheckpoints(checkpoints, config, step)
    if step == config.steps and (folder / "model.keras").is_file():
        tell(f"Nothing is left to do: trained for {config.steps} steps, {folder / 'model.keras'}")
        return RunResult(model, step, True)
    watching = validation is not None
    every = config.validate_every or max(100, int(training_data.cardinality()))
    finished = step == config.steps
    _forget_epochs_from(
        folder / "log.csv", -(-step // every) if finished else step // every
    )  # the last may be a short one
    if step and (step % every == 0 or finished):
        _catch_up(model, validation, _callbacks(config, recipe, folder, keeper, watching)[1:], (step - 1) // every)
    with _stopping_after_the_step(keeper):
        while keeper.step < config.steps and not keeper.stop_asked:
            # To the end of the epoch that was interrupted; from there on, epoch by epoch.
            epoch, done = divmod(keeper.step, every)
            in_one_go = done == 0 and keeper.step + every <= config.steps
            watchers = _callbacks(config, recipe, folder, keeper, watching)
            try:
                model.fit(
                    training_data.from_step(keeper.step),
                    initial_epoch=epoch,
                    epochs=config.steps // every if in_one_go else epoch + 1,
                    steps_per_epoch=every if in_one_go else min(every - done, config.steps - keeper.step),
                    validation_data=validation,
                    verbose=verbose,
                    callbacks=watchers,
                )
            except _Stopped:
                model.synchronize()
                for watcher in watchers:  # they close their files
                    watcher.on_train_end()
    finished = keeper.step >= config.steps
    if finished:
        model.save(folder / "model.keras")
        tell(f"Trained for {config.steps} steps: {folder / 'model.keras'}")
    else:
        tell(
            f"Stopped after step {keeper.step} of {config.steps}, saved in {checkpoints.folder}: the same command goes on"
        )
    return RunResult(model, keeper.step, finished)


def _catch_up(model: DiffusionModel, validation: Any, watchers: list[keras.callbacks.Callback], epoch: int) -> None:
    """Show the end of an epoch to the watchers that keep images and models: a kill may have come between them and its last step.

    The line in the CSV log, if it is missing, stays so, as the losses of the training are gone.
    """
    logs = {} if validation is None else model.evaluate(validation, return_dict=True, verbose=0)
    logs = {f"val_{name}": value for name, value in logs.items()}
    for watcher in watchers:
        if isinstance(watcher, (callbacks.SampleImages, callbacks.KeepBest)):
            watcher.set_model(model)
            watcher.on_train_begin()
            watcher.on_epoch_end(epoch, logs)
            watcher.on_train_end()


def _spread_over(validation: Any, number: int | None, batch_size: int) -> Any:
    """Return about as many images of a validation set: every so many batches, as it may be sorted by class."""
    if validation is None or number is None:
        return validation
    stride = -(-int(validation.cardinality()) // -(-number // batch_size))
    return validation.shard(stride, 0) if stride > 1 else validation


def _features_for(validation: Any, tell: Callable[[str], None]) -> str | None:
    """Choose the features of the validation's KID; None where there are too few images for one."""
    if validation is None or len(first := next(iter(validation))) < 2:
        return None
    if first.shape[-1] != 1:
        try:
            metrics.get_extractor("inception_v3")
            return "inception_v3"
        except ConnectionError as error:
            tell(f"The validation's KID is a rough one, by the features of fashion_mnist: {error}")
    return "fashion_mnist"


def _make_model(config: RunConfig, recipe: presets.Training, training_data: Any) -> DiffusionModel:
    shape = training_data.element_spec.shape
    precision = backend.fastest_precision() if config.precision == "auto" else config.precision
    model = DiffusionModel.from_preset(
        config.preset,
        load_weights=False,
        **{
            "image_size": tuple(shape[1:3]),
            "channels": shape[3],
            "dtype": precision,
            "seed": config.seed,
            **config.model,
        },
    )
    own_metrics = []
    if config.kid:  # of all images at once: subsets would only add a standard deviation, which is not logged
        capacity = (config.validation_images or 10_000) + recipe.batch_size
        own_metrics.append(metrics.KID(config.kid, subsets=0, capacity=capacity))
    model.compile(
        **recipe.compile_arguments(config.steps), metrics=own_metrics, gradient_norm=True, jit_compile=config.jit
    )
    return model


def _callbacks(
    config: RunConfig, recipe: presets.Training, folder: pathlib.Path, keeper: _KeepCheckpoints, validated: bool
) -> list[keras.callbacks.Callback]:
    log = folder / "tensorboard"
    chosen: list[keras.callbacks.Callback] = [
        keeper,
        callbacks.Throughput(recipe.batch_size),
        _LearningRate(),
        keras.callbacks.CSVLogger(str(folder / "log.csv"), append=True),
    ]
    if config.samples:
        to_log = log / "samples" if config.tensorboard else None
        chosen.append(
            callbacks.SampleImages(
                folder / "samples", config.samples_every, config.samples, seed=config.seed, tensorboard=to_log
            )
        )
    if config.tensorboard:
        chosen.append(keras.callbacks.TensorBoard(str(log), write_graph=False))
    if validated:
        monitor = "val_kid" if config.kid else "val_i_loss"
        chosen.append(callbacks.KeepBest(folder / "best.keras", monitor))
    return chosen


def _refuse_other_config(config: RunConfig, found: RunConfig, folder: pathlib.Path) -> None:
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(found)
    different = [name for name in ours if ours[name] != theirs[name] and name not in _MAY_CHANGE]
    if different:
        changes = ", ".join(f"{name}: {theirs[name]!r} there, {ours[name]!r} now" for name in different)
        raise ValueError(
            f"{folder} holds a run with another configuration ({changes}): go on with its own, {folder / 'config.yaml'}, or "
            "choose another folder"
        )


@contextlib.contextmanager
def _stopping_after_the_step(keeper: _KeepCheckpoints) -> Iterator[None]:
    """Let the first Ctrl-C, or a request to terminate, end the training after its step."""

    def ask_to_stop(number: int, frame: Any) -> None:
        if keeper.stop_asked:
            raise KeyboardInterrupt
        keeper.stop_asked = True
        # Not by print: a signal may arrive in the middle of one.
        os.write(2, b"\nStopping after this step; once more stops at once\n")

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask_to_stop)
    except ValueError:  # not the main thread, where signals arrive
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget_epochs_from(log: pathlib.Path, epoch: int) -> None:
    """Take the lines of epochs that will be gone through again out of a CSV log."""
    if not log.is_file():
        return
    header, *rows = list(csv.reader(io.StringIO(log.read_text()))) or [[]]
    kept = [row for row in rows if row and row[0].isdigit() and int(row[0]) < epoch]
    if len(kept) < len(rows):
        with files.written_beside(log) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([header, *kept])


def _plain(value: Any) -> Any:
    """Tuples as lists, paths as text: what YAML knows."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
