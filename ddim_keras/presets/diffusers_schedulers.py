"""Configurations of diffusers' schedulers in this library's terms, and back."""

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
from ddim_keras.presets.diffusers_configs import VERSION
from ddim_keras.samplers import DDIM, DDPM, DPMSolverMultistep, Sampler, UniPC
from ddim_keras.sampling.clipping import (
    Clipping,
    DynamicClipping,
    ImageOnlyClipping,
    NoClipping,
    StaticClipping,
)
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.support.arguments import is_number, positive_int, truth
from ddim_keras.support.types import Config

_PREDICTIONS: Mapping[str, type[Parameterization]] = {
    "epsilon": NoiseParameterization,
    "sample": ImageParameterization,
    "v_prediction": VelocityParameterization,
}
_LARGEST_NUM_TIMES = 1_000_000  # each has a noise level, held in memory
_STEPS = 50  # as in DDIMPipeline
_DPM, _UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
# Those whose noise levels are of betas. All but the two solvers are sampled as DDIMPipeline does,
# which makes a DDIMScheduler of them.
_KINDS = (
    *("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "DDPMScheduler"),
    *("DDPMParallelScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler"),
    *("DPMSolverMultistepInverseScheduler", "DEISMultistepScheduler", "SASolverScheduler"),
    *("RePaintScheduler", _DPM, _UNIPC),
)
_SWITCHES = (
    *("predict_epsilon", "set_alpha_to_one", "clip_sample", "thresholding"),
    *("rescale_betas_zero_snr", "use_flow_sigmas"),
)
# What the first versions of diffusers called a setting.
_FORMER = {"timesteps": "num_train_timesteps", "clip_predicted_image": "clip_sample"}
# Settings of the solvers and their values that have a counterpart.
_OF_SOLVERS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    _DPM: {
        "algorithm_type": ["dpmsolver++", "sde-dpmsolver++", "deis"],
        "solver_order": [1, 2],
        "solver_type": ["midpoint", "logrho", "bh1", "bh2"],
        "lambda_min_clipped": [-np.inf],
        "use_lu_lambdas": [False],
    },
    _UNIPC: {
        "solver_order": [1, 2, 3],
        "solver_type": ["bh2", "midpoint", "heun", "logrho"],
        "predict_x0": [True],
        "disable_corrector": [[]],
        "lower_order_final": [True],
    },
}
_OF_BOTH: Mapping[str, Sequence[Any]] = {
    "final_sigmas_type": ["zero"],
    "use_karras_sigmas": [False],
    "use_exponential_sigmas": [False],
    "use_beta_sigmas": [False],
}


