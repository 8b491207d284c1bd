"""Image data sets in files of many examples: TFRecords, and WebDataset's tars."""

from __future__ import annotations

import glob
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ddim_keras.data import encoded, ending
from ddim_keras.data.source import Examples, Source, Wanted
from ddim_keras.support.types import Dataset

_IMAGE_NAMES = ("image/encoded", "image", "jpg", "jpeg", "png", "webp", "img", "image_raw")
_LABEL_NAMES = ("image/class/label", "label", "labels", "class", "cls")
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")


class Stream(NamedTuple):
    """What one pass over files of examples finds.

    Attributes:
        examples: a data set of (encoded image, int64 label), in the files' order.
        number: of examples.
        image_bytes: of all encoded images together.
        labels: of the labels there are, the largest, or None where there are none.
    """

    examples: Dataset
    number: int
    image_bytes: int
    labels: int | None


def files_of(source: Any) -> tuple[str, list[str]] | None:
    """Return ("tfrecord" or "tar", files) if a source names such files: one of them, a pattern such
    as "photos-*.tar", or a folder of nothing else. None for other sources.
    """
    text = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
    path = pathlib.Path(text).expanduser()
    if not text or not (text.startswith((".", "~", os.sep)) or "." in path.name or path.is_dir()):
        return None
    if path.is_dir():
        if (path / "dataset_info.json").is_file():
            return None  # a data set that TFDS prepared, of TFRecords that TFDS reads
        found = sorted(
            os.fspath(file)
            for file in path.iterdir()
            if file.is_file() and not file.name.startswith(".")
        )
        kinds = {_kind(name) for name in found}
        kinds.discard(None)
        images = any(name.rsplit(".", 1)[-1].lower() in _IMAGE_SUFFIXES for name in found)
        if len(kinds) != 1 or images or any(file.is_dir() for file in path.iterdir()):
            return None
        kind = kinds.pop()
        return str(kind), [name for name in found if _kind(name) == kind]
    kind = _kind(text)
    if kind is None:
        return None
    found = sorted(glob.glob(os.fspath(path))) if glob.has_magic(text) else [os.fspath(path)]
    missing = [name for name in found if not os.path.isfile(name)]
    if missing or not found:
        raise ValueError(f"no such file: {text}")
    return kind, found


def _kind(name: str) -> str | None:
    base = os.path.basename(name).lower()
    if ".tfrecord" in base:
        return "tfrecord"
    return "tar" if base.endswith(".tar") else None


def from_files(kind: str, files: list[str], what: str, wanted: Wanted) -> Source:
    """Open TFRecords or tars. Files whose names hold a word for it, such as train-0000.tar and
    val-0000.tar, are divided by that; others by a fraction.

    Raises:
        ImportError: tars are given and webdataset is not installed.
        ValueError: there are no images or labels in them, or not those that are wanted.
    """
    if wanted.unreadable != "refuse":
        raise ValueError(
            f"unreadable={wanted.unreadable!r} is for folders of images: {what} holds encoded "
            "ones, whose damage shows when they are read"
        )
    opened = {"tfrecord": _records, "tar": _tars}[kind]
    names = {os.path.basename(name): name for name in files}
    trained, held_out = encoded.train_and_held_out(list(names), wanted.split, what)
    stream = opened([names[name] for name in trained], what)
    first = (bytes(image) for image, _ in stream.examples.as_numpy_iterator())
    look = encoded.look_at(first, wanted, what)
    read = encoded.reader(look, wanted.background, what)
    if held_out is None:
        parts = encoded.divided(stream.examples, stream.number, read, wanted.split, what)
    else:
        kept = opened([names[name] for name in held_out], what) if held_out else None
        parts = (
            Examples(stream.examples, read),
            None if kept is None else Examples(kept.examples, read),
        )
    classes = None if stream.labels is None else [str(k) for k in range(stream.labels + 1)]
    stats = [os.stat(name) for name in files]
    identity = (
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(files, stats)],
        tuple(wanted),
    )
    mean_bytes = -(-stream.image_bytes // stream.number)
    return Source(parts[0], parts[1], look.channels, classes, identity, mean_bytes)


def _counted(examples: Dataset, has_labels: bool, what: str) -> Stream:
    """Go through all examples once: their number must be known, for a training to resume."""
    import tensorflow as tf

    start = (tf.constant(0, tf.int64), tf.constant(0, tf.int64), tf.constant(-1, tf.int64))
    number, size, largest = (
        int(part)
        for part in examples.reduce(
            start,
            lambda found, example: (
                found[0] + 1,
                found[1] + tf.cast(tf.strings.length(example[0]), tf.int64),
                tf.maximum(found[2], example[1]),
            ),
        )
    )
    if not number:
        raise ValueError(f"{what} holds no images")
    counted = examples.apply(tf.data.experimental.assert_cardinality(number))
    return Stream(counted, number, size, largest if has_labels and largest >= 0 else None)


def _records(files: Sequence[str], what: str) -> Stream:
    """Open TFRecords of `tf.train.Example` with an encoded image and perhaps a label."""
    import tensorflow as tf

    records = tf.data.TFRecordDataset(list(files))
    try:
        first = next(iter(records.take(1).as_numpy_iterator()), None)
    except tf.errors.OpError as error:
        raise ValueError(f"{what} is no TFRecord, or is damaged: {error.message}") from None
    if first is None:
        raise ValueError(f"{what} holds no images")
    features = tf.train.Example.FromString(first).features.feature
    kinds = {name: feature.WhichOneof("kind") for name, feature in features.items()}
    images = [name for name in _IMAGE_NAMES if kinds.get(name) == "bytes_list"]
    if not images:
        listing = ", ".join(f"{name} ({kind})" for name, kind in sorted(kinds.items()))
        raise ValueError(
            f"{what} holds no encoded images under one of the names {', '.join(_IMAGE_NAMES)}: its "
            f"features are {listing}"
        )
    labels = [name for name in _LABEL_NAMES if kinds.get(name) == "int64_list"]
    wanted = {images[0]: tf.io.FixedLenFeature((), tf.string)}
    if labels:
        wanted[labels[0]] = tf.io.FixedLenFeature((), tf.int64)

    def parse(record):
        found = tf.io.parse_single_example(record, wanted)
        return found[images[0]], found[labels[0]] if labels else tf.constant(0, tf.int64)

    examples = records.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    try:
        return _counted(examples, bool(labels), what)
    except tf.errors.OpError as error:
        raise ValueError(f"{what} is damaged: {error.message}") from None


def _tars(files: Sequence[str], what: str) -> Stream:
    """Open WebDataset's tars: files of one name but for the suffix are an example."""
    import tensorflow as tf

    try:
        import webdataset
    except ImportError:
        raise ImportError(
            f"{what} is a WebDataset, which needs the library webdataset: pip install "
            "'ddim_keras[webdataset]'"
        ) from None

    @ending.ended_before_python
    def next_of(samples: Iterator[dict[str, Any]]) -> tuple[bytes, int] | None:
        for sample in samples:
            image = next((sample[name] for name in _IMAGE_SUFFIXES if name in sample), None)
            if image is not None:
                return image, int(sample["cls"]) if "cls" in sample else -1
        return None

    def examples() -> Iterator[tuple[bytes, int]]:
        samples = iter(webdataset.WebDataset(list(files), shardshuffle=False, empty_check=False))
        while (example := next_of(samples)) is not None:
            yield example

    spec = (tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64))
    dataset = tf.data.Dataset.from_generator(examples, output_signature=spec)
    return _counted(dataset, True, what)
