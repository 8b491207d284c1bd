"""How far images are from each other as a denoising network sees them."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from ddim_keras.networks.layers import ImageNormalization
from ddim_keras.samplers import Conditions
from ddim_keras.sampling.denoisers import predict, predict_all
from ddim_keras.sampling.engine import Engine
from ddim_keras.support.types import Images, Rates, Shape, Tensor

# Where features are looked at: images with so much noise, or the least that was trained on.
_NOISE_RATE = 0.3
_SMALL_VARIANCE = 1e-3


def distance_of(engine: Engine) -> Callable[[Images, Images, Images], Tensor]:
    """Return a distance of normalised images from others: the mean squared difference of the
    features at the network's narrowest place, each by its own variance.

    Where images differ by their pixels and not by what they show, squared pixels would rather have
    a blurred one. The network knows what it takes to tell its images from noise, and no other is
    needed.

    Args:
        engine: whose network; one without a place narrower than its images compares pixels.

    Returns:
        (images, wanted images, noises) -> a scalar; all (batch, height, width, channels).

    Source: Lin & Yang 2024, "Diffusion Model with Perceptual Loss".
    """
    narrowest = _up_to_the_narrowest(engine.network)
    schedule, normalizer = engine.schedule, engine.normalizer
    least = schedule(np.array([schedule.first_time]))[1][0]
    noise_rate = np.array([max(float(least), _NOISE_RATE)])
    signal_rate = np.sqrt(1.0 - noise_rate**2)
    level = Conditions(float(ops.convert_to_numpy(schedule.conditions(signal_rate, noise_rate))[0]))

    def distance(images: Images, wanted: Images, noises: Images) -> Tensor:
        images, wanted = (_within_range(each, normalizer) for each in (images, wanted))
        if narrowest is None:
            return ops.mean(ops.square(images - wanted))
        # Other noises than those that the images come from.
        noises = float(noise_rate[0]) * ops.flip(noises, axis=0)
        found, sought = (
            predict(narrowest, float(signal_rate[0]) * each + noises, level, engine.spec, False)
            for each in (images, wanted)
        )
        variances = ops.var(sought, axis=(0, 1, 2), keepdims=True) + _SMALL_VARIANCE
        return ops.mean(ops.square(found - sought) / variances)

    return distance


def distances_through_noise(
    engine: Engine, network: keras.Model
) -> Callable[[Images, Images, Images, Rates, Rates], Tensor]:
    """Return a distance of each normalised image from another, at a given noise level: the mean
    squared difference of a network's features where it halves the images and at its narrowest
    place, each by its own variance.

    More than `distance_of`, it sees the details, which a table of few numbers cannot change by
    themselves, but a network can.

    Args:
        engine: for what the network was trained.
        network: one that halves nothing compares pixels.

    Returns:
        (images, wanted images, noises, signal rates, noise rates) -> (batch,); the rates
        (batch, 1, 1, 1).
    """
    narrowest = _up_to_the_narrowest(network)
    normalizer, schedule, spec = engine.normalizer, engine.schedule, engine.spec
    if narrowest is None:
        return lambda images, wanted, *_: ops.mean(ops.square(images - wanted), axis=(1, 2, 3))
    halved = [layer.input for layer in network.layers if _halves(layer)]
    seen = keras.Model(network.inputs, [*halved, narrowest.output])

    def features(images: Images, noises: Images, rates: tuple[Rates, Rates]) -> list[Tensor]:
        images = _within_range(images, normalizer)
        level = Conditions(schedule.conditions(*rates))
        return predict_all(seen, rates[0] * images + rates[1] * noises, level, spec)

    def distances(
        images: Images, wanted: Images, noises: Images, signal_rates: Rates, noise_rates: Rates
    ) -> Tensor:
        noises, rates = ops.flip(noises, axis=0), (signal_rates, noise_rates)
        sought = [ops.stop_gradient(each) for each in features(wanted, noises, rates)]
        total = 0.0
        for found, each in zip(features(images, noises, rates), sought):
            variances = ops.var(each, axis=(0, 1, 2), keepdims=True) + _SMALL_VARIANCE
            total = total + ops.mean(ops.square(found - each) / variances, axis=(1, 2, 3))
        return total / len(sought)

    return distances


def _within_range(images: Images, normalizer: ImageNormalization) -> Images:
    """Normalised images without what lies outside [0, 1]."""
    return (normalizer.denormalize(images) - normalizer.mean) / normalizer.standard_deviation()


def _halves(layer: keras.Layer) -> bool:
    """Whether a layer makes images of half the size, by pooling or by a step of its own."""
    kinds = (keras.layers.AveragePooling2D, keras.layers.Conv2D)
    if not isinstance(layer, kinds) or isinstance(layer.input, list):
        return False
    before, after = (tuple(tensor.shape[1:3]) for tensor in (layer.input, layer.output))
    return all(side is not None for side in (*before, *after)) and before[0] // 2 == after[0]


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
