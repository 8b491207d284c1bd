"""The unified predictor-corrector."""

from __future__ import annotations

import keras
import numpy as np

from ddim_keras.diffusion.levels import Levels
from ddim_keras.samplers.base import MEMORY, Evaluation, Sampler
from ddim_keras.support.types import Array, Config

# The sum of the images' weights in a step. Small steps are below 2; where steps grow fast, the
# order is lowered.
_LARGEST_WEIGHTS = 3.0


@keras.saving.register_keras_serializable("ddim_keras")
class UniPC(Sampler):
    """A multistep predictor like DPM-Solver++'s, and a corrector that costs nothing: the image
    predicted at the end of a step first corrects that step, then starts the next one. One
    evaluation a step.

        x_s = (b'/b) x_t + a' (1 - exp(-h)) (pred_image + sum of rho_k D_k)
        D_k = (pred_image_k - pred_image) / r_k,  r_k = (lambda_k - lambda) / h

    over the images predicted before t (predictor), and at s as well (corrector); rho solves a small
    linear system.

    Args:
        predictor_order: 1 to 3, the number of images that the predictor uses. The corrector makes
            the order one higher.

    The last step to the clean image is DDIM's, as lambda is infinite there; the order falls to it
    by one a step.

    Raises:
        ValueError: an order that is not 1, 2 or 3.

    Source: Zhao et al. 2023, "UniPC", with B(h) = exp(h) - 1, for predicted images.

    Examples:

    >>> UniPC().order, UniPC().evaluations(10)
    (3, 10)
    """

    def __init__(self, predictor_order: int = 2):
        if predictor_order not in range(1, MEMORY + 1):
            raise ValueError(f"predictor_order must be 1, 2 or 3, got {predictor_order!r}")
        self.predictor_order = int(predictor_order)
        self.order = self.predictor_order + 1

    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        (signal, next_signal), (noise, next_noise) = (rates[index : index + 2] for rates in levels)
        # The corrected x_t is x_t plus these weights of the images predicted here and before, the
        # latest first.
        correction = np.zeros(MEMORY + 1)
        if index > 0:
            previous = self._weights(levels, index - 1)
            correction[1:] -= previous[:-1]
            correction += self._weights(levels, index - 1, corrector=True)
        weight_of_x = next_noise / noise
        images = self._weights(levels, index) + weight_of_x * correction
        images[0] += weight_of_x * signal
        return [
            Evaluation(
                signal, noise, image=images[0], noise=weight_of_x * noise, remembered=images[1:]
            )
        ]

    def _weights(self, levels: Levels, index: int, corrector: bool = False) -> Array:
        """Return the weights of the predicted images in step `index`, the latest first; x_t's own
        is (b'/b).

        The corrector's first is the weight of the image predicted at the end of the step.
        """
        order = min(self.predictor_order, index + 1)
        if (
            levels.noise_rates[-1] == 0.0
        ):  # towards the end few steps are left for an error to even out
            order = min(order, len(levels.noise_rates) - 1 - index)
        while True:
            weights = self._weights_of_order(order, levels, index, corrector)
            if order <= 1 or np.abs(weights).sum() <= _LARGEST_WEIGHTS:
                return weights
            order -= 1

    @classmethod
    def _weights_of_order(cls, order: int, levels: Levels, index: int, corrector: bool) -> Array:
        (signal, next_signal), (noise, next_noise) = (rates[index : index + 2] for rates in levels)
        whole = next_signal - next_noise * signal / noise  # a' (1 - exp(-h))
        weights = np.zeros(MEMORY + 1)
        half_log_snr = levels.half_log_snr
        length = half_log_snr[index + 1] - half_log_snr[index]
        base = 1 if corrector else 0  # where the image predicted at the step's start stands
        weights[base] = whole
        if not np.isfinite(length):
            return weights
        earlier = half_log_snr[index - order + 1 : index][::-1]
        places = (earlier[np.isfinite(earlier)] - half_log_snr[index]) / length
        positions = base + 1 + np.arange(len(places))
        if corrector:
            places, positions = np.append(places, 1.0), np.append(positions, 0)
        if not len(places):
            return weights
        rho = np.array([0.5]) if len(places) == 1 else cls._solve(places, length)
        for coefficient, position in zip(whole * rho / places, positions):
            weights[position] += coefficient
            weights[base] -= coefficient
        return weights

    @staticmethod
    def _solve(places: Array, length: float) -> Array:
        """Return the rho for which the step is exact where the image is a polynomial in lambda."""
        scale = np.expm1(-length)
        phi = scale / -length - 1.0
        moments = []
        factorial = 1.0
        for power in range(1, len(places) + 1):
            factorial *= power
            moments.append(phi * factorial / scale)
            phi = phi / -length - 1.0 / (factorial * (power + 1))
        return np.linalg.solve(np.vander(places, increasing=True).T, np.array(moments))

    def get_config(self) -> Config:
        return {"predictor_order": self.predictor_order}
