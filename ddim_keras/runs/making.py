"""The model of a run: of a preset, of another model's weights, or of a teacher."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from ddim_keras import metrics, presets
from ddim_keras.data.batches import taken_apart
from ddim_keras.distilling import guided_student, steps_taught, student
from ddim_keras.model import DiffusionModel
from ddim_keras.networks.copying import take_weights
from ddim_keras.runs import ema
from ddim_keras.runs.config import RunConfig
from ddim_keras.runs.finding import load
from ddim_keras.runs.folder import RunFolder
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.sampling.guidance import Autoguidance, guidances
from ddim_keras.support import backend
from ddim_keras.support.types import Dataset
from ddim_keras.training import averages
from ddim_keras.training.distilling import Distillation
from ddim_keras.training.guiding import GuidanceDistillation

_AUTOGUIDANCE = 2.0  # the best of 1.5, 2 and 3 for photos, and of those near it for clothes
# Noise rates at which it acts: above, it would make dark images darker and bright ones brighter.
_OF_AUTOGUIDANCE = (0.0, 0.99)


class Sources(NamedTuple):
    """What a run starts from.

    Attributes:
        model: to start from, or the teacher.
        weaker: of a run that learns autoguidance, what is weaker than the teacher.
    """

    model: DiffusionModel
    weaker: DiffusionModel | None = None


def make_model(
    config: RunConfig,
    recipe: presets.Training,
    training_data: Dataset,
    sources: Sources | None,
) -> DiffusionModel:
    """Return the model that a run trains, compiled.

    Args:
        config: of the run.
        recipe: how it is trained.
        training_data: what it is to make.
        sources: what it starts from, by `sources_of`.

    Raises:
        ValueError: an unknown precision, or a model to start from that does not fit the data.
    """
    precision = backend.fastest_precision() if config.precision == "auto" else config.precision
    try:
        keras.dtype_policies.get(precision)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"unknown precision {precision!r}: expected auto, or a policy of Keras, such as "
            "float32, mixed_bfloat16 or mixed_float16"
        ) from error
    if sources is None:
        model = _untrained(config, training_data, precision)
    elif config.distill:
        model = _student(config, training_data, precision, sources)
    else:
        model = _started(config, training_data, precision, sources.model)
    if config.guidance is not None:
        defaults = {**model.sampling_defaults.get_config(), "guidance": config.guidance}
        model.sampling_defaults = SamplingDefaults(**defaults)
    own_metrics = []
    if (
        config.kid
    ):  # of all images at once: subsets would only add a standard deviation, which is not logged
        capacity = (config.validation_images or 10_000) + recipe.batch_size
        own_metrics.append(metrics.KID(config.kid, subsets=0, capacity=capacity))
    model.compile(
        **recipe.compile_arguments(config.steps),
        metrics=own_metrics,
        gradient_norm=True,
        ema_lengths=averages.LENGTHS if config.ema_snapshots else (),
        jit_compile=config.jit,
    )
    if isinstance(model.distillation, Distillation):
        model.metric_diffusion_steps = model.distillation.steps
    return model


def with_guidance(
    config: RunConfig,
    training_data: Dataset,
    sources: Sources | None,
    tell: Callable[[str], None],
) -> RunConfig:
    """Return the configuration of a new run with the weight by which its model is guided where
    nothing else is asked for, or by which its teacher is, and say it.

    Args:
        config: of the run, its preset found out.
        training_data: what it is to make.
        sources: what it starts from.
        tell: called with a line.
    """
    source = None if sources is None else sources.model
    own = None if source is None else source.sampling_defaults.guidance
    if config.distill:
        if sources and sources.weaker is not None and "autoguidance" not in config.distill:
            tell(
                f"What is learned is autoguidance by {_AUTOGUIDANCE:g}: away from what the weaker "
                "model predicts"
            )
            told = {**config.distill, "autoguidance": _AUTOGUIDANCE}
            config = dataclasses.replace(config, distill=told)
        if own in (None, 1.0) or "guidance" in config.distill:
            return config
        tell(
            f"The teacher is guided by {own:g}, as it keeps it, which becomes a part of what is "
            "learned"
        )
        return dataclasses.replace(config, distill={**config.distill, "guidance": own})
    is_said = config.guidance is not None or "sampling_defaults" in config.model
    if is_said or not config.labels or config.task:
        return config
    if source is None:
        base = presets.read(config.preset, load_weights=False).config
    else:
        base = source.get_config()
    if not {"label_dropout": 0.1, **base, **config.model}["label_dropout"]:
        return config  # such a model cannot be guided
    channels = taken_apart(training_data.element_spec).images.shape[-1]
    weight = presets.recommended_guidance(channels) if own is None else own
    tell(
        f"Images by label are guided by {weight:g}, unless another weight is asked for: plainer "
        "and better images, for two evaluations of the network a step"
    )
    return dataclasses.replace(config, guidance=weight)


def _untrained(config: RunConfig, training_data: Dataset, precision: str) -> DiffusionModel:
    """The model that the configuration describes, for such data."""
    settings = _settings(config, training_data, precision)
    return DiffusionModel.from_preset(config.preset, load_weights=False, **settings)


def _settings(config: RunConfig, training_data: Dataset, precision: str) -> dict[str, Any]:
    """What the data and the run say of a model."""
    spec = taken_apart(training_data.element_spec)
    shape = spec.images.shape
    settings = {
        "image_size": tuple(shape[1:3]),
        "channels": shape[3],
        "dtype": precision,
        "seed": config.seed,
    }
    if config.labels:
        settings["class_names"] = training_data.class_names
    if spec.condition is not None:
        settings["condition_shape"] = tuple(spec.condition.shape[1:])
    return {**settings, **config.model}


def _started(
    config: RunConfig, training_data: Dataset, precision: str, source: DiffusionModel
) -> DiffusionModel:
    """A model that starts from another's averaged weights.

    Its images may have another size and its classes other names: those of the same name start from
    what was learned of them.
    """
    name = config.init_from
    settings = _settings(config, training_data, precision)
    _check_fits(source, settings, str(name))
    classes: Sequence[int | None] = ()
    names = settings.get("class_names")
    if names is not None:
        known = list(source.class_names or ())
        if source.num_classes == len(names) and not known:
            classes = range(len(names))  # numbers alone say which is which
        else:
            classes = [known.index(each) if each in known else None for each in names]
        settings["num_classes"] = len(names)
    base = {**source.get_config(), "name": None}
    base.pop("distillation", None)  # it learns from images now, and its teacher stays behind
    configuration = presets.changed(base, settings)
    model: DiffusionModel = type(source).from_config(configuration)
    model.normalizer.set_weights(source.normalizer.get_weights())
    times = [made.engine.schedule.num_times for made in (source, model)]
    if times[0] != times[1]:
        kinds = ["noise variances" if number is None else f"{number} times" for number in times]
        raise ValueError(
            f"the network of {name} is told of {kinds[0]}, and the run's schedule has {kinds[1]}: "
            "give a schedule of that kind, or leave it out"
        )
    try:
        take_weights(model.network, source.ema_network, classes)
    except ValueError as error:
        advice = "Leave init_from out, or give data that it can make"
        if names is not None and source.num_classes is None:
            advice = (
                "Only a network with conditioning='every_block' can be given labels that it did "
                "not have: leave init_from out, or labels"
            )
        raise ValueError(f"the weights of {name} do not fit this run: {error}. {advice}") from error
    model.ema_network.set_weights(model.network.get_weights())
    return model


def _check_fits(source: DiffusionModel, settings: dict[str, Any], name: str) -> None:
    """Raise ValueError unless a model can go on with images and labels as a run has them."""
    if not source.normalizer.adapted:
        raise ValueError(f"{name} was never trained: there is nothing to start from")
    few = steps_taught(source)
    if few is not None:
        raise ValueError(
            f"{name} draws in {few} steps what another model draws in more: train that one, and "
            "distill it again"
        )
    channels = source.image_shape[-1]
    if settings["channels"] != channels:
        raise ValueError(
            f"{name} makes images of {channels} channels, and the run's have "
            f"{settings['channels']}: give --channels {channels}"
        )
    if source.num_classes is not None and "class_names" not in settings:
        raise ValueError(f"{name} takes labels, and the run has none: give --labels")
    shapes = source.condition_shape, settings.get("condition_shape")
    if (shapes[0] and len(shapes[0])) != (shapes[1] and len(shapes[1])):
        raise ValueError(
            f"{name} makes images from {_told(shapes[0])}, and the run from {_told(shapes[1])}: "
            "give the task that it was trained for"
        )


def _told(condition_shape: Sequence[int] | None) -> str:
    return f"conditions of shape {tuple(condition_shape)}" if condition_shape else "noise alone"


def sources_of(config: RunConfig, place: RunFolder) -> Sources | None:
    """Return what a run starts from, or learns from: the run's own copies, once it has them; None
    for a run without.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    name = config.distill["model"] if config.distill else config.init_from
    if not name:
        return None
    copy = _copy_in(place, config)
    model = _kept(copy, name) if copy.is_file() else load(name)
    if not _learns_autoguidance(config.distill, model):
        return Sources(model)
    return Sources(model, _weaker_of(config.distill, place, model))


