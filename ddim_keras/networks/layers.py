"""The layers that Keras does not have."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.support import backend, replicas
from ddim_keras.support.progress import progress
from ddim_keras.support.types import Config, Data, Images, Shape, Tensor


class Float32Embedding(keras.layers.Layer):
    """Base class of layers from (..., 1) to (..., dims) that compute in float32 whatever the
    model's precision.
    """

    def __init__(self, dims: int, **kwargs: Any):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.dims = dims

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.dims)

    def get_config(self) -> Config:
        config = super().get_config()
        config.pop("dtype")
        return {**config, "dims": self.dims}


@keras.saving.register_keras_serializable("ddim_keras")
class SinusoidalEmbedding(Float32Embedding):
    """A scalar as sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017).

    Computed in float32 whatever the model's precision: at the highest frequency bfloat16 would
    leave only noise.

    Args:
        dims: number of features, even.
        max_frequency: in periods over the range of values; the lowest is 1.
        max_value: the upper end of that range.

    Input and output: (..., 1) and (..., dims).
    """

    def __init__(self, dims: int, max_frequency: float, max_value: float = 1.0, **kwargs: Any):
        super().__init__(dims, **kwargs)
        if dims < 2 or dims % 2:
            raise ValueError(
                "the embedding's dims must be even and at least 2 (a sine and a cosine each), got "
                f"{dims}"
            )
        if max_frequency < 1.0:
            raise ValueError(
                "the embedding's max_frequency must be at least 1, the lowest frequency, got "
                f"{max_frequency}"
            )
        self.max_frequency = float(max_frequency)
        self.max_value = float(max_value)
        periods = np.geomspace(1.0, self.max_frequency, dims // 2) / self.max_value
        self._angular_speeds = (2.0 * math.pi * periods).astype("float32")

    def call(self, values):
        angles = values * self._angular_speeds
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def get_config(self) -> Config:
        own = {"max_frequency": self.max_frequency, "max_value": self.max_value}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("ddim_keras")
class ConditionedConv2D(keras.layers.Conv2D):
    """A "same" convolution of images joined with a vector that is the same at every pixel.

    Its weights and its result are those of `Conv2D` on the images concatenated with the repeated
    vector. But what a kernel makes of a repeated vector differs only at the borders: it is worked
    out on 3 x 3 pixels and spread from there, which saves a twentieth of the work of the example's
    network.

    Args:
        filters: channels of the output.
        kernel_size: 1 or 3.
        **kwargs: as for `keras.layers.Conv2D`.

    Input: [images (batch, height, width, channels), vectors (batch, 1, 1, features)].
    Output: (batch, height, width, filters).
    """

    def __init__(self, filters: int, kernel_size: int | tuple[int, int], **kwargs: Any):
        super().__init__(
            filters, kernel_size, **{**kwargs, "padding": "same", "data_format": "channels_last"}
        )
        self.input_spec = None  # Conv2D's wants a single input; its build says so again
        if self.kernel_size not in ((1, 1), (3, 3)):
            raise ValueError(f"kernel_size must be 1 or 3, got {kernel_size}")

    def build(self, input_shape):
        images, vectors = input_shape
        super().build((*images[:-1], images[-1] + vectors[-1]))
        self.input_spec = None

    def call(self, inputs):
        images, vectors = inputs
        channels = images.shape[-1]
        outputs = ops.conv(
            images, self.kernel[:, :, :channels], padding="same", data_format="channels_last"
        )
        outputs = outputs + self._spread(vectors, self.kernel[:, :, channels:], images.shape[1:3])
        return self.activation(outputs + self.bias)

    def _spread(self, vectors, kernel, size):
        small = [min(side, length) for side, length in zip(self.kernel_size, size)]
        vectors = ops.tile(vectors, (1, *small, 1))
        outputs = ops.conv(vectors, kernel, padding="same", data_format="channels_last")
        for axis in (2, 1):
            missing = size[axis - 1] - small[axis - 1]
            if small[axis - 1] == 3 and missing:
                first, middle, last = ops.split(outputs, 3, axis=axis)
                outputs = ops.concatenate(
                    [first, ops.repeat(middle, 1 + missing, axis=axis), last], axis=axis
                )
        return outputs

    def compute_output_shape(self, input_shape):
        # Conv2D's build asks with a single shape.
        return (*_shape_of_images(input_shape)[:-1], self.filters)


@keras.saving.register_keras_serializable("ddim_keras")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalisation without gain and bias, in one fused kernel where the backend has
    one.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{**kwargs, "center": False, "scale": False})

    def call(self, inputs, training=None):
        training = training and self.trainable
        statistics = () if training else (self.moving_mean.value, self.moving_variance.value)
        fused = backend.fused_batch_normalization(inputs, self.epsilon, *statistics)
        if fused is None:
            return super().call(inputs, training=training)
        outputs, mean, variance = fused
        if training:
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1.0 - self.momentum))
            self.moving_variance.assign(
                self.moving_variance * self.momentum + variance * (1.0 - self.momentum)
            )
        return outputs


@keras.saving.register_keras_serializable("ddim_keras")
class GroupNormalization(keras.layers.GroupNormalization):
    """Keras's group normalisation of images, from sums over each channel, which a CPU makes a
    quarter to a third sooner. Vectors that are added to every pixel first are only added to sums.

    Input: images (batch, height, width, channels), or [images, vectors (batch, 1, 1, channels)].
    Output: as the images. The statistics are float32 whatever the precision.
    """

    def build(self, input_shape):
        super().build(_shape_of_images(input_shape))
        if isinstance(input_shape[0], (tuple, list)):
            self.input_spec = None  # Keras's wants a single input

    def call(self, inputs):
        images, vectors = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        height, width, channels = images.shape[1:]
        groups = (-1, self.groups, channels // self.groups)
        values, pixels = ops.cast(images, "float32"), height * width
        # Of each channel, then of each group.
        means = ops.sum(values, axis=(1, 2)) / pixels
        variances = ops.sum(ops.square(values), axis=(1, 2)) / pixels - ops.square(means)
        added = 0.0 if vectors is None else ops.reshape(ops.cast(vectors, "float32"), groups)
        means, variances = ops.reshape(means, groups), ops.reshape(variances, groups)
        from_mean = means + added
        from_mean = from_mean - ops.mean(from_mean, axis=-1, keepdims=True)
        variances = ops.mean(variances + ops.square(from_mean), axis=-1, keepdims=True)
        gains, biases = (
            ops.reshape(ops.cast(part, "float32"), groups[1:]) for part in (self.gamma, self.beta)
        )
        scales = gains / ops.sqrt(ops.maximum(variances, 0.0) + self.epsilon)
        scales, offsets = (
            ops.reshape(ops.cast(part, images.dtype), (-1, 1, 1, channels))
            for part in (scales, biases + (from_mean - means) * scales)
        )
        return images * scales + offsets

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(_shape_of_images(input_shape))


def _shape_of_images(input_shape: Any) -> Shape:
    """The first of several shapes, or the only one."""
    return input_shape[0] if isinstance(input_shape[0], (tuple, list)) else input_shape


@keras.saving.register_keras_serializable("ddim_keras")
class BilinearUpsampling2D(keras.layers.UpSampling2D):
    """Keras's bilinear upsampling of images, in half the time where precision is halved."""

    def __init__(self, size: int | tuple[int, int] = 2, **kwargs: Any):
        fixed = {"data_format": "channels_last", "interpolation": "bilinear"}
        super().__init__(size, **{**kwargs, **fixed})

    def call(self, inputs):
        height, width = (side * factor for side, factor in zip(inputs.shape[1:3], self.size))
        resized = backend.resized_bilinearly(inputs, (height, width))
        return super().call(inputs) if resized is None else resized


