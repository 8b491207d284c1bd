"""Image data sets of Hugging Face's library `datasets`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ddim_keras.data import encoded
from ddim_keras.data.source import Examples, Source, Wanted

PREFIX = "hf:"


def is_one(source: Any) -> bool:
    """Whether a source is a data set of that library, or the name of one, such as "hf:beans"."""
    if isinstance(source, str):
        return source.startswith(PREFIX)
    return type(source).__module__.split(".")[0] == "datasets"


def from_hub(source: Any, wanted: Wanted) -> Source:
    """Open a `datasets.Dataset`, a `DatasetDict` of them, or one by its name on the Hub.

    Args:
        source: the data set, "hf:owner/name", or "hf:owner/name:configuration".
        wanted: how; its split is a pair of the data set's split names, or a fraction.

    Raises:
        ImportError: a name is given and `datasets` is not installed.
        ConnectionError: it could not be loaded.
        ValueError: it has no images or labels, or is streamed.
    """
    what = source if isinstance(source, str) else "the data set"
    if wanted.unreadable != "refuse":
        raise ValueError(
            f"unreadable={wanted.unreadable!r} is for folders of images: filter the data set first"
        )
    parts = _loaded(source) if isinstance(source, str) else source
    if "Iterable" in type(parts).__name__:
        raise ValueError(
            f"{what} is streamed, so that neither its length is known nor can it be shuffled: load "
            "it with streaming=False"
        )
    parts = dict(parts) if hasattr(parts, "keys") else {"": parts}
    if not parts:
        raise ValueError(f"{what} holds no splits")
    trained, held_out = encoded.train_and_held_out(list(parts), wanted.split, what)
    first = parts[trained[0]]
    image_name, label_name = _columns(first.features, what)
    if not wanted.labels:
        label_name = None
    elif label_name is None:
        raise ValueError(
            f"{what} has no column of class labels: make one, as by "
            "dataset.class_encode_column('label'), or leave labels=False"
        )
    for name in [trained[0], *(held_out or [])[:1]]:
        _check_part(parts[name], f"the split {name!r}" if name else what, image_name, label_name)
    look = encoded.look_at(map(_encoded(first, image_name), range(len(first))), wanted, what)

    def examples(name: str, indices: np.ndarray) -> Examples:
        return _examples(parts[name], indices, image_name, label_name, look, wanted, what)

    names = None if label_name is None else list(first.features[label_name].names)
    whole = np.arange(len(first))
    kept: Examples | None = None
    if held_out:
        kept = examples(held_out[0], np.arange(len(parts[held_out[0]])))
    elif held_out is None and (fraction := encoded.check_fraction(wanted.split, what)):
        if len(first) < 2:
            raise ValueError(f"{what} holds one image: at least 2 are needed, to keep some")
        order = np.random.default_rng(wanted.seed).permutation(len(first))
        cut = min(max(1, round(len(first) * fraction)), len(first) - 1)
        whole, kept = order[cut:], examples(trained[0], order[:cut])
    identity = [str(part._fingerprint) for part in parts.values()], tuple(wanted)
    return Source(examples(trained[0], whole), kept, look.channels, names, identity)


def _loaded(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"{name} is a data set of Hugging Face, which needs the library datasets: pip install "
            "'ddim_keras[datasets]'"
        ) from None
    repository, _, configuration = name.removeprefix(PREFIX).partition(":")
    try:
        return datasets.load_dataset(repository, configuration or None)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(f"{name} could not be loaded: {error}") from error


def _columns(features: Any, what: str) -> tuple[str, str | None]:
    """The names of the columns of images and of class labels."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if not images:
        raise ValueError(
            f"{what} has no column of images: its columns are "
            f"{', '.join(f'{name} ({kind})' for name, kind in kinds.items())}"
        )
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    image = "image" if "image" in images else images[0]
    return image, ("label" if "label" in labels else labels[0]) if labels else None


def _check_part(part: Any, what: str, image_name: str, label_name: str | None) -> None:
    """Raise ValueError if a split has no images, or lacks columns."""
    for name in (image_name, label_name):
        if name is not None and name not in part.features:
            raise ValueError(
                f"{what} has no column {name!r}, unlike the other: its columns are "
                f"{', '.join(part.features)}"
            )
    if not len(part):
        raise ValueError(f"{what} holds no images")


def _encoded(part: Any, column: str) -> Callable[[int], bytes]:
    """Return what gives the encoded image of an example by its number."""
    import datasets

    # Whatever format or transformation it gives its examples to others in.
    plain = part.with_format(None).select_columns([column])
    stored = plain.cast_column(column, datasets.Image(decode=False))

    def encoded_of(index: int) -> bytes:
        found = stored[int(index)][column]
        if found is None:
            raise ValueError(f"example {index} has no image: filter the data set first")
        if found["bytes"] is not None:
            return found["bytes"]
        import fsspec  # comes with datasets; the path may lead into an archive

        with fsspec.open(found["path"], "rb") as file:
            return file.read()

    return encoded_of


def _examples(
    part: Any,
    indices: np.ndarray,
    image_name: str,
    label_name: str | None,
    look: encoded.Look,
    wanted: Wanted,
    what: str,
) -> Examples:
    import tensorflow as tf

    labels = np.zeros(len(part), "int64")
    if label_name is not None:
        given = [-1 if label is None else label for label in part.with_format(None)[label_name]]
        labels = np.asarray(given, "int64")
        if (lacking := int((labels < 0).sum())) != 0:
            raise ValueError(
                f"{lacking} of {len(labels)} examples of {what} have no label: filter the data set "
                "first, or leave labels=False"
            )
    read = encoded.reader(look, wanted.background, what, _encoded(part, image_name))
    keys = (np.asarray(indices, "int64"), labels[indices])
    return Examples(tf.data.Dataset.from_tensor_slices(keys), read)
