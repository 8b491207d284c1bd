"""Clipping: keeping the predicted images within what images can be, at each step of a walk."""

from __future__ import annotations

import abc
from collections.abc import Callable

import keras
from keras import ops

from ddim_keras.networks.layers import ImageNormalization
from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.support.configurable import Configurable, resolve
from ddim_keras.support.types import Config, Images


class Clipping(Configurable, abc.ABC):
    """Base class: a function of predicted images (batch, height, width, channels) with pixels from
    -1 to 1.

    Attributes:
        fits_noises: whether the predicted noises are then made to fit the images, so that both
            together are the noisy image again; otherwise they stay as predicted.
    """

    fits_noises: bool = True

    @abc.abstractmethod
    def __call__(self, images: Images) -> Images:
        """Return the images brought into [-1, 1]."""


@keras.saving.register_keras_serializable("ddim_keras")
class NoClipping(Clipping):
    """Leaves the predicted images as they are."""

    def __call__(self, images: Images) -> Images:
        return images


@keras.saving.register_keras_serializable("ddim_keras")
class StaticClipping(Clipping):
    """Cuts each pixel off at -1 and 1. Source: Ho, Jain & Abbeel 2020 (their code)."""

    def __call__(self, images: Images) -> Images:
        return ops.clip(images, -1.0, 1.0)


@keras.saving.register_keras_serializable("ddim_keras")
class ImageOnlyClipping(Clipping):
    """Cuts each pixel off at -limit and limit, and leaves the predicted noises as they were.

    What diffusers' `DDIMScheduler` does with `clip_sample`. The noisy image of the next step then
    differs from what was predicted wherever something was cut off.

    Args:
        limit: positive.

    Examples:

    >>> float(ops.max(ImageOnlyClipping(0.5)(ops.ones((1, 2, 2, 1)))))
    0.5
    """

    fits_noises = False

    def __init__(self, limit: float = 1.0):
        if not limit > 0.0:
            raise ValueError(f"limit must be positive, got {limit}")
        self.limit = float(limit)

    def __call__(self, images: Images) -> Images:
        return ops.clip(images, -self.limit, self.limit)

    def get_config(self) -> Config:
        return {"limit": self.limit}


@keras.saving.register_keras_serializable("ddim_keras")
class DynamicClipping(Clipping):
    """Cuts each image off at a quantile of its own magnitudes, and divides by that, if it is above
    1.

    Args:
        quantile: in (0, 1).

    Source: Saharia et al. 2022 ("Imagen"), dynamic thresholding.

    Examples:

    >>> images = DynamicClipping()(ops.ones((1, 2, 2, 1)) * 3.0)
    >>> float(ops.max(images))
    1.0
    """

    def __init__(self, quantile: float = 0.995):
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
        self.quantile = float(quantile)

    def __call__(self, images: Images) -> Images:
        magnitudes = ops.reshape(ops.absolute(images), (ops.shape(images)[0], -1))
        limits = ops.maximum(ops.quantile(magnitudes, self.quantile, axis=1), 1.0)
        limits = ops.reshape(limits, (-1, 1, 1, 1))
        return ops.clip(images, -limits, limits) / limits

    def get_config(self) -> Config:
        return {"quantile": self.quantile}


CLIPPINGS: dict[str, Callable[[], Clipping]] = {
    "none": NoClipping,
    "static": StaticClipping,
    "dynamic": DynamicClipping,
    "image_only": ImageOnlyClipping,
}


class Clipped(Wrapper):
    """A denoiser with the predicted images clipped, and the predicted noises made to fit them if
    the clipping says so.

    Args:
        clipping: of images from -1 to 1.
        normalizer: says which images those are.
    """

    def __init__(self, clipping: Clipping, normalizer: ImageNormalization):
        self.clipping, self.normalizer = clipping, normalizer
        self.key = ("clipped", type(clipping), repr(clipping))

    def wrap(self, denoise, arrays, draw_noises):
        def clipped(noisy_images, noise_rates, signal_rates, conditions):
            pred_noises, pred_images = denoise(noisy_images, noise_rates, signal_rates, conditions)
            deviation, mean = self.normalizer.standard_deviation(), self.normalizer.mean
            pred_images = self.clipping(2.0 * (mean + pred_images * deviation) - 1.0)
            pred_images = ((pred_images + 1.0) / 2.0 - mean) / deviation
            if self.clipping.fits_noises:
                pred_noises = (noisy_images - signal_rates * pred_images) / noise_rates
            return pred_noises, pred_images

        return clipped


def clipped(clipping: str | Clipping, normalizer: ImageNormalization) -> list[Wrapper]:
    """Return what clips a denoiser as a user says: nothing for "none"."""
    chosen = resolve(clipping, Clipping, CLIPPINGS)
    return [] if isinstance(chosen, NoClipping) else [Clipped(chosen, normalizer)]
