"""Restoring images from measurements with a model that was trained for nothing of the kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from keras import ops

from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.diffusion.spacings import Spacing
from ddim_keras.networks.layers import ImageNormalization
from ddim_keras.samplers import DDIM
from ddim_keras.sampling.choices import EVEN_TIMES
from ddim_keras.sampling.clipping import Clipping, clipped
from ddim_keras.sampling.conditioning import conditioning
from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.operators import Operator
from ddim_keras.support.arguments import not_negative
from ddim_keras.support.types import (
    Condition,
    GuidanceLike,
    ImageArray,
    Images,
    ImageShape,
    Labels,
    Tensor,
)

METHODS = ("ddnm", "diffpir")
_RESTORATION_ETA = 0.85
# Rounds of clipping and projecting that bring an image within [0, 1] and the measurements, at most;
# the error that ends them, and the step: where no image measures as given, they stand still.
_ROUNDS, _AGREEMENT, _STANDSTILL = 2000, 2e-5, 1e-8
# How far measurements may lie beyond the range of what is measured, besides their noise.
_BEYOND = 0.1


def restore(
    engine: Engine,
    measurements: Tensor,
    operator: Operator,
    diffusion_steps: int | Sequence[float] = 50,
    *,
    eta: float = _RESTORATION_ETA,
    noise_level: float = 0.0,
    method: str = "ddnm",
    spacing: str | Spacing = EVEN_TIMES,
    schedule: str | Schedule | None = None,
    clipping: str | Clipping | None = None,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    seed: int | None = None,
    batch_size: int | None = None,
    verbose: str | int = "auto",
) -> ImageArray:
    """Make images that measure as given: larger, sharper, coloured, completed.

    Each predicted image x is replaced by x + (A^T A + ridge)^-1 A^T (y - A x), which without noise
    is the nearest image that measures as y; then a step of DDIM is taken. The same measurements
    give different images for different seeds.

    Args:
        measurements: (batch, ...), what `operator` makes of images in [0, 1], or uint8.
        operator: a `ddim_keras.operators.Operator`, such as `SuperResolution(4)`.
        diffusion_steps: S, or the times to walk over, as for `generate`.
        eta: stochasticity of the steps (eq. 16); DDNM's 0.85.
        noise_level: standard deviation of the noise in the measurements, where images are in
            [0, 1]. At 0 the result agrees with them.
        method: "ddnm" or "diffpir", which differ where there is noise: how far a predicted image is
            trusted, noise_rate or noise_rate / signal_rate standard deviations.
        spacing, schedule, seed, batch_size, verbose: as for `generate`.
        clipping: likewise; None for the model's own, or "none".
        labels, condition, guidance: likewise.

    Returns:
        float32 array (batch, height, width, channels) in [0, 1].

    Raises:
        ValueError: measurements of a wrong shape or range, or an operator that does not fit the
            images, or is not linear, or whose functions are no pair.

    Source: Wang, Yu & Zhang 2023 ("DDNM"); Zhu et al. 2023 ("DiffPIR"); with noise, "ddnm" weighs
    as Song et al. 2023 ("Pseudoinverse-guided diffusion models") do.

    Examples:

    >>> from ddim_keras.operators import SuperResolution
    >>> model = DiffusionModel(image_size=8, widths=[8], block_depth=1)
    >>> model.restore(np.full((2, 2, 2, 3), 0.5), SuperResolution(4), 3, seed=0).shape
    (2, 8, 8, 3)
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    noise_level = not_negative("noise_level", noise_level)
    if not isinstance(operator, Operator):
        raise ValueError(
            f"operator must be an Operator, such as SuperResolution(4), got {operator!r}"
        )
    operator = operator.built(engine.image_shape)
    if noise_level > 0.0:
        operator.check_gain(engine.image_shape)
    measured = _checked_measurements(measurements, operator, engine.image_shape, noise_level)
    _, planned = engine.plan(DDIM(eta), diffusion_steps, spacing, schedule)
    told = conditioning(engine, len(measured), labels, condition, guidance)
    outside = clipped(engine.defaults.clipping_for(clipping), engine.normalizer)
    seed = engine.seed(seed)
    result = np.empty((len(measured), *engine.image_shape), "float32")
    for batch in engine.batches(len(measured), batch_size, verbose):
        arrays, known = operator.arrays_of(batch.of), batch.of(measured)
        measuring = Measured(operator, arrays, known, noise_level, method, engine.normalizer)
        wrappers = [*told.of(batch), *outside, measuring]
        noises = engine.draw(seed, batch.indices)
        images = engine.walk(noises, planned, seed, batch.indices, wrappers)
        images = engine.denormalize(images)
        if noise_level == 0.0:
            images = engine.on_device(
                "agreeing", measuring.agreeing, [measuring], images, axes=(0,), output_axes=0
            )
        batch.store(result, images)
    return result


