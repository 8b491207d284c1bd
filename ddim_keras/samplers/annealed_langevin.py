"""Annealed Langevin dynamics, the sampler of score-based models."""

from __future__ import annotations

import keras
import numpy as np

from ddim_keras.diffusion.levels import Levels
from ddim_keras.diffusion.spacings import LogSNRSpacing
from ddim_keras.samplers.base import Evaluation, Sampler
from ddim_keras.support.arguments import positive_int, truth
from ddim_keras.support.types import Array, Config

# Step sizes to choose among. From 4 on the walk diverges.
_SIZES = np.linspace(0.002, 1.0, 500)


@keras.saving.register_keras_serializable("ddim_keras")
class AnnealedLangevin(Sampler):
    """Langevin dynamics at each noise level in turn: several evaluations a step, with fresh noise
    each.

        y <- y + (alpha / 2) score(y) + sqrt(alpha) z,  alpha = step_size r^2
        score(y) = -pred_noise / r,  y = x / a,  r = b / a

    After `steps_per_level` of these the next, lower level follows with the same y. Nothing carries
    an image from level to level but the dynamics, so it takes hundreds of evaluations where DDIM
    takes tens. In y the process is the variance-exploding one of score-based models, whatever the
    schedule; `VarianceExplodingSchedule` trains with its levels.

    Args:
        steps_per_level: evaluations at each level, at least 1. A walk of S steps makes S times as
            many, and one more.
        step_size: of the noise's variance at the level, in (0, 4). None chooses for each level what
            brings points with the noise of the level before nearest to the noise of this one, which
            is technique 4 of Song & Ermon 2020.
        denoise: whether the walk ends with the image predicted at the lowest level
            (Jolicoeur-Martineau et al. 2021). False leaves that level's noise in the images.

    Raises:
        ValueError: a number out of range.

    Source: Song & Ermon 2019 ("NCSN"), algorithm 1, and 2020 ("NCSNv2").

    Examples:

    >>> AnnealedLangevin(steps_per_level=5).evaluations(232)
    1161
    """

    is_stochastic = True
    spacing = LogSNRSpacing()

    def __init__(
        self, steps_per_level: int = 5, step_size: float | None = None, denoise: bool = True
    ):
        self.steps_per_level = positive_int("steps_per_level", steps_per_level)
        if step_size is not None and not 0.0 < step_size < 4.0:
            raise ValueError(
                f"step_size must lie in (0, 4), of the noise's variance, got {step_size}: from 4 "
                "on the walk diverges"
            )
        self.step_size = None if step_size is None else float(step_size)
        self.denoise = truth("denoise", denoise)
        self.evaluations_per_step = self.steps_per_level

    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        signal, noise = (float(rates[index]) for rates in levels)
        next_signal, next_noise = (float(rates[index + 1]) for rates in levels)
        if signal == 0.0:  # nothing to walk on: the first image that the network can draw
            return [Evaluation(signal, noise, image=next_signal, noise=next_noise)]
        size = self.size_at(index, levels)
        kept, fresh = noise * (1.0 - 0.5 * size), noise * np.sqrt(size)
        stay = Evaluation(signal, noise, image=signal, noise=kept, fresh=fresh)
        is_last = next_noise == 0.0
        if is_last and self.denoise:
            end = Evaluation(signal, noise, image=next_signal, noise=0.0)
            return [stay] * self.steps_per_level + [end]
        scale = next_signal / signal
        leave = Evaluation(signal, noise, next_signal, scale * kept, fresh=scale * fresh)
        return [stay] * (self.steps_per_level - 1) + [leave]

    def size_at(self, index: int, levels: Levels) -> float:
        """Return the step size at `levels` number `index`, of the noise's variance there."""
        if self.step_size is not None:
            return self.step_size
        ratios = levels.ratios[levels.noise_rates > 0.0]
        before = max(index, 1)
        if before >= len(ratios):  # a single level
            return float(_SIZES[-1])
        growth = ratios[before - 1] / ratios[before]
        if not np.isfinite(growth):
            return float(_SIZES[-1])
        excess = np.abs(variance_after(_SIZES, growth**2, self.steps_per_level) - 1.0)
        return float(_SIZES[np.argmin(excess)])

    def evaluations(self, diffusion_steps: int) -> int:
        return diffusion_steps * self.steps_per_level + self.denoise

    def get_config(self) -> Config:
        return {
            "steps_per_level": self.steps_per_level,
            "step_size": self.step_size,
            "denoise": self.denoise,
        }


def variance_after(step_size: Array | float, variance: float, steps: int) -> Array:
    """Return the variance of the noise around a point after Langevin steps, in units of the level's
    (Song & Ermon 2020, proposition 3).

    Args:
        step_size: of the level's variance.
        variance: of the noise before.
        steps: how many.

    Examples:

    >>> round(float(variance_after(0.1, 4.0, 1000)), 4)  # forgotten, but for the steps' own error
    1.0256
    """
    limit = 1.0 / (1.0 - 0.25 * step_size)
    return np.asarray((1.0 - 0.5 * step_size) ** (2 * steps) * (variance - limit) + limit)
