"""Image data sets in files of many examples: TFRecords, and WebDataset's tars."""

from __future__ import annotations

import glob
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ddim_keras.data import encoded, ending, image_checks
from ddim_keras.data.source import Examples, Source, Wanted
from ddim_keras.support.types import Dataset

_IMAGE_NAMES = ("image/encoded", "image", "jpg", "jpeg", "png", "webp", "img", "image_raw")
_LABEL_NAMES = ("image/class/label", "label", "labels", "class", "cls")
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
_MOST_CLASSES = 100_000
_ADVICE = "copy or write it again, or leave it out"
# What TensorFlow lays around the words of an error.
_AROUND = re.compile(
    r"\{\{function_node [^}]*\}\} |Error in user-defined function passed to \S+ "
    r"transformation with iterator: \S+: | \[Op:\w+\].*"
)


class Stream(NamedTuple):
    """What one pass over files of examples finds.

    Attributes:
        examples: a data set of (encoded image, int64 label), in the files' order.
        number: of examples.
        image_bytes: of all encoded images together.
        labels: the largest label, or None where there are none, or none are wanted.
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
    return "tar" if base.endswith((".tar", ".tar.gz", ".tgz")) else None


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
    stream = opened([names[name] for name in trained], what, wanted.labels)
    first = (bytes(image) for image, _ in stream.examples.as_numpy_iterator())
    look = encoded.look_at(first, wanted, what)
    read = encoded.reader(look, wanted.background, what)
    if held_out is None:
        parts = encoded.divided(stream.examples, stream.number, read, wanted.split, what)
    else:
        kept = None
        if held_out:
            validating = f"the part of {what} for validation, {', '.join(held_out[:3])},"
            kept = opened([names[name] for name in held_out], validating, wanted.labels)
        parts = (
            Examples(stream.examples, read),
            None if kept is None else Examples(kept.examples, read),
        )
        stream = _with_labels_of(stream, kept, what)
    classes = None if stream.labels is None else [str(k) for k in range(stream.labels + 1)]
    stats = [os.stat(name) for name in files]
    identity = (
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(files, stats)],
        tuple(wanted),
    )
    mean_bytes = -(-stream.image_bytes // stream.number)
    return Source(parts[0], parts[1], look.channels, classes, identity, mean_bytes)


def _with_labels_of(stream: Stream, kept: Stream | None, what: str) -> Stream:
    """A part to train on, with the labels of that for validation."""
    if kept is None or stream.labels is None:
        return stream
    if kept.labels is None:
        raise ValueError(f"the part of {what} for validation has no labels, but the other has")
    return stream._replace(labels=max(stream.labels, kept.labels))


def _counted(
    examples_of: Callable[[list[str]], Dataset], files: Sequence[str], labels: bool, what: str
) -> Stream:
    """Go through all examples once: their number must be known, for a training to resume.

    Args:
        examples_of: opens files: (encoded image, label), -1 where an example has none.
        files: all of them.
        labels: whether labels are wanted.
        what: what to call the data set in a message.
    """
    import tensorflow as tf

    examples = examples_of(list(files))
    try:
        number, size, largest, lacking = _figures(examples)
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        name = _damaged_one(examples_of, files) or what
        if own := _own_words(error):  # of what is whole, but wrong
            raise ValueError(f"{name}: {own}") from None
        raise ValueError(f"{name} is damaged: {_said(error)}: {_ADVICE}") from None
    if not number:
        raise ValueError(f"{what} holds no images")
    if labels and 0 < lacking < number:
        raise ValueError(
            f"{lacking} of {number} examples of {what} have no label, or one below 0: leave them "
            "out, or leave labels=False"
        )
    if labels and largest >= _MOST_CLASSES:
        raise ValueError(
            f"{what} has a label of {largest}: labels must be numbers of classes, from 0 and below "
            f"{_MOST_CLASSES}"
        )
    counted = examples.apply(tf.data.experimental.assert_cardinality(number))
    return Stream(counted, number, size, largest if labels and lacking < number else None)


def _figures(examples: Dataset) -> tuple[int, int, int, int]:
    """How many examples there are, the bytes of their images, the largest label, and how many lack
    one.
    """
    import tensorflow as tf

    def add(found: Any, example: Any) -> Any:
        image, label = example
        size = tf.cast(tf.strings.length(image), tf.int64)
        lacking = tf.cast(label < 0, tf.int64)
        return found[0] + 1, found[1] + size, tf.maximum(found[2], label), found[3] + lacking

    start = tuple(tf.constant(value, tf.int64) for value in (0, 0, -1, 0))
    number, size, largest, lacking = (int(part) for part in examples.reduce(start, add))
    return number, size, largest, lacking


def _damaged_one(examples_of: Callable[[list[str]], Dataset], files: Sequence[str]) -> str | None:
    """The first of the files that cannot be read to its end."""
    import tensorflow as tf

    for name in files:
        try:
            _figures(examples_of([name]))
        except (tf.errors.OpError, UnicodeDecodeError):
            return name
    return None


def _said(error: Exception) -> str:
    """The words of an error, where TensorFlow has laid its own and a traceback around them."""
    if isinstance(error, UnicodeDecodeError):  # TensorFlow quotes the record in its error
        return "a record of it is no tf.train.Example"
    message = str(getattr(error, "message", error))
    return _AROUND.sub("", message.splitlines()[0]).strip().rstrip(".")


def _own_words(error: Exception) -> str | None:
    """What this package has said within an error of TensorFlow's; None where it said nothing."""
    message = str(getattr(error, "message", error))
    if image_checks.ERROR_START not in message:
        return None
    return message.split(image_checks.ERROR_START)[1].split(image_checks.ERROR_END)[0]


