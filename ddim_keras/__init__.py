"""Denoising Diffusion Implicit Models for Keras: train, sample, save and reload as one `keras.Model`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

# Before TensorFlow is imported: its log is not for the users of the command.
if [os.path.basename(name) for name in getattr(sys, "argv", [])[:1]] == ["ddim-keras"]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from ddim_keras.model import DiffusionModel, load_model

__version__ = "0.1.0"

# Imported on first use, so that `import ddim_keras` stays quick and needs neither TensorFlow nor matplotlib.
_LAZY_MODULES = (
    "callbacks",
    "clipping",
    "data",
    "exporting",
    "forward",
    "metrics",
    "networks",
    "optimizers",
    "parameterizations",
    "plotting",
    "presets",
    "runs",
    "samplers",
    "schedules",
    "spacings",
    "weightings",
)

__all__ = ["DiffusionModel", "__version__", "load_model", *_LAZY_MODULES]


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"ddim_keras.{name}")
    raise AttributeError(f"module 'ddim_keras' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
