"""Configurations of diffusers' `UNet2DModel` and schedulers in this library's terms, and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddim_keras.diffusion.parameterizations import (
    ImageParameterization,
    NoiseParameterization,
    Parameterization,
    VelocityParameterization,
)
from ddim_keras.diffusion.schedules import (
    CosineBetaSchedule,
    GivenBetaSchedule,
    LinearBetaSchedule,
    ScaledLinearBetaSchedule,
    Schedule,
    ZeroTerminalSNRSchedule,
)
from ddim_keras.diffusion.spacings import (
    LeadingSpacing,
    LinearSpacing,
    LinspaceSpacing,
    Spacing,
    TrailingSpacing,
)
from ddim_keras.networks.ddpm_unet import attended_widths
from ddim_keras.samplers import DDIM, DDPM, DPMSolverMultistep
from ddim_keras.sampling.clipping import (
    Clipping,
    DynamicClipping,
    ImageOnlyClipping,
    NoClipping,
)
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.support.arguments import height_and_width
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
# Block -> (has attention, is halved or doubled by a residual block; None as its setting says).
_BLOCKS: Mapping[str, tuple[bool, bool | None]] = {
    "DownBlock2D": (False, False),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, True),
    "UpBlock2D": (False, False),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, True),
}
_PREDICTIONS: Mapping[str, type[Parameterization]] = {
    "epsilon": NoiseParameterization,
    "sample": ImageParameterization,
    "v_prediction": VelocityParameterization,
}
_STEPS = 50  # as in DDIMPipeline


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
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    unknown = [name for name in set(given) - set(_NETWORK) if given[name] is not None]
    if unknown:
        raise ValueError(f"the network has settings that are not known here: {sorted(unknown)}")
    said = {**_NETWORK, **given}
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
        "middle_attention": said["add_attention"],
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
        "cosines_first": said["flip_sin_to_cos"],
        "frequency_shift": said["freq_shift"],
        "centre_input": said["center_input_sample"],
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


def scheduler_settings(config: Config) -> Config:
    """Return the arguments of `DiffusionModel` for the configuration of a scheduler.

    Raises:
        ValueError: the noise levels or the prediction have no counterpart.
    """
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(
            f"the scheduler's prediction_type is {prediction!r}: expected one of "
            f"{sorted(_PREDICTIONS)}"
        )
    if str(config.get("variance_type") or "").startswith("learned"):
        raise ValueError("the network also predicts variances, which cannot be read")
    kind, schedule = config.get("_class_name", "DDPMScheduler"), _schedule(config)
    is_solver = kind == "DPMSolverMultistepScheduler"
    if is_solver and config.get("algorithm_type", "dpmsolver++") == "sde-dpmsolver++":
        sampler: Any = DPMSolverMultistep(stochastic=True)
    elif kind == "DDIMScheduler" and not config.get("set_alpha_to_one", True):
        sampler = DDIM(last_noise_rate=_first_noise_rate(schedule))
    else:
        sampler = {
            "DPMSolverMultistepScheduler": "dpm_solver_2m",
            "UniPCMultistepScheduler": "unipc",
        }
        sampler = sampler.get(kind, "ddim")
    defaults = SamplingDefaults(
        _STEPS, sampler, _spacing(config, kind, is_solver), _clipping(config, kind)
    )
    return {
        "schedule": schedule,
        "parameterization": _PREDICTIONS[prediction](),
        "sampling_defaults": defaults,
        "pixels": "symmetric",
    }


def scheduler_config(
    schedule: Schedule, parameterization: Parameterization, defaults: SamplingDefaults
) -> Config:
    """Return the configuration of a scheduler for what a model was trained with.

    Raises:
        ValueError: diffusers has none for it.
    """
    prediction = [name for name, kind in _PREDICTIONS.items() if type(parameterization) is kind]
    if not prediction:
        raise ValueError(f"diffusers has no scheduler for {parameterization!r}")
    clipping, limit = defaults.clipping, 1.0
    if isinstance(clipping, ImageOnlyClipping):
        limit = clipping.limit
    kind = "DDPMScheduler" if isinstance(defaults.sampler, DDPM) else "DDIMScheduler"
    solver = isinstance(defaults.sampler, DPMSolverMultistep)
    if solver:
        kind = "DPMSolverMultistepScheduler"
    config: Config = {
        "_class_name": kind,
        "_diffusers_version": VERSION,
        **_betas(schedule),
        "prediction_type": prediction[0],
        **_spacing_config(defaults.spacing),
    }
    if not solver:
        config["clip_sample"] = not isinstance(clipping, (NoClipping, type(None), DynamicClipping))
        config["clip_sample_range"] = limit
    if kind == "DDIMScheduler":
        last = getattr(defaults.sampler, "last_noise_rate", 0.0)
        if last and not np.isclose(last, _first_noise_rate(schedule), rtol=1e-6):
            raise ValueError(
                "diffusers' walks end in the clean image or at the first of the noise rates, "
                f"{_first_noise_rate(schedule):.4g}, not at last_noise_rate={last:.4g}"
            )
        config["set_alpha_to_one"] = not last
    return config


def _first_noise_rate(schedule: Schedule) -> float:
    return float(schedule(np.array(schedule.first_time))[1])


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


def _schedule(config: Config) -> Schedule:
    number = config.get("num_train_timesteps", 1000)
    kind = config.get("beta_schedule", "linear")
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    schedule: Any
    if config.get("trained_betas") is not None:
        schedule = GivenBetaSchedule(config["trained_betas"])
    elif kind == "linear":
        schedule = LinearBetaSchedule(number, first, last)
    elif kind == "scaled_linear":
        schedule = ScaledLinearBetaSchedule(number, first, last)
    elif kind == "squaredcos_cap_v2":
        schedule = CosineBetaSchedule(number)
    elif kind == "sigmoid":
        rising = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, number)))
        schedule = GivenBetaSchedule(rising * (last - first) + first)
    else:
        raise ValueError(
            f"the scheduler's beta_schedule is {kind!r}: only linear, scaled_linear, "
            "squaredcos_cap_v2, sigmoid and trained_betas can be read"
        )
    return ZeroTerminalSNRSchedule(schedule) if config.get("rescale_betas_zero_snr") else schedule


def _betas(schedule: Schedule) -> Config:
    if isinstance(schedule, ZeroTerminalSNRSchedule):
        return {**_betas(schedule.schedule), "rescale_betas_zero_snr": True}
    named: dict[type[Schedule], str] = {
        LinearBetaSchedule: "linear",
        ScaledLinearBetaSchedule: "scaled_linear",
    }
    if name := named.get(type(schedule)):
        given = schedule.get_config()
        return {
            "num_train_timesteps": given["num_times"],
            "beta_schedule": name,
            "beta_start": given["min_beta"],
            "beta_end": given["max_beta"],
        }
    if isinstance(schedule, CosineBetaSchedule):
        standard = CosineBetaSchedule(schedule.num_times)
        if schedule.get_config() == standard.get_config():
            return {
                "num_train_timesteps": schedule.num_times,
                "beta_schedule": "squaredcos_cap_v2",
            }
    if isinstance(schedule, GivenBetaSchedule):
        return {"num_train_timesteps": schedule.num_times, "trained_betas": schedule.betas}
    raise ValueError(
        f"diffusers has no betas for {schedule!r}: only models trained on a schedule of T times, "
        'such as "linear_beta", can be written'
    )


def _spacing(config: Config, kind: str, is_solver: bool) -> Spacing:
    """What a scheduler of that kind makes of timestep_spacing."""
    own = {"DPMSolverMultistepScheduler": "linspace", "UniPCMultistepScheduler": "linspace"}
    name = config.get("timestep_spacing", own.get(kind, "leading"))
    if name == "trailing":
        return TrailingSpacing()
    if name == "linspace":
        return LinspaceSpacing(with_first=kind not in own)
    if name == "leading":
        return LeadingSpacing(config.get("steps_offset", 0), with_first=kind not in own)
    raise ValueError(
        f"the scheduler's timestep_spacing is {name!r}: expected leading, trailing or linspace"
    )


def _spacing_config(spacing: Spacing | None) -> Config:
    if isinstance(spacing, LeadingSpacing):
        return {"timestep_spacing": "leading", "steps_offset": spacing.offset}
    if isinstance(spacing, LinspaceSpacing):
        return {"timestep_spacing": "linspace"}
    if type(spacing) in (TrailingSpacing, LinearSpacing, type(None)):
        # Even steps, which end at the last time.
        return {"timestep_spacing": "trailing"}
    warnings.warn(
        f"diffusers has no spacing like {spacing!r}: its place is taken by trailing",
        stacklevel=4,
    )
    return {"timestep_spacing": "trailing"}


def _clipping(config: Config, kind: str) -> Clipping:
    """What a scheduler of that kind makes of clip_sample and thresholding."""
    if config.get("thresholding", False):
        if config.get("sample_max_value", 1.0) == 1.0:  # the largest quantile, and the smallest
            return ImageOnlyClipping(1.0)
        warnings.warn(
            "the scheduler thresholds to a largest value, and leaves the noises: dynamic clipping "
            "without either takes its place",
            stacklevel=4,
        )
        return DynamicClipping(config.get("dynamic_thresholding_ratio", 0.995))
    if kind in ("DDIMScheduler", "DDPMScheduler") and config.get("clip_sample", True):
        return ImageOnlyClipping(config.get("clip_sample_range", 1.0))
    return NoClipping()
