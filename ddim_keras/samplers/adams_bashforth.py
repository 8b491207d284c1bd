"""Linear multistep methods."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from ddim_keras.diffusion.levels import Levels
from ddim_keras.samplers.base import MEMORY, Evaluation, Sampler
from ddim_keras.support.arguments import truth
from ddim_keras.support.types import Array, Config

# The sum of the noises' weights in the next noisy image. Small steps are far below.
_LARGEST_WEIGHTS = 4.0
# Of 1 to 4 noises, the latest first, in steps that are even.
EVEN_WEIGHTS = (
    np.array([1.0]),
    np.array([3.0, -1.0]) / 2.0,
    np.array([23.0, -16.0, 5.0]) / 12.0,
    np.array([55.0, -59.0, 37.0, -9.0]) / 24.0,
)
_QUADRATURE = np.polynomial.legendre.leggauss(64)


@keras.saving.register_keras_serializable("ddim_keras")
class AdamsBashforth(Sampler):
    """Integrates the polynomial through the last predicted noises. One evaluation a step.

        y' = y + integral from r to r' of that polynomial dr,  y = x / a,  r = b / a  (eq. 13)

    The polynomial is one in the angle, theta = atan(r), over which the noise changes evenly; the
    weights are those of the actual, uneven steps. The last step to the clean image is DDIM's, and
    where steps grow so fast that the weights would be wild, fewer noises are used.

    Args:
        order: 1 to 4, the number of predicted noises used. 1 is DDIM.
        warm_up: whether a Runge-Kutta method of order `order` - 1 takes the first step, with
            `order` - 2 more evaluations; without it the first steps use the few noises there are,
            and the whole is of second order at most.
        even_steps: whether the weights are those of even steps in r, 3/2 and -1/2 for two noises,
            whatever the steps are: "iPNDM". Needs warm_up=False. Of second order where steps grow
            smoothly, and better than the exact weights in few steps of some networks.

    Raises:
        ValueError: an order that is not 1, 2, 3 or 4, or even steps with a warm-up.

    Source: Bashforth & Adams 1883; for diffusion models Liu et al. 2022 ("PNDM"), whose
        pseudo-numerical method has the weights of even steps, and Zhang & Chen 2023 ("DEIS"), which
        has the exact ones and calls the others, without a warm-up, "iPNDM".

    Examples:

    >>> AdamsBashforth(order=4).evaluations(10)
    12
    """

    remembers = "noises"

    def __init__(self, order: int = 4, warm_up: bool = True, even_steps: bool = False):
        if order not in range(1, MEMORY + 2):
            raise ValueError(f"order must be 1, 2, 3 or 4, got {order!r}")
        self.even_steps, self.warm_up = truth("even_steps", even_steps), truth("warm_up", warm_up)
        if self.even_steps and self.warm_up:
            raise ValueError("even_steps takes the noises there are: give warm_up=False")
        self.num_noises = int(order)
        self.order = self.num_noises if self.warm_up else min(self.num_noises, 2)

    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        angles = np.arctan2(levels.noise_rates, levels.signal_rates)
        warmed_up = self._extra_evaluations > 0 and self._can_warm_up(levels)
        if index == 0 and warmed_up:
            return self._runge_kutta_step(angles[0], angles[1])
        signal, noise = levels.signal_rates[index], levels.noise_rates[index]
        next_signal, next_noise = levels.signal_rates[index + 1], levels.noise_rates[index + 1]
        if index == 0 or next_noise == 0.0 or min(signal, next_signal) == 0.0:
            return [Evaluation(signal, noise, image=next_signal, noise=next_noise)]
        # Where the network was asked, the latest first: the levels so far and, in the first step,
        # the points between.
        nodes = list(angles[index::-1])
        if warmed_up:
            nodes[-1:] = [*reversed(self._points_between(angles[0], angles[1])), nodes[-1]]
            if self._extra_evaluations == 2:
                nodes[-2] = np.nan  # an Euler step's guess, which would spoil the order
        for count in range(min(self.num_noises, len(nodes)), 0, -1):
            usable = np.isfinite(nodes[:count])
            weights = np.zeros(count)
            if self.even_steps:
                weights[:] = EVEN_WEIGHTS[count - 1] * np.diff(np.tan(angles[index : index + 2]))
            else:
                weights[usable] = integral_weights(
                    np.array(nodes[:count])[usable], angles[index], angles[index + 1]
                )
            weights *= next_signal
            if count == 1 or np.abs(weights).sum() <= _LARGEST_WEIGHTS:
                break
        latest, *earlier = weights
        # x_t / a = pred_image + r pred_noise
        return [
            Evaluation(
                signal,
                noise,
                next_signal,
                next_signal * noise / signal + latest,
                remembered=earlier,
            )
        ]

    def evaluations(self, diffusion_steps: int) -> int:
        return diffusion_steps + (self._extra_evaluations if diffusion_steps > 1 else 0)

    @property
    def _extra_evaluations(self) -> int:
        return max(self.num_noises - 2, 0) if self.warm_up else 0

    @staticmethod
    def _can_warm_up(levels: Levels) -> bool:
        """Neither from nearly pure noise, where r is beyond all measure, nor to the clean image."""
        start, end = levels.ratios[:2]
        return bool(
            end > 0.0 and abs(levels.signal_rates[1] * (end - start)) <= 2.0 * _LARGEST_WEIGHTS
        )

    def _points_between(self, start: float, end: float) -> list[float]:
        """The angles of the first step's further evaluations: the midpoint rule's, or those of
        Heun's third-order rule.
        """
        places, measure = _quadrature(start, end)
        moments = [((places - start) ** power * measure).sum() for power in range(3)]
        if self._extra_evaluations == 1:
            return [start + moments[1] / moments[0]]
        last = moments[2] / moments[1]
        return [start + last / 2.0, start + last]

    def _runge_kutta_step(self, start: float, end: float) -> list[Evaluation]:
        """One step of as many evaluations as there are points, each from y along the noises
        predicted so far.
        """
        points = [start, *self._points_between(start, end)]
        if len(points) == 2:
            stages = [
                integral_weights(points[:1], start, points[1]),
                [0.0, np.tan(end) - np.tan(start)],
            ]
        else:
            first, last = integral_weights([start, points[2]], start, end)
            stages = [integral_weights(points[:count], start, points[count]) for count in (1, 2)]
            stages.append([first, 0.0, last])
        evaluations = []
        before = np.zeros(0)
        for point, following, weights in zip(points, [*points[1:], end], stages):
            # pred_image + r pred_noise here is y plus what `before` brought.
            *earlier, latest = np.cos(following) * (np.array(weights) - np.append(before, 0.0))
            evaluations.append(
                Evaluation(
                    np.cos(point),
                    np.sin(point),
                    image=np.cos(following),
                    noise=np.cos(following) * np.tan(point) + latest,
                    remembered=earlier[::-1],
                )
            )
            before = np.array(weights)
        return evaluations

    def get_config(self) -> Config:
        even = {"even_steps": True} if self.even_steps else {}
        return {"order": self.num_noises, "warm_up": self.warm_up, **even}


def integral_weights(nodes: Sequence[float] | Array, start: float, end: float) -> Array:
    """Return the weights w for which sum w_j f(nodes_j) integrates the polynomial through f from
    start to end.

    Args:
        nodes: different angles, the variable of the polynomial.
        start, end: angles below pi / 2. The integral is one over their tangent, r.
    """
    places, measure = _quadrature(start, end)
    weights = []
    for index, node in enumerate(nodes):
        others = np.delete(np.asarray(nodes, "float64"), index)
        weights.append(
            (np.prod((places[:, None] - others) / (node - others), axis=1) * measure).sum()
        )
    return np.array(weights)


def _quadrature(start: float, end: float) -> tuple[Array, Array]:
    """Angles and weights that integrate over r = tan(angle) from start to end; smooth in asinh(r),
    near pi / 2 too.
    """
    points, weights = _QUADRATURE
    low, high = np.arcsinh(np.tan([start, end]))
    places = low + (high - low) * (points + 1.0) / 2.0
    return np.arctan(np.sinh(places)), np.cosh(places) * weights * (high - low) / 2.0
