"""Training in a folder: begun, watched, interrupted, and resumed as if nothing had happened."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from ddim_keras import data, metrics, presets
from ddim_keras.data.batches import taken_apart
from ddim_keras.model import DiffusionModel
from ddim_keras.runs import callbacks, copying, validating, watching
from ddim_keras.runs.checkpoints import Checkpoints
from ddim_keras.runs.config import AUTO, RunConfig, check_model_settings
from ddim_keras.runs.folder import RunFolder
from ddim_keras.runs.making import Sources, keep_sources, make_model, sources_of, with_guidance
from ddim_keras.runs.signals import stopping_after_the_step
from ddim_keras.runs.snapshots import Snapshots
from ddim_keras.runs.timing import steps_within
from ddim_keras.runs.workers import lost_workers_told, only_training_in
from ddim_keras.support import backend, files, keras_files, leftovers, progress
from ddim_keras.support import devices as on_devices
from ddim_keras.support.types import Data, Dataset

Tell = Callable[[str], None]
_NAMES_SHOWN = 5


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


class _Training(NamedTuple):
    """What a run is made of, once its data are there."""

    config: RunConfig
    recipe: presets.Training
    folder: RunFolder
    model: DiffusionModel
    data: Data
    validation: Dataset
    tell: Tell

    @property
    def steps_per_epoch(self) -> int:
        return self.config.validate_every or max(100, int(self.data.cardinality()))


def train(
    config: RunConfig,
    folder: str | os.PathLike,
    tell: Tell = print,
    verbose: int = 1,
    *,
    devices: int | str = 1,
    workers: on_devices.Workers | None = None,
) -> RunResult:
    """Train in a folder, from the start or from where an earlier run with the same configuration
    was interrupted.

    A run that was killed at any moment, and resumed, ends with the same weights as one that
    was not, on one machine. The first Ctrl-C (or SIGTERM) saves and stops after the step; the
    second stops at once.

    One process at a time trains in a folder, or all `workers` together. Whoever only reads may do
    so meanwhile.

    The folder holds `config.yaml`, `checkpoints/`, `ema/` (averages of the weights, for
    `ddim_keras.ema`), `log.csv`, `samples/`, `tensorboard/`, `best.keras`
    (by validation KID, or image loss), and at the end `model.keras`.

    Args:
        config: what to do.
        folder: where.
        tell: called with a line for each thing a user should know.
        verbose: as for `fit`.
        devices: among how many of this machine's devices each batch is divided, or "all". The
            weights are those of one device, to rounding, and a run may be resumed on another
            number.
        workers: the processes that train together, which have joined: each is given the same
            configuration and the same folder, on a disk that they share. The first writes.

    Raises:
        ValueError: the folder holds a run with another configuration; or data or settings that
            cannot be used; or more devices than there are, or than divide a batch evenly.
        DivergedError: the loss or the weights are not finite any more.
        WorkerLostError: another process has gone; the message names the last checkpoint.
        BlockingIOError: another process trains in the folder.
        NotADirectoryError, PermissionError: the folder cannot be written to.
    """
    check_model_settings(config.model, set(inspect.signature(DiffusionModel).parameters))
    with on_devices.used(devices, workers) as number:
        on_devices.check_batch(config.recipe().batch_size, number)
        if number > 1:
            tell(f"On {number} devices, {config.recipe().batch_size // number} images on each")
        shared = RunFolder(files.expanded(folder))
        if backend.process()[1] > 1:  # said now, as JAX ends the others when the first is lost
            tell(
                "When one of the processes is lost, all end: the same command in all resumes from "
                f"the last checkpoint in {shared.checkpoints}"
            )
        kept = Checkpoints(shared.checkpoints, config.keep)
        with lost_workers_told(kept), only_training_in(shared.path):
            with shared.of_process(backend.process()[0]) as own:
                return _train(config, shared, own, tell, verbose)


def _train(
    config: RunConfig, shared: RunFolder, place: RunFolder, tell: Tell, verbose: int
) -> RunResult:
    """Train with what is in the shared folder, and write into this process's own place.

    All processes do the same, files included: on TensorFlow some of what is written is a sum over
    them.
    """
    config = shared.reconcile(config, tell)
    fitted = shared.config.is_file()
    _meet()  # nobody writes before all have read
    training = _prepare(config, shared, place, tell, fitted)
    config = training.config
    checkpoints, written = (Checkpoints(each.checkpoints, config.keep) for each in (shared, place))
    step = _resume(training, checkpoints)
    finished = step == config.steps and _model_is_saved(shared, checkpoints, tell)
    _meet()
    if finished:
        tell(f"Nothing is left to do: trained for {config.steps} steps, {shared.model}")
        return RunResult(training.model, step, True)
    with stopping_after_the_step() as request:
        snapshots = Snapshots(place.ema, config.ema_snapshots, config.steps)
        snapshots.forget_after(step)
        keeper = watching.KeepCheckpoints(written, config, step, request, snapshots)
        _continue_log(training, keeper)
        while keeper.step < config.steps and not keeper.is_stopped():
            _fit(training, keeper, verbose)
    # The iterators that `fit` has left, before the interpreter ends: their threads may be inside
    # Python then.
    gc.collect()
    if keeper.step < config.steps:
        tell(
            f"Stopped after step {keeper.step} of {config.steps}, saved in {shared.checkpoints}: "
            "the same command resumes"
        )
        return RunResult(training.model, keeper.step, False)
    training.model.save(place.model)
    tell(f"Trained for {config.steps} steps: {shared.model}")
    _meet()
    return RunResult(training.model, keeper.step, True)


def _meet() -> None:
    """Wait for all processes of the training."""
    backend.largest_of_processes([0.0])


def _model_is_saved(place: RunFolder, checkpoints: Checkpoints, tell: Tell) -> bool:
    """Whether `model.keras` is whole, and that of the last checkpoint, not of a shorter run that
    was made longer.
    """
    if not (
        place.model.is_file()
        and place.model.stat().st_mtime >= checkpoints.paths()[0].stat().st_mtime
    ):
        return False
    try:
        keras_files.check_model_file(place.model, "ddim_keras>DiffusionModel")
    except ValueError as error:
        tell(f"{error}. It is made again, of the last checkpoint")
        return False
    return True


def _prepare(
    config: RunConfig,
    shared: RunFolder,
    place: RunFolder,
    tell: Tell,
    fitted: bool,
    sources: Sources | None = None,
) -> _Training:
    """Load the data, make the model, and write the configuration now that it is known to work.

    `fitted` says whether the number of steps is already what fits into the minutes. The model to
    start from is loaded once: what another training makes of its file meanwhile does not count.
    """
    keras.utils.set_random_seed(
        config.seed
    )  # before the data: TensorFlow mixes its seed into their order
    recipe = config.recipe()
    training_data, validation = data.load_dataset(
        config.data,
        tuple(config.image_size) if isinstance(config.image_size, list) else config.image_size,
        recipe.batch_size,
        split=tuple(config.split) if isinstance(config.split, list) else config.split,
        channels=config.channels,
        fit=config.fit,
        background=config.background,
        bits=config.bits,
        unreadable=config.unreadable,
        labels=config.labels,
        flip=recipe.flip,
        seed=config.seed,
        data_dir=config.data_dir,
        cache=config.cache,
    )
    if config.task:
        training_data = validating.for_task(training_data, config.task, config.factor)
        validation = validation and validating.for_task(validation, config.task, config.factor)
    sources = sources or sources_of(config, shared)
    if config.init_from:  # said once, as where it came from may change or go
        config = dataclasses.replace(config, training=dataclasses.asdict(recipe))
    elif config.preset == AUTO and not config.distill:
        config = _with_recommended(config, training_data, tell)
    if not fitted:
        _tell_of_labels(config, training_data, tell)
        config = with_guidance(config, training_data, sources, tell)
    validation = validating.spread_over(validation, config.validation_images, recipe.batch_size)
    if config.kid == "auto":
        config = dataclasses.replace(config, kid=_features_for(validation, tell))
    if not fitted:
        is_timed = config.minutes is not None
        if is_timed:
            config = _fitted_into_minutes(config, recipe, training_data, sources, tell)
        config = config.paced(int(training_data.cardinality()))
        if is_timed:  # afresh, as when it is resumed: trying steps has drawn random numbers
            return _prepare(config, shared, place, tell, True, sources)
    model = make_model(config, recipe, training_data, sources)
    place.write(config)
    keep_sources(config, place, sources)
    return _Training(config, recipe, place, model, training_data, validation, tell)


def _with_recommended(config: RunConfig, training_data: Dataset, tell: Tell) -> RunConfig:
    """Choose network and recipe by the images, and say why."""
    height, width, channels = taken_apart(training_data.element_spec).images.shape[1:]
    number = int(training_data.cardinality()) * config.recipe().batch_size
    config, reasons = config.recommended((height, width), channels, number)
    for reason in reasons:
        tell(reason)
    return config


def _tell_of_labels(config: RunConfig, training_data: Dataset, tell: Tell) -> None:
    """Say that there are labels, where the run makes nothing of them."""
    names = getattr(training_data, "unused_class_names", ())
    is_of_use = len(names) > 1 and all(name.isprintable() for name in names)
    if not is_of_use or config.init_from or config.distill or config.task:
        return
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    tell(
        f"The images have labels, {len(names)} classes ({shown}), which are not used: with "
        "--labels (labels=True), in another folder, images can be asked for by them, and are "
        "mostly better"
    )


def _fitted_into_minutes(
    config: RunConfig,
    recipe: presets.Training,
    training_data: Dataset,
    sources: Sources | None,
    tell: Tell,
) -> RunConfig:
    minutes = float(config.minutes or 0.0)
    model = make_model(config, recipe, training_data, sources)
    model.normalizer.adapt(training_data.take(10))
    part = backend.process()
    steps = steps_within(minutes, model, training_data.from_step(0, part=part))
    steps = int(backend.largest_of_processes([float(steps)])[0])
    tell(f"{steps} steps of {recipe.batch_size} images fit into {minutes:g} minutes of training")
    return dataclasses.replace(config, steps=steps)


def _resume(training: _Training, checkpoints: Checkpoints) -> int:
    """Bring the model to the newest checkpoint that is whole, or to the start, and return its
    step.
    """
    config, model = training.config, training.model
    for place in (training.folder.path, training.folder.checkpoints, training.folder.samples):
        leftovers.remove(place)
    step = 0
    newest = checkpoints.newest_whole()
    if newest is not None:
        _load(model, newest[0])
        step = newest[1]
        if step > config.steps:
            raise ValueError(
                f"{training.folder.path} is trained for {step} steps already: give --steps {step} "
                "or more, or start a run in "
                "another folder"
            )
        training.tell(f"Resuming from step {step} of {config.steps}, {newest[0]}")
    elif checkpoints.paths():
        training.tell("No checkpoint is whole: starting again from the first step")
    if not model.normalizer.adapted:
        training.tell("Measuring the images' mean and variance")
        model.normalizer.adapt(training.data)
    return step


def _load(model: DiffusionModel, checkpoint: pathlib.Path) -> None:
    """Load a checkpoint, optimizer included: Keras only warns where that does not fit, and learning
    rate and averages of gradients would begin anew.

    Raises:
        ValueError: it does not fit.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.load_weights(checkpoint)
    for each in told:
        if "Skipping variable loading for optimizer" in str(each.message):
            raise ValueError(
                f"{checkpoint} holds the state of another optimizer ({str(each.message).strip()}): "
                "it is of another run, or of another version of ddim_keras. Resume with that one, "
                "or start a run in another folder"
            )
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def _continue_log(training: _Training, keeper: watching.KeepCheckpoints) -> None:
    """Make log, samples and best model those of the step that the training resumes from."""
    every, step = training.steps_per_epoch, keeper.step
    finished = step == training.config.steps
    # The last epoch may be a short one.
    watching.Log(training.folder.log).forget_from(-(-step // every) if finished else step // every)
    if step and (step % every == 0 or finished):
        _catch_up(
            training.model,
            training.validation,
            _watchers(training, keeper)[1:],
            (step - 1) // every,
        )


def _fit(training: _Training, keeper: watching.KeepCheckpoints, verbose: int) -> None:
    """Train to the end of the epoch that was interrupted; from there on, epoch by epoch."""
    config, every = training.config, training.steps_per_epoch
    epoch, done = divmod(keeper.step, every)
    in_one_go = done == 0 and keeper.step + every <= config.steps
    watchers = _watchers(training, keeper)
    if verbose and not progress.is_watched():
        watchers.append(watching.StepLines(keeper, config.steps))
        verbose = 0
    try:
        training.model.fit(
            training.data.from_step(keeper.step, part=backend.process()),
            initial_epoch=epoch,
            epochs=config.steps // every if in_one_go else epoch + 1,
            steps_per_epoch=every if in_one_go else min(every - done, config.steps - keeper.step),
            validation_data=training.validation,
            verbose=verbose,
            callbacks=watchers,
        )
    except watching.Stopped:
        training.model.synchronize()
        for watcher in watchers:  # they close their files
            watcher.on_train_end()


def _catch_up(
    model: DiffusionModel, validation: Dataset, watchers: list[keras.callbacks.Callback], epoch: int
) -> None:
    """Show the end of an epoch to the watchers that keep images and models: a kill may have come
    between them and its last step.

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


def _features_for(validation: Dataset, tell: Tell) -> str | None:
    """Choose the features of the validation's KID; None where there are too few images for one."""
    if validation is None:
        return None
    first = taken_apart(next(iter(validation))).images
    if len(first) < 2:
        return None
    if first.shape[-1] != 1:
        try:
            metrics.get_extractor("inception_v3")
            return "inception_v3"
        except ConnectionError as error:
            tell(f"The validation's KID is a rough one, by the features of cifar10: {error}")
            return "cifar10"
    return "fashion_mnist"


def _copies_are_looked_for(training: _Training) -> bool:
    """Whether it is asked for, makes sense and is cheap: few images are what a network copies."""
    size = training.recipe.batch_size * int(np.prod(training.model.image_shape))
    numbers = int(training.data.cardinality()) * size
    asked = training.config.memorization > 0 and not training.config.task
    return asked and numbers <= copying.LARGEST


def _watchers(
    training: _Training, keeper: watching.KeepCheckpoints
) -> list[keras.callbacks.Callback]:
    config, place = training.config, training.folder
    chosen: list[keras.callbacks.Callback] = [
        keeper,
        callbacks.Throughput(training.recipe.batch_size),
        watching.LearningRate(),
    ]
    if _copies_are_looked_for(training):
        flip, seed = training.recipe.flip, config.seed
        chosen.append(copying.Memorization(training.data, config.memorization, flip, seed=seed))
    chosen.append(watching.Log(place.log))
    if config.samples:
        to_log = place.tensorboard / "samples" if config.tensorboard else None
        told: dict[str, Any] = {}
        if config.task:  # the first of what is kept for validation, or else of the training
            shown = validating.conditions_of(training.validation or training.data, config.samples)
            told = {"condition": shown}
        chosen.append(
            callbacks.SampleImages(
                place.samples,
                config.samples_every,
                config.samples,
                seed=config.seed,
                tensorboard=to_log,
                **told,
            )
        )
    if config.tensorboard:
        chosen.append(keras.callbacks.TensorBoard(str(place.tensorboard), write_graph=False))
    if training.validation is not None:
        chosen.append(callbacks.KeepBest(place.best, "val_kid" if config.kid else "val_i_loss"))
    return chosen
