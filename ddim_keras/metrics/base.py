"""`ImageMetric`: what the Keras metrics of real against generated images have in common."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.metrics.extractors import Extractor, KerasExtractor, get_extractor
from ddim_keras.support.types import Config, Data, ExtractorLike, Features, Images, Tensor

_BATCH = 256


class ImageMetric(keras.metrics.Metric, abc.ABC):
    """Base class of Keras metrics that compare generated images with real ones by their features.

    Give one to `DiffusionModel.compile(metrics=[...])`, or use it by itself:
    `update_state(real_images, generated_images)` for batch after batch, then `result()`. The figure
    does not depend on the batches, and memory is constant. The two sides may hold different numbers
    of images: give None for one of them.

    Args:
        extractor: an `Extractor`, its name ("inception_v3", "cifar10", "fashion_mnist",
            "inception_2015"), or a Keras model.
        name: name of the metric; validation logs its figure as `val_<name>`, or several under names
            of their own.

    Attributes:
        minimum_images: the fewest images of each side that `result` needs.
    """

    minimum_images = 1

    real_is_used = True
    # Which way is better, as Keras's own metrics say it; callbacks ask when their mode is "auto".
    _direction = "down"

    def __init__(self, extractor: str | dict | Extractor | keras.Model, name: str):
        super().__init__(name=name, dtype="float32")
        self.extractor = get_extractor(extractor)

    @property
    def result_names(self) -> list[str]:
        """The names under which its figures are logged."""
        return [self.name]

    @abc.abstractmethod
    def update_features(
        self, real: Features = None, generated: Features = None, counted: Tensor = None
    ) -> None:
        """Take in what `extract` made of the images of either side, or of both.

        Args:
            real, generated: what `extract` returned.
            counted: (batch,), 0 for images that do not count and 1 for the others; None for all.
        """

    @abc.abstractmethod
    def result(self) -> Any:
        """Return the figure, a float, or a dictionary of them by name, worked out in float64. Not
        within a compiled step.
        """

    def extract(self, images: Images) -> Features:
        """Return what the metric needs of images (batch, height, width, channels) in [0, 1] or
        uint8.
        """
        return self.extractor.features(inputs.as_unit_range(images))

    def update_state(
        self,
        real_images: Images = None,
        generated_images: Images = None,
        sample_weight: Tensor = None,
    ) -> None:
        """Take in a batch of each side. All images count alike: there are no sample weights.

        Args:
            real_images, generated_images: (batch, height, width, channels), floats in [0, 1] or
                uint8; or None.
            sample_weight: (batch,), 0 for images that are to be left out and 1 for the others, such
                as those that fill up the last batch where several devices share it; None for all.
        """
        sides = (real_images if self.real_is_used else None, generated_images)
        features: list[Features] = [
            None if images is None else self.extract(images) for images in sides
        ]
        if sample_weight is None:
            self.update_features(features[0], features[1])
            return
        if (
            isinstance(sample_weight, (np.ndarray, list, tuple))
            and not np.isin(sample_weight, (0.0, 1.0)).all()
        ):
            raise ValueError(
                f"{self.name} counts all images alike: sample_weight must be None, or hold 0 and 1 "
                "alone"
            )
        self.update_features(features[0], features[1], counted=ops.cast(sample_weight, "float32"))

    def merge_state(self, metrics: Sequence[ImageMetric]) -> None:
        """Take in what other metrics of the same settings have seen, on another machine say."""
        for metric in metrics:
            if type(metric) is not type(self) or metric._settings() != self._settings():
                raise ValueError(
                    f"only metrics of the same settings can be merged, got {metric!r} and {self!r}"
                )
            for name, state in vars(self).items():
                if hasattr(state, "merge"):
                    state.merge(getattr(metric, name))

    def _settings(self) -> tuple:
        """What must be equal for two metrics to have counted the same thing."""
        config = {
            key: value
            for key, value in self.get_config().items()
            if key not in ("extractor", "name")
        }
        return config, type(self.extractor), self.extractor.feature_dims

    # What it has seen is not part of a saved model, but the weights of a user's own extractor are.

    def save_own_variables(self, store: Any) -> None:
        if type(self.extractor) is KerasExtractor:
            for index, weight in enumerate(self.extractor.model.get_weights()):
                store[str(index)] = weight

    def load_own_variables(self, store: Any) -> None:
        if type(self.extractor) is KerasExtractor and len(store.keys()):
            self.extractor.model.set_weights(
                [store[str(index)] for index in range(len(store.keys()))]
            )

    def get_config(self) -> Config:
        return {"extractor": keras.saving.serialize_keras_object(self.extractor), "name": self.name}


def checked_features(features: Features, what: str, dims: int | None = None) -> np.ndarray:
    """Return features as float64.

    Raises:
        ValueError: they are not finite numbers of shape (images, dims), or none.
    """
    features = np.asarray(ops.convert_to_numpy(features), "float64")
    if features.ndim != 2 or (dims is not None and features.shape[1] != dims):
        expected = f"(images, {'dims' if dims is None else dims})"
        raise ValueError(f"{what} features must have shape {expected}, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{what} features must be finite, got NaN or infinity")
    return features


def checked_batches(data: Data, side: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield (images, labels or None), batch after batch.

    Args:
        data: images in any form that `DiffusionModel.fit` takes, with labels or without.
        side: what the images are, for errors: "real" or "generated".

    Raises:
        ValueError: the data never end, or images that are not finite, out of range or of another
            rank.
    """
    if not inputs.is_one_piece(data) and inputs.number_of_batches(data) == -1:
        raise ValueError(f"the {side} images never end: give a data set without repeat()")
    for batch in inputs.iterate_batches(data, _BATCH)[0]:
        images, labels = inputs.as_array(batch.images), batch.labels
        inputs.check_images(images, images.shape[1:], f"{side} images")
        labels = None if labels is None else inputs.as_array(labels)
        if labels is not None and len(labels) != len(images):
            raise ValueError(
                f"expected a label for each of {len(images)} images, got {len(labels)}"
            )
        yield images, labels


