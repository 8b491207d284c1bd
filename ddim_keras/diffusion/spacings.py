"""Spacings: at which diffusion times a walk of S steps asks the network.

A spacing returns S times, from the noise end down; the clean image follows the last of them. The
other end of a step is always the next time in the list, whatever the spacing.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np

from ddim_keras.diffusion.levels import Levels
from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.support.arguments import integer, positive_int, truth
from ddim_keras.support.configurable import Configurable, resolve
from ddim_keras.support.types import Array, Config, Numbers

_MOST_STEPS = 1_000_000  # of a walk: more would take days, and their times all memory


class Spacing(Configurable, abc.ABC):
    """Base class. A spacing places S times between 0 and the start; on a schedule of T times, on S
    of those.
    """

    def __call__(self, diffusion_steps: int, schedule: Schedule, start: float = 1.0) -> Array:
        """Return the times to ask the network at, float64 (diffusion_steps,), falling.

        Args:
            diffusion_steps: S, at least 1.
            schedule: the schedule of the walk.
            start: the time to start from, in (0, 1].

        Raises:
            ValueError: more steps than the schedule has times up to the start.
        """
        if schedule.num_times is None:
            return self.times(diffusion_steps, schedule, start)
        last = max(int(round(start * schedule.num_times)), 1)
        if diffusion_steps > last:
            raise ValueError(
                f"diffusion_steps must be at most {last}, the number of training times to walk "
                f"over, got {diffusion_steps}"
            )
        numbers = np.maximum(self.numbers(diffusion_steps, last, schedule), 1)
        # Small steps may round to the same time: each is moved up just as far as all need to
        # differ, then down again.
        for index in range(1, diffusion_steps):
            numbers[index] = max(numbers[index], numbers[index - 1] + 1)
        highest = last - np.arange(diffusion_steps)[::-1]
        return (np.minimum(numbers, highest) / schedule.num_times)[::-1]

    @abc.abstractmethod
    def times(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        """Return the falling times in [0, start] of a continuous schedule."""

    @abc.abstractmethod
    def numbers(self, diffusion_steps: int, last: int, schedule: Schedule) -> Numbers:
        """Return rising integers from 1 to `last`, the training times of a discrete schedule."""


@keras.saving.register_keras_serializable("ddim_keras")
class LinearSpacing(Spacing):
    """Even steps: t_i = i / S; floor(i T / S) on T discrete times.

    Args:
        reach: the part of the times that is walked over, in (0, 1].

    Source: Song, Meng & Ermon 2021, appendix D.2.

    Examples:

    >>> from ddim_keras.diffusion.schedules import AngleSchedule
    >>> LinearSpacing()(4, AngleSchedule()).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """

    power = 1

    def __init__(self, reach: float = 1.0):
        if not 0.0 < reach <= 1.0:
            raise ValueError(f"reach must lie in (0, 1], got {reach}")
        self.reach = float(reach)

    def times(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        return (
            start * self.reach * (np.arange(diffusion_steps, 0, -1) / diffusion_steps) ** self.power
        )

    def numbers(self, diffusion_steps: int, last: int, schedule: Schedule) -> Numbers:
        # In integers where c is 1, so that no rounding drops a time.
        parts, whole = np.arange(1, diffusion_steps + 1) ** self.power, diffusion_steps**self.power
        return (
            parts * last // whole
            if self.reach == 1.0
            else np.floor(parts * (last * self.reach / whole)).astype(int)
        )

    def get_config(self) -> Config:
        return {"reach": self.reach}


@keras.saving.register_keras_serializable("ddim_keras")
class QuadraticSpacing(LinearSpacing):
    """Steps that grow towards the noise: t_i = (i / S)**2; floor(i**2 T / S**2) on T discrete
    times.

    Args:
        reach: the part of the times that is walked over, in (0, 1]. The authors' code takes 0.8
            (for CIFAR-10).

    Source: Song, Meng & Ermon 2021, appendix D.2.

    Examples:

    >>> from ddim_keras.diffusion.schedules import AngleSchedule
    >>> QuadraticSpacing()(4, AngleSchedule()).tolist()
    [1.0, 0.5625, 0.25, 0.0625]
    """

    power = 2


@keras.saving.register_keras_serializable("ddim_keras")
class TrailingSpacing(Spacing):
    """Even steps that end at the last time, rounded: T, T - T/S, ... on T discrete times. As linear
    on continuous ones.

    Source: Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", table
    2.

    Examples:

    >>> from ddim_keras.diffusion.schedules import LinearBetaSchedule
    >>> (1000 * TrailingSpacing()(3, LinearBetaSchedule())).round().tolist()
    [1000.0, 667.0, 333.0]
    """

    def times(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        return start * np.arange(diffusion_steps, 0, -1) / diffusion_steps

    def numbers(self, diffusion_steps: int, last: int, schedule: Schedule) -> Numbers:
        return np.rint(last * np.arange(1, diffusion_steps + 1) / diffusion_steps).astype(int)


@keras.saving.register_keras_serializable("ddim_keras")
class LeadingSpacing(Spacing):
    """Even steps that begin at the first time: 1, 1 + k, 1 + 2k, ... with k = floor(T / S), as in
    the authors' code.

    On continuous times t_i = (i - 1) / S. The walk then starts below the noise end, though from
    pure noise.

    Args:
        offset: on T discrete times, how many times all are moved towards the noise.
        with_first: False leaves out the first time, the end of S + 1 such steps, as diffusers'
            solvers do.

    Examples:

    >>> from ddim_keras.diffusion.schedules import LinearBetaSchedule
    >>> (1000 * LeadingSpacing()(4, LinearBetaSchedule())).round().tolist()
    [751.0, 501.0, 251.0, 1.0]
    """

    def __init__(self, offset: int = 0, with_first: bool = True):
        self.offset = integer("offset", offset, minimum=0)
        self.with_first = truth("with_first", with_first)

    def _places(self, diffusion_steps: int) -> tuple[Numbers, int]:
        """The number of each step, rising, and of how many."""
        left_out = int(not self.with_first)
        return np.arange(diffusion_steps) + left_out, diffusion_steps + left_out

    def times(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        places, count = self._places(diffusion_steps)
        return start * places[::-1] / count

    def numbers(self, diffusion_steps: int, last: int, schedule: Schedule) -> Numbers:
        places, count = self._places(diffusion_steps)
        return 1 + self.offset + places * (last // count)

    def get_config(self) -> Config:
        without = {} if self.with_first else {"with_first": False}
        return ({"offset": self.offset} if self.offset else {}) | without


@keras.saving.register_keras_serializable("ddim_keras")
class LinspaceSpacing(Spacing):
    """Even steps from the first time to the last, both included, rounded on T discrete times.

    Args:
        with_first: False leaves out the first time, the end of S + 1 even steps.

    Examples:

    >>> from ddim_keras.diffusion.schedules import LinearBetaSchedule
    >>> (1000 * LinspaceSpacing()(4, LinearBetaSchedule())).round().tolist()
    [1000.0, 667.0, 334.0, 1.0]
    """

    def __init__(self, with_first: bool = True):
        self.with_first = truth("with_first", with_first)

    def _parts(self, diffusion_steps: int) -> Array:
        """Rising from 0, or just above it, to 1."""
        if diffusion_steps == 1:
            return np.ones(1)
        parts = np.linspace(0.0, 1.0, diffusion_steps + (not self.with_first))
        return parts[-diffusion_steps:]

    def times(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        return start * self._parts(diffusion_steps)[::-1]

    def numbers(self, diffusion_steps: int, last: int, schedule: Schedule) -> Numbers:
        return 1 + np.rint((last - 1) * self._parts(diffusion_steps)).astype(int)

    def get_config(self) -> Config:
        return {"with_first": self.with_first}


@keras.saving.register_keras_serializable("ddim_keras")
class KarrasSpacing(Spacing):
    """Noise levels at which (noise_rate / signal_rate)**(1 / rho) falls evenly, from the start's to
    that of the first time.

    They are found in the schedule by their log signal-to-noise ratio.

    Args:
        rho: positive; the larger, the more steps at low noise.

    Source: Karras et al. 2022, eq. 5.

    Examples:

    >>> from ddim_keras.diffusion.schedules import AngleSchedule
    >>> KarrasSpacing()(3, AngleSchedule()).round(2).tolist()
    [1.0, 0.89, 0.0]
    """

    def __init__(self, rho: float = 7.0):
        if not rho > 0.0:
            raise ValueError(f"rho must be positive, got {rho}")
        self.rho = float(rho)

    def times(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        return self._times_from(diffusion_steps, schedule, start)

    def numbers(self, diffusion_steps: int, last: int, schedule: Schedule) -> Numbers:
        count = schedule.num_times or 0
        starts_at_pure_noise = schedule(np.array([last / count]))[0][0] == 0.0
        if not starts_at_pure_noise or diffusion_steps == 1:
            times = self._times_from(diffusion_steps, schedule, last / count)
        else:  # an infinite ratio: the rest is spread from the time before
            times = self._times_from(diffusion_steps - 1, schedule, (last - 1) / count)
            times = np.concatenate([[last / count], times])
        return np.rint(times * count).astype(int)[::-1]

    def _times_from(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        high, low = np.exp(-0.5 * schedule.log_snr([start, schedule.first_time]) / self.rho)
        parts = np.arange(diffusion_steps) / max(diffusion_steps - 1, 1)
        times = schedule.times_at(-2.0 * self.rho * np.log(high + parts * (low - high)))
        times[0] = start  # not to rounding
        return times

    def get_config(self) -> Config:
        return {"rho": self.rho}


@keras.saving.register_keras_serializable("ddim_keras")
class LogSNRSpacing(KarrasSpacing):
    """Noise levels that are even in the log signal-to-noise ratio, from the start's to that of the
    first time.

    Source: Lu et al. 2022, "DPM-Solver". The limit of `KarrasSpacing` for large rho.

    Examples:

    >>> from ddim_keras.diffusion.schedules import LinearLogSNRSchedule
    >>> LogSNRSpacing()(3, LinearLogSNRSchedule()).round(6).tolist()
    [1.0, 0.5, 0.0]
    """

    def __init__(self) -> None:
        pass

    def _times_from(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        high, low = schedule.log_snr([start, schedule.first_time])
        times = schedule.times_at(
            high + np.arange(diffusion_steps) / max(diffusion_steps - 1, 1) * (low - high)
        )
        times[0] = start
        return times

    def get_config(self) -> Config:
        return {}


@keras.saving.register_keras_serializable("ddim_keras")
class GivenSpacing(Spacing):
    """Noise levels that are listed one by one, found in the schedule by their ratio of noise to
    signal.

    Args:
        angles: one for each step, falling, between 0 and pi / 2: the noise rate is the sine of
            each, the signal rate its cosine.

    Raises:
        ValueError: no angles, angles that do not fall or are out of range, or another number of
            steps than there are angles.

    Examples:

    >>> from ddim_keras.diffusion.schedules import AngleSchedule
    >>> GivenSpacing([1.5, 1.2, 0.6])(3, AngleSchedule()).round(3).tolist()
    [0.959, 0.716, 0.229]
    """

    def __init__(self, angles: Sequence[float]):
        self.angles = checked_angles(angles)

    def times(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        self._check(diffusion_steps, start)
        return schedule.times_at(-2.0 * np.log(np.tan(self.angles)))

    def numbers(self, diffusion_steps: int, last: int, schedule: Schedule) -> Numbers:
        count = schedule.num_times or last
        times = self.times(diffusion_steps, schedule, last / count)
        return np.rint(times * count).astype(int)[::-1]

    def _check(self, diffusion_steps: int, start: float) -> None:
        if diffusion_steps != len(self.angles):
            raise ValueError(
                f"these levels are for a walk of {len(self.angles)} steps, got {diffusion_steps}: "
                "take so many, or another spacing or sampler"
            )
        if start != 1.0:
            raise ValueError(
                "these levels are for a whole walk, from noise to image, and this one starts "
                f"between, at time {start:.3g}: take another spacing or sampler"
            )

    def get_config(self) -> Config:
        return {"angles": self.angles.tolist()}


@keras.saving.register_keras_serializable("ddim_keras")
class FittedSpacing(Spacing):
    """Noise levels that were chosen for a model, for each of a few numbers of steps.

    `DiffusionModel.fit_spacing` makes it.

    Args:
        angles: for each number of steps a list of so many, as for `GivenSpacing`.

    Raises:
        ValueError: as `GivenSpacing`, or a number of steps that is not among them.

    Examples:

    >>> from ddim_keras.diffusion.schedules import AngleSchedule
    >>> spacing = FittedSpacing([[1.5], [1.5, 0.6]])
    >>> spacing(2, AngleSchedule()).round(3).tolist()
    [0.959, 0.229]
    """

    def __init__(self, angles: Sequence[Sequence[float]]):
        self.walks = {len(each): GivenSpacing(each) for each in angles}

    def times(self, diffusion_steps: int, schedule: Schedule, start: float) -> Array:
        return self._walk(diffusion_steps).times(diffusion_steps, schedule, start)

    def numbers(self, diffusion_steps: int, last: int, schedule: Schedule) -> Numbers:
        return self._walk(diffusion_steps).numbers(diffusion_steps, last, schedule)

    def _walk(self, diffusion_steps: int) -> GivenSpacing:
        if diffusion_steps not in self.walks:
            raise ValueError(
                f"this spacing was fitted for {sorted(self.walks)} steps, got {diffusion_steps}: "
                "take one of them, or fit_spacing(most_steps) for more"
            )
        return self.walks[diffusion_steps]

    def get_config(self) -> Config:
        return {"angles": [walk.angles.tolist() for walk in self.walks.values()]}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({sorted(self.walks)} steps)"


SPACINGS: dict[str, Callable[[], Spacing]] = {
    "linear": LinearSpacing,
    "quadratic": QuadraticSpacing,
    "quadratic_0.8": functools.partial(QuadraticSpacing, reach=0.8),
    "trailing": TrailingSpacing,
    "leading": LeadingSpacing,
    "linspace": LinspaceSpacing,
    "karras": KarrasSpacing,
    "log_snr": LogSNRSpacing,
}


def diffusion_times(
    diffusion_steps: int | Sequence[float],
    spacing: str | Spacing,
    schedule: Schedule,
    start: float = 1.0,
) -> Array:
    """Return the times of a walk, falling from noise to image: those to ask the network at, then 0.

    Args:
        diffusion_steps: S, or the times themselves in any order: in [0, 1], or on a schedule of T
            times as integers from 1 to T.
        spacing: how to place S times; unused where they are given.
        schedule: the schedule of the walk.
        start: the time to start from where S is given, in (0, 1].

    Returns:
        float64, (S + 1,).

    Raises:
        ValueError: S below 1, above T or above a million; times out of range, twice the same, or
            not among the T.
    """
    if not isinstance(diffusion_steps, (Sequence, np.ndarray)):
        steps = positive_int("diffusion_steps", diffusion_steps)
        if steps > _MOST_STEPS:
            raise ValueError(f"diffusion_steps must be at most {_MOST_STEPS}, got {steps}")
        return np.append(resolve(spacing, Spacing, SPACINGS)(steps, schedule, start), 0.0)

    times = np.asarray(diffusion_steps)
    expected = (
        "numbers in [0, 1]"
        if schedule.num_times is None
        else f"integers from 1 to {schedule.num_times}"
    )
    given = f"got {np.array2string(times, threshold=6)}"
    if times.ndim != 1 or not len(times) or not np.issubdtype(times.dtype, np.number):
        raise ValueError(
            f"diffusion_steps must be an integer or a list of times, {expected}; {given}"
        )
    if schedule.num_times is not None and np.issubdtype(times.dtype, np.integer):
        times = times / schedule.num_times
    times = np.sort(times.astype("float64"))[::-1]
    if schedule.num_times is not None:
        numbers = np.rint(times * schedule.num_times)
        if not np.allclose(times * schedule.num_times, numbers, atol=1e-3) or numbers[-1] < 1:
            raise ValueError(
                f"the times to walk over must be {expected}, or these divided by T; {given}"
            )
        times = numbers / schedule.num_times
    if not (times[0] <= 1.0 and times[-1] >= 0.0):
        raise ValueError(f"the times to walk over must be {expected}; {given}")
    if len(np.unique(times)) != len(times):
        raise ValueError(f"the times to walk over must differ from each other; {given}")
    return np.append(times, 0.0)


def levels_of(schedule: Schedule, diffusion_times: Array) -> Levels:
    """Return the noise levels at the times of a walk to the image, the last of which is the clean
    image.
    """
    signal_rates, noise_rates = schedule(diffusion_times)
    return Levels(np.append(signal_rates[:-1], 1.0), np.append(noise_rates[:-1], 0.0))


def checked_angles(angles: Sequence[float]) -> Array:
    """Return angles of noise levels, float64, or raise ValueError unless they fall."""
    values = np.asarray(angles, "float64")
    if values.ndim != 1 or not len(values):
        raise ValueError(f"angles must be a list of at least one number, got {angles!r}")
    if not ((values > 0.0) & (values <= np.pi / 2)).all() or not (np.diff(values) < 0.0).all():
        raise ValueError(
            f"angles must fall and lie between 0 and pi / 2, 0 excluded, got {values.tolist()}"
        )
    return values
