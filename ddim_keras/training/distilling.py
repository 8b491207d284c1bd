"""Distillation as an objective: a network learns to go in a few steps where its teacher walks in
many.

With S steps of DDIM over even times, whose angles are u_S > ... > u_1 > u_0 = 0:

- "progressive" compares where a walk of S steps ends with where the teacher's long walk from the
  same noise ends, and takes the gradient through all S steps.
- "consistency" asks, at any angle u between u_(k-1) and u_k, for the point at u_(k-1) of the
  teacher's path: that which the network itself names at the next lower angle, after one step of
  the teacher. At u = u_(k-1) the two are one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras.diffusion.spacings import SPACINGS, Spacing, diffusion_times, levels_of
from ddim_keras.samplers import (
    DDIM,
    MEMORY,
    SAMPLERS,
    Conditions,
    Denoiser,
    FittedSampler,
    Plan,
    Sampler,
    UniPC,
    plan,
    walk,
    walk_written_out,
)
from ddim_keras.sampling.denoisers import network_denoiser, telling
from ddim_keras.sampling.distance import distances_through_noise
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.guidance import ClassifierFreeGuidance
from ddim_keras.support.arguments import integer, positive_int
from ddim_keras.support.configurable import resolve
from ddim_keras.support.types import Config, GuidanceLike, Images, Rates, Tensor
from ddim_keras.training.guiding import that_files_hold
from ddim_keras.training.objective import Objective, TaughtObjective, Teaching

METHODS = ("progressive", "consistency")
_TEACHER_STEPS = {"progressive": 6, "consistency": 24}


@keras.saving.register_keras_serializable("ddim_keras")
class Distillation(Teaching):
    """How a model is taught to draw in a few steps; `ddim_keras.distill` makes such models.

    Args:
        steps: S, of the model that is taught, by DDIM over even times or by `own`.
        method: "progressive" or "consistency".
        teacher_steps: of the teacher: for "progressive" those of its walk, 6 by default; for
            "consistency" into how many the way from noise to image is cut, 24 by default.
        sampler, spacing: of the teacher's walk, for "progressive". None is UniPC(3) over Karras's
            levels.
        guidance: of the teacher, as for `generate`; the model that is taught needs none.
        own: the `FittedSampler` of S steps that the model is taught to walk by, with "progressive".

    Raises:
        ValueError: an unknown method, fewer steps of the teacher than of the model, or guidance
            that no file can hold.

    Source: "progressive" is Salimans & Ho 2022 with all halvings in one, and the gradient through
        all steps; "consistency" is Song et al. 2023, in parts as Heek et al. 2024 have it.

    Examples:

    >>> Distillation(2).teacher_steps
    6
    """

    def __init__(
        self,
        steps: int,
        method: str = "progressive",
        teacher_steps: int | None = None,
        sampler: str | Sampler | Config | None = None,
        spacing: str | Spacing | Config | None = None,
        guidance: GuidanceLike | Sequence[Config] = None,
        own: FittedSampler | Config | None = None,
    ):
        if method not in METHODS:
            hint = ": ddim_keras.distill_guidance teaches that" if method == "guidance" else ""
            raise ValueError(f"method must be one of {list(METHODS)}, got {method!r}{hint}")
        self.steps, self.method = positive_int("steps", steps), method
        fewest = self.steps + 1 if method == "progressive" else self.steps
        chosen = max(fewest, _TEACHER_STEPS[method]) if teacher_steps is None else teacher_steps
        self.teacher_steps = integer("teacher_steps", chosen, minimum=fewest)
        self.sampler = resolve(UniPC(3) if sampler is None else sampler, Sampler, SAMPLERS)
        its = self.sampler.spacing or ("karras" if sampler is None else "linear")
        self.spacing: Spacing = resolve(its if spacing is None else spacing, Spacing, SPACINGS)
        if self.sampler.is_stochastic:
            raise ValueError(
                f"a teacher's walk must be deterministic, but {self.sampler!r} adds noise: take "
                "another sampler"
            )
        self.own: FittedSampler | None = None if own is None else resolve(own, FittedSampler, {})
        if self.own is not None and (method, self.own.diffusion_steps) != ("progressive", steps):
            raise ValueError(
                f"the model can walk by a FittedSampler of {steps} steps, taught by the method "
                f"'progressive', got {self.own!r} and {method!r}"
            )
        self.guidance = that_files_hold(guidance, (ClassifierFreeGuidance,))

    def get_config(self) -> Config:
        serialize = keras.saving.serialize_keras_object
        return {
            "steps": self.steps,
            "method": self.method,
            "teacher_steps": self.teacher_steps,
            "sampler": serialize(self.sampler),
            "spacing": serialize(self.spacing),
            "guidance": [serialize(part) for part in self.guidance],
            **({} if self.own is None else {"own": serialize(self.own)}),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.steps}, {self.method!r})"

    def objective(self, *parts: Any) -> Objective:
        return DistillationObjective(self, *parts)


class DistillationObjective(TaughtObjective):
    """What a `Distillation` minimises. `n_loss` and `i_loss` compare with what the teacher says.

    Args:
        distillation: how.
        *parts: the arguments of `Objective`.
    """

    distillation: Distillation

    def __init__(self, distillation: Distillation, *parts: Any):
        super().__init__(distillation, *parts)
        self._distances: Callable[..., Tensor] | None = None
        schedule = self.schedule
        own: Sampler = distillation.own or DDIM()
        times = diffusion_times(distillation.steps, own.spacing or "linear", schedule)
        self._own = plan(own, levels_of(schedule, times), schedule.conditions)
        self._long = self._plan_of_teacher()
        self._angles = np.arctan2(*reversed(levels_of(schedule, times)))

    def take_teachers(self, network: keras.Model, engine: Engine) -> None:
        super().take_teachers(network, engine)
        assert self.teacher is not None
        self._distances = distances_through_noise(engine, self.teacher)

    def measure(
        self,
        network: keras.Model,
        images: Images,
        noises: Images,
        signal_rates: Rates,
        noise_rates: Rates,
        sample_weight: Tensor | None,
        training: bool,
        told: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """As `Objective.measure`. "progressive" starts its walks at the schedule's noise end; the
        rates say through how much noise the teacher's network then compares images.
        """
        own = network_denoiser(network, self.parameterization, self.spec, training)
        student, teacher = telling(own, told), self._teaching(told)
        if self.distillation.method == "progressive":
            found = self._of_walks(student, teacher, images, noises, noise_rates)
        else:
            found = self._of_points(student, teacher, images, noises, signal_rates, noise_rates)
        return self.taken(network, *found, sample_weight)

    def _of_walks(
        self,
        student: Denoiser,
        teacher: Denoiser,
        images: Images,
        noises: Images,
        noise_rates: Rates,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of walks from the noise end."""
        signal_rate, noise_rate = (float(rates[0]) for rates in self.schedule(np.array([1.0])))
        start = signal_rate * images + noise_rate * noises
        memory = ops.stack([ops.zeros_like(start)] * MEMORY)
        ends = [int(planned.ends[-1]) for planned in (self._long, self._own)]
        tables = [
            ops.convert_to_tensor(each.table[:end])
            for each, end in zip((self._long, self._own), ends)
        ]
        first, last = np.int32(0), np.int32(ends[0])
        above = self._long.started(start)
        wanted, _, _ = walk(teacher, above, memory, tables[0], first, last, None)
        wanted = ops.stop_gradient(wanted)
        found = walk_written_out(student, self._own.started(start), memory, tables[1], ends[1])
        image_losses = self.of_images(wanted, found)
        of_noises = [(start - signal_rate * each) / noise_rate for each in (wanted, found)]
        assert self._distances is not None
        # Through half of the noise: of what is nearly noise alone, no feature says anything.
        lowest = self._angle_at_image_end()
        angles = lowest + 0.5 * (ops.arcsin(noise_rates) - lowest)
        compared = (found, wanted, noises, ops.cos(angles), ops.sin(angles))
        losses = image_losses + self._distances(*compared)
        return losses, self.of_images(*of_noises), image_losses

    def _of_points(
        self,
        student: Denoiser,
        teacher: Denoiser,
        images: Images,
        noises: Images,
        signal_rates: Rates,
        noise_rates: Rates,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of single points at the given rates."""
        angles = ops.arctan2(noise_rates, signal_rates)
        noisy_images = signal_rates * images + noise_rates * noises
        ends, next_angles = self._next(angles)
        arrived = self._arrived(student, teacher, noisy_images, (angles, next_angles, ends))
        # The image and the noise of which these two points of the path are made.
        apart = ops.sin(angles - ends)
        wanted_images = ops.sin(angles) * arrived - ops.sin(ends) * noisy_images
        wanted_noises = ops.cos(ends) * noisy_images - ops.cos(angles) * arrived
        wanted_images, wanted_noises = (
            ops.stop_gradient(part / apart) for part in (wanted_images, wanted_noises)
        )
        level = self.schedule.conditions(signal_rates, noise_rates)
        predicted = student(noisy_images, noise_rates, signal_rates, Conditions(level))
        return self.compared((wanted_noises, wanted_images), predicted, signal_rates, noise_rates)

    def _next(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """The angle at which each one's part of the way ends, and that of the teacher's step."""
        highest, lowest = float(self._angles[0]), float(self._angle_at_image_end())
        ends = ops.zeros_like(angles)
        for boundary in map(float, self._angles[1:-1]):
            ends = ops.maximum(ends, ops.where(angles > boundary + _CLOSE, boundary, 0.0))
        step = (highest - lowest) / self.distillation.teacher_steps
        # Below the lowest level that the network knows, there is the image alone.
        least = ops.where(ends > 0.0, ends, lowest)
        following = angles - step
        return ends, ops.where(following < least + _CLOSE, ends, following)

    def _arrived(
        self,
        student: Denoiser,
        teacher: Denoiser,
        noisy_images: Images,
        angles: tuple[Tensor, Tensor, Tensor],
    ) -> Images:
        """Where, at the ends of their parts, the paths arrive that begin with a step of the
        teacher's.
        """
        here, following, ends = angles
        stepped = self._stepped(teacher, noisy_images, here, following)
        # Where the step leads to the end, the network is not asked; its answer would be no number.
        asked_at = ops.where(following > ends, following, here)
        further = self._stepped(student, stepped, asked_at, ends)
        return ops.where(following > ends, further, stepped)

    def _stepped(
        self, denoise: Denoiser, noisy_images: Images, here: Tensor, there: Tensor
    ) -> Images:
        """A step of DDIM between two angles."""
        signal_rates, noise_rates = ops.cos(here), ops.sin(here)
        level = self.schedule.conditions(signal_rates, noise_rates)
        noises, images = denoise(noisy_images, noise_rates, signal_rates, Conditions(level))
        return ops.stop_gradient(ops.cos(there) * images + ops.sin(there) * noises)

    def _angle_at_image_end(self) -> float:
        rates = self.schedule(np.array([self.schedule.first_time]))
        return float(np.arctan2(rates[1], rates[0])[0])

    def _teaching(self, told: Mapping[str, Tensor]) -> Denoiser:
        """The teacher's denoiser, guided, and told of a batch."""
        if self.teacher is None or self._engine is None:
            raise RuntimeError(
                "nobody teaches: ddim_keras.distill makes a model that has a teacher"
            )
        denoise = network_denoiser(self.teacher, self.parameterization, self.spec)
        for part in self.distillation.guidance:
            denoise = part.wrapper(self._engine).without_branch(denoise)
        return telling(denoise, told)

    def _plan_of_teacher(self) -> Plan:
        distillation, schedule = self.distillation, self.schedule
        steps = distillation.sampler.steps_for(distillation.teacher_steps)
        levels = levels_of(schedule, diffusion_times(steps, distillation.spacing, schedule))
        return plan(distillation.sampler, levels, schedule.conditions)


_CLOSE = 1e-4  # of angles