def require(number: int, minimum: int, what: str, metric: str) -> None:
    """Raise ValueError unless there are enough images for a metric."""
    if number < minimum:
        raise ValueError(f"{metric} needs at least {minimum} {what} images, got {number}")


def of_images_or_features(
    real: Features,
    generated: Features,
    metric_class: type[ImageMetric],
    extractor: ExtractorLike,
    comparable: bool,
    **options: Any,
) -> Any:
    """Return the two sides as arrays of features, if they are that, or a metric that has seen their
    images.

    Args:
        real, generated: features (images, dims); images (images, height, width, channels); or data
            sets of batches of these images.
        comparable: whether papers' extractor is to be used.
    """
    if comparable:
        if extractor not in (None, "inception_2015"):
            raise ValueError(
                f"comparable=True chooses the extractor of the literature: leave out {extractor!r}"
            )
        extractor = "inception_2015"
    ranks = [len(side.shape) if inputs.is_array(side) else None for side in (real, generated)]
    if ranks == [2, 2]:
        if extractor is not None:
            raise ValueError(
                "these are features already: no extractor is needed, and comparable=True cannot be "
                "promised"
            )
        real = checked_features(real, "real")
        return real, checked_features(generated, "generated", real.shape[1])
    for side, data in (("real", real), ("generated", generated)):
        if inputs.is_array(data) and len(data.shape) != 4:
            raise ValueError(
                f"{side} must be features (images, dims) like the other side, or images (images, "
                "height, width, channels), "
                f"got shape {tuple(data.shape)}"
            )
    metric = metric_class(extractor=extractor or "inception_v3", **options)
    for side, data in (("real", real), ("generated", generated)):
        for images, _ in checked_batches(data, side):
            metric.update_state(**{f"{side}_images": images})
    return metric


def warn_of_few(number: int, enough: int, message: str) -> None:
    if number < enough:
        warnings.warn(message, stacklevel=4)
