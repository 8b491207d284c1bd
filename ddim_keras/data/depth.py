"""How many bits deep images use, and how they become 8 bits.

Cameras and microscopes store 10, 12 or 14 bits in files of 16. Some files say so; where none does,
the largest value of the whole data set decides: one image alone may just be dark.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

DEPTHS = (8, 10, 12, 14, 16)
# A rounding error beyond [0, 1] is no other range.
_TOLERANCE = 1e-3


class Depth(NamedTuple):
    """What is known of the depth of one image.

    Attributes:
        bits: the value 2**bits - 1 is white; 0 for floats in [0, 1]; None if the file leaves it
            open.
        claimed: bits that the file calls significant, without saying whether its values are scaled.
        largest: the largest value, where `bits` is None.
        upper_byte: only the upper 8 of 16 bits were read.
    """

    bits: int | None
    claimed: int | None = None
    largest: int = 0
    upper_byte: bool = False


def holding(largest: int) -> int:
    """Return the smallest usual depth that holds a value, in bits."""
    for bits in DEPTHS:
        if largest < 2**bits:
            return bits
    return int(largest).bit_length()


def check_bits(bits: Any) -> None:
    """Raise ValueError unless `bits` is None or an integer from 1 to 32."""
    is_integer = isinstance(bits, (int, np.integer)) and not isinstance(bits, bool)
    if bits is not None and not (is_integer and 1 <= bits <= 32):
        raise ValueError(f"bits must be an integer from 1 to 32, or None, got {bits!r}")


def check_floats(smallest: float, largest: float, bits: int | None) -> int:
    """Return the depth of floats: 0 for [0, 1], else `bits`.

    Raises:
        ValueError: they are not finite, or lie outside [0, 1] and `bits` does not say what is
            white.
    """
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ValueError("its floats hold NaN or infinity")
    if -_TOLERANCE <= smallest and largest <= 1.0 + _TOLERANCE:
        return 0
    if bits is not None and 0.0 <= smallest and largest <= 2**bits - 1:
        return int(bits)
    raise ValueError(
        f"its floats run from {smallest:.4g} to {largest:.4g}, expected [0, 1]: rescale them, or "
        "say with bits=8, 12 or 16 that 255, 4095 or 65535 is white"
    )


def check_integers(smallest: int, largest: int, bits: int | None) -> None:
    """Raise ValueError if integers are negative, or too large for what the user said."""
    if smallest < 0:
        raise ValueError(f"its values run from {smallest} to {largest}, expected none below 0")
    if bits is not None and largest > 2**bits - 1:
        raise ValueError(
            f"its largest value is {largest}, but bits={bits} has {2**bits - 1} as white"
        )


def settle(depths: Sequence[Depth], names: Sequence[str], what: str) -> list[int]:
    """Return the bits of each image of a data set; warn where only its largest value tells them.

    Args:
        depths: of each image.
        names: of each image.
        what: what to call the data set.

    Raises:
        ValueError: no value tells which is white.
    """
    chosen: dict[int | None, int] = {}
    for claimed in {depth.claimed for depth in depths if depth.bits is None}:
        members = [
            i for i, depth in enumerate(depths) if depth.bits is None and depth.claimed == claimed
        ]
        largest = max(depths[i].largest for i in members)
        if claimed is not None:  # values beyond it were scaled to 16 bits, as PNG asks for
            chosen[claimed] = claimed if largest < 2**claimed else 16
            continue
        chosen[None] = bits = holding(largest)
        first = names[members[0]]
        if bits > 16:
            raise ValueError(
                f"{len(members)} images of {what} have values up to {largest}, and do not say "
                f"which is white (the first is {first}): say it with bits=, such as bits={bits}"
            )
        coarse = [i for i in members if depths[i].upper_byte]
        if coarse and bits < 16:
            raise ValueError(
                f"{names[coarse[0]]} and {len(coarse) - 1} others of {what} are 16-bit colour "
                f"images that stay below {2**bits} of 65535, and only the upper 8 bits of such a "
                "file "
                "can be read: save them as PNG or with 8 bits; bits=16 takes them as they are"
            )
        if bits < 16 and largest > 0:
            warn_of_depth(
                f"{len(members)} images of {what}", largest, bits, f" (the first is {first})"
            )
    return [chosen[depth.claimed] if depth.bits is None else depth.bits for depth in depths]


def warn_of_depth(images: str, largest: int, bits: int, more: str = "") -> None:
    """Say that a depth was taken from the largest value."""
    warnings.warn(
        f"{images} are stored with more than 8 bits and do not say how many they use{more}. Their "
        f"largest value is {largest}, so they are read as {bits} bits: {2**bits - 1} is white. "
        "bits=16 "
        "would take 65535 as white",
        stacklevel=3,
    )


def to_eight_bits(values: np.ndarray, bits: int, inverted: bool = False) -> np.ndarray:
    """Return values whose white is 2**bits - 1 (1.0 for floats and bits=0) as uint8."""
    if values.dtype == np.uint8:
        return values
    white = 2**bits - 1 if bits else 1
    if values.dtype.kind == "f":
        return np.rint(np.clip(values * (255.0 / white), 0.0, 255.0)).astype("uint8")
    if bits > 16:
        scaled = np.rint(values * (255.0 / white))
        return (255.0 - scaled if inverted else scaled).astype("uint8")
    # Each value's result, looked up: fast, and exact.
    table = (np.minimum(np.arange(2**16, dtype="int64"), white) * 255 + white // 2) // white
    table = (255 - table if inverted else table).astype("uint8")
    return table[values]
