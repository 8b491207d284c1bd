"""Checksums of files of weights: HDF5 has none by itself, and reads damaged numbers as numbers."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from ddim_keras.support import reading

_ATTRIBUTE = "ddim_keras_sha256"
_ADVICE = "restore it from a backup, or save the weights again"


def sign_weights(filepath: str | os.PathLike) -> None:
    """Write into a file of weights, or each of its shards, the checksum of what it holds; and into
    what names the shards, those of all.
    """
    import h5py

    path, digests = pathlib.Path(filepath), {}
    for part in _parts(path):
        with h5py.File(part, "r+") as file:
            digests[part.name] = file.attrs[_ATTRIBUTE] = _digest(file)
    if path.suffix == ".json":
        path.write_text(json.dumps({**reading.json_of(path, _ADVICE), _ATTRIBUTE: digests}))


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
    together = _named_in(path).get(_ATTRIBUTE)
    for part in _parts(path):
        digest = _checked_part(part)
        if isinstance(together, dict) and digest is not None and digest != together.get(part.name):
            raise ValueError(
                f"{part} was not written together with {path}, as when a process is killed while "
                f"it saves over older files: {_ADVICE}"
            )


def _check_zip(path: pathlib.Path) -> None:
    with reading.refusing_damage(path, _ADVICE), zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{path} is damaged, its part {damaged} fails its checksum: {_ADVICE}")


def _checked_part(path: pathlib.Path) -> str | None:
    """Return the checksum in a file, which is that of what it holds; "" if it has none, and None
    if it cannot be read, which is left to who loads it.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError:
        return None
    with file:
        try:
            expected = file.attrs.get(_ATTRIBUTE)
            whole = expected is None or expected == _digest(file)
        except Exception as error:  # the library raises whatever it likes on damaged files
            raise ValueError(f"{path} is damaged ({error}): {_ADVICE}") from error
    if not whole:
        raise ValueError(f"{path} is damaged, its numbers fail their checksum: {_ADVICE}")
    return expected or ""


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The HDF5 files that hold the weights: the file itself, or those that its JSON names."""
    if path.suffix != ".json":
        return [path]
    try:
        names = _named_in(path)["weight_map"].values()
    except (KeyError, AttributeError):
        return []
    found = {part for name in names for part in (name if isinstance(name, list) else [name])}
    return [path.with_name(name) for name in sorted(found)]


def _named_in(path: pathlib.Path) -> dict[str, Any]:
    """What is said of shards; nothing if it cannot be read, which is left to who reads them."""
    try:
        return reading.json_of(path, _ADVICE) if path.suffix == ".json" else {}
    except ValueError:
        return {}


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
