"""Two-step rules: walks that can be taken back by algebra, whatever the network says.

DDIM's step is taken back by solving an equation, which not every image allows. A rule that makes
the next state of the last two, and asks the network at the nearer one alone, is linear in the
older:

    x_s = gamma x_u + (a_s - gamma a_u) pred_image + (b_s - gamma b_u) pred_noise

where u > t > s are neighbouring times, a and b their rates, and both predictions are made at x_t.
It is solved for x_u with the same single evaluation. What a walk begins with, and what a latent is,
are two neighbouring states.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from ddim_keras.diffusion.levels import Levels
from ddim_keras.samplers.base import Evaluation
from ddim_keras.samplers.planning import Plan, table_of
from ddim_keras.samplers.walking import Conditions, Denoiser
from ddim_keras.support.configurable import Configurable
from ddim_keras.support.types import Array, Config, Images, Tensor

# States are multiples of 1 / this. Sums of such numbers up to 16 are exact in float32.
_LATTICE = 2.0**20
LARGEST_EXACT = 16.0


class TwoStepRule(Configurable, abc.ABC):
    """Base class. A rule is its gamma, the weight of the older state, for each step."""

    @abc.abstractmethod
    def gamma(self, index: int, levels: Levels) -> float:
        """Return the weight of state `index` - 1 in state `index` + 1 of `levels`; not zero."""


@keras.saving.register_keras_serializable("ddim_keras")
class BDIA(TwoStepRule):
    """Bi-directional integration: DDIM's step from t to s, and of the step from t back to u what
    the older state differs by, gamma times. Second order on smooth spacings.

    With gamma = 1 the rule is the midpoint rule, x_s = x_u + (what the network says), and no error
    grows in either direction. As it only adds, a walk over rounded states is taken back to the last
    bit.

    Args:
        gamma: in (0, 1]. Below 1 errors fade on the way to the image, and grow on the way back, by
            1 / gamma each step; the order falls to one.

    Raises:
        ValueError: gamma outside (0, 1].

    Source: Zhang, Lewis & Kleijn 2023, "Exact Diffusion Inversion via Bi-directional Integration
    Approximation".

    Examples:

    >>> BDIA().gamma(1, Levels(np.array([0.0, 0.6, 1.0]), np.array([1.0, 0.8, 0.0])))
    1.0
    """

    def __init__(self, gamma: float = 1.0):
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"gamma must lie in (0, 1], got {gamma}")
        self.weight = float(gamma)

    def gamma(self, index: int, levels: Levels) -> float:
        return self.weight

    def get_config(self) -> Config:
        return {"gamma": self.weight}


@keras.saving.register_keras_serializable("ddim_keras")
class OBELM(TwoStepRule):
    """The two-step rule of the smallest local error: second order on any spacing.

        gamma = (h / H)^2 a_s / a_u,  h = r_t - r_s,  H = r_u - r_t,  r = b / a

    Where steps shrink towards the image, errors fade on the way there, and grow by (H / h)^2 each
    step on the way to the noise: latents of real images may be far from noise.

    Source: Wang et al. 2024, "BELM: Bidirectional Explicit Linear Multi-step Sampler for Exact
    Inversion in Diffusion Models".

    Examples:

    >>> levels = Levels(np.array([0.6, 0.8, 1.0]), np.array([0.8, 0.6, 0.0]))
    >>> round(float(OBELM().gamma(1, levels)), 3)
    2.755
    """

    def gamma(self, index: int, levels: Levels) -> float:
        older, here, newer = levels.ratios[index - 1 : index + 2]
        if not np.isfinite(older):
            raise ValueError(
                "O-BELM divides by the signal rate, which is 0 at the noise end of this schedule: "
                'take exact="bdia", or times below 1'
            )
        signals = levels.signal_rates[index + 1] / levels.signal_rates[index - 1]
        return ((here - newer) / (older - here)) ** 2 * signals


TWO_STEP_RULES: dict[str, Callable[[], TwoStepRule]] = {
    "algebra": BDIA,
    "bdia": BDIA,
    "o_belm": OBELM,
}


def plan_pairs(
    rule: TwoStepRule,
    levels: Levels,
    conditions: Callable[[Array, Array], Array],
    backwards: bool = False,
) -> Plan:
    """Work out the evaluations of a walk over pairs of states.

    Args:
        rule: the rule.
        levels: at least three, from noise to image. The first pair are the states at the first two.
        conditions: (signal_rates, noise_rates) -> what the network is told of the noise level.
        backwards: from the pair at the last two to that at the first two.
    """
    signals, noises = levels
    evaluations = []
    for index in range(1, len(signals) - 1):
        weight = rule.gamma(index, levels)
        image = signals[index + 1] - weight * signals[index - 1]
        noise = noises[index + 1] - weight * noises[index - 1]
        if backwards:
            weight, image, noise = 1.0 / weight, -image / weight, -noise / weight
        evaluations.append(
            Evaluation(signals[index], noises[index], image, noise, remembered=[weight])
        )
    if backwards:
        evaluations.reverse()
    return Plan(table_of(evaluations, conditions), np.arange(1, len(evaluations) + 1))


def walk_pairs(
    denoise: Denoiser, older: Images, newer: Images, table: Tensor, number: Tensor
) -> tuple[Images, Images]:
    """Make the first `number` evaluations of a plan of pairs; the loop of `walk` for two-step
    rules.

    Args:
        denoise: as for `walk`.
        older, newer: (batch, height, width, channels), the pair at the first evaluation. The
            network is asked at the newer.
        table: `Plan.table`, as a tensor.
        number: int32 scalar; its value is not compiled in.

    Returns:
        (older, newer) after the last evaluation. What is added is rounded to a lattice, so that
        with gamma = 1 sums are exact, and a walk there and back ends where it began.
    """

    def evaluate(index: Tensor, older: Images, newer: Images) -> tuple[Tensor, ...]:
        noise_level, noise_rate, signal_rate, image, noise, _, weight, *_ = ops.unstack(
            ops.take(table, index, axis=0), num=table.shape[1]
        )
        conditions = Conditions(noise_level, index)
        pred_noises, pred_images = denoise(newer, noise_rate, signal_rate, conditions)
        added = on_lattice(image * pred_images + noise * pred_noises)
        return index + 1, newer, weight * older + added

    _, older, newer = ops.while_loop(
        lambda index, *_: index < number, evaluate, (ops.zeros_like(number), older, newer)
    )
    return older, newer


def on_lattice(states: Images) -> Images:
    """Round states to numbers whose sums are exact in float32."""
    numeric = np if isinstance(states, np.ndarray) else ops
    return numeric.round(states * _LATTICE) / _LATTICE
