"""What a sampler is, and the one loop that runs them all."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from ddim_keras.configurable import Configurable

# Tables are padded to this many rows: a compiled loop sees one shape, whatever the number of steps.
_TABLE_ROWS = 4096
# How many earlier predictions a walk remembers.
MEMORY = 3


class Levels(NamedTuple):
    """The noise levels that a walk visits, in its order, steps + 1 of each. Float64.

    Attributes:
        signal_rates, noise_rates: a and b, such that x = a image + b noise. (1, 0) is the clean image.
    """

    signal_rates: np.ndarray
    noise_rates: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """r = b / a, the time of the ODE d(x/a) = pred_noise dr (eq. 13); infinite where nothing of the image is left."""
        with np.errstate(divide="ignore"):
            return self.noise_rates / self.signal_rates

    @property
    def half_log_snr(self) -> np.ndarray:
        """lambda = log(a / b), the time of DPM-Solver; infinite at the clean image."""
        with np.errstate(divide="ignore"):
            return np.log(self.signal_rates) - np.log(self.noise_rates)


class Evaluation(NamedTuple):
    """One call of the network, and what the next noisy image is made of:

        x = image pred_image + noise pred_noise + (remembered, earlier predictions) + fresh z,  z standard normal

    Attributes:
        signal_rate, noise_rate: the level of the noisy image that the network is given.
        image, noise: weights of the two predictions made there. They sum up to the noisy image itself as
            signal_rate pred_image + noise_rate pred_noise.
        remembered: weights of what earlier evaluations predicted, the latest first, at most `MEMORY`: images or noises, as
            `Sampler.remembers` says.
        fresh: standard deviation of the noise that is added.
    """

    signal_rate: float
    noise_rate: float
    image: float
    noise: float
    remembered: Sequence[float] = ()
    fresh: float = 0.0


class Sampler(Configurable, abc.ABC):
    """Base class. A sampler is its update rule: `step` says what the next noisy image is made of.

    The rule is evaluated in float64 on the host; the device only adds up images.

    Attributes:
        order: how the error of the walk falls with the number of steps S: as S**-order.
        evaluations_per_step: calls of the network in a step, but for the first or the last.
        is_stochastic: whether noise is added on the way.
        runs_backwards: whether it can also walk from the clean image to noise.
        remembers: "images" or "noises", the predictions that later evaluations may use.
    """

    order: int = 1
    evaluations_per_step: int = 1
    is_stochastic: bool = False
    runs_backwards: bool = False
    remembers: str = "images"

    @abc.abstractmethod
    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        """Return the evaluations that lead from `levels` number `index` to number `index + 1`."""

    def evaluations(self, diffusion_steps: int) -> int:
        """Return how often, at most, the network is called in a walk of `diffusion_steps` steps to the clean image."""
        return diffusion_steps * self.evaluations_per_step

    def steps_for(self, network_evaluations: int) -> int:
        """Return the most steps that `network_evaluations` calls of the network allow.

        Raises:
            ValueError: they are not enough for one step.
        """
        steps = network_evaluations
        while steps > 0 and self.evaluations(steps) > network_evaluations:
            steps -= 1
        if steps < 1:
            raise ValueError(
                f"network_evaluations must be at least {self.evaluations(1)} for {self!r}, got {network_evaluations}"
            )
        return steps


class Plan(NamedTuple):
    """A walk, worked out: what `walk` is given.

    Attributes:
        table: float32 (rows, columns), one row an evaluation, padded with zeros: the condition, the noise and the signal rate
            that the network is given, `Evaluation`'s weights, and which prediction is remembered.
        ends: (steps,), the number of evaluations done when each step has ended.
    """

    table: np.ndarray
    ends: np.ndarray


def plan(
    sampler: Sampler,
    levels: Levels,
    conditions: Callable[[Any, Any], Any],
    clean_rates: tuple[float, float] | None = None,
) -> Plan:
    """Work out all evaluations of a walk.

    Args:
        sampler: the update rule.
        levels: the noise levels in the order they are visited.
        conditions: (signal_rates, noise_rates) -> what the network is told of the noise level.
        clean_rates: for a walk from the clean image to noise, the (signal rate, noise rate) at which the network is asked
            about the image, instead of (1, 0). The walk starts from the images times this signal rate.
    """
    evaluations: list[Evaluation] = []
    ends = []
    for index in range(len(levels.signal_rates) - 1):
        evaluations += sampler.step(index, levels)
        ends.append(len(evaluations))
    if clean_rates is not None:
        signal, noise = clean_rates
        first = evaluations[0]
        # The clean image itself is pred_image + (noise / signal) pred_noise.
        noise_weight = first.noise + first.image * noise / signal
        evaluations[0] = first._replace(signal_rate=signal, noise_rate=noise, noise=noise_weight)
    return Plan(table_of(evaluations, conditions, sampler.remembers), np.array(ends))


def table_of(
    evaluations: Sequence[Evaluation], conditions: Callable[[Any, Any], Any], remembers: str = "images"
) -> np.ndarray:
    """Write evaluations as the table that `walk` reads; see `Plan`. `remembers` is the sampler's."""
    rows = np.zeros((len(evaluations), 6 + MEMORY + 2))
    for row, evaluation in zip(rows, evaluations):
        row[1:6] = evaluation.noise_rate, evaluation.signal_rate, evaluation.image, evaluation.noise, evaluation.fresh
        row[6 : 6 + len(evaluation.remembered)] = evaluation.remembered
    rows[:, 0] = conditions(rows[:, 2], rows[:, 1])
    rows[:, -2:] = (1.0, 0.0) if remembers == "images" else (0.0, 1.0)
    table = np.zeros((max(_TABLE_ROWS, 1 << (len(rows) - 1).bit_length()), rows.shape[1]), "float32")
    table[: len(rows)] = rows
    return table


