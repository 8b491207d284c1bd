"""What the network predicts, and how that is turned into a predicted noise and a predicted image.

All three say the same thing about a noisy image x = signal * image + noise_rate * noise; they differ in which error
the loss sees, and so in how well each noise level is learned.
"""

from __future__ import annotations

import abc
from typing import Any

import keras

from ddim_keras.support.configurable import Configurable


class Parameterization(Configurable, abc.ABC):
    """Base class. `images` and `noises` are (batch, height, width, channels); rates broadcast against them."""

    @abc.abstractmethod
    def target(self, images: Any, noises: Any, signal_rates: Any, noise_rates: Any) -> Any:
        """Return what the network should predict, shaped as `images`."""

    @abc.abstractmethod
    def components(self, prediction: Any, noisy_images: Any, signal_rates: Any, noise_rates: Any) -> tuple[Any, Any]:
        """Return (pred_noises, pred_images) given the network's prediction, each shaped as `noisy_images`."""

    @abc.abstractmethod
    def image_error_scale(self, signal_rates: Any, noise_rates: Any) -> Any:
        """Return (squared error of the prediction) / (squared error of the predicted image), shaped as the rates."""


@keras.saving.register_keras_serializable("ddim_keras")
class NoiseParameterization(Parameterization):
    """The network predicts the noise: eps(x). The predicted image is (x - noise_rate eps) / signal_rate (DDIM, eq. 9)."""

    def target(self, images, noises, signal_rates, noise_rates):
        return noises

    def components(self, prediction, noisy_images, signal_rates, noise_rates):
        return prediction, (noisy_images - noise_rates * prediction) / signal_rates

    def image_error_scale(self, signal_rates, noise_rates):
        return (signal_rates / noise_rates) ** 2


@keras.saving.register_keras_serializable("ddim_keras")
class ImageParameterization(Parameterization):
    """The network predicts the image. The predicted noise is (x - signal_rate image) / noise_rate."""

    def target(self, images, noises, signal_rates, noise_rates):
        return images

    def components(self, prediction, noisy_images, signal_rates, noise_rates):
        return (noisy_images - signal_rates * prediction) / noise_rates, prediction

    def image_error_scale(self, signal_rates, noise_rates):
        return keras.ops.ones_like(signal_rates)


@keras.saving.register_keras_serializable("ddim_keras")
class VelocityParameterization(Parameterization):
    """The network predicts v = signal_rate * noise - noise_rate * image (Salimans & Ho 2022, appendix D).

    It is well posed at both ends: at pure noise v is minus the image, at the clean end it is the noise.
    """

    def target(self, images, noises, signal_rates, noise_rates):
        return signal_rates * noises - noise_rates * images

    def components(self, prediction, noisy_images, signal_rates, noise_rates):
        pred_noises = noise_rates * noisy_images + signal_rates * prediction
        pred_images = signal_rates * noisy_images - noise_rates * prediction
        return pred_noises, pred_images

    def image_error_scale(self, signal_rates, noise_rates):
        return 1.0 / noise_rates**2


PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "noise": NoiseParameterization,
    "image": ImageParameterization,
    "velocity": VelocityParameterization,
}
