"""The engine: takes walks on the device, compiled once; images come and go in batches, random
numbers by seed and place.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.diffusion.parameterizations import Parameterization
from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.diffusion.spacings import Spacing, diffusion_times, levels_of
from ddim_keras.networks.layers import ImageNormalization
from ddim_keras.samplers import MEMORY, Denoiser, Plan, Sampler, plan, walk, walk_pairs
from ddim_keras.sampling.choices import schedule_of_walk
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.sampling.denoisers import Wrapper, network_denoiser
from ddim_keras.support import backend, random
from ddim_keras.support.arguments import integer, positive_int
from ddim_keras.support.locks import FairLock
from ddim_keras.support.placement import workers_placed
from ddim_keras.support.progress import progress
from ddim_keras.support.types import (
    Array,
    ImageArray,
    Images,
    ImageShape,
    Numbers,
    Tensor,
    Variable,
)

# Images per batch where the user does not say, and the pixels of that many 64 x 64 images: larger
# images are made fewer at a time.
_DEFAULT_BATCH_SIZE = 64
_DEFAULT_BATCH_PIXELS = 64 * 64 * 64
# Fewer images than a batch are filled up to one of these numbers, so that few shapes are compiled.
_SMALL_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
_GOLDEN_RATIO_BITS = 0x9E3779B1


class Batch(NamedTuple):
    """Images start, ..., stop - 1. `indices` goes on beyond them, so that the compiled loop sees
    one shape.
    """

    start: int
    stop: int
    indices: Numbers

    def of(self, images: np.ndarray) -> np.ndarray:
        """These of all the images, or of what belongs to each, the last repeated where the batch
        goes on.
        """
        return images[np.minimum(self.indices, len(images) - 1)]

    def store(self, images: ImageArray, values: Images) -> None:
        """Write the batch's images in their places among all, without those that filled it up."""
        images[self.start : self.stop] = ops.convert_to_numpy(values)[: self.stop - self.start]


