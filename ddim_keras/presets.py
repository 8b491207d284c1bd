"""Presets: models and training recipes by name, some with trained weights; each a folder of preset.json and weights.npz."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import shutil
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ddim_keras import optimizers
from ddim_keras.support import files
from ddim_keras.support.arguments import positive_int

if TYPE_CHECKING:
    from ddim_keras.model import DiffusionModel

_FOLDER = pathlib.Path(__file__).parent / "pretrained"
_FORMAT = 1
# What may be changed without making trained weights wrong.
_FIT_ANY_WEIGHTS = {"seed", "dtype", "ema_decay", "loss_weighting", "name"}
_LARGEST_HALF = 65504.0
_OPTIMIZERS: dict[str, type[keras.optimizers.Optimizer]] = {"adamw": keras.optimizers.AdamW, "muon": optimizers.Muon}


@dataclasses.dataclass(frozen=True)
class Training:
    """A recipe: everything about a training but its length.

    Attributes:
        batch_size: images per step.
        learning_rate: of the optimizer, at its highest.
        schedule: "constant", or "cosine": the learning rate rises from a twentieth over the first `warmup` of the steps, and then
            falls along a cosine to a hundredth.
        warmup: share of the steps, with "cosine".
        weight_decay: of the optimizer.
        clip_norm: largest norm of a step's gradient, over all weights together; None does not clip.
        loss: a Keras loss.
        flip: whether images are mirrored at random.
        accumulate: batches whose gradients make one step of the optimizer.
        optimizer: "adamw", or "muon" for `ddim_keras.optimizers.Muon`.
    """

    batch_size: int = 64
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: float = 0.05
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    loss: str = "mean_absolute_error"
    flip: bool = False
    accumulate: int = 1
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer not in list(_OPTIMIZERS):
            raise ValueError(f"optimizer must be one of {sorted(_OPTIMIZERS)}, got {self.optimizer!r}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be 'constant' or 'cosine', got {self.schedule!r}")
        if not isinstance(self.warmup, (int, float)) or not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup must lie in [0, 1), the share of the steps, got {self.warmup}")
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            if name == "clip_norm" and value is None:
                continue
            is_number = isinstance(value, (int, float)) and math.isfinite(value)
            if not is_number or value < 0.0 or (value == 0.0 and name != "weight_decay"):
                raise ValueError(
                    f"{name} must be a positive number, got {value!r} (in YAML 1e-4 is a word: write 1.0e-4)"
                )
        keras.losses.get(self.loss)
        positive_int("batch_size", self.batch_size)
        positive_int("accumulate", self.accumulate)

    def compile_arguments(self, steps: int) -> dict[str, Any]:
        """Return optimizer and loss for a training of that many batches: `model.compile(**training.compile_arguments(5000))`."""
        steps = positive_int("steps", steps)  # a schedule counts batches, even where several make one step
        rate: Any = self.learning_rate
        if self.schedule == "cosine":
            warmup = max(1, int(self.warmup * steps))
            rate = keras.optimizers.schedules.CosineDecay(
                rate / 20, max(1, steps - warmup), alpha=0.01, warmup_target=rate, warmup_steps=warmup
            )
        optimizer = _OPTIMIZERS[self.optimizer](
            rate,
            weight_decay=self.weight_decay,
            global_clipnorm=self.clip_norm,
            gradient_accumulation_steps=self.accumulate if self.accumulate > 1 else None,
        )
        return {"optimizer": optimizer, "loss": self.loss}


def names() -> list[str]:
    """Return the names that `DiffusionModel.from_preset` takes.

    Examples:

    >>> names()
    ['fashion_mnist_32', 'keras_example']
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
    return Training(**_description(_folder(preset))["training"])