def scheduler_settings(config: Config) -> Config:
    """Return the arguments of `DiffusionModel` for the configuration of a scheduler.

    Raises:
        ValueError: the noise levels or the prediction have no counterpart.
    """
    said = {name: value for name, value in config.items() if value is not None}
    said = {new: said[old] for old, new in _FORMER.items() if old in said} | said
    for name in set(_SWITCHES) & set(said):
        truth(f"the scheduler's {name}", said[name])
    kind = said.get("_class_name", "DDPMScheduler")
    if kind not in _KINDS:
        raise ValueError(
            f"the scheduler is a {kind}: only those whose noise levels are of betas can be read, "
            f"{', '.join(sorted(_KINDS))}"
        )
    # predict_epsilon is what the first versions of diffusers called it.
    prediction = said.get("prediction_type", _former_prediction(said))
    if not isinstance(prediction, str) or prediction not in _PREDICTIONS:
        raise ValueError(
            f"the scheduler's prediction_type is {prediction!r}: expected one of "
            f"{sorted(_PREDICTIONS)}"
        )
    if str(said.get("variance_type", "")).startswith("learned"):
        raise ValueError("the network also predicts variances, which cannot be read")
    if said.get("use_flow_sigmas") or said.get("timestep_type") == "continuous":
        raise ValueError(
            "the scheduler has noise levels between the times of its betas (use_flow_sigmas, or a "
            "timestep_type of continuous), which cannot be read"
        )
    schedule = _schedule(said)
    _warn_of_solvers(said, kind)
    _warn_of_strides(said, kind, schedule)
    defaults = SamplingDefaults(
        min(_STEPS, schedule.num_times or _STEPS),
        _sampler(said, kind, schedule),
        _spacing(said, kind),
        _clipping(said, kind),
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
    sampler = defaults.sampler
    kind = "DDPMScheduler" if isinstance(sampler, DDPM) else "DDIMScheduler"
    if isinstance(sampler, DPMSolverMultistep):
        kind = _DPM
    elif isinstance(sampler, UniPC):
        kind = _UNIPC
    _warn_of_sampler(sampler)
    if defaults.samplers:
        warnings.warn(
            "diffusers has no fitted samplers: those of the model are left out", stacklevel=4
        )
    config: Config = {
        "_class_name": kind,
        "_diffusers_version": VERSION,
        **_betas(schedule),
        "prediction_type": prediction[0],
        **_spacing_config(defaults.spacing, kind),
        **_clipping_config(defaults.clipping, kind),
    }
    if isinstance(sampler, DDPM):
        large = sampler.variance == "large"
        config["variance_type"] = "fixed_large" if large else "fixed_small"
    elif isinstance(sampler, DPMSolverMultistep):
        config["algorithm_type"] = "sde-dpmsolver++" if sampler.stochastic else "dpmsolver++"
    elif isinstance(sampler, UniPC):
        config["solver_order"] = sampler.predictor_order
    else:
        last = getattr(sampler, "last_noise_rate", 0.0)
        if last and not np.isclose(last, _first_noise_rate(schedule), rtol=1e-6):
            raise ValueError(
                "diffusers' walks end in the clean image or at the first of the noise rates, "
                f"{_first_noise_rate(schedule):.4g}, not at last_noise_rate={last:.4g}"
            )
        config["set_alpha_to_one"] = not last
    return config


def _warn_of_sampler(sampler: Sampler | None) -> None:
    """Warn of a sampler of the model's own that no scheduler's configuration says."""
    if sampler is None or isinstance(sampler, (DDPM, DPMSolverMultistep, UniPC)):
        return
    if not isinstance(sampler, DDIM) or sampler.variance != "posterior":
        message = f"diffusers has no scheduler like {sampler!r}: its place is taken by DDIM"
    elif sampler.eta:
        message = f"diffusers' DDIMScheduler keeps no eta: give DDIMPipeline eta={sampler.eta}"
    else:
        return
    warnings.warn(message, stacklevel=5)


def _former_prediction(said: Config) -> str:
    return "epsilon" if said.get("predict_epsilon", True) else "sample"


def _first_noise_rate(schedule: Schedule) -> float:
    return float(schedule(np.array(schedule.first_time))[1])


def _schedule(said: Config) -> Schedule:
    number = positive_int("the scheduler's num_train_timesteps", _said(said, "num_train_timesteps"))
    if number > _LARGEST_NUM_TIMES:
        raise ValueError(
            f"the scheduler's num_train_timesteps is {number}: expected at most "
            f"{_LARGEST_NUM_TIMES}, 1000 as a rule"
        )
    kind = said.get("beta_schedule", "linear")
    first, last = (_number(said, name) for name in ("beta_start", "beta_end"))
    schedule: Any
    if "trained_betas" in said:
        given = said["trained_betas"]
        if not isinstance(given, (list, tuple)) or not all(map(is_number, given)):
            raise ValueError("the scheduler's trained_betas must be a list of numbers")
        schedule = GivenBetaSchedule(said["trained_betas"])
        if "num_train_timesteps" in said and schedule.num_times != number:
            raise ValueError(
                f"the scheduler has {schedule.num_times} trained_betas, but num_train_timesteps is "
                f"{number}: they must be as many"
            )
    elif kind == "linear":
        schedule = LinearBetaSchedule(number, first, last)
    elif kind == "scaled_linear":
        schedule = ScaledLinearBetaSchedule(number, first, last)
    elif kind == "squaredcos_cap_v2":
        schedule = CosineBetaSchedule(number)
    elif kind == "sigmoid":
        rising = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, number)))
        schedule = GivenBetaSchedule((rising * (last - first) + first).tolist())
    else:
        raise ValueError(
            f"the scheduler's beta_schedule is {kind!r}: only linear, scaled_linear, "
            "squaredcos_cap_v2, sigmoid and trained_betas can be read"
        )
    return ZeroTerminalSNRSchedule(schedule) if said.get("rescale_betas_zero_snr") else schedule


