"""The variational bound of the discrete process, as DDPM reports it.

    -log p(x_0) <= KL(q(x_T | x_0) | N(0, I)) + sum of KL(q(x_s | x_t, x_0) | p(x_s | x_t))
                   - log p(x_0 | x_1)

with q of eq. 7 at eta = 1 and p the same with the predicted image for x_0 (eq. 10). The last term
is that of 256 levels: the share of N(pred_image, b_1^2) that falls into a level's bin; the
outermost are open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from keras import ops

from ddim_keras.diffusion.forward import posterior_deviation
from ddim_keras.diffusion.levels import Levels
from ddim_keras.diffusion.spacings import Spacing, diffusion_times, levels_of
from ddim_keras.samplers import Conditions
from ddim_keras.sampling.choices import EVEN_TIMES
from ddim_keras.sampling.conditioning import conditioning
from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.likelihood import LogLikelihood, checked_images, scale_of, summary
from ddim_keras.support import random
from ddim_keras.support.types import Array, Condition, GuidanceLike, ImageArray, Images, Labels

_TABLE_ROWS = 4096
_SMALLEST_SHARE = 1e-12


def variational_bound(
    engine: Engine,
    images: Images,
    diffusion_steps: int | Sequence[float] = 100,
    *,
    spacing: str | Spacing = EVEN_TIMES,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    seed: int = 0,
    batch_size: int | None = None,
    verbose: str | int = "auto",
) -> LogLikelihood:
    """Return a lower bound of the log-likelihood of images of 256 levels, DDPM's.

    One noisy image is drawn for each step, and one evaluation made. The bound of few steps is
    loose; DDPM's is that of all T times, `diffusion_steps=1000`.

    Args:
        images: (batch, height, width, channels), float in [0, 1] or uint8; rounded to 256 levels.
        diffusion_steps: S, or the times to walk over, as for `generate`.
        spacing, labels, condition, guidance, batch_size, verbose: as for `generate`.
        seed: of the noises.

    Returns:
        A `LogLikelihood`, whose nats are the bound.

    Raises:
        ValueError: an argument out of its range, or images of a wrong shape or range.

    Source: Ho, Jain & Abbeel 2020, section 3.

    Examples:

    >>> model = DiffusionModel(image_size=8, widths=[8], block_depth=1)
    >>> images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3))
    >>> model.variational_bound(images, 3).bits_per_dim.shape
    (2,)
    """
    seed = engine.seed(seed)
    images = checked_images(engine, images)
    numbers = np.rint(255.0 * images)
    mean, deviation = scale_of(engine)
    normalized = ((numbers / 255.0 - mean) / deviation).astype("float32")
    levels = levels_of(engine.schedule, diffusion_times(diffusion_steps, spacing, engine.schedule))
    table, steps = _table(engine, levels)
    told = conditioning(engine, len(images), labels, condition, guidance)
    nats = np.zeros(len(images))
    for batch in engine.batches(len(images), batch_size, verbose):
        wrappers, kept = told.of(batch), slice(0, batch.stop - batch.start)
        part = batch.of(normalized)
        arguments = (part, table, np.int32(steps), np.uint32(seed), batch.indices)
        total, predicted = engine.on_device(
            "variational_bound",
            _errors_on_device(engine, wrappers),
            wrappers,
            *arguments,
            axes=(0, -1, -1, -1, 0),
            output_axes=(0, 0),
        )
        predicted = ops.convert_to_numpy(engine.checked(predicted))
        found = -ops.convert_to_numpy(total).astype("float64") - _of_the_noise_end(part, levels)
        width = float(levels.noise_rates[-2]) * deviation * 255.0
        found += _of_levels(batch.of(numbers), 255.0 * (mean + deviation * predicted), width)
        nats[batch.start : batch.stop] = found[kept]
    return summary(nats, images[0].size if len(images) else 1)


def _errors_on_device(engine: Engine, wrappers: Sequence[Wrapper]) -> Callable:
    """Return a function, to be compiled, of (images, table, steps, seed, indices, arrays): the sum
    of the weighted squared errors of each image, and the image predicted last.
    """

    def on_device(images, table, steps, seed, indices, arrays):
        denoise = engine.wrapped(wrappers, arrays, seed, indices)
        images, table = (ops.convert_to_tensor(part) for part in (images, table))

        def step(index, total, _):
            level, noise, signal, weight = ops.unstack(ops.take(table, index, axis=0), num=4)
            noises = random.normal(seed, index + 1, indices, engine.image_shape)
            noisy_images = signal * images + noise * noises
            _, predicted = denoise(noisy_images, noise, signal, Conditions(level))
            errors = ops.sum((images - predicted) ** 2, axis=(1, 2, 3))
            return index + 1, total + weight * errors, predicted

        start = (ops.zeros_like(steps), ops.zeros_like(images[:, 0, 0, 0]), images)
        _, total, predicted = ops.while_loop(lambda index, *_: index < steps, step, start)
        return total, predicted

    return on_device


def _table(engine: Engine, levels: Levels) -> tuple[npt.NDArray[np.float32], int]:
    """Return a row a step, (what the network is told, noise rate, signal rate, weight of the
    squared error of the predicted image), and the number of steps.
    """
    signals, noises = levels
    rows = np.zeros((len(signals) - 1, 4))
    rows[:, 1], rows[:, 2] = noises[:-1], signals[:-1]
    rows[:, 0] = engine.schedule.conditions(signals[:-1], noises[:-1])
    for row, index in zip(rows[:-1], range(len(rows) - 1)):
        signal, next_signal = signals[index : index + 2]
        noise, next_noise = noises[index : index + 2]
        sigma = float(posterior_deviation(signal, noise, next_signal, next_noise, 1.0))
        direction = np.sqrt(max(next_noise**2 - sigma**2, 0.0))
        row[3] = 0.5 * ((next_signal - direction * signal / noise) / sigma) ** 2
    table = np.zeros((max(_TABLE_ROWS, len(rows)), 4), "float32")
    table[: len(rows)] = rows
    return table, len(rows)


def _of_the_noise_end(images: ImageArray, levels: Levels) -> Array:
    """Return KL(N(a x_0, b^2) | N(0, 1)) of each image, at the first level."""
    signal, noise = levels.signal_rates[0], levels.noise_rates[0]
    each = 0.5 * ((signal * images.astype("float64")) ** 2 + noise**2 - 1.0) - np.log(noise)
    return each.sum(axis=(1, 2, 3))


def _of_levels(numbers: Array, middles: Array, widths: Array) -> Array:
    """Return the logarithm of the share of N(middles, widths^2) that falls to an image's levels."""

    def share_below(ends: Array) -> Array:
        return 0.5 * (1.0 + ops.convert_to_numpy(ops.erf((ends - middles) / widths / np.sqrt(2.0))))

    above = np.where(numbers >= 255.0, 1.0, share_below(numbers + 0.5))
    below = np.where(numbers <= 0.0, 0.0, share_below(numbers - 0.5))
    return np.log(np.maximum(above - below, _SMALLEST_SHARE)).sum(axis=(1, 2, 3))
