"""The Inception Score."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.metrics.base import ImageMetric, checked_features, require
from ddim_keras.metrics.states import Sums
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.types import Config, ExtractorLike, Features, Images, Tensor


class InceptionScoreResult(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    standard_deviation: float


def inception_score(probabilities: Tensor, splits: int = 10) -> InceptionScoreResult:
    """Return exp(E KL(p(y | x) || p(y))): from 1 to the number of classes, high if images are clear
    and all classes occur.

    It looks at generated images alone, and says nothing about how they compare with real ones.

    Args:
        probabilities: of each class for each image, (images, classes); `Extractor.probabilities`
            gives them.
        splits: equal parts of the images, in order, over which mean and standard deviation are
            taken.

    Raises:
        ValueError: fewer images than splits, or rows that are no probabilities.

    Source: Salimans et al. 2016, "Improved Techniques for Training GANs".

    Examples:

    >>> certain = np.eye(5)[np.arange(100) % 5]  # five classes, equally often, beyond doubt
    >>> round(inception_score(certain, splits=2).mean, 6)
    5.0
    """
    splits = positive_int("splits", splits)
    probabilities = checked_features(probabilities, "probability")
    require(len(probabilities), splits, "generated", f"the Inception Score over {splits} splits")
    if probabilities.min() < 0.0 or np.abs(probabilities.sum(axis=1) - 1.0).max() > 1e-3:
        raise ValueError(
            "each row must hold the probabilities of all classes, which add up to 1: apply a "
            "softmax first?"
        )
    bounds = np.arange(splits + 1) * len(probabilities) // splits
    parts = [probabilities[start:stop] for start, stop in zip(bounds[:-1], bounds[1:])]
    return _over_splits(
        [(len(part), part.sum(axis=0), _negative_entropy(part).sum()) for part in parts]
    )


@keras.saving.register_keras_serializable("ddim_keras")
class InceptionScore(ImageMetric):
    """`inception_score` as a Keras metric; its result is the mean. Image i belongs to split i mod
    `splits`.

    Args:
        extractor: an `Extractor` that gives class probabilities, its name or a Keras model of two
            outputs.
        name: name of the metric.
        splits: as for `inception_score`.
    """

    real_is_used = False
    _direction = "up"

    def __init__(
        self,
        extractor: ExtractorLike = "inception_v3",
        name: str = "inception_score",
        splits: int = 10,
    ):
        super().__init__(extractor, name)
        self.splits = positive_int("splits", splits)
        if self.extractor.num_classes is None:
            raise ValueError(
                f"the Inception Score needs class probabilities, which {self.extractor!r} does not "
                "give"
            )
        self._sums = Sums(self, "sums", (splits,), (splits, self.extractor.num_classes), (splits,))

    @property
    def minimum_images(self) -> int:  # type: ignore[override]
        return self.splits

    def extract(self, images: Images) -> Features:
        return self.extractor.probabilities(inputs.as_unit_range(images))

    def update_features(
        self, real: Features = None, generated: Features = None, counted: Tensor = None
    ) -> None:
        """Take in class probabilities; those of real images are not used."""
        if generated is None:
            return
        size = number = ops.shape(generated)[0]
        order = ops.arange(size, dtype="int32")
        if counted is not None:  # the splits divide the images that count
            order = ops.cumsum(ops.cast(counted, "int32")) - 1
        places = ops.mod(self._sums.count() + order, self.splits)
        membership = ops.transpose(ops.one_hot(places, self.splits, dtype="float32"))
        if counted is not None:
            membership = membership * counted
            number = ops.sum(counted)
        terms = ops.where(
            generated > 0.0, generated * ops.log(ops.where(generated > 0.0, generated, 1.0)), 0.0
        )
        entropies = ops.sum(terms, axis=1, keepdims=True)
        self._sums.update(
            number,
            ops.sum(membership, axis=1),
            ops.matmul(membership, generated),
            ops.matmul(membership, entropies)[:, 0],
        )

    def result(self) -> float:
        return self.mean_and_deviation().mean

    def mean_and_deviation(self) -> InceptionScoreResult:
        """Return (mean, standard_deviation) over the splits."""
        count, (counts, totals, entropies) = self._sums.values()
        require(
            int(count), self.splits, "generated", f"the Inception Score over {self.splits} splits"
        )
        return _over_splits(list(zip(counts, totals, entropies)))

    def get_config(self) -> Config:
        return {**super().get_config(), "splits": self.splits}


def _negative_entropy(probabilities: np.ndarray) -> np.ndarray:
    return (probabilities * np.log(np.where(probabilities > 0.0, probabilities, 1.0))).sum(axis=-1)


def _over_splits(parts: list[tuple[Any, np.ndarray, Any]]) -> InceptionScoreResult:
    """From each split's (number of images, summed probabilities, summed negative entropies)."""
    scores = [
        np.exp(entropies / count - _negative_entropy(total / count))
        for count, total, entropies in parts
    ]
    return InceptionScoreResult(float(np.mean(scores)), float(np.std(scores)))
