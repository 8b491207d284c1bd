"""One process at a time works in a folder; who is killed locks nobody out."""

import errno
import fcntl
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest
from conftest import ROOT

from ddim_keras.support import folder_locks
from ddim_keras.support.folder_locks import FolderInUseError, only_one_in


def test_a_second_one_is_refused_and_told_who_is_there_and_what_to_do(tmp_path):
    with only_one_in(tmp_path / "run", "trains"):
        with pytest.raises(FolderInUseError) as told:
            with only_one_in(tmp_path / "run", "trains"):
                pytest.fail("two have it")
    assert f"this very process trains in {tmp_path / 'run'} already: wait" in str(told.value)


def test_a_lock_that_is_another_ones_by_now_is_left_to_it(tmp_path):
    with only_one_in(tmp_path, "trains"):
        (tmp_path / ".lock").unlink()  # by hand, say
        (tmp_path / ".lock").write_text("another")
    assert (tmp_path / ".lock").read_text() == "another"


def test_a_lock_file_that_may_only_be_read_is_locked_all_the_same(tmp_path, monkeypatch):
    (tmp_path / ".lock").write_text("of another user")
    opened = os.open

    def refusing(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refusing)
    with only_one_in(tmp_path, "trains"):
        with pytest.raises(FolderInUseError, match="another process .of another user. trains"):
            with only_one_in(tmp_path, "trains"):
                pytest.fail("two have it")


def test_an_error_within_releases_it(tmp_path):
    with pytest.raises(ZeroDivisionError), only_one_in(tmp_path, "trains"):
        raise ZeroDivisionError
    with only_one_in(tmp_path, "trains"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_nothing_was_put_into_is_removed_again(tmp_path):
    (tmp_path / "there").mkdir()
    for kept in (True, False):
        with only_one_in(tmp_path / "there" / "new" / "run", "trains"):
            if kept:
                (tmp_path / "there" / "new" / "run" / "file").touch()
        (tmp_path / "there" / "new" / "run" / "file").unlink(missing_ok=True)
        assert (tmp_path / "there" / "new" / "run").exists() == kept
        if kept:
            (tmp_path / "there" / "new" / "run").rmdir()
            (tmp_path / "there" / "new").rmdir()
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]


def test_parts_with_locks_of_their_own_work_at_once(tmp_path):
    with only_one_in(tmp_path, "makes", ".lock_0"), only_one_in(tmp_path, "makes", ".lock_1"):
        assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())


def test_a_killed_process_locks_nobody_out(tmp_path):
    code = (
        "import sys, time; from ddim_keras.support.folder_locks import only_one_in\n"
        "with only_one_in(sys.argv[1], 'trains'): print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError, match=rf"\({process.pid} on "):
            with only_one_in(tmp_path, "trains"):
                pytest.fail("two have it")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert (tmp_path / ".lock").exists()  # a file, but no lock
    with only_one_in(tmp_path, "trains"):
        pass
    assert not (tmp_path / ".lock").exists()


def test_a_lock_file_removed_as_it_is_opened_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """Its holder ended between another's opening and locking: that would hold a file that nobody
    else finds.
    """
    real, removed = folder_locks._lock, []

    def removing(descriptor):
        real(descriptor)
        if not removed:
            removed.append((tmp_path / ".lock").unlink())

    monkeypatch.setattr(folder_locks, "_lock", removing)
    with only_one_in(tmp_path, "trains"):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(FolderInUseError), only_one_in(tmp_path, "trains"):
            pytest.fail("two have it")


def test_where_the_file_system_knows_no_locks_nothing_is_locked(tmp_path, monkeypatch):
    def unknown(descriptor):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder_locks, "_lock", unknown)
    with only_one_in(tmp_path, "trains"), only_one_in(tmp_path, "trains"):
        pass


def test_a_folder_that_cannot_be_is_refused_in_words(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file, not a folder. Give another"):
        with only_one_in(tmp_path / "file", "trains"):
            pytest.fail("made")
    os.symlink("/nowhere/else", tmp_path / ".lock")
    with pytest.raises(FileNotFoundError, match=r"\.lock"):
        with only_one_in(tmp_path, "trains"):
            pytest.fail("made")


def test_windows_locks_a_byte_and_removes_the_file_once_it_is_closed(tmp_path, monkeypatch):
    """By msvcrt, whose locks nobody else can read, and of a file that cannot be removed while it is
    open.
    """

    def locking(descriptor, mode, length):
        assert os.lseek(descriptor, 0, os.SEEK_CUR) > 1000 and (mode, length) == (2, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error

    real = pathlib.Path.unlink

    def refused_while_open(path, missing_ok=False):
        names = os.listdir("/proc/self/fd")
        if any(os.path.realpath(f"/proc/self/fd/{name}") == str(path) for name in names):
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok)

    fake = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setattr(pathlib.Path, "unlink", refused_while_open)
    spec = importlib.util.spec_from_file_location("on_windows", folder_locks.__file__)
    windows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(windows)
    folder = tmp_path.resolve()
    with windows.only_one_in(folder, "trains"):
        with pytest.raises(windows.FolderInUseError, match="this very process trains"):
            with windows.only_one_in(folder, "trains"):
                pytest.fail("two have it")
    assert not list(folder.iterdir())
