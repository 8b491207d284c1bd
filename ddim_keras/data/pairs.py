"""Images with what they are to be made from: small ones, grey ones, or a second folder's."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddim_keras.data import (
    batches,
    colours,
    depth,
    finding,
    folder,
    inputs,
    loading,
    pipelines,
    resizing,
)
from ddim_keras.data.source import Wanted
from ddim_keras.support.arguments import height_and_width, positive_int
from ddim_keras.support.types import Condition, Dataset, Images, Split

if TYPE_CHECKING:
    import tensorflow as tf

# Of red, green and blue in what the eye sees as brightness (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)
_NAMED = 5  # in a message


def super_resolution(dataset: Dataset, factor: int) -> Dataset:
    """Pair images with smaller ones, to train a model that makes large images of small ones.

    Args:
        dataset: a `tf.data.Dataset` of batches as `load_dataset` makes them, or arrays: images,
            (images, labels) or a dictionary.
        factor: by how much the small ones are smaller: each of their pixels is the mean of factor x
            factor pixels.

    Returns:
        Of a data set one of dictionaries, "images" and "condition" (batch, height / factor, width /
        factor, channels) float32 in [0, 1], and "labels" if there are some; of arrays one such
        dictionary. `fit` takes both.

    Raises:
        ValueError: the images' sizes are no multiples of the factor.

    Examples:

    >>> pairs = super_resolution(np.zeros((2, 32, 32, 3), "float32"), factor=4)
    >>> pairs["condition"].shape
    (2, 8, 8, 3)
    """
    factor = positive_int("factor", factor)

    def small(images: Images) -> Images:
        height, width = images.shape[1:3]
        if height is None or width is None or height % factor or width % factor:
            raise ValueError(
                f"images of {height} x {width} pixels cannot be made smaller by {factor}: their "
                "sizes must be known, and multiples of it"
            )
        channels = images.shape[3]
        blocks = (-1, height // factor, factor, width // factor, factor, channels)
        return _mean_of_blocks(_as_floats(images), blocks)

    return _paired(dataset, small)


def colorization(dataset: Dataset) -> Dataset:
    """Pair colour images with their grey ones, to train a model that colours images.

    Args:
        dataset: as for `super_resolution`, of 3 channels.

    Returns:
        As `super_resolution`, with "condition" (batch, height, width, 1).

    Raises:
        ValueError: images of another number of channels.

    Examples:

    >>> colorization(np.ones((2, 8, 8, 3), "float32"))["condition"].shape
    (2, 8, 8, 1)
    """

    def grey(images: Images) -> Images:
        if images.shape[-1] != 3:
            raise ValueError(
                f"colorization needs images of 3 channels, got {images.shape[-1]}: load them with "
                "channels=3"
            )
        weighted = _as_floats(images) * np.array(_LUMA, "float32")
        return weighted[..., :1] + weighted[..., 1:2] + weighted[..., 2:]

    return _paired(dataset, grey)


def load_folders(
    images: str | os.PathLike,
    conditions: str | os.PathLike,
    image_size: int | Sequence[int],
    condition_size: int | Sequence[int] | None = None,
    batch_size: int = 64,
    *,
    split: Split = None,
    channels: int | None = None,
    condition_channels: int | None = None,
    fit: str = "crop",
    flip: bool = False,
    seed: int = 0,
    drop_remainder: bool | None = None,
    background: str | Sequence[int] = "white",
) -> tuple[tf.data.Dataset, tf.data.Dataset | None]:
    """Load two folders whose images belong together by their names, such as photos and sketches.

    Args:
        images: the folder of what is to be made.
        conditions: the folder of what it is made from: the same names, whatever their suffixes.
        image_size, condition_size: sides in pixels, or (height, width); the second is as the first
            if it is None.
        batch_size, split, fit, flip, seed, drop_remainder, background: as for `load_dataset`; both
            images of a pair are mirrored together.
        channels, condition_channels: 1, 3 or 4; None keeps the folders' own.

    Returns:
        (train, validation) of dictionaries with "images" and "condition", float32 in [0, 1], as by
        `load_dataset`.

    Raises:
        ValueError: names that are in one folder alone, or as for `load_dataset`.
    """
    size = height_and_width(image_size)
    sizes = (size, size if condition_size is None else height_and_width(condition_size))
    for each in (channels, condition_channels):
        loading.check_choices(each, fit)
    depth.check_bits(None)
    colour = colours.parse_colour(background)
    roots = [pathlib.Path(place).expanduser() for place in (images, conditions)]
    _check_names(roots)
    # One seed and one order of names divide both in the same way.
    sources = [
        folder.from_images(root, Wanted(split, wanted, seed, False, "refuse", colour, None))
        for root, wanted in zip(roots, (channels, condition_channels))
    ]
    depths = [
        wanted or source.channels for wanted, source in zip((channels, condition_channels), sources)
    ]

    def paired(parts: list[Dataset]) -> Dataset:
        import tensorflow as tf

        def resized(example, other):
            return tuple(
                resizing.fit_image(image, each, count, fit, colour)
                for (image, _), each, count in zip((example, other), sizes, depths)
            )

        zipped = tf.data.Dataset.zip(*parts)
        return zipped.map(resized, num_parallel_calls=tf.data.AUTOTUNE).cache()

    shuffling = pipelines.Shuffling(batch_size, 1, flip, seed, drop_remainder)
    train = pipelines.training_batches(
        paired([source.train.decoded() for source in sources]),
        (*sizes[0], depths[0]),
        shuffling,
        "pairs",
    )
    if sources[0].validation is None:
        return train, None
    kept = [source.validation for source in sources]
    held_out = paired([examples.decoded() for examples in kept if examples is not None])
    return train, pipelines.finished(held_out.batch(batch_size), "pairs")


def _check_names(roots: Sequence[pathlib.Path]) -> None:
    names = []
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"no such folder: {root}")
        found = ["/".join(parts).rsplit(".", 1)[0] for parts in finding.find_images(root).images]
        twice = [name for name, count in collections.Counter(found).items() if count > 1]
        if twice:
            listing = ", ".join(sorted(twice)[:_NAMED])
            raise ValueError(f"{root} has several images of one name, such as {listing}")
        names.append(set(found))
    alone = [sorted(ours - theirs) for ours, theirs in (names, names[::-1])]
    for root, missing in zip(reversed(roots), alone):
        if missing:
            listing = ", ".join(missing[:_NAMED])
            raise ValueError(
                f"{root} lacks {len(missing)} of the images that the other folder has, such as "
                f"{listing}: both must hold the same names"
            )


def _paired(dataset: Dataset, condition_of: Callable[[Images], Condition]) -> Dataset:
    """Add what `condition_of` makes of images to a data set or to arrays."""

    def with_condition(batch: batches.Batch) -> dict[str, Any]:
        told = {} if batch.labels is None else {"labels": batch.labels}
        if batch.sample_weight is not None:
            told["sample_weight"] = batch.sample_weight
        return {"images": batch.images, "condition": condition_of(batch.images), **told}

    if inputs.is_tf_dataset(dataset):
        import tensorflow as tf

        @tf.autograph.experimental.do_not_convert  # which would wrap errors in its own words
        def pair_of(*element: Any) -> dict[str, Any]:
            return with_condition(batches.taken_apart(element if len(element) > 1 else element[0]))

        def mapped(source: Dataset) -> Dataset:
            return source.map(pair_of, num_parallel_calls=2).prefetch(2)

        pairs = mapped(dataset)
        if hasattr(dataset, "from_step"):

            def from_step(step: int, **part: Any) -> Dataset:
                batches = dataset.from_step(step, **part)
                mapped_batches = mapped(batches)
                mapped_batches.is_part = batches.is_part
                return mapped_batches

            pairs.from_step = from_step
        if hasattr(dataset, "class_names"):
            pairs.class_names = dataset.class_names
        return pairs
    if inputs.is_one_piece(dataset):
        batch = batches.taken_apart(dataset)
        return with_condition(batch._replace(images=np.asarray(batch.images)))
    raise ValueError(
        "pairs are made of arrays or of a tf.data.Dataset of batches, got a "
        f"{type(dataset).__name__}"
    )


def _as_floats(images: Images) -> Images:
    """Images as float32 in [0, 1], by the library that they are of."""
    if isinstance(images, np.ndarray):
        floats = images.astype("float32")
        return floats / 255.0 if images.dtype == np.uint8 else floats
    import tensorflow as tf

    floats = tf.cast(images, tf.float32)
    return floats / 255.0 if images.dtype == tf.uint8 else floats


def _mean_of_blocks(images: Images, blocks: tuple[int, ...]) -> Images:
    if isinstance(images, np.ndarray):
        return images.reshape(blocks).mean(axis=(2, 4), dtype="float32")
    import tensorflow as tf

    return tf.reduce_mean(tf.reshape(images, blocks), axis=(2, 4))
