"""A part of every batch for each core of the processor, which is quicker than a part of every
operation.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ddim_keras.support import backend

# With more cores the parts of a batch would be small, and the graph long.
_MOST_PARTS = 8
_HERE = threading.local()


def divide_batches_among_cores() -> int:
    """Give each core of the processor a part of every batch to work on by itself.

    Otherwise TensorFlow divides each operation among the cores, which wait for each other at its
    end, thousands of times in a step of training. Two cores train a network with group
    normalisation in four fifths of the time, and generate in five sixths. The commands do this by
    themselves where it pays.

    It holds for the whole process: other models, which do not divide their batches, then compute
    on one core. So does the training of a network whose batch must stay whole, for its batch
    normalisation or dropout. Layers of your own must treat each image by itself.

    Call it before anything is computed. Under JAX, on an accelerator, and with more than eight
    cores it changes nothing.

    Returns:
        Among how many cores batches are divided; 1 where they are not.

    Raises:
        RuntimeError: TensorFlow has computed something already.

    Examples:

        import ddim_keras

        ddim_keras.divide_batches_among_cores()
        model = ddim_keras.DiffusionModel.from_preset("fashion_mnist_32")
    """
    if not backend.is_tensorflow_on_processor():
        return 1
    import tensorflow as tf

    cores, threads = available_cores(), tf.config.threading
    if cores > _MOST_PARTS:
        return 1
    if cores > 1 and parts_of_a_batch() != cores:
        try:
            threads.set_intra_op_parallelism_threads(1)
            threads.set_inter_op_parallelism_threads(cores)
        except RuntimeError:
            raise RuntimeError(
                "divide_batches_among_cores() comes too late: TensorFlow has computed something "
                "already, and its threads are fixed by then. Call it at the start of the program, "
                "before a model or a data set is made"
            ) from None
    return cores


def available_cores() -> int:
    """Return on how many of the processor's cores this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def whole_batches() -> Iterator[None]:
    """Within, this thread's functions do not divide their batches: they are for other machines."""
    kept, _HERE.whole = getattr(_HERE, "whole", False), True
    try:
        yield
    finally:
        _HERE.whole = kept


def parts_of_a_batch() -> int:
    """Return into how many parts a batch is divided, one for each core, or 1: as
    `divide_batches_among_cores` said.
    """
    if getattr(_HERE, "whole", False):
        return 1
    if not backend.is_tensorflow_on_processor():
        return 1
    import tensorflow as tf

    threads = tf.config.threading
    if threads.get_intra_op_parallelism_threads() != 1 or backend.replica()[1] > 1:
        return 1
    return max(1, threads.get_inter_op_parallelism_threads())


def by_parts(function: Callable[[list], Any], arrays: list) -> Any:
    """Return `function(arrays)`, worked out for one part of the batch on each core if batches are
    divided.

    Args:
        function: of a list of arrays whose first axis is the batch's, to one such array, or to a
            list of them; it works on each image by itself.
        arrays: its argument.
    """
    parts = parts_of_a_batch()
    if parts == 1:
        return function(arrays)
    import tensorflow as tf

    if tf.executing_eagerly():
        return function(arrays)
    number = arrays[0].shape[0] or tf.shape(arrays[0])[0]
    missing = -number % parts
    if not isinstance(missing, int) or missing:  # the last image fills the parts up
        arrays = [tf.concat([array, tf.repeat(array[-1:], missing, axis=0)], 0) for array in arrays]
    traced = tf.function(function, autograph=False)  # once, however many parts there are
    pieces = zip(*[tf.split(array, parts) for array in arrays])
    outputs = [traced(list(piece)) for piece in pieces]
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0)[:number], *outputs)


def computes_on_tensorflows_workers() -> bool:
    """Whether the work is done by as many threads of TensorFlow's as there are cores."""
    if not backend.is_tensorflow_on_processor():
        return False
    import tensorflow as tf

    threads = tf.config.threading.get_intra_op_parallelism_threads()
    workers = parts_of_a_batch() if threads == 1 else threads
    return tf.executing_eagerly() and workers in (0, available_cores())


def keep_workers_busy(size: int) -> None:
    """Multiply matrices of TensorFlow's, on all of its workers."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        matrix = tf.ones((size, size))
        for product in _products(matrix, parts_of_a_batch()):
            product.numpy()


@functools.cache
def _compiled_products(number: int) -> Callable:
    import tensorflow as tf

    return tf.function(lambda matrix: [matrix @ (matrix + part) for part in range(number)])


def _products(matrix: Any, number: int) -> list:
    """So many products, which do not wait for each other."""
    return [matrix @ matrix] if number == 1 else _compiled_products(number)(matrix)
