"""Averages of the weights over a training, whose length can be chosen after it.

A power-function average of length sigma_rel gives the weights of time tau, of a training that has
reached time t, the share (gamma + 1) tau^gamma / t^(gamma + 1), where sigma_rel is that profile's
standard deviation over t (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models", section 3.1). It has no time scale of its own: 0.1 is the last tenth of a
training or so, however long it is. Any other length is a combination of stored averages
(section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras.support.types import Array, Tensor, Variable

LENGTHS = (0.05, 0.10)
"""Of the averages that a run stores; the paper's choice, too."""

_LONGEST = 0.28  # all weights alike, gamma = 0, is 1 / sqrt(12)


def length_of(value: Any) -> float:
    """Return a length of an average, sigma_rel.

    Raises:
        ValueError: it is no number in (0, 0.28].
    """
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not 0.0 < value <= _LONGEST:
        raise ValueError(
            f"an EMA length must lie in (0, {_LONGEST}], the standard deviation of the average "
            f"over the training's length, such as 0.05 or 0.1, got {value!r}"
        )
    return float(value)


def exponent_of(length: float) -> float:
    """Return gamma of a length sigma_rel: the largest root of
    (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = sigma_rel^2.

    Examples:

    >>> round(exponent_of(0.05), 2), round(exponent_of(0.10), 2)
    (16.97, 6.94)
    """
    square = length_of(length) ** 2
    # With x = gamma + 2: square x^2 (x + 1) = x - 1.
    return float(np.roots([square, square, -1.0, 1.0]).real.max()) - 2.0


def shares(length: float, updates: int) -> Array:
    """Return what each step's weights count in the average after `updates` steps, (updates,).

    They are the profile's integrals over the steps, and exactly what `PowerAverages` works out step
    by step.

    Examples:

    >>> shares(0.1, 4).round(3)
    array([0.   , 0.004, 0.098, 0.898])
    """
    powers = (np.arange(updates + 1) / updates) ** (exponent_of(length) + 1.0)
    return np.diff(powers)


def coefficients(
    stored: Sequence[tuple[float, float]], length: float, updates: float
) -> tuple[Array, float]:
    """Return how to make an average of stored ones: by least squares between the profiles.

    The coefficients add up to 1, so that weights which do not move are made exactly.

    Args:
        stored: for each average its length sigma_rel, and after how many steps it stood.
        length: sigma_rel of the average that is wanted.
        updates: after how many steps.

    Returns:
        (coefficients, the error's norm over that of the profile that is wanted).
    """
    exponents = np.array([exponent_of(each) for each, _ in stored])
    times = np.array([float(time) for _, time in stored]) / updates
    products = _inner_products(exponents[:, None], times[:, None], exponents, times)
    exponent = exponent_of(length)
    wanted = _inner_products(exponents, times, exponent, 1.0)
    number = len(times)
    system = np.zeros((number + 1, number + 1))
    system[:number, :number] = products
    system[number, :number] = system[:number, number] = 1.0
    found = np.linalg.lstsq(system, np.append(wanted, 1.0), rcond=None)[0][:number]
    square = float(_inner_products(exponent, 1.0, exponent, 1.0))
    missed = float(found @ products @ found - 2.0 * found @ wanted) + square
    return found, float(np.sqrt(max(missed, 0.0) / square))


def _inner_products(
    one: Array | float, its_time: Array | float, other: Array | float, other_time: Array | float
) -> Array:
    """Integrals over time of the products of two profiles with exponents `one` and `other`."""
    both = one + other + 1.0
    logarithm = (
        both * np.log(np.minimum(its_time, other_time))
        - (one + 1.0) * np.log(its_time)
        - (other + 1.0) * np.log(other_time)
    )
    return (one + 1.0) * (other + 1.0) / both * np.exp(logarithm)


class PowerAverages(keras.layers.Layer):
    """Power-function averages of a network's weights, moved along step by step; none until it is
    asked for some.

    It is no part of the network: a file of weights without averages leaves them at their start,
    which is then that of what they are averages of.

    Attributes:
        lengths: sigma_rel of each average.
        updates: a variable: how many steps they have seen.
        averages: for each length its variables, in the order of the network's weights.
    """

    def __init__(self, name: str = "power_averages"):
        super().__init__(name=name, trainable=False, dtype="float32")
        self.built = True
        self.lengths: tuple[float, ...] = ()
        self.updates: Variable = None
        self.averages: list[list[Variable]] = []

    def follow(self, weights: Sequence[Variable], lengths: Sequence[float]) -> None:
        """Have averages of these weights from now on; those there are stay, if they are of the same
        lengths.
        """
        lengths = tuple(length_of(length) for length in lengths)
        if lengths == self.lengths:
            return
        if self.lengths:
            raise ValueError(
                f"the model has averages of the lengths {list(self.lengths)}, not of "
                f"{list(lengths)}: compile a new model for others"
            )

        def variable(shape: tuple[int, ...], name: str) -> Variable:
            return self.add_weight(
                shape=shape,
                initializer="zeros",
                trainable=False,
                name=name,  # without aggregation: each replica works out the same
            )

        self.updates = variable((), "updates")
        self.averages = [
            [variable(weight.shape, f"{length}_{index}") for index, weight in enumerate(weights)]
            for length in lengths
        ]
        self.lengths = lengths

    def update(self, weights: Sequence[Variable]) -> None:
        """Move the averages on by a step, towards the weights after it."""
        if not self.lengths:
            return
        updates = self.updates + 1.0
        self.updates.assign(updates)
        for length, averages in zip(self.lengths, self.averages):
            rate = _share_of_last(exponent_of(length), updates)
            for average, weight in zip(averages, weights):
                average.assign(average + rate * (ops.cast(weight, "float32") - average))

    def load_own_variables(self, store: Any) -> None:
        names = list(store.keys())
        if len(names) == len(self.weights):
            super().load_own_variables(store)
            return
        for weight in self.weights:  # a file from before, or without averages
            weight.assign(np.zeros(weight.shape, "float32"))


def _share_of_last(exponent: float, updates: Tensor) -> Tensor:
    """1 - (1 - 1 / t)^(gamma + 1) at t = updates, to float32's last digits."""
    return -ops.expm1((exponent + 1.0) * ops.log1p(-1.0 / updates))