def walk(
    denoise: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    noisy_images: Any,
    memory: Any,
    table: Any,
    first: Any,
    last: Any,
    draw_noises: Callable[[Any], Any],
    adjust: Callable[[Any, Any], Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Make the evaluations first, ..., last - 1 of a table.

    Args:
        denoise: (noisy_images, noise_rate, signal_rate, condition) -> (pred_noises, pred_images); all but the images are
            scalars.
        noisy_images: (batch, height, width, channels), the state at the first evaluation.
        memory: (MEMORY, batch, height, width, channels), earlier predictions, the latest first; zeros at the start.
        table: `Plan.table`, as a tensor.
        first, last: int32 scalars; their values are not compiled in.
        draw_noises: number -> standard normal noises shaped as `noisy_images`. Only called where noise is added, with the
            evaluation's number, counted from 1.
        adjust: (evaluation's number from 0, noisy images after it) -> noisy images to go on with; None changes nothing.

    Returns:
        (noisy images, memory, predicted images) after the last evaluation.
    """

    def evaluate(index, noisy_images, memory, _):
        condition, noise_rate, signal_rate, image, noise, fresh, *others = ops.unstack(
            ops.take(table, index, axis=0), num=6 + MEMORY + 2
        )
        pred_noises, pred_images = denoise(noisy_images, noise_rate, signal_rate, condition)
        noisy_images = image * pred_images + noise * pred_noises
        for weight, earlier in zip(others[:MEMORY], ops.unstack(memory, num=MEMORY)):
            noisy_images = noisy_images + weight * earlier
        noisy_images = ops.cond(
            fresh > 0.0, lambda: noisy_images + fresh * draw_noises(index + 1), lambda: noisy_images
        )
        if adjust is not None:
            noisy_images = adjust(index, noisy_images)
        keep_image, keep_noise = others[MEMORY:]
        kept = keep_image * pred_images + keep_noise * pred_noises
        return index + 1, noisy_images, ops.concatenate([kept[None], memory[:-1]]), pred_images

    _, noisy_images, memory, pred_images = ops.while_loop(
        lambda index, *_: index < last, evaluate, (first, noisy_images, memory, ops.zeros_like(noisy_images))
    )
    return noisy_images, memory, pred_images
