"""Fitting a sampler of few steps to a model: the table that its walk reads, by gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from ddim_keras.diffusion.spacings import GivenSpacing, diffusion_times, levels_of
from ddim_keras.samplers import (
    DDIM,
    MEMORY,
    AdamsBashforth,
    DPMSolverMultistep,
    Evaluation,
    FittedSampler,
    GaussianStart,
    Sampler,
    UniPC,
    walk_written_out,
)
from ddim_keras.samplers.fitted import configuration, number_of_weights
from ddim_keras.sampling.conditioning import Conditioning, conditioning
from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.sampling.distance import distance_of
from ddim_keras.sampling.engine import Batch, Engine
from ddim_keras.sampling.guidance import Autoguidance, Guidance, GuidanceFunction, calls_in_a_step
from ddim_keras.sampling.starts import measured_start
from ddim_keras.support.arguments import integer, positive, positive_int
from ddim_keras.support.progress import progress
from ddim_keras.support.types import Array, Condition, GuidanceLike, Images, Labels, Tensor

# What the fit starts from: the best of these on the held-out noises.
_STARTS: tuple[tuple[Sampler, str], ...] = (
    (UniPC(3), "karras"),
    (UniPC(2), "linear"),
    (AdamsBashforth(2), "linear"),
    (DPMSolverMultistep(), "karras"),
    (DDIM(), "linear"),
    (DDIM(), "karras"),
)
_BELOW = (0.95, 0.9, 0.85, 0.8, 0.7)  # times, with a Gaussian start
_TEACHER, _TEACHER_SPACING = UniPC(3), "karras"
_MOST_STEPS = 20
_HELD_OUT_SHARE = 4  # of the images, one in so many is held out
_LARGEST_NORM = 1.0
_DECAYS = (0.9, 0.98)  # of the gradients' averages


class _Walks(NamedTuple):
    """Walks of many steps: where they start, where they lead, and what they were told."""

    noises: np.ndarray
    images: np.ndarray
    told: Conditioning

    def batch(self, indices: np.ndarray) -> Batch:
        return Batch(0, len(indices), indices.astype("int32"))


def fit_sampler(
    engine: Engine,
    network_evaluations: int,
    *,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    teacher_steps: int = 30,
    num_images: int = 384,
    batch_size: int = 16,
    epochs: int = 6,
    patience: int = 3,
    learning_rate: float = 0.03,
    images: Images = None,
    rank: int = 16,
    seed: int = 0,
    keep: bool = True,
    verbose: str | int = "auto",
) -> FittedSampler:
    """Find levels and weights for a walk of few network evaluations, by gradient descent against
    walks of many steps from the same noises. The network stays as it is.

    Images are compared by the features at the network's narrowest place: nearest in pixels would be
    a blurred image. Afterwards `generate` takes the sampler by itself for its number of
    evaluations, and it is saved with the model. Minutes on two cores.

    Args:
        network_evaluations: calls of the network for each image, 1 to 20, with those for
            guidance.
        labels, condition: of the walks, as for `generate`, for `num_images` images. None takes all
            classes in turn.
        guidance: as for `generate`, and None likewise takes the model's own. The sampler is chosen
            where the same guidance acts.
        teacher_steps: of the long walks, more than the fitted one's.
        num_images: how many long walks there are. One in four is held out: half of those say when
            to stop, the others how good the sampler is.
        batch_size: walks in a step of the descent; an eighth of `num_images` at most.
        epochs: how often all walks are gone through, at most. 0 takes the best of what the descent
            would begin with.
        patience: epochs without a better held-out error that end the fit.
        learning_rate: of Adam, at its start; it falls to 0 as a cosine.
        images: (number, height, width, channels) of the data, in [0, 1] or uint8; some hundreds.
            Their mean and covariance tell where noise leads at first (`GaussianStart`), so that no
            evaluation is spent there, which is worth most in one to four. None starts from noise.
        rank: how many axes of the covariance are kept.
        seed: fixes the noises and their order.
        keep: whether the model keeps it in `samplers`, in place of another for the same number of
            steps.
        verbose: 0 shows no progress bar.

    Returns:
        The best sampler by the held-out walks, never worse by them than those it starts from. Its
        `errors` are those of walks that chose nothing.

    Raises:
        ValueError: an argument out of its range, guidance that cannot be written to a file, or
            evaluations that do not divide by those of a step.
        FloatingPointError: the weights hold NaN or infinity.

    Source: Tong et al. 2025 ("LD3") and Frankel et al. 2025 ("S4S") fit times and coefficients by
        gradient descent through the walk; here it is the whole table. Wang & Vastola 2024 start
        from a Gaussian's noisy images.

    Examples:

    >>> model = DiffusionModel(image_size=8, widths=[8], block_depth=1, channels=1, seed=0)
    >>> sampler = model.fit_sampler(2, num_images=16, teacher_steps=5, epochs=1, verbose=0)
    >>> sampler, model.samplers
    (FittedSampler(2 steps), [FittedSampler(2 steps)])
    """
    num_images = integer("num_images", num_images, minimum=2 * _HELD_OUT_SHARE)
    told = _conditions(engine, num_images, labels, condition, guidance)
    steps = steps_of(network_evaluations, calls_in_a_step(told.guidance))
    teacher_steps = integer("teacher_steps", teacher_steps, minimum=steps + 1)
    rank = positive_int("rank", rank)
    if broken := engine.broken_weights():
        raise FloatingPointError(broken)
    seed = integer("seed", seed, 0, 2**32)
    epochs, patience = integer("epochs", epochs, minimum=0), positive_int("patience", patience)
    batch_size = positive_int("batch_size", batch_size)
    learning_rate = positive("learning_rate", learning_rate)
    walks = _long_walks(engine, told, num_images, teacher_steps, seed, verbose)
    held_out = num_images // _HELD_OUT_SHARE
    trained = np.arange(held_out, num_images)
    below = None if images is None else measured_start(engine, images, _BELOW[0], rank)
    fit = _Fit(engine, walks, steps, batch_size)
    stopping, judging = np.arange(held_out // 2), np.arange(held_out // 2, held_out)
    first, before = fit.best_start(stopping, judging, below)
    table = fit.descend(first, trained, stopping, epochs, patience, learning_rate, verbose)
    fitted = fit.sampler(table, told.guidance)
    errors = {"fitted": fit.error(fitted, judging), "before": before, "walks": len(judging)}
    angles = fitted.angles.tolist()
    fitted = FittedSampler(angles, fitted.weights, fitted.guidance, errors, fitted.start)
    if keep:
        engine.defaults.keep(fitted)
    return fitted


class _Fit:
    """The parameters of a table, their errors and their gradients.

    They are the angles of the levels, then for each step what its weights differ from DDIM's over
    those levels. So a level that moves takes its weights along. Where the walk starts is chosen
    before, and stays.
    """

    def __init__(self, engine: Engine, walks: _Walks, steps: int, batch_size: int):
        self.engine, self.walks, self.steps = engine, walks, steps
        self.start: GaussianStart | None = None
        self.batch_size = min(batch_size, len(walks.noises) // _HELD_OUT_SHARE // 2)
        first, last = (
            np.arctan2(*engine.schedule(np.array([time]))[::-1])[0]
            for time in (engine.schedule.first_time, 1.0)
        )
        self.range = (float(first), float(last))
        # Times of a list cannot be moved by a gradient.
        self.moves_levels = engine.schedule.num_times is None
        example = self._wrappers(np.arange(1))
        variables = [variable for wrapper in example for variable in wrapper.variables]
        self._values = [value for wrapper in example for value in wrapper.values]
        self._distance = distance_of(engine)
        self._gradient = engine.compile_gradient(self._loss, variables)
        self._measured = engine.compile(self._distance)

    def best_start(
        self, stopping: np.ndarray, judging: np.ndarray, below: GaussianStart | None
    ) -> tuple[Array, float]:
        """Return the parameters of the best sampler that is not fitted, and its error; from noise,
        or from what `below` makes of it at some level, which is kept.
        """
        found: list[tuple[float, int, Array, FittedSampler]] = []
        for time in (1.0,) if below is None else (1.0, *_BELOW):
            for sampler, spacing in _STARTS:
                planned = self._planned(sampler, spacing, time)
                if planned is not None:
                    parameters = self._parameters(*planned)
                    if below is not None and time < 1.0:
                        self.start = below.to(parameters[0])
                    candidate = self.sampler(parameters)
                    error = self.error(candidate, stopping)
                    found.append((error, len(found), parameters, candidate))
        _, _, parameters, candidate = min(found)
        self.start = candidate.start
        return parameters, self.error(candidate, judging)

    def descend(
        self,
        parameters: Array,
        trained: np.ndarray,
        stopping: np.ndarray,
        epochs: int,
        patience: int,
        learning_rate: float,
        verbose: str | int,
    ) -> Array:
        """Return the parameters of the least held-out error on the way down."""
        in_epoch = len(trained) // self.batch_size
        bar = progress(epochs * in_epoch, "steps") if verbose and epochs else None
        descent = _Adam(learning_rate, epochs * in_epoch)
        order = np.random.default_rng(0)
        best, since = (self.error(self.sampler(parameters), stopping), parameters), 0
        found = parameters
        done = 0
        for _ in range(epochs):
            shuffled = order.permutation(trained)
            for start in range(0, in_epoch * self.batch_size, self.batch_size):
                indices = shuffled[start : start + self.batch_size]
                found = self._in_range(found - descent.step(self.gradient(found, indices)))
                done += 1
                if bar is not None:
                    bar.update(done)
            error = self.error(self.sampler(found), stopping)
            if error < best[0]:
                best, since = (error, found), 0
            else:
                since += 1
            if since >= patience:
                break
        if bar is not None and done < epochs * in_epoch:
            bar.update(done, finalize=True)
        return best[1]

    def gradient(self, parameters: Array, indices: np.ndarray) -> Array:
        """Return the gradient of the error of some of the walks by the parameters."""
        batch = self.walks.batch(indices)
        values = [*self.engine.held_values(), *self._values]
        gradient = self._gradient(
            values,
            ops.convert_to_tensor(parameters, dtype="float32"),
            batch.of(self.walks.noises),
            batch.of(self.walks.images),
            tuple(wrapper.arrays for wrapper in self._wrappers(indices)),
        )
        return ops.convert_to_numpy(gradient) * self._free()

    def error(self, sampler: FittedSampler, indices: np.ndarray) -> float:
        """Return the mean distance from where long walks led."""
        spacing = GivenSpacing(sampler.angles.tolist())
        _, planned = self.engine.plan(sampler, self.steps, spacing, None)
        distances = []
        for start in range(0, len(indices) - self.batch_size + 1, self.batch_size):
            batch = self.walks.batch(indices[start : start + self.batch_size])
            noises = batch.of(self.walks.noises)
            ended = self.engine.walk(
                noises, planned, 0, batch.indices, self._wrappers(batch.indices)
            )
            found = self._measured(
                self.engine.held_values(), ended, batch.of(self.walks.images), noises
            )
            distances.append(float(ops.convert_to_numpy(found)))
        return float(np.mean(distances))

    def sampler(self, parameters: Array, guidance: Sequence[Guidance] = ()) -> FittedSampler:
        """Return the sampler that parameters stand for."""
        parameters = self._in_range(np.asarray(parameters, "float64"))
        angles = parameters[: self.steps]
        weights = _weights(parameters, self.steps, np)
        rows = [row[: number_of_weights(index)].tolist() for index, row in enumerate(weights)]
        told = [configuration(part) for part in guidance]
        return FittedSampler(angles.tolist(), rows, told, start=self.start)

    def _loss(
        self,
        parameters: Tensor,
        noises: Images,
        images: Images,
        arrays: Sequence[Sequence[Tensor]],
    ) -> Tensor:
        denoise = self.engine.denoise
        for wrapper, own in zip(self._wrappers(np.arange(1)), arrays):
            denoise = wrapper.wrap(denoise, own, ops.zeros_like)
        noises = ops.convert_to_tensor(noises, dtype="float32")
        first = noises if self.start is None else self.start(noises)
        ended = walk_written_out(
            denoise, first, self.engine.no_memory(noises), self._table(parameters), self.steps
        )
        return self._distance(ended, ops.convert_to_tensor(images, dtype="float32"), noises)

    def _table(self, parameters: Tensor) -> Tensor:
        """The rows of a plan, as `samplers.table_of` makes them, of tensors."""
        angles = parameters[: self.steps]
        signal_rates, noise_rates = ops.cos(angles), ops.sin(angles)
        weights = _weights(parameters, self.steps, ops)
        zeros = ops.zeros((self.steps, 1))
        told = self.engine.schedule.conditions(signal_rates, noise_rates)
        columns = [told, noise_rates, signal_rates, weights[:, 1], weights[:, 0]]
        return ops.concatenate(
            [
                *(ops.cast(column, "float32")[:, None] for column in columns),
                zeros,
                weights[:, 2:],
                zeros + 1.0,
                zeros,
            ],
            axis=1,
        )

    def _planned(self, sampler: Sampler, spacing: str, start: float) -> tuple[Array, Array] | None:
        """The angles of a sampler's evaluations from a time on and the weights of its steps, if it
        takes as many as the fitted one.
        """
        schedule = self.engine.schedule
        levels = levels_of(schedule, diffusion_times(self.steps, spacing, schedule, start))
        made = [part for index in range(self.steps) for part in sampler.step(index, levels)]
        if len(made) != self.steps:
            return None
        angles = np.array([np.arctan2(part.noise_rate, part.signal_rate) for part in made])
        return angles, in_images(made, sampler.remembers)

    def _parameters(self, angles: Array, weights: Array) -> Array:
        angles = self._in_range(angles)
        without = np.concatenate([angles, np.zeros(weights.size)])
        return np.concatenate([angles, (weights - _weights(without, self.steps, np)).ravel()])

    def _in_range(self, parameters: Array) -> Array:
        """With the levels within those trained at, and falling."""
        low, high = self.range
        parameters = np.array(parameters)
        angles, apart = parameters[: self.steps], 1e-4 * (high - low)
        for index in range(self.steps):
            most = high if index == 0 else angles[index - 1] - apart
            least = low + (self.steps - 1 - index) * apart
            angles[index] = np.clip(angles[index], least, most)
        return parameters

    def _free(self) -> Array:
        """1 for each parameter that the descent may change, 0 for the others."""
        free = [np.full(self.steps, float(self.moves_levels))]
        for index in range(self.steps):
            free.append((np.arange(2 + MEMORY) < number_of_weights(index)).astype("float64"))
        return np.concatenate(free)

    def _wrappers(self, indices: np.ndarray) -> list[Wrapper]:
        return self.walks.told.of(self.walks.batch(np.asarray(indices)))


class _Adam:
    """Adam (Kingma & Ba 2015) for the few numbers of a table, on the host: Keras's optimizers take
    no step within a scope of several devices.

    Args:
        learning_rate: at the start; it falls to 0 as a cosine.
        steps: after which it has.
    """

    def __init__(self, learning_rate: float, steps: int):
        self.learning_rate, self.steps, self.done = learning_rate, steps, 0
        self.mean: Array | float = 0.0
        self.square: Array | float = 0.0

    def step(self, gradient: Array) -> Array:
        """Return what is to be taken off the numbers, by a gradient of no more than a length."""
        gradient = gradient * min(1.0, _LARGEST_NORM / max(float(np.linalg.norm(gradient)), 1e-30))
        first, second = _DECAYS
        rate = self.learning_rate * 0.5 * (1.0 + np.cos(np.pi * self.done / self.steps))
        self.done += 1
        self.mean = first * self.mean + (1.0 - first) * gradient
        self.square = second * self.square + (1.0 - second) * gradient**2
        mean = self.mean / (1.0 - first**self.done)
        square = self.square / (1.0 - second**self.done)
        return rate * mean / (np.sqrt(square) + 1e-7)


def _weights(parameters: Tensor, steps: int, numeric: Any) -> Tensor:
    """The weights of each step, (steps, 2 + MEMORY): DDIM's, and what parameters add to them."""
    angles = parameters[:steps]
    added = numeric.reshape(parameters[steps:], (steps, 2 + MEMORY))
    one, none = numeric.zeros_like(angles[:1]) + 1.0, numeric.zeros_like(angles[:1])
    noise = numeric.concatenate([numeric.sin(angles[1:]), none])
    image = numeric.concatenate([numeric.cos(angles[1:]), one])
    columns = [noise, image, *[numeric.zeros_like(angles)] * MEMORY]
    return numeric.stack(columns, axis=1) + added


