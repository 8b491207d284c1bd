"""Locks of folders, which one process at a time works in. The operating system releases them when
the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
from collections.abc import Iterator

from ddim_keras.support import files

try:
    import fcntl
except ImportError:  # Windows, where nobody can read what is locked, nor remove what is open
    import msvcrt

    _REMOVED_WHILE_LOCKED = False

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _BEYOND_THE_TEXT, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:
    _REMOVED_WHILE_LOCKED = True  # or it might be another's by then

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_BEYOND_THE_TEXT = 1 << 20
_HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)


class FolderInUseError(BlockingIOError):
    """Another process works in a folder; the message names both, and says what to do."""


@contextlib.contextmanager
def only_one_in(folder: str | os.PathLike, doing: str, name: str = ".lock") -> Iterator[None]:
    """Within, no other process, and no other thread, that asks for the same gets it.

    The folder is made if need be, and removed again if nothing was put into it. The lock is a file
    in it, which is removed at the end; one that a killed process has left locks nothing. On a file
    system that knows no locks, nothing is locked.

    Args:
        folder: what to lock. Who only reads in it needs no lock.
        doing: what is done in it, for the message of the others, such as "trains".
        name: of the file; those of other names are other locks.

    Raises:
        FolderInUseError: another has it.
        NotADirectoryError, PermissionError: nothing can be written there.
    """
    folder = pathlib.Path(folder)
    files.check_folder(folder)
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    path = folder / name
    descriptor = _locked(path, doing)
    try:
        yield
    finally:
        if _REMOVED_WHILE_LOCKED and _is_still(path, descriptor):
            _remove(path)
        os.close(descriptor)
        if not _REMOVED_WHILE_LOCKED:
            _remove(path)
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()  # only if it is empty


def _locked(path: pathlib.Path, doing: str) -> int:
    """Open and lock a file, and write into it who has it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = _opened(path)
        except FileNotFoundError:
            if path.parent.is_dir():
                raise
            continue  # another, which had made it, has just removed it
        try:
            with _refused_if_held(path, doing):
                _lock(descriptor)
            if _is_still(path, descriptor):  # and not removed as it was opened
                with contextlib.suppress(OSError):  # a full disk
                    os.ftruncate(descriptor, 0)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    os.write(descriptor, _own_name().encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _opened(path: pathlib.Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # of another user's, which can be locked all the same
        return os.open(path, os.O_RDONLY)


def _own_name() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


@contextlib.contextmanager
def _refused_if_held(path: pathlib.Path, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _HELD_ELSEWHERE:
            who = ""
            with contextlib.suppress(OSError):  # it has just ended
                who = path.read_text(encoding="utf-8", errors="replace")
            other = f"another process ({who})" if who else "another process"
            raise FolderInUseError(
                f"{'this very process' if who == _own_name() else other} {doing} in {path.parent} "
                "already: wait until that has ended, or end it, or give another folder"
            ) from error
        # Else the file system knows no locks.


def _remove(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _is_still(path: pathlib.Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
