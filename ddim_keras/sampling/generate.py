"""Generating: from noise to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.diffusion.spacings import Spacing
from ddim_keras.samplers import DDIM, Plan, Sampler
from ddim_keras.sampling.choices import ENCODING_SAMPLER, EVEN_TIMES, chooser
from ddim_keras.sampling.clipping import Clipping, clipped
from ddim_keras.sampling.conditioning import conditioning, conditioning_of
from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.sampling.engine import Batch, Engine
from ddim_keras.sampling.guidance import Guidance, calls_in_a_step, count_evaluations
from ddim_keras.sampling.pairs import PairLatents, decode_pairs
from ddim_keras.support.arguments import integer, positive_int
from ddim_keras.support.random import MOST_IMAGES
from ddim_keras.support.types import (
    Array,
    Condition,
    GuidanceLike,
    ImageArray,
    Images,
    Labels,
    Latents,
)


class Trajectory(NamedTuple):
    """A walk from noise to images, as `generate(..., return_trajectory=True)` gives it.

    Attributes:
        diffusion_times: (steps + 1,), from the first step's at the noise, mostly 1, to 0 at the
            images.
        noisy_images: (steps + 1, num_images, height, width, channels), zero mean and unit variance;
            the first are the initial noise, the last the images.
        pred_images: (steps, num_images, height, width, channels), float32 in [0, 1]: the image
            predicted at the start of each step.
    """

    diffusion_times: Array
    noisy_images: np.ndarray
    pred_images: np.ndarray


def reverse_diffusion(
    engine: Engine,
    initial_noise: Images,
    diffusion_steps: int,
    labels: Labels = None,
    condition: Condition = None,
) -> Images:
    """Walk from noise to images with deterministic DDIM.

    Args:
        initial_noise: (batch, height, width, channels), standard normal.
        diffusion_steps: number of network evaluations, at least 1.
        labels, condition: as for `generate`.

    Returns:
        The predicted images, normalised: give them to `denormalize`.
    """
    inputs.check_shape(initial_noise.shape, engine.image_shape, "initial_noise")
    _, planned = engine.plan(
        DDIM(), positive_int("diffusion_steps", diffusion_steps), EVEN_TIMES, None
    )
    noise = ops.convert_to_tensor(initial_noise, dtype="float32")
    indices = ops.arange(ops.shape(noise)[0], dtype="int32")
    wrappers = conditioning_of(engine, noise, labels, condition).of_all()
    return engine.checked(engine.walk(noise, planned, 0, indices, wrappers))


def generate(
    engine: Engine,
    num_images: int,
    diffusion_steps: int | Sequence[float] | None = None,
    *,
    eta: float | None = None,
    sampler: str | Sampler | None = None,
    network_evaluations: int | None = None,
    spacing: str | Spacing | None = None,
    schedule: str | Schedule | None = None,
    clipping: str | Clipping | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    first_image: int = 0,
    initial_noise: Images = None,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    return_trajectory: bool = False,
    on_step: Callable[[int, ImageArray], None] | None = None,
    verbose: str | int = "auto",
) -> Any:
    """Make images from noise with the EMA network.

    The whole walk is one compiled loop, compiled once for a batch shape: other samplers, spacings,
    seeds and steps (up to 4096 evaluations) reuse it.

    Args:
        num_images: how many images, at least 0.
        diffusion_steps: S, the number of steps, at least 1; or the diffusion times to ask the
            network at, in [0, 1] (on a schedule of T times also as integers from 1 to T), in any
            order. None is 20. Here and below, a model may have other defaults: its
            `sampling_defaults`.
        eta: samples with `DDIM(eta)`: 0 for deterministic DDIM, 1 for DDPM, or between (eq. 16).
        sampler: a `Sampler` or its name: "ddim", "ddpm", "ddpm_large", "heun", "dpm_solver_2m",
            "dpm_solver_2m_sde", "dpm_solver_2s", "adams_bashforth", "ipndm", "unipc" or
            "annealed_langevin". None is
            what was fitted to the model for that number of steps (`fit_sampler`), or what measures
            best (docs/samplers.md): "unipc" over "karras" spacing, in three and four steps over
            "log_snr", in two "ddim". "ddim" is the paper's deterministic DDIM.
        network_evaluations: as many steps as this number of network evaluations for each image
            allows, instead of `diffusion_steps`. Samplers that ask twice a step take half the steps
            then, and so does guidance.
        spacing: how the steps are spaced: "linear", "quadratic", "quadratic_0.8", "trailing",
            "leading", "karras", "log_snr", or a `Spacing`. None is "linear", but for the default
            sampler.
        schedule: another schedule to walk along than the one trained with, matched by noise level.
            Warns if it leaves the noise levels that the model was trained at.
        clipping: what keeps the predicted images within the range of images: "none", "static",
            "dynamic", "image_only", or a `Clipping`. None is "none".
        seed: integer in [0, 2**32) that fixes the images. Image i depends on (seed, i) alone, to
            rounding: neither on the batch size nor on `num_images`. None takes the next of the
            model's own seeds.
        batch_size: images made at a time; None for 64, or fewer if they are larger than 64 x 64.
        first_image: i of the first image, to make more images of a seed, or a part of them.
        initial_noise: (num_images, height, width, channels) to start from; None draws it from
            `seed`.
        labels: of a model with classes, what the images are to show: a class number or name, for
            all images, or a list with one for each, in which None says nothing; or one-hot
            (num_images, K). None for images without a label.
        condition: of a model with a `condition_shape`, what the images are conditioned on:
            (num_images, *condition_shape), or one for all images.
        guidance: how strongly the images follow labels and conditions: a weight, of which 1 is
            none, or a `ddim_keras.guidance.Guidance`, such as `ClassifierFreeGuidance(2.0)` or
            `Autoguidance(weaker_model, 2.0)`; or a list of those. None takes the weight in
            `sampling_defaults` for what is told, or 1.
        return_trajectory: also return every step on the way.
        on_step: called after each step of each batch with the number of steps done and the images
            that the step predicted, float32 (batch, height, width, channels) in [0, 1]. What it
            raises ends the walk.
        verbose: 1 shows a progress bar, 0 does not, "auto" does for more than one batch.

    Returns:
        float32 array of shape (num_images, height, width, channels) in [0, 1]; with
        `return_trajectory`, a pair of that and a `Trajectory`.

    Raises:
        ValueError: an argument out of its range.
        FloatingPointError: the weights or the images hold NaN or infinity: the training has
            diverged, say. So do all verbs.

    Source: Song, Meng & Ermon (2021), eq. 12 and 16.
    """
    num_images = integer("num_images", num_images, minimum=0, below=MOST_IMAGES)
    told = conditioning(engine, num_images, labels, condition, guidance, engine.defaults.guidance)
    times, planned, *_ = plan_walk(
        engine,
        diffusion_steps,
        sampler=sampler,
        eta=eta,
        spacing=spacing,
        schedule=schedule,
        network_evaluations=network_evaluations,
        guidance=told.guidance,
    )
    around = clipped(engine.defaults.clipping_for(clipping), engine.normalizer)
    if initial_noise is not None:
        initial_noise = _checked_noise(engine, initial_noise, num_images)
    seed = engine.seed(seed)
    first_image = integer("first_image", first_image, minimum=0, below=MOST_IMAGES - num_images)
    images = np.empty((num_images, *engine.image_shape), "float32")
    trajectory = None
    if return_trajectory:
        steps = [
            np.empty((number, *images.shape), "float32") for number in (len(times), len(times) - 1)
        ]
        trajectory = Trajectory(times, *steps)
    for batch in engine.batches(num_images, batch_size, verbose):
        indices = (batch.indices + first_image).astype("int32")
        noisy_images = (
            engine.draw(seed, indices) if initial_noise is None else batch.of(initial_noise)
        )
        wrappers = [*told.of(batch), *around]
        if trajectory is None and on_step is None:
            noisy_images = engine.walk(noisy_images, planned, seed, indices, wrappers)
        else:
            seen = _Seen(engine, batch, trajectory, on_step)
            noisy_images = _in_steps(engine, noisy_images, planned, seed, indices, wrappers, seen)
        batch.store(images, engine.denormalize(noisy_images))
    return images if trajectory is None else (images, trajectory)


def _checked_noise(engine: Engine, initial_noise: Images, num_images: int) -> ImageArray:
    initial_noise = engine.latents(initial_noise, "initial_noise")
    if len(initial_noise) != num_images:
        raise ValueError(
            f"initial_noise holds {len(initial_noise)} images but num_images is {num_images}: "
            "make them equal"
        )
    return initial_noise


class PlannedWalk(NamedTuple):
    """A walk that `generate` takes: its times, its plan, and what it was planned by."""

    times: Array
    planned: Plan
    sampler: Sampler
    spacing: str | Spacing


def plan_walk(
    engine: Engine,
    diffusion_steps: int | Sequence[float] | None = None,
    *,
    sampler: str | Sampler | None = None,
    eta: float | None = None,
    spacing: str | Spacing | None = None,
    schedule: str | Schedule | None = None,
    network_evaluations: int | None = None,
    guidance: Sequence[Guidance] = (),
) -> PlannedWalk:
    """Return the walk that `generate` takes; the arguments are its own.

    Raises:
        ValueError: as for `generate`.
    """
    choose = chooser(sampler, eta, spacing, schedule, engine.defaults, guidance)

    def planned_in(steps: Any) -> PlannedWalk:
        chosen = choose(steps)
        return PlannedWalk(*engine.plan(chosen[0], steps, chosen[1], schedule), *chosen)

    steps = engine.defaults.steps(diffusion_steps)
    if network_evaluations is None:
        only = choose(steps)[0].diffusion_steps
        return planned_in(only if diffusion_steps is None and only is not None else steps)
    if isinstance(steps, (Sequence, np.ndarray)):
        raise ValueError(
            "give either network_evaluations or a list of times as diffusion_steps, not both"
        )
    budget = positive_int("network_evaluations", network_evaluations)
    return _within_budget(lambda steps: choose(steps)[0], planned_in, budget, guidance)


def _within_budget(
    sampler_for: Callable[[int], Sampler],
    planned_in: Callable[[int], PlannedWalk],
    budget: int,
    guidance: Sequence[Guidance],
) -> PlannedWalk:
    """Return the walk of the most steps that a number of network evaluations allows.

    Args:
        sampler_for: of a number of steps. Where it is not the same for all of them, it asks once a
            step.
        planned_in: the walk in a number of steps.
    """
    sampler = sampler_for(budget)
    most = sampler.steps_for(budget)
    each = calls_in_a_step(guidance)
    # What surely fits; how much more does depends on where guidance acts.
    steps = most if each == 1 else sampler.steps_for(max(budget // each, sampler.evaluations(1)))
    walk = planned_in(steps)
    if (needed := count_evaluations(walk.planned, guidance)) > budget:
        raise ValueError(
            f"network_evaluations must be at least {needed} for {sampler!r}"
            + (" with the guidance that is given or the model's own" if guidance else "")
            + f", got {budget}"
        )
    while steps < most:
        more = planned_in(steps + 1)
        if count_evaluations(more.planned, guidance) > budget:
            break
        steps, walk = steps + 1, more
    return walk


class _Seen(NamedTuple):
    """Where the steps of a batch's walk go: to a trajectory, to a function, or to both."""

    engine: Engine
    batch: Batch
    trajectory: Trajectory | None
    on_step: Callable[[int, ImageArray], None] | None

    def noisy(self, step: int, noisy_images: Images) -> None:
        if self.trajectory is not None:
            self.batch.store(self.trajectory.noisy_images[step], noisy_images)

    def predicted(self, step: int, pred_images: Images) -> None:
        images = ops.convert_to_numpy(self.engine.denormalize(pred_images))
        if self.trajectory is not None:
            self.batch.store(self.trajectory.pred_images[step], images)
        if self.on_step is not None:
            self.on_step(step + 1, images[: self.batch.stop - self.batch.start])


