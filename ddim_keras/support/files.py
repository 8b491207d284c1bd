"""Writing files so that a reader, or a killed process, never leaves half of one behind."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from ddim_keras.support import leftovers

# The disk is full, or a file is as long as it may be, or a user has all that he may.
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """Return a path whose ~ is the home folder, as a shell makes it of a word."""
    return pathlib.Path(os.path.expanduser(path))


def check_folder(folder: str | os.PathLike) -> None:
    """Find out before any work is done whether files can be written in a folder, which need not
    exist yet.

    Raises:
        NotADirectoryError: it, or what is above it, is no folder.
        PermissionError: it, or the folder in which it would be made, may not be written to.
    """
    there = expanded(folder).absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        kind = "a link to nothing" if there.is_symlink() and not there.exists() else "a file"
        raise NotADirectoryError(
            f"cannot write to {folder}: {there} is {kind}, not a folder. Give another folder, or "
            "move that away"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"cannot write to {folder}: {there} may not be written to. Give another folder, or "
            "change who may write there"
        )


def check_file(path: str | os.PathLike) -> None:
    """Find out before any work is done whether a file can be written.

    Raises:
        IsADirectoryError: a folder stands there.
        NotADirectoryError, PermissionError: as for `check_folder`, of the folder that it is in.
    """
    if expanded(path).is_dir():
        raise IsADirectoryError(
            f"cannot write the file {path}: a folder stands there. Give another name, such as one "
            "of a file in it"
        )
    check_folder(expanded(path).absolute().parent)


def check_room(path: str | os.PathLike, size: int) -> None:
    """Find out before a file is written whether there is room for it: where there is none, HDF5
    does not raise but ends the process.

    Args:
        path: of the file, in a folder that exists.
        size: in bytes, at most.

    Raises:
        OSError: there is not, on the disk or by what may be written; names the file.
    """
    probe = leftovers.temporary_name(expanded(path))
    try:
        with _naming(path, probe), open(probe, "wb") as file:
            _reserve(file.fileno(), size, probe.parent)
    finally:
        probe.unlink(missing_ok=True)


def _reserve(descriptor: int, size: int, folder: pathlib.Path) -> None:
    """Let a file have a size, or raise OSError.

    Not by `os.posix_fallocate`, which writes the file where the file system knows no such thing.
    """
    try:
        allocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except (AttributeError, TypeError, OSError):
        allocate = None
    if allocate is not None:
        if not allocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
            return
        if ctypes.get_errno() in _NO_ROOM:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    # Not on this system, or this file system.
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_free(path: pathlib.Path) -> bool:
    """Whether nothing stands at a path, or an empty folder."""
    return not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))


def keep_others(folder: pathlib.Path, new: pathlib.Path) -> None:
    """Copy what a folder holds into the one that will replace it, but for what that has itself."""
    if folder.is_dir():
        for kept in folder.iterdir():
            if os.path.lexists(new / kept.name):
                continue
            if kept.is_dir() and not kept.is_symlink():
                shutil.copytree(kept, new / kept.name, symlinks=True)
            else:
                shutil.copy2(kept, new / kept.name, follow_symlinks=False)


@contextlib.contextmanager
def _naming(path: str | os.PathLike, temporary: pathlib.Path) -> Iterator[None]:
    """Let errors in writing name the file that is written, where they name none or a temporary one;
    those of a full disk are OSError, whatever a library makes of them.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        full = [each for each in _NO_ROOM if each == number or os.strerror(each) in str(error)]
        if re.match(r"\d+ requested and \d+ written", str(error)):  # NumPy, without a number
            full = [errno.ENOSPC]
        if full:
            reason = f"{os.strerror(full[0])}: make room; what stood there before is whole"
            raise OSError(full[0], reason, os.fspath(path)) from error
        named = getattr(error, "filename", None)
        if isinstance(error, OSError) and number and str(named).startswith(str(temporary)):
            raise OSError(number, error.strerror, os.fspath(path)) from error
        raise


@contextlib.contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path in the same folder, with the same suffixes; on success it is renamed
    to `path`.

    The block may make a file or a folder there. The folder around it is made if need be. A file
    that stood at `path` is replaced by a file, a folder by a folder. When the block raises, what it
    made is removed and `path` stays as it was. What a killed process left of writing to the same
    path is removed first.

    Raises:
        IsADirectoryError: the block made a file, and a folder stands at `path`.
        NotADirectoryError, PermissionError: nothing can be written there.
        OSError: the disk is full, say; names `path`.
    """
    path = expanded(path)
    if path.is_symlink() and path.is_dir():
        path = path.resolve()  # the folder is replaced, and the link stays
    with beside(path) as temporary:
        yield temporary
        _rename(temporary, path)


@contextlib.contextmanager
def beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path as `written_beside` does; what stands there at the end is removed."""
    check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = leftovers.temporary_name(path)
    with leftovers.writing(path):
        try:
            with _naming(path, temporary):
                yield temporary
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)


def place_first(new: pathlib.Path, path: pathlib.Path) -> None:
    """Let a file or folder take its place, unless another process has come first."""
    is_folder = new.is_dir()
    try:
        (os.rename if is_folder else os.link)(new, path)
    except OSError:
        if os.path.lexists(path):
            return
        if is_folder:
            raise
        os.replace(new, path)  # on a file system without links


def _rename(temporary: pathlib.Path, path: pathlib.Path) -> None:
    if not temporary.is_dir():
        check_file(path)  # or all that the folder holds would be lost
    if not path.is_dir():
        os.replace(temporary, path)
        return
    if _exchanged(temporary, path):  # what was there is removed with what is temporary
        return
    old = leftovers.old_name(temporary)  # only an empty one is replaced in one go
    try:
        os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:  # a request to terminate, too
        if not os.path.lexists(path):
            os.replace(old, path)
        raise
    shutil.rmtree(old)


def _exchanged(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Let two folders take each other's place in one go; whether the system could."""
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, of Linux
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, TypeError, OSError):
        return False
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
