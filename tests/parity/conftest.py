"""Parity with the peers: torch and diffusers, on a CPU, in float32, with random weights.

They are no dependencies: `make test-parity` installs them.
"""

import importlib.util

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if "parity" in item.path.parts:
            item.add_marker(pytest.mark.parity)


@pytest.fixture(autouse=True)
def seeded_torch():
    if importlib.util.find_spec("torch"):
        import torch

        torch.manual_seed(0)
