"""The folder of a preset: preset.json, which describes a model and its recipe, and weights.npz."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddim_keras.presets.recipes import Training
from ddim_keras.support import files, reading
from ddim_keras.support.arguments import height_and_width, truth
from ddim_keras.support.types import Config, ImageArray, Variable
from ddim_keras.support.version import FIRST_VERSION, is_of_first_version

_FOLDER = pathlib.Path(__file__).parent / "pretrained"
_FORMAT = 1
# What may be changed without making trained weights wrong.
FIT_ANY_WEIGHTS = {
    *("seed", "dtype", "ema_decay", "loss_weighting", "recompute", "dropout", "name"),
    *("class_names", "label_dropout", "condition_dropout", "condition_noise"),
    "sampling_defaults",
}
# Written out: Keras is not imported for the names of presets.
_DEFAULTS_OF_FIRST_VERSION = {
    "module": "ddim_keras.sampling.defaults",
    "class_name": "SamplingDefaults",
    "config": {"version": FIRST_VERSION},
    "registered_name": "ddim_keras>SamplingDefaults",
}
_LARGEST_HALF = 65504.0
_NORMALIZER_ARRAYS = 3


class Preset(NamedTuple):
    """What a preset's folder holds.

    Attributes:
        config: arguments of `DiffusionModel`.
        arrays: float32, the normalizer's mean, variance and count and the EMA network's weights in
            its order; None without.
        training: the recipe.
        has_weights: whether it is a trained model, its arrays read or not, and no recipe alone.
    """

    config: Config
    arrays: list[ImageArray] | None
    training: Training
    has_weights: bool = True


def names() -> list[str]:
    """Return the names that `DiffusionModel.from_preset` takes.

    Examples:

    >>> names()[:3]
    ['cifar10_32', 'cifar10_32_guided', 'ddpm_cifar10']
    """
    return sorted(path.parent.name for path in _FOLDER.glob("*/preset.json"))


def training(preset: str | os.PathLike) -> Training:
    """Return the training recipe of a preset.

    Args:
        preset: a name or a folder, as for `DiffusionModel.from_preset`.

    Examples:

    >>> training("keras_example").learning_rate
    0.001
    """
    return read(preset, load_weights=False).training


def read(
    preset: str | os.PathLike, load_weights: bool = True, changes: Mapping[str, Any] | None = None
) -> Preset:
    """Read a preset.

    Args:
        preset: a name or a folder.
        load_weights: whether its arrays are wanted, where it has some.
        changes: arguments of `DiffusionModel` that differ from the preset's; they are put into the
            configuration.

    Raises:
        ValueError: no such preset, a damaged one, or changes that its weights do not fit.
    """
    folder = _folder(preset)
    path = folder / "preset.json"
    advice, what = "copy or install it again", "does not describe a preset"
    description = reading.json_of(path, advice, what)
    with reading.refusing_damage(path, advice, what):
        if description["format"] != _FORMAT:
            raise ValueError(
                f"its format is {description['format']}, this version of ddim_keras reads {_FORMAT}"
            )
        config, recipe = dict(description["model"]), dict(description["training"])
        has_weights = truth("has_weights", description["has_weights"])
        known = {field.name for field in dataclasses.fields(Training)}
        if unknown := sorted(set(recipe) - known):
            raise ValueError(
                f"its training has unknown settings {unknown}, expected some of {sorted(known)}"
            )
        found = Training(**recipe)
    changes = changes or {}
    arrays = None
    if load_weights and has_weights:
        arrays = _read_arrays(folder)
        if is_of_first_version(config):
            config["sampling_defaults"] = _DEFAULTS_OF_FIRST_VERSION
        if unfit := sorted(set(changes) - FIT_ANY_WEIGHTS):
            raise ValueError(
                f"the weights of {folder.name} do not fit a model with another {', '.join(unfit)}: "
                "leave that out, or "
                "give load_weights=False and train"
            )
    with naming(preset, changes):
        config = changed(config, changes, keep_fits=arrays is not None)
    return Preset(config, arrays, found, has_weights)


@contextlib.contextmanager
def naming(preset: str | os.PathLike, changes: Mapping[str, Any]) -> Iterator[None]:
    """Let the errors of making a model of a preset's configuration name its file.

    What is wrong may be the caller's changes: then errors in words stay as they are.

    Args:
        preset: a name or a folder.
        changes: arguments of `DiffusionModel` that differ from the preset's.

    Raises:
        ValueError: the configuration makes no model.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        if changes and isinstance(error, ValueError):
            raise
        changed_too = f" with another {', '.join(sorted(changes))}" if changes else ""
        raise ValueError(
            f"the model in {_folder(preset) / 'preset.json'} cannot be made{changed_too} "
            f"({str(error) or type(error).__name__}): copy or install the preset again"
        ) from error


