"""What the network predicts, and how that is turned into a predicted noise and a predicted image.

All three say the same thing about a noisy image x = signal * image + noise_rate * noise; they
differ in which error the loss sees, and so in how well each noise level is learned.
"""

from __future__ import annotations

import abc

import keras

from ddim_keras.support.configurable import Configurable
from ddim_keras.support.types import Images, Rates


class Parameterization(Configurable, abc.ABC):
    """Base class. `images` and `noises` are (batch, height, width, channels); rates broadcast
    against them.
    """

    @abc.abstractmethod
    def target(
        self, images: Images, noises: Images, signal_rates: Rates, noise_rates: Rates
    ) -> Images:
        """Return what the network should predict, shaped as `images`."""

    @abc.abstractmethod
    def components(
        self, prediction: Images, noisy_images: Images, signal_rates: Rates, noise_rates: Rates
    ) -> tuple[Images, Images]:
        """Return (pred_noises, pred_images) given the network's prediction, each shaped as
        `noisy_images`.
        """

    @abc.abstractmethod
    def image_error_scale(self, signal_rates: Rates, noise_rates: Rates) -> Rates:
        """Return (squared error of the prediction) / (squared error of the predicted image), shaped
        as the rates.
        """


@keras.saving.register_keras_serializable("ddim_keras")
class NoiseParameterization(Parameterization):
    """The network predicts the noise: eps(x). The predicted image is (x - noise_rate eps) /
    signal_rate (DDIM, eq. 9).
    """

    def target(
        self, images: Images, noises: Images, signal_rates: Rates, noise_rates: Rates
    ) -> Images:
        return noises

    def components(
        self, prediction: Images, noisy_images: Images, signal_rates: Rates, noise_rates: Rates
    ) -> tuple[Images, Images]:
        return prediction, (noisy_images - noise_rates * prediction) / signal_rates

    def image_error_scale(self, signal_rates: Rates, noise_rates: Rates) -> Rates:
        return (signal_rates / noise_rates) ** 2


@keras.saving.register_keras_serializable("ddim_keras")
class ImageParameterization(Parameterization):
    """The network predicts the image. The predicted noise is (x - signal_rate image) /
    noise_rate.
    """

    def target(
        self, images: Images, noises: Images, signal_rates: Rates, noise_rates: Rates
    ) -> Images:
        return images

    def components(
        self, prediction: Images, noisy_images: Images, signal_rates: Rates, noise_rates: Rates
    ) -> tuple[Images, Images]:
        return (noisy_images - signal_rates * prediction) / noise_rates, prediction

    def image_error_scale(self, signal_rates: Rates, noise_rates: Rates) -> Rates:
        return keras.ops.ones_like(signal_rates)


@keras.saving.register_keras_serializable("ddim_keras")
class VelocityParameterization(Parameterization):
    """The network predicts v = signal_rate * noise - noise_rate * image (Salimans & Ho 2022,
    appendix D).

    It is well posed at both ends: at pure noise v is minus the image, at the clean end it is the
    noise.
    """

    def target(
        self, images: Images, noises: Images, signal_rates: Rates, noise_rates: Rates
    ) -> Images:
        return signal_rates * noises - noise_rates * images

    def components(
        self, prediction: Images, noisy_images: Images, signal_rates: Rates, noise_rates: Rates
    ) -> tuple[Images, Images]:
        pred_noises = noise_rates * noisy_images + signal_rates * prediction
        pred_images = signal_rates * noisy_images - noise_rates * prediction
        return pred_noises, pred_images

    def image_error_scale(self, signal_rates: Rates, noise_rates: Rates) -> Rates:
        return 1.0 / noise_rates**2


PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "noise": NoiseParameterization,
    "image": ImageParameterization,
    "velocity": VelocityParameterization,
}
