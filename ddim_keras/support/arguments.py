"""Checks of numbers that a user gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def integer(name: str, value: Any, minimum: int, below: int | None = None) -> int:
    """Return `value` as an int, or raise ValueError unless it is an integer in [minimum, below)."""
    if not _is_integer(value) or value < minimum or (below is not None and value >= below):
        limit = f"at least {minimum}" + (f" and below {below}" if below is not None else "")
        raise ValueError(f"{name} must be an integer, {limit}: got {value!r}")
    return int(value)


def positive_int(name: str, value: Any) -> int:
    """Return `value` as an int, or raise ValueError unless it is an integer of at least 1."""
    return integer(name, value, minimum=1)


def integers(name: str, values: Any) -> list[int]:
    """Return `values` as a list of ints, or raise ValueError unless they are integers."""
    if not _is_sequence(values) or not all(map(_is_integer, values)):
        raise ValueError(f"{name} must be a list of integers, such as [1, 2], got {values!r}")
    return [int(value) for value in values]


def integer_or_integers(name: str, value: Any) -> int | list[int]:
    """Return `value` as an int of at least 1, or, if it is a sequence, as a list of ints."""
    return integers(name, value) if _is_sequence(value) else positive_int(name, value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a number, of Python's or NumPy's, and no truth value."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def truth(name: str, value: Any) -> bool:
    """Return `value` as a bool, or raise ValueError unless it is a truth value, 0 or 1: the word
    "false", in a file say, would count as true.
    """
    if not isinstance(value, (bool, int, np.bool_, np.integer)) or value not in (0, 1):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def not_negative(name: str, value: Any) -> float:
    """Return `value` as a float, or raise ValueError unless it is finite and at least 0."""
    if not is_number(value) or not np.isfinite(value) or value < 0.0:
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return float(value)


def unit_number(name: str, value: Any, meaning: str = "") -> float:
    """Return `value` as a float, or raise ValueError unless it is a number in [0, 1].

    Args:
        name: of the argument.
        value: what a user gave.
        meaning: what 0 and 1 stand for, for the message.
    """
    try:
        number = float("nan" if isinstance(value, (str, bytes)) else value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}{meaning and ': ' + meaning}")
    return number


def positive(name: str, value: Any) -> float:
    """Return `value` as a float, or raise ValueError unless it is finite and above 0."""
    if not is_number(value) or not np.isfinite(value) or not value > 0.0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return float(value)


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width), given that or the side of a square."""
    if isinstance(image_size, Iterable) and not isinstance(image_size, (str, bytes)):
        sizes: tuple = tuple(image_size)
    else:
        sizes = (image_size, image_size)
    if len(sizes) != 2:
        raise ValueError(f"image_size must be an int or (height, width), got {image_size!r}")
    return positive_int("image_size", sizes[0]), positive_int("image_size", sizes[1])


def refuse_equal_names(metrics: Sequence[Any]) -> None:
    """Raise ValueError if two metrics share a name, so that one's figure would overwrite the
    other's.
    """
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{names.count(name)} metrics are named {name!r}: give each a name of its own, as "
                "name=..."
            )
