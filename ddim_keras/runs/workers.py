"""Several processes that train one model together: what is told when one of them has gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ddim_keras.runs.checkpoints import Checkpoints
from ddim_keras.runs.watching import KeepCheckpoints
from ddim_keras.support import backend


class WorkerLostError(ConnectionError):
    """Another process of the training has gone; the message names the last checkpoint."""


@contextlib.contextmanager
def lost_workers_told(keeper: KeepCheckpoints, checkpoints: Checkpoints) -> Iterator[None]:
    """Within, what a step raises when another process has gone becomes a WorkerLostError."""
    if backend.process()[1] == 1:
        yield
        return
    try:
        yield
    except backend.errors_of_a_lost_process() as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # which may end a process without any other
            raise
        newest = checkpoints.newest_whole()
        kept = "there is no checkpoint yet" if newest is None else f"the checkpoint {newest[0]}"
        again = "starts anew" if newest is None else f"resumes from step {newest[1]}"
        reason = str(error).strip().splitlines()[0]
        raise WorkerLostError(
            f"another process of the training was lost after step {keeper.step} ({reason}). What "
            f"is kept is {kept}: the same command in all processes {again}"
        ) from error
