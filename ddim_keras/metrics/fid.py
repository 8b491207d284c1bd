"""The Fréchet inception distance."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from ddim_keras.metrics.base import ImageMetric, of_images_or_features, require, warn_of_few
from ddim_keras.metrics.states import Sums
from ddim_keras.support.types import ExtractorLike, Features, Tensor


def frechet_distance(
    real_mean: np.ndarray,
    real_covariance: np.ndarray,
    generated_mean: np.ndarray,
    generated_covariance: np.ndarray,
) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared Fréchet distance of two
    Gaussians.

    The square root's trace is that of the symmetric (C1^(1/2) C2 C1^(1/2))^(1/2), from eigenvalues,
    which stays real and finite where covariances are singular.

    Args:
        real_mean, generated_mean: (dims,).
        real_covariance, generated_covariance: (dims, dims).

    Source: Dowson & Landau 1982.
    """
    if not all(
        np.isfinite(part).all()
        for part in (real_mean, real_covariance, generated_mean, generated_covariance)
    ):
        return float("nan")
    values, vectors = np.linalg.eigh(real_covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ generated_covariance @ root)
    trace_of_root = np.sqrt(np.maximum(product, 0.0)).sum()
    squares = np.square(real_mean - generated_mean).sum()
    return float(
        squares + np.trace(real_covariance) + np.trace(generated_covariance) - 2.0 * trace_of_root
    )


def fid(
    real: Features,
    generated: Features,
    extractor: ExtractorLike = None,
    *,
    comparable: bool = False,
) -> float:
    """Return the Fréchet inception distance between real and generated images: 0 if their features
    are distributed alike.

    It shrinks with the number of images, to the number of features and far beyond: compare only
    figures of equal numbers.

    Args:
        real, generated: features (images, dims); or images (images, height, width, channels), in
            [0, 1] or uint8; or data sets of batches of such images.
        extractor: what makes features of images; None for "inception_v3".
        comparable: True uses the 2015 Inception network of the literature ("inception_2015").

    Raises:
        ValueError: fewer than 2 images on a side, or features that are not finite or do not match.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local
    Nash Equilibrium".

    Examples:

    >>> features = np.random.default_rng(0).normal(size=(100, 4))
    >>> round(fid(features, features + 1.0), 6)  # the squared distance of the means
    4.0
    """
    found = of_images_or_features(real, generated, FID, extractor, comparable)
    if isinstance(found, FID):
        return found.result()
    moments = []
    for what, features in zip(("real", "generated"), found):
        require(len(features), 2, what, "FID")
        moments += [
            features.mean(axis=0),
            np.cov(features, rowvar=False).reshape(features.shape[1], -1),
        ]
    _warn_if_singular(min(map(len, found)), found[0].shape[1])
    return frechet_distance(*moments)


@keras.saving.register_keras_serializable("ddim_keras")
class FID(ImageMetric):
    """`fid` as a Keras metric. It keeps the sums of the features and of their products.

    Args:
        extractor: an `Extractor`, its name or a Keras model.
        name: name of the metric.
    """

    minimum_images = 2

    def __init__(self, extractor: ExtractorLike = "inception_v3", name: str = "fid"):
        super().__init__(extractor, name)
        dims = self.extractor.feature_dims
        self._real = Sums(self, "real", (dims,), (dims, dims))
        self._generated = Sums(self, "generated", (dims,), (dims, dims))

    def update_features(
        self, real: Features = None, generated: Features = None, counted: Tensor = None
    ) -> None:
        for sums, features in ((self._real, real), (self._generated, generated)):
            if features is not None:
                features = ops.cast(features, "float32")
                number = ops.shape(features)[0]
                if counted is not None:
                    features = ops.where(counted[:, None] > 0, features, 0.0)
                    number = ops.sum(counted)
                products = ops.matmul(ops.transpose(features), features)
                sums.update(number, ops.sum(features, axis=0), products)

    def result(self) -> float:
        moments: list[np.ndarray] = []
        counts = []
        for what, sums in (("real", self._real), ("generated", self._generated)):
            count, (total, products) = sums.values()
            require(int(count), 2, what, "FID")
            mean = total / count
            moments += [mean, (products - count * np.outer(mean, mean)) / (count - 1.0)]
            counts.append(count)
        _warn_if_singular(int(min(counts)), self.extractor.feature_dims)
        return frechet_distance(*moments)


def _warn_if_singular(number: int, dims: int) -> None:
    warn_of_few(
        number,
        dims + 1,
        f"FID of {number} images with {dims} features: a covariance of {dims} features needs more "
        f"than {dims} images, and the "
        "figure is far too high with fewer. Take more images, an extractor with fewer features, or "
        "KID, which is unbiased",
    )
