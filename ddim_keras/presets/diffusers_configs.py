"""Configurations of diffusers' `UNet2DModel` in this library's terms, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ddim_keras.networks.ddpm_unet import attended_widths
from ddim_keras.support.arguments import height_and_width, is_number, positive_int, truth
from ddim_keras.support.types import Config

# The version whose format is written.
VERSION = "0.42.1"

# What `UNet2DModel` takes where its configuration does not say.
_NETWORK: Mapping[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# What `EMAModel` of diffusers' notes in the configuration of a network that it writes.
_OF_AVERAGES = (
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"),
    *("inv_gamma", "power"),
)
# What these are, where a configuration says them.
_WHOLE = (
    *("in_channels", "out_channels", "layers_per_block", "norm_num_groups"),
    *("attention_head_dim", "attn_norm_num_groups", "time_embedding_dim", "num_class_embeds"),
)
_OPTIONAL = _WHOLE[4:]
_NUMBERS = ("freq_shift", "mid_block_scale_factor", "dropout", "norm_eps")
_SWITCHES = ("center_input_sample", "flip_sin_to_cos", "add_attention")
_LISTS = ("block_out_channels", "down_block_types", "up_block_types")
# Block -> (has attention, is halved or doubled by a residual block; None as its setting says).
_BLOCKS: Mapping[str, tuple[bool, bool | None]] = {
    "DownBlock2D": (False, False),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, True),
    "UpBlock2D": (False, False),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, True),
}


def network_settings(config: Config, image_size: Any = None) -> Config:
    """Return the arguments of `ddpm_unet` for a configuration of `UNet2DModel`.

    Args:
        config: unet/config.json.
        image_size: instead of its sample_size.

    Raises:
        ValueError: a setting that has no counterpart; names it.
    """
    if (kind := config.get("_class_name", "UNet2DModel")) != "UNet2DModel":
        raise ValueError(f"the network is a {kind}: only UNet2DModel can be read")
    given = {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in _OF_AVERAGES
    }
    unknown = [name for name in set(given) - set(_NETWORK) if given[name] is not None]
    if unknown:
        raise ValueError(f"the network has settings that are not known here: {sorted(unknown)}")
    said = {**_NETWORK, **given}
    _refuse_kinds(said)
    _refuse_others(said)
    size = said["sample_size"] if image_size is None else image_size
    if size is None:
        raise ValueError("the network's configuration has no sample_size: give image_size")
    levels = len(said["block_out_channels"])
    down = _attended(said["down_block_types"], said["downsample_type"], "Down")
    up = _attended(said["up_block_types"], said["upsample_type"], "Up")
    if not len(down) == len(up) == levels:
        raise ValueError(
            "block_out_channels, down_block_types and up_block_types must have the same number, "
            f"got {levels}, {len(down)} and {len(up)}"
        )
    groups = said["attn_norm_num_groups"]
    if groups is None and said["resnet_time_scale_shift"] == "scale_shift":
        groups = 0
    return {
        "image_shape": [*height_and_width(size), said["in_channels"]],
        "widths": list(said["block_out_channels"]),
        "block_depth": said["layers_per_block"],
        "attention_levels": [level for level in range(levels) if down[level][0]],
        "up_attention_levels": [level for level in range(levels) if up[-1 - level][0]],
        "middle": said["mid_block_type"] is not None,
        "middle_attention": bool(said["add_attention"]),
        "middle_groups": groups,
        "middle_scale": said["mid_block_scale_factor"],
        "head_channels": said["attention_head_dim"],
        "dropout": said["dropout"],
        "padding": "after" if said["downsample_padding"] == 0 else "around",
        "residual_halvings": [level for level in range(levels - 1) if down[level][1]],
        "residual_doublings": [level for level in range(1, levels) if up[-1 - level][1]],
        "conditioning": "add" if said["resnet_time_scale_shift"] == "default" else "scale_shift",
        "groups": said["norm_num_groups"],
        "epsilon": said["norm_eps"],
        "embedding_features": said["time_embedding_dim"],
        "cosines_first": bool(said["flip_sin_to_cos"]),
        "frequency_shift": said["freq_shift"],
        "centre_input": bool(said["center_input_sample"]),
        "num_classes": said["num_class_embeds"],
    }


def network_config(settings: Config, has_null: bool) -> Config:
    """Return the configuration of the `UNet2DModel` that a `ddpm_unet` is.

    Raises:
        ValueError: there is none.
    """
    levels = len(settings["widths"])
    up_levels = settings["up_attention_levels"]
    up_levels = settings["attention_levels"] if up_levels is None else up_levels
    down = _blocks(
        "Down",
        range(levels),
        settings["attention_levels"],
        settings["residual_halvings"],
        levels - 1,
    )
    up = _blocks("Up", range(levels)[::-1], up_levels, settings["residual_doublings"], 0)
    height, width, channels = settings["image_shape"]
    default = settings["conditioning"] == "add"
    groups = _middle_groups(settings)
    _refuse_times(settings)
    classes = settings["num_classes"]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels,
        "center_input_sample": settings["centre_input"],
        "time_embedding_type": "positional",
        "time_embedding_dim": settings["embedding_features"],
        "freq_shift": settings["frequency_shift"],
        "flip_sin_to_cos": settings["cosines_first"],
        "down_block_types": down[0],
        "mid_block_type": "UNetMidBlock2D" if settings["middle"] else None,
        "up_block_types": up[0],
        "block_out_channels": settings["widths"],
        "layers_per_block": settings["block_depth"],
        "mid_block_scale_factor": settings["middle_scale"],
        "downsample_padding": 0 if settings["padding"] == "after" else 1,
        "downsample_type": down[1],
        "upsample_type": up[1],
        "dropout": settings["dropout"],
        "act_fn": "silu",
        "attention_head_dim": _head_channels(settings),
        "norm_num_groups": settings["groups"],
        "attn_norm_num_groups": groups or None,
        "norm_eps": settings["epsilon"],
        "resnet_time_scale_shift": "default" if default else "scale_shift",
        "add_attention": settings["middle_attention"],
        "class_embed_type": None,
        "num_class_embeds": None if classes is None else classes + has_null,
        "num_train_timesteps": None,
    }


def _middle_groups(settings: Config) -> int | None:
    """Groups of the attention in the middle; 0 for no normalisation, None for the usual ones."""
    groups, default = settings["middle_groups"], settings["conditioning"] == "add"
    if groups == 0 and default:
        raise ValueError(
            "UNet2DModel has no attention in the middle without normalisation, but with "
            'conditioning="scale_shift"'
        )
    return settings["groups"] if groups is None and not default else groups


def _refuse_times(settings: Config) -> None:
    """Raise ValueError for times that UNet2DModel is not told like that."""
    if settings["time_scale"] != 1.0 or settings["time_features"] not in (
        None,
        settings["widths"][0],
    ):
        raise ValueError(
            "UNet2DModel is told integer times, by as many sines and cosines as its first level is "
            f"wide: not time_scale={settings['time_scale']} and "
            f"time_features={settings['time_features']}"
        )


def _head_channels(settings: Config) -> int | None:
    """Channels of a head, which UNet2DModel has the same at all levels."""
    heads, widths = settings["heads"], attended_widths(settings)
    if heads is None or not widths:
        return settings["head_channels"]
    if len(widths) > 1:
        raise ValueError(
            f"UNet2DModel has heads of one size, but {heads} heads of levels {widths} wide are of "
            "several"
        )
    return widths[0] // heads


def _refuse_kinds(said: Config) -> None:
    """Raise ValueError for a value of another kind than the setting has."""
    for name in _WHOLE:
        if said[name] is not None or name not in _OPTIONAL:
            positive_int(f"the network's {name}", said[name])
    for name in _NUMBERS:
        if not is_number(said[name]) or not math.isfinite(said[name]):
            raise ValueError(f"the network's {name} must be a number, got {said[name]!r}")
    for name in _SWITCHES:
        truth(f"the network's {name}", False if said[name] is None else said[name])
    for name in _LISTS:
        if not isinstance(said[name], (list, tuple)) or not said[name]:
            raise ValueError(f"the network's {name} must be a list, got {said[name]!r}")
    for width in said["block_out_channels"]:
        positive_int("each of the network's block_out_channels", width)


def _refuse_others(said: Config) -> None:
    """Raise ValueError for a value that the network cannot have."""
    if said["in_channels"] != said["out_channels"]:
        raise ValueError(
            f"the network takes {said['in_channels']} channels but returns {said['out_channels']}: "
            "it predicts variances, or is conditioned, which cannot be read"
        )
    allowed: Mapping[str, Sequence[Any]] = {
        "time_embedding_type": ["positional"],
        "mid_block_type": ["UNetMidBlock2D", None],
        "act_fn": ["silu", "swish"],
        "class_embed_type": [None],
        "resnet_time_scale_shift": ["default", "scale_shift"],
        "downsample_padding": [0, 1],
        "downsample_type": ["conv", "resnet"],
        "upsample_type": ["conv", "resnet"],
    }
    for name, values in allowed.items():
        if said[name] not in values:
            raise ValueError(
                f"the network's {name} is {said[name]!r}: only {list(values)} can be read"
            )


def _attended(types: Sequence[str], resizing: str, way: str) -> list[tuple[bool, bool]]:
    """Of each block, whether it has attention and is resized by a residual block."""
    known = sorted(name for name in _BLOCKS if way in name)
    # The first versions of diffusers put this before the names.
    types = [str(name).removeprefix("UNetRes") for name in types]
    for name in types:
        if name not in known:
            raise ValueError(f"the network has a block {name!r}: only {known} can be read")
    parts = [_BLOCKS[name] for name in types]
    is_residual = resizing == "resnet"
    return [(attends, is_residual if own is None else own) for attends, own in parts]


def _blocks(
    way: str, levels: Sequence[int], attended: Sequence[int], residual: Sequence[int], end: int
) -> tuple[list[str], str]:
    """Return the types of the blocks and how those with attention are resized."""
    resized = {level in residual for level in levels if level in attended and level != end}
    if len(resized) > 1:
        raise ValueError(
            "UNet2DModel resizes all levels with attention alike: by convolutions, or by residual "
            "blocks"
        )
    types = []
    for level in levels:
        if level in attended:
            types.append(f"Attn{way}Block2D")
        else:
            types.append(f"Resnet{way}sampleBlock2D" if level in residual else f"{way}Block2D")
    return types, "resnet" if True in resized else "conv"
