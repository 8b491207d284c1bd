"""The layers of the DDPM network that Keras does not have."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from ddim_keras.networks.layers import Float32Embedding
from ddim_keras.support import backend
from ddim_keras.support.arguments import truth
from ddim_keras.support.types import Config, Tensor


@keras.saving.register_keras_serializable("ddim_keras")
class TimeEmbedding(Float32Embedding):
    """Integer times as sines and cosines of falling frequencies (Vaswani et al. 2017).

        frequency_k = 10000 ** (-k / (dims / 2 - shift)),  k = 0, ..., dims / 2 - 1

    Computed in float32 whatever the model's precision.

    Args:
        dims: number of features, even.
        cosines_first: whether the cosines come before the sines.
        shift: 1 puts the last frequency at 1 / 10000, as Ho et al. 2020 do, 0 just before it.
        first_time: what the first of the times, 1, counts as: 0 in the published networks.
        scale: what times are multiplied by then.

    Input and output: (..., 1) and (..., dims).
    """

    def __init__(
        self,
        dims: int,
        cosines_first: bool = False,
        shift: float = 1.0,
        first_time: float = 0.0,
        scale: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(dims, **kwargs)
        if dims < 4 or dims % 2:
            raise ValueError(f"the embedding's dims must be even and at least 4, got {dims}")
        if not shift < dims // 2:
            raise ValueError(f"the embedding's shift must be below dims / 2, got {shift}")
        self.cosines_first = truth("cosines_first", cosines_first)
        self.shift = float(shift)
        self.first_time = float(first_time)
        self.scale = float(scale)
        places = np.arange(dims // 2) / (dims // 2 - self.shift)
        self._frequencies = np.exp(-math.log(10000.0) * places).astype("float32")

    def call(self, times):
        counted = times - 1.0 + self.first_time
        counted = counted if self.scale == 1.0 else counted * self.scale
        angles = counted * self._frequencies
        parts = [ops.sin(angles), ops.cos(angles)]
        return ops.concatenate(parts[::-1] if self.cosines_first else parts, axis=-1)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "cosines_first": self.cosines_first,
            "shift": self.shift,
            "first_time": self.first_time,
            "scale": self.scale,
        }


@keras.saving.register_keras_serializable("ddim_keras")
class Conv2D(layers.Conv2D):
    """Keras's convolution of images, which may double their size on the way.

    Files call weights after their layer's class, and so its name is Keras's.

    Args:
        doubles: whether a 3 x 3 "same" convolution is of images with every pixel repeated 2 x 2
            times. On a processor, TensorFlow then adds up the weights that meet the same pixel
            first: 2 x 2 of them remain, for each of four kinds of places, four ninths of the work.
        filters, kernel_size, **kwargs: as for `keras.layers.Conv2D`.

    Input and output: (batch, height, width, channels) and, with `doubles`, (batch, 2 height, 2
    width, filters).
    """

    def __init__(self, filters: int, kernel_size: Any, doubles: bool = False, **kwargs: Any):
        super().__init__(filters, kernel_size, **{**kwargs, "data_format": "channels_last"})
        self.doubles = truth("doubles", doubles)
        if doubles and (self.kernel_size, self.padding) != ((3, 3), "same"):
            raise ValueError(
                f'only a 3 x 3 "same" convolution doubles, got {kernel_size} and {self.padding!r}'
            )

    def call(self, inputs):
        if not self.doubles:
            return super().call(inputs)
        if not backend.is_tensorflow_on_processor():
            return super().call(ops.repeat(ops.repeat(inputs, 2, axis=1), 2, axis=2))
        height, width = inputs.shape[1:3]
        padded = ops.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]])
        rows = []
        for top, kernels in enumerate(_of_repeated_pixels(self.kernel, axis=0)):
            places = [
                ops.conv(
                    padded[:, top : top + height + 1, left : left + width + 1],
                    kernel,
                    padding="valid",
                    data_format="channels_last",
                )
                + self.bias
                for left, kernel in enumerate(_of_repeated_pixels(kernels, axis=1))
            ]
            rows.append(ops.stack(places, axis=3))
        doubled = ops.stack(rows, axis=2)
        return ops.reshape(doubled, (-1, 2 * height, 2 * width, self.filters))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        if self.doubles:
            height, width = (None if side is None else 2 * side for side in (height, width))
        return super().compute_output_shape((batch, height, width, channels))

    def get_config(self) -> Config:
        return {**super().get_config(), "doubles": self.doubles}


def _of_repeated_pixels(kernel: Tensor, axis: int) -> list[Tensor]:
    """What two neighbours weigh at the first and at the second place between them, of three weights
    along an axis.
    """
    first, middle, last = ops.split(kernel, 3, axis=axis)
    pairs = ((first, middle + last), (first + middle, last))
    return [ops.concatenate(pair, axis=axis) for pair in pairs]


@keras.saving.register_keras_serializable("ddim_keras")
class SelfAttention2D(layers.Layer):
    """Self-attention over the pixels of images, with one product for queries, keys and values.

    Args:
        head_channels: of each head; None for a single head with all channels.
        output_initializer: of the last product's weights.

    Input and output: (batch, height, width, channels).

    Source: Vaswani et al. 2017; Ho, Jain & Abbeel 2020, appendix B.
    """

    def __init__(
        self,
        head_channels: int | None = None,
        output_initializer: str = "zeros",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.head_channels = head_channels
        self.output_initializer = output_initializer

    def build(self, input_shape):
        channels = input_shape[-1]
        size = channels if self.head_channels is None else self.head_channels
        if size < 1 or channels % size:
            raise ValueError(
                f"head_channels must divide the channels, {channels}, got {self.head_channels}"
            )
        self.heads = channels // size
        self.joint = layers.Dense(3 * channels, dtype=self.dtype_policy, name="query_key_value")
        self.last = layers.Dense(
            channels,
            kernel_initializer=self.output_initializer,
            dtype=self.dtype_policy,
            name="output",
        )
        self.joint.build((None, channels))
        self.last.build((None, channels))
        self.built = True

    def call(self, images):
        height, width, channels = images.shape[1:]
        # All images' pixels in one matrix: TensorFlow then adds the bias as it multiplies.
        pixels = ops.reshape(images, (-1, channels))
        shape = (-1, height * width, 3 * self.heads, channels // self.heads)
        parts = ops.split(ops.reshape(self.joint(pixels), shape), 3, axis=2)
        seen = ops.dot_product_attention(*backend.for_attention(parts))
        seen = ops.cast(ops.reshape(seen, (-1, channels)), pixels.dtype)
        return ops.reshape(self.last(seen), (-1, height, width, channels))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "head_channels": self.head_channels,
            "output_initializer": self.output_initializer,
        }


@keras.saving.register_keras_serializable("ddim_keras")
class Modulation(layers.Layer):
    """x (1 + scale) + shift: what a vector says of the time put into normalised images (Nichol &
    Dhariwal 2021).

    Input: [images (batch, height, width, channels), vectors (batch, 1, 1, 2 channels)], the scales
    before the shifts. Output: as the images.
    """

    def call(self, inputs):
        images, vectors = inputs
        scales, shifts = ops.split(vectors, 2, axis=-1)
        return images * (1.0 + scales) + shifts

    def compute_output_shape(self, input_shape):
        return input_shape[0]


@keras.saving.register_keras_serializable("ddim_keras")
class Scaling(layers.Layer):
    """factor x + offset.

    Args:
        factor, offset: numbers.
    """

    def __init__(self, factor: float, offset: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.factor, self.offset = float(factor), float(offset)

    def call(self, inputs):
        return inputs * self.factor + self.offset

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> Config:
        return {**super().get_config(), "factor": self.factor, "offset": self.offset}