class Measured(Wrapper):
    """A denoiser whose predicted images are drawn to what was measured, and the predicted noises
    made to fit them.

    Args:
        operator: what measured, built for the images.
        arrays: its arrays for these images.
        measurements: (batch, ...).
        noise_level: of the measurements.
        method: "ddnm" or "diffpir".
        normalizer: says which images are in [0, 1].
    """

    def __init__(
        self,
        operator: Operator,
        arrays: Sequence[np.ndarray],
        measurements: np.ndarray,
        noise_level: float,
        method: str,
        normalizer: ImageNormalization,
    ):
        self.operator, self.method, self.normalizer = operator, method, normalizer
        self.key = ("measured", operator.key, method)
        self.arrays = (measurements, np.full((), noise_level, "float32"), *arrays)
        self._axes = (0, -1, *operator.axes)

    @property
    def axes(self) -> Sequence[int]:
        return self._axes

    def wrap(self, denoise, arrays, draw_noises):
        measurements, noise_level, *own = (ops.convert_to_tensor(array) for array in arrays)

        def measured(noisy_images, noise_rates, signal_rates, conditions):
            _, pred_images = denoise(noisy_images, noise_rates, signal_rates, conditions)
            deviation, mean = self.normalizer.standard_deviation(), self.normalizer.mean
            images = mean + pred_images * deviation
            trust = noise_rates**2 * ops.mean(deviation**2)
            if self.method == "diffpir":
                trust = trust / ops.maximum(signal_rates, 1e-6) ** 2
            residual = measurements - self.operator.forward(images, *own)
            ridge = noise_level**2 / trust
            images = images + self.operator.regularized_inverse(residual, ridge, *own)
            pred_images = (images - mean) / deviation
            return (noisy_images - signal_rates * pred_images) / noise_rates, pred_images

        return measured

    def agreeing(self, images: Images, arrays: Sequence[Sequence[Tensor]]) -> Images:
        """As `agreeing`, to be compiled; `arrays` are those of this wrapper alone."""
        measured, _, *own = (ops.convert_to_tensor(array) for array in arrays[0])
        return agreeing(self.operator, own, ops.convert_to_tensor(images), measured)


def agreeing(
    operator: Operator, arrays: Sequence[Tensor], images: Images, measured: Tensor
) -> Images:
    """Return images in [0, 1] that measure as given, near to images that were cut off to [0, 1].

    Projecting on what was measured and cutting off take turns, each time from a point that the last
    two rounds extrapolate; an image whose way turns back begins anew.

    Args:
        operator: built for the images, with its `arrays` as tensors.
        images: (batch, height, width, channels).
        measured: (batch, ...).

    Source: Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm"; O'Donoghue &
    Candes 2015 for beginning anew.
    """

    def step(number, images, ahead, pace, *_):
        projected = ahead + operator.pseudo_inverse(residual(ahead), *arrays)
        reached = ops.clip(projected, 0.0, 1.0)
        moved = reached - images
        back = ops.sum((ahead - reached) * moved, axis=(1, 2, 3), keepdims=True) > 0.0
        pace = ops.where(back, 1.0, pace)
        next_pace = 0.5 * (1.0 + ops.sqrt(1.0 + 4.0 * pace**2))
        ahead = reached + (pace - 1.0) / next_pace * moved
        error, way = largest(residual(reached)), largest(moved)
        return number + 1, reached, ahead, next_pace, error, way

    def goes_on(number, images, ahead, pace, error, way):
        return (number < _ROUNDS) & (error > _AGREEMENT) & (way > _STANDSTILL)

    def residual(images: Images) -> Tensor:
        return measured - operator.forward(images, *arrays)

    def largest(values: Tensor) -> Tensor:
        return ops.max(ops.absolute(values))

    pace, way = ops.ones_like(images[:, :1, :1, :1]), ops.ones(())
    start = (ops.zeros((), "int32"), images, images, pace, largest(residual(images)), way)
    return ops.while_loop(goes_on, step, start)[1]


def _checked_measurements(
    measurements: Tensor, operator: Operator, image_shape: ImageShape, noise_level: float
) -> np.ndarray:
    values = np.asarray(ops.convert_to_numpy(measurements))
    values = values / np.float32(255) if values.dtype == np.uint8 else values.astype("float32")
    part = operator.arrays_of(lambda array: array[:1])
    one = operator.forward(ops.zeros((1, *image_shape)), *map(ops.convert_to_tensor, part))
    if not values.ndim or values.shape[1:] != tuple(one.shape[1:]):
        expected = ", ".join(map(str, one.shape[1:]))
        raise ValueError(
            f"measurements by {operator!r} must have shape (batch, {expected}), got {values.shape}"
        )
    operator.check_number(len(values))
    if not np.isfinite(values).all():
        raise ValueError("measurements must be finite, got NaN or infinity")
    if operator.range is not None and len(values):
        (lowest, highest), slack = operator.range, _BEYOND + 6.0 * noise_level
        if values.min() < lowest - slack or values.max() > highest + slack:
            raise ValueError(
                f"measurements by {operator!r} of images in [0, 1] lie from {lowest:.3g} to "
                f"{highest:.3g}, got {values.min():.3g} to {values.max():.3g}: give uint8 or float "
                "pixels in [0, 1], and their noise as noise_level"
            )
    return values
