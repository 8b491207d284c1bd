"""Checks within a `tf.data` pipeline. Only data sets of TensorFlow's need this module: it imports
TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal
from unicodedata import normalize

import tensorflow as tf

from ddim_keras.data import image_checks
from ddim_keras.data.batches import (
    Batch,
    by_spec,
    check_class_weight,
    known_shape,
    no_labels,
    taken_apart,
    told_of,
)
from ddim_keras.data.conditions import NOT_ONE_HOT, ConditionSpec
from ddim_keras.data.image_checks import (
    NOT_FINITE,
    OUT_OF_RANGE,
    RANGE_TOLERANCE,
    check_dtype,
    check_shape,
)
from ddim_keras.support import backend
from ddim_keras.support.types import (
    BatchLike,
    Condition,
    Dataset,
    Images,
    Labels,
    SampleWeights,
    Tensor,
)

_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
_WEIGHTS = "sample weights must be finite and at least 0: got NaN, infinity or a negative number"


def checked(
    dataset: Dataset,
    image_shape: tuple[int, ...],
    class_weight: dict | None,
    multiple: int,
    told: ConditionSpec | None,
    labels_needed: bool,
) -> Dataset:
    """Return a data set of images, (images, labels) or (images, labels, sample_weight), all
    checked. The arguments are those of `batches.prepared`.

    Shapes that are not known yet are checked as batches come.

    Raises:
        ValueError: its elements are no batches of such images.
    """

    def parts_of(element: BatchLike) -> Batch:
        batch = taken_apart(element)
        return batch if told is None else by_spec(batch, told)

    spec = parts_of(dataset.element_spec)
    _check_spec(spec, image_shape, dataset)
    if told is not None:
        _check_told(spec, told, labels_needed, class_weight is not None)
    if class_weight is not None:
        check_class_weight(class_weight, spec.labels, spec.sample_weight)

    def prepare(*element):
        batch = parts_of(element if len(element) > 1 else element[0])
        images = _with_static_shape(batch.images, image_shape, check_shape)
        if images.dtype != tf.uint8:
            images = _with_checked_range(images, "images")
        weights = batch.sample_weight
        if weights is not None:
            weights = _with_checked_weights(weights, images)
        labels, condition = batch.labels, batch.condition
        if told is not None and told.takes_labels and labels is not None:
            labels = _class_numbers(labels, told)
        if class_weight is not None:
            weights = _class_weights(labels, class_weight)
        if told is not None:
            labels = labels if told.takes_labels else None
            condition = None if condition is None else _with_checked_condition(condition, told)
        return _packed(_filled_up(Batch(images, labels, weights, condition), multiple))

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
        and (told is None or (spec.labels is None and spec.condition is None))
        and multiple == 1
    )
    if not nothing_to_do:
        dataset = dataset.map(prepare, num_parallel_calls=2, deterministic=True).prefetch(2)
    return _leaving_the_processor_alone(dataset)


def _check_told(
    spec: Batch, told: ConditionSpec, labels_needed: bool, labels_are_used: bool
) -> None:
    """Find out from what a data set says of itself what will be wrong with its labels."""
    if spec.labels is None and told.takes_labels and labels_needed:
        raise ValueError(no_labels(told))
    if spec.labels is not None and not told.takes_labels and not labels_are_used:
        told.say_that_labels_are_ignored()
    if spec.labels is not None and told.takes_labels:
        shape = known_shape(spec.labels)
        if len(shape) == 2 and shape[1] not in (None, 1, told.num_classes):
            raise ValueError(told.wrong_one_hot(shape[1]))
        if getattr(spec.labels, "dtype", None) == tf.bool:
            raise ValueError(
                "labels must be integers, names or one-hot, got a data set of bool labels: make "
                "integers of them, tf.cast(labels, tf.int32)"
            )
    if spec.condition is not None and told.takes_condition:
        shape = spec.condition.shape
        if shape.rank is not None:
            told.check_condition_shape(shape)


def _check_spec(spec: Batch, image_shape: tuple[int, ...], dataset: Dataset) -> None:
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


def _with_static_shape(images: Images, wanted: tuple[int, ...], check_shape: Callable) -> Images:
    """Images, or conditions, whose shape is known; checked now if it was not known before."""
    shape = images.shape
    if shape.rank == 1 + len(wanted) and tuple(shape[1:]) == tuple(wanted):
        return images

    def check(found):
        try:
            check_shape(tuple(int(size) for size in found), wanted)
        except ValueError as error:
            return _marked(str(error))
        return b""

    # What is wrong with a shape takes some words, which Python finds.
    message = tf.numpy_function(check, [tf.shape(images)], tf.string)
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(message, ""), [message])]):
        images = tf.identity(images)
    images.set_shape((shape[0] if shape.rank == 1 + len(wanted) else None, *wanted))
    return images


def _with_checked_range(images: Images, what: str) -> Images:
    before, between, after = OUT_OF_RANGE.format(what=what, smallest="|", largest="|").split("|")
    values = images if images.dtype == tf.float64 else tf.cast(images, tf.float32)
    smallest, largest = tf.reduce_min(values), tf.reduce_max(values)
    # A sum hands NaN on; TensorFlow's minimum does not.
    finite = tf.math.is_finite(tf.reduce_sum(values))
    inside = (smallest >= -RANGE_TOLERANCE) & (largest <= 1.0 + RANGE_TOLERANCE)
    numbers = [tf.strings.as_string(value, shortest=True) for value in (smallest, largest)]
    out_of_range = tf.strings.join([before, numbers[0], between, numbers[1], after])
    start, end = _marked("|").split("|")
    message = tf.strings.join(
        [start, tf.where(finite, out_of_range, NOT_FINITE.format(what=what)), end]
    )
    # An empty batch has no range: its minimum is infinite.
    with tf.control_dependencies(
        [tf.debugging.Assert((finite & inside) | (tf.size(images) == 0), [message])]
    ):
        return tf.identity(images)


def _with_checked_weights(weights: SampleWeights, images: Images) -> SampleWeights:
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


def _class_numbers(labels: Labels, told: ConditionSpec) -> Labels:
    """As `ConditionSpec.class_numbers`, int32 (batch,)."""
    if labels.shape.rank == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape.rank == 2:
        is_one = tf.equal(labels, tf.ones((), labels.dtype))
        others_are_zero = tf.reduce_all(is_one | tf.equal(labels, tf.zeros((), labels.dtype)))
        one_each = tf.reduce_all(tf.equal(tf.reduce_sum(tf.cast(is_one, tf.int32), axis=1), 1))
        numbers = tf.argmax(tf.cast(is_one, tf.int32), axis=-1, output_type=tf.int32)
        return _asserted(others_are_zero & one_each, NOT_ONE_HOT, tf.constant(""), "", numbers)
    if labels.dtype == tf.string:
        return _numbers_of_names(labels, told)
    count = told.num_classes
    # A number stands in for the label in the words.
    before, after = told.out_of_range("|").split("|")
    values = tf.reshape(labels, [-1])
    inside = (values >= 0) & (values < tf.cast(count, values.dtype))
    if values.dtype.is_floating:
        inside &= tf.equal(values, tf.floor(values))
    wrong = tf.concat([tf.boolean_mask(values, ~inside), values[:1]], 0)[:1]
    return _asserted(inside, before, tf.strings.as_string(wrong), after, tf.cast(values, tf.int32))


def _numbers_of_names(labels: Labels, told: ConditionSpec) -> Labels:
    before, after = told.unknown_name("|").split("'|'")
    # Accents are part of their letters or apart, in the data as their system has it.
    forms = [[normalize(form, name) for name in told.class_names or ["\0"]] for form in _FORMS]
    matches = tf.reduce_any(tf.equal(labels[:, None, None], tf.constant(forms)[None]), axis=1)
    known = tf.reduce_any(matches, axis=1)
    wrong = tf.concat([tf.boolean_mask(labels, ~known), labels[:1]], 0)[:1]
    wrong = tf.strings.join(["'", wrong, "'"])
    return _asserted(known, before, wrong, after, tf.argmax(matches, axis=1, output_type=tf.int32))


def _asserted(right: Tensor, before: str, wrong: Tensor, after: str, values: Tensor) -> Tensor:
    start, end = _marked("|").split("|")
    message = tf.strings.join([start + before, wrong, after + end])
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(right), [message])]):
        return tf.identity(values)


def _with_checked_condition(condition: Condition, told: ConditionSpec) -> Condition:
    """As `ConditionSpec.check_condition`."""
    wanted = told.condition_shape or ()
    condition = _with_static_shape(
        condition, wanted, lambda shape, _: told.check_condition_shape(shape)
    )
    if told.takes_images:
        check_dtype(condition.dtype, "conditions")
        return (
            condition
            if condition.dtype == tf.uint8
            else _with_checked_range(condition, "conditions")
        )
    condition = tf.cast(condition, tf.float32)
    finite = tf.reduce_all(tf.math.is_finite(condition))
    message = _marked(NOT_FINITE.format(what="conditions"))
    with tf.control_dependencies([tf.debugging.Assert(finite, [message])]):
        return tf.identity(condition)


def _class_weights(labels: Labels, class_weight: dict) -> SampleWeights:
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
    weights = tf.ones(number) if batch.sample_weight is None else batch.sample_weight
    filled = tf.nest.map_structure(
        lambda part: None if part is None else tf.gather(part, places % number),
        batch._replace(sample_weight=weights),
    )
    counted = tf.where(places < number, filled.sample_weight, -1.0)
    return filled._replace(sample_weight=counted)


def _packed(batch: Batch) -> Any:
    """As `batches.packed`, but images alone as they are, which is what a `train_step` that was
    written for the Keras example takes.
    """
    told = told_of(batch)
    if batch.sample_weight is None:
        return batch.images if told is None else (batch.images, told)
    # Keras drops weights where there are no labels.
    told = tf.zeros((tf.shape(batch.images)[0], 0)) if told is None else told
    return batch.images, told, batch.sample_weight


def batches_of(arrays: tuple, batch_size: int, shuffle: bool) -> Dataset:
    """Return a data set of batches of arrays, in a new order at each pass over them if they are
    shuffled.

    Keras's own tunes itself while it is read, which at times ends only seconds, and up to a
    minute, after the last batch.
    """
    whole = tf.nest.map_structure(_as_tensor, arrays if len(arrays) > 1 else arrays[0])
    number = len(tf.nest.flatten(whole)[0])

    places = tf.data.Dataset.range(number)
    if shuffle:
        places = places.shuffle(number, reshuffle_each_iteration=True)
    dataset = places.batch(batch_size).map(
        lambda chosen: tf.nest.map_structure(lambda part: tf.gather(part, chosen), whole),
        num_parallel_calls=2,
        deterministic=True,
    )
    return _leaving_the_processor_alone(dataset.prefetch(2))


def _as_tensor(array: Tensor) -> Tensor:
    tensor = tf.convert_to_tensor(array)
    return tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor


def _leaving_the_processor_alone(dataset: Dataset) -> Dataset:
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
