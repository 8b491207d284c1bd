"""Image data sets from TensorFlow Datasets."""

from __future__ import annotations

import difflib
import os
import urllib.parse
from typing import Any

from ddim_keras.data.loading import Source
from ddim_keras.support.downloads import reachable

# What the Keras DDIM example trains on: 80 % of everything, since the official training split is only 1,020 images.
_OWN_SPLITS = {
    "oxford_flowers102": (
        "train[:80%]+validation[:80%]+test[:80%]",
        "train[80%:]+validation[80%:]+test[80%:]",
    )
}


def from_name(name: str, split: Any, data_dir: Any, download: bool) -> Source:
    """Open a TFDS data set by name, downloading and preparing it if it is not on disk."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, n=3) or ["oxford_flowers102", "fashion_mnist", "celeb_a"]
        raise ValueError(
            f"unknown data set {name!r}: it is neither a folder, nor 'embedded', nor one of the {len(known)} data sets of TFDS. "
            f"Near it: {', '.join(close)}"
        ) from None
    if not builder.is_prepared():
        where = os.fspath(builder.data_dir)
        if not download:
            raise ConnectionError(
                f"{name} is not on disk in {where}, and download=False: allow it, or give its data_dir"
            )
        download_dir = os.path.join(builder._data_dir_root, "downloads")
        missing = _missing_downloads(builder, download_dir)
        if missing and not reachable(missing[0]):
            raise ConnectionError(
                f"{name} is not on disk in {where}, and {urllib.parse.urlsplit(missing[0]).hostname} cannot be reached to "
                f"download it. Connect to the internet, or prepare it on another machine with tfds.load({name!r}) and give "
                "the folder as data_dir, or train on what ships with the package: load_dataset('embedded', ...)"
            )
        builder.download_and_prepare(download_dir=download_dir)
    return from_builder(builder, split)


def from_folder(path: os.PathLike, split: Any) -> Source:
    """Open a prepared TFDS data set that lies in a folder."""
    import tensorflow_datasets as tfds

    return from_builder(tfds.builder_from_directory(path), split)


def from_builder(builder: Any, split: Any) -> Source:
    """Read the images and, where there are some, the class labels of a prepared builder."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = builder.info.features
    image_key = _feature_key(features, tfds.features.Image, "image")
    if image_key is None:
        raise ValueError(f"the data set {builder.name} has no images: its features are {list(features)}")
    label_key = _feature_key(features, tfds.features.ClassLabel, "label")
    if not builder.info.splits:
        raise ValueError(f"the data set {builder.name} is not prepared: call builder.download_and_prepare() first")

    # Decoding is what costs: other images, such as masks, stay as they are.
    others = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image) and key != image_key]
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
            lambda example: (_uint8(example[image_key]), example[label_key] if label_key else tf.constant(0, tf.int64)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    if split is not None and (not isinstance(split, (tuple, list)) or len(split) != 2):
        raise ValueError(
            f"split of {builder.name} must be a pair of split names, the second or None, such as ('train[:90%]', 'test'), "
            f"got {split!r}; its splits are {list(builder.info.splits)}"
        )
    train, validation = split if split is not None else _default_split(builder)
    return Source(
        examples(train),
        None if validation is None else examples(validation),
        features[image_key].shape[-1],
        features[label_key].names if label_key else None,
        (builder.info.full_name, train, validation),
    )


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


def _uint8(image: Any) -> Any:
    import tensorflow as tf

    if image.dtype == tf.uint8:
        return image
    if image.dtype == tf.uint16:
        return tf.cast(tf.cast(image, tf.int32) // 257, tf.uint8)
    return tf.image.convert_image_dtype(image, tf.uint8, saturate=True)


def _missing_downloads(builder: Any, download_dir: str) -> list[str]:
    """The addresses that preparing the data set will ask for and that are not in the download folder yet."""
    import tensorflow_datasets as tfds

    def path(url: str, checksum: str) -> str:
        return os.path.join(download_dir, tfds.core.download.resource.get_dl_fname(url, checksum))

    addresses = {url: path(url, info.checksum) for url, info in builder.url_infos.items()}
    if not addresses:  # the data set keeps its addresses to itself
        return ["https://www.tensorflow.org/datasets"]
    return [url for url, file in addresses.items() if not os.path.exists(file)]
