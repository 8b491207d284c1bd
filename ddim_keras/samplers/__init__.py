"""Samplers: how to walk from noise to an image. Each is its update rule; the loop is written once,
in `walk`.
"""

import functools
from collections.abc import Callable

from ddim_keras.diffusion.levels import Levels
from ddim_keras.samplers.adams_bashforth import AdamsBashforth
from ddim_keras.samplers.base import MEMORY, Evaluation, Sampler
from ddim_keras.samplers.ddim import DDIM, DDPM
from ddim_keras.samplers.dpm_solver import DPMSolverMultistep, DPMSolverSinglestep
from ddim_keras.samplers.heun import Heun
from ddim_keras.samplers.planning import Plan, plan, table_of
from ddim_keras.samplers.unipc import UniPC
from ddim_keras.samplers.walking import Conditions, Denoiser, walk

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "ddpm_large": functools.partial(DDPM, variance="large"),
    "heun": Heun,
    "dpm_solver_2m": DPMSolverMultistep,
    "dpm_solver_2m_sde": functools.partial(DPMSolverMultistep, stochastic=True),
    "dpm_solver_2s": DPMSolverSinglestep,
    "adams_bashforth": AdamsBashforth,
    "unipc": UniPC,
}

__all__ = [
    "DDIM",
    "DDPM",
    "MEMORY",
    "SAMPLERS",
    "AdamsBashforth",
    "Conditions",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "Denoiser",
    "Evaluation",
    "Heun",
    "Levels",
    "Sampler",
    "UniPC",
    "Plan",
    "plan",
    "table_of",
    "walk",
]