def _records(files: Sequence[str], what: str, with_labels: bool) -> Stream:
    """Open TFRecords of `tf.train.Example` with an encoded image and perhaps a label."""
    import tensorflow as tf

    packed = {name.lower().endswith(".gz") for name in files}
    if len(packed) > 1:
        raise ValueError(f"only some files of {what} end with .gz: pack all of them, or none")
    packing = "GZIP" if packed == {True} else ""
    features = _first_features(files, packing, what)
    kinds = {name: feature.WhichOneof("kind") for name, feature in features.items()}
    images = [name for name in _IMAGE_NAMES if kinds.get(name) == "bytes_list"]
    if not images:
        listing = ", ".join(f"{name} ({kind})" for name, kind in sorted(kinds.items()))
        raise ValueError(
            f"{what} holds no encoded images under one of the names {', '.join(_IMAGE_NAMES)}: its "
            f"features are {listing}"
        )
    labels = [name for name in _LABEL_NAMES if kinds.get(name) == "int64_list" and with_labels]
    wanted = {images[0]: tf.io.FixedLenFeature((), tf.string)}
    if labels:
        wanted[labels[0]] = tf.io.FixedLenFeature((), tf.int64, default_value=-1)

    def parse(record):
        found = tf.io.parse_single_example(record, wanted)
        return found[images[0]], found[labels[0]] if labels else tf.constant(-1, tf.int64)

    def examples_of(files: list[str]) -> Dataset:
        records = tf.data.TFRecordDataset(files, packing)
        return records.map(parse, num_parallel_calls=tf.data.AUTOTUNE)

    return _counted(examples_of, files, with_labels, what)


def _first_features(files: Sequence[str], packing: str, what: str) -> Any:
    """The features of the first record."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    records = tf.data.TFRecordDataset(list(files), packing).take(1)
    try:
        first = next(iter(records.as_numpy_iterator()), None)
    except tf.errors.OpError as error:
        raise ValueError(
            f"{what} is no TFRecord, or is damaged: {_said(error)}: {_ADVICE}"
        ) from None
    if first is None:
        raise ValueError(f"{what} holds no images")
    try:
        return tf.train.Example.FromString(first).features.feature
    except DecodeError:
        raise ValueError(
            f"{what} holds records that are no tf.train.Example: write one for each image, with "
            f"the encoded image under one of the names {', '.join(_IMAGE_NAMES)}"
        ) from None


def _tars(files: Sequence[str], what: str, with_labels: bool) -> Stream:
    """Open WebDataset's tars: files of one name but for the suffix are an example."""
    import tensorflow as tf

    try:
        import webdataset
    except ImportError:
        raise ImportError(
            f"{what} is a WebDataset, which needs the library webdataset: pip install "
            "'ddim_keras[webdataset]'"
        ) from None

    for name in files:
        if not _ends_as_tar(name):
            raise ValueError(
                f"{name} is damaged: it does not end as a tar does, so perhaps it was not copied "
                "whole"
            )

    @ending.ended_before_python
    def next_of(samples: Iterator[dict[str, Any]]) -> tuple[bytes, int] | None:
        for sample in samples:
            image = next((sample[name] for name in _IMAGE_SUFFIXES if name in sample), None)
            if image is not None:
                return image, _class_of(sample) if with_labels else -1
        return None

    def examples_of(files: list[str]) -> Dataset:
        def examples() -> Iterator[tuple[bytes, int]]:
            samples = iter(webdataset.WebDataset(files, shardshuffle=False, empty_check=False))
            while (example := next_of(samples)) is not None:
                yield example

        spec = (tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64))
        return tf.data.Dataset.from_generator(examples, output_signature=spec)

    return _counted(examples_of, files, with_labels, what)


def _ends_as_tar(name: str) -> bool:
    """Whether a file ends with two blocks of zeros: readers take one that was cut off between two
    of its members for a whole one. What is packed has checks of its own.
    """
    with open(name, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return True
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1024))
        return file.read() == bytes(1024)


def _class_of(sample: dict[str, Any]) -> int:
    """The number of an example's class, -1 if there is none."""
    text = sample.get("cls", b"-1")
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"{image_checks.ERROR_START}the label {sample['__key__']}.cls must be the number of a "
            f"class, got {bytes(text[:40])!r}{image_checks.ERROR_END}"
        ) from None
