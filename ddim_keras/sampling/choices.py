"""What the verbs take where neither the user nor the model (`SamplingDefaults`) says, and what they
make of what the user says.

- `generate`, `score`: what was fitted to the model for the number of steps; else what measures
  best (docs/samplers.md): UniPC over Karras's levels, of order 3 in five steps, in three and four
  over even log-SNR. In two DDIM over even times: the others' levels leap from one end to the other.
- `variations`: UniPC over Karras's levels.
- `encode`, `decode`, `reconstruct`, `interpolate`: deterministic DDIM over even times. Encoding is
  DDIM's ODE walked backwards, and only the same steps walked forwards lead back.
- `inpaint`: DDPM over even times. RePaint needs the noise of each step to bring both parts
  together.
- `reverse_diffusion`, and the images of a compiled metric: deterministic DDIM over even times, as
  in the Keras example.

So `generate(initial_noise=z)` and `decode(z)` differ: the first makes good images of noise, the
second is the inverse of `encode`. `generate(initial_noise=z, sampler="ddim")` is `decode(z)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddim_keras.diffusion.parameterizations import NoiseParameterization, Parameterization
from ddim_keras.diffusion.schedules import SCHEDULES, Schedule
from ddim_keras.diffusion.spacings import Spacing
from ddim_keras.samplers import DDIM, SAMPLERS, Sampler, UniPC
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.support.arguments import is_number
from ddim_keras.support.configurable import Configurable, resolve

ENCODING_SAMPLER = "ddim"
EVEN_TIMES = "linear"
INPAINTING_ETA = 1.0
_BEST_IN_FEW_STEPS: Mapping[int, tuple[Sampler, str]] = {
    2: (DDIM(), EVEN_TIMES),
    3: (UniPC(), "log_snr"),
    4: (UniPC(), "log_snr"),
    5: (UniPC(3), "karras"),
}


def sampler_and_spacing(
    sampler: str | Sampler | None,
    eta: float | None,
    spacing: str | Spacing | None,
    defaults: SamplingDefaults | None = None,
) -> tuple[Sampler, str | Spacing]:
    """Return what `generate` takes, given its arguments and the model's own defaults.

    Raises:
        ValueError: both eta and a sampler that has none, or an unknown name.
    """
    last_noise_rate = 0.0
    if defaults is not None:
        spacing = spacing or defaults.spacing
        if eta is not None and isinstance(defaults.sampler, DDIM):
            last_noise_rate = defaults.sampler.last_noise_rate
        sampler = defaults.sampler if sampler is None and eta is None else sampler
    if eta is not None:
        if sampler not in (None, "ddim"):
            raise ValueError(
                f"eta is DDIM's stochasticity, but the sampler is {sampler!r}: give one of the two"
            )
        return DDIM(eta, last_noise_rate=last_noise_rate), spacing or EVEN_TIMES
    if sampler is not None:
        chosen = resolve(sampler, Sampler, SAMPLERS)
        return chosen, spacing or chosen.spacing or EVEN_TIMES
    return UniPC(), spacing or "karras"


def chooser(
    sampler: str | Sampler | None,
    eta: float | None,
    spacing: str | Spacing | None,
    schedule: str | Schedule | None,
    defaults: SamplingDefaults,
    guidance: Sequence[Configurable] = (),
) -> Callable[[Any], tuple[Sampler, str | Spacing]]:
    """Return what says the sampler and the spacing that `generate` takes for a number of steps, or
    for a list of times.

    Raises:
        ValueError: as `sampler_and_spacing`.
    """
    otherwise = sampler_and_spacing(sampler, eta, spacing, defaults)
    all_is_left = sampler is None and eta is None and spacing is None and schedule is None
    models_own = any((defaults.sampler, defaults.spacing, defaults.version))

    def choose(steps: Any) -> tuple[Sampler, str | Spacing]:
        fitted = defaults.fitted(steps, guidance) if all_is_left else None
        if fitted is not None:
            return fitted, fitted.spacing or EVEN_TIMES
        if all_is_left and not models_own and is_number(steps):
            return _BEST_IN_FEW_STEPS.get(steps, otherwise)
        return otherwise

    return choose


def schedule_of_walk(
    schedule: str | Schedule | None, trained: Schedule, parameterization: Parameterization
) -> Schedule:
    """Return the schedule to walk along: the one trained with, or another, with a warning where it
    leaves what was trained.
    """
    if schedule is None:
        return trained
    chosen = resolve(schedule, Schedule, SCHEDULES)
    check_noise_end(chosen, parameterization)
    lowest, trained_lowest = (float(each(each.first_time)[1]) for each in (chosen, trained))
    if lowest < 0.9 * trained_lowest:
        warnings.warn(
            f"{chosen!r} goes down to a noise rate of {lowest:.3g}, but the model was trained down "
            f"to {trained_lowest:.3g}: "
            "what it draws below may be wrong. Give a schedule, or times, that end there",
            stacklevel=4,
        )
    return chosen


def check_noise_end(schedule: Schedule, parameterization: Parameterization) -> None:
    """Raise ValueError if the network predicts noises where nothing but noise is left."""
    if (
        isinstance(parameterization, NoiseParameterization)
        and schedule(np.array([1.0]))[0][0] == 0.0
    ):
        raise ValueError(
            f"at the noise end of {schedule!r} nothing is left of the image, so predicted noise "
            "says nothing of it: "
            'train with parameterization="velocity" or "image"'
        )
