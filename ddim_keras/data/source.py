"""What a folder or TFDS hands over: decoded examples, not yet of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import tensorflow as tf


EMBEDDED = "embedded"  # the name of the images that ship with the package


class Source(NamedTuple):
    """Decoded but not yet resized examples, as a folder or TFDS gives them.

    Attributes:
        train, validation: `tf.data.Dataset` of (uint8 image (height, width, channels), int64
            label); validation or None.
        channels: channels of the images.
        class_names: names of the labels, or None where there are none.
        identity: tells this source from others, and from itself after its files changed.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset | None
    channels: int
    class_names: Sequence[str] | None
    identity: Any
