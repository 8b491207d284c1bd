"""From a data set of single images to batches: kept, shuffled, mirrored, begun at any step."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np

from ddim_keras.data import seeded
from ddim_keras.support import files
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


def cached(dataset: Dataset, cache: bool | str | os.PathLike, name: str, identity: str) -> Dataset:
    """Keep a data set in memory, in a folder of a cache, or nowhere.

    Args:
        dataset: of resized images.
        cache: as for `load_dataset`.
        name: of the folder.
        identity: tells the data set from others of the same name.
    """
    import tensorflow as tf

    if cache is True:
        return dataset.cache()
    if cache is False:
        return dataset
    # tf.data's own cache file is left locked by a killed process; a folder that is renamed when
    # whole is not.
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    place = pathlib.Path(cache) / f"{name}_{digest}"
    if not place.exists():
        with files.written_beside(place) as temporary:
            dataset.save(str(temporary))
    return tf.data.Dataset.load(str(place))


def training_batches(
    dataset: Dataset, image_shape: tuple[int, ...], shuffling: Shuffling, kind: str
) -> Dataset:
    """Return shuffled batches of a data set, ready for `fit`, which have a `from_step`.

    Args:
        dataset: uint8 images, each with its label or condition.
        image_shape: (height, width, channels).
        shuffling: how.
        kind: of the batches, as for `finished`.
    """
    import tensorflow as tf

    batch_size, repeat, flip, seed, drop_remainder = shuffling
    count = int(dataset.cardinality()) * repeat
    room = max(10 * batch_size, _SHUFFLE_BYTES // int(np.prod(image_shape)))
    room = min(room, count) if count > 0 else room
    if drop_remainder is None:
        drop_remainder = count < 0 or count >= batch_size
    if repeat > 1:
        dataset = dataset.repeat(repeat)

    def batched(shuffled: Dataset, seeds: Dataset) -> Dataset:
        batches = shuffled.batch(batch_size, drop_remainder=drop_remainder)
        if flip:
            batches = tf.data.Dataset.zip(batches, seeds).map(
                functools.partial(_flipped, kind), num_parallel_calls=tf.data.AUTOTUNE
            )
        return batches

    train = finished(
        batched(
            dataset.shuffle(room, seed=seed),
            tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True),
        ),
        kind,
    )

    def from_step(step: int) -> Dataset:
        steps = int(train.cardinality())
        if steps < 1:
            raise ValueError("from_step needs training data of known length")

        def epoch(number: Tensor) -> Dataset:
            epoch_seed = number * _EPOCH_STRIDE + seed
            shuffled, seeds = seeded.shuffled(dataset, room, epoch_seed), seeded.random(epoch_seed)
            batches = batched(shuffled, seeds)
            return finished(batches.skip(tf.where(number == first, done, 0)), kind)

        # Without a loop in Python: its thread may need the interpreter when that has ended already.
        first, done = (tf.constant(part, tf.int64) for part in divmod(step, steps))
        epochs = tf.data.Dataset.counter(first, dtype=tf.int64)
        return epochs.flat_map(epoch).prefetch(2)

    train.from_step = from_step
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


def _flipped(kind: str, batch: BatchLike, seed: Tensor) -> BatchLike:
    import tensorflow as tf

    images, told = batch
    chances = tf.random.stateless_uniform((tf.shape(images)[0], 1, 1, 1), seed=(seed, 0))

    def flipped(pictures):
        return tf.where(chances < 0.5, pictures[:, :, ::-1], pictures)

    return flipped(images), flipped(told) if kind == "pairs" else told
