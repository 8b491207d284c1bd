"""Reading and writing safetensors files, with NumPy alone.

A file is the length of a header in 8 bytes, the header, JSON that names each array's type, shape
and place, and the arrays' bytes one after another. Nothing in it can be executed.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ddim_keras.support import reading

_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items() if name != "BF16"}
_LARGEST_HEADER = 100_000_000
_ADVICE = "copy or download it again"


def read(path: str | os.PathLike) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a safetensors file by name; bfloat16 becomes float32.

    Raises:
        ValueError: the file is damaged, or holds an unknown type.
    """
    path = pathlib.Path(path)
    data = path.read_bytes()
    with reading.refusing_damage(path, _ADVICE, "is no whole safetensors file"):
        header, start = _header(data)
        arrays = {
            name: _array(name, entry, data, start)
            for name, entry in header.items()
            if name != "__metadata__"
        }
        _check_places([entry["data_offsets"] for entry in _entries(header)], len(data) - start)
        return arrays


def write(path: str | os.PathLike, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays as a safetensors file that says it comes from PyTorch, as diffusers asks."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in sorted(arrays):
        array = arrays[name]
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(arrays):
            little = arrays[name].dtype.newbyteorder("<")
            file.write(np.ascontiguousarray(arrays[name], dtype=little).tobytes())


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_LARGEST_HEADER, len(data) - 8):
        raise ValueError("it is cut short, or something else")
    return reading.dictionary_in(data[8 : 8 + length]), 8 + length


def _entries(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for name, entry in header.items() if name != "__metadata__"]


def _check_places(places: list[tuple[int, int]], number: int) -> None:
    """Raise ValueError unless arrays take all bytes there are, each for one of them."""
    used = sum(end - begin for begin, end in places)
    if used != number:
        raise ValueError(f"its arrays have {used} bytes, but {number} are there")
    end = 0
    for begin, until in sorted(places):
        if begin != end:
            raise ValueError(f"several of its arrays have byte {min(begin, end)} for their own")
        end = until


def _array(name: str, entry: dict[str, Any], data: bytes, start: int) -> npt.NDArray[Any]:
    kind, shape = entry["dtype"], tuple(int(size) for size in entry["shape"])
    if kind not in _TYPES:
        raise ValueError(f"{name} has the unknown type {kind}")
    begin, end = entry["data_offsets"]
    dtype = np.dtype(_TYPES[kind])
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or begin < 0 or end - begin != size or start + end > len(data):
        raise ValueError(f"{name} reaches beyond the file, or is not as long as its shape says")
    array = np.frombuffer(data, dtype, math.prod(shape), start + begin).reshape(shape)
    if kind == "BF16":  # the upper half of a float32
        return (array.astype("<u4") << 16).view("<f4")
    return array.copy()