def _learns_autoguidance(told: dict[str, Any], teacher: DiffusionModel) -> bool:
    """Whether a run is told to learn it, or has no other guidance to learn."""
    if told.get("method") != "guidance":
        return False
    if "autoguidance" in told:
        return bool(told["autoguidance"] != 1.0)
    other = told.get("guidance", teacher.sampling_defaults.guidance)
    return "weaker" in told or other in (None, 1.0)


def _weaker_of(told: dict[str, Any], place: RunFolder, teacher: DiffusionModel) -> DiffusionModel:
    """Return the weaker model of a run that learns autoguidance."""
    name, source = told["model"], told.get("weaker")
    if place.weaker.is_file():
        return _kept(place.weaker, source or f"{name}, early in its training")
    if source is not None:
        return load(source)
    if isinstance(teacher.distillation, GuidanceDistillation):
        raise ValueError(
            f"autoguidance needs a weaker model, and {name} has learned guidance from another one, "
            "of which its own beginning says nothing: give that one as the teacher, or weaker"
        )
    if RunFolder(pathlib.Path(name)).config.is_file():
        return ema.early(name)
    if place.config.is_file():
        raise ValueError(
            f"{place.weaker} is missing, the weaker model that the run in {place.path} learns by, "
            f"and {name}, where it came from, is no run's folder any more: bring one of them back"
        )
    raise ValueError(
        f"autoguidance needs a weaker model, and {name} is not the folder of a run, which would "
        "keep an early one: give the folder, or weaker, such as the same model after a tenth of "
        "the steps, or, for a model by label, guidance"
    )


