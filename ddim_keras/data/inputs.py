"""What may be given as images: arrays, data sets and generators, checked before they reach the network."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras.support import backend

# Resizing may overshoot [0, 1] by a rounding error; more than this is another range.
_RANGE_TOLERANCE = 1e-3
_NOT_FINITE = "{what} contain NaN or infinity: remove or repair those images before training"
_OUT_OF_RANGE = (
    "{what} are out of range: got values from {smallest} to {largest}, expected floats in [0, 1] or uint8: divide by 255 if "
    "they run from 0 to 255, add 1 and halve if they run from -1 to 1"
)
# TensorFlow wraps the message of a failed assertion in its own words; these find it again.
_ERROR_START, _ERROR_END = "<ddim_keras input error>", "</ddim_keras input error>"


def as_unit_range(images: Any) -> Any:
    """Return images as float32 in [0, 1]: uint8 is divided by 255, floats are only cast."""
    images = ops.convert_to_tensor(images)
    if keras.backend.standardize_dtype(images.dtype) == "uint8":
        return ops.cast(images, "float32") / 255.0
    return ops.cast(images, "float32")


def images_of(batch: Any) -> Any:
    """Return the images of a batch that is images, (images,), (images, labels) or (images, labels, weights)."""
    if isinstance(batch, (tuple, list)):
        batch = batch[0]
    if isinstance(batch, dict):
        raise ValueError(
            f"a batch must be images or (images, labels), got a dictionary with keys {sorted(batch)}: pick the images out of "
            "it first, for instance with dataset.map(lambda example: example['image'])"
        )
    return batch


def check_images(images: Any, image_shape: tuple[int, ...], what: str = "images") -> None:
    """Raise ValueError unless `images` are a batch of the given shape, finite and in [0, 1] (or uint8).

    Args:
        images: array of shape (batch, height, width, channels).
        image_shape: the (height, width, channels) expected.
        what: what to call them in the message.
    """
    check_shape(images.shape, image_shape, what)
    check_dtype(images.dtype, what)
    if images.dtype != np.uint8 and images.size:
        check_range(float(np.min(images)), float(np.max(images)), what)


def check_shape(shape: Any, image_shape: tuple[int, ...], what: str = "images") -> None:
    """Raise ValueError unless `shape` is (batch, *image_shape), where None matches anything."""
    shape = tuple(shape)
    expected = f"expected (batch, height, width, channels) = (batch, {', '.join(map(str, image_shape))})"
    if len(shape) != 4:
        hint = ""
        if len(shape) == 3:
            hint = (
                ": add the channel axis with images[..., None]"
                if image_shape[-1] == 1
                else ": one image is images[None]"
            )
        raise ValueError(f"{what} have the wrong rank: got shape {shape}, {expected}{hint}")
    if shape[-1] not in (None, image_shape[-1]):
        raise ValueError(
            f"{what} have {shape[-1]} channels: got shape {shape}, {expected}: convert them, or build the model with "
            f"channels={shape[-1]}"
        )
    if any(size not in (None, wanted) for size, wanted in zip(shape[1:3], image_shape[:2])):
        raise ValueError(
            f"{what} have the wrong size: got shape {shape}, {expected}: resize them, or build the model with "
            f"image_size={shape[1:3]}"
        )


def check_dtype(dtype: Any, what: str = "images") -> None:
    """Raise ValueError unless the dtype is uint8 or a floating type."""
    name = keras.backend.standardize_dtype(dtype)
    if name != "uint8" and "float" not in name:
        raise ValueError(
            f"{what} have dtype {name}, expected uint8 (0 to 255) or floats in [0, 1]: convert them with .astype('uint8')"
        )


def check_range(smallest: float, largest: float, what: str = "images") -> None:
    """Raise ValueError unless both ends are finite and inside [0, 1]."""
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ValueError(_NOT_FINITE.format(what=what))
    if smallest < -_RANGE_TOLERANCE or largest > 1.0 + _RANGE_TOLERANCE:
        raise ValueError(_OUT_OF_RANGE.format(what=what, smallest=f"{smallest:.4g}", largest=f"{largest:.4g}"))


def is_tf_dataset(data: Any) -> bool:
    """Whether `data` is a `tf.data.Dataset`, found out without importing TensorFlow."""
    return hasattr(data, "element_spec") and hasattr(data, "map") and hasattr(data, "cardinality")


def is_array(data: Any) -> bool:
    return hasattr(data, "shape") and hasattr(data, "dtype") and hasattr(data, "__getitem__")


def can_be_read_again(data: Any) -> bool:
    """Whether a pass over `data` leaves it whole. Generators and other iterators do not survive one."""
    return is_array(data) or isinstance(data, keras.utils.PyDataset) or iter(data) is not data


def number_of_batches(data: Any) -> int | None:
    """Return how many batches `data` has, None if that is unknown, -1 if it never ends."""
    if is_tf_dataset(data):
        cardinality = int(data.cardinality())
        return None if cardinality == -2 else cardinality
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches if data.num_batches is not None else -1
    return len(data) if hasattr(data, "__len__") else None


def iterate_batches(data: Any, batch_size: int) -> tuple[Iterator, int | None]:
    """Return an iterator over the batches of `data` and their number where it is known."""
    if is_array(data):
        images = np.asarray(data)
        starts = range(0, len(images), batch_size)
        return (images[start : start + batch_size] for start in starts), len(starts)
    number = number_of_batches(data)
    if isinstance(data, keras.utils.PyDataset):
        indices: Iterable[int] = itertools.count() if number in (None, -1) else range(number or 0)
        return (data[index] for index in indices), None if number == -1 else number
    return iter(data), None if number == -1 else number


def checked(data: Any, image_shape: tuple[int, ...]) -> Any:
    """Return `data` with every batch checked before it is used, in a form that `fit` takes as it took `data`.

    Arrays are checked here and now; data sets and generators as they are read.

    Raises:
        ValueError: the data are empty, or their shape or values are wrong.
    """
    if is_array(data):
        images = np.asarray(data)
        check_images(images, image_shape)
        if not len(images):
            raise ValueError("the data set is empty: got an array of 0 images")
        return images
    if isinstance(data, (tuple, list)):
        return type(data)([checked(data[0], image_shape), *data[1:]])
    if number_of_batches(data) == 0:
        raise ValueError(
            "the data set is empty: it has 0 batches (drop_remainder=True with a batch larger than the data?)"
        )
    if is_tf_dataset(data):
        return _leaving_the_processor_alone(_checked_tf_dataset(data, image_shape))
    if isinstance(data, keras.utils.PyDataset):
        return _CheckedPyDataset(data, image_shape)
    if isinstance(data, types.GeneratorType):
        return _checked_generator(data, image_shape)
    return data


def input_error(error: Exception) -> ValueError | None:
    """Return the ValueError behind an error that a checked `tf.data` pipeline raised, or None for other errors."""
    message = str(error)
    if _ERROR_START not in message:
        return None
    return ValueError(message.split(_ERROR_START)[1].split(_ERROR_END)[0])


def _leaving_the_processor_alone(dataset: Any) -> Any:
    """Turn off the tuning of tf.data's parallelism where the network itself runs on the processor.

    There it was measured to leave every other pass over the data one core instead of two for the network. A pipeline
    whose user has chosen is left as it is.
    """
    import tensorflow as tf

    options = dataset.options()
    if options.autotune.enabled is None and not backend.on_accelerator():
        changed = tf.data.Options()
        changed.autotune.enabled = False
        return dataset.with_options(changed)
    return dataset


def _checked_tf_dataset(dataset: Any, image_shape: tuple[int, ...]) -> Any:
    spec = images_of(dataset.element_spec)
    if not hasattr(spec, "shape"):
        raise ValueError(f"a batch must be images or (images, labels), got elements of {dataset.element_spec}")
    if spec.shape.rank is not None:
        check_shape(spec.shape, image_shape)
    check_dtype(spec.dtype.name)
    if spec.dtype.name == "uint8":
        return dataset
    import tensorflow as tf  # the data set's own library: it is loaded already

    before, between, after = _OUT_OF_RANGE.format(what="images", smallest="|", largest="|").split("|")
    not_finite = _NOT_FINITE.format(what="images")

    def check(*batch):
        images = images_of(batch)
        smallest, largest = tf.reduce_min(images), tf.reduce_max(images)
        # A sum hands NaN on; TensorFlow's minimum does not.
        finite = tf.math.is_finite(tf.reduce_sum(tf.cast(images, "float32")))
        inside = (smallest >= -_RANGE_TOLERANCE) & (largest <= 1.0 + _RANGE_TOLERANCE)
        numbers = [tf.strings.as_string(value, shortest=True) for value in (smallest, largest)]
        out_of_range = tf.strings.join([before, numbers[0], between, numbers[1], after])
        message = tf.strings.join([_ERROR_START, tf.where(finite, out_of_range, not_finite), _ERROR_END])
        # An empty batch has no range: its minimum is infinite.
        with tf.control_dependencies([tf.debugging.Assert((finite & inside) | (tf.size(images) == 0), [message])]):
            images = tf.identity(images)
        return images if len(batch) == 1 else (images, *batch[1:])

    return dataset.map(check, num_parallel_calls=2, deterministic=True).prefetch(2)


def _checked_generator(generator: Iterator, image_shape: tuple[int, ...]) -> Iterator:
    for batch in generator:
        check_images(np.asarray(images_of(batch)), image_shape)
        yield batch if isinstance(batch, tuple) else (batch,)  # Keras wants tuples of a generator


class _CheckedPyDataset(keras.utils.PyDataset):
    def __init__(self, dataset: keras.utils.PyDataset, image_shape: tuple[int, ...]):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.dataset = dataset
        self.image_shape = image_shape

    def __getitem__(self, index):
        batch = self.dataset[index]
        check_images(np.asarray(images_of(batch)), self.image_shape)
        return batch

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()
