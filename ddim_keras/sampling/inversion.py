"""Exact inversion: the latent from which deterministic DDIM makes a given image.

A step of DDIM goes from x' at the rates (a', b') to

    x = a pred_image(x') + b pred_noise(x')

at (a, b). Running the ODE backwards asks the network at x instead of x', which is off by as much as
the prediction changes in the step. Here x' is solved for:

    x' = (a'/a) x + (b' - a' b / a) pred_noise(x')

by fixed-point iteration with Anderson acceleration, each image by itself, in float64 around the
float32 network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddim_keras.support.types import Array, ImageArray, Numbers

_HISTORY = 12


class InversionReport(NamedTuple):
    """How exactly images were encoded.

    Attributes:
        iterations: (steps,), the network evaluations of each step, from the image to the noise.
        residuals: (steps,), the largest error that was left of x in any pixel of any image, in
            standard deviations.
        round_trip_error: the largest difference of a pixel, in [0, 1], between the images and those
            decoded from the latents.
    """

    iterations: Numbers
    residuals: Array
    round_trip_error: float


class ConvergenceError(RuntimeError):
    """An exact inversion that did not converge. `report` is its `InversionReport`."""

    def __init__(self, message: str, report: InversionReport):
        super().__init__(message)
        self.report = report


def invert_step(
    pred_noises: Callable[[ImageArray], ImageArray],
    noisy_images: ImageArray,
    rates: tuple[float, float],
    noisier_rates: tuple[float, float],
    guess: npt.NDArray[np.floating],
    tolerance: float,
    max_iterations: int,
) -> tuple[ImageArray, Array, int]:
    """Solve for the x' that a step of deterministic DDIM takes to x.

    Args:
        pred_noises: x' (batch, height, width, channels) -> the noises predicted in it.
        noisy_images: x, shaped as x'.
        rates: (signal rate, noise rate) of x.
        noisier_rates: those of x'.
        guess: x' to start from.
        tolerance: largest error of x in any pixel that ends the iteration.
        max_iterations: evaluations of `pred_noises` at most.

    Returns:
        (x', its residual for each image (batch,), evaluations made). The best x' met, if none was
        good enough.

    Source: Walker & Ni 2011 for the acceleration.
    """
    (signal, noise), (noisier_signal, noisier_noise) = rates, noisier_rates
    scale = noisier_signal / signal
    gain = noisier_noise - scale * noise
    size = len(noisy_images)
    target = scale * noisy_images.reshape(size, -1).astype("float64")
    current = guess.reshape(size, -1).astype("float64")
    best, best_residuals = current.copy(), np.full(size, np.inf)
    points: list[Array] = []
    steps: list[Array] = []
    iteration = 0
    while iteration < max_iterations:
        iteration += 1
        # What the network sees is float32, so that is the point to judge.
        current = current.astype("float32").astype("float64")
        predicted = pred_noises(current.reshape(noisy_images.shape).astype("float32")).reshape(
            size, -1
        )
        step = target + gain * predicted - current
        residuals = np.abs(step).max(axis=1) / scale
        is_better = residuals < best_residuals
        best[is_better], best_residuals[is_better] = current[is_better], residuals[is_better]
        if best_residuals.max() <= tolerance or not np.isfinite(step).all():
            break
        points, steps = [*points, current][-_HISTORY:], [*steps, step][-_HISTORY:]
        current = _accelerated(points, steps)
    return best.reshape(noisy_images.shape).astype("float32"), best_residuals, iteration


def _accelerated(points: list[Array], steps: list[Array]) -> Array:
    """Where the steps, taken to be linear in the points, would vanish: Anderson's next point."""
    if len(points) == 1:
        return points[0] + steps[0]
    # (batch, pixels, history)
    step_changes = np.stack([later - earlier for earlier, later in zip(steps, steps[1:])], axis=-1)
    point_changes = np.stack(
        [later - earlier for earlier, later in zip(points, points[1:])], axis=-1
    )
    products = step_changes.swapaxes(1, 2) @ step_changes
    sizes = np.trace(products, axis1=1, axis2=2)[:, None, None]
    ridge = 1e-12 * sizes * np.eye(products.shape[-1]) + np.finfo("float64").tiny * np.eye(
        products.shape[-1]
    )
    weights = np.linalg.solve(products + ridge, step_changes.swapaxes(1, 2) @ steps[-1][..., None])
    return points[-1] + steps[-1] - ((point_changes + step_changes) @ weights)[..., 0]
