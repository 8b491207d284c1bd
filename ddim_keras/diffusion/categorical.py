"""The categorical process of the paper's appendix A: how a category becomes any category, and back.

With alpha_t the chance that x_t still is x_0, and K categories, a vector of chances for each pixel
or token (one-hot where it is known):

    q(x_t | x_0)      = Cat(alpha_t x_0 + (1 - alpha_t) / K)
    q(x_s | x_t, x_0) = Cat(sigma x_t + (alpha_s - sigma alpha_t) x_0
                            + ((1 - alpha_s) - (1 - alpha_t) sigma) / K)

The first follows from the second, for any sigma that leaves all three weights at least 0. So one
network serves all of them, as with images: sigma = 0 draws x_s anew, and at the largest sigma x_s
is x_t or x_0 and nothing else. A schedule's alpha_t is its signal rate squared.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.support.arguments import unit_number
from ddim_keras.support.types import Array, Times


def stay_chances(schedule: Schedule, diffusion_times: Times) -> Array:
    """Return alpha_t, the chance that a category has not been drawn anew by then, float64.

    Args:
        schedule: diffusion times to rates.
        diffusion_times: t in [0, 1], a number or an array.

    Examples:

    >>> from ddim_keras.diffusion.schedules import AngleSchedule
    >>> stay_chances(AngleSchedule(), [0.0, 1.0]).round(4).tolist()
    [0.9025, 0.0004]
    """
    signal_rates, _ = schedule(np.asarray(diffusion_times, "float64"))
    return np.asarray(signal_rates, "float64") ** 2


def step_weights(alpha: npt.ArrayLike, next_alpha: npt.ArrayLike, eta: float) -> Array:
    """Return how much x_t, x_0 and chance count in a step back: three weights that add up to 1.

    sigma is (1 - eta) times the largest it can be, (1 - alpha_s) / (1 - alpha_t).

    Args:
        alpha, next_alpha: alpha_t, and alpha_s of a time s < t; numbers or arrays.
        eta: in [0, 1]; 0 is as deterministic as can be, 1 draws each step anew.

    Returns:
        float64, (..., 3).

    Raises:
        ValueError: eta out of its range, or chances that are not in order.

    Source: Song, Meng & Ermon 2021, appendix A.

    Examples:

    >>> step_weights(0.2, 0.6, eta=0.0).round(3).tolist()
    [0.5, 0.5, 0.0]
    >>> step_weights(0.2, 0.6, eta=1.0).round(3).tolist()
    [0.0, 0.6, 0.4]
    """
    eta = unit_number("eta", eta, "0 is as deterministic as can be, 1 draws afresh")
    alpha, next_alpha = np.asarray(alpha, "float64"), np.asarray(next_alpha, "float64")
    if np.any(alpha < 0.0) or np.any(next_alpha > 1.0) or np.any(alpha >= next_alpha):
        raise ValueError(
            "a step back goes from a time t to an earlier one, whose chance to be what it was is "
            f"larger: expected 0 <= alpha < next_alpha <= 1, got {alpha} and {next_alpha}"
        )
    sigma = (1.0 - eta) * (1.0 - next_alpha) / (1.0 - alpha)
    predicted = next_alpha - sigma * alpha
    uniform = np.maximum((1.0 - next_alpha) - (1.0 - alpha) * sigma, 0.0)
    return np.stack([sigma, predicted, uniform], axis=-1)


def marginal(categories: npt.ArrayLike, alpha: npt.ArrayLike) -> Array:
    """Return q(x_t | x_0), float64 shaped as `categories`.

    Args:
        categories: x_0, (..., K), one-hot or chances.
        alpha: alpha_t, a number or an array that broadcasts against them.

    Examples:

    >>> marginal([0.0, 1.0], 0.5).tolist()
    [0.25, 0.75]
    """
    categories, alpha = np.asarray(categories, "float64"), np.asarray(alpha, "float64")
    return alpha * categories + (1.0 - alpha) / categories.shape[-1]


def posterior(
    noisy_categories: npt.ArrayLike,
    categories: npt.ArrayLike,
    alpha: float,
    next_alpha: float,
    eta: float = 0.0,
) -> Array:
    """Return q(x_s | x_t, x_0), a step back where the categories are known; with a network's
    chances for x_0 it is the generative step.

    Args:
        noisy_categories: x_t, (..., K), one-hot.
        categories: x_0, (..., K), one-hot or chances.
        alpha, next_alpha, eta: as for `step_weights`.

    Returns:
        float64, (..., K), each row adding up to 1.

    Examples:

    >>> posterior([1.0, 0.0], [0.0, 1.0], 0.2, 0.6, eta=0.0).round(3).tolist()
    [0.5, 0.5]
    """
    stays, predicted, uniform = step_weights(alpha, next_alpha, eta)
    noisy_categories = np.asarray(noisy_categories, "float64")
    categories = np.asarray(categories, "float64")
    return stays * noisy_categories + predicted * categories + uniform / categories.shape[-1]
