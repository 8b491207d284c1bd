"""The command line, `ddim-keras`: one file for each group of commands. Showing a help imports
neither Keras nor a backend.
"""

from ddim_keras.cli import (
    distilling,
    evaluating,
    fitting,
    generating,
    images,
    models,
    serving,
    training,
)  # each adds its commands
from ddim_keras.cli.group import INTERRUPTED, main

__all__ = [
    "INTERRUPTED",
    "distilling",
    "evaluating",
    "fitting",
    "generating",
    "images",
    "main",
    "models",
    "serving",
    "training",
]
