"""Whether a model copies what it was trained on: the training images nearest to its own.

A generated image g, whose nearest training image is x, counts as a copy if

    d(g, x) < d(x, y) / 2,

where y is the training image nearest to x that differs from it: g is then nearer to x than to any
other training image, and nearer than half the way from x to the next. The share of copies is the
score. Without the half it would be of no use: of two images that are both new, each is as likely to
be the nearer one, and about half of all held-out images would count.

Distances as a test of copying: Meehan et al. 2020, "A Non-Parametric Test to Detect Data-Copying in
Generative Models", and van den Burg & Williams 2021, "On Memorization in Probabilistic Deep
Generative Models". Distances relative to those among training images, in diffusion models: Carlini
et al. 2023, "Extracting Training Data from Diffusion Models", section 5. By features: Somepalli et
al. 2023, "Diffusion Art or Digital Forgery?".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.metrics.base import checked_batches
from ddim_keras.metrics.extractors import get_extractor
from ddim_keras.metrics.manifolds import distances
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.types import (
    Array,
    Data,
    ExtractorLike,
    Features,
    ImageArray,
    Images,
    Numbers,
)

PIXELS = "pixels"
_HALF = 0.5
_SAME = 1e-3  # of the features' norm: less than a grey level
_BLOCK = 256  # images whose features are held at a time


class NearestImages(NamedTuple):
    """Generated images and the training images nearest to them.

    Attributes:
        images: the generated images, (number, height, width, channels) in [0, 1].
        nearest: to each the nearest training image, mirrored if it is nearer so.
        distances: between the two, (number,).
        to_next: from each nearest image to the training image nearest to it, other than itself and
            its doubles, (number,); infinite if there is none.
        numbers: the place of each nearest image in the training data, (number,).
        mirrored: whether it was mirrored, (number,).
    """

    images: ImageArray
    nearest: ImageArray
    distances: Array
    to_next: Array
    numbers: Numbers
    mirrored: np.ndarray

    @property
    def copies(self) -> np.ndarray:
        """Whether each generated image is nearer to its nearest training image than half the way
        from there to the next, (number,).
        """
        return self.distances < _HALF * self.to_next

    @property
    def share(self) -> float:
        """The score of memorisation, in [0, 1]: the share of copies."""
        return float(self.copies.mean())


def nearest_training_images(
    generated: Any,
    training_images: Data,
    num_images: int = 100,
    *,
    extractor: ExtractorLike = PIXELS,
    mirrored: bool = False,
    seed: int = 0,
    **sampling: Any,
) -> NearestImages:
    """Find the training image that is nearest to each generated image, and how many are copies.

    The training images are gone through twice, batch by batch; only the generated ones and their
    nearest are held.

    Args:
        generated: a trained model, which then generates; or images, (number, height, width,
            channels) in [0, 1] or uint8.
        training_images: what the model was trained on, in any form that `fit` takes and that can be
            read again.
        num_images: how many images the model is to generate.
        extractor: what distances are measured between: "pixels"; or features, by "fashion_mnist",
            "inception_v3" or another `Extractor`, which also see copies that are shifted or
            recoloured.
        mirrored: whether training images mirrored left to right are compared too, as is right after
            training with flips.
        seed, **sampling: as for `DiffusionModel.generate`.

    Returns:
        The pairs; `.share` is the score of memorisation, and `plotting.plot_pairs` draws them.

    Raises:
        ValueError: there are no images, or they do not have the training images' shape.

    Source: see `ddim_keras.metrics.memorization`.

    Examples:

    >>> training = np.random.default_rng(0).uniform(size=(20, 8, 8, 1))
    >>> found = nearest_training_images(training[:4] * 0.99, training)
    >>> found.numbers, found.share
    (array([0, 1, 2, 3]), 1.0)
    """
    if hasattr(generated, "generate"):
        number = positive_int("num_images", num_images)
        generated = generated.generate(number, seed=seed, **{"verbose": 0, **sampling})
    elif sampling:
        raise ValueError(f"{sorted(sampling)} are for a model that generates: these are images")
    if hasattr(training_images, "__iter__") and not inputs.can_be_read_again(training_images):
        raise ValueError(
            f"the training images are gone through twice, which a {type(training_images).__name__} "
            "cannot be: give an array, a data set, or a list of batches"
        )
    images = _unit_range(generated)
    if not np.isfinite(images).all():
        raise ValueError("the generated images hold NaN or infinity: what made them has diverged")
    if images.ndim != 4 or not len(images):
        raise ValueError(
            "expected a model or at least one image, (number, height, width, channels), got shape "
            f"{images.shape}"
        )
    measure = _Features(extractor, mirrored)
    numbers, nearest, least, flipped = _nearest(images, training_images, measure)
    to_next = _to_next(nearest, training_images, measure)
    return NearestImages(images, nearest, least, to_next, numbers, flipped)


class _Features:
    """What distances are measured between: of images, and of the same mirrored if asked for."""

    def __init__(self, extractor: ExtractorLike, mirrored: bool):
        self.extractor = None if _is_pixels(extractor) else get_extractor(extractor)
        self.mirrored = mirrored

    def of(self, images: ImageArray) -> Features:
        if self.extractor is None:
            return images.reshape(len(images), -1).astype("float64")
        parts = [
            ops.convert_to_numpy(self.extractor.features(images[start : start + _BLOCK]))
            for start in range(0, len(images), _BLOCK)
        ]
        return np.concatenate(parts).astype("float64")

    def of_all_sides(self, images: ImageArray) -> list[Features]:
        return [self.of(images), *([self.of(images[:, :, ::-1])] if self.mirrored else [])]


def _is_pixels(extractor: ExtractorLike) -> bool:
    return extractor is None or (isinstance(extractor, str) and extractor == PIXELS)


def _unit_range(images: Images) -> ImageArray:
    images = inputs.as_array(images)
    return np.asarray(ops.convert_to_numpy(inputs.as_unit_range(images)), "float32")


def _batches(training_images: Data, shape: tuple[int, ...]) -> Iterator[ImageArray]:
    count = 0
    for images, _ in checked_batches(training_images, "training"):
        if images.shape[1:] != shape:
            raise ValueError(
                f"the training images have shape {images.shape[1:]}, and the generated ones {shape}"
            )
        count += len(images)
        for start in range(0, len(images), _BLOCK):
            yield _unit_range(images[start : start + _BLOCK])
    if not count:
        raise ValueError("there are no training images to compare with")


def _nearest(
    images: ImageArray, training_images: Data, measure: _Features
) -> tuple[Numbers, ImageArray, Array, np.ndarray]:
    """Numbers, nearest images, distances, and which are mirrored."""
    sides = measure.of_all_sides(images)
    rows = np.arange(len(images))
    numbers, flipped = np.zeros(len(images), int), np.zeros(len(images), bool)
    nearest, least, first = np.zeros_like(images), np.full(len(images), np.inf), 0
    for batch in _batches(training_images, images.shape[1:]):
        features = measure.of(batch)
        for is_flipped, side in enumerate(sides):
            block = distances(side, features)
            found = block.argmin(axis=1)
            nearer = block[rows, found] < least
            least[nearer] = block[rows, found][nearer]
            numbers[nearer] = first + found[nearer]
            flipped[nearer] = bool(is_flipped)
            chosen = batch[found[nearer]]
            nearest[nearer] = chosen[:, :, ::-1] if is_flipped else chosen
        first += len(batch)
    return numbers, nearest, least, flipped


def _to_next(nearest: ImageArray, training_images: Data, measure: _Features) -> Array:
    """The distance from each of these training images to the nearest that differs from it."""
    sides = measure.of_all_sides(nearest)
    least = np.full(len(nearest), np.inf)
    for batch in _batches(training_images, nearest.shape[1:]):
        features = measure.of(batch)
        # Itself may come mirrored: it is the same then, too.
        block = np.min([distances(side, features) for side in sides], axis=0)
        size = np.sqrt(np.square(sides[0]).sum(axis=1))[:, None]
        block[block <= _SAME * np.maximum(size, 1e-12)] = np.inf
        least = np.minimum(least, block.min(axis=1))
    return least
