"""Checks within a `tf.data` pipeline. Only data sets of TensorFlow's need this module: it imports
TensorFlow.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ddim_keras.data import image_checks
from ddim_keras.data.batches import Batch, check_class_weight, taken_apart
from ddim_keras.data.image_checks import (
    NOT_FINITE,
    OUT_OF_RANGE,
    RANGE_TOLERANCE,
    check_dtype,
    check_shape,
)
from ddim_keras.support import backend

_WEIGHTS = "sample weights must be finite and at least 0: got NaN, infinity or a negative number"


def checked(
    dataset: Any, image_shape: tuple[int, ...], class_weight: dict | None, multiple: int
) -> Any:
    """Return a data set of tuples (images,), (images, labels) or (images, labels, sample_weight),
    all checked.

    Shapes that are not known yet are checked as batches come.

    Raises:
        ValueError: its elements are no batches of such images.
    """
    spec = taken_apart(dataset.element_spec)
    _check_spec(spec, image_shape, dataset)
    if class_weight is not None:
        check_class_weight(class_weight, spec.labels, spec.sample_weight)

    def prepare(*element):
        batch = taken_apart(element if len(element) > 1 else element[0])
        images = _with_static_shape(batch.images, image_shape)
        if images.dtype != tf.uint8:
            images = _with_checked_range(images)
        weights = batch.sample_weight
        if weights is not None:
            weights = _with_checked_weights(weights, images)
        if class_weight is not None:
            weights = _class_weights(batch.labels, class_weight)
        return _packed(_filled_up(Batch(images, batch.labels, weights), multiple))

    plain = isinstance(dataset.element_spec, tf.TensorSpec) or (
        isinstance(dataset.element_spec, tuple)
        and all(isinstance(part, tf.TensorSpec) for part in dataset.element_spec)
    )
    nothing_to_do = (
        plain
        and spec.images.dtype == tf.uint8
        and spec.images.shape.rank == 4
        and tuple(spec.images.shape[1:]) == tuple(image_shape)
        and class_weight is None
        and spec.sample_weight is None
        and multiple == 1
    )
    if not nothing_to_do:
        dataset = dataset.map(prepare, num_parallel_calls=2, deterministic=True).prefetch(2)
    return _leaving_the_processor_alone(dataset)


def _check_spec(spec: Batch, image_shape: tuple[int, ...], dataset: Any) -> None:
    if isinstance(spec.images, (tf.RaggedTensorSpec, tf.SparseTensorSpec)):
        raise ValueError(
            f"images must be dense tensors of one size, got {spec.images}: resize them before they "
            "are batched, with "
            "dataset.map(...).batch(...)"
        )
    if not isinstance(spec.images, tf.TensorSpec):
        raise ValueError(
            f"a batch must be images or (images, labels), got elements of {dataset.element_spec}"
        )
    if spec.images.dtype not in (tf.variant, tf.resource):
        check_dtype(spec.images.dtype)
    if spec.images.shape.rank is not None:
        check_shape(spec.images.shape, image_shape)
    weights = spec.sample_weight
    if weights is not None and weights.shape.rank not in (None, 1):
        raise ValueError(
            "sample weights must be one number for each image, shape (batch,), got shape "
            f"{tuple(weights.shape)}: images are "
            "weighted, not their pixels"
        )


def _with_static_shape(images: Any, image_shape: tuple[int, ...]) -> Any:
    """Images whose shape is known; checked now if it was not known before."""
    shape = images.shape
    if shape.rank == 4 and tuple(shape[1:]) == tuple(image_shape):
        return images

    def check(found):
        try:
            check_shape(tuple(int(size) for size in found), image_shape)
        except ValueError as error:
            return _marked(str(error))
        return b""

    # What is wrong with a shape takes some words, which Python finds.
    message = tf.numpy_function(check, [tf.shape(images)], tf.string)
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(message, ""), [message])]):
        images = tf.identity(images)
    images.set_shape((shape[0] if shape.rank == 4 else None, *image_shape))
    return images


def _with_checked_range(images: Any) -> Any:
    before, between, after = OUT_OF_RANGE.format(what="images", smallest="|", largest="|").split(
        "|"
    )
    values = images if images.dtype == tf.float64 else tf.cast(images, tf.float32)
    smallest, largest = tf.reduce_min(values), tf.reduce_max(values)
    # A sum hands NaN on; TensorFlow's minimum does not.
    finite = tf.math.is_finite(tf.reduce_sum(values))
    inside = (smallest >= -RANGE_TOLERANCE) & (largest <= 1.0 + RANGE_TOLERANCE)
    numbers = [tf.strings.as_string(value, shortest=True) for value in (smallest, largest)]
    out_of_range = tf.strings.join([before, numbers[0], between, numbers[1], after])
    start, end = _marked("|").split("|")
    message = tf.strings.join(
        [start, tf.where(finite, out_of_range, NOT_FINITE.format(what="images")), end]
    )
    # An empty batch has no range: its minimum is infinite.
    with tf.control_dependencies(
        [tf.debugging.Assert((finite & inside) | (tf.size(images) == 0), [message])]
    ):
        return tf.identity(images)


def _with_checked_weights(weights: Any, images: Any) -> Any:
    weights = tf.cast(weights, tf.float32)
    right = tf.reduce_all(tf.math.is_finite(weights) & (weights >= 0.0))
    one_each = tf.reduce_all(tf.equal(tf.shape(weights), tf.shape(images)[:1]))
    unequal = "sample weights must be one number for each image, shape (batch,), got another shape"
    assertions = [
        tf.debugging.Assert(right, [_marked(_WEIGHTS)]),
        tf.debugging.Assert(one_each, [_marked(unequal)]),
    ]
    with tf.control_dependencies(assertions):
        weights = tf.identity(weights)
    weights.set_shape((None,))
    return weights


def _class_weights(labels: Any, class_weight: dict) -> Any:
    if labels.shape.rank is None:
        raise ValueError(
            "class_weight needs labels of a known rank, got a data set of labels of unknown shape: "
            "set it in the data set, "
            "with labels.set_shape((None,)) say"
        )
    if labels.shape.rank == 2:
        labels = tf.argmax(labels, axis=-1) if labels.shape[-1] != 1 else labels[:, 0]
    if labels.shape.rank != 1 or not (
        labels.dtype.is_integer or labels.dtype.is_floating or labels.dtype.is_bool
    ):
        raise ValueError(
            "class_weight needs labels that are integers, shape (batch,), or one-hot, shape "
            "(batch, classes), got "
            f"{labels.dtype.name} of shape {tuple(labels.shape)}"
        )
    classes = tf.cast(tf.round(tf.cast(labels, tf.float64)), tf.int64)
    return 1.0 + tf.add_n(
        [
            (float(weight) - 1.0) * tf.cast(classes == int(index), tf.float32)
            for index, weight in class_weight.items()
        ]
    )


def _filled_up(batch: Batch, multiple: int) -> Batch:
    """As `batches.prepared` does it: the batch's own images again, with weight -1."""
    if multiple == 1:
        return batch
    number = tf.shape(batch.images)[0]
    places = tf.range(number + (-number) % multiple)
    images, labels = (
        None
        if part is None
        else tf.nest.map_structure(lambda leaf: tf.gather(leaf, places % number), part)
        for part in batch[:2]
    )
    weights = tf.ones(number) if batch.sample_weight is None else batch.sample_weight
    return Batch(
        images, labels, tf.where(places < number, tf.gather(weights, places % number), -1.0)
    )


def _packed(batch: Batch) -> tuple:
    if batch.sample_weight is None:
        return (batch.images,) if batch.labels is None else (batch.images, batch.labels)
    # As `batches.packed`: Keras drops weights where there are no labels.
    labels = tf.zeros((tf.shape(batch.images)[0], 0)) if batch.labels is None else batch.labels
    return batch.images, labels, batch.sample_weight


def _leaving_the_processor_alone(dataset: Any) -> Any:
    """Turn off the tuning of tf.data's parallelism where the network itself runs on the processor.

    There it was measured to leave every other pass over the data one core instead of two for the
    network. A pipeline whose user has chosen is left as it is.
    """
    options = dataset.options()
    if options.autotune.enabled is None and not backend.on_accelerator():
        changed = tf.data.Options()
        changed.autotune.enabled = False
        return dataset.with_options(changed)
    return dataset


def _marked(message: str) -> str:
    return f"{image_checks.ERROR_START}{message}{image_checks.ERROR_END}"