def _kept(copy: pathlib.Path, name: str) -> DiffusionModel:
    """Return what a run has copied."""
    try:
        return load(str(copy))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{error}. It is the run's copy of {name}: if that is still the same model, remove "
            f"{copy}, and it is copied again"
        ) from error


def keep_sources(config: RunConfig, place: RunFolder, sources: Sources | None) -> None:
    """Keep what a run starts from in its folder, so that it resumes wherever that came from, and
    whatever has been made of that since.
    """
    if sources is None:
        return
    kept = [(sources.model, _copy_in(place, config)), (sources.weaker, place.weaker)]
    for model, copy in kept:
        if model is not None and not copy.is_file():
            model.save(copy)


def _copy_in(place: RunFolder, config: RunConfig) -> pathlib.Path:
    return place.teacher if config.distill else place.initial


def _student(
    config: RunConfig, training_data: Dataset, precision: str, sources: Sources
) -> DiffusionModel:
    """A model that starts from the weights of its teacher."""
    options = {"guidance": 1.0, **config.distill}  # the teacher's own was found out at the start
    teacher, source = sources.model, options.pop("model")
    shape = tuple(taken_apart(training_data.element_spec).images.shape[1:])
    if shape != teacher.image_shape:
        raise ValueError(
            f"the images in {config.data} are of shape {shape}, those of the teacher in {source} "
            f"of {teacher.image_shape}: give image_size and channels as the teacher has them"
        )
    changes = {"seed": config.seed, "dtype": precision, **config.model}
    if options.get("method") != "guidance":
        return student(teacher, **options, **changes)
    if teacher.num_classes is not None and not config.labels:
        raise ValueError(
            f"the teacher in {source} takes labels, and the run has none, without which it would "
            "forget them: give labels"
        )
    learned = guidances(options["guidance"])
    if sources.weaker is not None:
        weight = options["autoguidance"]
        learned.insert(0, Autoguidance(sources.weaker, weight, _OF_AUTOGUIDANCE))
    return guided_student(teacher, learned, **changes)
