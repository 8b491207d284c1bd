"""Diffusion schedules: from a diffusion time to a signal rate and a noise rate.

A schedule is pure mathematics. Given NumPy arrays it computes with NumPy (the samplers do, in
float64); given tensors it computes with `keras.ops` (training does).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from ddim_keras.support.configurable import Configurable, resolve
from ddim_keras.support.types import Array, Config, Rates, Tensor, Times

# Stands for a rate of zero where a logarithm is taken.
_TINY_RATE = 1e-12


class Schedule(Configurable, abc.ABC):
    """Base class. A schedule is a function from diffusion times to (signal rates, noise rates).

    For images of unit variance, `noisy_images = signal_rates * images + noise_rates * noises` keeps
    unit variance, because signal_rates**2 + noise_rates**2 = 1.

    Attributes:
        num_times: T, if the schedule is defined at the times 1/T, 2/T, ..., 1 alone; None if it is
            continuous.
        max_condition: the largest value of `conditions`, which the network's embedding is scaled
            by.
    """

    num_times: int | None = None
    max_condition: float = 1.0

    @abc.abstractmethod
    def __call__(self, diffusion_times: Times) -> tuple[Rates, Rates]:
        """Return (signal_rates, noise_rates), each shaped as `diffusion_times`.

        Args:
            diffusion_times: array or tensor in [0, 1]; 0 is the image end, 1 the noise end.
        """

    @property
    def first_time(self) -> float:
        """The time nearest to the clean image at which the network is trained: 0, or 1 / T."""
        return 0.0 if self.num_times is None else 1.0 / self.num_times

    def log_snr(self, diffusion_times: Times) -> Array:
        """Return log(signal_rate**2 / noise_rate**2), float64, shaped as `diffusion_times`; it
        falls with time.
        """
        return _log_snr(*self(np.asarray(diffusion_times, "float64")))

    def times_at(self, log_snr: npt.ArrayLike) -> Array:
        """Return the diffusion times, float64 in [0, 1], of given log signal-to-noise ratios: the
        inverse of `log_snr`.

        Levels that the schedule never reaches give its nearest end.
        """
        log_snr = np.asarray(log_snr, "float64")
        low, high = np.zeros_like(log_snr), np.ones_like(log_snr)
        for _ in range(60):
            middle = (low + high) / 2
            is_cleaner = self.log_snr(middle) > log_snr
            low, high = np.where(is_cleaner, middle, low), np.where(is_cleaner, high, middle)
        return high

    def training_times(self, uniform: Times) -> Times:
        """Return the diffusion times to train at, given numbers in [0, 1)."""
        return uniform

    def conditions(self, signal_rates: Rates, noise_rates: Rates) -> Tensor:
        """Return what the network is told of the noise level: the noise variance, or the time if
        times are discrete.

        Depends on the noise level alone, so that a walk may follow another schedule than the
        training did.
        """
        return noise_rates**2


class ContinuousSchedule(Schedule):
    """Base class of the schedules between two signal rates.

    Args:
        min_signal_rate: signal rate at t = 1, in (0, 1). The example's 0.02 leaves 0.04 % of the
            power to the image.
        max_signal_rate: signal rate at t = 0, in (0, 1) and above `min_signal_rate`.

    Raises:
        ValueError: a rate outside (0, 1), or the minimum not below the maximum.
    """

    def __init__(self, min_signal_rate: float = 0.02, max_signal_rate: float = 0.95):
        for name, rate in (
            ("min_signal_rate", min_signal_rate),
            ("max_signal_rate", max_signal_rate),
        ):
            if not 0.0 < rate < 1.0:
                raise ValueError(
                    f"{name} must lie strictly between 0 and 1, got {rate}: at 0 the image could "
                    "not be recovered from the "
                    "noisy image, at 1 the noise could not"
                )
        if min_signal_rate >= max_signal_rate:
            raise ValueError(
                f"min_signal_rate must be below max_signal_rate, got {min_signal_rate} and "
                f"{max_signal_rate}: exchange them?"
            )
        self.min_signal_rate = float(min_signal_rate)
        self.max_signal_rate = float(max_signal_rate)

    def _between(self, diffusion_times: Times, of_signal_rate: Rates) -> Rates:
        """What grows linearly from its value at the largest signal rate to that at the smallest."""
        if _numeric(diffusion_times) is np:
            diffusion_times = np.asarray(diffusion_times)
        start, end = of_signal_rate(self.max_signal_rate), of_signal_rate(self.min_signal_rate)
        return (1.0 - diffusion_times) * start + diffusion_times * end  # exact at both ends

    def get_config(self) -> Config:
        return {"min_signal_rate": self.min_signal_rate, "max_signal_rate": self.max_signal_rate}


@keras.saving.register_keras_serializable("ddim_keras")
class AngleSchedule(ContinuousSchedule):
    """The rates are the cosine and the sine of an angle that grows linearly with time.

        theta(t) = acos(max_signal_rate) + t (acos(min_signal_rate) - acos(max_signal_rate))
        signal_rate = cos theta,  noise_rate = sin theta

    Args:
        min_signal_rate, max_signal_rate: as for `ContinuousSchedule`.
        shift: positive; the ratio of noise rate to signal rate is this many times that of the
            angle, so that more of the times are noisy ones. The ends stay where they are.
            Neighbouring pixels of a larger image agree more, and so noise hides less of it: with
            size / 32 it hides as much as of an image of 32 pixels (Hoogeboom et al. 2023, "Simple
            diffusion").

    Raises:
        ValueError: as `ContinuousSchedule`, or a shift that is not positive.

    Source: the angle form of the cosine schedule of Nichol & Dhariwal (2021), as in the Keras DDIM
    example.

    Examples:

    >>> signal_rates, noise_rates = AngleSchedule()(np.array([0.0, 1.0]))
    >>> signal_rates.round(2).tolist()
    [0.95, 0.02]
    """

    def __init__(
        self, min_signal_rate: float = 0.02, max_signal_rate: float = 0.95, shift: float = 1.0
    ):
        super().__init__(min_signal_rate, max_signal_rate)
        if not 0.0 < shift < math.inf:
            raise ValueError(f"shift must be a positive number, 1 for none, got {shift!r}")
        self.shift = float(shift)

    def __call__(self, diffusion_times: Times) -> tuple[Rates, Rates]:
        numeric = _numeric(diffusion_times)
        if self.shift == 1.0:
            angles = self._between(diffusion_times, math.acos)
            return numeric.cos(angles), numeric.sin(angles)
        angles = self._between(diffusion_times, self._unshifted_angle)
        signal, noise = numeric.cos(angles), self.shift * numeric.sin(angles)
        length = numeric.sqrt(signal**2 + noise**2)
        return signal / length, noise / length

    def _unshifted_angle(self, signal_rate: float) -> float:
        return math.atan(math.tan(math.acos(signal_rate)) / self.shift)

    def get_config(self) -> Config:
        return {**super().get_config(), "shift": self.shift}


@keras.saving.register_keras_serializable("ddim_keras")
class LinearNoisePowerSchedule(ContinuousSchedule):
    """The noise power, noise_rate**2, grows linearly with time, from 1 - max_signal_rate**2 to 1 -
    min_signal_rate**2.

    Args and errors: as `ContinuousSchedule`.

    Examples:

    >>> _, noise_rates = LinearNoisePowerSchedule(0.1, 0.9)(np.array([0.0, 0.5, 1.0]))
    >>> (noise_rates**2).round(2).tolist()
    [0.19, 0.59, 0.99]
    """

    def __call__(self, diffusion_times: Times) -> tuple[Rates, Rates]:
        signal_power = self._between(diffusion_times, lambda rate: rate**2)
        numeric = _numeric(diffusion_times)
        return numeric.sqrt(signal_power), numeric.sqrt(1.0 - signal_power)


@keras.saving.register_keras_serializable("ddim_keras")
class LinearLogSNRSchedule(ContinuousSchedule):
    """The log signal-to-noise ratio, log(signal_rate**2 / noise_rate**2), falls linearly with time.

    Args and errors: as `ContinuousSchedule`.

    Source: Kingma et al. 2021, "Variational Diffusion Models", whose learned schedule is nearly
    this one.

    Examples:

    >>> LinearLogSNRSchedule(0.1, 0.9).log_snr([0.0, 0.5, 1.0]).round(2).tolist()
    [1.45, -1.57, -4.6]
    """

    def __call__(self, diffusion_times: Times) -> tuple[Rates, Rates]:
        half_log_snr = self._between(
            diffusion_times, lambda rate: math.log(rate) - 0.5 * math.log1p(-(rate**2))
        )
        numeric = _numeric(diffusion_times)
        scale = numeric.sqrt(1.0 + numeric.exp(-2.0 * numeric.absolute(half_log_snr)))
        larger, smaller = 1.0 / scale, numeric.exp(-numeric.absolute(half_log_snr)) / scale
        is_signal = half_log_snr > 0.0
        return numeric.where(is_signal, larger, smaller), numeric.where(is_signal, smaller, larger)


@keras.saving.register_keras_serializable("ddim_keras")
class VarianceExplodingSchedule(LinearLogSNRSchedule):
    """The levels of score-based models: noise whose deviation grows geometrically beside an image
    that stays as it is.

        y = image + r noise,  r(t) = min_deviation (max_deviation / min_deviation)**t

    The network sees x = y / sqrt(1 + r^2), which is the same process with unit variance:
    signal_rate = 1 / sqrt(1 + r^2), noise_rate = r / sqrt(1 + r^2). It is a `LinearLogSNRSchedule`,
    told by its deviations. `AnnealedLangevin` walks as those models do; all other samplers do too.

    Args:
        min_deviation, max_deviation: r at t = 0 and at t = 1, positive, in standard deviations of
            the images. (Papers give them for pixels in [0, 1]; divide by their deviation.)

    Raises:
        ValueError: a deviation that is not positive, or the minimum not below the maximum.

    Source: Song & Ermon 2019 ("NCSN"), section 4, whose loss is that of predicted noises with even
    weights; Song et al. 2021, eq. 9.

    Examples:

    >>> signal_rates, noise_rates = VarianceExplodingSchedule(0.1, 10.0)(np.array([0.0, 0.5, 1.0]))
    >>> (noise_rates / signal_rates).round(6).tolist()
    [0.1, 1.0, 10.0]
    """

    def __init__(self, min_deviation: float = 0.02, max_deviation: float = 50.0):
        if not 0.0 < min_deviation < max_deviation < math.inf:
            raise ValueError(
                "deviations must satisfy 0 < min_deviation < max_deviation, got "
                f"{min_deviation} and {max_deviation}"
            )
        self.min_deviation, self.max_deviation = float(min_deviation), float(max_deviation)
        super().__init__(1.0 / math.hypot(1.0, max_deviation), 1.0 / math.hypot(1.0, min_deviation))

    def get_config(self) -> Config:
        return {"min_deviation": self.min_deviation, "max_deviation": self.max_deviation}


class DiscreteSchedule(Schedule):
    """Base class of the schedules of T training times, the integers 1 to T; t = n / T is the n-th
    of them.

        alpha_n = product of (1 - beta_i) over i = 1, ..., n
        signal_rate = sqrt(alpha_n),  noise_rate = sqrt(1 - alpha_n)

    alpha_0 = 1 is the image itself. A time in between stands for the nearest of the T. The network
    is told n. Under another schedule, or by a solver that asks between two times, it is told the n
    of the same noise level, which may be a fraction.

    Args:
        betas: (T,), each in (0, 1]: the variance that each time adds.
    """

    num_times: int

    def __init__(self, betas: Array):
        # alpha_n and 1 - alpha_n by themselves, so that neither loses its digits where it is small.
        with np.errstate(divide="ignore"):
            log_alphas = np.cumsum(np.log1p(-betas))
        self.num_times = len(betas)
        self.max_condition = float(self.num_times)
        self._set_rates(np.exp(0.5 * log_alphas), np.sqrt(-np.expm1(log_alphas)))

    def _set_rates(self, signal_rates: Array, noise_rates: Array) -> None:
        """Take the rates of the times 1 to T."""
        self._signal_rates = np.concatenate([[1.0], signal_rates])
        self._noise_rates = np.concatenate([[0.0], noise_rates])
        # Rising, as interpolation wants it: from T down to 1.
        self._rising_log_snr = _log_snr(signal_rates, noise_rates)[::-1]

    def __call__(self, diffusion_times: Times) -> tuple[Rates, Rates]:
        if _numeric(diffusion_times) is np:
            numbers = np.clip(
                np.rint(np.asarray(diffusion_times) * self.num_times), 0, self.num_times
            ).astype(int)
            return self._signal_rates[numbers], self._noise_rates[numbers]
        numbers = ops.cast(
            ops.clip(ops.round(diffusion_times * self.num_times), 0, self.num_times), "int32"
        )
        rates = ops.convert_to_tensor(
            np.stack([self._signal_rates, self._noise_rates]).astype("float32")
        )
        return ops.take(rates[0], numbers), ops.take(rates[1], numbers)

    def times_at(self, log_snr: npt.ArrayLike) -> Array:
        """Return the times n / T whose log signal-to-noise ratios are nearest to the given ones, n
        from 1 to T.
        """
        return np.rint(self._numbers_at(np.asarray(log_snr, "float64"))) / self.num_times

    def training_times(self, uniform: Times) -> Times:
        return (_numeric(uniform).floor(uniform * self.num_times) + 1.0) / self.num_times

    def conditions(self, signal_rates: Rates, noise_rates: Rates) -> Tensor:
        if _numeric(signal_rates) is np:
            return self._numbers_at(_log_snr(signal_rates, noise_rates))
        # The same interpolation in float32, where a training time comes back as the integer it is.
        knots = ops.convert_to_tensor(self._rising_log_snr.astype("float32"))
        log_snr = 2.0 * (
            ops.log(ops.maximum(signal_rates, _TINY_RATE))
            - ops.log(ops.maximum(noise_rates, _TINY_RATE))
        )
        # Counted and not searched for: few formats that a model is exported to have a search.
        right = ops.sum(ops.cast(knots < ops.expand_dims(log_snr, -1), "int32"), axis=-1)
        right = ops.clip(right, 1, self.num_times - 1)
        low, high = ops.take(knots, right - 1), ops.take(knots, right)
        fraction = ops.clip((log_snr - low) / (high - low), 0.0, 1.0)
        numbers = self.num_times - ops.cast(right, "float32") + 1.0 - fraction
        nearest = ops.round(numbers)
        return ops.where(ops.absolute(numbers - nearest) < 0.02, nearest, numbers)

    def _numbers_at(self, log_snr: Array) -> Array:
        return np.asarray(
            np.interp(log_snr, self._rising_log_snr, np.arange(self.num_times, 0.0, -1.0))
        )


@keras.saving.register_keras_serializable("ddim_keras")
class LinearBetaSchedule(DiscreteSchedule):
    """DDPM's schedule: beta grows linearly over the T times.

    Args:
        num_times: T, at least 2.
        min_beta, max_beta: beta_1 and beta_T, in (0, 1).

    Raises:
        ValueError: a value out of range.

    Source: Ho, Jain & Abbeel 2020; it is what the DDIM paper samples from, too.

    Examples:

    >>> signal_rates, noise_rates = LinearBetaSchedule()(np.array([0.001, 1.0]))
    >>> (signal_rates**2).round(6).tolist()
    [0.9999, 4e-05]
    """

    def __init__(self, num_times: int = 1000, min_beta: float = 1e-4, max_beta: float = 0.02):
        _check_betas(num_times, min_beta, max_beta)
        self.min_beta, self.max_beta = float(min_beta), float(max_beta)
        super().__init__(self._betas(num_times))

    def _betas(self, num_times: int) -> Array:
        return np.linspace(self.min_beta, self.max_beta, num_times)

    def get_config(self) -> Config:
        return {"num_times": self.num_times, "min_beta": self.min_beta, "max_beta": self.max_beta}


@keras.saving.register_keras_serializable("ddim_keras")
class ScaledLinearBetaSchedule(LinearBetaSchedule):
    """The square root of beta grows linearly over the T times.

    Args and errors: as `LinearBetaSchedule`.

    Source: Rombach et al. 2022, latent diffusion.

    Examples:

    >>> ScaledLinearBetaSchedule(num_times=3, min_beta=0.01, max_beta=0.09).get_config()["max_beta"]
    0.09
    """

    def __init__(self, num_times: int = 1000, min_beta: float = 0.00085, max_beta: float = 0.012):
        super().__init__(num_times, min_beta, max_beta)

    def _betas(self, num_times: int) -> Array:
        return np.linspace(math.sqrt(self.min_beta), math.sqrt(self.max_beta), num_times) ** 2


@keras.saving.register_keras_serializable("ddim_keras")
class CosineBetaSchedule(DiscreteSchedule):
    """alpha_n falls as a squared cosine.

        alpha_n = f(n / T) / f(0),  f(t) = cos(pi / 2 (t + offset) / (1 + offset))**2,  beta_n at
        most max_beta

    Args:
        num_times: T, at least 2.
        offset: keeps the first betas from being too small; not negative.
        max_beta: in (0, 1).

    Raises:
        ValueError: a value out of range.

    Source: Nichol & Dhariwal 2021, eq. 17.

    Examples:

    >>> signal_rates, _ = CosineBetaSchedule()(np.array([0.5]))
    >>> round(float(signal_rates[0] ** 2), 3)
    0.494
    """

    def __init__(self, num_times: int = 1000, offset: float = 0.008, max_beta: float = 0.999):
        _check_betas(num_times, 0.5 * max_beta, max_beta)
        if offset < 0.0:
            raise ValueError(f"offset must not be negative, got {offset}")
        self.offset, self.max_beta = float(offset), float(max_beta)
        alphas = (
            np.cos(0.5 * np.pi * (np.arange(num_times + 1) / num_times + offset) / (1 + offset))
            ** 2
        )
        super().__init__(np.minimum(1.0 - alphas[1:] / alphas[:-1], max_beta))

    def get_config(self) -> Config:
        return {"num_times": self.num_times, "offset": self.offset, "max_beta": self.max_beta}


@keras.saving.register_keras_serializable("ddim_keras")
class GivenBetaSchedule(DiscreteSchedule):
    """A schedule of betas that are listed one by one.

    Args:
        betas: T numbers in (0, 1), at least 2.

    Raises:
        ValueError: fewer than two, or one out of range.

    Examples:

    >>> signal_rates, _ = GivenBetaSchedule([0.19, 0.2])(np.array([0.5, 1.0]))
    >>> (signal_rates**2).round(3).tolist()
    [0.81, 0.648]
    """

    def __init__(self, betas: Sequence[float]):
        values = np.asarray(betas, "float64")
        if values.ndim != 1 or len(values) < 2 or not ((values > 0.0) & (values < 1.0)).all():
            raise ValueError(
                "betas must be at least two numbers between 0 and 1, both excluded, got "
                f"{np.array2string(values, threshold=6)}"
            )
        self.betas = values.tolist()
        super().__init__(values)

    def get_config(self) -> Config:
        return {"betas": self.betas}

    def __repr__(self) -> str:
        first, last = self.betas[0], self.betas[-1]
        return f"{type(self).__name__}({self.num_times} from {first:.3g} to {last:.3g})"


@keras.saving.register_keras_serializable("ddim_keras")
class ZeroTerminalSNRSchedule(DiscreteSchedule):
    """A schedule shifted and stretched so that at time T nothing of the image is left, and time 1
    is as before.

        signal_rate'_n = (signal_rate_n - signal_rate_T) signal_rate_1 / (signal_rate_1 -
        signal_rate_T)

    Sampling starts from pure noise, so training should see it; otherwise generated images have too
    even a brightness. At time T the noise says nothing of the image: the network must predict
    velocities or images.

    Args:
        schedule: a `DiscreteSchedule` or its name.

    Raises:
        ValueError: a continuous schedule.

    Source: Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed",
    algorithm 1.

    Examples:

    >>> signal_rates, noise_rates = ZeroTerminalSNRSchedule()(np.array([1.0]))
    >>> signal_rates.tolist(), noise_rates.tolist()
    ([0.0], [1.0])
    """

    def __init__(self, schedule: str | DiscreteSchedule | Config = "linear_beta"):
        inner = resolve(schedule, Schedule, SCHEDULES)
        if not isinstance(inner, DiscreteSchedule):
            raise ValueError(
                "expected a schedule with discrete times, such as LinearBetaSchedule(), got "
                f"{inner!r}"
            )
        self.schedule = inner
        self.num_times, self.max_condition = inner.num_times, inner.max_condition
        old = inner._signal_rates[1:]
        signal_rates = (old - old[-1]) * (old[0] / (old[0] - old[-1]))
        self._set_rates(signal_rates, np.sqrt((1.0 - signal_rates) * (1.0 + signal_rates)))

    def get_config(self) -> Config:
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r})"


def _numeric(values: Any) -> Any:
    """NumPy for what NumPy holds, `keras.ops` for tensors."""
    return np if isinstance(values, (np.ndarray, np.generic, float, int, list, tuple)) else ops


def _log_snr(signal_rates: Rates, noise_rates: Rates) -> Array:
    return 2.0 * (
        np.log(np.maximum(signal_rates, _TINY_RATE)) - np.log(np.maximum(noise_rates, _TINY_RATE))
    )


def _check_betas(num_times: int, min_beta: float, max_beta: float) -> None:
    if isinstance(num_times, bool) or not isinstance(num_times, (int, np.integer)) or num_times < 2:
        raise ValueError(f"num_times must be an integer, at least 2: got {num_times!r}")
    if not 0.0 < min_beta <= max_beta < 1.0:
        raise ValueError(
            f"betas must satisfy 0 < min_beta <= max_beta < 1, got {min_beta} and {max_beta}"
        )


SCHEDULES: dict[str, type[Schedule]] = {
    "angle": AngleSchedule,
    "linear_noise_power": LinearNoisePowerSchedule,
    "linear_log_snr": LinearLogSNRSchedule,
    "variance_exploding": VarianceExplodingSchedule,
    "linear_beta": LinearBetaSchedule,
    "scaled_linear_beta": ScaledLinearBetaSchedule,
    "cosine_beta": CosineBetaSchedule,
    "zero_terminal_snr": ZeroTerminalSNRSchedule,
}
