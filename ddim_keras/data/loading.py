"""`load_dataset`: from a name, a builder or a folder to batches of images ready for `DiffusionModel.fit`."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ddim_keras.support import files
from ddim_keras.support.arguments import height_and_width

if TYPE_CHECKING:
    import tensorflow as tf

EMBEDDED = "embedded"
# Shuffling holds up to this many bytes of images; data sets below it are shuffled as a whole.
_SHUFFLE_BYTES = 512 * 2**20
_EPOCH_STRIDE = 1_000_003  # between the seeds of epochs, so that those of other runs fall between them


class Source(NamedTuple):
    """Decoded but not yet resized examples, as a folder or TFDS gives them.

    Attributes:
        train, validation: `tf.data.Dataset` of (uint8 image (height, width, channels), int64 label); validation or None.
        channels: channels of the images.
        class_names: names of the labels, or None where there are none.
        identity: tells this source from others, and from itself after its files changed.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset | None
    channels: int
    class_names: Sequence[str] | None
    identity: Any


def load_dataset(
    source: Any,
    image_size: int | Sequence[int],
    batch_size: int = 64,
    *,
    split: Any = None,
    channels: int | None = None,
    labels: bool = False,
    fit: str = "crop",
    flip: bool = False,
    repeat: int = 1,
    cache: bool | str | os.PathLike = True,
    seed: int = 0,
    drop_remainder: bool | None = None,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
    unreadable: str = "refuse",
) -> tuple[tf.data.Dataset, tf.data.Dataset | None]:
    """Load images as (train, validation) batches.

    Each image is brought to size with antialiasing, and kept as uint8 until its batch is made.

    Args:
        source: the name of a TFDS data set, such as "oxford_flowers102"; "embedded" for the 10,000 + 1,000 Fashion-MNIST
            images that ship with the package; a prepared `tfds.core.DatasetBuilder` or the folder of one; or a folder of
            images (PNG, JPEG, BMP, GIF, WebP), flat, or one subfolder a class, or with subfolders train and validation.
        image_size: side of the images in pixels, or (height, width).
        batch_size: images per batch.
        split: for TFDS a pair of split names in its slicing syntax, ("train[:90%]", "test"), the second or None; for a
            folder the fraction of images kept for validation. None takes train and validation (or test) where they exist
            and 80 % / 20 % otherwise, for oxford_flowers102 of its three official splits together.
        channels: 1, 3 or 4; None keeps the data set's own (3 for a folder).
        labels: True gives (images, labels) instead of images. The data sets then have an attribute `class_names`.
        fit: "crop" takes the largest centred part of the wanted shape and resizes it; "pad" centres the whole image, shrunk if
            it is too large but never enlarged, on black.
        flip: mirror each training image left to right with probability one half.
        repeat: how many times the training images come in one epoch, shuffled together.
        cache: True keeps the resized images in memory; a path writes them to files there, once for all runs; False resizes
            anew each epoch.
        seed: fixes order, flips and a folder's split.
        drop_remainder: whether to drop the last, smaller training batch; None drops it if a whole one is left.
        data_dir: where TFDS keeps its data; None for ~/tensorflow_datasets.
        download: False refuses to download.
        unreadable: "refuse" raises when an image of a folder cannot be read, "skip" warns, naming and counting them.

    Returns:
        Two `tf.data.Dataset`: float32 images (batch, height, width, channels) in [0, 1], or pairs of those and int64 labels
        (batch,). The training set is shuffled anew each epoch; the validation set is in order, its last batch smaller, and
        None if there is no validation split. `train.from_step(n)` is an endless data set that begins with the batch of step n,
        the same in every process: an interrupted training goes on with just the images that it had not seen.

    Raises:
        ValueError: the data set is unknown, empty, has no images or labels, or an argument is out of its range.
        ConnectionError: it is not on disk and cannot be downloaded; found out within seconds.

    Examples:

    >>> train, validation = load_dataset("embedded", image_size=28, batch_size=100)
    >>> len(train), train.element_spec.shape.as_list()
    (100, [100, 28, 28, 1])
    """
    size = height_and_width(image_size)
    for name, value in (("batch_size", batch_size), ("repeat", repeat)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if channels not in (None, 1, 3, 4):
        raise ValueError(f"channels must be 1, 3 or 4, or None for the data set's own, got {channels!r}")
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit must be 'crop' or 'pad', got {fit!r}")
    if unreadable not in ("refuse", "skip"):
        raise ValueError(f"unreadable must be 'refuse' or 'skip', got {unreadable!r}")

    found = _open_source(source, split, channels, seed, data_dir, download, unreadable)
    if labels and found.class_names is None:
        raise ValueError(
            f"{source!r} has no labels: leave labels=False, or put each class of a folder into its own subfolder"
        )
    channels = channels or found.channels

    def resized(dataset: tf.data.Dataset, name: str) -> tf.data.Dataset:
        import tensorflow as tf

        dataset = dataset.map(
            lambda image, label: (_fit_image(image, size, channels, fit), label), num_parallel_calls=tf.data.AUTOTUNE
        )
        if cache is True:
            return dataset.cache()
        if cache is False:
            return dataset
        # tf.data's own cache file is left locked by a killed process; a folder that is renamed when whole is not.
        identity = hashlib.sha256(repr((found.identity, name, size, channels, fit)).encode()).hexdigest()[:16]
        folder = pathlib.Path(cache) / f"{name}_{size[0]}x{size[1]}x{channels}_{identity}"
        if not folder.exists():
            with files.written_beside(folder) as temporary:
                dataset.save(str(temporary))
        return tf.data.Dataset.load(str(folder))

    train = _training_batches(
        resized(found.train, "train"), (*size, channels), batch_size, repeat, flip, labels, seed, drop_remainder
    )
    validation = None
    if found.validation is not None:
        validation = _finished(resized(found.validation, "validation").batch(batch_size), labels)
    if labels:
        for dataset in (train, validation):
            if dataset is not None:
                dataset.class_names = list(found.class_names or ())
    return train, validation


def read_images(
    paths: Sequence[str | os.PathLike], image_size: int | Sequence[int], channels: int, *, fit: str = "crop"
) -> np.ndarray:
    """Read image files as `load_dataset` would.

    Args:
        paths: of PNG, JPEG, BMP, GIF (the first frame) or WebP files.
        image_size, channels, fit: as for `load_dataset`.

    Returns:
        float32 (number, height, width, channels) in [0, 1].

    Raises:
        ValueError: a file that cannot be read, named.
    """
    from ddim_keras.data import folder

    size = height_and_width(image_size)
    images = []
    for path in paths:
        try:
            pixels = folder.read_image(path, channels)
        except Exception as error:  # decoders raise whatever they like on damaged files
            raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}: {error})") from error
        images.append(np.asarray(_fit_image(pixels, size, channels, fit)))
    return np.stack(images).astype("float32") / 255.0


