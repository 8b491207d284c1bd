"""Checkpoints of the DDIM paper's code, of Ho et al.'s networks as converted for it, and of
improved-diffusion and guided-diffusion.

Their network is `ddpm_unet`; its sizes are read off the weights.
"""

from __future__ import annotations

import os
import pathlib
import re
import warnings
from typing import Any

from ddim_keras.diffusion.parameterizations import NoiseParameterization
from ddim_keras.diffusion.schedules import (
    SCHEDULES,
    CosineBetaSchedule,
    LinearBetaSchedule,
    Schedule,
)
from ddim_keras.presets import ddpm_names, openai_checkpoints, weight_files
from ddim_keras.presets.diffusers import Published
from ddim_keras.presets.openai_checkpoints import Told
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.support import files
from ddim_keras.support.arguments import height_and_width, positive_int
from ddim_keras.support.configurable import resolve
from ddim_keras.support.types import Config

# The size at which the published networks attend.
_ATTENDED_SIZE = 16
_AVERAGES = (
    *("ema", "ema_state_dict", "model_ema", "ema_model", "state_dict_ema", "model_state_dict_ema"),
    "ema_model_state_dict",
)
_WEIGHTS = ("state_dict", "model_state_dict", "model", "net_model")
# Where an average's own state has the weights.
_INSIDE = ("shadow", "shadow_params", "module", "state_dict", "model", "params")
# What parallel training and compiling put before the names.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
# A weight that each network has, by which it is found within a larger model, as Lightning saves it.
_FIRST = re.compile(r"((?:\w+\.)*)(?:conv_in|input_blocks\.0\.0)\.weight")
# Parts of the names of an average, and of what an average is made of.
_OF_AVERAGES, _OF_TRAINING = {"ema", "average", "averaged", "avg", "shadow", "swa"}, {"online"}
# What weights of other networks are called, wherever in a model they are, and what those have that
# `ddpm_unet` does not.
_OTHERS = (
    (r"map_layer0\.", "of EDM", "other noise levels, and sums scaled in each block"),
    (r"all_modules\.", "of score_sde", "other noise levels and filters that resize"),
    (r"(enc|dec)\.\d+x\d+", "of EDM", "other noise levels and resizing filters"),
    (
        r"diffusion_model\.input_blocks\.|first_stage_model\.",
        "of latent diffusion",
        "an autoencoder",
    ),
    (
        r"(init_conv|downs\.\d+|final_conv)\.",
        "of denoising-diffusion-pytorch",
        "linear attention and other blocks",
    ),
    (r"(down|up)blocks\.\d", "of pytorch-ddpm", "other blocks"),
)


def schedule_of_times(name: str, num_times: int) -> Schedule:
    """Return a schedule of T times as improved-diffusion and guided-diffusion name it: "linear",
    whose betas shrink as T grows, or "cosine".

    Raises:
        ValueError: another name, or no such T.

    Examples:

    >>> schedule_of_times("linear", 4000)
    LinearBetaSchedule(num_times=4000, min_beta=2.5e-05, max_beta=0.005)
    """
    if name == "linear":
        scale = 1000.0 / positive_int("num_times", num_times)
        return LinearBetaSchedule(num_times, scale * 1e-4, scale * 0.02)
    if name == "cosine":
        return CosineBetaSchedule(num_times)
    raise ValueError(f'schedule must be "linear" or "cosine", got {name!r}')


def read(
    path: str | os.PathLike,
    told: Told,
    schedule: str | Schedule | Config = "linear_beta",
) -> Published:
    """Read a checkpoint, `.ckpt`, `.pth`, `.pt` or `.safetensors`; the averaged weights where it
    has some.

    Args:
        path: of the file.
        told: what the weights do not tell. The DDIM paper's need `image_size` at most; None takes
            the size whose attention is at 16 x 16, as in all published ones.
        schedule: of the training, of T times.

    Raises:
        ValueError: the file is damaged, holds more than weights, or weights of another network.
        ImportError: PyTorch is needed and missing.
    """
    path = files.expanded(path)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder: give a file of it; what diffusers wrote is read by "
            "DiffusionModel.from_diffusers"
        )
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    given = resolve(schedule, Schedule, SCHEDULES)
    if given.num_times is None:
        raise ValueError(f"such networks are trained on a schedule of T times, got {given!r}")
    arrays = averaged_weights(path)
    _refuse_others(arrays, path)
    arrays = _of_the_network(arrays, path)
    if openai_checkpoints.is_of_them(arrays):
        settings, arrays, naming = openai_checkpoints.read(arrays, told, given.num_times, path)
        defaults = SamplingDefaults(50, "ddim", "leading", "static")
    else:
        if unused := [name for name in _ONLY_OPENAI if getattr(told, name)]:
            raise ValueError(f"the DDIM paper's network has no choice of {', '.join(unused)}")
        arrays.pop("logvar", None)  # a constant of the training
        settings, naming = _settings(arrays, path, told.image_size), ddpm_names.AUTHORS
        defaults = SamplingDefaults(50, "ddim", "leading")
    config: Config = {
        "num_classes": settings.get("num_classes"),
        "image_size": settings["image_shape"][:2],
        "channels": settings["image_shape"][2],
        "network": settings,
        "schedule": given,
        "parameterization": NoiseParameterization(),
        "pixels": "symmetric",
        "sampling_defaults": defaults,
    }
    return Published(config, arrays, naming, str(path))


_ONLY_OPENAI = ("heads", "head_channels", "new_attention_order", "null_class")


