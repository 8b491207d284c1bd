"""What the tests with optional libraries share.

The libraries are no dependencies: `make test-extras` installs them.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np

from ddim_keras import DiffusionModel

NEEDED = "needs libraries that are not installed here: run `make test-extras`"
ROOT = pathlib.Path(__file__).resolve().parents[2]


def small_model(**changes) -> DiffusionModel:
    """A model none of whose weights is at its initial value, and which makes images in the middle
    of their range.
    """
    keras.utils.set_random_seed(0)
    settings = {"image_size": 8, "widths": [8, 16], "block_depth": 1, "channels": 1, "seed": 1}
    settings |= {"parameterization": "velocity", **changes}
    model = DiffusionModel(**settings)
    model.normalizer.fix(0.4, 0.3)
    weights = [
        weight + 0.05 * np.random.default_rng(index).normal(size=weight.shape)
        for index, weight in enumerate(model.network.get_weights())
    ]
    for network in (model.network, model.ema_network):
        network.set_weights(weights)
    return model


def run_alone(code: str, *arguments: object) -> str:
    """Run code in a new process, in which this package cannot be imported."""
    hidden = "import sys; sys.modules['ddim_keras'] = None\n"
    return run([sys.executable, "-c", hidden + code, *map(str, arguments)])


def run(command: list[str], **environment: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