def in_images(evaluations: Sequence[Evaluation], remembers: str) -> Array:
    """Return the weights of a walk's steps, (steps, 2 + MEMORY), such that all it remembers are
    predicted images, whatever its sampler remembers.

    Noisy images and predicted noises are written as sums of the noise that the walk starts from and
    of predicted images; those sums leave one way to write a step.
    """
    steps = len(evaluations)
    rows = np.zeros((steps, 2 + MEMORY))
    images = np.eye(steps + 1)[1:]  # of (the first noise, the predicted images in their order)
    noisy = np.eye(steps + 1)[0]
    noises: list[Array] = []
    for index, part in enumerate(evaluations):
        noises.append((noisy - part.signal_rate * images[index]) / part.noise_rate)
        noisy = part.image * images[index] + part.noise * noises[index]
        kept = images[:index] if remembers == "images" else noises[:index]
        for weight, earlier in zip(part.remembered, kept[::-1]):
            noisy = noisy + weight * earlier
        rows[index, 0] = noisy[0] / noises[index][0]
        of_images = noisy - rows[index, 0] * noises[index]
        used = min(index, MEMORY) + 1
        rows[index, 1 : 1 + used] = of_images[1 : index + 2][::-1][:used]
    return rows


def _conditions(
    engine: Engine, number: int, labels: Labels, condition: Condition, guidance: GuidanceLike
) -> Conditioning:
    """What the walks are told, checked."""
    if labels is None and engine.spec.num_classes is not None:
        labels = [index % engine.spec.num_classes for index in range(number)]
    told = conditioning(engine, number, labels, condition, guidance, engine.defaults.guidance)
    for part in told.guidance:
        if isinstance(part, (Autoguidance, GuidanceFunction)):
            raise ValueError(
                f"a sampler cannot be fitted with {type(part).__name__}, which no file can hold: "
                "fit it without, or with ClassifierFreeGuidance"
            )
    return told


