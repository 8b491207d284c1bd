"""Whether images show what was asked for, to a classifier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from keras import ops

from ddim_keras.metrics.extractors import Extractor
from ddim_keras.support.types import Numbers


class Agreement:
    """How often a classifier sees the labels that were asked for. Images without one do not count.

    Args:
        extractor: the classifier: its `probabilities`, of the model's classes in their order.
        labels: that were asked for, integers (num_images,); num_classes stands for none.
        num_classes: K, of the model.

    Raises:
        ValueError: the extractor is a classifier of another number of classes.
    """

    def __init__(self, extractor: Extractor, labels: Numbers, num_classes: int):
        self.extractor, self.labels, self.num_classes = extractor, labels, num_classes
        self._seen: list[np.ndarray] = []
        if extractor.num_classes is not None:  # known before any work is done
            self._check(extractor.num_classes)

    def counted(self, batches: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
        """Yield batches of images (batch, height, width, channels) in [0, 1], classified.

        Raises:
            ValueError: the extractor is no classifier, or one of another number of classes.
        """
        for images in batches:
            found = ops.convert_to_numpy(self.extractor.probabilities(images))
            self._check(found.shape[-1])
            self._seen.append(found.argmax(axis=-1))
            yield images

    def _check(self, found: int) -> None:
        if found != self.num_classes:
            raise ValueError(
                f"{self.extractor!r} tells {found} classes apart, and the model has "
                f"{self.num_classes}: the agreement with labels needs a classifier of the "
                "model's classes, in their order (KerasExtractor(model) makes one of yours)"
            )

    def add_to(self, scores: dict[str, Any], names: Sequence[str] | None) -> None:
        """Put the share of all images into scores, and that of each class if they have those."""
        agreed = np.concatenate(self._seen) == self.labels
        scores["agreement"] = _mean(agreed[self.labels != self.num_classes])
        for number in range(self.num_classes):
            name = str(number) if names is None else str(names[number])
            if name in scores.get("per_class", {}):
                scores["per_class"][name]["agreement"] = _mean(agreed[self.labels == number])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
