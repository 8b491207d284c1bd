"""The forward process of the paper's section 3: how an image becomes noise, Markovian or not.

For every sigma the marginals are the same, q(x_t | x_0) = N(a_t x_0, b_t^2 I), so one network
serves them all. What sigma changes is how the noisy images of one image hang together: at sigma = 0
one of them fixes all others.
"""

from __future__ import annotations

import numpy as np

from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.support.arguments import unit_number
from ddim_keras.support.types import Array, Images, Rates, Times


def posterior_deviation(
    signal_rates: Rates,
    noise_rates: Rates,
    next_signal_rates: Rates,
    next_noise_rates: Rates,
    eta: float,
) -> Array:
    """Return sigma of eq. 16, eta (b'/b) sqrt(1 - a^2/a'^2), in float64.

    Args:
        signal_rates, noise_rates: a, b at t.
        next_signal_rates, next_noise_rates: a', b' at s < t.
        eta: 0 makes the process deterministic given x_0, 1 makes it Markovian.
    """
    return (
        eta
        * next_noise_rates
        / noise_rates
        * np.sqrt(added_variance(signal_rates, next_signal_rates))
    )


def added_variance(signal_rates: Rates, next_signal_rates: Rates) -> Array:
    """Return 1 - a^2/a'^2, the variance that the Markovian process adds on its way from s to t;
    DDPM's beta.
    """
    return np.clip(1.0 - (np.asarray(signal_rates, "float64") / next_signal_rates) ** 2, 0.0, 1.0)


def marginal(schedule: Schedule, images: Images, diffusion_times: Times) -> tuple[Images, Array]:
    """Return mean and standard deviation of q(x_t | x_0).

    Args:
        schedule: diffusion times to rates.
        images: x_0, (batch, height, width, channels) of zero mean and unit variance.
        diffusion_times: t in [0, 1], a number or an array that broadcasts against the images; on a
            schedule of T times also integers from 0 to T. So in all of this module.

    Returns:
        (mean, standard deviation); the latter is shaped as `diffusion_times`.

    Examples:

    >>> from ddim_keras.diffusion.schedules import AngleSchedule
    >>> mean, deviation = marginal(AngleSchedule(), np.ones((1, 2, 2, 1)), 1.0)
    >>> round(float(mean[0, 0, 0, 0]), 4), round(float(deviation), 4)
    (0.02, 0.9998)
    """
    signal_rates, noise_rates = _rates(schedule, diffusion_times)
    return signal_rates * images, noise_rates


def posterior(
    schedule: Schedule,
    noisy_images: Images,
    images: Images,
    diffusion_times: Times,
    next_diffusion_times: Times,
    eta: float = 1.0,
) -> tuple[Images, Array]:
    """Return mean and standard deviation of q(x_s | x_t, x_0), eq. 7: a step back when the image is
    known.

        mean = a_s x_0 + sqrt(b_s^2 - sigma^2) (x_t - a_t x_0) / b_t

    Args:
        schedule: diffusion times to rates.
        noisy_images: x_t, shaped as `images`.
        images: x_0, (batch, height, width, channels) of zero mean and unit variance.
        diffusion_times: t in [0, 1].
        next_diffusion_times: s, not above t.
        eta: sets sigma by eq. 16; in [0, 1].

    Returns:
        (mean, sigma), the latter shaped as the times.

    Raises:
        ValueError: s above t, times or eta out of range, or no noise at t.

    Examples:

    >>> from ddim_keras.diffusion.schedules import AngleSchedule
    >>> noisy, image = np.zeros((1, 2, 2, 1)), np.ones((1, 2, 2, 1))
    >>> mean, deviation = posterior(AngleSchedule(), noisy, image, 1.0, 0.5, eta=0.0)
    >>> float(deviation)
    0.0
    """
    signal, noise, next_signal, next_noise = _rates_of_both(
        schedule, diffusion_times, next_diffusion_times, eta
    )
    if np.any(noise == 0.0):
        raise ValueError("there is no noise at t: the posterior of an image that is known already")
    sigma = posterior_deviation(signal, noise, next_signal, next_noise, eta)
    pred_noises = (noisy_images - signal * images) / noise
    return next_signal * images + np.sqrt(
        np.maximum(next_noise**2 - sigma**2, 0.0)
    ) * pred_noises, sigma