def calls_by_default(engine: Engine, guidance: GuidanceLike = None) -> int:
    """Return how often each step of what `fit_sampler` fits, given such guidance, calls the
    network.
    """
    return calls_in_a_step(_conditions(engine, 1, None, None, guidance).guidance)


def steps_of(network_evaluations: int, calls: int) -> int:
    """Return of how many steps a walk of so many evaluations is, with `calls` in a step.

    Raises:
        ValueError: they do not divide, or are more than are fitted.
    """
    budget = positive_int("network_evaluations", network_evaluations)
    if budget % calls:
        raise ValueError(
            f"network_evaluations must divide by {calls}, the calls of a step with the guidance "
            f"that is given or the model's own, got {budget}: guidance=1 is none"
        )
    if budget // calls > _MOST_STEPS:
        raise ValueError(
            f"network_evaluations must be at most {calls * _MOST_STEPS}, got {budget}: with more "
            "the default sampler leaves nothing to fit"
        )
    return budget // calls


def _long_walks(
    engine: Engine, told: Conditioning, number: int, steps: int, seed: int, verbose: str | int
) -> _Walks:
    """Walk from `number` noises to images in many steps."""
    _, planned = engine.plan(_TEACHER, steps, _TEACHER_SPACING, None)
    shape = (number, *engine.image_shape)
    walks = _Walks(np.empty(shape, "float32"), np.empty(shape, "float32"), told)
    for batch in engine.batches(number, None, verbose):
        noises = engine.draw(seed, batch.indices)
        batch.store(walks.noises, noises)
        ended = engine.walk(noises, planned, seed, batch.indices, told.of(batch))
        batch.store(walks.images, engine.checked(ended))
    return walks
