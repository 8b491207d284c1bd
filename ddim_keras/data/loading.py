"""`load_dataset`: from a name, a builder or a folder to batches of images ready for
`DiffusionModel.fit`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddim_keras.data import (
    caching,
    colours,
    decoding,
    depth,
    folder,
    hub_source,
    pipelines,
    resizing,
    streams,
    tfds_source,
)
from ddim_keras.data.source import EMBEDDED, Examples, Source, Wanted
from ddim_keras.support.arguments import height_and_width
from ddim_keras.support.types import Split, Tensor

if TYPE_CHECKING:
    import tensorflow as tf

_ARCHIVES = {".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"}


def load_dataset(
    source: Any,
    image_size: int | Sequence[int],
    batch_size: int = 64,
    *,
    split: Split = None,
    channels: int | None = None,
    labels: bool = False,
    fit: str = "crop",
    flip: bool = False,
    repeat: int = 1,
    cache: bool | str | os.PathLike = caching.AUTO,
    seed: int = 0,
    drop_remainder: bool | None = None,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
    unreadable: str = "refuse",
    background: str | Sequence[int] = "white",
    bits: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> tuple[tf.data.Dataset, tf.data.Dataset | None]:
    """Load images as (train, validation) batches.

    Each image is brought to size with antialiasing, and kept as uint8 until its batch is made.

    Args:
        source: the name of a TFDS data set, such as "oxford_flowers102"; "embedded" for the 10,000
            and 1,000 Fashion-MNIST images that ship with the package; a prepared
            `tfds.core.DatasetBuilder` or the folder of one; or a folder of images (all that Pillow
            reads: PNG, JPEG, WebP, TIFF, AVIF, ...), flat, or one subfolder a class, or with
            subfolders for training and validation. Links are followed. Runs, exports and presets
            inside it are left out, and so are hidden files and those of operating systems. Or
            files of encoded images: TFRecords ("photos-*.tfrecord"), WebDataset's tars
            ("photos-*.tar", with the extra `webdataset`), or a folder of nothing else. Or a
            `datasets.Dataset` or `DatasetDict` of Hugging Face, or "hf:owner/name" (the extra
            `datasets`).
        image_size: side of the images in pixels, or (height, width).
        batch_size: images per batch.
        split: for TFDS a pair of split names in its slicing syntax, ("train[:90%]", "test"), the
            second or None. For a folder a pair of its subfolders, ("training", "dev") or ("a+b",
            None), or the fraction of images kept for validation, which makes every subfolder a
            class; it is refused where subfolders are called like both parts. None takes train and
            validation where they exist, else train and test, and 80 % / 20 % otherwise; for
            oxford_flowers102 of its three official splits together. Of files of encoded images, and
            of Hugging Face, a pair of names of files or splits, or a fraction. Of a folder they are
            told by the names of subfolders, in any case: train, training, trn; val, valid,
            validation, dev; test, testing, tst, eval, holdout. Where both validation and test
            exist, test is not used. What is not clear is refused.
        channels: 1, 3 or 4; None keeps the data set's own: of a folder 1 if all of its files are
            grey ones, else 3.
        labels: True gives (images, labels) instead of images. The data sets then have an attribute
            `class_names`, and otherwise `unused_class_names`, which is empty where there are none.
        fit: "crop" takes the largest centred part of the wanted shape and resizes it; "pad" centres
            the whole image, shrunk if it is too large but never enlarged, on black; with 4 channels
            on what is transparent.
        flip: mirror each training image left to right with probability one half.
        repeat: how many times the training images come in one epoch, shuffled together.
        cache: True or "memory" keeps the resized images in memory; a path writes them to files
            there, once for all runs; False or "no" reads and resizes anew each epoch, in an order
            that is drawn before anything is read. "auto" keeps them in memory where they take at
            most half of what is free, else in files in ~/.cache/ddim_keras (or the environment
            variable DDIM_KERAS_CACHE) where half of the disk's free room is enough, else it reads
            anew; a warning says which.
        seed: fixes order, flips and a folder's split.
        drop_remainder: whether to drop the last, smaller training batch; None drops it if a whole
            one is left.
        data_dir: where TFDS keeps its data; None for ~/tensorflow_datasets.
        download: False refuses to download.
        unreadable: "refuse" raises when an image of a folder cannot be read, "skip" warns, naming
            and counting them. Images of more than 500 megapixels count as unreadable.
        background: the colour that transparent images are laid on, unless channels is 4: a name
            that Pillow knows, or (red, green, blue) from 0 to 255.
        bits: of images deeper than 8 bits, how many they use: 2**bits - 1 is white. None takes what
            a file says; where it says nothing, the fewest of 8, 10, 12, 14 and 16 that hold the
            largest value of all the data set, with a warning if they are fewer than 16. Floats must
            lie in [0, 1], or have a white by `bits`.
        part: (i, n): for the i-th of n processes that train together, from 0: of every training
            batch the i-th of n equal parts, so that `fit` in a process gets its own part alone, and
            with cache=False reads no others.

    Returns:
        Two `tf.data.Dataset`: float32 images (batch, height, width, channels) in [0, 1], or pairs
        of those and int64 labels (batch,). The training set is shuffled anew each epoch; the
        validation set is in order, its last batch smaller, and None if there is no validation
        split. `train.from_step(n)` is an endless data set that begins with the batch of step n, the
        same in every process: an interrupted training resumes with just the images that it had not
        seen. `from_step(n, part=(i, k))` gives parts of those batches.

    Raises:
        ValueError: the data set is unknown, empty, has no images or labels, or an argument is out
            of its range.
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
    check_choices(channels, fit)
    if unreadable not in ("refuse", "skip"):
        raise ValueError(f"unreadable must be 'refuse' or 'skip', got {unreadable!r}")
    depth.check_bits(bits)
    colour = colours.parse_colour(background)
    wanted = Wanted(split, channels, seed, labels, unreadable, colour, bits)

    found = _open_source(source, wanted, data_dir, download)
    if labels and found.class_names is None:
        raise ValueError(f"{source!r} has no labels: leave labels=False")
    shape = (*size, channels or found.channels)
    cache = caching.chosen(cache, _number_in(found), int(np.prod(shape)), str(source))
    kind = "labels" if labels else "images"
    shuffling = pipelines.Shuffling(batch_size, repeat, flip, seed, drop_remainder, part)
    train, validation = _batches(found, shape, fit, colour, cache, shuffling, kind)
    for dataset in (train, validation):
        if dataset is not None:
            name = "class_names" if labels else "unused_class_names"
            setattr(dataset, name, list(found.class_names or ()))
    return train, validation


