"""What a sampler is: an update rule, which says what the next noisy image is made of."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

from ddim_keras.diffusion.levels import Levels
from ddim_keras.diffusion.spacings import Spacing
from ddim_keras.samplers.starts import GaussianStart
from ddim_keras.support.configurable import Configurable

# How many earlier predictions a walk remembers.
MEMORY = 3


class Evaluation(NamedTuple):
    """One call of the network, and what the next noisy image is made of:

        x = image pred_image + noise pred_noise + (remembered, earlier predictions) + fresh z,  z
        standard normal

    Attributes:
        signal_rate, noise_rate: the level of the noisy image that the network is given.
        image, noise: weights of the two predictions made there. They sum up to the noisy image
            itself as signal_rate pred_image + noise_rate pred_noise.
        remembered: weights of what earlier evaluations predicted, the latest first, at most
            `MEMORY`: images or noises, as `Sampler.remembers` says.
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
        spacing: what it takes where the user gives none; None for "linear".
        diffusion_steps: the only number of steps that it takes, or None for any.
        start: what noise is carried by before the first step, or None.
    """

    order: int = 1
    evaluations_per_step: int = 1
    is_stochastic: bool = False
    runs_backwards: bool = False
    remembers: str = "images"
    spacing: Spacing | None = None
    diffusion_steps: int | None = None
    start: GaussianStart | None = None

    @abc.abstractmethod
    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        """Return the evaluations that lead from `levels` number `index` to number `index + 1`."""

    def evaluations(self, diffusion_steps: int) -> int:
        """Return how often, at most, the network is called in a walk of `diffusion_steps` steps to
        the clean image.
        """
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
                f"network_evaluations must be at least {self.evaluations(1)} for {self!r}, got "
                f"{network_evaluations}"
            )
        return steps