def _refuse_others(arrays: weight_files.Arrays, path: pathlib.Path) -> None:
    """Raise ValueError for the weights of networks that are known, but not to `ddpm_unet`."""

    def has(pattern: str) -> bool:
        return any(re.match(rf"(?:\w+\.)*(?:{pattern})", name) for name in arrays)

    if has(r"down_blocks\.\d"):
        raise ValueError(
            f"{path} holds the weights of a network of diffusers', without its configuration: give "
            "the folder of the pipeline, which save_pretrained writes, instead of the file "
            "(DiffusionModel.from_diffusers)"
        )
    for pattern, whose, reason in _OTHERS:
        if has(pattern):
            raise ValueError(
                f"{path} holds a network {whose}, which has {reason}: only those of the DDIM "
                "paper, improved-diffusion and guided-diffusion can be read"
            )


def _of_the_network(arrays: weight_files.Arrays, path: pathlib.Path) -> weight_files.Arrays:
    """The weights of the network within those of a larger model, such as PyTorch Lightning's, by
    their own names; of its average, where there is one.

    Raises:
        ValueError: there are several networks, and which of them is meant is not clear.
    """
    found = (_FIRST.fullmatch(name) for name in arrays)
    places = sorted({match[1] for match in found if match})
    averages = [place for place in places if _is_average(place)]
    chosen = averages if len(places) > 1 and averages else places
    if len(chosen) > 1:
        raise ValueError(
            f"{path} holds several networks, whose names begin with {chosen}: which of them is "
            "meant is not clear. Save the one by itself"
        )
    if not chosen or (len(places) == 1 and not chosen[0]):
        return arrays
    own = {
        name.removeprefix(chosen[0]): array
        for name, array in arrays.items()
        if name.startswith(chosen[0])
    }
    # Vectors are constants of the training, betas say.
    others = sorted(
        name
        for name, array in arrays.items()
        if array.ndim > 1 and not any(name.startswith(place) for place in places)
    )
    if others:
        warnings.warn(
            f"of the weights of {path} those are taken whose names begin with {chosen[0]!r}: "
            f"{len(others)} others are left out, {', '.join(others[:3])}, ...",
            stacklevel=4,
        )
    return own


def _is_average(place: str) -> bool:
    parts = set(re.split(r"[._]", place))
    return bool(parts & _OF_AVERAGES) and not parts & _OF_TRAINING


def averaged_weights(path: pathlib.Path) -> weight_files.Arrays:
    """The averaged weights of a checkpoint, or the weights; without what parallel training and
    compiling put before their names.
    """
    found = weight_files.read(path)
    keys = sorted(map(str, found)) if isinstance(found, dict) else []
    if isinstance(found, list):  # weights, the optimizer's state, epoch, step, and the average
        parts = [part for part in found if weight_files.is_arrays(part)]
        found = parts[-1] if parts else None
    elif isinstance(found, dict) and not weight_files.is_arrays(found):
        averages = {
            name: part
            for name in _AVERAGES
            if isinstance(part := found.get(name), (dict, list)) and part
        }
        averaged = [part for each in averages.values() if (part := _inside(each))]
        trained = [part for name in _WEIGHTS if weight_files.is_arrays(part := found.get(name))]
        if averages and trained and not averaged:
            warnings.warn(
                f"the averaged weights of {path}, {', '.join(averages)}, have no names, as in a "
                "list: the weights without averaging are taken",
                stacklevel=4,
            )
        found = next(iter([*averaged, *trained]), None)
    if found is None or not weight_files.is_arrays(found):
        there = f", found {keys[:8]}" if keys else ""
        raise ValueError(
            f"{path} holds no weights by name: expected a checkpoint of a network, weights by name "
            f"or under one of {[*_AVERAGES, *_WEIGHTS]}{there}"
        )
    return {_WRAPPERS.sub("", name): array for name, array in found.items()}


def _inside(average: Any) -> weight_files.Arrays | None:
    """The weights by name in the state of a moving average, or None."""
    if weight_files.is_arrays(average):
        return average
    parts = [average.get(name) for name in _INSIDE] if isinstance(average, dict) else []
    return next((part for part in parts if weight_files.is_arrays(part)), None)


def _settings(arrays: weight_files.Arrays, path: pathlib.Path, image_size: Any) -> Config:
    """The arguments of `ddpm_unet`, from the weights' shapes."""

    def numbers(pattern: str) -> list[int]:
        found = (re.match(pattern, name) for name in arrays)
        return sorted({int(match[1]) for match in found if match})

    levels, depths = numbers(r"down\.(\d+)\."), numbers(r"down\.0\.block\.(\d+)\.")
    attended, attended_up = numbers(r"down\.(\d+)\.attn\."), numbers(r"up\.(\d+)\.attn\.")
    try:
        widths = [arrays[f"down.{level}.block.0.conv1.weight"].shape[0] for level in levels]
        first, features = arrays["conv_in.weight"].shape, arrays["temb.dense.0.weight"].shape[0]
    except KeyError as error:
        widths, missing = [], f"no {error}"
    except IndexError:
        widths, missing = [], "single numbers for weights"
    if not widths or not depths or levels != list(range(len(levels))) or len(first) != 4:
        what = missing if not widths and levels else "no levels down.0, down.1, ..."
        raise ValueError(
            f"{path} holds weights of another network than the DDIM paper's: {what} among "
            f"{sorted(arrays)[:6]}, ..."
        )
    if image_size is None:
        if len(attended) != 1:
            raise ValueError(f"how large the images of {path} are is not clear: give image_size")
        image_size = _ATTENDED_SIZE * 2 ** attended[0]
    return {
        "image_shape": [*height_and_width(image_size), first[1]],
        "widths": widths,
        "block_depth": len(depths),
        "attention_levels": attended,
        "up_attention_levels": attended_up,
        "embedding_features": features,
    }
