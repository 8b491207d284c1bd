"""What a folder or TFDS hands over: decoded examples, not yet of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ddim_keras.data.colours import WHITE, Colour
from ddim_keras.support.types import Split

if TYPE_CHECKING:
    import tensorflow as tf


EMBEDDED = "embedded"  # the name of the images that ship with the package


class Wanted(NamedTuple):
    """What the caller of `load_dataset` says of a source.

    Attributes:
        split, channels, seed, labels, unreadable, bits: as for `load_dataset`.
        background: a colour, parsed.
    """

    split: Split = None
    channels: int | None = None
    seed: int = 0
    labels: bool = False
    unreadable: str = "refuse"
    background: Colour = WHITE
    bits: int | None = None


class Examples(NamedTuple):
    """Examples that can be shuffled before they are read.

    Attributes:
        keys: a data set of what each is found by, small.
        read: makes an example of one: the parts of a key -> (uint8 image, int64 label).
    """

    keys: tf.data.Dataset
    read: Callable

    def decoded(self) -> tf.data.Dataset:
        """Return the data set of all examples, in their order."""
        import tensorflow as tf

        return self.keys.map(self.read, num_parallel_calls=tf.data.AUTOTUNE)


class Source(NamedTuple):
    """Decoded but not yet resized examples, as a folder or TFDS gives them.

    Attributes:
        train, validation: `tf.data.Dataset` of (uint8 image (height, width, channels), int64
            label), or `Examples` of them; validation or None.
        channels: channels of the images.
        class_names: names of the labels, or None where there are none.
        identity: tells this source from others, and from itself after its files changed.
        key_bytes: of what an example is shuffled as, on average, where that is not small.
    """

    train: tf.data.Dataset | Examples
    validation: tf.data.Dataset | Examples | None
    channels: int
    class_names: Sequence[str] | None
    identity: Any
    key_bytes: int = 0
