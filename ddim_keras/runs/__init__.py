"""Training runs that live in a folder: begun, watched, interrupted, and resumed as if nothing had
happened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddim_keras.runs.config import RunConfig

if TYPE_CHECKING:
    from ddim_keras.runs.checkpoints import Checkpoints, DivergedError
    from ddim_keras.runs.training import RunResult, train
    from ddim_keras.runs.workers import WorkerLostError

__all__ = ["Checkpoints", "DivergedError", "RunConfig", "RunResult", "WorkerLostError", "train"]

# Imported when first used, as they need Keras and its backend: the command line does not, to show
# its help.
_PLACES = {
    "Checkpoints": "checkpoints",
    "DivergedError": "checkpoints",
    "RunResult": "training",
    "WorkerLostError": "workers",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"ddim_keras.runs.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'ddim_keras.runs' has no attribute {name!r}")
