"""Files of weights that other libraries wrote, as arrays by name."""

from __future__ import annotations

import os
import pathlib
import pickle
import re
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from ddim_keras.presets import safetensors
from ddim_keras.support import reading

Arrays = dict[str, npt.NDArray[Any]]
_POINTER = b"version https://git-lfs.github.com"
TORCH_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")


def read(path: str | os.PathLike) -> Any:
    """Return what a file holds: of safetensors its arrays by name, of PyTorch's files their
    structure, with arrays for tensors.

    Raises:
        ValueError: the file is damaged, of an unknown kind, or of PyTorch's and holds more than
            tensors, numbers and words.
        ImportError: the file is PyTorch's, and PyTorch is not installed.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        is_pointer = file.read(len(_POINTER)) == _POINTER
    if is_pointer:
        raise ValueError(
            f"{path} is no file of weights yet, but what Git keeps in place of a large one: run "
            "git lfs pull in its folder, or download it"
        )
    if path.suffix == ".safetensors":
        return safetensors.read(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise ValueError(
        f"{path} has an unknown suffix: expected .safetensors, or one of {list(TORCH_SUFFIXES)}"
    )


def has_shards(index: pathlib.Path, advice: str = "copy it again") -> bool:
    """Whether an index, `*.index.json`, and all files that it names are there.

    Raises:
        ValueError: the index is damaged; the message ends with the advice.
    """
    return index.is_file() and all(
        (index.parent / name).is_file() for name in _shards(index, advice)[1]
    )


def _shards(index: pathlib.Path, advice: str) -> tuple[dict[str, Any], list[str]]:
    """The file of each array that an index names, and all of these files."""
    what = "is no index of weights"
    found = reading.json_of(index, advice, what)
    with reading.refusing_damage(index, advice, what):
        places = dict(found["weight_map"])
        return places, sorted({str(name) for name in places.values()})


def read_sharded(index: pathlib.Path) -> Arrays:
    """Return the arrays of all files that an index, `*.index.json`, names.

    Raises:
        ValueError: the index or a file is damaged, or a file is missing.
    """
    places, names = _shards(index, "copy it again")
    arrays: Arrays = {}
    for name in names:
        if pathlib.PurePath(name).name != name or not (index.parent / name).is_file():
            raise ValueError(f"{index} names {name}, which is not beside it: copy it, too")
        arrays |= read(index.parent / name)
    if missing := sorted(set(places) - set(arrays)):
        raise ValueError(f"{index} names weights that its files do not hold: {missing[:8]}")
    return arrays


def _read_torch(path: pathlib.Path) -> Any:
    """Read a file of PyTorch's, without executing anything in it."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is a file of PyTorch's, which needs PyTorch to be read: pip install torch, or "
            "get the weights as .safetensors, which need nothing"
        ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {named[1]}" if named else "it is no plain pickle of weights"
        raise ValueError(
            f"{path} is damaged, or holds more than weights, which might execute anything as it is "
            f"read ({reason}): get the weights as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = re.split(r"\.\s", str(error).strip())[0] or "it ends too soon"
        raise ValueError(f"{path} is damaged ({reason}): copy or download it again") from error
    try:
        return _as_arrays(found, torch)
    except (TypeError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} holds weights that are no plain arrays, quantized or sparse ones say "
            f"({reason}): get them in 16 or 32 bits"
        ) from error


def _as_arrays(found: Any, torch: Any) -> Any:
    """A structure with arrays for tensors, float32 for what NumPy does not know."""
    if isinstance(found, torch.Tensor):
        tensor = found.detach()
        is_known = tensor.dtype in (torch.float16, torch.float32, torch.float64)
        return (tensor if is_known or not tensor.is_floating_point() else tensor.float()).numpy()
    if isinstance(found, dict):
        return {name: _as_arrays(part, torch) for name, part in found.items()}
    if isinstance(found, (list, tuple)):
        return [_as_arrays(part, torch) for part in found]
    return found


def is_arrays(found: Any) -> bool:
    """Whether something is a dictionary of arrays by name."""
    return (
        isinstance(found, dict)
        and bool(found)
        and all(
            isinstance(name, str) and isinstance(array, np.ndarray) for name, array in found.items()
        )
    )
