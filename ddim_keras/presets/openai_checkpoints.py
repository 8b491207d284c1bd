"""Checkpoints of improved-diffusion (Nichol & Dhariwal 2021) and guided-diffusion (Dhariwal &
Nichol 2021).

Their networks are `ddpm_unet`s. Most of a network is read off the names and shapes of its weights;
what they cannot tell is in `Told`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from ddim_keras.presets import ddpm_names, weight_files
from ddim_keras.support.arguments import height_and_width
from ddim_keras.support.types import Config

_LABELS = "label_emb.weight"
_UP = re.compile(r"output_blocks\.(\d+)\.[12]\.(conv\.weight|in_layers\.0\.weight)")
# PyTorch's own, which theirs have.
_GROUPS, _EPSILON = 32, 1e-5
# The smallest size at which their networks attend, if they do at several.
_SMALLEST_ATTENDED, _ONLY_ATTENDED = 8, 16


class Told(NamedTuple):
    """What the weights do not tell of a network.

    Attributes:
        image_size: None for the one whose lowest attention is at 8 x 8 pixels, or at 16 x 16 if
            only one level has some.
        heads, head_channels: of the attention: their number, or the channels of each.
        new_attention_order: whether the product of the attention holds all queries first, instead
            of queries, keys and values of one head after the other.
        rescaled_times: whether times count as if they were 1000.
        null_class: whether the last of the labels says nothing; else a vector of zeros does.
    """

    image_size: int | tuple[int, int] | None = None
    heads: int | None = None
    head_channels: int | None = None
    new_attention_order: bool = False
    rescaled_times: bool = True
    null_class: bool = False


def is_of_them(arrays: weight_files.Arrays) -> bool:
    """Whether weights have the names of such a checkpoint."""
    return any(name.startswith("input_blocks.") for name in arrays)


def read(
    arrays: weight_files.Arrays, told: Told, num_times: int, source: Any
) -> tuple[Config, weight_files.Arrays, ddpm_names.Naming]:
    """Return the arguments of `ddpm_unet`, the weights that are its own, and their names.

    Args:
        arrays: the weights of a checkpoint.
        told: what they do not tell.
        num_times: T of the training.
        source: where they come from, for the message.

    Raises:
        ValueError: the network is none that can be read, or something is not told; says what.
    """
    _refuse_others(arrays, source)
    settings = _levels(arrays, source)
    settings |= _heads(told, settings, source)
    channels = arrays["input_blocks.0.0.weight"].shape[1]
    settings["image_shape"] = [*_image_size(told, settings, source), channels]
    settings |= {
        "embedding_features": arrays["time_embed.0.weight"].shape[0],
        "time_features": arrays["time_embed.0.weight"].shape[1],
        "time_scale": 1000.0 / num_times if told.rescaled_times else 1.0,
    }
    own = dict(arrays)
    if arrays["out.2.weight"].shape[0] == 2 * channels:  # noises first, then learned variances
        own |= {name: own[name][:channels] for name in ("out.2.weight", "out.2.bias")}
    if _LABELS in own:
        _shape(own, _LABELS, source)
        if not told.null_class:
            own[_LABELS] = np.concatenate([own[_LABELS], np.zeros_like(own[_LABELS][:1])])
        settings["num_classes"] = len(own[_LABELS]) - 1
    elif told.null_class:
        raise ValueError(f"the network of {source} takes no labels: leave null_class out")
    return settings, own, ddpm_names.openai(settings, not told.new_attention_order)


def _refuse_others(arrays: weight_files.Arrays, source: Any) -> None:
    """Raise ValueError for networks of the same names that are none of ours."""
    needed = ("input_blocks.0.0.weight", "time_embed.0.weight", "output_blocks.0.0.in_layers.2")
    lacking = [name for name in needed if not any(each.startswith(name) for each in arrays)]
    if "output_blocks.0.0.in_layers.2" in lacking:
        raise ValueError(
            f"{source} holds half of a U-Net, without output_blocks, as classifiers are: only "
            "denoisers can be read"
        )
    lacking += [name for name in ("out.2.weight", "out.2.bias") if name not in arrays]
    if lacking:
        raise ValueError(f"{source} lacks {', '.join(lacking)}. Nothing was loaded")
    first, last, times = (
        _shape(arrays, name, source)
        for name in ("input_blocks.0.0.weight", "out.2.weight", "time_embed.0.weight")
    )
    if (len(first), len(last), len(times)) != (4, 4, 2):
        raise ValueError(f"{source} holds a network that is not for images: it cannot be read")
    given, made = first[1], last[0]
    if made not in (given, 2 * given) or (given, made) == (6, 6):
        raise ValueError(
            f"the network of {source} takes {given} channels and returns {made}, as one that "
            "enlarges images does: only those that take and return images can be read"
        )
    if any(name.endswith(".qkv.weight") and array.ndim == 4 for name, array in arrays.items()):
        raise ValueError(
            f"{source} holds a network whose attention is made of convolutions along both axes, as "
            "consistency_models' are (cd_, ct_, edm_): they were trained on other noise levels "
            "than betas give, and cannot be read"
        )
    known = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "out.", "label_emb")
    odd = sorted(name for name in arrays if not name.startswith(known))
    if odd:
        raise ValueError(
            f"the network of {source} has parts that are not known: {', '.join(odd[:6])}. Nothing "
            "was loaded"
        )


def _levels(arrays: weight_files.Arrays, source: Any) -> Config:
    """Levels, blocks, attention and resizing."""
    numbers = {
        way: {int(match[1]) for name in arrays if (match := re.match(rf"{way}\.(\d+)\.", name))}
        for way in ("input_blocks", "output_blocks")
    }
    count = 1 + max(numbers["output_blocks"])
    absent = set(range(count)) - numbers["input_blocks"]
    if absent:
        raise ValueError(
            f"the network of {source} has no weights in input_blocks {sorted(absent)}: either it "
            "halves sizes without convolutions (conv_resample=False), which cannot be read, or "
            "weights are missing. Nothing was loaded"
        )
    doubled = {int(match[1]): match[2] for name in arrays if (match := _UP.fullmatch(name))}
    depth = (min(doubled) if doubled else count - 1) or 1
    levels = count // (depth + 1)
    if count != levels * (depth + 1) or sorted(doubled) != [
        depth + step * (depth + 1) for step in range(levels - 1)
    ]:
        raise ValueError(
            f"the network of {source} has {count} output_blocks that double sizes after "
            f"{sorted(doubled)}: only those with as many blocks at each level can be read"
        )

    def attended(way: str, first: int) -> bool:
        return f"{way}.{first}.1.qkv.weight" in arrays

    tops = {level: (levels - 1 - level) * (depth + 1) for level in range(levels)}
    blocks = {level: 1 + level * (depth + 1) for level in range(levels)}
    widths = [
        _shape(arrays, f"input_blocks.{blocks[level]}.0.out_layers.3.weight", source)[0]
        for level in range(levels)
    ]
    told = _shape(arrays, f"input_blocks.{blocks[0]}.0.emb_layers.1.weight", source)[0]
    return {
        "widths": widths,
        "block_depth": depth,
        "attention_levels": [n for n in range(levels) if attended("input_blocks", blocks[n])],
        "up_attention_levels": [n for n in range(levels) if attended("output_blocks", tops[n])],
        "padding": "around",
        "residual_halvings": [
            level
            for level in range(levels - 1)
            if f"input_blocks.{blocks[level] + depth}.0.in_layers.0.weight" in arrays
        ],
        "residual_doublings": [
            level
            for level in range(1, levels)
            if doubled[tops[level] + depth].startswith("in_layers")
        ],
        "conditioning": "scale_shift" if told == 2 * widths[0] else "add",
        "groups": _GROUPS,
        "epsilon": _EPSILON,
        "cosines_first": True,
        "frequency_shift": 0.0,
    }


def _shape(arrays: weight_files.Arrays, name: str, source: Any) -> tuple[int, ...]:
    if name not in arrays:
        raise ValueError(f"{source} lacks {name}. Nothing was loaded")
    if not arrays[name].shape:
        raise ValueError(f"{name} of {source} is a single number. Nothing was loaded")
    return arrays[name].shape


def _heads(told: Told, settings: Config, source: Any) -> Config:
    if (told.heads is None) == (told.head_channels is None):
        raise ValueError(
            f"how many heads the attention of {source} has is not in the file: give heads (4 "
            "unless its flags say otherwise) or head_channels (its flag num_head_channels), one "
            f"of them, got heads={told.heads} and head_channels={told.head_channels}"
        )
    return {"heads": told.heads, "head_channels": told.head_channels}


def _image_size(told: Told, settings: Config, source: Any) -> tuple[int, int]:
    if told.image_size is not None:
        return height_and_width(told.image_size)
    attended = settings["attention_levels"]
    if not attended:
        raise ValueError(f"how large the images of {source} are is not clear: give image_size")
    smallest = _SMALLEST_ATTENDED if len(attended) > 1 else _ONLY_ATTENDED
    return height_and_width(smallest * 2 ** max(attended))
