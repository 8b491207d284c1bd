"""Loss weightings: how much each noise level counts in the training loss.

But for the uniform one, each is defined by the weight it gives to the squared error of the
predicted *image*, divided by the parameterization's `image_error_scale`, so that a weighting means
the same thing whatever the network predicts.
"""

from __future__ import annotations

import abc

import keras
from keras import ops

from ddim_keras.diffusion.parameterizations import Parameterization
from ddim_keras.support.configurable import Configurable
from ddim_keras.support.types import Config, Rates


class Weighting(Configurable, abc.ABC):
    """Base class: `weighting(signal_rates, noise_rates, parameterization)` multiplies each image's
    loss.
    """

    @abc.abstractmethod
    def __call__(
        self, signal_rates: Rates, noise_rates: Rates, parameterization: Parameterization
    ) -> Rates:
        """Return weights on the loss of the network's own prediction, shaped as the rates."""


class ImageErrorWeighting(Weighting):
    """Base class of the weightings that say how much the squared error of the predicted image
    counts.
    """

    def __call__(
        self, signal_rates: Rates, noise_rates: Rates, parameterization: Parameterization
    ) -> Rates:
        weights = self.image_weights((signal_rates / noise_rates) ** 2)
        return weights / parameterization.image_error_scale(signal_rates, noise_rates)

    @abc.abstractmethod
    def image_weights(self, signal_to_noise: Rates) -> Rates:
        """Return the weight of the squared image error at a signal-to-noise ratio signal_rate^2 /
        noise_rate^2.
        """


@keras.saving.register_keras_serializable("ddim_keras")
class UniformWeighting(Weighting):
    """No weighting: the loss of the network's own prediction counts the same at every noise level
    (DDPM's L_simple).
    """

    def __call__(
        self, signal_rates: Rates, noise_rates: Rates, parameterization: Parameterization
    ) -> Rates:
        return ops.ones_like(signal_rates)


@keras.saving.register_keras_serializable("ddim_keras")
class MinSNRWeighting(ImageErrorWeighting):
    """min(SNR, gamma): nearly clean images, whose remaining error is invisible, do not drown the
    others.

    Args:
        gamma: the signal-to-noise ratio above which the weight stops growing; positive.

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy".
    """

    def __init__(self, gamma: float = 5.0):
        if gamma <= 0:
            raise ValueError(f"gamma must be positive, got {gamma}")
        self.gamma = float(gamma)

    def image_weights(self, signal_to_noise: Rates) -> Rates:
        return ops.minimum(signal_to_noise, self.gamma)

    def get_config(self) -> Config:
        return {"gamma": self.gamma}


@keras.saving.register_keras_serializable("ddim_keras")
class SigmoidWeighting(ImageErrorWeighting):
    """SNR * sigmoid(bias - log SNR), that is sigmoid(bias - log SNR) on the squared noise error.

    Args:
        bias: log-SNR at which the weight of the noise error has fallen to one half.

    Source: Kingma & Gao 2023, "Understanding Diffusion Objectives as the ELBO with Simple Data
    Augmentation".
    """

    def __init__(self, bias: float = 2.0):
        self.bias = float(bias)

    def image_weights(self, signal_to_noise: Rates) -> Rates:
        return signal_to_noise * ops.sigmoid(self.bias - ops.log(signal_to_noise))

    def get_config(self) -> Config:
        return {"bias": self.bias}


WEIGHTINGS: dict[str, type[Weighting]] = {
    "uniform": UniformWeighting,
    "min_snr": MinSNRWeighting,
    "sigmoid": SigmoidWeighting,
}
