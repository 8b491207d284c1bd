"""The sampler of the paper, from deterministic DDIM to ancestral DDPM."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ddim_keras.samplers.base import Sampler, Step


@keras.saving.register_keras_serializable("ddim_keras")
class DDIM(Sampler):
    """Denoising diffusion implicit model, eq. 12 with the sigma of eq. 16.

        sigma = eta (b'/b) sqrt(1 - a^2/a'^2)
        x_s   = a' pred_image + sqrt(b'^2 - sigma^2) pred_noise + sigma z

    where a, b are the signal and noise rates at t, and a', b' those at s < t. First order at eta = 0.

    Args:
        eta: stochasticity in [0, 1]. 0 is DDIM, deterministic given its initial noise; 1 is DDPM.

    Raises:
        ValueError: eta outside [0, 1].

    Source: Song, Meng & Ermon, ICLR 2021.

    Example:

    >>> step = DDIM(eta=0.0).step(0.6, 0.8, 0.8, 0.6)
    >>> float(step.image), float(round(step.noise, 6)), float(step.fresh)
    (0.8, 0.6, 0.0)
    """

    def __init__(self, eta: float = 0.0):
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {eta}: 0 is deterministic DDIM, 1 is DDPM")
        self.eta = float(eta)

    def step(self, signal_rates: Any, noise_rates: Any, next_signal_rates: Any, next_noise_rates: Any) -> Step:
        removed = np.clip(1.0 - (signal_rates / next_signal_rates) ** 2, 0.0, 1.0)
        sigma = self.eta * next_noise_rates / noise_rates * np.sqrt(removed)
        direction = np.sqrt(np.maximum(next_noise_rates**2 - sigma**2, 0.0))
        return Step(image=next_signal_rates, noise=direction, fresh=sigma)

    def get_config(self) -> dict[str, Any]:
        return {"eta": self.eta}
