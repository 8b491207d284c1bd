"""Precision and recall, density and coverage: how real the generated images are, and how much of
the real ones they cover.

Both take each set of images for the union of balls around its features, which reach to each one's
k-th neighbour.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import keras
import numpy as np

from ddim_keras.metrics.base import ImageMetric, of_images_or_features, require
from ddim_keras.metrics.states import Sample
from ddim_keras.support.arguments import integer, positive_int
from ddim_keras.support.types import Config, ExtractorLike, Features, Tensor

_BLOCK = 1024  # rows of distances held at a time


class PrecisionRecallResult(NamedTuple):
    """Each in [0, 1]."""

    precision: float
    recall: float


class DensityCoverageResult(NamedTuple):
    """Density is 1 for perfect images, and can be more; coverage lies in [0, 1]."""

    density: float
    coverage: float


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances of all pairs, (len(left), len(right))."""
    squares = (
        np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1) - 2.0 * left @ right.T
    )
    return np.sqrt(np.maximum(squares, 0.0))


def neighbour_radii(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Return each one's distance to its k-th nearest other, (images,)."""
    radii = np.empty(len(features))
    for start in range(0, len(features), _BLOCK):
        block = distances(features[start : start + _BLOCK], features)
        # Each is its own nearest, at a distance of 0 that rounding may have left above a twin's.
        np.fill_diagonal(block[:, start:], 0.0)
        radii[start : start + _BLOCK] = np.partition(block, neighbours, axis=1)[:, neighbours]
    return radii


def is_within(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return for each point whether it lies in any ball, (points,)."""
    return np.concatenate(
        [
            (distances(points[start : start + _BLOCK], centres) <= radii).any(axis=1)
            for start in range(0, len(points), _BLOCK)
        ]
    )


def precision_recall(
    real: Features,
    generated: Features,
    extractor: ExtractorLike = None,
    *,
    neighbours: int = 3,
    comparable: bool = False,
) -> PrecisionRecallResult:
    """Return the share of generated images that lie among the real ones, and of real ones that lie
    among the generated.

    Args:
        real, generated: as for `fid`; of images, at most 10,000 of each side are used.
        extractor: what makes features of images; None for "inception_v3".
        neighbours: k: each image's ball reaches to its k-th neighbour of the same side.
        comparable: True uses the 2015 Inception network ("inception_2015"). (Published figures
            mostly used VGG16.)

    Returns:
        (precision, recall).

    Raises:
        ValueError: no more than k images on a side, or features that are not finite or do not
            match.

    Source: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative
    Models".

    Examples:

    >>> features = np.random.default_rng(0).normal(size=(50, 4))
    >>> precision_recall(features, features + 100.0)
    PrecisionRecallResult(precision=0.0, recall=0.0)
    """
    found = of_images_or_features(
        real, generated, PrecisionRecall, extractor, comparable, neighbours=neighbours
    )
    if isinstance(found, PrecisionRecall):
        return found.values()
    real, generated = found
    return _precision_recall(real, generated, neighbours)


def density_coverage(
    real: Features,
    generated: Features,
    extractor: ExtractorLike = None,
    *,
    neighbours: int = 5,
    comparable: bool = False,
) -> DensityCoverageResult:
    """Return how many real images' balls hold a generated image, over k, and the share of balls
    that hold any.

    Unlike precision and recall, one odd real image with a large ball does not count for much, and
    balls around generated images are not needed.

    Args:
        real, generated: as for `fid`; of images, at most 10,000 of each side are used.
        extractor: what makes features of images; None for "inception_v3".
        neighbours: k: each real image's ball reaches to its k-th real neighbour.
        comparable: True uses the 2015 Inception network ("inception_2015").

    Returns:
        (density, coverage).

    Raises:
        ValueError: no more than k real images, or features that are not finite or do not match.

    Source: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models".

    Examples:

    >>> features = np.random.default_rng(0).normal(size=(50, 4))
    >>> density_coverage(features, features).coverage
    1.0
    """
    found = of_images_or_features(
        real, generated, DensityCoverage, extractor, comparable, neighbours=neighbours
    )
    if isinstance(found, DensityCoverage):
        return found.values()
    real, generated = found
    return _density_coverage(real, generated, neighbours)


class _ManifoldMetric(ImageMetric):
    default_name: str
    default_neighbours: int
    figures: tuple[str, ...]
    _direction = "up"

    def __init__(
        self,
        extractor: ExtractorLike = "inception_v3",
        name: str | None = None,
        neighbours: int | None = None,
        seed: int = 0,
        capacity: int = 10_000,
    ):
        super().__init__(extractor, name or self.default_name)
        self.neighbours = positive_int(
            "neighbours", self.default_neighbours if neighbours is None else neighbours
        )
        self.seed = integer("seed", seed, minimum=0, below=2**32)
        self.capacity = integer("capacity", capacity, minimum=self.neighbours + 1)
        sides = ("real", "generated")
        self._real, self._generated = (
            Sample(self, side, self.capacity, self.extractor.feature_dims, self.seed)
            for side in sides
        )

    @property
    def minimum_images(self) -> int:  # type: ignore[override]
        return self.neighbours + 1

    def update_features(
        self, real: Features = None, generated: Features = None, counted: Tensor = None
    ) -> None:
        for sample, features in ((self._real, real), (self._generated, generated)):
            if features is not None:
                sample.update(features, counted)

    @staticmethod
    @abc.abstractmethod
    def compare(real: np.ndarray, generated: np.ndarray, neighbours: int) -> Any:
        """Return the two figures of features as a named tuple."""

    def values(self) -> Any:
        """Return the two figures as a named tuple."""
        return self.compare(self._real.values()[1], self._generated.values()[1], self.neighbours)

    @property
    def result_names(self) -> list[str]:
        prefix = "" if self.name == self.default_name else f"{self.name}_"
        return [f"{prefix}{name}" for name in self.figures]

    def result(self) -> dict[str, float]:
        """Return the two figures by name; after the metric's own name, if that is not the
        default.
        """
        return dict(zip(self.result_names, self.values()))

    def get_config(self) -> Config:
        own = {"neighbours": self.neighbours, "seed": self.seed, "capacity": self.capacity}
        return {**super().get_config(), **own}


def _precision_recall(
    real: np.ndarray, generated: np.ndarray, neighbours: int
) -> PrecisionRecallResult:
    for what, features in (("real", real), ("generated", generated)):
        require(
            len(features),
            neighbours + 1,
            what,
            f"precision and recall with {neighbours} neighbours",
        )
    if not (np.isfinite(real).all() and np.isfinite(generated).all()):
        return PrecisionRecallResult(float("nan"), float("nan"))
    precision = is_within(generated, real, neighbour_radii(real, neighbours)).mean()
    recall = is_within(real, generated, neighbour_radii(generated, neighbours)).mean()
    return PrecisionRecallResult(float(precision), float(recall))


def _density_coverage(
    real: np.ndarray, generated: np.ndarray, neighbours: int
) -> DensityCoverageResult:
    require(len(real), neighbours + 1, "real", f"density and coverage with {neighbours} neighbours")
    require(len(generated), 1, "generated", "density and coverage")
    if not (np.isfinite(real).all() and np.isfinite(generated).all()):
        return DensityCoverageResult(float("nan"), float("nan"))
    radii = neighbour_radii(real, neighbours)
    balls, covered = 0, np.zeros(len(real), bool)
    for start in range(0, len(generated), _BLOCK):
        inside = distances(generated[start : start + _BLOCK], real) <= radii
        balls += int(inside.sum())
        covered |= inside.any(axis=0)
    return DensityCoverageResult(balls / (neighbours * len(generated)), float(covered.mean()))


@keras.saving.register_keras_serializable("ddim_keras")
class PrecisionRecall(_ManifoldMetric):
    """`precision_recall` as a Keras metric. It keeps a sample of the features.

    Its result is a dictionary of "precision" and "recall", or with another name of
    "<name>_precision" and "<name>_recall".

    Args:
        extractor: an `Extractor`, its name or a Keras model.
        name: name of the metric; None for "precision_recall".
        neighbours: as for `precision_recall`; None for 3.
        seed: fixes the sample.
        capacity: images of each side that are kept: a fair sample of all.
    """

    default_name, default_neighbours = "precision_recall", 3
    figures = PrecisionRecallResult._fields
    compare = staticmethod(_precision_recall)


@keras.saving.register_keras_serializable("ddim_keras")
class DensityCoverage(_ManifoldMetric):
    """`density_coverage` as a Keras metric, like `PrecisionRecall`, of "density" and "coverage".

    Args:
        extractor, seed, capacity: as for `PrecisionRecall`.
        name: name of the metric; None for "density_coverage".
        neighbours: as for `density_coverage`; None for 5.
    """

    default_name, default_neighbours = "density_coverage", 5
    figures = DensityCoverageResult._fields
    compare = staticmethod(_density_coverage)
