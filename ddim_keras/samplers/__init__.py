"""Samplers: how to walk from noise to an image. Each is its update rule; the loop is written once, in `walk`."""

from ddim_keras.samplers.base import Sampler, Step, step_table, walk
from ddim_keras.samplers.ddim import DDIM

SAMPLERS: dict[str, type[Sampler]] = {"ddim": DDIM}

__all__ = ["DDIM", "SAMPLERS", "Sampler", "Step", "step_table", "walk"]
