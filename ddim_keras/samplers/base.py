"""What a sampler is, and the one loop that runs them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from ddim_keras.configurable import Configurable
from ddim_keras.schedules import Schedule

# Tables are padded to this many rows: a compiled loop sees one shape, whatever the number of steps.
_TABLE_ROWS = 4096


class Step(NamedTuple):
    """The coefficients of one step, x_s = image * pred_image + noise * pred_noise + fresh * z with z standard normal."""

    image: Any
    noise: Any
    fresh: Any


class Sampler(Configurable):
    """Base class. A sampler is its update rule: `step` says what the next noisy image is made of.

    The rule is evaluated in float64 on the host, for all steps at once; the device only adds up three images.
    """

    def step(self, signal_rates: Any, noise_rates: Any, next_signal_rates: Any, next_noise_rates: Any) -> Step:
        """Return the coefficients of the steps from the rates at t to those at s.

        Args:
            signal_rates, noise_rates: float64 arrays of shape (steps,), where each step starts.
            next_signal_rates, next_noise_rates: the same where it ends.
        """
        raise NotImplementedError


def step_table(
    sampler: Sampler, schedule: Schedule, diffusion_times: Any, end_on_prediction: bool = True
) -> np.ndarray:
    """Work out all steps of a walk.

    Args:
        sampler: the update rule.
        schedule: diffusion times to rates.
        diffusion_times: (steps + 1,) times in the order they are visited. The network is called at all but the last.
        end_on_prediction: whether the last step returns the predicted image itself, with no noise left or added.

    Returns:
        float32 array of shape (rows, 5), padded with zero rows: signal rate and noise rate where the network is
        called, then the coefficients of `Step`.
    """
    signal_rates, noise_rates = schedule(np.asarray(diffusion_times, "float64"))
    step = sampler.step(signal_rates[:-1], noise_rates[:-1], signal_rates[1:], noise_rates[1:])
    rows = np.stack([signal_rates[:-1], noise_rates[:-1], *step], axis=1)
    if end_on_prediction:
        rows[-1, 2:] = Step(image=1.0, noise=0.0, fresh=0.0)
    table = np.zeros((max(_TABLE_ROWS, 1 << (len(rows) - 1).bit_length()), rows.shape[1]), "float32")
    table[: len(rows)] = rows
    return table


def walk(
    denoise: Callable[[Any, Any, Any], tuple[Any, Any]],
    noisy_images: Any,
    table: Any,
    first_step: Any,
    last_step: Any,
    draw_noises: Callable[[Any], Any],
) -> tuple[Any, Any]:
    """Take the steps first_step, ..., last_step - 1 of a table.

    Args:
        denoise: (noisy_images, noise_rate, signal_rate) -> (pred_noises, pred_images); the rates are scalars.
        noisy_images: (batch, height, width, channels), the state at the first step's start.
        table: what `step_table` returned, as a tensor.
        first_step, last_step: int32 scalars; their values are not compiled in.
        draw_noises: step number -> standard normal noises shaped as `noisy_images`. Only called where noise is added.

    Returns:
        (noisy images after the last step, the images predicted in it).
    """

    def take_step(index, noisy_images, _):
        signal_rate, noise_rate, image, noise, fresh = ops.unstack(ops.take(table, index, axis=0), num=5)
        pred_noises, pred_images = denoise(noisy_images, noise_rate, signal_rate)
        noisy_images = image * pred_images + noise * pred_noises
        noisy_images = ops.cond(
            fresh > 0.0, lambda: noisy_images + fresh * draw_noises(index + 1), lambda: noisy_images
        )
        return index + 1, noisy_images, pred_images

    _, noisy_images, pred_images = ops.while_loop(
        lambda index, *_: index < last_step, take_step, (first_step, noisy_images, ops.zeros_like(noisy_images))
    )
    return noisy_images, pred_images