def _open_source(source, split, channels, seed, data_dir, download, unreadable) -> Source:
    from ddim_keras.data import folder, tfds_source

    if hasattr(source, "as_dataset"):
        return tfds_source.from_builder(source, split)
    if source == EMBEDDED:
        return tfds_source.from_folder(pathlib.Path(__file__).parent / "fashion_mnist_subset", split)
    path = pathlib.Path(source).expanduser()
    if (path / "dataset_info.json").is_file():
        return tfds_source.from_folder(path, split)
    if path.is_dir():
        return folder.from_images(path, split, channels or 3, seed, unreadable)
    # TFDS names may hold one slash, for the configuration, so only these are surely meant as paths.
    if not isinstance(source, str) or source.startswith((".", "~", os.sep)) or source.count("/") > 1:
        raise ValueError(f"no such folder: {source}")
    return tfds_source.from_name(str(source), split, data_dir, download)


def _fit_image(image: Any, size: tuple[int, int], channels: int, fit: str) -> Any:
    """One uint8 image in the wanted size and channels."""
    import tensorflow as tf

    image = _with_channels(image, channels)
    resized = _padded(image, size) if fit == "pad" else tf.image.resize(_cropped(image, size), size, antialias=True)
    resized = tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)
    return tf.ensure_shape(resized, (*size, channels))


