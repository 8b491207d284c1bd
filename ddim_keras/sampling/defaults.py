"""What a model's `generate` takes where the user does not say: the model's own defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ddim_keras.diffusion.spacings import SPACINGS, Spacing
from ddim_keras.samplers import SAMPLERS, FittedSampler, Sampler
from ddim_keras.sampling.clipping import CLIPPINGS, Clipping
from ddim_keras.support.arguments import is_number, positive_int
from ddim_keras.support.configurable import Configurable, resolve
from ddim_keras.support.types import Config
from ddim_keras.support.version import FIRST_VERSION


@keras.saving.register_keras_serializable("ddim_keras")
class SamplingDefaults(Configurable):
    """What `generate`, `variations`, `score` and `inpaint` take where the user does not say;
    `restore` takes the clipping.

    Saved with the model. Models made from published weights have those of their configuration.
    `encode` and `decode`, which must fit each other, do not look here.

    Args:
        diffusion_steps: S, or None for 20.
        sampler: a `Sampler` or its name, or None for what measures best: UniPC, in two steps DDIM.
        spacing: a `Spacing` or its name, or None for what suits that, and "linear" with another
            sampler.
        clipping: a `Clipping` or its name, or None for "none".
        samplers: `FittedSampler`s, each for its number of steps; where the user gives that number
            and neither sampler, eta, spacing nor schedule, it goes before the others.
        guidance: the weight of guidance where there are labels or a condition, or None for 1,
            which is none. Programs that are exported have it too.
        version: "0.1" for the walks of that version where nothing else is said, which are UniPC's
            over Karras's levels in any number of steps; or None for this one's. Files that 0.1
            wrote have it, so that they draw the images that they drew.

    Raises:
        ValueError: an argument out of its range.

    Examples:

    >>> SamplingDefaults(50, "ddim", "leading").spacing
    LeadingSpacing()
    """

    def __init__(
        self,
        diffusion_steps: int | None = None,
        sampler: str | Sampler | Config | None = None,
        spacing: str | Spacing | Config | None = None,
        clipping: str | Clipping | Config | None = None,
        samplers: Sequence[FittedSampler | Config] = (),
        guidance: float | None = None,
        version: str | None = None,
    ):
        self.diffusion_steps = (
            None if diffusion_steps is None else positive_int("diffusion_steps", diffusion_steps)
        )
        self.sampler = None if sampler is None else resolve(sampler, Sampler, SAMPLERS)
        self.spacing = None if spacing is None else resolve(spacing, Spacing, SPACINGS)
        self.clipping = None if clipping is None else resolve(clipping, Clipping, CLIPPINGS)
        self.samplers = [resolve(sampler, FittedSampler, {}) for sampler in samplers]
        if guidance is not None and (not is_number(guidance) or not math.isfinite(guidance)):
            raise ValueError(
                f"guidance must be None or a finite weight, such as 2.0, got {guidance!r}; other "
                "guidance is given to `generate` itself"
            )
        self.guidance = None if guidance is None else float(guidance)
        if version not in (None, FIRST_VERSION):
            raise ValueError(
                f"version must be None or {FIRST_VERSION!r}, whose default walks were others, got "
                f"{version!r}"
            )
        self.version = version

    def steps(self, diffusion_steps: Any) -> Any:
        """Return the user's steps, or the default."""
        return (self.diffusion_steps or 20) if diffusion_steps is None else diffusion_steps

    def fitted(self, steps: Any, guidance: Sequence[Configurable]) -> FittedSampler | None:
        """Return the fitted sampler for a walk of so many steps with such guidance, if there is
        one.
        """
        if isinstance(steps, (Sequence, np.ndarray)):
            return None  # times
        for sampler in self.samplers:
            if sampler.diffusion_steps == steps and sampler.is_for(guidance):
                return sampler
        return None

    def keep(self, fitted: FittedSampler) -> None:
        """Keep a fitted sampler, in place of another for the same walk."""
        others = [
            sampler
            for sampler in self.samplers
            if (sampler.diffusion_steps, sampler.guidance)
            != (fitted.diffusion_steps, fitted.guidance)
        ]
        self.samplers = sorted([*others, fitted], key=lambda each: len(each.angles))

    def clipping_for(self, clipping: str | Clipping | None) -> str | Clipping:
        """Return the user's clipping, or the default."""
        return (self.clipping or "none") if clipping is None else clipping

    def get_config(self) -> Config:
        samplers = [keras.saving.serialize_keras_object(sampler) for sampler in self.samplers]
        parts = {"sampler": self.sampler, "spacing": self.spacing, "clipping": self.clipping}
        return {
            "diffusion_steps": self.diffusion_steps,
            **{
                name: None if part is None else keras.saving.serialize_keras_object(part)
                for name, part in parts.items()
            },
            **({"samplers": samplers} if samplers else {}),
            **({} if self.guidance is None else {"guidance": self.guidance}),
            **({} if self.version is None else {"version": self.version}),
        }

    def __repr__(self) -> str:
        parts = ("diffusion_steps", "sampler", "spacing", "clipping", "guidance", "version")
        given = ", ".join(
            f"{name}={getattr(self, name)!r}" for name in parts if getattr(self, name) is not None
        )
        if self.samplers:
            given += f"{', ' if given else ''}samplers={self.samplers}"
        return f"{type(self).__name__}({given})"