def forward_step(
    schedule: Schedule,
    noisy_images: Images,
    images: Images,
    diffusion_times: Times,
    next_diffusion_times: Times,
    eta: float = 1.0,
) -> tuple[Images, Array]:
    """Return mean and standard deviation of q(x_t | x_s, x_0): a step forward, by Bayes' rule from
    eq. 7.

    At eta = 1 it does not depend on x_0: the process is DDPM's Markov chain. Below, each step looks
    at x_0 again, and at eta = 0 it adds no noise.

        mean = a_t x_0 + b_t sqrt(b_s^2 - sigma^2) / b_s^2 (x_s - a_s x_0),  deviation = b_t sigma /
        b_s

    Args:
        schedule: diffusion times to rates.
        noisy_images: x_s, shaped as `images`. From the image itself (s where no noise is) use
            `marginal`.
        images: x_0, (batch, height, width, channels) of zero mean and unit variance.
        diffusion_times: t in [0, 1], the end of the step.
        next_diffusion_times: s, its start, not above t (it comes next on the way to the image, as
            in `posterior`).
        eta: sets sigma by eq. 16; in [0, 1].

    Returns:
        (mean, standard deviation), the latter shaped as the times.

    Raises:
        ValueError: s above t, times or eta out of range, or no noise at s.

    Examples:

    >>> from ddim_keras.diffusion.schedules import LinearBetaSchedule
    >>> x = np.ones((1, 2, 2, 1))
    >>> mean, deviation = forward_step(LinearBetaSchedule(), x, 0 * x, 1.0, 0.999, eta=1.0)
    >>> round(float(deviation**2), 6)  # beta_T
    0.02
    """
    signal, noise, next_signal, next_noise = _rates_of_both(
        schedule, diffusion_times, next_diffusion_times, eta
    )
    if np.any(next_noise == 0.0):
        raise ValueError(
            "forward_step starts from a noisy image, but there is no noise at s: use marginal"
        )
    sigma = posterior_deviation(signal, noise, next_signal, next_noise, eta)
    kept = np.sqrt(np.maximum(next_noise**2 - sigma**2, 0.0))
    mean = signal * images + noise * kept / next_noise**2 * (noisy_images - next_signal * images)
    return mean, noise * sigma / next_noise


def _rates(schedule: Schedule, times: Times) -> tuple[Array, Array]:
    given = times
    times = np.asarray(times)
    if schedule.num_times is not None and np.issubdtype(times.dtype, np.integer):
        times = times / schedule.num_times
    if not np.all((times >= 0.0) & (times <= 1.0)):
        also = (
            "" if schedule.num_times is None else f", or be integers from 0 to {schedule.num_times}"
        )
        raise ValueError(f"diffusion times must lie in [0, 1]{also}: got {given}")
    return schedule(times.astype("float64"))


def _rates_of_both(
    schedule: Schedule, diffusion_times: Times, next_diffusion_times: Times, eta: float
) -> tuple[Array, Array, Array, Array]:
    """Return (a, b, a', b') at t and s, given that they and eta are in order."""
    unit_number("eta", eta, "0 is deterministic DDIM, 1 is DDPM")
    if np.any(np.asarray(next_diffusion_times) > np.asarray(diffusion_times)):
        raise ValueError(
            f"s must not be above t, got s = {next_diffusion_times} and t = {diffusion_times}"
        )
    return *_rates(schedule, diffusion_times), *_rates(schedule, next_diffusion_times)
