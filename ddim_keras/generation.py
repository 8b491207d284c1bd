"""What a trained model is used for: generating, encoding, interpolating, editing. `DiffusionModel` inherits all of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from ddim_keras import backend, inputs, random
from ddim_keras.arguments import integer, positive_int
from ddim_keras.clipping import CLIPPINGS, Clipping, NoClipping
from ddim_keras.configurable import resolve
from ddim_keras.interpolation import slerp, slerp_grid
from ddim_keras.inversion import ConvergenceError, InversionReport, invert_step
from ddim_keras.parameterizations import NoiseParameterization, Parameterization
from ddim_keras.samplers import DDIM, MEMORY, SAMPLERS, Evaluation, Levels, Plan, Sampler, UniPC, plan, table_of, walk
from ddim_keras.schedules import SCHEDULES, Schedule
from ddim_keras.spacings import Spacing, diffusion_times, levels_of

# Images per batch where the user does not say, and the pixels of that many 64 x 64 images: larger images are made fewer
# at a time.
_DEFAULT_BATCH_SIZE = 64
_DEFAULT_BATCH_PIXELS = 64 * 64 * 64
# Noises of different use are drawn under numbers this far apart.
_KNOWN_REGION, _RENOISING = 1 << 24, 2 << 24


class Trajectory(NamedTuple):
    """A walk from noise to images, as `generate(..., return_trajectory=True)` gives it.

    Attributes:
        diffusion_times: (steps + 1,), from the first step's at the noise, mostly 1, to 0 at the images.
        noisy_images: (steps + 1, num_images, height, width, channels), zero mean and unit variance; the first are the
            initial noise, the last the images.
        pred_images: (steps, num_images, height, width, channels), float32 in [0, 1]: the image predicted at the start of
            each step.
    """

    diffusion_times: np.ndarray
    noisy_images: np.ndarray
    pred_images: np.ndarray


class _Batch(NamedTuple):
    """Images start, ..., stop - 1. `indices` goes on beyond them, so that the compiled loop sees one shape."""

    start: int
    stop: int
    indices: np.ndarray

    def of(self, images: np.ndarray) -> np.ndarray:
        """These of all the images, the last repeated where the batch goes on."""
        return images[np.minimum(self.indices, len(images) - 1)]


class Generation:
    """The part of `DiffusionModel` that uses the trained network; see there."""

    image_shape: tuple[int, int, int]
    schedule: Schedule
    parameterization: Parameterization
    normalizer: Any
    ema_network: Any
    sampling_seed_generator: Any
    compiled: bool
    compute_dtype: str
    jit_compile: bool
    denormalize: Callable[[Any], Any]
    predict_components: Callable[..., tuple[Any, Any]]
    _compiled_functions: dict[Any, Callable]

    def reverse_diffusion(self, initial_noise: Any, diffusion_steps: int) -> Any:
        """Walk from noise to images with deterministic DDIM.

        Args:
            initial_noise: (batch, height, width, channels), standard normal.
            diffusion_steps: number of network evaluations, at least 1.

        Returns:
            The predicted images, normalised: give them to `denormalize`.
        """
        self._synchronize()
        inputs.check_shape(initial_noise.shape, self.image_shape, "initial_noise")
        _, planned = self._plan(DDIM(), positive_int("diffusion_steps", diffusion_steps), "linear", None)
        indices = np.arange(initial_noise.shape[0], dtype="int32")
        initial_noise = ops.convert_to_tensor(initial_noise, dtype="float32")
        return self._take_walk(initial_noise, planned, 0, indices, NoClipping())

    def generate(
        self,
        num_images: int,
        diffusion_steps: int | Sequence[float] = 20,
        *,
        eta: float | None = None,
        sampler: str | Sampler | None = None,
        network_evaluations: int | None = None,
        spacing: str | Spacing | None = None,
        schedule: str | Schedule | None = None,
        clipping: str | Clipping = "none",
        seed: int | None = None,
        batch_size: int | None = None,
        first_image: int = 0,
        initial_noise: Any = None,
        return_trajectory: bool = False,
        verbose: str | int = "auto",
    ) -> Any:
        """Make images from noise with the EMA network.

        The whole walk is one compiled loop, compiled once for a batch shape: other samplers, spacings, seeds and steps (up to
        4096 evaluations) reuse it.

        Args:
            num_images: how many images, at least 0.
            diffusion_steps: S, the number of steps, at least 1; or the diffusion times to ask the network at, in [0, 1] (on a
                schedule of T times also as integers from 1 to T), in any order.
            eta: samples with `DDIM(eta)`: 0 for deterministic DDIM, 1 for DDPM, or between (eq. 16).
            sampler: a `Sampler` or its name: "ddim", "ddpm", "ddpm_large", "heun", "dpm_solver_2m", "dpm_solver_2m_sde",
                "dpm_solver_2s", "adams_bashforth" or "unipc". None is "unipc" over "karras" spacing, which measures best
                (docs/samplers.md); "ddim" is the paper's deterministic DDIM.
            network_evaluations: as many steps as this number of network evaluations for each image allows, instead of
                `diffusion_steps`. Samplers that ask twice a step take half the steps then.
            spacing: how the steps are spaced: "linear", "quadratic", "quadratic_0.8", "trailing", "leading", "karras",
                "log_snr", or a `Spacing`. None is "linear", but for the default sampler.
            schedule: another schedule to walk along than the one trained with, matched by noise level. Warns if it leaves the
                noise levels that the model was trained at.
            clipping: what keeps the predicted images within the range of images: "none", "static", "dynamic", or a `Clipping`.
            seed: integer in [0, 2**32) that fixes the images. Image i depends on (seed, i) alone, to rounding: neither on
                the batch size nor on `num_images`. None takes the next of the model's own seeds.
            batch_size: images made at a time; None for 64, or fewer if they are larger than 64 x 64.
            first_image: i of the first image, to make more images of a seed, or a part of them.
            initial_noise: (num_images, height, width, channels) to start from; None draws it from `seed`.
            return_trajectory: also return every step on the way.
            verbose: 1 shows a progress bar, 0 does not, "auto" does for more than one batch.

        Returns:
            float32 array of shape (num_images, height, width, channels) in [0, 1]; with `return_trajectory`, a pair of that
            and a `Trajectory`.

        Raises:
            ValueError: an argument out of its range.

        Source: Song, Meng & Ermon (2021), eq. 12 and 16.
        """
        num_images = integer("num_images", num_images, minimum=0)
        chosen, spacing = chosen_sampling(sampler, eta, spacing)
        if network_evaluations is not None:
            if isinstance(diffusion_steps, (Sequence, np.ndarray)):
                raise ValueError("give either network_evaluations or a list of times as diffusion_steps, not both")
            diffusion_steps = chosen.steps_for(positive_int("network_evaluations", network_evaluations))
        times, planned = self._plan(chosen, diffusion_steps, spacing, schedule)
        clip = resolve(clipping, Clipping, CLIPPINGS)
        if initial_noise is not None:
            initial_noise = self._checked_latents(initial_noise, "initial_noise")
            if len(initial_noise) != num_images:
                raise ValueError(
                    f"initial_noise holds {len(initial_noise)} images but num_images is {num_images}: make them equal"
                )
        seed = self._seed(seed)
        first_image = integer("first_image", first_image, minimum=0, below=2**31 - num_images)
        images = np.empty((num_images, *self.image_shape), "float32")
        trajectory = Trajectory(times, *(_empty_steps(images, count) for count in (len(times), len(times) - 1)))
        for batch in self._batches(num_images, batch_size, verbose):
            indices = (batch.indices + first_image).astype("int32")
            noisy_images = self._draw(seed, indices) if initial_noise is None else batch.of(initial_noise)
            if return_trajectory:
                self._record_walk(noisy_images, planned, seed, batch, indices, clip, trajectory)
                noisy_images = trajectory.noisy_images[-1, batch.start : batch.stop]
            else:
                noisy_images = self._take_walk(noisy_images, planned, seed, indices, clip)
            self._store(images, batch, self.denormalize(noisy_images))
        return (images, trajectory) if return_trajectory else images

    def encode(
        self,
        images: Any,
        diffusion_steps: int | Sequence[float] = 100,
        *,
        exact: bool = False,
        tolerance: float = 1e-6,
        max_iterations: int = 200,
        return_report: bool = False,
        sampler: str | Sampler = "ddim",
        spacing: str | Spacing = "linear",
        schedule: str | Schedule | None = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
    ) -> Any:
        """Find the noise that images come from: the ODE of eq. 13 run backwards.

        The error of the round trip falls with the number of steps (Table 2); with `exact` it is gone at any number. The network
        is never asked at the clean image, which it was not trained on, but at the schedule's lowest noise level instead. The
        error that this leaves does not fall: it is most of it with the default schedule, next to none with "linear_beta".

        Args:
            images: (batch, height, width, channels), float in [0, 1] or uint8.
            diffusion_steps: S, or the times to walk over, as for `generate`; `decode` with the same.
            exact: solve for the latents that deterministic DDIM decodes to just these images, with a float32 model. Few large
                steps may not converge. An image that the network could never draw in its last step has no such latent: if the
                lowest noise level is high, as the default schedule's 0.31 is, that is most of them.
            tolerance: with `exact`, the error of a step that ends its iteration, in standard deviations of a pixel.
            max_iterations: with `exact`, network evaluations for each step at most.
            return_report: with `exact`, also return an `InversionReport`.
            sampler: a deterministic sampler that can run backwards: "ddim" or "heun".
            spacing, schedule, batch_size, verbose: as for `generate`.

        Returns:
            Latents, float32 (batch, height, width, channels); with `return_report`, a pair of them and the report.

        Raises:
            ValueError: images of a wrong shape or range, a sampler that cannot run backwards, or `exact` in half precision.
            ConvergenceError: with `exact`, the round trip is off by more than 1e-5; says which step is at fault, and what to do.

        Source: Song, Meng & Ermon (2021), section 4.3 and 5.4.
        """
        normalized = self._checked_images(images)
        chosen = resolve(sampler, Sampler, SAMPLERS)
        if not chosen.runs_backwards:
            raise ValueError(f"{chosen!r} cannot run backwards: encode with DDIM(eta=0) or Heun()")
        if return_report and not exact:
            raise ValueError("a report is made with exact=True only: plain encoding does not iterate")
        walk_schedule = self._walk_schedule(schedule)
        times = diffusion_times(diffusion_steps, spacing, walk_schedule)
        latents = np.empty_like(normalized)
        if exact:
            if not isinstance(chosen, DDIM):
                raise ValueError(f"exact encoding inverts deterministic DDIM, not {chosen!r}")
            if self.compute_dtype != "float32":
                raise ValueError(
                    f"exact encoding needs a float32 network, this one computes in {self.compute_dtype}: copy its "
                    "weights to a model with dtype='float32'"
                )
            if not tolerance > 0.0:
                raise ValueError(f"tolerance must be positive, got {tolerance}")
            max_iterations = positive_int("max_iterations", max_iterations)
            if walk_schedule(times[:1])[0][0] == 0.0:
                raise ValueError(
                    f"{walk_schedule!r} begins with nothing of the image left: no latent there leads to one image, so "
                    "none can be exact; give times below 1"
                )
            report = self._encode_exactly(
                normalized, latents, levels_of(walk_schedule, times), tolerance, max_iterations, batch_size, verbose
            )
            decoded = self.decode(
                latents, diffusion_steps, spacing=spacing, schedule=schedule, batch_size=batch_size, verbose=0
            )
            report = self._checked_report(report, decoded, ops.convert_to_numpy(self.denormalize(normalized)))
            return (latents, report) if return_report else latents
        lowest_signal, lowest_noise = (float(rate) for rate in walk_schedule(walk_schedule.first_time))
        levels = Levels(*(rates[::-1] for rates in levels_of(walk_schedule, times)))
        planned = plan(chosen, levels, self.schedule.conditions, clean_rates=(lowest_signal, lowest_noise))
        for batch in self._batches(len(normalized), batch_size, verbose):
            start = (lowest_signal * batch.of(normalized)).astype("float32")
            self._store(latents, batch, self._take_walk(start, planned, 0, batch.indices, NoClipping()))
        return latents

    def decode(
        self,
        latents: Any,
        diffusion_steps: int | Sequence[float] = 100,
        *,
        sampler: str | Sampler = "ddim",
        **options: Any,
    ) -> Any:
        """Make images from latents; the inverse of `encode`, with the same steps, spacing and schedule.

        Args:
            latents: (batch, height, width, channels), noise or what `encode` returned.
            diffusion_steps: S, or the times to walk over, as for `generate`.
            sampler: deterministic, to give the same images each time.
            **options: as for `generate`.

        Returns:
            float32 array (batch, height, width, channels) in [0, 1].
        """
        latents = self._checked_latents(latents, "latents")
        return self.generate(len(latents), diffusion_steps, sampler=sampler, initial_noise=latents, **options)

    def reconstruct(self, images: Any, diffusion_steps: int | Sequence[float] = 100, **options: Any) -> np.ndarray:
        """Encode images and decode them again (section 5.4).

        Args:
            images: (batch, height, width, channels), float in [0, 1] or uint8.
            diffusion_steps: S, or the times to walk over, both ways.
            **options: as for `encode`.

        Returns:
            float32 array (batch, height, width, channels) in [0, 1].
        """
        if options.pop("return_report", False):
            raise ValueError("reconstruct returns no report: call encode(..., exact=True, return_report=True)")
        latents = self.encode(images, diffusion_steps, **options)
        for name in ("exact", "tolerance", "max_iterations"):
            options.pop(name, None)
        return self.decode(latents, diffusion_steps, **options)

    def interpolate(
        self,
        start: Any,
        end: Any,
        num_images: int = 9,
        diffusion_steps: int | Sequence[float] = 50,
        *,
        from_images: bool = False,
        **options: Any,
    ) -> np.ndarray:
        """Make images on the way from one latent to another, along the sphere (section 5.3).

        Args:
            start, end: latents of shape (height, width, channels); or images, with `from_images`.
            num_images: how many, both ends included.
            diffusion_steps: S, or the times to walk over, as for `generate`.
            from_images: `start` and `end` are images, in [0, 1] or uint8, that are encoded first, by as many steps.
            **options: as for `decode`.

        Returns:
            float32 array (num_images, height, width, channels) in [0, 1].

        Source: Song, Meng & Ermon (2021), appendix D.5.
        """
        ends = self._ends([start, end], from_images, diffusion_steps, options)
        weights = np.linspace(0.0, 1.0, positive_int("num_images", num_images))
        return self.decode(slerp(ends[0], ends[1], weights), diffusion_steps, **options)

    def interpolate_grid(
        self,
        corners: Any,
        rows: int = 5,
        cols: int = 5,
        diffusion_steps: int | Sequence[float] = 50,
        *,
        from_images: bool = False,
        **options: Any,
    ) -> np.ndarray:
        """Make a grid of images between four latents (the paper's figure 6).

        Args:
            corners: (4, height, width, channels) latents, top left, top right, bottom left and bottom right; or images,
                with `from_images`.
            rows, cols: size of the grid, at least 1.
            diffusion_steps: S, or the times to walk over, as for `generate`.
            from_images: the corners are images that are encoded first.
            **options: as for `decode`.

        Returns:
            float32 array (rows, cols, height, width, channels) in [0, 1].
        """
        rows, cols = positive_int("rows", rows), positive_int("cols", cols)
        if len(corners) != 4:
            raise ValueError(f"expected 4 corners (top left, top right, bottom left, bottom right), got {len(corners)}")
        latents = slerp_grid(self._ends(list(corners), from_images, diffusion_steps, options), rows, cols)
        images = self.decode(latents.reshape(-1, *self.image_shape), diffusion_steps, **options)
        return images.reshape(rows, cols, *self.image_shape)

    def variations(
        self,
        image: Any,
        strength: float = 0.5,
        num_images: int = 8,
        diffusion_steps: int = 20,
        *,
        eta: float | None = None,
        sampler: str | Sampler | None = None,
        spacing: str | Spacing | None = None,
        schedule: str | Schedule | None = None,
        clipping: str | Clipping = "none",
        seed: int | None = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
    ) -> np.ndarray:
        """Make images like a given one: add noise part of the way, then walk back to an image.

        Args:
            image: (height, width, channels), float in [0, 1] or uint8.
            strength: how far to go, as a diffusion time in [0, 1]: 0 gives the image itself, 1 nearly forgets it.
            num_images: how many.
            diffusion_steps: S, the steps of the way back; fewer if the schedule has not as many times there.
            eta, sampler, spacing, schedule, clipping, seed, batch_size, verbose: as for `generate`.

        Returns:
            float32 array (num_images, height, width, channels) in [0, 1].

        Source: Meng et al. 2022, "SDEdit".
        """
        diffusion_steps = positive_int("diffusion_steps", diffusion_steps)
        if np.ndim(image) != 3:
            raise ValueError(f"variations takes one image, {self.image_shape}, got shape {np.shape(image)}")
        normalized = self._checked_images(np.asarray(image)[None])
        num_images = integer("num_images", num_images, minimum=0)
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"strength must lie in [0, 1], got {strength}: 0 keeps the image, 1 nearly forgets it")
        images = np.empty((num_images, *self.image_shape), "float32")
        if strength == 0.0:
            images[:] = ops.convert_to_numpy(self.denormalize(normalized))
            return images
        clip = resolve(clipping, Clipping, CLIPPINGS)
        chosen, spacing = chosen_sampling(sampler, eta, spacing)
        walk_schedule = self._walk_schedule(schedule)
        if walk_schedule.num_times is not None:  # no more than there are times on the way
            diffusion_steps = min(diffusion_steps, max(round(strength * walk_schedule.num_times), 1))
        times, planned = self._plan(chosen, diffusion_steps, spacing, schedule, float(strength))
        signal_rates, noise_rates = walk_schedule(times[:1])
        seed = self._seed(seed)
        for batch in self._batches(num_images, batch_size, verbose):
            noises = ops.convert_to_numpy(self._draw(seed, batch.indices))
            noisy_images = (signal_rates[0] * normalized + noise_rates[0] * noises).astype("float32")
            noisy_images = self._take_walk(noisy_images, planned, seed, batch.indices, clip)
            self._store(images, batch, self.denormalize(noisy_images))
        return images

    def inpaint(
        self,
        images: Any,
        masks: Any,
        diffusion_steps: int | Sequence[float] = 50,
        *,
        resampling: int = 5,
        eta: float = 1.0,
        spacing: str | Spacing = "linear",
        schedule: str | Schedule | None = None,
        clipping: str | Clipping = "none",
        seed: int | None = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
    ) -> np.ndarray:
        """Fill in a part of images so that it fits the rest.

        At each step the known part is replaced by the image itself under the noise of that step. Each step is walked several
        times over, with noise added back in between, so that the two parts come to agree.

        Args:
            images: (batch, height, width, channels), float in [0, 1] or uint8. What they hold in the unknown part is not used.
            masks: 1 (or True) where the image is known and kept, 0 where it is to be painted: (height, width), or
                (batch, height, width), with or without a last axis of 1 or of the channels.
            diffusion_steps: S, or the times to walk over, as for `generate`.
            resampling: how many times each step is walked; network evaluations are `resampling` S.
            eta: stochasticity of the steps (eq. 16), 1 in RePaint.
            spacing, schedule, clipping, seed, batch_size, verbose: as for `generate`.

        Returns:
            float32 array (batch, height, width, channels) in [0, 1], equal to the input where it is known.

        Raises:
            ValueError: images or masks of a wrong shape or range.

        Source: Lugmayr et al. 2022, "RePaint", with jumps of one step.
        """
        normalized = self._checked_images(images)
        known = _checked_masks(masks, normalized.shape)
        walk_schedule = self._walk_schedule(schedule)
        levels = levels_of(walk_schedule, diffusion_times(diffusion_steps, spacing, walk_schedule))
        table, adjustments = self._plan_inpainting(DDIM(eta), levels, positive_int("resampling", resampling))
        clip = resolve(clipping, Clipping, CLIPPINGS)
        seed = self._seed(seed)
        result = np.empty_like(normalized)
        number = np.int32((len(levels.signal_rates) - 1) * resampling)
        for batch in self._batches(len(normalized), batch_size, verbose):
            painted = self._compiled("inpaint", clip)(
                self._draw(seed, batch.indices),
                table,
                adjustments,
                number,
                np.uint32(seed),
                batch.indices,
                batch.of(normalized),
                batch.of(known),
            )
            self._store(result, batch, self.denormalize(painted))
        # Back to the pixels as they came, without the rounding of normalisation.
        return np.where(known == 1.0, ops.convert_to_numpy(inputs.as_unit_range(np.asarray(images))), result)

    def score(
        self,
        dataset: Any,
        num_images: int = 10_000,
        diffusion_steps: int | Sequence[float] = 20,
        *,
        metrics: Sequence[Any] = ("fid", "kid", "precision_recall"),
        extractor: Any = None,
        per_class: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        **sampling: Any,
    ) -> dict[str, Any]:
        """Generate images and score them against real ones, at constant memory.

        Args:
            dataset: real images as for `fit`, in a data set that ends; compare with images that the model was not trained on.
            num_images: how many to generate. All metrics but KID depend on it: compare figures of equal numbers.
            diffusion_steps: S, as for `generate`.
            metrics: names, "fid", "kid", "inception_score", "precision_recall" and "density_coverage", or
                `ddim_keras.metrics.ImageMetric` objects.
            extractor: features of the metrics given by name: "inception_v3", "fashion_mnist", "inception_2015" (comparable with
                papers), an `Extractor` or a Keras model. None takes "fashion_mnist" for images of one channel, and otherwise
                "inception_v3".
            per_class: also score each class; `dataset` must then hold (images, labels), or be a pair of such arrays.
            seed, batch_size: as for `generate`.
            **sampling: as for `generate`: sampler, eta, spacing, ...

        Returns:
            Figures by name: "fid", "kid" and "kid_standard_deviation", "precision", "recall", ...; with `per_class` also
            "per_class", for each class its share of the real and of the generated images, precision, recall and coverage.

        Raises:
            ValueError: an argument out of its range, or images of a wrong shape or range.

        Examples:

        >>> model = DiffusionModel(image_size=28, widths=[8], block_depth=1, channels=1)
        >>> real = np.random.default_rng(0).uniform(size=(20, 28, 28, 1))
        >>> sorted(model.score(real, 20, 2, metrics=["precision_recall"], extractor="fashion_mnist"))
        ['precision', 'recall']
        """
        from ddim_keras.metrics import scoring

        batch_size = min(self._batch_size(batch_size), positive_int("num_images", num_images))
        options = {"diffusion_steps": diffusion_steps, "seed": seed, **sampling}
        for name in ("initial_noise", "return_trajectory", "first_image", "verbose"):
            if name in options:
                raise ValueError(f"score cannot take {name}: it generates in batches, from noise that the seed fixes")
        if extractor is None:
            extractor = "fashion_mnist" if self.image_shape[-1] == 1 else "inception_v3"
        generated = scoring.generated_in_batches(self, num_images, batch_size, **options)
        names = getattr(dataset, "class_names", None)
        return scoring.score(generated, inputs.checked(dataset, self.image_shape), metrics, extractor, per_class, names)

    # Inside: planning on the host

    def _walk_schedule(self, schedule: str | Schedule | None) -> Schedule:
        if schedule is None:
            return self.schedule
        chosen = resolve(schedule, Schedule, SCHEDULES)
        check_noise_end(chosen, self.parameterization)
        lowest, trained_lowest = (float(each(each.first_time)[1]) for each in (chosen, self.schedule))
        if lowest < 0.9 * trained_lowest:
            warnings.warn(
                f"{chosen!r} goes down to a noise rate of {lowest:.3g}, but the model was trained down to {trained_lowest:.3g}: "
                "what it draws below may be wrong. Give a schedule, or times, that end there",
                stacklevel=3,
            )
        return chosen

    def _plan(
        self,
        sampler: Sampler,
        diffusion_steps: int | Sequence[float],
        spacing: str | Spacing,
        schedule: str | Schedule | None,
        start: float = 1.0,
    ) -> tuple[np.ndarray, Plan]:
        """Return the times of a walk, the last being that of the images, and its table."""
        walk_schedule = self._walk_schedule(schedule)
        times = diffusion_times(diffusion_steps, spacing, walk_schedule, start)
        return times, plan(sampler, levels_of(walk_schedule, times), self.schedule.conditions)

    def _plan_inpainting(self, sampler: Sampler, levels: Levels, resampling: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the table of the walk, and of each evaluation (known signal, known noise, kept, noise added back)."""
        evaluations: list[Evaluation] = []
        adjustments: list[tuple[float, float, float, float]] = []
        for index in range(len(levels.signal_rates) - 1):
            (signal, next_signal) = levels.signal_rates[index : index + 2]
            next_noise = levels.noise_rates[index + 1]
            evaluations += sampler.step(index, levels) * resampling
            back = signal / next_signal
            adjustments += [(next_signal, next_noise, back, np.sqrt(1.0 - back**2))] * (resampling - 1)
            adjustments.append((next_signal, next_noise, 1.0, 0.0))
        table = table_of(evaluations, self.schedule.conditions)
        padded = np.zeros((len(table), 4), "float32")
        padded[: len(adjustments)] = adjustments
        return table, padded

    # Inside: walking on the device

    def _denoise_for(self, clip: Clipping) -> Callable:
        """The denoiser of a walk, with the predicted images clipped and the noises made to fit them."""

        def denoise(noisy_images, noise_rate, signal_rate, condition):
            pred_noises, pred_images = self.predict_components(noisy_images, noise_rate, signal_rate, condition)
            if isinstance(clip, NoClipping):
                return pred_noises, pred_images
            deviation, mean = self.normalizer.standard_deviation(), self.normalizer.mean
            clipped = clip(2.0 * (mean + pred_images * deviation) - 1.0)
            pred_images = ((clipped + 1.0) / 2.0 - mean) / deviation
            return (noisy_images - signal_rate * pred_images) / noise_rate, pred_images

        return denoise

    def _walk_whole(self, clip: Clipping) -> Callable:
        def walk_whole(noisy_images, table, last, seed, indices):
            noisy_images = ops.convert_to_tensor(noisy_images, dtype="float32")
            memory = ops.stack([ops.zeros_like(noisy_images)] * MEMORY)
            return self._walk_part(clip)(noisy_images, memory, table, 0, last, seed, indices)[0]

        return walk_whole

    def _walk_part(self, clip: Clipping) -> Callable:
        def walk_part(noisy_images, memory, table, first, last, seed, indices):
            return walk(
                self._denoise_for(clip),
                ops.convert_to_tensor(noisy_images, dtype="float32"),
                ops.convert_to_tensor(memory, dtype="float32"),
                ops.convert_to_tensor(table),
                first,
                last,
                lambda number: random.normal(seed, number, indices, self.image_shape),
            )

        return walk_part

    def _walk_inpainting(self, clip: Clipping) -> Callable:
        def walk_inpainting(noises, table, adjustments, last, seed, indices, images, known):
            images, known, adjustments = (ops.convert_to_tensor(value) for value in (images, known, adjustments))

            def adjust(index, noisy_images):
                known_signal, known_noise, kept, added = ops.unstack(ops.take(adjustments, index, axis=0), num=4)
                noises = random.normal(seed, index + _KNOWN_REGION, indices, self.image_shape)
                noisy_images = known * (known_signal * images + known_noise * noises) + (1.0 - known) * noisy_images
                return ops.cond(
                    added > 0.0,
                    lambda: (
                        kept * noisy_images + added * random.normal(seed, index + _RENOISING, indices, self.image_shape)
                    ),
                    lambda: noisy_images,
                )

            return walk(
                self._denoise_for(clip),
                ops.convert_to_tensor(noises, dtype="float32"),
                ops.stack([ops.zeros_like(images)] * MEMORY),
                ops.convert_to_tensor(table),
                0,
                last,
                lambda number: random.normal(seed, number, indices, self.image_shape),
                adjust,
            )[0]

        return walk_inpainting

    def _draw_noise(self, _: Clipping) -> Callable:
        return lambda seed, indices: random.normal(seed, 0, indices, self.image_shape)

    def _compiled(self, name: str, clip: Clipping) -> Callable:
        key = (name, type(clip), repr(clip))
        if key not in self._compiled_functions:
            makers = {
                "walk": self._walk_whole,
                "part": self._walk_part,
                "inpaint": self._walk_inpainting,
                "draw": self._draw_noise,
            }
            self._compiled_functions[key] = backend.compile_function(
                makers[name](clip), lambda: [*self.ema_network.variables, *self.normalizer.variables], self.jit_compile
            )
        return self._compiled_functions[key]

    def _draw(self, seed: int, indices: np.ndarray) -> Any:
        return self._compiled("draw", NoClipping())(np.uint32(seed), indices)

    def _take_walk(self, noisy_images: Any, planned: Plan, seed: int, indices: np.ndarray, clip: Clipping) -> Any:
        last = np.int32(planned.ends[-1])
        return self._compiled("walk", clip)(noisy_images, planned.table, last, np.uint32(seed), indices)

    def _record_walk(
        self,
        noisy_images: Any,
        planned: Plan,
        seed: int,
        batch: _Batch,
        indices: np.ndarray,
        clip: Clipping,
        trajectory: Trajectory,
    ) -> None:
        """Take a walk evaluation by evaluation, and write down each step."""
        memory = np.zeros((MEMORY, *noisy_images.shape), "float32")
        self._store(trajectory.noisy_images[0], batch, noisy_images)
        begin = 0
        for step, end in enumerate(planned.ends):
            for first, last in ((begin, begin + 1), (begin + 1, end)):
                if first == last:
                    continue
                noisy_images, memory, pred_images = self._compiled("part", clip)(
                    noisy_images, memory, planned.table, np.int32(first), np.int32(last), np.uint32(seed), indices
                )
                if first == begin:
                    self._store(trajectory.pred_images[step], batch, self.denormalize(pred_images))
            self._store(trajectory.noisy_images[step + 1], batch, noisy_images)
            begin = end

    def _encode_exactly(
        self,
        images: np.ndarray,
        latents: np.ndarray,
        levels: Levels,
        tolerance: float,
        max_iterations: int,
        batch_size: int | None,
        verbose: str | int,
    ) -> InversionReport:
        """Fill in the latents of normalised images, and report without the round trip."""
        number = len(levels.signal_rates) - 1
        iterations, residuals = np.zeros(number, int), np.zeros(number)
        for batch in self._batches(len(images), batch_size, verbose):
            current, guess = batch.of(images), None
            for step in range(number):
                index = number - 1 - step  # this step of the walk to the image leads from `index` to `index + 1`
                noisier_rates = (levels.signal_rates[index], levels.noise_rates[index])
                rates = (levels.signal_rates[index + 1], levels.noise_rates[index + 1])
                # One evaluation that returns the noises it predicts.
                table = table_of([Evaluation(*noisier_rates, image=0.0, noise=1.0)], self.schedule.conditions)

                def pred_noises(noisy_images, table=table, indices=batch.indices):
                    one = Plan(table, np.array([1]))
                    return ops.convert_to_numpy(self._take_walk(noisy_images, one, 0, indices, NoClipping()))

                if guess is None:  # the noises are not known yet: the image alone
                    guess = noisier_rates[0] * current
                else:
                    scale = noisier_rates[0] / rates[0]
                    guess = scale * current + (noisier_rates[1] - scale * rates[1]) * guess
                before = current
                current, left, used = invert_step(
                    pred_noises, before, rates, noisier_rates, guess, tolerance, max_iterations
                )
                guess = (current - noisier_rates[0] / rates[0] * before) / (
                    noisier_rates[1] - noisier_rates[0] / rates[0] * rates[1]
                )  # the noises predicted there
                iterations[step] = max(iterations[step], used)
                residuals[step] = max(residuals[step], left[: batch.stop - batch.start].max())
                if not np.isfinite(current).all():
                    break
            self._store(latents, batch, current)
        return InversionReport(iterations, residuals, np.nan)

    @staticmethod
    def _checked_report(report: InversionReport, decoded: np.ndarray, images: np.ndarray) -> InversionReport:
        error = float(np.abs(decoded - images).max(initial=0.0))
        report = report._replace(round_trip_error=error)
        if not error <= 1e-5:
            worst = int(np.argmax(report.residuals))
            raise ConvergenceError(
                f"exact encoding did not converge: the round trip is off by {error:.1e}, expected at most 1e-5. Step {worst + 1} "
                f"of {len(report.residuals)} from the image was left with a residual of {report.residuals[worst]:.1e} after "
                f"{report.iterations[worst]} iterations. Take smaller steps there (more diffusion_steps, or spacing='quadratic' "
                "if it is the first). Images that the network's last step could never draw have no latent; a schedule that "
                "ends nearer to the clean image (a higher max_signal_rate, or 'linear_beta') leaves fewer of those",
                report,
            )
        return report

    # Inside: arguments and batches

    def _batches(self, num_images: int, batch_size: int | None, verbose: str | int) -> Iterator[_Batch]:
        batch_size = min(self._batch_size(batch_size), max(num_images, 1))
        starts = range(0, num_images, batch_size)
        show = verbose == 1 or (verbose == "auto" and len(starts) > 1)
        bar = keras.utils.Progbar(num_images, unit_name="image") if show else None
        for start in starts:
            stop = min(start + batch_size, num_images)
            yield _Batch(start, stop, np.arange(start, start + batch_size, dtype="int32"))
            if bar is not None:
                bar.update(stop)

    def _batch_size(self, batch_size: int | None) -> int:
        if batch_size is not None:
            return positive_int("batch_size", batch_size)
        pixels = self.image_shape[0] * self.image_shape[1]
        return max(1, min(_DEFAULT_BATCH_SIZE, _DEFAULT_BATCH_PIXELS // pixels))

    @staticmethod
    def _store(images: np.ndarray, batch: _Batch, values: Any) -> None:
        """Write a batch's images in their places, without those that filled it up."""
        images[batch.start : batch.stop] = ops.convert_to_numpy(values)[: batch.stop - batch.start]

    def _checked_images(self, images: Any) -> np.ndarray:
        """Images as a user gives them, normalised."""
        self._synchronize()
        images = np.asarray(images)
        inputs.check_images(images, self.image_shape)
        return ops.convert_to_numpy(self.normalizer(images))

    def _checked_latents(self, latents: Any, name: str) -> np.ndarray:
        latents = np.asarray(latents, "float32")
        inputs.check_shape(latents.shape, self.image_shape, name)
        if not np.isfinite(latents).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        return latents

    def _ends(
        self, ends: list[Any], from_images: bool, diffusion_steps: int | Sequence[float], options: dict[str, Any]
    ) -> np.ndarray:
        if options.get("return_trajectory"):
            raise ValueError("no trajectory is returned here: decode(latents, return_trajectory=True) does")
        for end in ends:
            if np.shape(end) != self.image_shape:
                raise ValueError(f"each end must be one image or latent, {self.image_shape}, got shape {np.shape(end)}")
        if not from_images:
            return self._checked_latents(np.stack(ends), "latents")
        if options.get("network_evaluations") is not None:
            raise ValueError("network_evaluations does not say how to encode: give diffusion_steps")
        names = ("sampler", "spacing", "schedule", "batch_size", "verbose")
        chosen = {name: options[name] for name in names if options.get(name) is not None}
        images = [ops.convert_to_numpy(inputs.as_unit_range(np.asarray(end))) for end in ends]
        return self.encode(np.stack(images), diffusion_steps, **chosen)

    def _seed(self, seed: int | None) -> int:
        self._synchronize()
        if seed is not None:
            return integer("seed", seed, minimum=0, below=2**32)
        seed, count = (int(part) for part in ops.convert_to_numpy(self.sampling_seed_generator.next()))
        return (seed + count * 0x9E3779B1) % 2**32

    def _synchronize(self) -> None:
        """On JAX, `fit` holds the weights outside the model; bring them back before they are used in a callback."""
        synchronize = getattr(self, "jax_state_sync", None)
        if self.compiled and synchronize is not None:
            synchronize()


def chosen_sampling(
    sampler: str | Sampler | None, eta: float | None, spacing: str | Spacing | None
) -> tuple[Sampler, str | Spacing]:
    """Return the sampler and the spacing that `generate` takes, given its arguments."""
    if eta is not None:
        if sampler not in (None, "ddim"):
            raise ValueError(f"eta is DDIM's stochasticity, but the sampler is {sampler!r}: give one of the two")
        return DDIM(eta), spacing or "linear"
    if sampler is not None:
        return resolve(sampler, Sampler, SAMPLERS), spacing or "linear"
    return UniPC(), spacing or "karras"


def check_noise_end(schedule: Schedule, parameterization: Parameterization) -> None:
    """Raise ValueError if the network predicts noises where nothing but noise is left."""
    if isinstance(parameterization, NoiseParameterization) and schedule(np.array([1.0]))[0][0] == 0.0:
        raise ValueError(
            f"at the noise end of {schedule!r} nothing is left of the image, so predicted noise says nothing of it: "
            'train with parameterization="velocity" or "image"'
        )


def _empty_steps(images: np.ndarray, number: int) -> np.ndarray:
    return np.empty((number, *images.shape), "float32")


def _checked_masks(masks: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Masks as float32 of the images' shape."""
    masks = np.asarray(masks, "float32")
    expected = f"(height, width) or (batch, height, width), perhaps with channels, for images of shape {shape}"
    if masks.ndim == 2 or (masks.ndim == 3 and masks.shape == shape[:3]):
        masks = masks[..., None]
    try:
        result = np.broadcast_to(masks, shape)
    except ValueError:
        raise ValueError(f"masks must be {expected}, got shape {masks.shape}") from None
    if not np.isin(result, (0.0, 1.0)).all():
        raise ValueError("masks must hold 1 where the image is known and 0 where it is to be painted, got other values")
    return np.ascontiguousarray(result)
