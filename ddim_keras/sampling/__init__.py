"""What a trained model is used for: functions of an `Engine`, which `DiffusionModel` has as
methods.
"""

from ddim_keras.sampling.conditioning import conditioning_of
from ddim_keras.sampling.edit import inpaint, variations
from ddim_keras.sampling.encode import encode, reconstruct
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.fitting import fit_sampler
from ddim_keras.sampling.fitting_spacing import fit_spacing
from ddim_keras.sampling.generate import Trajectory, decode, generate, reverse_diffusion
from ddim_keras.sampling.interpolate import interpolate, interpolate_grid
from ddim_keras.sampling.inversion import ConvergenceError, InversionReport
from ddim_keras.sampling.likelihood import LogLikelihood, log_likelihood
from ddim_keras.sampling.pairs import PairLatents
from ddim_keras.sampling.restore import restore
from ddim_keras.sampling.starts import gaussian_start
from ddim_keras.sampling.variational import variational_bound

__all__ = [
    "ConvergenceError",
    "Engine",
    "InversionReport",
    "LogLikelihood",
    "PairLatents",
    "Trajectory",
    "conditioning_of",
    "decode",
    "encode",
    "fit_sampler",
    "fit_spacing",
    "gaussian_start",
    "generate",
    "inpaint",
    "interpolate",
    "interpolate_grid",
    "log_likelihood",
    "reconstruct",
    "restore",
    "reverse_diffusion",
    "variational_bound",
    "variations",
]
