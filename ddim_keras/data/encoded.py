"""Image data sets whose examples are encoded images in one file or table: what their sources share.

Their examples are shuffled as bytes or as numbers, and decoded afterwards by the same code as files
in a folder.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddim_keras.data import colours, decoding, depth, ending, image_checks
from ddim_keras.data.colours import Colour
from ddim_keras.data.source import Examples, Wanted
from ddim_keras.support.types import Dataset, Split

_LOOKED_AT = 64  # examples, to find out channels and depth
_PARTS = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class Look(NamedTuple):
    """What the first examples show.

    Attributes:
        channels: 1 if all are grey, else 3; or what the caller wants.
        bits: of images deeper than 8 bits.
    """

    channels: int
    bits: int


def look_at(images: Iterable[bytes], wanted: Wanted, what: str) -> Look:
    """Decode the first images of a data set, to find out what it holds.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    facts = []
    for number, encoded in enumerate(itertools.islice(images, _LOOKED_AT)):
        try:
            facts.append(decoding.examine(io.BytesIO(encoded), wanted.bits))
        except Exception as error:  # decoders raise whatever they like on damaged files
            raise ValueError(
                f"image {number} of {what} cannot be read ({_said(error)}): repair it or leave it "
                "out"
            ) from error
    if not facts:
        raise ValueError(f"{what} holds no images")
    transparent = sum(fact.transparent for fact in facts)
    if transparent and wanted.channels != 4:
        colours.warn_of_transparency(
            f"{transparent} of the first {len(facts)} images of {what}", "", wanted.background
        )
    names = [f"image {number}" for number in range(len(facts))]
    bits = max(depth.settle([fact.depth for fact in facts], names, what))
    own = 1 if all(fact.grey for fact in facts) and colours.is_grey(wanted.background) else 3
    return Look(wanted.channels or own, wanted.bits or bits)


def _said(error: Exception) -> str:
    """The words of a decoder's error; Pillow names the object in memory, of which nobody knows."""
    words = re.sub(r" <_io.BytesIO object at \w+>", "", str(error))
    return f"{type(error).__name__}: {words}"


def reader(look: Look, background: Colour, what: str, encoded_of: Callable | None = None) -> Any:
    """Return a function of `tf.data`: (encoded image, label) -> (uint8 image, label).

    Args:
        look: what the images are.
        background: the colour under what is transparent.
        what: what to call the data set in a message.
        encoded_of: called with the first part of a key, gives the encoded image; None if it is
            that already.
    """
    import tensorflow as tf

    @ending.ended_before_python
    def read_one(key: Any) -> np.ndarray:
        try:
            encoded = key if encoded_of is None else encoded_of(int(key))
            return decoding.read_image(
                io.BytesIO(encoded), look.channels, background, int(look.bits)
            )
        except Exception as error:
            message = f"an image of {what} cannot be read ({_said(error)})"
            raise ValueError(
                f"{image_checks.ERROR_START}{message}{image_checks.ERROR_END}"
            ) from error

    def read(key, label):
        image = tf.numpy_function(read_one, [key], tf.uint8)
        image.set_shape((None, None, look.channels))
        return image, label

    return read


def divided(
    dataset: Dataset, number: int, read: Callable, split: Split, what: str
) -> tuple[Examples, Examples | None]:
    """Return a part to train on and one to validate on, of a data set that is read in its order:
    every so many examples are kept.
    """
    import tensorflow as tf

    fraction = check_fraction(split, what)
    if fraction == 0.0:
        return Examples(dataset, read), None
    stride = max(2, round(1.0 / fraction))
    kept = -(-number // stride)
    if number < 2:
        raise ValueError(f"{what} holds {number} images: at least 2 are needed, to keep some")

    def part(is_kept: bool, size: int) -> Dataset:
        numbered = dataset.enumerate().filter(
            lambda index, example: tf.equal(tf.equal(index % stride, 0), is_kept)
        )
        examples = numbered.map(lambda index, example: example)
        return examples.apply(tf.data.experimental.assert_cardinality(size))

    return Examples(part(False, number - kept), read), Examples(part(True, kept), read)


def check_fraction(split: Split, what: str) -> float:
    """Return the share of images that is kept for validation; 0.2 where nothing is said."""
    if split is None:
        return 0.2
    if isinstance(split, (int, float)) and not isinstance(split, bool) and 0.0 <= split <= 0.5:
        return float(split)
    raise ValueError(
        f"split of {what} must be the fraction of images kept for validation, from 0 to 0.5, got "
        f"{split!r}"
    )


def by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Return which names speak of which part: "training", "validation", "test", or "" of none."""
    found: dict[str, list[str]] = {}
    for name in names:
        words = set(re.split(r"[^a-z]+", name.lower()))
        kinds = [kind for kind, known in _PARTS.items() if words & set(known)]
        found.setdefault(kinds[0] if len(kinds) == 1 else "", []).append(name)
    return found


def train_and_held_out(
    names: Sequence[str], split: Split, what: str
) -> tuple[list[str], list[str] | None]:
    """Return the names to train on, and those to validate on: None if a fraction of the first is
    to be kept.

    Raises:
        ValueError: a split names what is not there.
    """
    if isinstance(split, (tuple, list)):
        if len(split) != 2 or not all(part is None or part in names for part in split):
            raise ValueError(
                f"split of {what} must be a pair of {', '.join(names[:10])}, the second or None, "
                f"or a fraction, got {split!r}"
            )
        return [split[0]], [split[1]] if split[1] is not None else []
    found = by_name(names)
    held_out = found.get("validation") or found.get("test")
    if split is None and found.get("training") and held_out:
        return found["training"], held_out
    return list(names), None