# What the schedulers take where their configuration does not say.
_DEFAULTS: Config = {
    **{"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    **{"clip_sample_range": 1.0, "sample_max_value": 1.0, "dynamic_thresholding_ratio": 0.995},
}


def _said(said: Config, name: str) -> Any:
    return said.get(name, _DEFAULTS[name])


def _number(said: Config, name: str) -> float:
    value = _said(said, name)
    if not is_number(value) or np.isnan(value):
        raise ValueError(f"the scheduler's {name} must be a number, got {value!r}")
    return float(value)


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


def _warn_of_solvers(said: Config, kind: str) -> None:
    """Warn of what a solver is told that changes where its walks lead, and has no counterpart."""
    if kind not in _OF_SOLVERS:
        return
    if said.get("rescale_betas_zero_snr"):
        warnings.warn(
            f"diffusers' {kind} leaves a trace of the image at the noise end of "
            "rescale_betas_zero_snr, where none is left here: images of few steps differ from "
            "diffusers'",
            stacklevel=6,
        )
    known = {**_OF_SOLVERS[kind], **_OF_BOTH}
    if said.get("algorithm_type") == "sde-dpmsolver++":
        known["solver_order"] = [2]
    others = [name for name in known if name in said and said[name] not in known[name]]
    if others:
        told = ", ".join(f"{name}={said[name]!r}" for name in others)
        warnings.warn(
            f"the {kind} has {told}, which has no counterpart here: the model's own sampler does "
            "without, so its images differ from diffusers'",
            stacklevel=6,
        )


def _warn_of_strides(said: Config, kind: str, schedule: Schedule) -> None:
    """Warn where diffusers' DDIM does not step from one of its times to the next."""
    spacing, times = said.get("timestep_spacing"), schedule.num_times or _STEPS
    steps = min(_STEPS, times)
    strays = {"linspace": steps < times, "trailing": times % steps > 0}
    if kind not in _OF_SOLVERS and strays.get(str(spacing)):
        warnings.warn(
            f"under timestep_spacing={spacing!r} diffusers' DDIMScheduler does not step from one "
            f"of its times to the next, as is done here: images of {steps} steps differ from "
            "DDIMPipeline's",
            stacklevel=6,
        )


def _sampler(said: Config, kind: str, schedule: Schedule) -> Sampler:
    order = said.get("solver_order", 2)
    if kind == _DPM and said.get("algorithm_type") == "sde-dpmsolver++":
        return DPMSolverMultistep(stochastic=True)
    if kind == _DPM:
        return DDIM() if order == 1 else DPMSolverMultistep()
    if kind == _UNIPC:
        return UniPC(order if order in (1, 2, 3) else 2)
    if said.get("set_alpha_to_one", True):
        return DDIM()
    return DDIM(last_noise_rate=_first_noise_rate(schedule))


def _spacing(said: Config, kind: str) -> Spacing:
    """What a scheduler of that kind makes of timestep_spacing."""
    is_solver = kind in _OF_SOLVERS
    name = said.get("timestep_spacing", "linspace" if is_solver else "leading")
    if name == "trailing":
        return TrailingSpacing()
    if name == "linspace":
        return LinspaceSpacing(with_first=not is_solver)
    if name == "leading":
        return LeadingSpacing(said.get("steps_offset", 0), with_first=not is_solver)
    raise ValueError(
        f"the scheduler's timestep_spacing is {name!r}: expected leading, trailing or linspace"
    )


def _spacing_config(spacing: Spacing | None, kind: str) -> Config:
    if type(spacing) in (TrailingSpacing, LinearSpacing, type(None)):
        # Even steps, which end at the last time.
        return {"timestep_spacing": "trailing"}
    if getattr(spacing, "with_first", None) is (kind not in _OF_SOLVERS):
        if isinstance(spacing, LeadingSpacing):
            return {"timestep_spacing": "leading", "steps_offset": spacing.offset}
        if isinstance(spacing, LinspaceSpacing):
            return {"timestep_spacing": "linspace"}
    warnings.warn(
        f"diffusers' {kind} has no spacing like {spacing!r}: its place is taken by trailing",
        stacklevel=5,
    )
    return {"timestep_spacing": "trailing"}


def _clipping(said: Config, kind: str) -> Clipping:
    """What a scheduler of that kind makes of clip_sample and thresholding."""
    is_solver = kind in _OF_SOLVERS
    if said.get("thresholding", False):
        if _number(said, "sample_max_value") == 1.0:  # the largest quantile, and the smallest
            # Solvers go on from the noisy image itself, without the predicted noises.
            return StaticClipping() if is_solver else ImageOnlyClipping(1.0)
        warnings.warn(
            "the scheduler thresholds to a largest value"
            + (": " if is_solver else ", and leaves the noises: ")
            + "dynamic clipping without takes its place",
            stacklevel=6,
        )
        return DynamicClipping(_number(said, "dynamic_thresholding_ratio"))
    if not is_solver and said.get("clip_sample", True):
        return ImageOnlyClipping(_number(said, "clip_sample_range"))
    return NoClipping()


def _clipping_config(clipping: Clipping | None, kind: str) -> Config:
    """What says a clipping to a scheduler of that kind, or one like it."""
    is_solver, is_ddim = kind in _OF_SOLVERS, kind == "DDIMScheduler"
    limit = clipping.limit if isinstance(clipping, ImageOnlyClipping) else 1.0
    clips = not isinstance(clipping, (NoClipping, DynamicClipping, type(None)))
    clips = clips and not (is_solver and limit != 1.0)
    # Only DDIMScheduler leaves the predicted noises as they were.
    same = ImageOnlyClipping if is_ddim else StaticClipping
    if not isinstance(clipping, (same, NoClipping, type(None))):
        noises = "stay as they were" if is_ddim else "are made to fit the images"
        instead = f"the predicted noises {noises} there" if clips else "it is left out"
        warnings.warn(
            f"diffusers' {kind} has no clipping like {clipping!r}: {instead}", stacklevel=5
        )
    if is_solver:
        # The last is for the DDIMScheduler that DDIMPipeline makes of a solver: it clips unless
        # told.
        return {"thresholding": clips, "sample_max_value": 1.0, "clip_sample": False}
    return {"clip_sample": clips, "clip_sample_range": limit}
