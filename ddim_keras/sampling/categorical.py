"""Generating categories: the walk of the paper's appendix A, from chance to images of levels, label
maps or sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from ddim_keras.data.categories import checked_categories
from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.diffusion.categorical import step_weights
from ddim_keras.diffusion.parameterizations import ImageParameterization
from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.diffusion.spacings import Spacing, diffusion_times, levels_of
from ddim_keras.networks.layers import ImageNormalization
from ddim_keras.sampling.choices import EVEN_TIMES
from ddim_keras.sampling.engine import Engine
from ddim_keras.support import random
from ddim_keras.support.arguments import integer
from ddim_keras.support.types import Numbers, Tensor

# Tables are padded to this many rows, so that other numbers of steps do not compile anew.
_TABLE_ROWS = 1024
# The draw of x_T, beyond the numbers of the steps.
_START = 0


class CategoricalEngine(Engine):
    """An `Engine` whose network finds chances of categories.

    Args:
        network: of [one-hot categories, noise levels], which returns logits of the same shape.
        shape: of one image, (height, width) or (height, width, channels), or of one sequence,
            (length,).
        categories: K.
        schedule: what the network was trained on.
        **kwargs: `seeds`, `compute_dtype`, `jit_compile` and `before_use`, as for `Engine`.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        shape: tuple[int, ...],
        categories: int,
        schedule: Schedule,
        **kwargs: Any,
    ):
        self.shape, self.categories = shape, categories
        height, width, channels = (*shape, 1, 1)[:3]
        image_shape = (height, width, channels * categories)
        normalizer = ImageNormalization(name="one_hot")
        normalizer.build((None, *image_shape))
        normalizer.fix(mean=0.0, deviation=1.0)
        super().__init__(
            network,
            image_shape=image_shape,
            schedule=schedule,
            parameterization=ImageParameterization(),
            spec=ConditionSpec(),
            normalizer=normalizer,
            **kwargs,
        )
        self.network = network

    def chances(self, states: Tensor, noise_levels: Tensor) -> Tensor:
        """Return the network's chances of x_0, float32 (batch, *shape, K); see `logits_of`."""
        logits = logits_of(self.network, states, noise_levels, self.categories, training=False)
        return ops.softmax(logits, axis=-1)


def logits_of(
    network: keras.Model, states: Tensor, noise_levels: Tensor, categories: int, training: bool
) -> Tensor:
    """Return what a network says of x_0, float32 logits (batch, *shape, K).

    Args:
        network: of [one-hot categories, noise levels]. Channels and categories share its last axis.
        states: x_t, int32 (batch, *shape).
        noise_levels: a scalar, or (batch,).
        categories: K.
        training: as for `keras.Model.call`.
    """
    one_hot = ops.one_hot(states, categories, dtype="float32")
    wanted = tuple(network.inputs[0].shape[1:])
    number = ops.shape(states)[0]
    levels = ops.broadcast_to(noise_levels, (number,))
    levels = ops.reshape(levels, (-1, *(1,) * len(wanted)))
    logits = network([ops.reshape(one_hot, (-1, *wanted)), levels], training=training)
    return ops.reshape(ops.cast(logits, "float32"), (-1, *states.shape[1:], categories))


def drawn(chances: Tensor, uniforms: Tensor) -> Tensor:
    """Return categories, int32 (...), drawn by their chances (..., K), given numbers in (0, 1)."""
    below = ops.cumsum(chances, axis=-1)[..., :-1]
    return ops.sum(ops.cast(ops.expand_dims(uniforms, -1) > below, "int32"), axis=-1)


