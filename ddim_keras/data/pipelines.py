"""From a data set of single images to batches: kept, shuffled, mirrored, begun at any step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddim_keras.data import seeded
from ddim_keras.support.types import BatchLike, Dataset, Tensor

# Shuffling holds up to this many bytes of images; data sets below it are shuffled as a whole.
_SHUFFLE_BYTES = 512 * 2**20
_EPOCH_STRIDE = (
    1_000_003  # between the seeds of epochs, so that those of other runs fall between them
)


class Shuffling(NamedTuple):
    """How training images come; the fields are arguments of `load_dataset`."""

    batch_size: int
    repeat: int
    flip: bool
    seed: int
    drop_remainder: bool | None
    part: tuple[int, int] = (0, 1)


def training_batches(
    dataset: Dataset,
    image_shape: tuple[int, ...],
    shuffling: Shuffling,
    kind: str,
    read: Callable | None = None,
    key_bytes: int = 0,
) -> Dataset:
    """Return shuffled batches of a data set, ready for `fit`, which have a `from_step`.

    Args:
        dataset: uint8 images, each with its label or condition; or what `read` makes those of.
        image_shape: (height, width, channels).
        shuffling: how.
        kind: of the batches, as for `finished`.
        read: called with each example after the data set is shuffled, of a part only with those
            of the part.
        key_bytes: of an example before it is read, on average.
    """
    import tensorflow as tf

    batch_size, repeat, flip, seed, drop_remainder, part = shuffling
    count = int(dataset.cardinality()) * repeat
    room = max(10 * batch_size, _SHUFFLE_BYTES // max(int(np.prod(image_shape)), key_bytes))
    room = min(room, count) if count > 0 else room
    if drop_remainder is None:
        drop_remainder = count < 0 or count >= batch_size
    if repeat > 1:
        dataset = dataset.repeat(repeat)

    def batched(shuffled: Dataset, seeds: Dataset, part: tuple[int, int]) -> Dataset:
        own = _own_part(batch_size, drop_remainder, part)
        if part[1] > 1:
            whole = shuffled.batch(batch_size, drop_remainder=True)
            shuffled = whole.map(lambda *parts: tuple(each[own] for each in parts)).unbatch()
        if read is not None:
            shuffled = shuffled.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        batches = shuffled.batch(batch_size // part[1], drop_remainder=drop_remainder)
        if flip:
            batches = tf.data.Dataset.zip(batches, seeds).map(
                functools.partial(_flipped, kind, part), num_parallel_calls=tf.data.AUTOTUNE
            )
        return batches

    train = finished(
        batched(
            dataset.shuffle(room, seed=seed),
            tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True),
            part,
        ),
        kind,
    )
    if part[1] > 1 and count > 0:  # taken apart and joined, a data set does not know it
        number = count // batch_size if drop_remainder else -(-count // batch_size)
        train = train.apply(tf.data.experimental.assert_cardinality(number))

    def from_step(step: int, part: tuple[int, int] = part) -> Dataset:
        steps = int(train.cardinality())
        if steps < 1:
            raise ValueError("from_step needs training data of known length")

        def epoch(number: Tensor) -> Dataset:
            epoch_seed = number * _EPOCH_STRIDE + seed
            shuffled, seeds = seeded.shuffled(dataset, room, epoch_seed), seeded.random(epoch_seed)
            batches = batched(shuffled, seeds, part)
            return finished(batches.skip(tf.where(number == first, done, 0)), kind)

        # Without a loop in Python: its thread may need the interpreter when that has ended already.
        first, done = (tf.constant(part, tf.int64) for part in divmod(step, steps))
        epochs = tf.data.Dataset.counter(first, dtype=tf.int64)
        batches = epochs.flat_map(epoch).prefetch(2)
        batches.is_part = part[1] > 1
        return batches

    train.from_step, train.is_part = from_step, part[1] > 1
    return train


def finished(dataset: Dataset, kind: str) -> Dataset:
    """Return batches of uint8 images as `fit` takes them, in [0, 1].

    Args:
        dataset: (images, labels or conditions).
        kind: "images" leaves the second part out, "labels" keeps it, and "pairs" makes dictionaries
            with "images" and "condition".
    """
    import tensorflow as tf

    def as_floats(images, told):
        images = tf.cast(images, tf.float32) / 255.0
        if kind == "pairs":
            return {"images": images, "condition": tf.cast(told, tf.float32) / 255.0}
        return (images, told) if kind == "labels" else images

    return dataset.map(as_floats, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _own_part(batch_size: int, drop_remainder: bool, part: tuple[int, int]) -> slice:
    """Which examples of every batch are this part's.

    Raises:
        ValueError: the part is none, or the batches cannot be divided evenly.
    """
    index, parts = part
    if not (isinstance(index, int) and isinstance(parts, int) and 0 <= index < parts):
        raise ValueError(
            f"part must be (i, n), the i-th of n parts counted from 0, such as (0, 2), got {part!r}"
        )
    if batch_size % parts:
        raise ValueError(
            f"a batch of {batch_size} images cannot be divided into {parts} equal parts: give "
            f"batch_size={batch_size + -batch_size % parts}, or another number of parts"
        )
    if parts > 1 and not drop_remainder:
        raise ValueError(
            "batches that are divided into parts must all be whole: leave drop_remainder out, and "
            "give at least as many images as a batch has"
        )
    size = batch_size // parts
    return slice(index * size, (index + 1) * size)


def _flipped(kind: str, part: tuple[int, int], batch: BatchLike, seed: Tensor) -> BatchLike:
    import tensorflow as tf

    images, told = batch
    number = tf.shape(images)[0]
    chances = tf.random.stateless_uniform((number * part[1], 1, 1, 1), seed=(seed, 0))
    chances = chances[part[0] * number : (part[0] + 1) * number]

    def flipped(pictures):
        return tf.where(chances < 0.5, pictures[:, :, ::-1], pictures)

    return flipped(images), flipped(told) if kind == "pairs" else told
