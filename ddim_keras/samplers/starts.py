"""Where walks of few steps may start: below pure noise, at what the data's mean and covariance make
of it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from ddim_keras.support.configurable import Configurable
from ddim_keras.support.types import Array, Config, Images


@keras.saving.register_keras_serializable("ddim_keras")
class GaussianStart(Configurable):
    """Carries noise to a lower level as the ODE does for data N(mean, covariance), without the
    network: high up, noisy images are nearly those of such data. Along each axis of the covariance

        (x - a mean) / sqrt(a^2 variance + b^2)

    stays as it is.

    Args:
        angles: of the level that noise comes from, and of the lower one that it is carried to; the
            noise rate is the sine of each, the signal rate its cosine.
        mean: (dims,), dims being height x width x channels of images as the network sees them, of
            about unit variance. Kept in float16, as are the axes.
        axes: (rank, dims), orthonormal, those of the largest variances.
        variances: (rank,), along the axes.
        rest: the variance of every direction across them.

    Raises:
        ValueError: parts that do not fit each other, or noise of another shape.

    Source: Wang & Vastola 2024, "The Unreasonable Effectiveness of Gaussian Score Approximation for
        Diffusion Models"; the analytic first step of Dockhorn et al. 2022 is its case of no
        variance.

    Examples:

    >>> start = GaussianStart([1.55, 1.2], np.zeros(4), np.eye(4)[:1], [2.0], 0.5)
    >>> tuple(start(np.ones((3, 2, 2, 1), "float32")).shape)
    (3, 2, 2, 1)
    """

    def __init__(
        self,
        angles: Sequence[float],
        mean: Array | str,
        axes: Array | str,
        variances: Sequence[float],
        rest: float,
    ):
        self.angles = [float(angle) for angle in angles]
        if len(self.angles) != 2 or not 0.0 < self.angles[1] <= self.angles[0] <= math.pi / 2:
            raise ValueError(f"angles must be two between 0 and pi / 2, falling, got {angles!r}")
        self.variances = [float(variance) for variance in variances]
        self.rest = float(rest)
        if not all(math.isfinite(each) and each >= 0.0 for each in (*self.variances, self.rest)):
            raise ValueError(
                f"variances must be finite and at least 0, got {variances!r}, {rest!r}"
            )
        self.mean = _unpacked("mean", mean)
        rank, dims = len(self.variances), self.mean.size
        found = _unpacked("axes", axes)
        if found.size != rank * dims:
            raise ValueError(
                f"axes must hold {rank} directions of {dims} numbers, as there are variances and "
                f"numbers of the mean, got {found.size} numbers"
            )
        self.axes = found.reshape(rank, dims)

    def __call__(self, noise: Images) -> Images:
        """Return where noise (batch, height, width, channels) of the first level is carried to."""
        noise = ops.convert_to_tensor(noise, dtype="float32")
        if math.prod(noise.shape[1:]) != self.mean.size:
            raise ValueError(
                f"this start is for images of {self.mean.size} numbers, got some of shape "
                f"{tuple(noise.shape[1:])}"
            )
        (across, along), moved = self.affine()
        flat = ops.reshape(noise, (-1, self.mean.size))
        of_axes = ops.matmul(ops.matmul(flat, self.axes.T) * along, self.axes)
        carried = across * flat + of_axes + moved
        return ops.reshape(carried, (-1, *noise.shape[1:]))

    def affine(self) -> tuple[tuple[float, Array], Array]:
        """Return ((c, (rank,) d), (dims,) e): noise x becomes c x + (x axes^T) d axes + e."""
        first, last = self.angles

        def scale(variances: Array | float) -> Array:
            before, after = (
                np.sqrt(np.cos(angle) ** 2 * np.asarray(variances) + np.sin(angle) ** 2)
                for angle in (first, last)
            )
            return np.asarray(after / before)

        across = float(scale(self.rest))
        along = scale(np.array(self.variances)) - across
        mean, axes = self.mean.astype("float64"), self.axes.astype("float64")
        carried_mean = across * mean + (mean @ axes.T * along) @ axes
        moved = np.cos(last) * mean - np.cos(first) * carried_mean
        return (across, along.astype("float32")), moved.astype("float32")

    def to(self, angle: float) -> GaussianStart:
        """Return the start that carries to another level."""
        return GaussianStart(
            [self.angles[0], angle], self.mean, self.axes, self.variances, self.rest
        )

    @classmethod
    def of(cls, images: np.ndarray, angles: Sequence[float], rank: int) -> GaussianStart:
        """Measure mean and covariance of images (number, ...) as the network sees them."""
        flat = np.asarray(images, "float64").reshape(len(images), -1)
        mean = flat.mean(axis=0)
        number, dims = flat.shape
        _, deviations, axes = np.linalg.svd(flat - mean, full_matrices=False)
        variances = deviations**2 / max(number - 1, 1)
        rank = min(rank, len(variances))
        left = dims - rank
        rest = float(variances[rank:].sum() / left) if left else 0.0
        return cls(angles, mean, axes[:rank], variances[:rank].tolist(), rest)

    def get_config(self) -> Config:
        return {
            "angles": self.angles,
            "mean": _packed(self.mean),
            "axes": _packed(self.axes),
            "variances": self.variances,
            "rest": self.rest,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(angle={self.angles[1]:.4g}, rank={len(self.variances)})"


def _packed(values: Array) -> str:
    """Numbers as text for a file: little-endian float16 in base64."""
    return base64.b64encode(values.astype("<f2").tobytes()).decode("ascii")


def _unpacked(name: str, values: Array | str) -> Array:
    """Return float32 numbers, rounded to float16, of an array or of such text."""
    if isinstance(values, str):
        try:
            values = np.frombuffer(base64.b64decode(values, validate=True), "<f2")
        except ValueError as error:
            raise ValueError(f"{name} must be float16 numbers in base64: {error}") from error
    rounded = np.asarray(values).astype("float16").astype("float32")
    if not rounded.size or not np.isfinite(rounded).all():
        raise ValueError(f"{name} must be finite numbers")
    return rounded.ravel()
