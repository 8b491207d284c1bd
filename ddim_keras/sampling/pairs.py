"""Exact inversion by algebra: latents that are pairs of states, one for every image at any number
of steps.

See `ddim_keras.samplers.two_step` for the rules. The fixed-point way, in
`ddim_keras.sampling.inversion`, finds DDIM's own latents, which not every image has.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddim_keras.diffusion.levels import Levels
from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.diffusion.spacings import Spacing, diffusion_times, levels_of
from ddim_keras.samplers import (
    DDIM,
    TWO_STEP_RULES,
    TwoStepRule,
    on_lattice,
    plan,
    plan_pairs,
)
from ddim_keras.samplers.two_step import LARGEST_EXACT
from ddim_keras.sampling.choices import EVEN_TIMES, schedule_of_walk
from ddim_keras.sampling.clipping import Clipping, clipped
from ddim_keras.sampling.conditioning import Conditioning, conditioning
from ddim_keras.sampling.engine import Engine
from ddim_keras.support import files, reading
from ddim_keras.support.configurable import resolve
from ddim_keras.support.types import (
    Array,
    Condition,
    GuidanceLike,
    ImageArray,
    Labels,
)


@dataclasses.dataclass(frozen=True)
class PairLatents:
    """Latents of a two-step rule: what `encode(..., exact="algebra")` returns and `decode` takes.

    A part of them is `latents[2:5]` or `latents[7]`; `len` says how many there are.

    Attributes:
        noisier: (batch, height, width, channels), float32, the states at the noise end.
        cleaner: shaped alike, those one step nearer to the images.
        signal_rates, noise_rates: (steps + 1,), float64, the levels of the walk, from noise to
            image.
        rule: a name in `ddim_keras.samplers.TWO_STEP_RULES`, or a `TwoStepRule`.
    """

    noisier: ImageArray
    cleaner: ImageArray
    signal_rates: Array
    noise_rates: Array
    rule: str | TwoStepRule = "algebra"

    def __len__(self) -> int:
        return len(self.noisier)

    def __getitem__(self, places: Any) -> PairLatents:
        return self.replaced(self.noisier[places], self.cleaner[places])

    def states(self) -> tuple[ImageArray, ImageArray]:
        """Return (noisier, cleaner)."""
        return self.noisier, self.cleaner

    def replaced(self, noisier: ImageArray, cleaner: ImageArray) -> PairLatents:
        """Return other states of the same walk: edited, mixed or put together."""
        return dataclasses.replace(self, noisier=noisier, cleaner=cleaner)

    def save(self, path: str | os.PathLike) -> None:
        """Write them to a .npz file, for `PairLatents.load`.

        Raises:
            ValueError: the rule is an object, which a file of arrays cannot hold: give its name.
        """
        if not isinstance(self.rule, str):
            raise ValueError(
                f"only rules by name can be saved, {sorted(TWO_STEP_RULES)}, got {self.rule!r}"
            )
        with files.written_beside(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: str | os.PathLike) -> PairLatents:
        """Read what `save` wrote.

        Raises:
            ValueError: another file, or a damaged one.
            FileNotFoundError, IsADirectoryError, PermissionError: it cannot be read at all.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        advice = "give a file that PairLatents.save wrote, or encode the images again"
        what = "holds no pair of states"
        parts: dict[str, Any] = reading.arrays_of(files.expanded(path), advice, names, what)
        return cls(**{**parts, "rule": str(parts["rule"])})


