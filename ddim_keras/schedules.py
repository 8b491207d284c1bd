"""Diffusion schedules: from a diffusion time to a signal rate and a noise rate.

A schedule is pure mathematics. Given NumPy arrays it computes with NumPy (the samplers do, in float64);
given tensors it computes with `keras.ops` (training does).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from ddim_keras.configurable import Configurable


class Schedule(Configurable):
    """Base class. A schedule is a function from diffusion times to (signal rates, noise rates).

    For images of unit variance, `noisy_images = signal_rates * images + noise_rates * noises` keeps unit variance,
    because signal_rates**2 + noise_rates**2 = 1.
    """

    def __call__(self, diffusion_times: Any) -> tuple[Any, Any]:
        """Return (signal_rates, noise_rates), each shaped as `diffusion_times`.

        Args:
            diffusion_times: array or tensor in [0, 1]; 0 is the image end, 1 the noise end.
        """
        raise NotImplementedError


@keras.saving.register_keras_serializable("ddim_keras")
class AngleSchedule(Schedule):
    """The rates are the cosine and the sine of an angle that grows linearly with time.

        theta(t) = acos(max_signal_rate) + t (acos(min_signal_rate) - acos(max_signal_rate))
        signal_rate = cos theta,  noise_rate = sin theta

    Args:
        min_signal_rate: signal rate at t = 1, in (0, 1). The example's 0.02 leaves 0.04 % of the power to the image.
        max_signal_rate: signal rate at t = 0, in (0, 1) and above `min_signal_rate`.

    Raises:
        ValueError: a rate outside (0, 1), or the minimum not below the maximum.

    Source: the angle form of the cosine schedule of Nichol & Dhariwal (2021), as in the Keras DDIM example.

    Example:

    >>> signal_rates, noise_rates = AngleSchedule()(np.array([0.0, 1.0]))
    >>> signal_rates.round(2).tolist()
    [0.95, 0.02]
    """

    def __init__(self, min_signal_rate: float = 0.02, max_signal_rate: float = 0.95):
        for name, rate in (("min_signal_rate", min_signal_rate), ("max_signal_rate", max_signal_rate)):
            if not 0.0 < rate < 1.0:
                raise ValueError(
                    f"{name} must lie strictly between 0 and 1, got {rate}: at 0 the image could not be recovered from the "
                    "noisy image, at 1 the noise could not"
                )
        if min_signal_rate >= max_signal_rate:
            raise ValueError(
                f"min_signal_rate must be below max_signal_rate, got {min_signal_rate} and {max_signal_rate}: exchange them?"
            )
        self.min_signal_rate = float(min_signal_rate)
        self.max_signal_rate = float(max_signal_rate)

    def __call__(self, diffusion_times: Any) -> tuple[Any, Any]:
        numeric = np if isinstance(diffusion_times, (np.ndarray, np.generic, float, int)) else keras.ops
        start, end = math.acos(self.max_signal_rate), math.acos(self.min_signal_rate)
        angles = start + diffusion_times * (end - start)
        return numeric.cos(angles), numeric.sin(angles)

    def get_config(self) -> dict[str, Any]:
        return {"min_signal_rate": self.min_signal_rate, "max_signal_rate": self.max_signal_rate}


SCHEDULES: dict[str, type[Schedule]] = {"angle": AngleSchedule}
