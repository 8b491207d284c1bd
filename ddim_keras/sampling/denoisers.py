"""Denoisers, and what is put around them.

A denoiser says which noises and which images it sees in noisy images. Everything that steers a walk
takes a denoiser and makes another of it: clipping changes what it returns, inpainting what it is
shown.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Sequence

import keras
from keras import ops

from ddim_keras.diffusion.parameterizations import Parameterization
from ddim_keras.samplers import Denoiser
from ddim_keras.support.types import ImageArray, Images, Tensor


class Wrapper(abc.ABC):
    """Base class: turns a denoiser into another.

    Attributes:
        key: wrappers of equal keys make the same of the same arrays, so that a loop compiled for
            one serves the other.
        arrays: what changes from walk to walk without compiling anew; the first axis is the
            batch's, or all images share it.
    """

    key: Hashable
    arrays: Sequence[ImageArray] = ()

    @abc.abstractmethod
    def wrap(
        self, denoise: Denoiser, arrays: Sequence[Tensor], draw_noises: Callable[[Tensor], Images]
    ) -> Denoiser:
        """Return a denoiser around another.

        Args:
            denoise: (noisy_images, noise_rates, signal_rates, conditions) -> (pred_noises,
                pred_images).
            arrays: this wrapper's, as tensors.
            draw_noises: number -> standard normal noises shaped as the images, fixed by the walk's
                seed and the number.
        """


def network_denoiser(
    network: keras.Model, parameterization: Parameterization, training: bool = False
) -> Denoiser:
    """Return the denoiser that a network of [noisy images, noise levels] is."""

    def denoise(noisy_images, noise_rates, signal_rates, conditions):
        prediction = predict(network, noisy_images, conditions.noise_level, training)
        return parameterization.components(prediction, noisy_images, signal_rates, noise_rates)

    return denoise


def predict(
    network: keras.Model, noisy_images: Images, noise_levels: Tensor, training: bool
) -> Images:
    """Return what a network says of noisy images, in float32; `noise_levels` broadcast against
    (batch, 1, 1, 1).
    """
    noise_levels = ops.broadcast_to(noise_levels, (ops.shape(noisy_images)[0], 1, 1, 1))
    return ops.cast(network([noisy_images, noise_levels], training=training), "float32")
