"""How likely images are under a trained model, by the ODE that generates them.

The ODE of eq. 13, in the angle theta = atan(b / a), is dx = (a pred_noise - b pred_image) dtheta.
It carries an image to noise, whose density is known, and densities change by the divergence on the
way:

    log p(x_0) = log N(x_T; 0, I) + integral of div(dx / dtheta) dtheta

Below the lowest noise level that the network was trained at, the noise predicted there fades to 0
at the image, in proportion to b / a, as it does for a smooth density. So the result is the
logarithm of a density that integrates to one, but for the error of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.diffusion.spacings import Spacing, diffusion_times, levels_of
from ddim_keras.samplers import Conditions, Denoiser
from ddim_keras.sampling.choices import EVEN_TIMES
from ddim_keras.sampling.conditioning import Conditioning, conditioning
from ddim_keras.sampling.engine import Batch, Engine
from ddim_keras.support import backend, random
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.types import (
    Array,
    Condition,
    GuidanceLike,
    ImageArray,
    Images,
    Labels,
    Tensor,
)

DIVERGENCES = ("exact", "hutchinson")
# Tables are padded to this many rows, so that other numbers of steps do not compile anew.
_TABLE_ROWS = 1024
# Numbers of steps are drawn below this; probes are drawn under it.
_PROBES = 3 << 24


class LogLikelihood(NamedTuple):
    """How likely each image is.

    Attributes:
        nats: (batch,), float64. Of levels 0 to 255 the logarithm of a probability, or rather a
            lower bound of it; of real numbers that of a density of pixels in [0, 1].
        bits_per_dim: (batch,), -nats / (log(2) pixels).
        mean_bits_per_dim: of all images.
        standard_error: of that mean, from image to image; NaN for a single one.
    """

    nats: Array
    bits_per_dim: Array
    mean_bits_per_dim: float
    standard_error: float


def log_likelihood(
    engine: Engine,
    images: Images,
    diffusion_steps: int | Sequence[float] = 100,
    *,
    divergence: str = "hutchinson",
    samples: int = 1,
    dequantize: bool = True,
    spacing: str | Spacing = EVEN_TIMES,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    seed: int = 0,
    batch_size: int | None = None,
    verbose: str | int = "auto",
) -> LogLikelihood:
    """Return how likely images are under the model, in nats and in bits for each dimension.

    Heun's method takes the ODE from the images to noise, with two evaluations a step, and a
    gradient for each. The noise end is taken as standard normal, which it is but for the schedule's
    lowest signal rate.

    Args:
        images: (batch, height, width, channels), float in [0, 1] or uint8.
        diffusion_steps: S, or the times to walk over, as for `generate`; as many more as needed
            lead from the image to the lowest noise level.
        divergence: "exact", with a gradient for each pixel and channel; or "hutchinson", an
            unbiased estimate with one.
        samples: dequantizations and estimates that are averaged.
        dequantize: take the images as 256 levels, each the middle of a bin that is filled evenly,
            as published figures do. False takes them as real numbers.
        spacing, labels, condition, guidance, batch_size, verbose: as for `generate`.
        seed: of dequantizations and estimates.

    Returns:
        A `LogLikelihood`.

    Raises:
        ValueError: an argument out of its range, or images of a wrong shape or range.

    Source: Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3;
    Hutchinson 1990 for the estimate.

    Examples:

    >>> model = DiffusionModel(image_size=8, widths=[8], block_depth=1)
    >>> images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3))
    >>> model.log_likelihood(images, 3).bits_per_dim.shape
    (2,)
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {DIVERGENCES}, got {divergence!r}")
    samples, seed = positive_int("samples", samples), engine.seed(seed)
    images = checked_images(engine, images)
    mean, deviation = scale_of(engine)
    scale = np.broadcast_to(np.log(deviation), images.shape[1:]).sum()
    table, steps = _table(engine, diffusion_steps, spacing)
    told = conditioning(engine, len(images), labels, condition, guidance)
    nats = np.zeros(len(images))
    for sample in range(samples):
        points, bins = images, 0.0
        if dequantize:
            drawn = np.random.default_rng([seed, sample]).uniform(-0.5, 0.5, images.shape)
            points = (np.rint(255.0 * images) + drawn) / 255.0
            bins = images[0].size * np.log(255.0) if len(images) else 0.0
        normalized = ((points - mean) / deviation).astype("float32")
        walk = _Walk(engine, table, steps, divergence, seed, sample, told)
        for batch in engine.batches(len(images), batch_size, verbose):
            kept = slice(0, batch.stop - batch.start)
            found = walk(batch, normalized)[kept]
            nats[batch.start : batch.stop] += (found - scale - bins) / samples
    return summary(nats, images[0].size if len(images) else 1)


