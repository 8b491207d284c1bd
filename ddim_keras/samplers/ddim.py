"""The samplers of the paper, from deterministic DDIM to ancestral DDPM."""

from __future__ import annotations

import keras
import numpy as np

from ddim_keras.diffusion.forward import added_variance, posterior_deviation
from ddim_keras.diffusion.levels import Levels
from ddim_keras.samplers.base import Evaluation, Sampler
from ddim_keras.support.arguments import unit_number
from ddim_keras.support.types import Config


@keras.saving.register_keras_serializable("ddim_keras")
class DDIM(Sampler):
    """Denoising diffusion implicit model, eq. 12 with the sigma of eq. 16. First order, one
    evaluation a step.

        sigma = eta (b'/b) sqrt(1 - a^2/a'^2)
        x_s   = a' pred_image + sqrt(b'^2 - sigma^2) pred_noise + sigma z

    where a, b are the signal and noise rates at t, and a', b' those at s < t.

    Args:
        eta: stochasticity in [0, 1]. 0 is DDIM, deterministic given its initial noise; 1 is DDPM.
        variance: "posterior" adds noise of deviation sigma. "large" adds eta sqrt(1 - a^2/a'^2)
            instead, and leaves the rest as it is: at eta = 1 the sigma-hat of the paper's Table 1.
        last_noise_rate: b' of a step to the clean image, in [0, 1): instead of which the walk then
            ends in an image with so much noise, as diffusers' does under `set_alpha_to_one=False`.

    Raises:
        ValueError: eta or last_noise_rate out of range, or an unknown variance.

    Source: Song, Meng & Ermon, ICLR 2021.

    Examples:

    >>> levels = Levels(np.array([0.6, 0.8]), np.array([0.8, 0.6]))
    >>> (evaluation,) = DDIM(eta=0.0).step(0, levels)
    >>> float(evaluation.image), float(evaluation.noise), float(evaluation.fresh)
    (0.8, 0.6, 0.0)
    """

    def __init__(self, eta: float = 0.0, variance: str = "posterior", last_noise_rate: float = 0.0):
        self.eta = unit_number("eta", eta, "0 is deterministic DDIM, 1 is DDPM")
        if variance not in ("posterior", "large"):
            raise ValueError(f'variance must be "posterior" or "large", got {variance!r}')
        if not 0.0 <= last_noise_rate < 1.0:
            raise ValueError(f"last_noise_rate must lie in [0, 1), got {last_noise_rate}")
        self.variance = variance
        self.last_noise_rate = float(last_noise_rate)
        self.is_stochastic = self.eta > 0.0
        self.runs_backwards = not self.is_stochastic

    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        (signal, next_signal), (noise, next_noise) = (rates[index : index + 2] for rates in levels)
        if next_noise == 0.0:
            next_noise = self.last_noise_rate
            next_signal = np.sqrt(1.0 - next_noise**2)
        sigma = (
            posterior_deviation(signal, noise, next_signal, next_noise, self.eta)
            if self.eta
            else 0.0
        )
        direction = np.sqrt(max(next_noise**2 - sigma**2, 0.0))
        fresh = float(sigma)
        if self.variance == "large" and next_noise > 0.0:  # the last step adds no noise
            fresh = float(self.eta * np.sqrt(added_variance(signal, next_signal)))
        return [Evaluation(signal, noise, image=next_signal, noise=direction, fresh=fresh)]

    def get_config(self) -> Config:
        last = {"last_noise_rate": self.last_noise_rate} if self.last_noise_rate else {}
        return {"eta": self.eta, "variance": self.variance, **last}


@keras.saving.register_keras_serializable("ddim_keras")
class DDPM(DDIM):
    """Ancestral sampling of a denoising diffusion probabilistic model: `DDIM` at eta = 1. One
    evaluation a step.

    Args:
        variance: "posterior" or "large", as for `DDIM`.

    Source: Ho, Jain & Abbeel 2020.

    Examples:

    >>> DDPM().eta
    1.0
    """

    def __init__(self, variance: str = "posterior"):
        super().__init__(eta=1.0, variance=variance)

    def get_config(self) -> Config:
        return {"variance": self.variance}