@keras.saving.register_keras_serializable("ddim_keras")
class Swish(keras.layers.Layer):
    """x sigmoid(x) (Ramachandran et al. 2017), with a gradient that is quick in half precision."""

    def call(self, inputs):
        return backend.swish(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> Config:
        # Keras's own asks for one of a layer that is given a policy of half precision.
        return super().get_config()


@keras.saving.register_keras_serializable("ddim_keras")
class Dropout(keras.layers.Dropout):
    """Keras's dropout, which leaves out what one device would, on any number of them."""

    def call(self, inputs, training=False):
        if not training or not self.rate or backend.replica()[1] == 1:
            return super().call(inputs, training=training)
        shape = (ops.shape(inputs)[0], *inputs.shape[1:])
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        kept = replicas.uniform(shape, self.seed_generator, dtype) >= self.rate
        return ops.where(kept, inputs / (1.0 - self.rate), ops.zeros_like(inputs))


@keras.saving.register_keras_serializable("ddim_keras")
class ImageNormalization(keras.layers.Layer):
    """Images in [0, 1] (or uint8) to zero mean and unit variance in each channel.

    `adapt` measures mean and variance over a data set, in float64. A channel that never varies (an
    opaque alpha, say) is only centred.

    Input: (batch, height, width, channels). Output: the same in float32.
    """

    def __init__(self, **kwargs: Any):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.image_shape: tuple[int, ...] = ()
        self.fixed = False

    def build(self, input_shape):
        self.image_shape = tuple(input_shape[1:])
        channels = (input_shape[-1],)
        self.mean = self.add_weight(
            shape=channels, initializer="zeros", trainable=False, name="mean"
        )
        self.variance = self.add_weight(
            shape=channels, initializer="ones", trainable=False, name="variance"
        )
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")
        self.built = True

    @property
    def adapted(self) -> bool:
        """Whether `adapt` has run, in this process or before the weights were saved."""
        return bool(ops.convert_to_numpy(self.count) > 0.0)

    def adapt(
        self, data: Data, batch_size: int = 256, steps: int | None = None, verbose: int = 0
    ) -> None:
        """Measure mean and variance of each channel; what an earlier `adapt` measured is forgotten.
        Does nothing after `fix`.

        Args:
            data: images in any form that `DiffusionModel.fit` takes: an array, a `tf.data.Dataset`,
                a `keras.utils.PyDataset` or another iterable of batches. Labels and weights are
                ignored. All images are checked on the way.
            batch_size: images at a time, for an array.
            steps: number of batches to look at; None for all of them.
            verbose: 1 shows a progress bar.

        Raises:
            ValueError: no images, or images of a wrong shape, outside [0, 1] or not finite.
        """
        if self.fixed:
            return
        total, count = np.zeros((2, 1)), 0
        batches, number = inputs.iterate_batches(data, batch_size)
        if steps is not None:
            number = steps if number is None else min(steps, number)
        bar = progress(number, "batches") if verbose else None
        for index, batch in enumerate(batches):
            if steps is not None and index >= steps:
                break
            images = inputs.as_array(batch.images)
            if not self.built:
                self.build((None, *images.shape[1:]))
            inputs.check_images(images, self.image_shape)
            pixels = images.reshape(-1, images.shape[-1])
            if images.dtype != np.uint8:
                pixels = np.clip(pixels.astype("float64"), 0.0, 1.0)  # what resizing overshot
            sums = np.stack(
                [pixels.sum(0, dtype="float64"), np.square(pixels, dtype="float64").sum(0)]
            )
            if images.dtype == np.uint8:
                sums /= np.array([[255.0], [255.0**2]])
            total = total + sums
            count += len(pixels)
            if bar is not None:
                bar.update(index + 1)
        if not count:
            raise ValueError(
                "the data set is empty: the normalizer needs at least one batch of images to adapt "
                "to"
            )
        if bar is not None:
            bar.update(index + 1, finalize=True)
        mean, square = total / count
        self.mean.assign(mean)
        self.variance.assign(np.maximum(square - mean**2, 0.0))
        self.count.assign(float(count))

    def fix(self, mean: float, deviation: float) -> None:
        """Take a mean and a standard deviation for all channels, instead of measuring them."""
        self.mean.assign(np.full(self.mean.shape, mean))
        self.variance.assign(np.full(self.variance.shape, deviation**2))
        self.count.assign(1.0)
        self.fixed = True

    def standard_deviation(self) -> Tensor:
        """Return the scale of each channel, shape (channels,); 1 for a channel that does not
        vary.
        """
        return ops.where(self.variance > 1e-8, ops.sqrt(self.variance), 1.0)

    def scales(self) -> np.ndarray:
        """Return mean and standard deviation of each channel, shape (2, channels)."""
        parts = (self.mean, self.standard_deviation())
        return np.stack([ops.convert_to_numpy(part) for part in parts])

    def call(self, images):
        return (inputs.as_unit_range(images) - self.mean) / self.standard_deviation()

    def denormalize(self, images: Images) -> Images:
        """Return zero-mean unit-variance images to [0, 1], clipped."""
        return ops.clip(self.mean + images * self.standard_deviation(), 0.0, 1.0)

    def get_build_config(self) -> Config:
        return {"input_shape": (None, *self.image_shape)} if self.image_shape else {}

    def compute_output_shape(self, input_shape):
        return input_shape
