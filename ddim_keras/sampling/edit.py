"""Editing: variations of an image, and painting in a part of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.diffusion.levels import Levels
from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.diffusion.spacings import Spacing, diffusion_times, levels_of
from ddim_keras.samplers import DDIM, Evaluation, Plan, Sampler, table_of
from ddim_keras.sampling.choices import (
    EVEN_TIMES,
    INPAINTING_ETA,
    sampler_and_spacing,
    schedule_of_walk,
)
from ddim_keras.sampling.clipping import Clipping, clipped
from ddim_keras.sampling.conditioning import conditioning
from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.operators import checked_masks
from ddim_keras.support.arguments import integer, positive_int, unit_number
from ddim_keras.support.types import Condition, GuidanceLike, ImageArray, Images, Labels, Tensor

# Noises of different use are drawn under numbers this far apart.
_KNOWN_PART, _RENOISING = 1 << 24, 2 << 24


def variations(
    engine: Engine,
    image: Images,
    strength: float = 0.5,
    num_images: int = 8,
    diffusion_steps: int | None = None,
    *,
    eta: float | None = None,
    sampler: str | Sampler | None = None,
    spacing: str | Spacing | None = None,
    schedule: str | Schedule | None = None,
    clipping: str | Clipping | None = None,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    seed: int | None = None,
    batch_size: int | None = None,
    verbose: str | int = "auto",
) -> ImageArray:
    """Make images like a given one: add noise part of the way, then walk back to an image.

    Args:
        image: (height, width, channels), float in [0, 1] or uint8.
        strength: how far to go, as a diffusion time in [0, 1]: 0 gives the image itself, 1 nearly
            forgets it.
        num_images: how many.
        diffusion_steps: S, the steps of the way back; fewer if the schedule has not as many times
            there.
        eta, sampler, spacing, schedule, clipping, seed, batch_size, verbose: as for `generate`.
        labels, condition, guidance: likewise.

    Returns:
        float32 array (num_images, height, width, channels) in [0, 1].

    Source: Meng et al. 2022, "SDEdit".
    """
    diffusion_steps = positive_int("diffusion_steps", engine.defaults.steps(diffusion_steps))
    if np.ndim(image) != 3:
        raise ValueError(
            f"variations takes one image, {engine.image_shape}, got shape {np.shape(image)}"
        )
    normalized = engine.normalize(inputs.as_array(image)[None])
    num_images = integer("num_images", num_images, minimum=0)
    strength = unit_number("strength", strength, "0 keeps the image, 1 nearly forgets it")
    told = conditioning(engine, num_images, labels, condition, guidance, engine.defaults.guidance)
    images = np.empty((num_images, *engine.image_shape), "float32")
    if strength == 0.0:
        images[:] = ops.convert_to_numpy(engine.denormalize(normalized))
        return images
    around = clipped(engine.defaults.clipping_for(clipping), engine.normalizer)
    chosen, spacing = sampler_and_spacing(sampler, eta, spacing, engine.defaults)
    along = schedule_of_walk(schedule, engine.schedule, engine.parameterization)
    if along.num_times is not None:  # no more than there are times on the way
        diffusion_steps = min(diffusion_steps, max(round(strength * along.num_times), 1))
    times, planned = engine.plan(chosen, diffusion_steps, spacing, along, float(strength))
    signal_rates, noise_rates = along(times[:1])
    seed = engine.seed(seed)
    for batch in engine.batches(num_images, batch_size, verbose):
        noises = ops.convert_to_numpy(engine.draw(seed, batch.indices))
        noisy_images = (signal_rates[0] * normalized + noise_rates[0] * noises).astype("float32")
        wrappers = [*told.of(batch), *around]
        noisy_images = engine.walk(noisy_images, planned, seed, batch.indices, wrappers)
        batch.store(images, engine.denormalize(noisy_images))
    return images


def inpaint(
    engine: Engine,
    images: Images,
    masks: Images,
    diffusion_steps: int | Sequence[float] = 50,
    *,
    resampling: int = 5,
    eta: float = INPAINTING_ETA,
    spacing: str | Spacing = EVEN_TIMES,
    schedule: str | Schedule | None = None,
    clipping: str | Clipping | None = None,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    seed: int | None = None,
    batch_size: int | None = None,
    verbose: str | int = "auto",
) -> ImageArray:
    """Fill in a part of images so that it fits the rest.

    At each step the known part is replaced by the image itself under the noise of that step. Each
    step is walked several times over, with noise added back in between, so that the two parts come
    to agree.

    Args:
        images: (batch, height, width, channels), float in [0, 1] or uint8. What they hold in the
            unknown part is not used.
        masks: 1 (or True) where the image is known and kept, 0 where it is to be painted: (height,
            width), or (batch, height, width), with or without a last axis of 1 or of the channels.
        diffusion_steps: S, or the times to walk over, as for `generate`.
        resampling: how many times each step is walked; network evaluations are `resampling` S.
        eta: stochasticity of the steps (eq. 16), 1 in RePaint.
        spacing, schedule, clipping, seed, batch_size, verbose: as for `generate`.
        labels, condition, guidance: likewise.

    Returns:
        float32 array (batch, height, width, channels) in [0, 1], equal to the input where it is
        known.

    Raises:
        ValueError: images or masks of a wrong shape or range.

    Source: Lugmayr et al. 2022, "RePaint", with jumps of one step.
    """
    normalized = engine.normalize(images)
    known = checked_masks(masks, normalized.shape)
    along = schedule_of_walk(schedule, engine.schedule, engine.parameterization)
    levels = levels_of(along, diffusion_times(diffusion_steps, spacing, along))
    evaluations, showings = _with_resampling(
        DDIM(eta), levels, positive_int("resampling", resampling)
    )
    table = table_of(evaluations, engine.schedule.conditions)
    showings = np.concatenate([showings, np.zeros((len(table) - len(showings), 4), "float32")])
    planned = Plan(table, np.arange(resampling, len(evaluations) + 1, resampling))
    outside = clipped(engine.defaults.clipping_for(clipping), engine.normalizer)
    told = conditioning(
        engine, len(normalized), labels, condition, guidance, engine.defaults.guidance
    )
    seed = engine.seed(seed)
    result = np.empty_like(normalized)
    for batch in engine.batches(len(normalized), batch_size, verbose):
        known_part = KnownPart(batch.of(normalized), batch.of(known), showings)
        noises = engine.draw(seed, batch.indices)
        wrappers = [*told.of(batch), *outside, known_part]
        painted = engine.walk(noises, planned, seed, batch.indices, wrappers)
        batch.store(result, engine.denormalize(painted))
    # Back to the pixels as they came, without the rounding of normalisation.
    return np.where(
        known == 1.0, ops.convert_to_numpy(inputs.as_unit_range(inputs.as_array(images))), result
    )


class KnownPart(Wrapper):
    """A denoiser that is shown the known part of images as it is, under noise, and only the rest as
    the walk painted it.

    Args:
        images: (batch, height, width, channels), of zero mean and unit variance.
        known: shaped as the images, 1 where they are known.
        showings: float32 (evaluations, 4): signal and noise rate at which the known part is put in
            before an evaluation, and by how much all is then scaled and how much noise is added, to
            take a step over again. Zeros leave all as it is.

    Source: Lugmayr et al. 2022, "RePaint".
    """

    key = ("known_part",)
    axes = (0, 0, -1)

    def __init__(self, images: ImageArray, known: ImageArray, showings: npt.NDArray[np.float32]):
        self.arrays = (images, known, showings)

    def wrap(self, denoise, arrays, draw_noises):
        images, known, showings = (ops.convert_to_tensor(array) for array in arrays)

        def shown(noisy_images: Images, index: Tensor) -> Images:
            known_signal, known_noise, kept, added = ops.unstack(
                ops.take(showings, index, axis=0), num=4
            )
            # The noises of the step that ended here.
            noises = draw_noises(index - 1 + _KNOWN_PART)
            noisy_images = (
                known * (known_signal * images + known_noise * noises)
                + (1.0 - known) * noisy_images
            )
            return ops.cond(
                added > 0.0,
                lambda: kept * noisy_images + added * draw_noises(index - 1 + _RENOISING),
                lambda: noisy_images,
            )

        def denoise_shown(noisy_images, noise_rates, signal_rates, conditions):
            index = conditions.evaluation
            noisy_images = ops.where(index > 0, shown(noisy_images, index), noisy_images)
            return denoise(noisy_images, noise_rates, signal_rates, conditions)

        return denoise_shown


def _with_resampling(
    sampler: Sampler, levels: Levels, resampling: int
) -> tuple[list[Evaluation], npt.NDArray[np.float32]]:
    """Return the evaluations of a walk that takes each step several times, and what `KnownPart`
    shows before each.
    """
    evaluations: list[Evaluation] = []
    showings = [(0.0, 0.0, 1.0, 0.0)]  # the first sees noise alone
    for index in range(len(levels.signal_rates) - 1):
        signal, next_signal = levels.signal_rates[index : index + 2]
        next_noise = levels.noise_rates[index + 1]
        evaluations += sampler.step(index, levels) * resampling
        back = signal / next_signal
        showings += [(next_signal, next_noise, back, np.sqrt(1.0 - back**2))] * (resampling - 1)
        showings.append((next_signal, next_noise, 1.0, 0.0))
    return evaluations, np.array(showings[:-1], "float32")