def summary(nats: Array, dimensions: int) -> LogLikelihood:
    """Return what images of so many pixels and channels have in nats, in all ways."""
    bits = -nats / (np.log(2.0) * dimensions)
    error = bits.std(ddof=1) / np.sqrt(len(bits)) if len(bits) > 1 else np.nan
    return LogLikelihood(nats, bits, float(bits.mean()) if len(bits) else np.nan, float(error))


def checked_images(engine: Engine, images: Images) -> np.ndarray:
    """Return images in [0, 1], float64.

    Raises:
        ValueError: images of a wrong shape or range, or none.
    """
    if not len(engine.normalize(images)):
        raise ValueError("expected at least one image, got none: their mean would be no number")
    return ops.convert_to_numpy(inputs.as_unit_range(inputs.as_array(images))).astype("float64")


def scale_of(engine: Engine) -> tuple[Array, Array]:
    """Return mean and standard deviation that the normalizer takes from images."""
    normalizer = engine.normalizer
    mean = ops.convert_to_numpy(normalizer.mean).astype("float64")
    return mean, ops.convert_to_numpy(normalizer.standard_deviation()).astype("float64")


def _table(
    engine: Engine, diffusion_steps: int | Sequence[float], spacing: str | Spacing
) -> tuple[npt.NDArray[np.float32], int]:
    """Return a row for each level from the image to noise, and the number of steps between them.

    A row is (the angle, what the network is told, noise rate, signal rate, by how much the noisy
    image is scaled for it, weights of pred_image, pred_noise and x in dx / dtheta).
    """
    schedule = engine.schedule
    levels = levels_of(schedule, diffusion_times(diffusion_steps, spacing, schedule))
    lowest_signal, lowest_noise = (float(rate) for rate in schedule(schedule.first_time))
    lowest = np.arctan2(lowest_noise, lowest_signal)
    angles = np.arctan2(levels.noise_rates, levels.signal_rates)[-2::-1]
    angles = np.concatenate([[lowest], angles[angles > lowest + 1e-9]])
    if len(angles) < 2:
        raise ValueError("give times above the lowest noise level: there is no way to noise")
    # The way to the lowest level, in steps no larger than the others.
    count = max(int(np.ceil(lowest / np.diff(angles).mean())), 1)
    below = np.linspace(0.0, lowest, count + 1)[:-1]
    rows = np.zeros((len(below) + len(angles), 8))
    rows[:, 0] = np.concatenate([below, angles])
    cosines, sines = np.cos(rows[:, 0]), np.sin(rows[:, 0])
    rows[:, 2], rows[:, 3], rows[:, 4] = sines, cosines, 1.0
    rows[:, 5], rows[:, 6] = -sines, cosines
    few = slice(0, len(below))
    rows[few, 2], rows[few, 3] = lowest_noise, lowest_signal
    rows[few, 4] = lowest_signal / cosines[few]
    rows[few, 5], rows[few, 7] = 0.0, -np.tan(rows[few, 0])
    rows[few, 6] = np.tan(rows[few, 0]) / np.tan(lowest) / cosines[few]
    rows[:, 1] = schedule.conditions(rows[:, 3], rows[:, 2])
    size = max(_TABLE_ROWS, 1 << (len(rows) - 1).bit_length())
    table = np.zeros((size, rows.shape[1]), "float32")
    table[: len(rows)] = rows
    return table, len(rows) - 1


