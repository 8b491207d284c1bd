"""Levels: the noise levels that a walk visits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddim_keras.support.types import Array


class Levels(NamedTuple):
    """The noise levels that a walk visits, in its order, steps + 1 of each. Float64.

    Attributes:
        signal_rates, noise_rates: a and b, such that x = a image + b noise. (1, 0) is the clean
            image.
    """

    signal_rates: Array
    noise_rates: Array

    @property
    def ratios(self) -> Array:
        """r = b / a, the time of the ODE d(x/a) = pred_noise dr (eq. 13); infinite where nothing of
        the image is left.
        """
        with np.errstate(divide="ignore"):
            return self.noise_rates / self.signal_rates

    @property
    def half_log_snr(self) -> Array:
        """lambda = log(a / b), the time of DPM-Solver; infinite at the clean image."""
        with np.errstate(divide="ignore"):
            return np.log(self.signal_rates) - np.log(self.noise_rates)
