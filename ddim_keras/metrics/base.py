"""`ImageMetric`: what the Keras metrics of real against generated images have in common."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras import inputs
from ddim_keras.metrics.extractors import Extractor, KerasExtractor, get_extractor


class ImageMetric(keras.metrics.Metric, abc.ABC):
    """Base class of Keras metrics that compare generated images with real ones by their features.

    Give one to `DiffusionModel.compile(metrics=[...])`, or use it by itself: `update_state(real_images, generated_images)`
    for batch after batch, then `result()`. The figure does not depend on the batches, and memory is constant. The two sides
    may hold different numbers of images: give None for one of them.

    Args:
        extractor: an `Extractor`, its name ("inception_v3", "fashion_mnist", "inception_2015"), or a Keras model.
        name: name of the metric; validation logs it as `val_<name>`.
    """

    real_is_used = True

    def __init__(self, extractor: str | dict | Extractor | keras.Model, name: str):
        super().__init__(name=name, dtype="float32")
        self.extractor = get_extractor(extractor)
        # A model of the user's own is saved with the metric; the others come back by name.
        self.extractor_model = self.extractor.model if type(self.extractor) is KerasExtractor else None

    @abc.abstractmethod
    def update_features(self, real: Any = None, generated: Any = None) -> None:
        """Take in what `extract` made of the images of either side, or of both."""

    @abc.abstractmethod
    def result(self) -> Any:
        """Return the figure, a float, or a dictionary of them by name, worked out in float64. Not within a compiled step."""

    def extract(self, images: Any) -> Any:
        """Return what the metric needs of images (batch, height, width, channels) in [0, 1] or uint8."""
        return self.extractor.features(inputs.as_unit_range(images))

    def update_state(self, real_images: Any = None, generated_images: Any = None, sample_weight: Any = None) -> None:
        """Take in a batch of each side. All images count alike: there are no sample weights.

        Args:
            real_images, generated_images: (batch, height, width, channels), floats in [0, 1] or uint8; or None.
        """
        if sample_weight is not None:
            raise ValueError(f"{self.name} counts all images alike: sample_weight must be None")
        sides = (real_images if self.real_is_used else None, generated_images)
        self.update_features(*(None if images is None else self.extract(images) for images in sides))

    def merge_state(self, metrics: Sequence[ImageMetric]) -> None:
        """Take in what other metrics of the same settings have seen, on another machine say."""
        for metric in metrics:
            if type(metric) is not type(self) or metric._settings() != self._settings():
                raise ValueError(f"only metrics of the same settings can be merged, got {metric!r} and {self!r}")
            for name, state in vars(self).items():
                if hasattr(state, "merge"):
                    state.merge(getattr(metric, name))

    def _settings(self) -> tuple:
        """What must be equal for two metrics to have counted the same thing."""
        config = {key: value for key, value in self.get_config().items() if key not in ("extractor", "name")}
        return config, type(self.extractor), self.extractor.feature_dims

    def get_config(self) -> dict[str, Any]:
        return {"extractor": keras.saving.serialize_keras_object(self.extractor), "name": self.name}


def checked_features(features: Any, what: str, dims: int | None = None) -> np.ndarray:
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


def require(number: int, minimum: int, what: str, metric: str) -> None:
    """Raise ValueError unless there are enough images for a metric."""
    if number < minimum:
        raise ValueError(f"{metric} needs at least {minimum} {what} images, got {number}")


def of_images_or_features(
    real: Any, generated: Any, metric_class: type[ImageMetric], extractor: Any, comparable: bool, **options: Any
) -> Any:
    """Return the two sides as arrays of features, if they are that, or a metric that has seen their images.

    Args:
        real, generated: features (images, dims); images (images, height, width, channels); or data sets of batches of these
            images.
        comparable: whether papers' extractor is to be used.
    """
    if comparable:
        if extractor not in (None, "inception_2015"):
            raise ValueError(f"comparable=True chooses the extractor of the literature: leave out {extractor!r}")
        extractor = "inception_2015"
    ranks = [len(side.shape) if inputs.is_array(side) else None for side in (real, generated)]
    if ranks == [2, 2]:
        if extractor is not None:
            raise ValueError(
                "these are features already: no extractor is needed, and comparable=True cannot be promised"
            )
        real = checked_features(real, "real")
        return real, checked_features(generated, "generated", real.shape[1])
    for side, data in (("real", real), ("generated", generated)):
        if inputs.is_array(data) and len(data.shape) != 4:
            raise ValueError(
                f"{side} must be features (images, dims) like the other side, or images (images, height, width, channels), "
                f"got shape {tuple(data.shape)}"
            )
    metric = metric_class(extractor=extractor or "inception_v3", **options)
    for side, data in (("real", real), ("generated", generated)):
        for batch in inputs.iterate_batches(data, 256)[0]:
            metric.update_state(**{f"{side}_images": inputs.images_of(batch)})
    return metric


def warn_of_few(number: int, enough: int, message: str) -> None:
    if number < enough:
        warnings.warn(message, stacklevel=4)
