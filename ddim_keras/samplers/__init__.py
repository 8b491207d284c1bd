"""Samplers: how to walk from noise to an image. Each is its update rule; the loop is written once,
in `walk`.
"""

import functools
from collections.abc import Callable

from ddim_keras.diffusion.levels import Levels
from ddim_keras.samplers.adams_bashforth import AdamsBashforth
from ddim_keras.samplers.annealed_langevin import AnnealedLangevin
from ddim_keras.samplers.base import MEMORY, Evaluation, Sampler
from ddim_keras.samplers.ddim import DDIM, DDPM
from ddim_keras.samplers.dpm_solver import DPMSolverMultistep, DPMSolverSinglestep
from ddim_keras.samplers.fitted import FittedSampler, fit
from ddim_keras.samplers.heun import Heun
from ddim_keras.samplers.planning import Plan, plan, table_of
from ddim_keras.samplers.starts import GaussianStart
from ddim_keras.samplers.two_step import (
    BDIA,
    OBELM,
    TWO_STEP_RULES,
    TwoStepRule,
    on_lattice,
    plan_pairs,
    walk_pairs,
)
from ddim_keras.samplers.unipc import UniPC
from ddim_keras.samplers.walking import (
    Conditions,
    Denoiser,
    evaluation,
    walk,
    walk_written_out,
)

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "ddpm_large": functools.partial(DDPM, variance="large"),
    "heun": Heun,
    "dpm_solver_2m": DPMSolverMultistep,
    "dpm_solver_2m_sde": functools.partial(DPMSolverMultistep, stochastic=True),
    "dpm_solver_2s": DPMSolverSinglestep,
    "adams_bashforth": AdamsBashforth,
    "ipndm": functools.partial(AdamsBashforth, warm_up=False, even_steps=True),
    "unipc": UniPC,
    "annealed_langevin": AnnealedLangevin,
}

__all__ = [
    "BDIA",
    "DDIM",
    "DDPM",
    "MEMORY",
    "OBELM",
    "SAMPLERS",
    "TWO_STEP_RULES",
    "AdamsBashforth",
    "AnnealedLangevin",
    "Conditions",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "Denoiser",
    "Evaluation",
    "FittedSampler",
    "GaussianStart",
    "Heun",
    "Levels",
    "Sampler",
    "TwoStepRule",
    "UniPC",
    "Plan",
    "on_lattice",
    "evaluation",
    "fit",
    "plan",
    "plan_pairs",
    "table_of",
    "walk",
    "walk_pairs",
    "walk_written_out",
]
