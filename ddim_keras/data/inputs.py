"""What may be given as images: arrays, data sets and generators, checked before they reach the
network.

Whatever its form, `fit` and `evaluate` get tuples (images,), (images, labels) or (images, labels,
sample_weight) of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import keras
import numpy as np

from ddim_keras.data import image_checks
from ddim_keras.data.batches import (
    Batch,
    as_array,
    by_number,
    handed_by_keras,
    packed,
    prepared,
    taken_apart,
    told_of,
)
from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.data.image_checks import as_unit_range, check_images, check_range, check_shape
from ddim_keras.support import backend
from ddim_keras.support.arguments import is_number
from ddim_keras.support.types import BatchLike, Data, Dataset, Labels, SampleWeights

__all__ = [
    "Batch",
    "as_array",
    "as_unit_range",
    "can_be_read_again",
    "check_images",
    "check_range",
    "check_shape",
    "checked",
    "for_keras",
    "handed_by_keras",
    "has_at_least",
    "input_error",
    "is_array",
    "is_one_piece",
    "is_tf_dataset",
    "iterate_batches",
    "number_of_batches",
    "taken_apart",
]

_EMPTY = (
    "the data set is empty: it has 0 batches (drop_remainder=True with a batch larger than the "
    "data?)"
)
_BATCH_SIZE = 32  # Keras's


def is_tf_dataset(data: Data) -> bool:
    """Whether `data` is a `tf.data.Dataset`, found out without importing TensorFlow."""
    return hasattr(data, "element_spec") and hasattr(data, "map") and hasattr(data, "cardinality")


def is_array(data: Data) -> bool:
    return hasattr(data, "shape") and hasattr(data, "dtype") and hasattr(data, "__getitem__")


def is_one_piece(data: Data) -> bool:
    """Whether `data` are arrays of all images, labels and weights, or lists of them, and not a data
    set of batches.
    """
    if isinstance(data, Mapping):
        return True
    if isinstance(data, (tuple, list)):
        # A list of tuples is a list of batches.
        return bool(data) and not all(isinstance(part, (tuple, list)) for part in data)
    return is_array(data)


def can_be_read_again(data: Data) -> bool:
    """Whether a pass over `data` leaves it whole. Generators and other iterators do not survive
    one.
    """
    return is_one_piece(data) or isinstance(data, keras.utils.PyDataset) or iter(data) is not data


def number_of_batches(data: Data) -> int | None:
    """Return how many batches a data set has, None if that is unknown, -1 if it never ends."""
    if is_tf_dataset(data):
        cardinality = int(data.cardinality())
        return None if cardinality == -2 else cardinality
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches if data.num_batches is not None else -1
    if isinstance(data, (itertools.count, itertools.cycle, itertools.repeat)):
        return -1
    try:
        return len(data) if hasattr(data, "__len__") else None
    except TypeError:  # PyTorch's DataLoader of a data set that does not know its length
        return None


def iterate_batches(data: Data, batch_size: int) -> tuple[Iterator[Batch], int | None]:
    """Return an iterator over the batches of `data`, taken apart, and their number where it is
    known.
    """
    if is_one_piece(data):
        whole = _in_one_piece(data)
        starts = range(0, len(whole.images), batch_size)
        slices = (slice(start, start + batch_size) for start in starts)
        return map(whole.selected, slices), len(starts)
    _require_batches(data)
    number = number_of_batches(data)
    batches: Iterable = data
    if isinstance(data, keras.utils.PyDataset):
        indices: Iterable[int] = itertools.count() if number in (None, -1) else range(number or 0)
        batches = (data[index] for index in indices)
    return _with_clear_errors(map(taken_apart, batches)), None if number == -1 else number


def has_at_least(
    data: Data, minimum: int, steps: int | None = None, batch_size: int | None = None
) -> bool:
    """Whether `data`, or its first `steps` batches, hold as many images; only as many are read.
    True if it cannot be known.
    """
    if is_one_piece(data):
        number = len(_in_one_piece(data).images)
        return (
            min(number, number if steps is None else steps * (batch_size or _BATCH_SIZE)) >= minimum
        )
    if not can_be_read_again(data):
        return True
    found = 0
    for batch in itertools.islice(iterate_batches(data, 1)[0], steps):
        found += (
            len(batch.images)
            if batch.sample_weight is None
            else int((as_array(batch.sample_weight) >= 0).sum())
        )
        if found >= minimum:
            return True
    return False


def for_keras(
    x: Data,
    y: Labels,
    sample_weight: SampleWeights,
    image_shape: tuple[int, ...],
    *,
    spec: ConditionSpec,
    class_weight: dict | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
    multiple: int = 1,
    labels_needed: bool = False,
) -> tuple[Data, Labels, SampleWeights]:
    """Return (x, y, sample_weight) as Keras's trainer is to get them, with every batch checked
    before it is used.

    Arrays are checked here and now; data sets and generators as they are read.

    Args:
        x: images in any form that `fit` takes.
        y, sample_weight: beside arrays of images, or None.
        image_shape: the (height, width, channels) expected.
        spec: what the model is told beside the images.
        class_weight: weights by class, which become sample weights.
        batch_size: images in a batch of arrays.
        shuffle: whether arrays are shuffled; matters only where they are cut into batches here.
        multiple: every batch is brought to a multiple of so many images, one for each device.
        labels_needed: whether a model that takes labels must get some.

    Raises:
        ValueError: the data are empty, or their structure, shape, type or values are wrong.
    """
    weights = by_number(class_weight, spec)
    checks = _Checks(image_shape, weights, multiple, spec, labels_needed)
    if is_one_piece(x):
        whole = _in_one_piece(x, spec)
        y = told_of(whole) if y is None else y
        sample_weight = whole.sample_weight if sample_weight is None else sample_weight
        batch = prepared((whole.images, y, sample_weight), *checks._replace(multiple=1))
        if not len(batch.images):
            raise ValueError("the data set is empty: got an array of 0 images")
        if multiple > 1:
            checks = checks._replace(class_weight=None)
            return _ArrayBatches(batch, checks, batch_size or _BATCH_SIZE, shuffle), None, None
        images, labels, sample_weight = (*packed(batch), None, None)[:3]
        return images, labels, sample_weight
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            raise ValueError(
                f"{name} goes with arrays of images; a {type(x).__name__} must give it in its own "
                "batches: "
                "(images, labels) or (images, labels, sample_weight)"
            )
    return _checked(x, checks), None, None


def in_batches(
    x: Data, y: Labels, sample_weight: SampleWeights, batch_size: int | None, shuffle: bool = False
) -> tuple[Data, Labels, SampleWeights]:
    """Return what `for_keras` returned, with arrays as a data set of batches where Keras would make
    a slower one of them.
    """
    if not is_one_piece(x) or not backend.is_tensorflow_on_processor():
        return x, y, sample_weight
    from ddim_keras.data import tf_inputs  # it is TensorFlow's backend

    arrays = tuple(part for part in (x, y, sample_weight) if part is not None)
    return tf_inputs.batches_of(arrays, batch_size or _BATCH_SIZE, shuffle), None, None


def checked(data: Data, image_shape: tuple[int, ...], spec: ConditionSpec | None = None) -> Data:
    """Return `data` with every batch checked before it is used.

    Arrays are checked here and now, and returned as they are or as (images, labels, ...); data sets
    and generators become data sets and generators of tuples, checked as they are read.

    Args:
        data: images in any form that `fit` takes.
        image_shape: the (height, width, channels) expected.
        spec: what the model is told beside the images; None leaves labels as they are.

    Raises:
        ValueError: the data are empty, or their shape or values are wrong.
    """
    checks = _Checks(image_shape, None, 1, spec, False)
    if is_one_piece(data):
        parts = packed(prepared(_in_one_piece(data), *checks))
        if not len(parts[0]):
            raise ValueError("the data set is empty: got an array of 0 images")
        return parts if len(parts) > 1 else parts[0]
    return _checked(data, checks)


class _Checks(NamedTuple):
    """How batches are checked: what `prepared` is given beside them."""

    image_shape: tuple[int, ...]
    class_weight: dict | None
    multiple: int
    spec: ConditionSpec | None
    labels_needed: bool


def _checked(data: Data, checks: _Checks) -> Data:
    if number_of_batches(data) == 0:
        raise ValueError(_EMPTY)
    if is_tf_dataset(data):
        from ddim_keras.data import (
            tf_inputs,
        )  # TensorFlow is loaded already: the data set is its own

        return tf_inputs.checked(data, *checks)
    if isinstance(data, keras.utils.PyDataset):
        return _CheckedPyDataset(data, checks)
    _require_batches(data)
    if iter(data) is data:
        return _checked_generator(data, checks)
    if number_of_batches(data) is None:
        raise ValueError(
            f"a {type(data).__name__} does not say how many batches it has: give it a __len__, or "
            "give iter(...) of it with "
            "steps_per_epoch, a keras.utils.PyDataset or a tf.data.Dataset"
        )
    return _CheckedIterable(data, checks)


def _require_batches(data: Data) -> None:
    """Raise ValueError for what cannot be gone through."""
    if isinstance(data, keras.utils.PyDataset) or hasattr(data, "__iter__"):
        return
    advice = ""
    if hasattr(data, "__getitem__"):
        advice = ": make batches of it, with PyTorch by DataLoader(dataset, batch_size=32)"
    elif callable(data):
        advice = ": call it, if it makes a generator"
    raise ValueError(
        f"images must be an array, a data set of batches or a generator, got {data!r} of type "
        f"{type(data).__name__}{advice}"
    )


def brings_its_own_order(data: Data) -> bool:
    """Whether the batches of what `checked` returned cannot be asked for in another order."""
    return not is_one_piece(data) and (
        not isinstance(data, keras.utils.PyDataset)
        or isinstance(data, (_CheckedIterable, _ArrayBatches))
    )


def _with_clear_errors(batches: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from batches
    except Exception as error:
        found = input_error(error)
        if found is None:
            raise
        raise found from None


def input_error(error: Exception) -> ValueError | None:
    """Return the ValueError behind an error that a checked `tf.data` pipeline raised, or None for
    other errors.
    """
    message = str(error)
    if image_checks.ERROR_START not in message:
        return None
    message = message.split(image_checks.ERROR_START)[1].split(image_checks.ERROR_END)[0]
    return ValueError(message.replace("\\'", "'").replace('\\"', '"'))  # TensorFlow escapes quotes


def parts_of(data: Data) -> tuple[Data, Labels, SampleWeights]:
    """Return (images, labels, sample_weight) of what `fit` takes as validation data: images, or a
    tuple that begins with them.
    """
    given = data if isinstance(data, tuple) and 1 <= len(data) <= 3 else (data,)
    images, labels, sample_weight = (*given, None, None)[:3]
    return images, labels, sample_weight


def split(
    x: Data, y: Labels, sample_weight: SampleWeights, share: float, spec: ConditionSpec
) -> tuple[tuple, tuple]:
    """Return arrays (x, y, sample_weight) for training and for validation, which gets the last
    `share` of them; `spec` is what the model is told beside the images.

    Raises:
        ValueError: the share is none, the data are no arrays, or one side would be empty.
    """
    if not is_number(share) or not 0.0 < share < 1.0:
        raise ValueError(
            f"validation_split must lie in (0, 1), the share of the images to validate on, such as "
            f"0.1, got {share!r}"
        )
    if not is_one_piece(x):
        raise ValueError(
            f"validation_split divides arrays alone, got a {type(x).__name__}: divide it yourself "
            "(for a tf.data.Dataset "
            "with take and skip), and give validation_data"
        )
    whole = _in_one_piece(x, spec)
    if y is not None or sample_weight is not None:
        y = told_of(whole) if y is None else y
        sample_weight = whole.sample_weight if sample_weight is None else sample_weight
        whole = _as_arrays(taken_apart((whole.images, y, sample_weight)))
    number = len(whole.images)
    first = int(number * (1.0 - share))
    if first in (0, number):
        raise ValueError(
            f"{number} images cannot be divided by validation_split={share}: one side would be "
            "empty; give more images or "
            "another share"
        )
    parts = (whole.selected(where) for where in (slice(None, first), slice(first, None)))
    first_part, second_part = ((part.images, told_of(part), part.sample_weight) for part in parts)
    return first_part, second_part


def _in_one_piece(data: Data, spec: ConditionSpec | None = None) -> Batch:
    """Arrays in whatever structure, as one batch of NumPy arrays.

    Raises:
        ValueError: there are several data sets in it.
    """
    parts = data.values() if isinstance(data, Mapping) else data
    if isinstance(data, (Mapping, tuple, list)) and any(map(_is_data_set, parts)):
        names = f" {list(data)}" if isinstance(data, Mapping) else ""
        raise ValueError(
            f"expected one data set, got a {type(data).__name__} with a data set in it{names}, as "
            "of tfds.load with several splits or its information: give one split alone, in "
            "batches, and another as validation_data"
        )
    is_pair = isinstance(data, tuple) and spec is not None and spec.takes_images
    if isinstance(data, (tuple, list)) and not is_pair:
        shapes = {tuple(getattr(part, "shape", ()))[1:] for part in data}
        if len(shapes) == 1 and len(shapes.pop()) == 3:
            # Images alone: labels never have four axes.
            return Batch(np.concatenate([as_array(part) for part in data]))
    return _as_arrays(taken_apart(data))


def _is_data_set(part: object) -> bool:
    return is_tf_dataset(part) or isinstance(part, keras.utils.PyDataset)


def _as_arrays(batch: Batch) -> Batch:
    return Batch(*(None if part is None else as_array(part) for part in batch))


def _prepared(batch: BatchLike, checks: _Checks) -> tuple:
    """A batch for Keras. TensorFlow runs this within its pipeline, and buries errors: `input_error`
    finds them.
    """
    try:
        return packed(prepared(batch, *checks))
    except ValueError as error:
        raise ValueError(f"{image_checks.ERROR_START}{error}{image_checks.ERROR_END}") from error


def _checked_generator(generator: Iterable, checks: _Checks) -> Iterator:
    for batch in generator:
        yield _prepared(batch, checks)


class _CheckedPyDataset(keras.utils.PyDataset):
    """A PyDataset that gives what another does, checked and as tuples."""

    def __init__(self, dataset: Dataset, checks: _Checks):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.dataset = dataset
        self._checks = checks

    def __getitem__(self, index: int) -> tuple:
        return _prepared(self.dataset[index], self._checks)

    @property
    def num_batches(self) -> int | None:
        return self.dataset.num_batches

    def on_epoch_begin(self) -> None:
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.dataset.on_epoch_end()


class _CheckedIterable(keras.utils.PyDataset):
    """An iterable of a known number of batches, such as a list of them or PyTorch's DataLoader, as
    a PyDataset.

    Its batches come in its own order, and it is begun anew whenever another than the next one is
    asked for.
    """

    def __init__(self, data: Data, checks: _Checks):
        super().__init__()
        self._data, self._checks = data, checks
        self._next = 0
        self._iterator: Iterator | None = None

    def __getitem__(self, index: int) -> tuple:
        if self._iterator is None or index != self._next:
            self._iterator = itertools.islice(iter(self._data), index, None)
        self._next = index + 1
        return _prepared(next(self._iterator), self._checks)

    @property
    def num_batches(self) -> int:
        return len(self._data)


class _ArrayBatches(keras.utils.PyDataset):
    """Arrays cut into batches that can be divided among devices, in a new order each epoch if they
    are shuffled.
    """

    def __init__(self, whole: Batch, checks: _Checks, batch_size: int, shuffle: bool):
        super().__init__()
        self._whole, self._checks = whole, checks
        self._batch_size, self._shuffle = batch_size, shuffle
        self._order = np.arange(len(whole.images))

    def __getitem__(self, index: int) -> tuple:
        where = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return _prepared(self._whole.selected(where), self._checks)

    @property
    def num_batches(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def on_epoch_begin(self) -> None:
        if self._shuffle:
            self._order = np.random.permutation(len(self._order))