def load(
    model_class: type[DiffusionModel], preset: str | os.PathLike, load_weights: bool, changes: dict[str, Any]
) -> DiffusionModel:
    """As `DiffusionModel.from_preset`."""
    folder = _folder(preset)
    description = _description(folder)
    config = {**description["model"], **changes}
    if not load_weights or not description["has_weights"]:
        return model_class(**config)
    weights = folder / "weights.npz"
    if not weights.is_file():
        raise ValueError(f"{weights} is missing: copy or install the preset again, or give load_weights=False")
    if unfit := sorted(set(changes) - _FIT_ANY_WEIGHTS):
        raise ValueError(
            f"the weights of {folder.name} do not fit a model with another {', '.join(unfit)}: leave that out, or give "
            "load_weights=False and train"
        )
    model = model_class(**config)
    try:
        with np.load(weights) as stored:
            arrays = [stored[f"arr_{index}"].astype("float32") for index in range(len(stored.files))]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{weights} is damaged ({error}): copy or install the preset again") from error
    expected = _stored_weights(model)
    if [array.shape for array in arrays] != [tuple(weight.shape) for weight in expected]:
        raise ValueError(f"{weights} is damaged: its shapes are not those of the model in preset.json")
    for weight, array in zip(expected, arrays):
        weight.assign(array)
    model.network.set_weights(model.ema_network.get_weights())
    return model


def save(model: DiffusionModel, folder: pathlib.Path, half: bool, training: Training | None) -> None:
    """As `DiffusionModel.save_to_preset`."""
    model.synchronize()
    config = model.get_config()
    if not model.normalizer.adapted:
        raise ValueError("the model was never trained: fit it, or load its weights, before it is saved as a preset")
    if config.pop("network") is not None:
        raise ValueError("a preset describes the residual U-Net, not a network of your own: use model.save")
    del config["name"], config["dtype"], config["seed"]
    for name, value in config.items():
        if isinstance(value, dict):
            config[name] = {key: value[key] for key in ("module", "class_name", "config", "registered_name")}
    folder = folder.resolve()  # a link stays a link
    if folder.name in names() and folder.parent != _FOLDER:
        raise ValueError(f"{folder.name!r} is the name of a preset that ships: choose another for the folder")
    if folder.exists() and not (folder / "preset.json").is_file():
        raise ValueError(f"{folder} exists and is no preset: choose another folder, or remove it")
    description = {
        "format": _FORMAT,
        "model": config,
        "training": dataclasses.asdict(training or Training()),
        "has_weights": True,
    }
    arrays = [keras.ops.convert_to_numpy(weight).astype("float32") for weight in _stored_weights(model)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("the weights hold NaN or infinity: the training has diverged; nothing was written")
    # The normalizer's own three stay whole, and what is beyond float16's range.
    stored = [
        array.astype("float16") if half and index >= 3 and np.abs(array).max(initial=0.0) <= _LARGEST_HALF else array
        for index, array in enumerate(arrays)
    ]
    with files.written_beside(folder) as temporary:
        temporary.mkdir()
        (temporary / "preset.json").write_text(json.dumps(description, indent=2) + "\n")
        np.savez_compressed(temporary / "weights.npz", *stored)
        if folder.exists():
            for kept in folder.iterdir():  # a model card, say
                if kept.is_dir():
                    shutil.copytree(kept, temporary / kept.name, symlinks=True)
                elif kept.name not in ("preset.json", "weights.npz"):
                    shutil.copy2(kept, temporary)


def _stored_weights(model: DiffusionModel) -> list:
    normalizer = model.normalizer
    return [normalizer.mean, normalizer.variance, normalizer.count, *model.ema_network.weights]


def _folder(preset: str | os.PathLike) -> pathlib.Path:
    if isinstance(preset, str) and preset in names():
        return _FOLDER / preset
    folder = pathlib.Path(preset)
    if (folder / "preset.json").is_file():
        return folder
    raise ValueError(
        f"unknown preset {str(preset)!r}: expected one of {names()}, or a folder written by DiffusionModel.save_to_preset"
    )


def _description(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "preset.json"
    try:
        description = json.loads(path.read_text())
        if description["format"] != _FORMAT:
            raise ValueError(f"its format is {description['format']}, this version of ddim_keras reads {_FORMAT}")
        return {
            "model": dict(description["model"]),
            "training": dict(description["training"]),
            "has_weights": bool(description["has_weights"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a preset ({error}): copy or install it again") from error
