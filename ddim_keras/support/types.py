"""Names for the arrays that go in and out, so that a signature says what it takes.

Keras has no type that is a TensorFlow tensor, a JAX array and what a function is traced with all at once, so that on the
backend's side these are names for the reader; on the host's side the type checker holds them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Tensor: TypeAlias = Any
"""An array of the backend, or what the backend makes of a NumPy array or number."""

Images: TypeAlias = Any
"""(batch, height, width, channels): noisy, predicted or finished images, or noises."""

Rates: TypeAlias = Any
"""Signal or noise rates: a number, or what broadcasts against images."""

Array: TypeAlias = npt.NDArray[np.float64]
"""What the host works out in float64: times, rates, weights."""

ImageArray: TypeAlias = npt.NDArray[np.float32]
"""(batch, height, width, channels), float32 on the host."""

ImageShape: TypeAlias = tuple[int, int, int]
"""(height, width, channels)."""
