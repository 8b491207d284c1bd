"""DPM-Solver++: exponential integrators that extrapolate the predicted image over the log
signal-to-noise ratio.

With lambda = log(a / b) and h = lambda' - lambda, the ODE of eq. 13 is solved by

    x_s = (b'/b) x_t + a' (1 - exp(-h)) D

exactly, if the predicted image D does not change in the step. DDIM takes D = pred_image; these take
better ones.
"""

from __future__ import annotations

import keras
import numpy as np

from ddim_keras.diffusion.levels import Levels
from ddim_keras.samplers.base import Evaluation, Sampler
from ddim_keras.support.arguments import truth
from ddim_keras.support.types import Config


@keras.saving.register_keras_serializable("ddim_keras")
class DPMSolverMultistep(Sampler):
    """DPM-Solver++(2M): extrapolates the last two predicted images. Second order, one evaluation a
    step.

        D = pred_image + h / (2 h_before) (pred_image - pred_image_before)

    Args:
        stochastic: also add noise, as ancestral sampling does ("SDE-DPM-Solver++(2M)"); first order
            in distribution: x_s = (b'/b) exp(-h) x_t + a' (1 - exp(-2h)) D + b' sqrt(1 - exp(-2h))
            z

    The first step, and the last one to the clean image, are DDIM's.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2 and appendix; the midpoint variant.

    Examples:

    >>> DPMSolverMultistep().evaluations(10)
    10
    """

    def __init__(self, stochastic: bool = False):
        self.stochastic = self.is_stochastic = truth("stochastic", stochastic)
        self.order = 1 if self.stochastic else 2

    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        (signal, next_signal), (noise, next_noise) = (rates[index : index + 2] for rates in levels)
        shrink = signal * next_noise / (next_signal * noise)  # exp(-h)
        damping = shrink if self.stochastic else 1.0
        # x_t itself is signal pred_image + noise pred_noise.
        weight_of_x = next_noise / noise * damping
        weight_of_images = next_signal * (1.0 - shrink * damping)
        change = 0.0
        if index > 0 and next_noise > 0.0:
            before, here, there = levels.half_log_snr[index - 1 : index + 2]
            change = (there - here) / (2.0 * (here - before)) * weight_of_images
        fresh = next_noise * np.sqrt(max(1.0 - shrink**2, 0.0)) if self.stochastic else 0.0
        return [
            Evaluation(
                signal,
                noise,
                image=weight_of_x * signal + weight_of_images + change,
                noise=weight_of_x * noise,
                remembered=[-change],
                fresh=fresh,
            )
        ]

    def get_config(self) -> Config:
        return {"stochastic": self.stochastic}


@keras.saving.register_keras_serializable("ddim_keras")
class DPMSolverSinglestep(Sampler):
    """DPM-Solver++(2S): asks the network halfway, in lambda, and takes the whole step with the
    image predicted there.

    Second order, two evaluations a step; one for a step from pure noise or to the clean image,
    where lambda is infinite.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 1 with r = 1/2.

    Examples:

    >>> DPMSolverSinglestep().evaluations(10)
    19
    """

    order = 2
    evaluations_per_step = 2

    def step(self, index: int, levels: Levels) -> list[Evaluation]:
        (signal, next_signal), (noise, next_noise) = (rates[index : index + 2] for rates in levels)
        if next_noise == 0.0 or signal == 0.0:
            return [Evaluation(signal, noise, image=next_signal, noise=next_noise)]
        middle_signal, middle_noise = rates_at(levels.half_log_snr[index : index + 2].mean())
        to_middle = Evaluation(signal, noise, image=middle_signal, noise=middle_noise)
        # Back from the middle to x_t: the first half brought `half_weight` times the first
        # predicted image.
        half_weight = middle_signal - middle_noise * signal / noise
        weight_of_x = next_noise / noise
        from_middle = weight_of_x * noise / middle_noise
        whole_step = Evaluation(
            middle_signal,
            middle_noise,
            image=from_middle * middle_signal + next_signal - weight_of_x * signal,
            noise=from_middle * middle_noise,
            remembered=[-from_middle * half_weight],
        )
        return [to_middle, whole_step]

    def evaluations(self, diffusion_steps: int) -> int:
        return 2 * diffusion_steps - 1


def rates_at(half_log_snr: float) -> tuple[float, float]:
    """Return (signal rate, noise rate) at lambda = log(signal rate / noise rate)."""
    return 1.0 / np.sqrt(1.0 + np.exp(-2.0 * half_log_snr)), 1.0 / np.sqrt(
        1.0 + np.exp(2.0 * half_log_snr)
    )
