"""What one backend computes more quickly, or the other one not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from ddim_keras.support.backend.devices import replica, sum_over_replicas
from ddim_keras.support.backend.which import BACKEND, on_accelerator
from ddim_keras.support.types import Images, Shape, Tensor


def attention_policy(policy: keras.DTypePolicy) -> keras.DTypePolicy:
    """Return the dtype policy of self-attention in a network of the given one.

    On a CPU, JAX has no product of float16 matrices that is summed in float32, as attention needs
    it: there it computes in float32.
    """
    return keras.DTypePolicy("float32") if _cannot_attend(policy.compute_dtype) else policy


def for_attention(parts: Sequence[Any]) -> list[Any]:
    """Return queries, keys and values in a type in which the backend can attend, see
    `attention_policy`.
    """
    if _cannot_attend(keras.backend.standardize_dtype(parts[0].dtype)):
        return [keras.ops.cast(part, "float32") for part in parts]
    return list(parts)


def _cannot_attend(dtype: str) -> bool:
    return BACKEND == "jax" and dtype == "float16" and not on_accelerator()


def random_numbers_from(
    kind: str, shape: Shape, seed: Tensor, skipped: Tensor, dtype: str
) -> Tensor:
    """Return the random numbers that TensorFlow draws for a seed, without the first ones.

    Args:
        kind: "uniform" or "normal".
        shape: of what is returned.
        seed: as `keras.random.SeedGenerator.next` gives it.
        skipped: so many times four numbers are left out.
        dtype: of the numbers.
    """
    import tensorflow as tf

    seed = tf.cast(tf.math.floormod(seed, tf.int32.max - 1), tf.int32)  # as Keras does
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    counter = tf.concat([counter[:1] + tf.cast(skipped, tf.uint64), counter[1:]], axis=0)
    operation = {
        "uniform": tf.raw_ops.StatelessRandomUniformV2,
        "normal": tf.raw_ops.StatelessRandomNormalV2,
    }[kind]
    chosen_by_tensorflow = 3
    return operation(
        shape=tf.stack(shape), key=key, counter=counter, alg=chosen_by_tensorflow, dtype=dtype
    )


def fused_batch_normalization(
    inputs: Tensor, epsilon: float, mean: Tensor = None, variance: Tensor = None
) -> tuple | None:
    """Normalise over all axes but the last in one kernel, or return None where the backend has
    none.

    TensorFlow's fused kernel is what makes a float32 training step on a CPU a fifth quicker than
    Keras's own layer; XLA, and so JAX, fuses that layer by itself.

    Args:
        inputs: (batch, height, width, channels), any float type; for float64 there is no such
            kernel.
        epsilon: added to the variance.
        mean, variance: statistics of shape (channels,) to normalise with; None for those of
            `inputs`.

    Returns:
        (outputs, mean, biased variance), the statistics in float32.
    """
    if BACKEND != "tensorflow" or inputs.dtype == "float64":
        return None
    import tensorflow as tf

    if mean is None and replica()[1] > 1:
        return _normalized_over_replicas(inputs, epsilon)
    channels = inputs.shape[-1]
    outputs, batch_mean, batch_variance = tf.compat.v1.nn.fused_batch_norm(
        inputs,
        tf.ones(channels),
        tf.zeros(channels),
        mean=None if mean is None else tf.cast(mean, "float32"),
        variance=None if variance is None else tf.cast(variance, "float32"),
        epsilon=epsilon,
        is_training=mean is None,
    )
    if mean is not None:
        return outputs, mean, variance
    count = tf.cast(
        tf.size(inputs) // channels, "float32"
    )  # the kernel returns the unbiased variance
    return outputs, batch_mean, batch_variance * ((count - 1.0) / count)


def _normalized_over_replicas(inputs: Any, epsilon: float) -> tuple:
    """As `fused_batch_normalization`, with the statistics of the whole batch, of which each replica
    has a part of the same size.
    """
    import tensorflow as tf

    values = tf.cast(inputs, "float32")
    mean, variance = tf.nn.moments(values, axes=[0, 1, 2])
    sums = sum_over_replicas(tf.stack([mean, variance + tf.square(mean)]))
    mean, square = tf.unstack(sums / replica()[1])
    variance = tf.maximum(square - tf.square(mean), 0.0)
    outputs = (values - mean) * tf.math.rsqrt(variance + epsilon)
    return tf.cast(outputs, inputs.dtype), mean, variance


def resized_bilinearly(images: Images, size: tuple[int, int]) -> Images | None:
    """Return images (batch, height, width, channels) of another size, or None where the backend
    has nothing quicker than Keras's own function.

    In half precision that one looks for overflows, which a mean of neighbours cannot have, in more
    time than resizing takes.
    """
    if BACKEND != "tensorflow":
        return None
    import tensorflow as tf

    resized = tf.raw_ops.ResizeBilinear(images=images, size=size, half_pixel_centers=True)
    return tf.cast(resized, images.dtype)


def swish(x: Tensor) -> Tensor:
    """Return x sigmoid(x), with a gradient whose sigmoid TensorFlow works out in float32.

    In half precision it takes three times as long.
    """
    if BACKEND != "tensorflow":
        return keras.activations.swish(x)
    import tensorflow as tf

    @tf.custom_gradient
    def with_gradient(x):
        outputs = tf.nn.silu(x)

        def gradient(upstream):
            sigmoid = tf.cast(tf.sigmoid(tf.cast(x, "float32")), x.dtype)
            return upstream * (sigmoid + outputs * (1.0 - sigmoid))

        return outputs, gradient

    return with_gradient(x)
