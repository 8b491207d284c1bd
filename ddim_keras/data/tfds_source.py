"""Image data sets from TensorFlow Datasets."""

from __future__ import annotations

import difflib
import os
import pathlib
import urllib.parse
import warnings
from typing import Any, NamedTuple

from ddim_keras.data import depth
from ddim_keras.data.colours import WHITE, Colour
from ddim_keras.data.source import Source
from ddim_keras.support.downloads import reachable
from ddim_keras.support.types import Split, Tensor

# What the Keras DDIM example trains on: 80 % of everything, since the official training split is
# only 1,020 images.
_OWN_SPLITS = {
    "oxford_flowers102": (
        "train[:80%]+validation[:80%]+test[:80%]",
        "train[80%:]+validation[80%:]+test[80%:]",
    )
}


class Reading(NamedTuple):
    """How a data set is read.

    Attributes:
        split, channels, bits: as for `load_dataset`.
        background: a colour, parsed.
    """

    split: Split = None
    channels: int | None = None
    background: Colour = WHITE
    bits: int | None = None


def from_name(
    name: str, reading: Reading, data_dir: str | os.PathLike | None, download: bool
) -> Source:
    """Open a TFDS data set by name, downloading and preparing it if it is not on disk."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except ValueError as error:
        # What is no word is none either, such as a folder that is not there.
        is_unknown = isinstance(error, tfds.core.DatasetNotFoundError)
        if not is_unknown and "Parsing builder name" not in str(error):
            raise
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, n=3) or [
            "oxford_flowers102",
            "fashion_mnist",
            "celeb_a",
        ]
        raise ValueError(
            f"unknown data set {name!r}: it is neither a folder, nor 'embedded', nor one of the "
            f"{len(known)} data sets of TFDS. "
            f"Near it: {', '.join(close)}"
        ) from None
    if not builder.is_prepared():
        where = os.fspath(builder.data_dir)
        if not download:
            raise ConnectionError(
                f"{name} is not on disk in {where}, and download=False: allow it, or give its "
                "data_dir"
            )
        download_dir = os.path.join(builder._data_dir_root, "downloads")
        missing = _missing_downloads(builder, download_dir)
        if missing and not reachable(missing[0]):
            raise ConnectionError(
                f"{name} is not on disk in {where}, and "
                f"{urllib.parse.urlsplit(missing[0]).hostname} cannot be reached to "
                "download it. Connect to the internet, or prepare it on another machine with "
                f"tfds.load({name!r}) and give "
                "the folder as data_dir, or train on what ships with the package: "
                "load_dataset('embedded', ...)"
            )
        builder.download_and_prepare(download_dir=download_dir)
    return from_builder(builder, reading)


def prepared_folder(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path | None:
    """Return the folder in which a TFDS data set is prepared, or None if it is not on disk."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        return pathlib.Path(builder.data_dir) if builder.is_prepared() else None
    except Exception:  # no data set of TFDS, or one whose code fails: loading it will say why
        return None


def from_folder(path: os.PathLike, reading: Reading) -> Source:
    """Open a prepared TFDS data set that lies in a folder."""
    import tensorflow_datasets as tfds

    return from_builder(tfds.builder_from_directory(path), reading)