def changed(config: Config, changes: Mapping[str, Any], keep_fits: bool = False) -> Config:
    """Return the configuration of a `DiffusionModel` with changes; its network follows them.

    Args:
        config: the configuration.
        changes: arguments of `DiffusionModel`.
        keep_fits: whether the samplers and the guidance that suit the model's weights stay.
    """
    config = {**(config if keep_fits else _without_fits(config)), **changes}
    if isinstance(config.get("network"), dict):
        config = _with_fitting_network(config, changes)
    return config


def _without_fits(config: Config) -> Config:
    """Return a model's configuration without what was found for its weights: fitted samplers,
    guidance, and the walks of the version that they were trained with.
    """
    defaults = config.get("sampling_defaults")
    if not isinstance(defaults, dict):
        return config
    found = ("samplers", "guidance", "version")
    kept = {name: value for name, value in defaults["config"].items() if name not in found}
    return {**config, "sampling_defaults": {**defaults, "config": kept}}


def _with_fitting_network(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a model's configuration whose network follows changes of the model."""
    network = config["network"]
    settings = {
        **network["config"],
        "image_shape": [*height_and_width(config["image_size"]), config.get("channels", 3)],
        "num_classes": config.get("num_classes"),
    }
    if "dtype" in changes:
        settings["dtype"] = getattr(changes["dtype"], "name", changes["dtype"])
    if "recompute" in changes:
        settings["recompute"] = changes["recompute"]
    return {**config, "recompute": False, "network": {**network, "config": settings}}


def assign(
    variables: Sequence[Variable], arrays: Sequence[ImageArray], preset: str | os.PathLike
) -> None:
    """Put a preset's arrays into the variables of a model, in their order.

    Raises:
        ValueError: they have other shapes.
    """
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
        raise ValueError(
            f"{_folder(preset) / 'weights.npz'} is damaged: its shapes are not those of the model "
            "in preset.json"
        )
    for variable, array in zip(variables, arrays):
        variable.assign(array)


def check_free(folder: str | os.PathLike) -> pathlib.Path:
    """Return where a preset is to be written, with links followed.

    Raises:
        ValueError: it has the name of a preset that ships, or something else stands there.
    """
    path = files.expanded(folder).resolve()  # a link stays a link
    if path.name in names() and path.parent != _FOLDER:
        raise ValueError(
            f"{path.name!r} is the name of a preset that ships: choose another for the folder"
        )
    if not files.is_free(path) and not (path / "preset.json").is_file():
        raise ValueError(f"{path} exists and is no preset: choose another folder, or remove it")
    return path


def write(preset: Preset, folder: str | os.PathLike, half: bool) -> None:
    """Write a preset with its arrays, beside and renamed. What else stands in the folder, a model
    card say, is kept.

    Args:
        preset: what to write; it must have arrays.
        folder: where to; a preset that stands there is replaced.
        half: store the network's weights in float16.

    Raises:
        ValueError: something else stands there, or the arrays hold NaN or infinity; nothing is
            written.
    """
    folder = check_free(folder)
    config = dict(preset.config)
    for name, value in config.items():
        if isinstance(value, dict):  # a serialized object, without what Keras notes beside it
            config[name] = {
                key: value[key] for key in ("module", "class_name", "config", "registered_name")
            }
    description = {
        "format": _FORMAT,
        "model": config,
        "training": dataclasses.asdict(preset.training),
        "has_weights": True,
    }
    arrays = preset.arrays or []
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(
            "the weights hold NaN or infinity: the training has diverged; nothing was written"
        )
    with files.written_beside(folder) as temporary:
        temporary.mkdir()
        (temporary / "preset.json").write_text(json.dumps(description, indent=2) + "\n")
        np.savez_compressed(temporary / "weights.npz", *(_halved(arrays) if half else arrays))
        files.keep_others(folder, temporary)


def _halved(arrays: Sequence[ImageArray]) -> list[np.ndarray]:
    """In float16, but for the normalizer's and what is beyond float16's range."""
    return [
        array.astype("float16")
        if index >= _NORMALIZER_ARRAYS and np.abs(array).max(initial=0.0) <= _LARGEST_HALF
        else array
        for index, array in enumerate(arrays)
    ]


def _read_arrays(folder: pathlib.Path) -> list[ImageArray]:
    weights = folder / "weights.npz"
    if not weights.is_file():
        raise ValueError(
            f"{weights} is missing: copy or install the preset again, or give load_weights=False"
        )
    advice = "copy or install the preset again"
    stored = reading.arrays_of(weights, advice)
    with reading.refusing_damage(weights, advice):
        arrays = [stored[f"arr_{index}"] for index in range(len(stored))]
        for index, array in enumerate(arrays):
            if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
                raise ValueError(f"arr_{index} holds NaN, infinity, or what is no real number")
        return [array.astype("float32") for array in arrays]


def _folder(preset: str | os.PathLike) -> pathlib.Path:
    if isinstance(preset, str) and preset in names():
        return _FOLDER / preset
    folder = files.expanded(preset)
    if (folder / "preset.json").is_file():
        return folder
    raise ValueError(
        f"unknown preset {str(preset)!r}: expected one of {names()}, or a folder written by "
        "DiffusionModel.save_to_preset"
    )
