"""Several processes that train one model together."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import Any

import keras

from ddim_keras.support.backend.which import BACKEND

# With which the errors begin that JAX raises when processes cannot reach each other.
_STATUSES = (
    "UNKNOWN:",
    "UNAVAILABLE:",
    "ABORTED:",
    "INTERNAL:",
    "CANCELLED:",
    "DEADLINE_EXCEEDED:",
)
# How long JAX waits at the end for processes that have stopped answering.
_SHUTDOWN_SECONDS = 60


@functools.cache
def multi_worker_strategy() -> Any:
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()


def join_processes(addresses: list[str], index: int) -> None:
    """Train together with other processes from now on; before anything is computed.

    Args:
        addresses: of all processes, "host:port"; the first is the one that the others look for.
        index: which of them this one is.

    Raises:
        ConnectionError: they do not all answer.
    """
    try:
        if BACKEND == "jax":
            import jax

            jax.distributed.initialize(
                addresses[0], len(addresses), index, shutdown_timeout_seconds=_SHUTDOWN_SECONDS
            )
            return
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        os.environ["TF_CONFIG"] = json.dumps(cluster)
        multi_worker_strategy()
    except Exception as error:
        if not is_of_a_lost_process(error):
            raise
        raise ConnectionError(
            f"the {len(addresses)} processes do not find each other at {', '.join(addresses)} "
            f"({reason_of(error)}): start all within a few minutes, each with its own number, and "
            "see that the first address can be reached from the others"
        ) from error


def process(model: Any = None) -> tuple[int, int]:
    """Return (number of this process, how many train one model together).

    Args:
        model: a model, or None for the strategy whose scope this is within.
    """
    if BACKEND == "jax":
        import jax

        if keras.distribution.distribution() is None:
            return 0, 1
        return jax.process_index(), jax.process_count()
    import tensorflow as tf

    strategy = tf.distribute.get_strategy() if model is None else model.distribute_strategy
    resolver = strategy.cluster_resolver
    cluster = {} if resolver is None else resolver.cluster_spec().as_dict()
    number = sum(map(len, cluster.values()))
    return (int(resolver.task_id or 0), number) if number > 1 else (0, 1)


def largest_of_processes(numbers: list[float]) -> list[float]:
    """Return the largest that any process has of each number; all must call it alike.

    It returns in no process before all have called it.
    """
    if process()[1] == 1:
        return numbers
    if BACKEND == "jax":
        import numpy as np
        from jax.experimental import multihost_utils

        everyones = multihost_utils.process_allgather(np.array(numbers, "float32"))
        return [float(number) for number in everyones.max(axis=0)]
    import tensorflow as tf

    index, count = process()
    own = tf.one_hot(index, count)[:, None] * tf.constant([numbers], tf.float32)
    everyones = _summed_over_processes(tf.distribute.get_strategy())(own)
    return [float(number) for number in everyones.numpy().max(axis=0)]


@functools.cache
def _summed_over_processes(strategy: Any) -> Callable:
    import tensorflow as tf

    replicas_of_each = strategy.num_replicas_in_sync // process()[1]

    def summed(own: Any) -> Any:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, own / replicas_of_each)

    compiled = tf.function(lambda own: strategy.run(summed, args=(own,)), autograph=False)
    return lambda own: strategy.experimental_local_results(compiled(own))[0]


def own_part(model: Any, dataset: Any, is_part: bool) -> Any:
    """Return what a process's `fit` reads of a `tf.data.Dataset` of batches, where several train
    one model together.

    Args:
        model: the model.
        dataset: of batches of a multiple of all devices; or of this process's part of such.
        is_part: which of both.

    Raises:
        ValueError: Keras is set to divide the batches once more.
    """
    index, count = process(model)
    if count == 1:
        return dataset
    if BACKEND == "jax" and keras.distribution.distribution().auto_shard_dataset:
        raise ValueError(
            "several processes train this model, and fit gives each its part of every batch: make "
            "the distribution with auto_shard_dataset=False"
        )
    import tensorflow as tf

    def part(*batch: Any) -> Any:
        def sliced(values: Any) -> Any:
            size = tf.shape(values)[0] // count
            return values[index * size : (index + 1) * size]

        return tf.nest.map_structure(sliced, batch)

    if not is_part:
        dataset = dataset.map(part)
    if BACKEND == "jax":
        return dataset
    strategy = model.distribute_strategy
    devices = len(strategy.extended.worker_devices)
    if devices > 1:  # a batch for each device

        def divided(*batch: Any) -> Any:
            def rows(values: Any) -> Any:
                shape = tf.concat([[devices, -1], tf.shape(values)[1:]], 0)
                rows = tf.reshape(values, shape)
                rows.set_shape((devices, None, *values.shape[1:]))
                return rows

            return tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(rows, batch))

        dataset = dataset.flat_map(divided)
    return strategy.distribute_datasets_from_function(lambda context: dataset)


def is_of_a_lost_process(error: BaseException) -> bool:
    """Whether an error is one that the backend raises when another process has gone, or does not
    answer.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:  # which may end a process without any other
        return False
    if BACKEND == "jax":
        # Some come as ValueError, and bear the name of what carries messages or of a status.
        import jax

        return isinstance(error, jax.errors.JaxRuntimeError) or text.startswith(_STATUSES)
    import tensorflow as tf

    lost = ("Unavailable", "Aborted", "Internal", "Cancelled", "DeadlineExceeded", "Unknown")
    return isinstance(error, tuple(getattr(tf.errors, f"{name}Error") for name in lost))


def reason_of(error: BaseException) -> str:
    """Return the line of an error that says why a process does not answer."""
    text = str(error).rpartition("aborted by:")[2]  # what TensorFlow says of its messages
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
