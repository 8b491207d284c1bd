"""Heun's method."""

from __future__ import annotations

import keras

from ddim_keras.diffusion.levels import Levels
from ddim_keras.samplers.base import Evaluation, Sampler

# Of a difference of predicted noises in the next noisy image. Small steps are far below.
_LARGEST_WEIGHT = 2.0


@keras.saving.register_keras_serializable("ddim_keras")
class Heun(Sampler):
    """A DDIM step, then the same again with the mean of the noises predicted at both its ends.

        y' = y + (r' - r) (pred_noise(x) + pred_noise(a' y'_DDIM)) / 2,  y = x / a,  r = b / a

    Second order, two evaluations a step. One for the step to the clean image, where the network
    cannot be asked, and for steps from or to nearly pure noise, where r is so large that the
    correction would be wild.

    Source: Karras et al. 2022 ("EDM"), algorithm 1, with the noise levels of any schedule.

    Examples:

    >>> Heun().evaluations(10)
    19
    """

    order = 2
    evaluations_per_step = 2
    runs_backwards = True
    remembers = "noises"

    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        (signal, next_signal), (noise, next_noise) = (rates[index : index + 2] for rates in levels)
        euler = Evaluation(signal, noise, image=next_signal, noise=next_noise)
        if next_noise == 0.0 or min(signal, next_signal) == 0.0:
            return [euler]
        # The Euler step brought (r' - r) pred_noise; half of it is taken back for the other noise's
        # half.
        half = 0.5 * (next_noise - next_signal * noise / signal)
        if abs(half) > _LARGEST_WEIGHT:
            return [euler]
        corrected = Evaluation(
            next_signal, next_noise, next_signal, next_noise + half, remembered=[-half]
        )
        return [euler, corrected]

    def evaluations(self, diffusion_steps: int) -> int:
        return 2 * diffusion_steps - 1
