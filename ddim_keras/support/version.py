"""The version, where all floors can read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__version__ = "0.2.0"
FIRST_VERSION = "0.1"
# In a model's configuration: what 0.1 wrote, and what is written since.
_WRITTEN_BY_THE_FIRST = {"schedule", "parameterization", "embedding_dims", "patch_size"}
_WRITTEN_SINCE = {"sampling_defaults", "pixels"}


def is_of_first_version(config: Mapping[str, Any]) -> bool:
    """Whether version 0.1 wrote a model's configuration."""
    found = set(config)
    return found >= _WRITTEN_BY_THE_FIRST and not found & _WRITTEN_SINCE
