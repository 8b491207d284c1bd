"""Clipping: keeping the predicted images within what images can be, at each step of a walk."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from ddim_keras.configurable import Configurable


class Clipping(Configurable, abc.ABC):
    """Base class: a function of predicted images (batch, height, width, channels) with pixels from -1 to 1."""

    @abc.abstractmethod
    def __call__(self, images: Any) -> Any:
        """Return the images brought into [-1, 1]."""


@keras.saving.register_keras_serializable("ddim_keras")
class NoClipping(Clipping):
    """Leaves the predicted images as they are."""

    def __call__(self, images: Any) -> Any:
        return images


@keras.saving.register_keras_serializable("ddim_keras")
class StaticClipping(Clipping):
    """Cuts each pixel off at -1 and 1. Source: Ho, Jain & Abbeel 2020 (their code)."""

    def __call__(self, images: Any) -> Any:
        return ops.clip(images, -1.0, 1.0)


@keras.saving.register_keras_serializable("ddim_keras")
class DynamicClipping(Clipping):
    """Cuts each image off at a quantile of its own magnitudes, and divides by that, if it is above 1.

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

    def __call__(self, images: Any) -> Any:
        magnitudes = ops.reshape(ops.absolute(images), (ops.shape(images)[0], -1))
        limits = ops.maximum(ops.quantile(magnitudes, self.quantile, axis=1), 1.0)
        limits = ops.reshape(limits, (-1, 1, 1, 1))
        return ops.clip(images, -limits, limits) / limits

    def get_config(self) -> dict[str, Any]:
        return {"quantile": self.quantile}


CLIPPINGS: dict[str, Callable[[], Clipping]] = {
    "none": NoClipping,
    "static": StaticClipping,
    "dynamic": DynamicClipping,
}
