"""What a model is told of an image besides the noise in it: its label, and an image or a vector.

Labels are class numbers from 0 to K - 1; the number K is the null class, which says nothing.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from ddim_keras.data.image_checks import as_unit_range, check_dtype, check_range
from ddim_keras.support.arguments import is_number, positive_int
from ddim_keras.support.types import Condition, Labels, Numbers, Shape, Tensor

_NAMES_SHOWN = 20
NOT_ONE_HOT = "one-hot labels must hold a single 1 in each row, and 0 elsewhere"


class ConditionSpec:
    """The conditions that a model takes.

    Args:
        num_classes: K, or None for a model without labels.
        class_names: of the K classes, in the order of their numbers, or None.
        condition_shape: (height, width, channels) of the images, or (features,) of the vectors, to
            condition on; or None.
        label_dropout, condition_dropout: the share of images, in [0, 1), whose label or condition
            the model is trained without.

    Attributes:
        takes_labels, takes_condition: whether it takes either.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        condition_shape: int | Sequence[int] | None = None,
        label_dropout: float = 0.0,
        condition_dropout: float = 0.0,
    ):
        if class_names is not None:
            class_names = _as_words(class_names)
            num_classes = len(class_names) if num_classes is None else num_classes
        self.num_classes = None if num_classes is None else positive_int("num_classes", num_classes)
        self.class_names: tuple[str, ...] | None = None
        if class_names is not None:
            self.class_names = self._checked_names(class_names)
        self.condition_shape: tuple[int, ...] | None = None
        if condition_shape is not None:
            sizes = np.atleast_1d(np.asarray(condition_shape, object)).tolist()
            if len(sizes) not in (1, 3):
                raise ValueError(
                    "condition_shape must be (height, width, channels) of images or (features,) "
                    f"of vectors, got {condition_shape!r}"
                )
            self.condition_shape = tuple(positive_int("condition_shape", size) for size in sizes)
        self.label_dropout = _share("label_dropout", label_dropout)
        self.condition_dropout = _share("condition_dropout", condition_dropout)
        self._said = False

    @property
    def takes_labels(self) -> bool:
        return self.num_classes is not None

    @property
    def takes_condition(self) -> bool:
        return self.condition_shape is not None

    @property
    def is_left_out(self) -> bool:
        """Whether the model is trained without its label or condition now and then."""
        return bool(
            (self.takes_labels and self.label_dropout)
            or (self.takes_condition and self.condition_dropout)
        )

    @property
    def needs_labels(self) -> bool:
        """Whether the model knows no image without a label, so that it must be given one."""
        return self.takes_labels and not self.label_dropout

    @property
    def takes_images(self) -> bool:
        """Whether the condition is an image."""
        return self.condition_shape is not None and len(self.condition_shape) == 3

    @property
    def nothing(self) -> float:
        """What a condition that says nothing is filled with, before it is scaled."""
        return 0.5 if self.takes_images else 0.0

    # Class names

    def set_names(self, names: Sequence[str] | None) -> None:
        """Give the classes other names, or None.

        Raises:
            ValueError: the model has no classes, or the names are not as many.
        """
        if names is not None and not self.takes_labels:
            raise ValueError("the model has no classes to name: build it with num_classes=")
        self.class_names = None if names is None else self._checked_names(names)

    def learn_names(self, names: Sequence[str] | None) -> None:
        """Take the class names of a data set, if there are none yet.

        Raises:
            ValueError: they are not as many as there are classes, or not those that are known.
        """
        if names is None or not self.takes_labels:
            return
        checked = self._checked_names(names)
        if self.class_names not in (None, checked):
            raise ValueError(
                f"the data set's classes are {_listed(checked)}, but the model's are "
                f"{_listed(self.class_names or ())}: labels are numbers in this order. Bring the "
                "data into the model's order, or set model.class_names if only the words differ"
            )
        self.class_names = checked

    def _checked_names(self, names: Sequence[str]) -> tuple[str, ...]:
        names = _as_words(names)
        if len(names) != self.num_classes:
            raise ValueError(
                f"there are {len(names)} class names, {_listed(names)}, but num_classes is "
                f"{self.num_classes}: build the model with num_classes={len(names)}"
            )
        if len(set(names)) != len(names):
            raise ValueError(f"class_names must differ from each other, got {_listed(names)}")
        return tuple(names)

    # Labels

    def say_that_labels_are_ignored(self) -> None:
        """Warn, once, that the data have labels which this model does not take."""
        if not self._said:
            self._said = True
            warnings.warn(
                "the data have labels, which this model ignores: build it with num_classes= to "
                "generate by label",
                stacklevel=2,
            )

    def class_numbers(self, labels: Labels, allow_none: bool = False) -> Numbers:
        """Return labels as class numbers.

        Args:
            labels: (batch,) or (batch, 1) integers, or names, or one-hot (batch, K).
            allow_none: whether None may be among them, for the null class.

        Returns:
            int32 (batch,).

        Raises:
            ValueError: a label out of range, an unknown name, or another shape or type.
        """
        if allow_none and isinstance(labels, (list, tuple, np.ndarray)):
            if any(label is None for label in labels):
                blank = np.array([label is None for label in labels])
                numbers = np.full(len(blank), self.num_classes, "int32")
                known = [label for label in labels if label is not None]
                numbers[~blank] = self.class_numbers(known) if known else []
                return numbers
        has_names = isinstance(labels, (list, tuple)) and any(
            isinstance(label, (str, bytes)) for label in labels
        )
        try:
            # NumPy would turn numbers beside names into words.
            values = np.array(labels, object) if has_names else np.asarray(labels)
        except ValueError:
            raise ValueError(
                f"labels must be {self._expected()}, got rows of unequal length"
            ) from None
        if values.ndim == 2 and values.shape[1] == 1:
            # Of a single class, 1 can only be meant as one-hot.
            values = values[:, 0] - 1 if self._are_ones_of_one_class(values) else values[:, 0]
        if values.ndim == 1 and values.dtype.kind in "USO":
            return self._numbers_of_names(values)
        if values.ndim == 2 and values.dtype.kind in "iuf":
            return self._numbers_of_one_hot(values)
        if values.shape == (0,):
            return np.zeros(0, "int32")
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise ValueError(
                f"labels must be {self._expected()}, got {values.dtype} of shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError("labels hold NaN or infinity: an image without a label cannot be used")
        outside = ~((values >= 0) & (values < self._count) & (values == np.floor(values)))
        if outside.any():
            raise ValueError(self.out_of_range(values[outside][0]))
        return values.astype("int32")

    def _are_ones_of_one_class(self, values: np.ndarray) -> bool:
        return self.num_classes == 1 and values.dtype.kind in "iuf" and bool((values == 1).all())

    def out_of_range(self, label: Any) -> str:
        """Return what to say of a label that is none of the K classes."""
        names = f": {_listed(self.class_names)}" if self.class_names else ""
        return (
            f"the label {label} is out of range: labels run from 0 to {self._count - 1}{names}. "
            "If the data have more classes, build the model with as many as num_classes"
        )

    def unknown_name(self, name: Any) -> str:
        """Return what to say of a name that is none of the classes'."""
        if self.class_names is None:
            return (
                f"the label {name!r} is a name, but the model does not know its classes' names: "
                "set model.class_names, or give numbers"
            )
        return f"unknown label {name!r}: expected one of {_listed(self.class_names)}"

    def wrong_one_hot(self, classes: int) -> str:
        """Return what to say of one-hot labels of another number of classes."""
        return (
            f"one-hot labels must have {self._count} classes, got {classes}: build the model with "
            f"num_classes={classes} if the data have as many"
        )

    def null_labels(self, number: Any) -> Tensor:
        """Return labels that say nothing, int32 (number,)."""
        return ops.full((number,), self._count, dtype="int32")

    @property
    def _count(self) -> int:
        assert self.num_classes is not None, "asked for labels only where they are taken"
        return self.num_classes

    def _expected(self) -> str:
        names = " or names" if self.class_names else ""
        return (
            f"integers from 0 to {self._count - 1}{names}, shape (batch,), or one-hot, shape "
            f"(batch, {self._count})"
        )

    def _numbers_of_names(self, values: np.ndarray) -> Numbers:
        numbers = {name: number for number, name in enumerate(self.class_names or ())}
        result = []
        for value in values.ravel():
            value = value.decode(errors="replace") if isinstance(value, bytes) else value
            value = str(value) if isinstance(value, np.str_) else value
            if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
                if not 0 <= value < self._count:  # beyond 64 bits, too
                    raise ValueError(self.out_of_range(value))
                result.append(int(value))  # names and numbers mixed
                continue
            found = numbers.get(_composed(value)) if isinstance(value, str) else None
            if found is None:
                raise ValueError(self.unknown_name(value))
            result.append(found)
        return np.array(result, "int32")

    def _numbers_of_one_hot(self, values: np.ndarray) -> Numbers:
        if values.shape[1] != self.num_classes:
            raise ValueError(self.wrong_one_hot(values.shape[1]))
        is_one_hot = np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all()
        if not is_one_hot:
            raise ValueError(NOT_ONE_HOT)
        return values.argmax(axis=1).astype("int32")

    # Conditions

    def check_condition(self, condition: Condition, number: int | None = None) -> np.ndarray:
        """Return conditions as an array, checked.

        Args:
            condition: (batch, *condition_shape): images, uint8 or floats in [0, 1], or vectors of
                finite floats.
            number: how many there must be.

        Raises:
            ValueError: a wrong shape, type or range.
        """
        values = np.asarray(condition)
        self.check_condition_shape(values.shape)
        if number is not None and len(values) != number:
            raise ValueError(f"expected a condition for each of {number} images, got {len(values)}")
        if self.takes_images:
            check_dtype(values.dtype, "conditions", values)
            if values.dtype != np.uint8 and values.size:
                check_range(float(values.min()), float(values.max()), "conditions")
            return values
        if values.dtype.kind not in "biuf" and "float" not in values.dtype.name:
            raise ValueError(f"conditions must be numbers, got dtype {values.dtype}")
        values = values.astype("float32")
        if not np.isfinite(values).all():
            raise ValueError(
                "condition holds NaN or infinity: repair it, or leave those images out"
            )
        return values

    def check_condition_shape(self, shape: Shape) -> None:
        """Raise ValueError unless a shape is (batch, *condition_shape), where None is unknown."""
        wanted = self.condition_shape or ()
        agrees = len(shape) == len(wanted) + 1 and all(
            size in (None, other) for size, other in zip(shape[1:], wanted)
        )
        if not agrees:
            raise ValueError(
                f"condition has shape {tuple(shape)}, expected (batch, "
                f"{', '.join(map(str, wanted))}): one for each image, of the model's "
                "condition_shape"
            )

    def scaled(self, condition: Tensor) -> Tensor:
        """Return conditions as the network gets them: images from -1 to 1, vectors as they are."""
        if self.takes_images:
            return 2.0 * as_unit_range(condition) - 1.0
        return ops.cast(condition, "float32")

    def null_condition(self, number: Any) -> Tensor:
        """Return scaled conditions that say nothing: zeros."""
        return ops.zeros((number, *(self.condition_shape or ())), "float32")


def _as_words(names: Any) -> list[str]:
    """Class names as words of Python's."""
    is_list = isinstance(names, (list, tuple, np.ndarray)) and len(names) > 0
    if not is_list or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of one or more words, got {names!r}")
    return [_composed(str(name)) for name in names]


def _composed(name: str) -> str:
    """A word whose accents are part of its letters. Some systems' folders have them apart, which
    looks the same.
    """
    return unicodedata.normalize("NFC", name)


def _share(name: str, value: Any) -> float:
    if not is_number(value) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), the share of the images, got {value!r}")
    return float(value)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN]))
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
