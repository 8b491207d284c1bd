"""Random data sets of `tf.data` whose seed may be a tensor, as another data set makes it.

`Dataset.shuffle` and `Dataset.random` want a number of Python. The order is that of the same seed
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

_DEFAULT_GLOBAL_SEED = 87654321
_LARGEST = 2**31 - 1


def shuffled(dataset: tf.data.Dataset, room: int, seed: Any) -> tf.data.Dataset:
    """As `dataset.shuffle(room, seed, reshuffle_each_iteration=False)`.

    Args:
        dataset: what to shuffle.
        room: how many examples are held.
        seed: int64 scalar.
    """
    import tensorflow as tf

    variant = tf.raw_ops.ShuffleDatasetV3(
        input_dataset=tf.data.experimental.to_variant(dataset),
        buffer_size=tf.constant(room, tf.int64),
        **_seeds(seed),
        seed_generator=tf.raw_ops.DummySeedGenerator(),
        reshuffle_each_iteration=False,
        **_outputs(dataset.element_spec),
    )
    return tf.data.experimental.from_variant(variant, dataset.element_spec)


def random(seed: Any) -> tf.data.Dataset:
    """As `tf.data.Dataset.random(seed)`: endless int64 numbers.

    Args:
        seed: int64 scalar.
    """
    import tensorflow as tf

    spec = tf.TensorSpec((), tf.int64)
    variant = tf.raw_ops.RandomDataset(**_seeds(seed), **_outputs(spec))
    return tf.data.experimental.from_variant(variant, spec)


def _seeds(seed: Any) -> dict[str, Any]:
    """The pair that TensorFlow makes of its own seed and that of one data set."""
    import tensorflow as tf

    own = tf.compat.v1.get_default_graph().seed
    first = tf.constant(_DEFAULT_GLOBAL_SEED if own is None else own % _LARGEST, tf.int64)
    second = tf.cast(seed, tf.int64) % _LARGEST
    second = tf.where((first == 0) & (second == 0), tf.constant(_LARGEST, tf.int64), second)
    return {"seed": first, "seed2": second}


def _outputs(spec: Any) -> dict[str, Any]:
    import tensorflow as tf

    parts = tf.nest.flatten(spec)
    return {
        "output_types": [part.dtype for part in parts],
        "output_shapes": [part.shape for part in parts],
    }
