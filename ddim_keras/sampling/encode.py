"""Encoding: from images to the noises they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from ddim_keras.diffusion.levels import Levels
from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.diffusion.spacings import Spacing, diffusion_times, levels_of
from ddim_keras.samplers import (
    DDIM,
    SAMPLERS,
    TWO_STEP_RULES,
    Evaluation,
    Plan,
    Sampler,
    TwoStepRule,
    plan,
    table_of,
)
from ddim_keras.sampling.choices import ENCODING_SAMPLER, EVEN_TIMES, schedule_of_walk
from ddim_keras.sampling.conditioning import Conditioning, conditioning
from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.sampling.engine import Batch, Engine
from ddim_keras.sampling.generate import decode
from ddim_keras.sampling.inversion import ConvergenceError, InversionReport, invert_step
from ddim_keras.sampling.pairs import PairLatents, encode_pairs
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.configurable import resolve
from ddim_keras.support.types import (
    Array,
    Condition,
    GuidanceLike,
    ImageArray,
    Images,
    Labels,
)

_LARGEST_ROUND_TRIP_ERROR = 1e-5


def encode(
    engine: Engine,
    images: Images,
    diffusion_steps: int | Sequence[float] = 100,
    *,
    exact: bool | str | TwoStepRule = False,
    tolerance: float = 1e-6,
    max_iterations: int = 200,
    return_report: bool = False,
    sampler: str | Sampler = ENCODING_SAMPLER,
    spacing: str | Spacing = EVEN_TIMES,
    schedule: str | Schedule | None = None,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    batch_size: int | None = None,
    verbose: str | int = "auto",
) -> Any:
    """Find the noise that images come from: the ODE of eq. 13 run backwards.

    The error of the round trip falls with the number of steps (Table 2); with `exact="algebra"` it
    is gone at any number, for any image. The network is never asked at the clean image, which it
    was not trained on, but at the schedule's lowest noise level instead. The error that this leaves
    does not fall: it is most of it with the default schedule, next to none with "linear_beta".

    Args:
        images: (batch, height, width, channels), float in [0, 1] or uint8.
        diffusion_steps: S, or the times to walk over, as for `generate`; `decode` with the same.
        exact: "algebra" walks by a two-step rule that is taken back by algebra: a latent is then a
            pair of states, `PairLatents`, which `decode` and `interpolate` take. It is "bdia";
            "o_belm" and a `ddim_keras.samplers.TwoStepRule` are others. True solves for the latents
            that deterministic DDIM decodes to just these images, with a float32 model. Few large
            steps may not converge. An image that the network could never draw in its last step has
            no such latent: if the lowest noise level is high, as the default schedule's 0.31 is,
            that is most of them.
        tolerance: with `exact=True`, the error of a step that ends its iteration, in standard
            deviations of a pixel.
        max_iterations: with `exact=True`, network evaluations for each step at most.
        return_report: with `exact=True`, also return an `InversionReport`.
        sampler: a deterministic sampler that can run backwards: "ddim" or "heun". Two-step rules
            leave it as it is.
        spacing, schedule, labels, condition, guidance, batch_size, verbose: as for `generate`;
            decode under the same labels and guidance. Guidance makes the round trip worse.

    Returns:
        Latents, float32 (batch, height, width, channels), or `PairLatents`; with `return_report`, a
        pair of them and the report.

    Raises:
        ValueError: images of a wrong shape or range, a sampler that cannot run backwards, or
            `exact` in half precision.
        ConvergenceError: with `exact=True`, the round trip is off by more than 1e-5; says which
            step is at fault, and what to do.

    Source: Song, Meng & Ermon (2021), section 4.3 and 5.4.

    Examples:

    >>> model = DiffusionModel(image_size=8, widths=[8], block_depth=1)
    >>> images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype("float32")
    >>> latents = model.encode(images, 5, exact="algebra")
    >>> float(np.abs(model.decode(latents) - images).max()) < 1e-5
    True
    """
    if isinstance(exact, str) and exact not in TWO_STEP_RULES:
        raise ValueError(
            f"exact must be False, True, one of {sorted(TWO_STEP_RULES)}, or a TwoStepRule, got "
            f"{exact!r}"
        )
    normalized = engine.normalize(images)
    chosen = resolve(sampler, Sampler, SAMPLERS)
    if not chosen.runs_backwards:
        raise ValueError(f"{chosen!r} cannot run backwards: encode with DDIM(eta=0) or Heun()")
    if return_report and exact is not True:
        raise ValueError("a report is made with exact=True only: nothing else iterates")
    along = schedule_of_walk(schedule, engine.schedule, engine.parameterization)
    times = diffusion_times(diffusion_steps, spacing, along)
    levels = levels_of(along, times)
    told = conditioning(engine, len(normalized), labels, condition, guidance)
    if exact and exact is not True:
        if sampler != ENCODING_SAMPLER:
            raise ValueError(f"a two-step rule walks by itself: leave out sampler={sampler!r}")
        signal, noise = along(along.first_time)
        lowest = (float(signal), float(noise))
        return encode_pairs(engine, normalized, levels, exact, lowest, told, batch_size, verbose)
    if not exact:
        return _encode_backwards(
            engine, normalized, chosen, along, levels, told, batch_size, verbose
        )
    _check_exact(engine, chosen, along, times, tolerance)
    max_iterations = positive_int("max_iterations", max_iterations)
    latents, report = _encode_exactly(
        engine, normalized, levels, tolerance, max_iterations, told, batch_size, verbose
    )
    same = {"spacing": spacing, "schedule": schedule, "guidance": guidance, "verbose": 0}
    same |= {"labels": labels, "condition": condition, "batch_size": batch_size}
    decoded = decode(engine, latents, diffusion_steps, **same)
    report = _checked_report(report, decoded, ops.convert_to_numpy(engine.denormalize(normalized)))
    return (latents, report) if return_report else latents


def reconstruct(
    engine: Engine, images: Images, diffusion_steps: int | Sequence[float] = 100, **options: Any
) -> ImageArray:
    """Encode images and decode them again (section 5.4).

    Args:
        images: (batch, height, width, channels), float in [0, 1] or uint8.
        diffusion_steps: S, or the times to walk over, both ways.
        **options: as for `encode`.

    Returns:
        float32 array (batch, height, width, channels) in [0, 1].
    """
    if options.pop("return_report", False):
        raise ValueError(
            "reconstruct returns no report: call encode(..., exact=True, return_report=True)"
        )
    latents = encode(engine, images, diffusion_steps, **options)
    if isinstance(latents, PairLatents):
        options.pop("sampler", None)
    for name in ("exact", "tolerance", "max_iterations"):
        options.pop(name, None)
    return decode(engine, latents, diffusion_steps, **options)


def _encode_backwards(
    engine: Engine,
    normalized: ImageArray,
    sampler: Sampler,
    along: Schedule,
    levels: Levels,
    told: Conditioning,
    batch_size: int | None,
    verbose: str | int,
) -> ImageArray:
    """Walk the levels from the image to the noise."""
    lowest_signal, lowest_noise = (float(rate) for rate in along(along.first_time))
    backwards = Levels(*(rates[::-1] for rates in levels))
    planned = plan(
        sampler, backwards, engine.schedule.conditions, clean_rates=(lowest_signal, lowest_noise)
    )
    latents = np.empty_like(normalized)
    for batch in engine.batches(len(normalized), batch_size, verbose):
        start = (lowest_signal * batch.of(normalized)).astype("float32")
        walked = engine.walk(start, planned, 0, batch.indices, told.of(batch))
        batch.store(latents, engine.checked(walked))
    return latents


def _check_exact(
    engine: Engine, sampler: Sampler, along: Schedule, times: Array, tolerance: float
) -> None:
    if not isinstance(sampler, DDIM):
        raise ValueError(f"exact encoding inverts deterministic DDIM, not {sampler!r}")
    if engine.compute_dtype != "float32":
        raise ValueError(
            f"exact encoding needs a float32 network, this one computes in {engine.compute_dtype}: "
            "copy its "
            "weights to a model with dtype='float32'"
        )
    if not tolerance > 0.0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    if along(times[:1])[0][0] == 0.0:
        raise ValueError(
            f"{along!r} begins with nothing of the image left: no latent there leads to one image, "
            "so "
            "none can be exact; give times below 1"
        )


def _encode_exactly(
    engine: Engine,
    images: ImageArray,
    levels: Levels,
    tolerance: float,
    max_iterations: int,
    told: Conditioning,
    batch_size: int | None,
    verbose: str | int,
) -> tuple[ImageArray, InversionReport]:
    """Return the latents of normalised images, and a report without the round trip."""
    number = len(levels.signal_rates) - 1
    iterations, residuals = np.zeros(number, int), np.zeros(number)
    latents = np.empty_like(images)
    for batch in engine.batches(len(images), batch_size, verbose):
        current, guess = batch.of(images), None
        for step in range(number):
            index = (
                number - 1 - step
            )  # this step of the walk to the image leads from `index` to `index + 1`
            noisier_rates = (levels.signal_rates[index], levels.noise_rates[index])
            rates = (levels.signal_rates[index + 1], levels.noise_rates[index + 1])
            scale = noisier_rates[0] / rates[0]
            if guess is None:  # the noises are not known yet: the image alone
                guess = noisier_rates[0] * current
            else:
                guess = scale * current + (noisier_rates[1] - scale * rates[1]) * guess
            before = current
            pred_noises = _noises_predicted_at(engine, noisier_rates, batch, told.of(batch))
            current, left, used = invert_step(
                pred_noises, before, rates, noisier_rates, guess, tolerance, max_iterations
            )
            # The noises predicted there.
            guess = (current - scale * before) / (noisier_rates[1] - scale * rates[1])
            iterations[step] = max(iterations[step], used)
            residuals[step] = max(residuals[step], left[: batch.stop - batch.start].max())
            if not np.isfinite(current).all():
                break
        batch.store(latents, current)
    return latents, InversionReport(iterations, residuals, np.nan)


def _noises_predicted_at(
    engine: Engine, rates: tuple[float, float], batch: Batch, wrappers: Sequence[Wrapper]
) -> Any:
    """Return a function of noisy images at these rates: one evaluation that returns the noises it
    predicts.
    """
    table = table_of([Evaluation(*rates, image=0.0, noise=1.0)], engine.schedule.conditions)
    planned = Plan(table, np.array([1]))
    return lambda noisy_images: ops.convert_to_numpy(
        engine.walk(noisy_images, planned, 0, batch.indices, wrappers)
    )


def _checked_report(
    report: InversionReport, decoded: ImageArray, images: ImageArray
) -> InversionReport:
    error = float(np.abs(decoded - images).max(initial=0.0))
    report = report._replace(round_trip_error=error)
    if not error <= _LARGEST_ROUND_TRIP_ERROR:
        worst = int(np.argmax(report.residuals))
        raise ConvergenceError(
            f"exact encoding did not converge: the round trip is off by {error:.1e}, expected at "
            f"most 1e-5. Step {worst + 1} "
            f"of {len(report.residuals)} from the image was left with a residual of "
            f"{report.residuals[worst]:.1e} after "
            f"{report.iterations[worst]} iterations. Take smaller steps there (more "
            "diffusion_steps, or spacing='quadratic' "
            "if it is the first). Images that the network's last step could never draw have no "
            "latent; a schedule that "
            "ends nearer to the clean image (a higher max_signal_rate, or 'linear_beta') leaves "
            "fewer of those",
            report,
        )
    return report
