"""Files with 16 bits a colour, of which Pillow alone gives 8."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from ddim_keras.data import depth
from ddim_keras.support.types import Images

File: TypeAlias = "str | os.PathLike[str] | io.BytesIO"
"""A path, or a file that is held in memory."""


@contextlib.contextmanager
def opened(path: File) -> Iterator[Any]:
    """Open a file, or begin anew with one that is held in memory."""
    if isinstance(path, io.BytesIO):
        path.seek(0)
        yield path
    else:
        with open(path, "rb") as file:
            yield file


def significant_bits(path: File) -> int | None:
    """What a 16-bit PNG's sBIT says of its colours, if that is less than all."""
    with opened(path) as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"sBIT":
                bits = file.read(length)
                most = max(bits[:3]) if length >= 3 else max(bits[:1], default=16)
                return most if 0 < most < 16 else None
            if kind in (b"PLTE", b"IDAT", b"IEND"):
                break
            file.seek(length + 4, os.SEEK_CUR)
    return None


def read_png(path: File, key: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """All 16 bits of a PNG with colours or alpha, of which Pillow gives 8."""
    import tensorflow as tf

    with opened(path) as file, tf.device("CPU:0"):
        values = tf.io.decode_png(file.read(), dtype=tf.uint16).numpy()
    if values.shape[-1] in (1, 3):
        colours = values if values.shape[-1] == 3 else values[..., 0]
        return colours, keyed(colours, key)
    return _apart(values)


def read_tiff(image: Images, path: File, layout: str) -> tuple[np.ndarray, np.ndarray | None]:
    """All 16 bits of a TIFF with colours, of which Pillow gives the upper 8: the lower ones it
    gives to who calls their order the other one."""
    import PIL.Image

    native = "L" if sys.byteorder == "little" else "B"
    order = layout[-1].replace("N", native)
    swapped = layout[:-1] + {"L": "B", "B": "L"}[order]
    with opened(path) as file, PIL.Image.open(file) as other:
        tiles: list[Any] = []
        for tile in other.tile:
            codec, extents, offset, arguments = tile
            arguments = (swapped, *arguments[1:]) if isinstance(arguments, tuple) else swapped
            changed = (codec, extents, offset, arguments)
            # A named tuple in newer versions of Pillow, a plain one in older.
            tiles.append(type(tile)(*changed) if hasattr(tile, "_fields") else changed)
        other.tile = tiles
        other.load()
        values = np.asarray(image).astype("uint16") << 8 | np.asarray(other)
    return _apart(values) if values.shape[-1] == 4 else (values, None)


def _apart(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colours of uint16 values whose last channel is alpha, and that as uint8."""
    alpha = values[..., -1]
    colours = values[..., :3] if values.shape[-1] == 4 else values[..., 0]
    largest = int(alpha.max(initial=0))
    # Where the colours use fewer bits, so does what is opaque.
    bits = depth.holding(largest) if largest in (255, 1023, 4095, 16383) else 16
    return colours, depth.to_eight_bits(alpha, bits)


def keyed(values: np.ndarray, key: Any) -> np.ndarray | None:
    """Alpha where one value, or one colour, is transparent."""
    if not isinstance(key, (int, tuple)):
        return None
    same = values == np.asarray(key)
    if values.ndim == 3:
        same = same.all(axis=-1)
    return np.where(same, 0, 255).astype("uint8")