def _in_steps(
    engine: Engine,
    noisy_images: Images,
    planned: Plan,
    seed: int,
    indices: np.ndarray,
    wrappers: Sequence[Wrapper],
    seen: _Seen,
) -> Images:
    """Take a walk step by step, show each, and return where it led."""
    noisy_images = planned.started(noisy_images)
    memory = engine.no_memory(noisy_images)
    seen.noisy(0, noisy_images)
    begin = 0
    for step, end in enumerate(planned.ends):
        # The step's first evaluation by itself, as it is the one whose predicted images are kept.
        for first, last in ((begin, begin + 1), (begin + 1, end)):
            if first == last:
                continue
            noisy_images, memory, images = engine.walk_part(
                noisy_images, memory, planned, first, last, seed, indices, wrappers
            )
            if first == begin:
                pred_images = images
        seen.noisy(step + 1, noisy_images)
        seen.predicted(step, pred_images)
        begin = end
    return noisy_images


def decode(
    engine: Engine,
    latents: Latents | PairLatents,
    diffusion_steps: int | Sequence[float] | None = None,
    *,
    sampler: str | Sampler | None = None,
    **options: Any,
) -> Any:
    """Make images from latents; the inverse of `encode`, with the same steps, spacing and schedule.

    Args:
        latents: (batch, height, width, channels), noise or what `encode` returned; or the pair that
            `encode(..., exact="algebra")` returned, which knows its own walk.
        diffusion_steps: S, or the times to walk over, as for `generate`. None is 100, or a pair's
            own.
        sampler: deterministic, to give the same images each time. None is "ddim", or a pair's own
            rule.
        **options: as for `generate`; of a pair labels, condition, guidance, clipping, batch_size
            and verbose.

    Returns:
        float32 array (batch, height, width, channels) in [0, 1].
    """
    if isinstance(latents, PairLatents):
        if sampler is not None:
            raise ValueError(f"a pair of states is decoded by its own rule: leave out {sampler!r}")
        return decode_pairs(engine, latents, diffusion_steps, **options)
    latents = engine.latents(latents, "latents")
    chosen = {"spacing": EVEN_TIMES, "clipping": "none", **options}
    if chosen.get("guidance") is None:
        chosen["guidance"] = 1.0  # as `encode`, whatever the model's own is
    return generate(
        engine,
        len(latents),
        100 if diffusion_steps is None else diffusion_steps,
        sampler=ENCODING_SAMPLER if sampler is None else sampler,
        initial_noise=latents,
        **chosen,
    )