class _Walk:
    """The walks of one sample, compiled once."""

    def __init__(
        self,
        engine: Engine,
        table: npt.NDArray[np.float32],
        steps: int,
        divergence: str,
        seed: int,
        sample: int,
        told: Conditioning,
    ):
        self.engine, self.table, self.steps = engine, table, np.int32(steps)
        self.divergence, self.told = divergence, told
        self.seed, self.sample = np.uint32(seed), np.int32(sample)

    def __call__(self, batch: Batch, normalized: ImageArray) -> Array:
        """Return the logarithms of the normalised images' densities, (batch,)."""
        engine, shape = self.engine, self.engine.image_shape
        wrappers, exactly = self.told.of(batch), self.divergence == "exact"

        def on_device(images, table, steps, seed, sample, indices, arrays):
            images, table = (ops.convert_to_tensor(part) for part in (images, table))
            denoise = engine.wrapped(wrappers, arrays, seed, indices)
            probes = ops.sign(random.normal(seed, sample + _PROBES, indices, shape))
            field = _exact_field(denoise) if exactly else _estimated_field(denoise, probes)
            return _walked(field, images, table, steps)

        noises, growth = engine.on_device(
            f"likelihood_{self.divergence}",
            on_device,
            wrappers,
            batch.of(normalized),
            self.table,
            self.steps,
            self.seed,
            self.sample,
            batch.indices,
            axes=(0, -1, -1, -1, -1, 0),
            output_axes=(0, 0),
        )
        noises = ops.convert_to_numpy(engine.checked(noises)).astype("float64")
        size = noises[0].size
        of_noise = -0.5 * (noises**2).sum(axis=(1, 2, 3)) - 0.5 * size * np.log(2.0 * np.pi)
        return of_noise + ops.convert_to_numpy(growth)


Field = Callable[[Images, Tensor], tuple[Images, Tensor]]


def _walked(field: Field, images: Images, table: Tensor, steps: Tensor) -> tuple[Images, Tensor]:
    """Return the noises at the end, and the integral of the divergence, (batch,)."""

    def step(index, images, growth):
        here, there = ops.take(table, index, axis=0), ops.take(table, index + 1, axis=0)
        width = there[0] - here[0]
        slopes, divergences = field(images, here)
        next_slopes, next_divergences = field(images + width * slopes, there)
        images = images + 0.5 * width * (slopes + next_slopes)
        return index + 1, images, growth + 0.5 * width * (divergences + next_divergences)

    start = (ops.zeros_like(steps), images, ops.zeros_like(images[:, 0, 0, 0]))
    _, images, growth = ops.while_loop(lambda index, *_: index < steps, step, start)
    return images, growth


def _slopes_at(denoise: Denoiser, row: Tensor) -> Callable[[Images], Images]:
    """dx / dtheta as a function of x alone."""
    _, condition, noise_rate, signal_rate, scale, of_image, of_noise, of_x = ops.unstack(row, num=8)

    def slopes(noisy_images: Images) -> Images:
        pred_noises, pred_images = denoise(
            scale * noisy_images, noise_rate, signal_rate, Conditions(condition)
        )
        return of_image * pred_images + of_noise * pred_noises + of_x * noisy_images

    return slopes


def _estimated_field(denoise: Denoiser, probes: Images) -> Field:
    def field(noisy_images, row):
        slopes, pulled = backend.value_and_slope(_slopes_at(denoise, row), noisy_images, probes)
        return slopes, ops.sum(pulled * probes, axis=(1, 2, 3))

    return field


def _exact_field(denoise: Denoiser) -> Field:
    def field(noisy_images, row):
        function = _slopes_at(denoise, row)
        shape = noisy_images.shape[1:]
        size = int(np.prod(shape))

        def add(index, divergences):
            probe = ops.reshape(ops.one_hot(index, size), (1, *shape))
            probes = probe + ops.zeros_like(noisy_images)
            _, pulled = backend.value_and_slope(function, noisy_images, probes)
            return index + 1, divergences + ops.sum(pulled * probes, axis=(1, 2, 3))

        start = (ops.zeros((), "int32"), ops.zeros_like(noisy_images[:, 0, 0, 0]))
        _, divergences = ops.while_loop(lambda index, _: index < size, add, start)
        return function(noisy_images), divergences

    return field
