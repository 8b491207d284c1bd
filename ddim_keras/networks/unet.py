"""The residual U-Net of the Keras DDIM example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from ddim_keras.networks.layers import BatchNormalization, ConditionedConv2D, SinusoidalEmbedding


def residual_unet(
    image_shape: tuple[int, int, int],
    widths: Sequence[int] = (32, 64, 96, 128),
    block_depth: int = 2,
    embedding_dims: int = 32,
    embedding_max_frequency: float = 1000.0,
    max_condition: float = 1.0,
    dtype: Any = None,
    name: str = "network",
) -> keras.Model:
    """Build a U-Net of pre-normalised residual blocks.

    Each level halves height and width by average pooling and doubles them back bilinearly; every residual block of
    the way down hands a skip connection to one of the way up. The noise variance enters as a sinusoidal embedding,
    joined to every pixel. The last convolution starts at zero, so the untrained network predicts 0.

    Args:
        image_shape: (height, width, channels); both sizes divisible by 2**(len(widths) - 1).
        widths: channels of each level, from the full resolution down.
        block_depth: residual blocks per level, each way.
        embedding_dims: features of the noise variance's embedding, even.
        embedding_max_frequency: its highest frequency, in periods over the range of the noise variance.
        max_condition: the upper end of that range: 1, or T where the network is given times from 1 to T instead.
        dtype: Keras dtype policy of the layers. The embedding and the last convolution are float32 in any case.
        name: name of the model.

    Returns:
        A functional model of [noisy images (batch, height, width, channels), noise variances (batch, 1, 1, 1)], which
        returns (batch, height, width, channels).

    Raises:
        ValueError: no widths, a width or a depth below 1, or a size that cannot be halved often enough.
    """
    check_levels(image_shape[:2], widths, block_depth)
    channels = image_shape[-1]

    def residual_block(x: Any, width: int) -> Any:
        residual = x if x.shape[-1] == width else layers.Conv2D(width, kernel_size=1, dtype=dtype)(x)
        x = BatchNormalization(dtype=dtype)(x)
        x = layers.Conv2D(width, kernel_size=3, padding="same", activation="swish", dtype=dtype)(x)
        x = layers.Conv2D(width, kernel_size=3, padding="same", dtype=dtype)(x)
        return layers.Add(dtype=dtype)([x, residual])

    def first_residual_block(x: Any, embedding: Any, width: int) -> Any:
        """A residual block of x joined with the embedding repeated over the image."""
        residual = ConditionedConv2D(width, kernel_size=1, dtype=dtype)([x, embedding])
        x, embedding = BatchNormalization(dtype=dtype)(x), BatchNormalization(dtype=dtype)(embedding)
        x = ConditionedConv2D(width, kernel_size=3, activation="swish", dtype=dtype)([x, embedding])
        x = layers.Conv2D(width, kernel_size=3, padding="same", dtype=dtype)(x)
        return layers.Add(dtype=dtype)([x, residual])

    noisy_images = keras.Input(image_shape, name="noisy_images")
    noise_variances = keras.Input((1, 1, 1), name="noise_variances")

    embedding = SinusoidalEmbedding(embedding_dims, embedding_max_frequency, max_condition)(noise_variances)
    x = layers.Conv2D(widths[0], kernel_size=1, dtype=dtype)(noisy_images)

    skips = []
    for level, width in enumerate(widths):
        for depth in range(block_depth):
            is_first = level == depth == 0
            x = first_residual_block(x, embedding, width) if is_first else residual_block(x, width)
            skips.append(x)
        if level < len(widths) - 1:
            x = layers.AveragePooling2D(2, dtype=dtype)(x)
    del skips[-block_depth:]  # the lowest level has none
    for width in reversed(widths[:-1]):
        x = layers.UpSampling2D(2, interpolation="bilinear", dtype=dtype)(x)
        for _ in range(block_depth):
            x = residual_block(layers.Concatenate(dtype=dtype)([x, skips.pop()]), width)

    outputs = layers.Conv2D(channels, kernel_size=1, kernel_initializer="zeros", dtype="float32", name="prediction")(x)
    return keras.Model([noisy_images, noise_variances], outputs, name=name)


def check_levels(image_size: Sequence[int], widths: Sequence[int], block_depth: int) -> None:
    """Raise ValueError, naming the nearest sizes that work, unless every level can halve the image."""
    if not widths or any(not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"widths must be one or more positive integers, the channels of each level, got {widths!r}")
    if not isinstance(block_depth, int) or block_depth < 1:
        raise ValueError(f"block_depth must be a positive integer, got {block_depth!r}")
    factor = 2 ** (len(widths) - 1)
    if all(size % factor == 0 for size in image_size):
        return
    nearest = [sorted({max(size // factor, 1) * factor, -(-size // factor) * factor}) for size in image_size]
    raise ValueError(
        f"image_size {tuple(image_size)} cannot be halved {len(widths) - 1} times, as {len(widths)} widths need: height and "
        f"width must be multiples of {factor}. Nearest that work: height {_either(nearest[0])}, width {_either(nearest[1])}; "
        "or give fewer widths"
    )


def _either(sizes: Sequence[int]) -> str:
    return " or ".join(map(str, sizes))
