"""Checks of categories: integers from 0 to K - 1."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from ddim_keras.data.batches import as_array
from ddim_keras.data.image_checks import ERROR_END, ERROR_START
from ddim_keras.data.inputs import is_one_piece, is_tf_dataset, number_of_batches
from ddim_keras.support.types import Data


def checked_categories(
    values: Any, shape: tuple[int, ...], categories: int, what: str = "categories"
) -> np.ndarray:
    """Return categories as int32, (batch, *shape).

    Args:
        values: integers or truth values.
        shape: of one image or sequence. A last axis of 1, of the one or the other, may be left out.
        categories: K.
        what: what to call them in a message.

    Raises:
        ValueError: no integers, a wrong shape, numbers out of range, or none at all.
    """
    values = as_array(values)
    if values.dtype.kind not in "iub":
        raise ValueError(
            f"{what} must be integers from 0 to {categories - 1}, got {values.dtype}: round images "
            "to levels first, (images * (K - 1)).round().astype('int32'), or take the argmax of "
            "one-hot vectors"
        )
    expected = ", ".join(map(str, shape))
    if values.shape[1:] == (*shape, 1) or (*values.shape[1:], 1) == shape:
        values = values.reshape(-1, *shape)
    if values.shape[1:] != tuple(shape):
        raise ValueError(f"{what} must have shape (batch, {expected}), got {values.shape}")
    if not len(values):
        raise ValueError(f"{what} are empty: there is nothing to learn from or to start from")
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= categories:
        raise ValueError(
            f"{what} must be integers from 0 to {categories - 1}, got {lowest} to {highest}: give "
            "the model more categories, or number them anew"
        )
    return values.astype("int32")


def checked_data(data: Data, shape: tuple[int, ...], categories: int, what: str = "x") -> Data:
    """Return what a user gives to `fit` in a form that Keras takes, checked now or batch by batch.

    Args:
        data: an array of all, or batches of such: a `tf.data.Dataset`, a `keras.utils.PyDataset`,
            or another iterable of a known number of batches. Of a pair the first is taken, the rest
            are labels.

    Raises:
        ValueError: as `checked_categories`, or the number of batches is not known.
    """
    if data is None:
        raise ValueError(f"{what} must be categories, got None")
    if isinstance(data, tuple):
        data = data[0]
    if is_one_piece(data):
        return checked_categories(data, shape, categories, what)
    number = number_of_batches(data)
    if number is None or number < 1:
        raise ValueError(
            f"{what} must be an array, or batches whose number is known and not 0, got "
            f"{type(data).__name__} of {'unknown or endless' if number else 'no'} length: for "
            "endless data give dataset.take(steps)"
        )
    return CheckedBatches(data, number, shape, categories)


class CheckedBatches(keras.utils.PyDataset):
    """Batches of categories, each checked before it is used.

    They come in their own order; an iterable is begun anew whenever another than the next one is
    asked for.
    """

    def __init__(self, data: Data, number: int, shape: tuple[int, ...], categories: int):
        super().__init__()
        self._data, self._number = data, number
        self._wanted = (shape, categories)
        self._next = 0
        self._iterator: Iterator | None = None

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        if isinstance(self._data, keras.utils.PyDataset):
            batch = self._data[index]
        else:
            if self._iterator is None or index != self._next:
                tensors = is_tf_dataset(self._data)
                batches = self._data.as_numpy_iterator() if tensors else iter(self._data)
                self._iterator = itertools.islice(batches, index, None)
            self._next = index + 1
            batch = next(self._iterator)
        if isinstance(batch, (tuple, list)):
            batch = batch[0]
        try:
            return (checked_categories(batch, *self._wanted),)
        except ValueError as error:
            # TensorFlow runs this within its pipeline, and buries errors: `input_error` finds them.
            raise ValueError(f"{ERROR_START}{error}{ERROR_END}") from error

    @property
    def num_batches(self) -> int:
        return self._number

    def on_epoch_end(self) -> None:
        if isinstance(self._data, keras.utils.PyDataset):
            self._data.on_epoch_end()
