"""What a replica does that has a part of every batch: what one device would do with that part.

TensorFlow's strategies copy the model to several devices, and each copy sees its images alone. The
copies hold the same seeds, so each can work out which random numbers its images would get if one
device had the whole batch. On JAX one program sees whole batches, and all of this is Keras's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
from keras import ops

from ddim_keras.support import backend
from ddim_keras.support.types import Shape, Tensor

# Philox makes so many numbers of one count of its counter (Salmon et al. 2011).
_NUMBERS_OF_A_COUNT = 4


def uniform(shape: Shape, seed: keras.random.SeedGenerator, dtype: str = "float32") -> Tensor:
    """Return uniform numbers in [0, 1), one block for each image of this replica, (batch, ...)."""
    return _part_of_the_batch(keras.random.uniform, "uniform", shape, seed, dtype)


def normal(shape: Shape, seed: keras.random.SeedGenerator) -> Tensor:
    """Return standard normal numbers, one block for each image of this replica, (batch, ...)."""
    return _part_of_the_batch(keras.random.normal, "normal", shape, seed, "float32")


def places(first: Tensor, number: Tensor) -> Tensor:
    """Return the places of this replica's images among all, int32 (number,).

    Args:
        first: how many images this replica has seen before; their sum over the replicas are all.
        number: of its images in this batch; the others have as many.
    """
    replica, replicas = backend.replica()
    own = ops.arange(number, dtype="int32")
    first = ops.cast(first, "int32")
    if replicas == 1:
        return first + own
    return backend.sum_over_replicas(first) + replica * number + own


def _part_of_the_batch(
    draw: Callable, kind: str, shape: Shape, seed: keras.random.SeedGenerator, dtype: str
) -> Tensor:
    replica, replicas = backend.replica()
    if replicas == 1:
        return draw(shape, dtype=dtype, seed=seed)
    number, *rest = shape
    size = math.prod(rest) if all(isinstance(side, int) for side in rest) else None
    if size is not None and size % _NUMBERS_OF_A_COUNT == 0:
        skipped = ops.cast(replica * number, "int64") * (size // _NUMBERS_OF_A_COUNT)
        return backend.random_numbers_from(kind, shape, seed.next(), skipped, dtype)
    whole = draw((number * replicas, *rest), dtype=dtype, seed=seed)
    return whole[replica * number : (replica + 1) * number]