def from_builder(builder: Any, reading: Reading) -> Source:
    """Read the images and, where there are some, the class labels of a prepared builder."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = builder.info.features
    image_key = _feature_key(features, tfds.features.Image, "image")
    if image_key is None:
        raise ValueError(
            f"the data set {builder.name} has no images: its features are {list(features)}"
        )
    label_key = _feature_key(features, tfds.features.ClassLabel, "label")
    if not builder.info.splits:
        raise ValueError(
            f"the data set {builder.name} is not prepared: call builder.download_and_prepare() "
            "first"
        )

    # Decoding is what costs: other images, such as masks, stay as they are.
    others = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image) and key != image_key
    ]
    decoders = {key: tfds.decode.SkipDecoding() for key in others}

    def examples(name: str) -> tf.data.Dataset:
        try:
            dataset = builder.as_dataset(split=name, decoders=decoders, shuffle_files=False)
        except (ValueError, AssertionError) as error:
            known = list(builder.info.splits)
            raise ValueError(
                f"cannot read split {name!r} of {builder.name}: its splits are {known} ({error})"
            ) from None
        if not len(dataset):
            raise ValueError(f"split {name!r} of {builder.name} is empty")
        return dataset.map(
            lambda example: (
                example[image_key],
                example[label_key] if label_key else tf.constant(0, tf.int64),
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    train, validation = _split(builder, reading.split)
    channels = features[image_key].shape[-1]
    if channels in (2, 4) and (reading.channels or channels) not in (2, 4):
        _warn_of_transparency(builder.name, reading.background)
    raw = [examples(name) for name in (train, validation) if name is not None]
    bits = _bits(raw, reading.bits, builder.name)
    parts = [
        part.map(
            lambda image, label: (_uint8(image, bits), label), num_parallel_calls=tf.data.AUTOTUNE
        )
        for part in raw
    ]
    return Source(
        parts[0],
        None if validation is None else parts[1],
        channels,
        features[label_key].names if label_key else None,
        (builder.info.full_name, train, validation, bits, reading.background),
    )


def _warn_of_transparency(name: str, background: object) -> None:
    warnings.warn(
        f"what is transparent in the images of {name} is laid on the background {background}: "
        "background= chooses another colour, channels=4 keeps the transparency",
        stacklevel=5,
    )


def _split(builder: Any, split: Split) -> tuple[str, str | None]:
    if split is None:
        return _default_split(builder)
    if not isinstance(split, (tuple, list)) or len(split) != 2:
        raise ValueError(
            f"split of {builder.name} must be a pair of split names, the second or None, such as "
            f"('train[:90%]', 'test'), got {split!r}; its splits are {list(builder.info.splits)}"
        )
    return split[0], split[1]


def _default_split(builder: Any) -> tuple[str, str]:
    if builder.name in _OWN_SPLITS:
        return _OWN_SPLITS[builder.name]
    names = list(builder.info.splits)
    train = "train" if "train" in names else names[0]
    for validation in ("validation", "test"):
        if validation in names and validation != train:
            return train, validation
    return f"{train}[:80%]", f"{train}[80%:]"


def _feature_key(features: Any, kind: type, preferred: str) -> str | None:
    if not hasattr(features, "items"):
        return None
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    return preferred if preferred in keys else (keys[0] if keys else None)


def _bits(parts: list[Any], given: int | None, name: str) -> int:
    """The depth of a data set's images: 8, or as `depth.Depth.bits`; of deep ones found out by
    reading them once.

    Raises:
        ValueError: floats outside [0, 1], or values that `given` has no room for.
    """
    import tensorflow as tf

    dtype = parts[0].element_spec[0].dtype
    if dtype == tf.uint8:
        return 8
    smallest, largest = float("inf"), float("-inf")
    for part in parts:
        ends = part.map(
            lambda image, label: (
                tf.reduce_min(image),
                tf.reduce_max(image),
                tf.reduce_sum(tf.cast(image, tf.float32)),
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        for low, high, total in ends.as_numpy_iterator():
            smallest, largest = min(smallest, float(low)), max(largest, float(high))
            if dtype.is_floating and total != total:  # a minimum does not hand NaN on
                largest = float("nan")
                break
            if not dtype.is_floating and given is None and depth.holding(int(largest)) >= 16:
                return 16
    try:
        if dtype.is_floating:
            return depth.check_floats(smallest, largest, given)
        depth.check_integers(int(smallest), int(largest), given)
    except ValueError as error:
        raise ValueError(f"the images of {name} cannot be used: {error}") from None
    if given is not None:
        return int(given)
    bits = depth.holding(int(largest))
    if largest > 0:
        depth.warn_of_depth(f"the images of {name}", int(largest), bits)
    return bits


def _uint8(image: Tensor, bits: int) -> Tensor:
    """An image whose white is 2**bits - 1 (1.0 for floats and bits=0) as uint8."""
    import tensorflow as tf

    if image.dtype == tf.uint8:
        return image
    white = 2**bits - 1 if bits else 1
    if image.dtype.is_floating:
        return tf.cast(
            tf.clip_by_value(tf.round(tf.cast(image, tf.float32) * (255.0 / white)), 0.0, 255.0),
            tf.uint8,
        )
    scaled = (tf.cast(image, tf.int64) * 255 + white // 2) // white
    return tf.cast(tf.clip_by_value(scaled, 0, 255), tf.uint8)


def _missing_downloads(builder: Any, download_dir: str) -> list[str]:
    """The addresses that preparing the data set will ask for and that are not in the download
    folder yet.
    """
    import tensorflow_datasets as tfds

    def path(url: str, checksum: str) -> str:
        return os.path.join(download_dir, tfds.core.download.resource.get_dl_fname(url, checksum))

    addresses = {url: path(url, info.checksum) for url, info in builder.url_infos.items()}
    if not addresses:  # the data set keeps its addresses to itself
        return ["https://www.tensorflow.org/datasets"]
    return [url for url, file in addresses.items() if not os.path.exists(file)]
