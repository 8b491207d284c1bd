"""Checkpoints of the DDIM paper's code, and of Ho et al.'s networks as converted for it.

Their network is `ddpm_unet`; its sizes are read off the weights.
"""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

from ddim_keras.diffusion.parameterizations import NoiseParameterization
from ddim_keras.diffusion.schedules import LinearBetaSchedule
from ddim_keras.presets import ddpm_names, weight_files
from ddim_keras.presets.diffusers import Published
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.support.arguments import height_and_width
from ddim_keras.support.types import Config

# The size at which the published networks attend.
_ATTENDED_SIZE = 16
_AVERAGES = ("ema", "ema_state_dict", "model_ema")
_WEIGHTS = ("state_dict", "model_state_dict", "model")


def read(path: str | os.PathLike, *, image_size: int | tuple[int, int] | None = None) -> Published:
    """Read a checkpoint, `.ckpt`, `.pth`, `.pt` or `.safetensors`; the averaged weights where it
    has some.

    Args:
        path: of the file.
        image_size: of the network; None takes the size whose attention is at 16 x 16, as in all
            published ones.

    Raises:
        ValueError: the file is damaged, holds more than weights, or weights of another network.
        ImportError: PyTorch is needed and missing.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    arrays = _averaged(weight_files.read(path), path)
    arrays.pop("logvar", None)  # a constant of the training
    settings = _settings(arrays, path, image_size)
    config: Config = {
        "image_size": settings["image_shape"][:2],
        "channels": settings["image_shape"][2],
        "network": settings,
        "schedule": LinearBetaSchedule(),
        "parameterization": NoiseParameterization(),
        "pixels": "symmetric",
        "sampling_defaults": SamplingDefaults(50, "ddim", "leading"),
    }
    return Published(config, arrays, ddpm_names.AUTHORS, str(path))


def _averaged(found: Any, path: pathlib.Path) -> weight_files.Arrays:
    """The averaged weights of a checkpoint, or the weights; without what parallel training puts
    before their names.
    """
    if isinstance(found, list):  # weights, the optimizer's state, epoch, step, and the average
        parts = [part for part in found if weight_files.is_arrays(part)]
        found = parts[-1] if parts else None
    elif isinstance(found, dict) and not weight_files.is_arrays(found):
        named = [found[name] for name in (*_AVERAGES, *_WEIGHTS) if name in found]
        found = next((part for part in named if weight_files.is_arrays(part)), None)
    if found is None or not weight_files.is_arrays(found):
        raise ValueError(f"{path} holds no weights by name: expected a checkpoint of a network")
    return {name.removeprefix("module."): array for name, array in found.items()}


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
        widths = []
        missing = error
    if not widths or not depths or levels != list(range(len(levels))) or len(first) != 4:
        what = f"no {missing}" if not widths and levels else "no levels down.0, down.1, ..."
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
