"""Several processes that train one model together: what is told when one of them has gone, and
what keeps others out of their folder.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from ddim_keras.runs.checkpoints import Checkpoints
from ddim_keras.support import backend, folder_locks


class WorkerLostError(ConnectionError):
    """Another process of the training has gone; the message names the last checkpoint."""


@contextlib.contextmanager
def lost_workers_told(checkpoints: Checkpoints) -> Iterator[None]:
    """Within, what the backend raises when another process has gone becomes a WorkerLostError."""
    if backend.process()[1] == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        if not backend.is_of_a_lost_process(error):
            raise
        newest = checkpoints.newest_whole()
        kept = (
            "there is no checkpoint yet: the same command in all processes starts anew"
            if newest is None
            else f"the checkpoint {newest[0]} is kept: the same command in all processes resumes "
            f"from step {newest[1]}"
        )
        raise WorkerLostError(
            f"another process of the training was lost ({backend.reason_of(error)}); {kept}"
        ) from error


@contextlib.contextmanager
def only_training_in(folder: pathlib.Path) -> Iterator[None]:
    """Within, no other training works in a run's folder: the first of the processes holds its lock,
    and the others begin when it has it.

    Raises:
        FolderInUseError: another training does.
        NotADirectoryError, PermissionError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as held:
        problem: OSError | None = None
        if backend.process()[0] == 0:
            try:
                held.enter_context(folder_locks.only_one_in(folder, "trains"))
            except OSError as error:
                problem = error
        if backend.largest_of_processes([float(problem is not None)])[0]:
            raise problem or folder_locks.FolderInUseError(
                f"the first of the processes cannot have {folder} to itself, and says why"
            )
        yield
