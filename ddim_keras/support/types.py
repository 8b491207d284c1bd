"""Names for what goes in and out of functions, so that a signature says what it takes.

Keras has no type that is at once a TensorFlow tensor, a JAX array and what stands for one while a
function is compiled: on the backend's side these are names for the reader. On the host's side the
type checker holds them.
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
"""Signal or noise rates, or what is worked out of them: numbers, or what broadcasts against
images.
"""

Times: TypeAlias = Any
"""Diffusion times in [0, 1]: numbers, or what broadcasts against images."""

Variable: TypeAlias = Any
"""A `keras.Variable`."""

Array: TypeAlias = npt.NDArray[np.float64]
"""What the host works out in float64: times, rates, weights."""

Numbers: TypeAlias = npt.NDArray[np.int_]
"""Integers on the host: the numbers of times, of images."""

ImageArray: TypeAlias = npt.NDArray[np.float32]
"""(batch, height, width, channels), float32 on the host."""

ImageShape: TypeAlias = tuple[int, int, int]
"""(height, width, channels)."""

Config: TypeAlias = dict[str, Any]
"""What `get_config` returns: the constructor's arguments by name."""

Logs: TypeAlias = dict[str, Any]
"""The figures of a batch or an epoch by name, as Keras hands them to callbacks."""

Labels: TypeAlias = Any
"""(batch,) integers, or (batch, classes) one-hot."""

Features: TypeAlias = Any
"""(batch, features): what an extractor sees in images."""

Data: TypeAlias = Any
"""Images in any form that `DiffusionModel.fit` takes."""

SampleWeights: TypeAlias = Any
"""(batch,) numbers of at least 0: how much each image counts."""

Condition: TypeAlias = Any
"""(batch, *condition_shape): images or vectors that images are conditioned on; or one for all."""

BatchLike: TypeAlias = Any
"""A batch in any form that `fit` takes: images, (images, labels, ...) or a dictionary."""

Dataset: TypeAlias = Any
"""A `tf.data.Dataset`, whose type is not known where TensorFlow is not imported."""

DType: TypeAlias = Any
"""A dtype of NumPy or a backend, or its name; or a dtype policy of Keras."""

Shape: TypeAlias = Any
"""Sizes of axes, a tuple or a `tf.TensorShape`; None where one is not known."""

Callbacks: TypeAlias = Any
"""A `keras.callbacks.Callback`, a list of them, or None."""

ExtractorLike: TypeAlias = Any
"""An `Extractor`, its name, its configuration or a Keras model; None for the default."""

Split: TypeAlias = Any
"""Which part of a data set to take: TFDS's names, a share to hold out, or None for its own."""

GuidanceLike: TypeAlias = Any
"""A number, a `Guidance`, several of them, or None."""

Latents: TypeAlias = Any
"""Noises shaped as images, or one of them, on either side."""

LearningRate: TypeAlias = Any
"""A number, or a `keras.optimizers.schedules.LearningRateSchedule`."""