def _cropped(image: Any, size: tuple[int, int]) -> Any:
    """The largest centred part of the shape of `size`."""
    import tensorflow as tf

    height, width = tf.shape(image)[0], tf.shape(image)[1]
    crop_height = tf.maximum(tf.minimum(height, tf.cast(tf.round(width * size[0] / size[1]), tf.int32)), 1)
    crop_width = tf.maximum(tf.minimum(width, tf.cast(tf.round(height * size[1] / size[0]), tf.int32)), 1)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return image[top : top + crop_height, left : left + crop_width]


def _padded(image: Any, size: tuple[int, int]) -> Any:
    """The whole image in the middle of black of this size."""
    import tensorflow as tf

    lengths = tf.cast(tf.shape(image)[:2], tf.float32)
    shrunk = tf.minimum(1.0, tf.reduce_min(tf.constant(size, tf.float32) / lengths)) * lengths
    shrunk = tf.clip_by_value(tf.cast(tf.round(shrunk), tf.int32), 1, size)
    image = tf.image.resize(image, shrunk, antialias=True)
    return tf.image.resize_with_crop_or_pad(image, *size)


def _with_channels(image: Any, channels: int) -> Any:
    import tensorflow as tf

    given = image.shape[-1]
    if given == channels:
        return image
    if channels == 1:
        return tf.image.rgb_to_grayscale(image[..., :3]) if given >= 3 else image[..., :1]
    colours = image[..., :3] if given >= 3 else tf.image.grayscale_to_rgb(image[..., :1])
    if channels == 3:
        return colours
    return tf.concat([colours, tf.fill([*tf.unstack(tf.shape(image)[:2]), 1], tf.constant(255, tf.uint8))], axis=-1)


def _training_batches(dataset, image_shape, batch_size, repeat, flip, labels, seed, drop_remainder) -> Any:
    import tensorflow as tf

    count = int(dataset.cardinality()) * repeat
    room = max(10 * batch_size, _SHUFFLE_BYTES // int(np.prod(image_shape)))
    room = min(room, count) if count > 0 else room
    if drop_remainder is None:
        drop_remainder = count < 0 or count >= batch_size
    if repeat > 1:
        dataset = dataset.repeat(repeat)

    def batched(shuffled: Any, seeds: Any) -> Any:
        batches = shuffled.batch(batch_size, drop_remainder=drop_remainder)
        if flip:
            batches = tf.data.Dataset.zip(batches, seeds).map(_flipped, num_parallel_calls=tf.data.AUTOTUNE)
        return batches

    train = _finished(
        batched(dataset.shuffle(room, seed=seed), tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)),
        labels,
    )

    def from_step(step: int) -> Any:
        steps = int(train.cardinality())
        if steps < 1:
            raise ValueError("from_step needs training data of known length")

        def batches() -> Any:
            # tf.data takes no seed that another data set makes, hence the loop in Python.
            number, done = divmod(step, steps)
            while True:
                epoch_seed = number * _EPOCH_STRIDE + seed
                shuffled = dataset.shuffle(room, seed=epoch_seed, reshuffle_each_iteration=False)
                yield from _finished(batched(shuffled, tf.data.Dataset.random(seed=epoch_seed)).skip(done), labels)
                number, done = number + 1, 0

        return tf.data.Dataset.from_generator(batches, output_signature=train.element_spec).prefetch(2)

    train.from_step = from_step
    return train


def _flipped(batch: Any, seed: Any) -> Any:
    import tensorflow as tf

    images, labels = batch
    chances = tf.random.stateless_uniform((tf.shape(images)[0], 1, 1, 1), seed=(seed, 0))
    return tf.where(chances < 0.5, images[:, :, ::-1], images), labels


def _finished(dataset: Any, labels: bool) -> Any:
    import tensorflow as tf

    def as_floats(images, classes):
        images = tf.cast(images, tf.float32) / 255.0
        return (images, classes) if labels else images

    return dataset.map(as_floats, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