def generate_categories(
    engine: CategoricalEngine,
    num_images: int,
    diffusion_steps: int | Sequence[float] = 50,
    *,
    eta: float = 0.0,
    spacing: str | Spacing = EVEN_TIMES,
    initial: Tensor = None,
    first_image: int = 0,
    seed: int | None = None,
    batch_size: int | None = None,
    verbose: str | int = "auto",
) -> Numbers:
    """Make images of categories, label maps or sequences.

    Each step draws every pixel by itself, from what is there, what the network predicts and chance
    (the paper's appendix A).

    Args:
        num_images: how many.
        diffusion_steps: S, or the times to walk over, as for `DiffusionModel.generate`.
        eta: in [0, 1]; 0 keeps of each state as much as can be, 1 draws each state anew from the
            prediction and chance.
        spacing: where the times lie.
        initial: (num_images, *shape), categories to start from; None draws them.
        first_image: number of the first image: image i of a seed is the same in any batch.
        seed: fixes the images; None takes the next of the model's own.
        batch_size: images at a time; None for as many as fit.
        verbose: 1 shows a progress bar, 0 none, "auto" one where there are several batches.

    Returns:
        int32 array (num_images, *shape), from 0 to K - 1.

    Raises:
        ValueError: an argument out of its range.

    Examples:

    >>> from ddim_keras import CategoricalDiffusionModel
    >>> model = CategoricalDiffusionModel((8, 8), categories=3, widths=[8], block_depth=1)
    >>> model.generate(2, 5, seed=0).shape
    (2, 8, 8)
    """
    number = integer("num_images", num_images, minimum=1, below=random.MOST_IMAGES)
    first = integer("first_image", first_image, minimum=0, below=random.MOST_IMAGES - number)
    if initial is not None:
        initial = checked_categories(initial, engine.shape, engine.categories, "initial")
        if len(initial) != number:
            raise ValueError(f"initial must hold {number} images, num_images, got {len(initial)}")
    table, steps = _table(engine, diffusion_steps, spacing, eta)
    seed = engine.seed(seed)
    result = np.empty((number, *engine.shape), "int32")
    for batch in engine.batches(number, batch_size, verbose):
        numbers = (np.int32(steps), np.uint32(seed), (batch.indices + first).astype("int32"))
        if initial is None:
            found = engine.on_device("categories", _walk_of(engine), [], table, *numbers)
        else:
            start = (table, *numbers, batch.of(initial))
            found = engine.on_device("categories_from", _walk_of(engine), [], *start)
        found, finite = (ops.convert_to_numpy(part) for part in found)
        if not finite:
            raise FloatingPointError(
                engine.broken_weights()
                or f"the network's chances are not finite: it computes in {engine.compute_dtype}"
            )
        result[batch.start : batch.stop] = found[: batch.stop - batch.start]
    return result


def _table(
    engine: CategoricalEngine,
    diffusion_steps: int | Sequence[float],
    spacing: str | Spacing,
    eta: float,
) -> tuple[npt.NDArray[np.float32], int]:
    """Return a row a step, (what the network is told, weights of x_t, x_0 and chance), and how
    many.
    """
    schedule = engine.schedule
    signals, noises = levels_of(schedule, diffusion_times(diffusion_steps, spacing, schedule))
    steps = len(signals) - 1
    table = np.zeros((max(_TABLE_ROWS, 1 << (steps - 1).bit_length()), 4), "float32")
    table[:steps, 0] = schedule.conditions(signals[:-1], noises[:-1])
    table[:steps, 1:] = step_weights(signals[:-1] ** 2, signals[1:] ** 2, eta)
    return table, steps


def _walk_of(engine: CategoricalEngine) -> Callable:
    """Return a function, to be compiled, of (table, steps, seed, indices, ..., arrays): the states
    where the walk led, and whether all chances were finite.
    """
    shape, categories = engine.shape, engine.categories

    def walk(table, steps, seed, indices, *others):
        *initial, _ = others
        table = ops.convert_to_tensor(table)
        if initial:
            states = ops.convert_to_tensor(initial[0], dtype="int32")
        else:
            start = random.uniform(seed, _START, indices, shape)
            states = ops.minimum(ops.cast(start * categories, "int32"), categories - 1)

        def step(index, states, finite):
            told, stays, predicted, uniform = ops.unstack(ops.take(table, index, axis=0), num=4)
            found = engine.chances(states, told)
            finite = ops.logical_and(finite, ops.all(ops.isfinite(found)))
            chances = predicted * found + uniform / categories
            chances = chances + stays * ops.one_hot(states, categories, dtype="float32")
            return (
                index + 1,
                drawn(chances, random.uniform(seed, index + 1, indices, shape)),
                finite,
            )

        finite = ops.convert_to_tensor(True)
        start = (ops.zeros_like(steps), states, finite)
        _, states, finite = ops.while_loop(lambda index, *_: index < steps, step, start)
        return states, finite

    return walk
