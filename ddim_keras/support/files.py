"""Writing files so that a reader, or a killed process, never leaves half of one behind."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove what killed processes left of `written_beside` in a folder that no other process
    writes to.
    """
    for path in pathlib.Path(folder).glob(".????????.*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path in the same folder, with the same suffixes; on success it is renamed
    to `path`.

    The block may make a file or a folder there. The folder around it is made if need be. What stood
    at `path` is replaced. When the block raises, what it made is removed and `path` stays as it
    was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        if path.is_dir():  # only an empty folder could be replaced in one go
            old = temporary.with_name(f"{temporary.name}.old")
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(old, path)
                raise
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
