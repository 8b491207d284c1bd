"""Which backend runs, and what it computes on."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import keras

BACKEND = keras.backend.backend()
SUPPORTED_BACKENDS = ("tensorflow", "jax")
# JAX's `fit` keeps the weights outside the model, in arrays that each step overwrites.
BACKEND_HOLDS_WEIGHTS = BACKEND == "jax"
# Whether functions become TensorFlow's graphs, which the converters of other runtimes read.
MAKES_GRAPHS = BACKEND == "tensorflow"

if BACKEND not in SUPPORTED_BACKENDS:
    raise ImportError(
        f"ddim_keras runs on the Keras backends {SUPPORTED_BACKENDS}, got {BACKEND!r}: set the "
        "environment variable "
        "KERAS_BACKEND to one of them before Keras is imported"
    )


def options_of_a_saved_model() -> dict[str, Any]:
    """Return what Keras's exporter is told where the program's gradient is not wanted, which a loop
    on JAX does not have.
    """
    return {"jax2tf_kwargs": {"with_gradient": False}} if BACKEND == "jax" else {}


@functools.cache
def fastest_precision() -> str:
    """Return the dtype policy that trains fastest here: "mixed_bfloat16" where the hardware
    computes in it, or "float32".

    A processor without bfloat16 only imitates it, and very slowly.
    """
    if on_accelerator():
        return "mixed_bfloat16"
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "mixed_bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def on_accelerator() -> bool:
    """Whether the backend computes on a GPU or TPU."""
    if BACKEND == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU"))


def is_tensorflow_on_processor() -> bool:
    """Whether TensorFlow computes, on a processor."""
    return BACKEND == "tensorflow" and not on_accelerator()
