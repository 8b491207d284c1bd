"""Random numbers that depend on (seed, image, step) alone.

`keras.random` draws a whole batch from one seed, so an image would change with the batch it is made
in, and with the backend. Sampling needs image 17 of seed 7 to be the same image alone, among
50,000, on the TensorFlow and the JAX backend, on a CPU and on a TPU. A counter-based generator
gives that: each number is a hash of where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from keras import ops

from ddim_keras.support import backend
from ddim_keras.support.types import Tensor

MOST_IMAGES = 2**31  # of a seed: the number of an image is an int32
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(
    key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Threefry-2x32 with 20 rounds: 64 bits of counter to 64 random bits under a 64-bit key.

    Args:
        key: two uint32 tensors.
        counter: two uint32 tensors; all four broadcast together.

    Returns:
        Two uint32 tensors.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    keys = (*key, ops.bitwise_xor(ops.bitwise_xor(key[0], key[1]), _uint32(_PARITY)))
    left, right = counter[0] + keys[0], counter[1] + keys[1]
    shifts = [[(_uint32(by), _uint32(32 - by)) for by in group] for group in _ROTATIONS]
    for group in range(5):
        for to_left, to_right in shifts[group % 2]:
            left = left + right
            rotated = ops.bitwise_or(
                ops.left_shift(right, to_left), ops.right_shift(right, to_right)
            )
            right = ops.bitwise_xor(left, rotated)
        left = left + keys[(group + 1) % 3]
        right = right + keys[(group + 2) % 3] + _uint32(group + 1)
    return left, right


def normal(seed: Tensor, step: Tensor, image_indices: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, one block for each image, fixed by (seed, step, image index) alone.

    Args:
        seed: uint32 scalar.
        step: uint32 scalar; 0 for the initial noise, i for the noise added after the i-th sampling
            step.
        image_indices: uint32 tensor of shape (batch,).
        image_shape: (height, width, channels).

    Returns:
        float32 tensor of shape (batch, height, width, channels). The largest magnitude that can
        occur is 5.8.

    Source: Box & Muller 1958, on 24-bit uniforms.
    """
    seed, step, images = (ops.cast(part, "uint32") for part in (seed, step, image_indices))
    return _normal(seed, step, images, tuple(image_shape))


@backend.traced_once
def _normal(seed: Tensor, step: Tensor, images: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    size = math.prod(image_shape)
    pairs = (size + 1) // 2
    images = ops.expand_dims(images, 1)
    positions = ops.expand_dims(ops.cast(ops.arange(pairs, dtype="int32"), "uint32"), 0)
    # Whole (batch, pairs) arrays from the start: the broadcast is made once, not in every round.
    images, positions = images + ops.zeros_like(positions), positions + ops.zeros_like(images)
    first, second = threefry2x32((seed, step), (images, positions))
    # Never 0, so the logarithm is finite.
    radii = ops.sqrt(-2.0 * ops.log(unit_interval(first)))
    angles = (2.0 * math.pi) * unit_interval(second)
    flat = ops.concatenate([radii * ops.cos(angles), radii * ops.sin(angles)], axis=1)
    return ops.reshape(flat[:, :size], (-1, *image_shape))


def uniform(seed: Tensor, step: Tensor, image_indices: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers in (0, 1), one block for each image, fixed by (seed, step, image index) alone.

    Args:
        seed, step, image_indices: as for `normal`.
        shape: of one image's block.

    Returns:
        float32 tensor of shape (batch, *shape).
    """
    size = math.prod(shape)
    seed, step = ops.cast(seed, "uint32"), ops.cast(step, "uint32")
    images = ops.expand_dims(ops.cast(image_indices, "uint32"), 1)
    positions = ops.expand_dims(ops.cast(ops.arange(size, dtype="int32"), "uint32"), 0)
    images, positions = images + ops.zeros_like(positions), positions + ops.zeros_like(images)
    bits, _ = threefry2x32((seed, step), (images, positions))
    return ops.reshape(unit_interval(bits), (-1, *shape))


def unit_interval(bits: Tensor) -> Tensor:
    """Return uint32 bits as float32 in (0, 1], the middles of 2^24 cells: never 0."""
    high_bits = ops.cast(ops.cast(ops.right_shift(bits, _uint32(8)), "int32"), "float32")
    return (high_bits + 0.5) * 2.0**-24


def _uint32(value: int) -> Tensor:
    return ops.convert_to_tensor(value, dtype="uint32")
