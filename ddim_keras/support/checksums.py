"""Checksums of files of weights: HDF5 has none by itself, and reads damaged numbers as numbers."""

from __future__ import annotations

import hashlib
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from ddim_keras.support import reading

_ATTRIBUTE = "ddim_keras_sha256"
_ADVICE = "restore it from a backup, or save the weights again"


def sign_weights(filepath: str | os.PathLike) -> None:
    """Write into a file of weights, or each of its shards, the checksum of what it holds."""
    import h5py

    for path in _parts(pathlib.Path(filepath)):
        with h5py.File(path, "r+") as file:
            file.attrs[_ATTRIBUTE] = _digest(file)


def check_weights(filepath: str | os.PathLike) -> None:
    """Raise ValueError if a file of weights, or a `.keras` file, has changed since it was written.

    A file without a checksum, as Keras and version 0.1 write them, passes. What is no such file at
    all is left to who reads it.
    """
    path = pathlib.Path(filepath)
    if path.suffix == ".keras":
        if zipfile.is_zipfile(path):
            _check_zip(path)
        return
    for part in _parts(path):
        _check_part(part)


def _check_zip(path: pathlib.Path) -> None:
    with reading.refusing_damage(path, _ADVICE), zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{path} is damaged, its part {damaged} fails its checksum: {_ADVICE}")


def _check_part(path: pathlib.Path) -> None:
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError:
        return
    with file:
        try:
            expected = file.attrs.get(_ATTRIBUTE)
            whole = expected is None or expected == _digest(file)
        except Exception as error:  # the library raises whatever it likes on damaged files
            raise ValueError(f"{path} is damaged ({error}): {_ADVICE}") from error
    if not whole:
        raise ValueError(f"{path} is damaged, its numbers fail their checksum: {_ADVICE}")


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The HDF5 files that hold the weights: the file itself, or those that its JSON names."""
    if path.suffix != ".json":
        return [path]
    try:
        names = reading.json_of(path, _ADVICE)["weight_map"].values()
    except (ValueError, KeyError, AttributeError):
        return []
    found = {part for name in names for part in (name if isinstance(name, list) else [name])}
    return [path.with_name(name) for name in sorted(found)]


def _digest(file: Any) -> str:
    """A SHA-256 over names, attributes and numbers."""
    import h5py

    items: dict[str, Any] = {}
    file.visititems(items.__setitem__)
    digest = hashlib.sha256()
    for name, item in sorted(items.items()):
        attributes = sorted((key, str(value)) for key, value in item.attrs.items())
        digest.update(f"{name} {attributes} ".encode())
        if isinstance(item, h5py.Dataset):
            values = np.ascontiguousarray(item[()])
            digest.update(f"{values.dtype} {values.shape} ".encode())
            digest.update(str(values).encode() if values.dtype == object else values.tobytes())
    return digest.hexdigest()
