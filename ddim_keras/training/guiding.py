"""Guidance as something to learn: a network says by itself what its teacher says when it is guided.

At any noise level the network is asked for what the guided teacher predicts there. It then draws
guided images for one evaluation a step, by any sampler and in any number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from ddim_keras.networks.copying import copied
from ddim_keras.samplers import Conditions, Denoiser
from ddim_keras.sampling.denoisers import network_denoiser, telling
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    Guidance,
    away_from,
    guidances,
)
from ddim_keras.support.types import Config, GuidanceLike, Images, Rates, Tensor
from ddim_keras.training.objective import Objective, TaughtObjective, Teaching


@keras.saving.register_keras_serializable("ddim_keras")
class KeptAutoguidance(Guidance):
    """Autoguidance by the weaker network that a model keeps to learn from, so that a file can hold
    it.

    Args:
        weight, interval: as for `Autoguidance`.
    """

    def evaluations(self, inside: Tensor) -> Tensor:
        return inside + 1

    def wrapper(self, engine: Engine) -> Any:
        raise ValueError(
            "autoguidance that is learned is a teacher's: generate takes Autoguidance(model, "
            f"{self.weight})"
        )


@keras.saving.register_keras_serializable("ddim_keras")
class GuidanceDistillation(Teaching):
    """How a model is taught its teacher's guidance; `ddim_keras.distill_guidance` makes such
    models.

    Args:
        guidance: of the teacher, as for `generate`: weights, `ClassifierFreeGuidance`, or one
            `KeptAutoguidance`, each around the one before.

    Raises:
        ValueError: guidance that no file can hold, or none.

    Source: Meng et al. 2023, "On distillation of guided diffusion models", the first stage, at one
        weight.

    Examples:

    >>> GuidanceDistillation(3.0).guidance
    [ClassifierFreeGuidance(weight=3.0, interval=None, rescale=0.0)]
    """

    def __init__(self, guidance: GuidanceLike | Sequence[Config]):
        self.guidance = that_files_hold(guidance, (ClassifierFreeGuidance, KeptAutoguidance))
        if not self.guidance:
            raise ValueError(
                "there is no guidance to learn: give a weight, such as 3.0, for a model by label, "
                "or Autoguidance(weaker_model, 2.0)"
            )
        if sum(isinstance(part, KeptAutoguidance) for part in self.guidance) > 1:
            raise ValueError("a model keeps one weaker network: give one Autoguidance, not several")

    def get_config(self) -> Config:
        return {
            "guidance": [keras.saving.serialize_keras_object(part) for part in self.guidance],
        }

    def objective(self, *parts: Any) -> Objective:
        return GuidanceObjective(self, *parts)


class GuidanceObjective(TaughtObjective):
    """What a `GuidanceDistillation` minimises. `n_loss` and `i_loss` compare with what the guided
    teacher says.

    Args:
        distillation: how.
        *parts: the arguments of `Objective`.
    """

    distillation: GuidanceDistillation

    def take_teachers(self, network: keras.Model, engine: Engine) -> None:
        super().take_teachers(network, engine)
        if any(isinstance(part, KeptAutoguidance) for part in self.distillation.guidance):
            self.weaker = copied(network)
            self.weaker.trainable = False

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
        if not told and any(part.needs_condition() for part in self.distillation.guidance):
            raise ValueError(
                "guidance by label is learned from images with their labels, or conditions, and "
                "these have none: give (images, labels), or load the data with labels=True"
            )
        noisy_images = signal_rates * images + noise_rates * noises
        level = self.schedule.conditions(signal_rates, noise_rates)
        asked = (noisy_images, noise_rates, signal_rates, Conditions(level))
        own = network_denoiser(network, self.parameterization, self.spec, training)
        wanted = telling(self._guided(), told)(*asked)
        losses = self.compared(
            tuple(ops.stop_gradient(part) for part in wanted),
            telling(own, told)(*asked),
            signal_rates,
            noise_rates,
        )
        return self.taken(network, *losses, sample_weight)

    def _guided(self) -> Denoiser:
        assert self.teacher is not None and self._engine is not None
        denoise = network_denoiser(self.teacher, self.parameterization, self.spec)
        for part in self.distillation.guidance:
            if isinstance(part, KeptAutoguidance):
                weaker = network_denoiser(self.weaker, self.parameterization, self.spec)
                denoise = away_from(part, denoise, weaker, self.schedule)
            else:
                denoise = part.wrapper(self._engine).without_branch(denoise)
        return denoise


def that_files_hold(
    guidance: GuidanceLike | Sequence[Config], kinds: tuple[type[Guidance], ...]
) -> list[Guidance]:
    """Return the guidances that an argument, or a configuration, stands for.

    Raises:
        ValueError: one of another kind.
    """
    parts = guidance if isinstance(guidance, (list, tuple)) else [guidance]
    parts = [
        keras.saving.deserialize_keras_object(part) if isinstance(part, dict) else part
        for part in parts
        if part is not None
    ]
    found = guidances(parts)
    for part in found:
        if not isinstance(part, kinds):
            advice = "give a weight, or ClassifierFreeGuidance"
            if isinstance(part, Autoguidance):
                advice = (
                    "ddim_keras.distill_guidance teaches it, of which a model of few steps can "
                    "learn"
                )
            raise ValueError(
                f"a model cannot be taught with {type(part).__name__}, which no file can hold: "
                f"{advice}"
            )
    return found
