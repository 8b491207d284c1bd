"""How far images are from each other as a denoising network sees them."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from ddim_keras.samplers import Conditions
from ddim_keras.sampling.denoisers import predict
from ddim_keras.sampling.engine import Engine
from ddim_keras.support.types import Images, Shape, Tensor

# Where features are looked at: images with so much noise, or the least that was trained on.
_NOISE_RATE = 0.3
_SMALL_VARIANCE = 1e-3


def distance_of(engine: Engine) -> Callable[[Images, Images, Images], Tensor]:
    """Return the mean of `distances_of` over a batch, by the features of the engine's network: a
    scalar.
    """
    distances = distances_of(engine)
    return lambda images, wanted, noises: ops.mean(distances(images, wanted, noises))


def distances_of(
    engine: Engine, network: keras.Model | None = None
) -> Callable[[Images, Images, Images], Tensor]:
    """Return a distance of normalised images from others: the mean squared difference of the
    features at the network's narrowest place, each by its own variance.

    Where images differ by their pixels and not by what they show, squared pixels would rather have
    a blurred one. The network knows what it takes to tell its images from noise, and no other is
    needed.

    Args:
        engine: for what its network was trained.
        network: whose features; None for the engine's own. One without a place narrower than its
            images compares pixels.

    Returns:
        (images, wanted images, noises) -> (batch,); all (batch, height, width, channels).

    Source: Lin & Yang 2024, "Diffusion Model with Perceptual Loss".
    """
    narrowest = _up_to_the_narrowest(engine.network if network is None else network)
    schedule, normalizer = engine.schedule, engine.normalizer
    least = schedule(np.array([schedule.first_time]))[1][0]
    noise_rate = np.array([max(float(least), _NOISE_RATE)])
    signal_rate = np.sqrt(1.0 - noise_rate**2)
    level = Conditions(float(ops.convert_to_numpy(schedule.conditions(signal_rate, noise_rate))[0]))

    def within_range(images: Images) -> Images:
        return (normalizer.denormalize(images) - normalizer.mean) / normalizer.standard_deviation()

    def distance(images: Images, wanted: Images, noises: Images) -> Tensor:
        images, wanted = within_range(images), within_range(wanted)
        if narrowest is None:
            return ops.mean(ops.square(images - wanted), axis=(1, 2, 3))
        # Other noises than those that the images come from.
        noises = float(noise_rate[0]) * ops.flip(noises, axis=0)
        found, sought = (
            predict(narrowest, float(signal_rate[0]) * each + noises, level, engine.spec, False)
            for each in (images, wanted)
        )
        variances = ops.var(sought, axis=(0, 1, 2), keepdims=True) + _SMALL_VARIANCE
        return ops.mean(ops.square(found - sought) / variances, axis=(1, 2, 3))

    return distance


def _up_to_the_narrowest(network: keras.Model) -> keras.Model | None:
    """The network up to the last of its layers with the fewest pixels, or None."""
    height, width, _ = network.inputs[0].shape[1:]
    found = None
    fewest = height * width - 1  # at least one halving; a single pixel is an embedding, or a mean
    for layer in network.layers:
        output = getattr(layer, "output", None)
        shape: Shape = getattr(output, "shape", ())
        if len(shape) != 4 or None in shape[1:3] or shape[1] * shape[2] == 1:
            continue
        if shape[1] * shape[2] <= fewest:
            fewest, found = shape[1] * shape[2], output
    return None if found is None else keras.Model(network.inputs, found)
