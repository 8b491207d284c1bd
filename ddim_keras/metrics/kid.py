"""The kernel inception distance."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np

from ddim_keras.metrics.base import ImageMetric, of_images_or_features, require, warn_of_few
from ddim_keras.metrics.states import Sample
from ddim_keras.support.arguments import integer
from ddim_keras.support.types import Config, ExtractorLike, Features, Tensor


class KIDResult(NamedTuple):
    """Mean and standard deviation over the subsets."""

    mean: float
    standard_deviation: float


def polynomial_kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (x . y / dims + 1)^3 for all pairs, of shape (len(left), len(right))."""
    return (left @ right.T / left.shape[1] + 1.0) ** 3


def squared_mmd(real: np.ndarray, generated: np.ndarray) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy; it may be negative.

    Args:
        real, generated: features (images, dims), at least two each.

    Source: Gretton et al. 2012, "A Kernel Two-Sample Test", eq. 3.
    """
    total = -2.0 * polynomial_kernel(real, generated).mean()
    for features in (real, generated):
        number = len(features)
        kernel = polynomial_kernel(features, features)
        total += (kernel.sum() - np.trace(kernel)) / (number * (number - 1))
    return float(total)


def kid(
    real: Features,
    generated: Features,
    extractor: ExtractorLike = None,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    comparable: bool = False,
) -> KIDResult:
    """Return the kernel inception distance: the squared maximum mean discrepancy of features,
    unbiased.

    Args:
        real, generated: as for `fid`.
        extractor: what makes features of images; None for "inception_v3".
        subsets: number of random subsets over which mean and standard deviation are taken; 0 for
            one estimate from all features at once, or of images at most 10,000 of each side. Its
            standard deviation is not a number.
        subset_size: images of each side in a subset, drawn without replacement. With no more images
            than that, all of them are taken, once.
        seed: fixes the subsets.
        comparable: True uses the 2015 Inception network of the literature ("inception_2015").

    Returns:
        (mean, standard_deviation).

    Raises:
        ValueError: fewer than 2 images on a side, or features that are not finite or do not match.

    Source: Bińkowski et al. 2018, "Demystifying MMD GANs".

    Examples:

    >>> features = np.random.default_rng(0).normal(size=(200, 4))
    >>> kid(features[:100], features[100:] + 1.0, subsets=10, subset_size=50).mean > 0.1
    True
    """
    options = _checked_options(subsets, subset_size, seed)
    found = of_images_or_features(real, generated, KID, extractor, comparable, **options)
    if isinstance(found, KID):
        return found.mean_and_deviation()
    real, generated = found
    return _over_subsets(real, generated, **options)


@keras.saving.register_keras_serializable("ddim_keras")
class KID(ImageMetric):
    """`kid` as a Keras metric; its result is the mean. It keeps a sample of the features.

    Args:
        extractor: an `Extractor`, its name or a Keras model.
        name: name of the metric.
        subsets, subset_size, seed: as for `kid`.
        capacity: images of each side that are kept: a fair sample of all.
    """

    minimum_images = 2

    def __init__(
        self,
        extractor: ExtractorLike = "inception_v3",
        name: str = "kid",
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
        capacity: int = 10_000,
    ):
        super().__init__(extractor, name)
        self._options = _checked_options(subsets, subset_size, seed)
        self.capacity = integer("capacity", capacity, minimum=2)
        sides = ("real", "generated")
        self._real, self._generated = (
            Sample(self, side, self.capacity, self.extractor.feature_dims, self._options["seed"])
            for side in sides
        )

    def update_features(
        self, real: Features = None, generated: Features = None, counted: Tensor = None
    ) -> None:
        for sample, features in ((self._real, real), (self._generated, generated)):
            if features is not None:
                sample.update(features, counted)

    def result(self) -> float:
        return self.mean_and_deviation().mean

    def mean_and_deviation(self) -> KIDResult:
        """Return (mean, standard_deviation) over the subsets."""
        return _over_subsets(self._real.values()[1], self._generated.values()[1], **self._options)

    def get_config(self) -> Config:
        return {**super().get_config(), **self._options, "capacity": self.capacity}


def _checked_options(subsets: int, subset_size: int, seed: int) -> dict[str, int]:
    return {
        "subsets": integer("subsets", subsets, minimum=0),
        "subset_size": integer("subset_size", subset_size, minimum=2),
        "seed": integer("seed", seed, minimum=0, below=2**32),
    }


def _over_subsets(
    real: np.ndarray, generated: np.ndarray, subsets: int, subset_size: int, seed: int
) -> KIDResult:
    for what, features in (("real", real), ("generated", generated)):
        require(len(features), 2, what, "KID")
    if not subsets:
        return KIDResult(squared_mmd(real, generated), float("nan"))
    fewest = min(len(real), len(generated))
    warn_of_few(
        fewest,
        subset_size,
        f"KID of {fewest} images in subsets of {subset_size}: the subsets will be of {fewest}. The "
        "mean stays unbiased, "
        "but it is less sure, and its standard deviation does not compare with that of other sizes",
    )
    size = min(subset_size, fewest)
    if size == len(real) == len(generated):  # every subset would be the whole
        return KIDResult(squared_mmd(real, generated), float("nan"))
    draws = np.random.default_rng(seed)
    values = [
        squared_mmd(
            *(
                features[draws.choice(len(features), size, replace=False)]
                for features in (real, generated)
            )
        )
        for _ in range(subsets)
    ]
    return KIDResult(float(np.mean(values)), float(np.std(values)))