def encode_pairs(
    engine: Engine,
    normalized: ImageArray,
    levels: Levels,
    name: str | TwoStepRule,
    lowest_rates: tuple[float, float],
    told: Conditioning,
    batch_size: int | None,
    verbose: str | int,
) -> PairLatents:
    """Walk the levels from the image to the noise by a two-step rule.

    The first state beside the image is where plain encoding would step; whichever it is, the walk
    there and back is exact.

    Args:
        normalized: images of zero mean and unit variance.
        levels: from noise to image.
        name: the rule, as in `PairLatents`.
        lowest_rates: (signal rate, noise rate) at which the network is asked about the image.
        told: labels, conditions and guidance of the images.

    Raises:
        ValueError: a single step.
    """
    if len(levels.signal_rates) < 3:
        raise ValueError(
            'exact="algebra" makes each state of the last two: it needs at least 2 diffusion_steps'
        )
    conditions = engine.schedule.conditions
    rule = resolve(name, TwoStepRule, TWO_STEP_RULES)
    planned = plan_pairs(rule, levels, conditions, backwards=True)
    beside = Levels(*(rates[:-3:-1] for rates in levels))
    step = plan(DDIM(), beside, conditions, clean_rates=lowest_rates)
    noisier, cleaner = np.empty_like(normalized), np.empty_like(normalized)
    for batch in engine.batches(len(normalized), batch_size, verbose):
        images, wrappers = batch.of(normalized), told.of(batch)
        start = (lowest_rates[0] * images).astype("float32")
        first = engine.walk(start, step, 0, batch.indices, wrappers)
        pair = engine.walk_pairs(
            on_lattice(images), on_lattice(first), planned, batch.indices, wrappers
        )
        for states, state in zip((cleaner, noisier), pair):
            batch.store(states, engine.checked(state))
    largest = max(np.abs(states).max(initial=0.0) for states in (noisier, cleaner))
    _warn_of_large_states(rule, levels, float(largest))
    return PairLatents(noisier, cleaner, *levels, name)


def _warn_of_large_states(rule: TwoStepRule, levels: Levels, largest: float) -> None:
    """Warn where a rule that only adds has lost its exactness."""
    only_adds = all(rule.gamma(i, levels) == 1.0 for i in range(1, len(levels.signal_rates) - 1))
    if only_adds and largest > LARGEST_EXACT:
        warnings.warn(
            f"the latents reach {largest:.3g} standard deviations: sums of states above "
            f"{LARGEST_EXACT:g} are rounded in float32, so the images do not come back exactly. "
            "Weaker guidance keeps states smaller",
            stacklevel=4,
        )


def decode_pairs(
    engine: Engine,
    latents: PairLatents,
    diffusion_steps: int | Sequence[float] | None = None,
    *,
    spacing: str | Spacing | None = None,
    schedule: str | Schedule | None = None,
    clipping: str | Clipping = "none",
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    batch_size: int | None = None,
    verbose: str | int = "auto",
) -> ImageArray:
    """Make images from pairs of states; the arguments are those of `decode`.

    Raises:
        ValueError: states of a wrong shape, or steps, spacing or a schedule other than those that
            the latents were made with.
    """
    levels = Levels(latents.signal_rates, latents.noise_rates)
    if diffusion_steps is not None or spacing is not None or schedule is not None:
        _check_same_walk(engine, levels, diffusion_steps, spacing, schedule)
    noisier = engine.latents(latents.noisier, "latents.noisier")
    cleaner = engine.latents(latents.cleaner, "latents.cleaner")
    if noisier.shape != cleaner.shape:
        raise ValueError(f"a pair must be of equal shapes, got {noisier.shape} and {cleaner.shape}")
    rule = resolve(latents.rule, TwoStepRule, TWO_STEP_RULES)
    planned = plan_pairs(rule, levels, engine.schedule.conditions)
    told = conditioning(engine, len(noisier), labels, condition, guidance)
    around = clipped(clipping, engine.normalizer)
    result = np.empty_like(noisier)
    for batch in engine.batches(len(noisier), batch_size, verbose):
        older, newer = (on_lattice(batch.of(states)) for states in (noisier, cleaner))
        wrappers = [*told.of(batch), *around]
        _, images = engine.walk_pairs(older, newer, planned, batch.indices, wrappers)
        batch.store(result, engine.denormalize(images))
    return result


def _check_same_walk(
    engine: Engine,
    levels: Levels,
    diffusion_steps: int | Sequence[float] | None,
    spacing: str | Spacing | None,
    schedule: str | Schedule | None,
) -> None:
    if diffusion_steps is None:
        diffusion_steps = len(levels.signal_rates) - 1
    along = schedule_of_walk(schedule, engine.schedule, engine.parameterization)
    given = levels_of(along, diffusion_times(diffusion_steps, spacing or EVEN_TIMES, along))
    same = len(given.signal_rates) == len(levels.signal_rates)
    if not (same and np.allclose(given.noise_rates, levels.noise_rates, atol=1e-6)):
        raise ValueError(
            f"these latents were encoded by a walk of {len(levels.signal_rates) - 1} steps over "
            "other noise levels: leave diffusion_steps, spacing and schedule out, or give those "
            "that encode was given"
        )
