"""Several processes that train one model together: what is told when one of them has gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ddim_keras.runs.checkpoints import Checkpoints
from ddim_keras.support import backend


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