def _batches(
    found: Source,
    shape: tuple[int, int, int],
    fit: str,
    colour: colours.Colour,
    cache: bool | str | os.PathLike,
    shuffling: pipelines.Shuffling,
    kind: str,
) -> tuple[Any, Any]:
    """Return the batches to train on and those to validate on, or None."""
    size, channels = shape[:2], shape[2]

    def resize(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return resizing.fit_image(image, size, channels, fit, colour), label

    def read(*key: Tensor) -> tuple[Tensor, Tensor]:
        return resize(*found.train.read(*key))

    def resized(examples: tf.data.Dataset | Examples, name: str) -> tf.data.Dataset:
        import tensorflow as tf

        dataset = examples.decoded() if isinstance(examples, Examples) else examples
        dataset = dataset.map(resize, num_parallel_calls=tf.data.AUTOTUNE)
        identity = repr((found.identity, name, size, channels, fit))
        return caching.cached(dataset, cache, f"{name}_{size[0]}x{size[1]}x{channels}", identity)

    anew = cache is False and isinstance(found.train, Examples)
    train = pipelines.training_batches(
        found.train.keys if anew else resized(found.train, "train"),
        shape,
        shuffling,
        kind,
        read if anew else None,
        found.key_bytes,
    )
    if found.validation is None:
        return train, None
    held_out = resized(found.validation, "validation").batch(shuffling.batch_size)
    return train, pipelines.finished(held_out, kind)


def _number_in(found: Source) -> int:
    """How many images a data set holds; negative if it does not say."""
    parts = [part for part in (found.train, found.validation) if part is not None]
    keys = [part.keys if isinstance(part, Examples) else part for part in parts]
    numbers = [int(dataset.cardinality()) for dataset in keys]
    return -1 if min(numbers) < 0 else sum(numbers)


def read_images(
    paths: Sequence[str | os.PathLike],
    image_size: int | Sequence[int],
    channels: int,
    *,
    fit: str = "crop",
    background: str | Sequence[int] = "white",
    bits: int | None = None,
) -> np.ndarray:
    """Read image files as `load_dataset` would.

    Args:
        paths: of files that Pillow reads; of an animation the first frame.
        image_size, channels, fit, background: as for `load_dataset`.
        bits: likewise; where neither it nor a file says how deep an image is, the largest value of
            these images decides.

    Returns:
        float32 (number, height, width, channels) in [0, 1].

    Raises:
        ValueError: a file that cannot be read, named; or an argument out of its range.
    """
    size = height_and_width(image_size)
    check_choices(channels, fit)
    depth.check_bits(bits)
    colour = colours.parse_colour(background)

    def shaped(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(resizing.fit_image(pixels, size, channels, fit, colour))

    if isinstance(paths, (str, os.PathLike)) or not len(paths):
        raise ValueError(f"paths must be a list of at least one path, got {paths!r}")
    named = [os.path.expanduser(path) for path in paths]
    images, facts = decoding.read_images(named, channels, colour, bits, shaped)
    transparent = [path for path, fact in zip(named, facts) if fact.transparent]
    if transparent and channels != 4:
        colours.warn_of_transparency(
            f"{len(transparent)} of {len(named)} images", transparent[0], colour
        )
    return np.stack(images).astype("float32") / 255.0


def check_choices(channels: int | None, fit: str) -> None:
    if channels not in (None, 1, 3, 4):
        raise ValueError(
            f"channels must be 1, 3 or 4, or None for the data set's own, got {channels!r}"
        )
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit must be 'crop' or 'pad', got {fit!r}")


def _open_source(
    source: Any, wanted: Wanted, data_dir: str | os.PathLike | None, download: bool
) -> Source:
    if isinstance(source, str) and not source.strip():  # a path of no letters is where one stands
        raise ValueError(
            f"there is nothing to load: got {source!r}, expected a folder of images, the name of a "
            "TFDS data set, or 'embedded'"
        )
    if hub_source.is_one(source):
        return hub_source.from_hub(source, wanted)
    if (found := streams.files_of(source)) is not None:
        return streams.from_files(*found, str(source), wanted)
    reading = tfds_source.Reading(wanted.split, wanted.channels, wanted.background, wanted.bits)
    if hasattr(source, "as_dataset"):
        return tfds_source.from_builder(source, reading)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            "load_dataset takes a folder, a name, a builder of TFDS or a data set of Hugging "
            f"Face's, got a {type(source).__name__}: give the name, such as 'cifar10', or to fit "
            "itself batches of images, which of a tf.data.Dataset are dataset.batch(64)"
        )
    if source == EMBEDDED:
        return tfds_source.from_folder(
            pathlib.Path(__file__).parent / "fashion_mnist_subset", reading
        )
    path = pathlib.Path(source).expanduser()
    if (path / "dataset_info.json").is_file():
        return tfds_source.from_folder(path, reading)
    if path.is_dir():
        return folder.from_images(path, wanted)
    if path.is_file():
        raise ValueError(
            f"{source} is a file, not a folder of images, nor TFRecords or a tar of them: "
            + ("unpack it, and give " if path.suffix.lower() in _ARCHIVES else "give ")
            + "the folder"
        )
    # TFDS names may hold one slash, for the configuration, so only these are surely meant as paths.
    if (
        not isinstance(source, str)
        or source.startswith((".", "~", os.sep))
        or source.count("/") > 1
    ):
        raise ValueError(f"no such folder: {source}")
    return tfds_source.from_name(str(source), reading, data_dir, download)
