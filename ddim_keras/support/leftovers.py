"""Temporary names of what is being written, and what killed processes leave under them.

Whoever writes in a folder holds a shared lock of it, which the operating system releases when the
process ends, however it ends. Where nobody else holds one, what stands under temporary names is of
killed processes.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows, where folders cannot be locked
    fcntl = None  # type: ignore[assignment]

_ANY = f".{8 * '[0-9a-f]'}"
_OLD = f"{_ANY}-old"
_TRIES, _SECONDS = 100, 0.02


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """Return a name beside a path, with the same suffixes."""
    return path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")


def old_name(temporary: pathlib.Path) -> pathlib.Path:
    """Return a name for what is about to be replaced by what has a temporary one."""
    digits, name = temporary.name[1:].split(".", 1)
    return temporary.with_name(f".{digits}-old.{name}")


def remove(folder: str | os.PathLike, name: str = "*") -> None:
    """Remove what killed processes left in a folder, unless another process is just writing there.

    For who has a lock of his own that keeps others from writing these files: where the file system
    knows no locks of folders, that one is relied upon.

    Args:
        folder: which need not exist.
        name: of the files that were to be written; * stands for anything.
    """
    with _opened(pathlib.Path(folder)) as descriptor:
        if _has_alone(descriptor) is not False:
            _remove(pathlib.Path(folder), name)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Within, nobody takes the temporary files in a path's folder for a killed process's. Before,
    those that killed processes left as they wrote to this path are removed.

    Args:
        path: of what will be written, in a folder that exists.
    """
    with _opened(path.parent) as descriptor:
        if _has_alone(descriptor):
            _remove(path.parent, _escaped(path.name))
        _share(descriptor)
        yield


def _remove(folder: pathlib.Path, name: str) -> None:
    for found in sorted(folder.glob(f"{_OLD}.{name}")):
        place = found.with_name(found.name[1:].split(".", 1)[1])
        if os.path.lexists(place):
            _discard(found)
        else:  # the process was killed before anything had taken its place
            os.replace(found, place)
    for found in folder.glob(f"{_ANY}.{name}"):
        _discard(found)


def _discard(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


@contextlib.contextmanager
def _opened(folder: pathlib.Path) -> Iterator[int | None]:
    """Yield a descriptor of a folder; None where there is none to be had."""
    descriptor = None
    if fcntl is not None:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which releases the lock


def _has_alone(descriptor: int | None) -> bool | None:
    """Whether a folder could be locked against all others; None where that is not known."""
    if descriptor is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # NFS, say, locks for writing only what is opened for that
        return None
    return True


def _share(descriptor: int | None) -> None:
    """Lock a folder together with others. Whoever has it alone gives it back at once."""
    if descriptor is None:
        return
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_SECONDS)
        except OSError:
            return
        else:
            return