class Engine:
    """Runs the walks of a trained network. The verbs in `ddim_keras.sampling` are functions of an
    engine.

    Args:
        network: maps [noisy images, noise levels] to what the parameterization says, as
            `DiffusionModel.ema_network` does.
        image_shape: (height, width, channels).
        schedule: what the network was trained on.
        parameterization: what it predicts.
        spec: which conditions it takes.
        normalizer: turns images in [0, 1] into zero mean and unit variance, and back by its
            `denormalize`.
        seeds: a `keras.random.SeedGenerator`, whose next seed an unseeded walk takes.
        compute_dtype: what the network computes in.
        jit_compile: asked before a walk is compiled: whether to use XLA.
        before_use: called before the weights are read; brings those back that a training holds
            elsewhere.

    Attributes:
        network: as given.
        denoise: its predictions, a `Denoiser`.
        defaults: what verbs take where the user does not say.
        variables: all that a walk reads.
        lock: held while a training changes the weights, or while they are read.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        image_shape: ImageShape,
        schedule: Schedule,
        parameterization: Parameterization,
        spec: ConditionSpec,
        normalizer: ImageNormalization,
        seeds: keras.random.SeedGenerator,
        compute_dtype: str,
        jit_compile: Callable[[], bool],
        before_use: Callable[[], None],
    ):
        self.image_shape = image_shape
        self.schedule = schedule
        self.parameterization = parameterization
        self.spec = spec
        self.normalizer = normalizer
        self.compute_dtype = compute_dtype
        self.defaults = SamplingDefaults()
        self.denoise: Denoiser = network_denoiser(network, parameterization, spec)
        self.variables: list[Variable] = [*network.variables, *normalizer.variables]
        self.lock = FairLock()
        self.network = network
        self._seeds = seeds
        self._jit_compile = jit_compile
        self._before_use = before_use
        self._compiled: dict[Any, Callable] = {}
        self._held = threading.local()

    # The weights

    @contextlib.contextmanager
    def weights_held(self) -> Iterator[None]:
        """Within, this thread's walks use the weights as they are now, whatever a training in
        another thread does to them.
        """
        if getattr(self._held, "values", None) is not None:
            yield
            return
        with self.lock:
            self._before_use()
            self._held.values = backend.values_of(self.variables)
        try:
            with workers_placed():
                yield
        finally:
            self._held.values = None

    def normalize(self, images: Images) -> ImageArray:
        """Check images as a user gives them, and return them with zero mean and unit variance.

        Raises:
            ValueError: images of a wrong shape or range.
        """
        images = inputs.as_array(images)
        inputs.check_images(images, self.image_shape)
        with backend.values_used(self.variables, self._held.values):
            return ops.convert_to_numpy(self.normalizer(images))

    def denormalize(self, images: Images) -> Images:
        """Return images of zero mean and unit variance to [0, 1].

        Raises:
            FloatingPointError: they hold NaN or infinity; says whether the weights are at fault.
        """
        self.checked(images)
        with backend.values_used(self.variables, self._held.values):
            return self.normalizer.denormalize(images)

    def checked(self, images: Images) -> Images:
        """Return what a walk led to, or raise FloatingPointError if it holds NaN or infinity."""
        if not backend.has_no_value(images) and not np.isfinite(ops.convert_to_numpy(images)).all():
            raise FloatingPointError(self._why_not_finite())
        return images

    def broken_weights(self) -> str | None:
        """Say what of the model is NaN or infinite, and what to do about it; None if nothing is."""
        with self.weights_held(), backend.values_used(self.variables, self._held.values):
            weights, statistics = (
                [ops.convert_to_numpy(ops.cast(variable, "float32")) for variable in variables]
                for variables in (
                    self.network.weights,
                    (self.normalizer.mean, self.normalizer.variance),
                )
            )
        if not all(np.isfinite(weight).all() for weight in weights):
            return (
                "the network's weights hold NaN or infinity: the training has diverged. "
                "Load the best or an earlier checkpoint, and train with a lower learning rate or "
                "clipped gradients"
            )
        if not all(np.isfinite(statistic).all() for statistic in statistics):
            return (
                "the normalizer's mean or variance is NaN or infinite: adapt it anew, "
                "model.normalizer.adapt(images), or load the model again"
            )
        return None

    def _why_not_finite(self) -> str:
        return self.broken_weights() or (
            "the walk led to NaN or infinity, though the weights are finite: the network computes "
            f"in {self.compute_dtype}. Give "
            "its weights to a model with dtype='float32', take more steps, or clipping='static'"
        )

    # Walks

    def plan(
        self,
        sampler: Sampler,
        diffusion_steps: int | Sequence[float],
        spacing: str | Spacing,
        schedule: str | Schedule | None,
        start: float = 1.0,
    ) -> tuple[Array, Plan]:
        """Return the times of a walk from `start`, the last being that of the images, and its
        plan.
        """
        schedule = schedule_of_walk(schedule, self.schedule, self.parameterization)
        times = diffusion_times(diffusion_steps, spacing, schedule, start)
        return times, plan(sampler, levels_of(schedule, times), self.schedule.conditions)

    def draw(self, seed: int, indices: Numbers) -> Images:
        """Return the initial noises of images number `indices`."""
        draw = self._compile(
            "draw",
            lambda seed, indices: random.normal(seed, 0, indices, self.image_shape),
            axes=(-1, 0),
            output_axes=0,
        )
        return draw(self.held_values(), np.uint32(seed), indices)

    def walk(
        self,
        noisy_images: Images,
        planned: Plan,
        seed: int,
        indices: Numbers,
        wrappers: Sequence[Wrapper] = (),
    ) -> Images:
        """Take a whole walk, and return where it led."""
        noisy_images = planned.started(noisy_images)
        memory = self.no_memory(noisy_images)
        return self.walk_part(
            noisy_images, memory, planned, 0, planned.ends[-1], seed, indices, wrappers
        )[0]

    def walk_part(
        self,
        noisy_images: Images,
        memory: Tensor,
        planned: Plan,
        first: int,
        last: int,
        seed: int,
        indices: Numbers,
        wrappers: Sequence[Wrapper] = (),
    ) -> tuple[Images, Tensor, Images]:
        """Make the evaluations first, ..., last - 1 of a plan; returns what `samplers.walk` does.

        Args:
            noisy_images: (batch, height, width, channels).
            memory: what the part before returned, or `no_memory`.
            planned: the plan.
            first, last: numbers of evaluations.
            seed: fixes the noises that are added on the way, together with
            indices: (batch,), int32, the images' numbers.
            wrappers: what is put around the network's denoiser, the innermost first.
        """
        return self.on_device(
            "walk",
            functools.partial(self.walk_on_device, wrappers),
            wrappers,
            noisy_images,
            memory,
            planned.table,
            np.int32(first),
            np.int32(last),
            np.uint32(seed),
            indices,
            axes=(0, 1, -1, -1, -1, -1, 0),
            output_axes=(0, 1, 0),
        )

    def walk_pairs(
        self,
        older: Images,
        newer: Images,
        planned: Plan,
        indices: Numbers,
        wrappers: Sequence[Wrapper] = (),
    ) -> tuple[Images, Images]:
        """Take a whole walk over pairs of states, and return the pair it led to; see
        `samplers.walk_pairs`.
        """

        def walk_on_device(older, newer, table, number, indices, arrays):
            denoise = self.wrapped(wrappers, arrays, np.uint32(0), indices)
            pair = (ops.convert_to_tensor(state, dtype="float32") for state in (older, newer))
            return walk_pairs(denoise, *pair, ops.convert_to_tensor(table), number)

        number = np.int32(planned.ends[-1])
        return self.on_device(
            "walk_pairs",
            walk_on_device,
            wrappers,
            older,
            newer,
            planned.table,
            number,
            indices,
            axes=(0, 0, -1, -1, 0),
            output_axes=(0, 0),
        )

    def on_device(
        self,
        name: str,
        function: Callable,
        wrappers: Sequence[Wrapper],
        *arguments: Any,
        axes: Sequence[int] | None = None,
        output_axes: Any = (),
    ) -> Any:
        """Call a function of (*arguments, arrays of the wrappers), compiled once for its name and
        the wrappers' keys.

        Args:
            axes: of each argument the axis of the batch, -1 if it has none: where there are several
                devices, each works on a part. None is one device's work.
            output_axes: likewise of what it returns.
        """
        key = (name, *(wrapper.key for wrapper in wrappers))
        variables = [variable for wrapper in wrappers for variable in wrapper.variables]
        values = [value for wrapper in wrappers for value in wrapper.values]
        along: tuple[Any, ...] = ()
        if axes is not None:
            along = (*axes, tuple(tuple(wrapper.axes) for wrapper in wrappers))

        def with_weights_cast(*arguments: Any) -> Any:
            with backend.weights_cast_once(self.network):
                return function(*arguments)

        compiled = self._compile(
            key, with_weights_cast, variables, axes=along, output_axes=output_axes
        )
        arrays = tuple(wrapper.arrays for wrapper in wrappers)
        return compiled([*self.held_values(), *values], *arguments, arrays)

    def walk_on_device(
        self,
        wrappers: Sequence[Wrapper],
        noisy_images: Images,
        memory: Tensor,
        table: Tensor,
        first: Tensor,
        last: Tensor,
        seed: Tensor,
        indices: Tensor,
        arrays: Sequence[Sequence[Tensor]] = (),
    ) -> tuple[Images, Tensor, Images]:
        """As `walk_part`, to be compiled as a part of something else. `arrays` are those of the
        wrappers.
        """

        denoise = self.wrapped(wrappers, arrays, seed, indices)
        noisy_images = ops.convert_to_tensor(noisy_images, dtype="float32")
        memory = ops.convert_to_tensor(memory, dtype="float32")
        draw_noises = self._noises_of(seed, indices)
        return walk(
            denoise, noisy_images, memory, ops.convert_to_tensor(table), first, last, draw_noises
        )

    def wrapped(
        self, wrappers: Sequence[Wrapper], arrays: Sequence, seed: Tensor, indices: Tensor
    ) -> Denoiser:
        """Return the network's denoiser with the wrappers around it, to be compiled as a part of
        something else.
        """
        denoise, draw_noises = self.denoise, self._noises_of(seed, indices)
        for wrapper, own in zip(wrappers, arrays):
            denoise = wrapper.wrap(denoise, own, draw_noises)
        return denoise

    def _noises_of(self, seed: Tensor, indices: Tensor) -> Callable[[Tensor], Images]:
        return lambda number: random.normal(seed, number, indices, self.image_shape)

    @staticmethod
    def no_memory(noisy_images: Images) -> Tensor:
        """What a walk remembers at its start."""
        return ops.stack([ops.zeros_like(noisy_images, dtype="float32")] * MEMORY)

    def held_values(self) -> list[Tensor]:
        """Return the values of `variables` within `weights_held`, for a compiled function."""
        if getattr(self._held, "values", None) is None:
            raise RuntimeError("a walk needs `with engine.weights_held():` around it")
        return self._held.values

    def compile(self, function: Callable) -> Callable:
        """Return a function that reads the network's variables, compiled, as a function of (their
        values, *arguments).
        """
        return backend.compile_function(function, self.variables, self._jit_compile())

    def compile_gradient(self, function: Callable, variables: Sequence[Variable] = ()) -> Callable:
        """Return the gradient of a function of (parameters, *arguments) that reads the network's
        variables, and further ones, as a function of (their values, parameters, *arguments).
        """
        variables = [*self.variables, *variables]
        return backend.compile_gradient(function, variables, self._jit_compile())

    def _compile(
        self,
        key: Any,
        function: Callable,
        variables: Sequence = (),
        *,
        axes: Any,
        output_axes: Any,
    ) -> Callable:
        jit_compile = self._jit_compile()
        with self.lock:
            if (key, jit_compile) not in self._compiled:
                self._compiled[key, jit_compile] = backend.compile_function(
                    function, [*self.variables, *variables], jit_compile, axes, output_axes
                )
            return self._compiled[key, jit_compile]

    # Arguments

    def seed(self, seed: int | None) -> int:
        """Return a user's seed, checked, or the next of the model's own."""
        if seed is not None:
            return integer("seed", seed, minimum=0, below=2**32)
        _refuse_a_graph()
        with self.lock:
            self._before_use()
            seed, count = (int(part) for part in ops.convert_to_numpy(self._seeds.next()))
        return (seed + count * _GOLDEN_RATIO_BITS) % 2**32

    def latents(self, latents: Images, name: str) -> ImageArray:
        """Return latents as a user gives them, checked.

        Raises:
            ValueError: a wrong shape, or NaN or infinity.
        """
        try:
            latents = np.asarray(latents, "float32")
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} must be an array of numbers (batch, "
                f"{', '.join(map(str, self.image_shape))}), got {type(latents).__name__}; pairs of "
                'states, of encode(exact="algebra"), are for decode'
            ) from None
        inputs.check_shape(latents.shape, self.image_shape, name)
        if not np.isfinite(latents).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        return latents

    def batch_size(self, batch_size: int | None) -> int:
        """Return a user's batch size, checked, or the default, which is smaller for large
        images.
        """
        if batch_size is not None:
            return positive_int("batch_size", batch_size)
        pixels = self.image_shape[0] * self.image_shape[1]
        return self.devices * max(1, min(_DEFAULT_BATCH_SIZE, _DEFAULT_BATCH_PIXELS // pixels))

    @property
    def devices(self) -> int:
        """Among how many devices the batches are divided."""
        return backend.devices_of_walks(self.variables)

    def batches(
        self, num_images: int, batch_size: int | None, verbose: str | int
    ) -> Iterator[Batch]:
        """Yield the batches that `num_images` images are made in, showing a progress bar if
        asked.

        Raises:
            RuntimeError: inside a tf.function.
        """
        _refuse_a_graph()
        size = self.batch_size(batch_size)
        if num_images < size:
            size = min([size, *(small for small in _SMALL_BATCHES if small >= num_images)])
        size += -size % self.devices
        starts = range(0, num_images, size)
        show = verbose == 1 or (verbose == "auto" and len(starts) > 1)
        bar = progress(num_images, "images") if show else None
        for start in starts:
            stop = min(start + size, num_images)
            yield Batch(start, stop, np.arange(start, start + size, dtype="int32"))
            if bar is not None:
                bar.update(stop)


def _refuse_a_graph() -> None:
    if backend.in_graph():
        raise RuntimeError(
            "images are made as NumPy arrays, batch by batch, which a tf.function cannot do: "
            "call generate and its like outside of it, in a callback say, or with "
            "run_eagerly=True; inside there is reverse_diffusion(noise, diffusion_steps)"
        )
