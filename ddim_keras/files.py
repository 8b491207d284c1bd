"""Writing files so that a reader, or a killed process, never leaves half of one behind."""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path in the same folder, with the same suffixes; on success it is renamed to `path`.

    The folder is made if need be. When the block raises, the temporary file is removed and `path` stays as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
