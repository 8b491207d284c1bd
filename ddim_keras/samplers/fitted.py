"""A sampler whose levels and weights were found for one model, not derived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras.saving import serialize_keras_object

from ddim_keras.diffusion.levels import Levels
from ddim_keras.diffusion.spacings import GivenSpacing, checked_angles
from ddim_keras.samplers.base import MEMORY, Evaluation, Sampler
from ddim_keras.samplers.starts import GaussianStart
from ddim_keras.support.configurable import Configurable, resolve
from ddim_keras.support.types import Config

_SAME_ANGLE = 1e-3


@keras.saving.register_keras_serializable("ddim_keras")
class FittedSampler(Sampler):
    """Levels and weights of a whole walk that were found for one model, by gradient descent against
    walks of many steps from the same noises. One evaluation a step.

        x_(n+1) = w_0 pred_noise_n + w_1 pred_image_n + w_2 pred_image_(n-1) + ...

    `ddim_keras.samplers.fit` makes it. It takes as many steps as it was fitted for, over its own
    levels. What the network is told of a level and the scale of the noisy images there are not tied
    to each other: a weight may be anything.

    Args:
        angles: one for each step, falling, between 0 and pi / 2: the noise rate is the sine of
            each, the signal rate its cosine.
        weights: for each step those above, as many as there are predictions by then, and at most
            `MEMORY` earlier ones.
        guidance: the configurations of the guidance that it was fitted with; it is only chosen by
            itself where that acts.
        errors: of held-out noises, the distance of their images from those of the long walks:
            "fitted", and "before" with the best sampler that is not. For the reader alone.
        start: a `GaussianStart` below pure noise, or None.

    Raises:
        ValueError: weights that do not fit the angles, or another walk than it was fitted for.

    Source: Tong et al. 2025 ("LD3"), Frankel et al. 2025 ("S4S") and Wang et al. 2023 ("DDSS") fit
        parts of this table.

    Examples:

    >>> sampler = FittedSampler([1.5, 0.7], [[0.6, 0.8], [0.1, 1.1, -0.1]])
    >>> sampler, sampler.steps_for(2)
    (FittedSampler(2 steps), 2)
    """

    def __init__(
        self,
        angles: Sequence[float],
        weights: Sequence[Sequence[float]],
        guidance: Sequence[Config] = (),
        errors: Config | None = None,
        start: GaussianStart | Config | None = None,
    ):
        self.angles = checked_angles(angles)
        self.weights = [[float(weight) for weight in row] for row in weights]
        expected = [number_of_weights(index) for index in range(len(self.angles))]
        if [len(row) for row in self.weights] != expected:
            raise ValueError(
                f"weights must be rows of {expected} numbers for {len(expected)} angles, got rows "
                f"of {[len(row) for row in self.weights]}"
            )
        if not all(np.isfinite(row).all() for row in self.weights):
            raise ValueError("weights must be finite, got NaN or infinity")
        self.guidance = [dict(part) for part in guidance]
        self.errors = dict(errors or {})
        self.start = None if start is None else resolve(start, GaussianStart, {})
        self.spacing = GivenSpacing(self.angles.tolist())
        self.diffusion_steps = len(self.angles)

    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        angles = np.arctan2(levels.noise_rates, levels.signal_rates)[:-1]
        own = self.angles
        if len(angles) != len(own) or np.abs(angles - own).max() > _SAME_ANGLE:
            raise ValueError(
                f"{self!r} walks over its own levels from noise to image, in {len(own)} steps, and "
                "not over others: leave diffusion_steps and spacing out, or take another sampler"
            )
        noise, image, *remembered = self.weights[index]
        signal_rate, noise_rate = (float(rates[index]) for rates in levels)
        return [Evaluation(signal_rate, noise_rate, image, noise, remembered)]

    def evaluations(self, diffusion_steps: int) -> int:
        return max(diffusion_steps, len(self.angles))  # it takes no fewer

    def steps_for(self, network_evaluations: int) -> int:
        if network_evaluations != len(self.angles):
            raise ValueError(
                f"{self!r} takes {len(self.angles)} network evaluations, got "
                f"{network_evaluations}: fit another, or leave sampler out"
            )
        return len(self.angles)

    def is_for(self, guidance: Sequence[Any]) -> bool:
        """Whether it was fitted with this guidance, `Guidance` objects."""
        return self.guidance == [configuration(part) for part in guidance]

    def get_config(self) -> Config:
        return {
            "angles": self.angles.tolist(),
            "weights": self.weights,
            "guidance": self.guidance,
            "errors": self.errors,
            **({} if self.start is None else {"start": serialize_keras_object(self.start)}),
        }

    def __repr__(self) -> str:
        plural = "" if len(self.angles) == 1 else "s"
        start = "" if self.start is None else f", {self.start!r}"
        return f"{type(self).__name__}({len(self.angles)} step{plural}{start})"


def fit(model: Any, network_evaluations: int, **options: Any) -> FittedSampler:
    """Fit a sampler of few network evaluations to a trained model, which keeps it.

    Args:
        model: a `DiffusionModel`; this is its `fit_sampler`.
        network_evaluations: calls of the network for each image.
        **options: as for `fit_sampler`: labels, guidance, num_images, epochs, seed, ...

    Examples:

    >>> model = DiffusionModel(image_size=8, widths=[8], block_depth=1, channels=1, seed=0)
    >>> few = dict(num_images=16, teacher_steps=5, epochs=1, verbose=0)
    >>> fit(model, network_evaluations=1, **few)
    FittedSampler(1 step)
    """
    fitted: FittedSampler = model.fit_sampler(network_evaluations, **options)
    return fitted


def number_of_weights(index: int) -> int:
    """Return how many weights step number `index` of a `FittedSampler` has."""
    return 2 + min(index, MEMORY)


def configuration(part: Configurable) -> Config:
    """Return what tells one object from another: its class and its settings."""
    return {"class_name": type(part).__name__, **part.get_config()}
