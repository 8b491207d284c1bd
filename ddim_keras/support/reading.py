"""Reading files that may be damaged: whatever the readers of their formats raise, the error names
the file and says what to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

# Of the file system, not of what the file holds; and of the machine.
_NO_DAMAGE = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    MemoryError,
)


@contextlib.contextmanager
def refusing_damage(
    path: str | os.PathLike, advice: str, what: str = "is damaged"
) -> Iterator[None]:
    """Turn what a format's reader raises into a ValueError that names the file.

    The readers of JSON, zip archives and NumPy's files raise much: BadZipFile, EOFError, OSError,
    RuntimeError ("encrypted"), NotImplementedError, TypeError, zlib.error, RecursionError, ...

    Args:
        path: of the file.
        advice: what to do, the end of the message.
        what: is wrong with the file.

    Raises:
        ValueError: the file is damaged.
        FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, MemoryError: as
            they came.
    """
    try:
        yield
    except _NO_DAMAGE:
        raise
    except Exception as error:
        problem = str(error) or type(error).__name__
        raise ValueError(f"{path} {what} ({problem}): {advice}") from error


def dictionary_in(text: bytes) -> dict[str, Any]:
    """Return the dictionary that JSON holds, for use within `refusing_damage`.

    Raises:
        ValueError: it holds something else.
        RecursionError: it is nested too deep.
    """
    found = json.loads(text.decode("utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
    return found


def json_of(path: str | os.PathLike, advice: str, what: str = "is damaged") -> dict[str, Any]:
    """Return the dictionary that a JSON file holds.

    Args:
        path: of the file.
        advice: what to do if it is damaged.
        what: is wrong with the file then.

    Raises:
        ValueError: it is damaged, or holds something else.
        FileNotFoundError, IsADirectoryError, PermissionError: it cannot be read at all.
    """
    with refusing_damage(path, advice, what):
        return dictionary_in(pathlib.Path(path).read_bytes())


def arrays_of(
    path: str | os.PathLike,
    advice: str,
    names: Collection[str] | None = None,
    what: str = "is damaged",
) -> dict[str, np.ndarray]:
    """Return arrays of an .npz file by their names, all read and compared with their checksums.

    Args:
        path: of the file.
        advice: what to do if it is damaged.
        names: which to read, all of which must be there; None for all there are.
        what: is wrong with the file if it is damaged.

    Raises:
        ValueError: it is damaged, or holds something else.
        FileNotFoundError, IsADirectoryError, PermissionError: it cannot be read at all.
    """
    with refusing_damage(path, advice, what):
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array, not arrays by name")
        with found:
            wanted = found.files if names is None else names
            if missing := sorted(set(wanted) - set(found.files)):
                raise ValueError(f"it lacks the arrays {missing}")
            return {name: found[name] for name in wanted}


def array_of(path: str | os.PathLike, advice: str, what: str = "is damaged") -> np.ndarray:
    """Return the numbers of an .npy file.

    Args:
        path: of the file.
        advice: what to do if it is damaged.
        what: is wrong with the file then.

    Raises:
        ValueError: it is damaged, or holds something else.
        FileNotFoundError, IsADirectoryError, PermissionError: it cannot be read at all.
    """
    with refusing_damage(path, advice, what):
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            found.close()
            raise ValueError("it holds arrays by name, not a single one")
        return found
