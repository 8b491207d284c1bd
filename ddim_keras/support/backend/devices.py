"""The devices of a model, and its replicas on them."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import keras

from ddim_keras.support.backend.processes import multi_worker_strategy, process
from ddim_keras.support.backend.which import BACKEND
from ddim_keras.support.types import Tensor


def device_names() -> list[str]:
    """Return the names of the devices to compute on: accelerators where there are some, or else the
    processor, which may have been divided into virtual ones.
    """
    if BACKEND == "jax":
        return list(keras.distribution.list_devices())
    import tensorflow as tf

    if tf.config.list_physical_devices("TPU"):
        _tpus_of_tensorflow()  # which has no logical ones before
    for kind in ("TPU", "GPU", "CPU"):
        if found := tf.config.list_logical_devices(kind):
            return [device.name for device in found]
    return []


@functools.cache
def _tpus_of_tensorflow() -> Any:
    """Initialise this machine's TPUs, once, and return what finds them."""
    import tensorflow as tf

    return tf.distribute.cluster_resolver.TPUClusterResolver.connect("local")


@contextlib.contextmanager
def scope_on(names: list[str]) -> Iterator[None]:
    """Within, models are made on these devices, which divide each batch."""
    if BACKEND == "jax":
        import jax

        if jax.process_count() > 1:  # all devices of all processes
            names = keras.distribution.list_devices()
        # Each process reads its own part of every batch.
        one_for_all = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
        with one_for_all.scope():
            yield
        return
    import tensorflow as tf

    if "TF_CONFIG" in os.environ:
        strategy = multi_worker_strategy()
    elif "TPU" in names[0]:
        strategy = tf.distribute.TPUStrategy(_tpus_of_tensorflow())
    else:
        strategy = tf.distribute.MirroredStrategy(names)
    with strategy.scope():
        yield


def replica() -> tuple[Any, int]:
    """Return (number of this replica, how many there are) where the model is copied to several
    devices; else (0, 1).

    Only TensorFlow's strategies copy; on JAX one program sees the arrays of all devices whole.
    """
    if BACKEND != "tensorflow":
        return 0, 1
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return 0, 1
    return context.replica_id_in_sync_group, context.num_replicas_in_sync


def sum_over_replicas(value: Tensor) -> Tensor:
    """Return the sum of a number or array over all replicas, where the model is copied to several
    devices; else the value itself.
    """
    if replica()[1] == 1:
        return value
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def devices_in_scope() -> int:
    """Return among how many devices the batches of models are divided that are made now."""
    return devices_of_a_batch(None)


def devices_of_a_batch(model: Any) -> int:
    """Return among how many devices each batch is divided: TensorFlow's replicas, or the batch axis
    of a JAX mesh; of all processes.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        strategy = tf.distribute.get_strategy() if model is None else model.distribute_strategy
        return int(strategy.num_replicas_in_sync)
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.batch_dim_name is None:
        return 1
    mesh = distribution.device_mesh
    return int(mesh.shape[list(mesh.axis_names).index(distribution.batch_dim_name)])


def devices_of_walks(variables: list) -> int:
    """Return among how many devices `compile_function` divides batches, if they can be divided."""
    if BACKEND == "tensorflow":
        strategy = strategy_of(variables)
        return 1 if strategy is None else len(strategy.extended.worker_devices)
    mesh = mesh_of_walks()
    return 1 if mesh is None else int(mesh.shape[mesh.axis_names.index(batch_axis())])


def strategy_of(variables: list) -> Any:
    """The strategy that keeps the variables on several devices of this machine, or None."""
    strategy = getattr(variables[0].value, "distribute_strategy", None) if variables else None
    if strategy is None or len(strategy.extended.worker_devices) == 1:
        return None
    return strategy


def mesh_of_walks() -> Any:
    """The mesh of JAX's devices among which batches are divided, all of this process; or None."""
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.batch_dim_name is None or process()[1] > 1:
        return None
    return distribution.device_mesh


def batch_axis() -> str:
    return keras.distribution.distribution().batch_dim_name
