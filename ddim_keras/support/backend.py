"""The only code that asks which Keras backend runs, beside `support/cores.py`: the gradient step,
compiling a function, a few kernels, the devices.

Everything else is written once in `keras.ops` and `keras.random`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

BACKEND = keras.backend.backend()
SUPPORTED_BACKENDS = ("tensorflow", "jax")
# JAX's `fit` keeps the weights outside the model, in arrays that each step overwrites.
BACKEND_HOLDS_WEIGHTS = BACKEND == "jax"
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


def device_names() -> list[str]:
    """Return the names of the devices to compute on: accelerators where there are some, or else the
    processor, which may have been divided into virtual ones.
    """
    if BACKEND == "jax":
        return list(keras.distribution.list_devices())
    import tensorflow as tf

    for kind in ("TPU", "GPU", "CPU"):
        if found := tf.config.list_logical_devices(kind):
            return [device.name for device in found]
    return []


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
        strategy = _multi_worker_strategy()
    elif "TPU" in names[0]:
        strategy = tf.distribute.TPUStrategy()
    else:
        strategy = tf.distribute.MirroredStrategy(names)
    with strategy.scope():
        yield


@functools.cache
def _multi_worker_strategy() -> Any:
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
        _multi_worker_strategy()
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


def is_tensorflow_on_processor() -> bool:
    """Whether TensorFlow computes, on a processor."""
    return BACKEND == "tensorflow" and not on_accelerator()


def attention_policy(policy: keras.DTypePolicy) -> keras.DTypePolicy:
    """Return the dtype policy of self-attention in a network of the given one.

    On a CPU, JAX has no product of float16 matrices that is summed in float32, as attention needs
    it: there it computes in float32.
    """
    return keras.DTypePolicy("float32") if _cannot_attend(policy.compute_dtype) else policy


def for_attention(parts: Sequence[Any]) -> list[Any]:
    """Return queries, keys and values in a type in which the backend can attend, see
    `attention_policy`.
    """
    if _cannot_attend(keras.backend.standardize_dtype(parts[0].dtype)):
        return [keras.ops.cast(part, "float32") for part in parts]
    return list(parts)


def _cannot_attend(dtype: str) -> bool:
    return BACKEND == "jax" and dtype == "float16" and not on_accelerator()


def compile_function(
    function: Callable,
    variables: list,
    jit_compile: bool,
    axes: Any = (),
    output_axes: Any = (),
) -> Callable:
    """Return `function` compiled for the backend, as a function of (values of the variables,
    *arguments).

    Where the variables are on several devices, each works on a part of the batch.

    Args:
        function: takes and returns arrays; may read `variables` but must not assign to them.
        variables: the Keras variables that `function` reads.
        jit_compile: whether to use XLA. On TensorFlow False means a plain graph, on JAX it means no
            compilation.
        axes: of each argument the axis of the batch, -1 if it has none.
        output_axes: likewise of what it returns.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(function, jit_compile=jit_compile, autograph=False)
        compiled._omit_frequent_tracing_warning = True  # batches of several shapes are no mistake
        strategy = _strategy_of(variables)
        if strategy is None or axes == ():
            return lambda values, *arguments: compiled(*arguments)
        return lambda values, *arguments: _run_by_parts(
            strategy, compiled, arguments, axes, output_axes
        )

    def pure_function(values: list, *arguments: Any) -> Any:
        with values_used(variables, values):
            return function(*arguments)

    compiled = pure_function
    if jit_compile:
        import jax

        compiled = jax.jit(pure_function)
    return lambda values, *arguments: compiled(values, *_divided_among_mesh(arguments, axes))


def devices_of_walks(variables: list) -> int:
    """Return among how many devices `compile_function` divides batches, if they can be divided."""
    if BACKEND == "tensorflow":
        strategy = _strategy_of(variables)
        return 1 if strategy is None else len(strategy.extended.worker_devices)
    mesh = _mesh()
    return 1 if mesh is None else int(mesh.shape[mesh.axis_names.index(_batch_axis())])


def _strategy_of(variables: list) -> Any:
    """The strategy that keeps the variables on several devices of this machine, or None."""
    strategy = getattr(variables[0].value, "distribute_strategy", None) if variables else None
    if strategy is None or len(strategy.extended.worker_devices) == 1:
        return None
    return strategy


def _run_by_parts(
    strategy: Any, compiled: Callable, arguments: Any, axes: Any, output_axes: Any
) -> Any:
    """Call a function on each device for its part of the batch, and join what they return."""
    import tensorflow as tf

    flat, along = keras.tree.flatten(arguments), keras.tree.flatten(axes)
    devices = len(strategy.extended.worker_devices)
    if any(array.shape[axis] % devices for array, axis in zip(flat, along) if axis >= 0):
        return compiled(*arguments)

    def parted(array: Any, axis: int) -> Any:
        if axis < 0:
            return array
        parts = iter(tf.split(array, devices, axis))
        return strategy.experimental_distribute_values_from_function(lambda _: next(parts))

    parts = keras.tree.pack_sequence_as(arguments, [parted(*pair) for pair in zip(flat, along)])
    results = keras.tree.map_structure(
        lambda axis, result: tf.concat(strategy.experimental_local_results(result), axis),
        output_axes,
        strategy.run(compiled, args=parts),
    )
    return results


def _mesh() -> Any:
    """The mesh of JAX's devices among which batches are divided, all of this process; or None."""
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.batch_dim_name is None or process()[1] > 1:
        return None
    return distribution.device_mesh


def _batch_axis() -> str:
    return keras.distribution.distribution().batch_dim_name


def _divided_among_mesh(arguments: Any, axes: Any) -> Any:
    """Arguments with each part of the batch on the device that works on it."""
    mesh = _mesh()
    if mesh is None or axes == ():
        return arguments
    devices = devices_of_walks([])
    flat, along = keras.tree.flatten(arguments), keras.tree.flatten(axes)
    if any(array.shape[axis] % devices for array, axis in zip(flat, along) if axis >= 0):
        return arguments
    import jax

    def placed(array: Any, axis: int) -> Any:
        names: list[str | None] = [None] * (axis + 1)
        if axis >= 0:
            names[axis] = _batch_axis()
        layout = jax.sharding.NamedSharding(mesh.backend_mesh, jax.sharding.PartitionSpec(*names))
        return jax.device_put(array, layout)

    placed_all = [placed(*pair) for pair in zip(flat, along)]
    return keras.tree.pack_sequence_as(arguments, placed_all)


def compile_gradient(function: Callable, variables: list, jit_compile: bool) -> Callable:
    """Return the gradient of a function by its first argument, compiled as by `compile_function`.

    Args:
        function: (parameters, *arguments) -> a scalar.
        variables, jit_compile: as for `compile_function`.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def gradient(parameters: Any, *arguments: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(parameters)
                value = function(parameters, *arguments)
            return tape.gradient(value, parameters)

    else:
        import jax

        gradient = jax.grad(function)
    return compile_function(gradient, variables, jit_compile)


def values_of(variables: list) -> list:
    """Return what compiled functions are given of the variables they read: on TensorFlow nothing,
    as a graph reads them itself.

    On JAX copies, as a training in another thread may overwrite the memory of the variables at any
    moment.
    """
    if BACKEND == "tensorflow":
        return []
    import jax.numpy as jnp

    # What is the same in all processes becomes this one's own, to generate without the others.
    shared = process()[1] > 1
    return [
        jnp.array(keras.ops.convert_to_numpy(variable.value) if shared else variable.value)
        for variable in variables
    ]


@contextlib.contextmanager
def values_used(variables: list, values: list) -> Iterator[None]:
    """Within, the variables have the values that `values_of` returned."""
    if BACKEND == "tensorflow":
        yield
        return
    with keras.StatelessScope(state_mapping=list(zip(variables, values))):
        yield


def train_step(model: Any, *arguments: Any) -> Any:
    """One gradient step, in the form that the backend's `fit` calls: (data) -> logs, or (state,
    data) -> (logs, state).
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        (data,) = arguments
        # A graph runs what it can: without this, a step at the end of the data would still move the
        # averages along.
        with tf.control_dependencies([part for part in tf.nest.flatten(data) if part is not None]):
            with tf.GradientTape() as tape:
                scaled_loss = model.optimizer.scale_loss(model.training_loss(data))
            variables = model.network.trainable_variables
            gradients = tape.gradient(scaled_loss, variables)
            # An embedding's are sparse.
            gradients = [part if part is None else tf.convert_to_tensor(part) for part in gradients]
            gradients = _summed_gradients(model.optimizer, gradients)
            model.track_gradients(gradients, model.optimizer.scale_loss(tf.constant(1.0)))
            model.optimizer.apply_gradients(zip(gradients, variables))
            model.update_ema()
            return _logs_of_a_step(model, model.training_logs())

    import jax

    state, data = arguments
    groups = _state_variables(model, with_optimizer=True)

    def loss_and_state(trainable, state):
        with keras.StatelessScope(state_mapping=_mapping(groups, (trainable, *state[1:]))) as scope:
            loss = model.optimizer.scale_loss(model.training_loss(data))
        return loss, _updated(scope, groups, (trainable, *state[1:]))

    gradients, state = jax.grad(loss_and_state, has_aux=True)(state[0], state)
    with keras.StatelessScope(state_mapping=_mapping(groups, state)) as scope:
        model.track_gradients(gradients, model.optimizer.scale_loss(1.0))
    state = _updated(scope, groups, state)
    trainable, optimizer_state = model.optimizer.stateless_apply(state[2], gradients, state[0])
    state = (trainable, state[1], optimizer_state, state[3])
    with keras.StatelessScope(state_mapping=_mapping(groups, state)) as scope:
        model.update_ema()
        logs = model.training_logs()
    return logs, _updated(scope, groups, state)


def _summed_gradients(optimizer: Any, gradients: list) -> list:
    """Return the gradients of whole batches: those of this replica's part, summed over all.

    Keras sums them when they are applied, after it has clipped each replica's by itself, and looked
    for infinities in them. Here they are summed before, so that it need not.
    """
    if replica()[1] == 1:
        return gradients
    import tensorflow as tf

    inner = getattr(optimizer, "inner_optimizer", optimizer)
    vars(inner)["_all_reduce_sum_gradients"] = list
    context = tf.distribute.get_replica_context()
    there = [part for part in gradients if part is not None]
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, there))
    return [part if part is None else next(summed) for part in gradients]


def _logs_of_a_step(model: Any, logs: dict[str, Any]) -> dict[str, Any]:
    """Return figures in the shape in which Keras takes their mean over the replicas.

    Of several processes Keras 3 asks for the mean along the first axis, and fails where there is
    none.
    """
    if process(model)[1] == 1:
        return logs
    return {name: keras.ops.expand_dims(value, 0) for name, value in logs.items()}


def test_step(model: Any, *arguments: Any) -> Any:
    """One evaluation step, in the form that the backend's `evaluate` calls."""
    if BACKEND == "tensorflow":
        (data,) = arguments
        return _logs_of_a_step(model, model.evaluation_logs(data))
    state, data = arguments
    groups = _state_variables(model, with_optimizer=False)
    with keras.StatelessScope(state_mapping=_mapping(groups, state)) as scope:
        logs = model.evaluation_logs(data)
    return logs, _updated(scope, groups, state)


def value_and_slope(function: Callable, point: Any, direction: Any) -> tuple[Any, Any]:
    """Return (function(point), direction J), J its Jacobian there; arrays of one shape."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(point)
            value = function(point)
        return value, tape.gradient(value, point, direction)
    import jax

    value, pull_back = jax.vjp(function, point)
    return value, pull_back(direction)[0]


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


def named_state(state: tuple, parts: dict[str, bool]) -> dict[str, list]:
    """Return the JAX trainer's state in the form that its `jax_state_sync` brings back into the
    model.
    """
    names = (
        "trainable_variables",
        "non_trainable_variables",
        "optimizer_variables",
        "metrics_variables",
    )
    return dict(zip([name for name in names if parts.get(name)], state))


@contextlib.contextmanager
def keeping_state(model: Any) -> Iterator[None]:
    """Bring the weights back into the model when a loop of Keras's over batches is interrupted: on
    JAX they are outside.
    """
    try:
        yield
    except BaseException:
        synchronize = getattr(model, "jax_state_sync", None)
        if synchronize is not None:
            synchronize()
        raise


def sum_over_replicas(value: Any) -> Any:
    """Return the sum of a number or array over all replicas, where the model is copied to several
    devices; else the value itself.
    """
    if replica()[1] == 1:
        return value
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def random_numbers_from(kind: str, shape: Any, seed: Any, skipped: Any, dtype: str) -> Any:
    """Return the random numbers that TensorFlow draws for a seed, without the first ones.

    Args:
        kind: "uniform" or "normal".
        shape: of what is returned.
        seed: as `keras.random.SeedGenerator.next` gives it.
        skipped: so many times four numbers are left out.
        dtype: of the numbers.
    """
    import tensorflow as tf

    seed = tf.cast(tf.math.floormod(seed, tf.int32.max - 1), tf.int32)  # as Keras does
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    counter = tf.concat([counter[:1] + tf.cast(skipped, tf.uint64), counter[1:]], axis=0)
    operation = {
        "uniform": tf.raw_ops.StatelessRandomUniformV2,
        "normal": tf.raw_ops.StatelessRandomNormalV2,
    }[kind]
    chosen_by_tensorflow = 3
    return operation(
        shape=tf.stack(shape), key=key, counter=counter, alg=chosen_by_tensorflow, dtype=dtype
    )


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


def fused_batch_normalization(
    inputs: Any, epsilon: float, mean: Any = None, variance: Any = None
) -> tuple | None:
    """Normalise over all axes but the last in one kernel, or return None where the backend has
    none.

    TensorFlow's fused kernel is what makes a float32 training step on a CPU a fifth quicker than
    Keras's own layer; XLA, and so JAX, fuses that layer by itself.

    Args:
        inputs: (batch, height, width, channels), any float type; for float64 there is no such
            kernel.
        epsilon: added to the variance.
        mean, variance: statistics of shape (channels,) to normalise with; None for those of
            `inputs`.

    Returns:
        (outputs, mean, biased variance), the statistics in float32.
    """
    if BACKEND != "tensorflow" or inputs.dtype == "float64":
        return None
    import tensorflow as tf

    if mean is None and replica()[1] > 1:
        return _normalized_over_replicas(inputs, epsilon)
    channels = inputs.shape[-1]
    outputs, batch_mean, batch_variance = tf.compat.v1.nn.fused_batch_norm(
        inputs,
        tf.ones(channels),
        tf.zeros(channels),
        mean=None if mean is None else tf.cast(mean, "float32"),
        variance=None if variance is None else tf.cast(variance, "float32"),
        epsilon=epsilon,
        is_training=mean is None,
    )
    if mean is not None:
        return outputs, mean, variance
    count = tf.cast(
        tf.size(inputs) // channels, "float32"
    )  # the kernel returns the unbiased variance
    return outputs, batch_mean, batch_variance * ((count - 1.0) / count)


def _normalized_over_replicas(inputs: Any, epsilon: float) -> tuple:
    """As `fused_batch_normalization`, with the statistics of the whole batch, of which each replica
    has a part of the same size.
    """
    import tensorflow as tf

    values = tf.cast(inputs, "float32")
    mean, variance = tf.nn.moments(values, axes=[0, 1, 2])
    sums = sum_over_replicas(tf.stack([mean, variance + tf.square(mean)]))
    mean, square = tf.unstack(sums / replica()[1])
    variance = tf.maximum(square - tf.square(mean), 0.0)
    outputs = (values - mean) * tf.math.rsqrt(variance + epsilon)
    return tf.cast(outputs, inputs.dtype), mean, variance


def resized_bilinearly(images: Any, size: tuple[int, int]) -> Any:
    """Return images (batch, height, width, channels) of another size, or None where the backend
    has nothing quicker than Keras's own function.

    In half precision that one looks for overflows, which a mean of neighbours cannot have, in more
    time than resizing takes.
    """
    if BACKEND != "tensorflow":
        return None
    import tensorflow as tf

    resized = tf.raw_ops.ResizeBilinear(images=images, size=size, half_pixel_centers=True)
    return tf.cast(resized, images.dtype)


def swish(x: Any) -> Any:
    """Return x sigmoid(x), with a gradient whose sigmoid TensorFlow works out in float32.

    In half precision it takes three times as long.
    """
    if BACKEND != "tensorflow":
        return keras.activations.swish(x)
    import tensorflow as tf

    @tf.custom_gradient
    def with_gradient(x):
        outputs = tf.nn.silu(x)

        def gradient(upstream):
            sigmoid = tf.cast(tf.sigmoid(tf.cast(x, "float32")), x.dtype)
            return upstream * (sigmoid + outputs * (1.0 - sigmoid))

        return outputs, gradient

    return with_gradient(x)


def _state_variables(model: Any, with_optimizer: bool) -> list[list]:
    """The variables behind the JAX trainer's state, in its order."""
    optimizer = [model.optimizer.variables] if with_optimizer else []
    return [
        model.trainable_variables,
        model.non_trainable_variables,
        *optimizer,
        model.metrics_variables,
    ]


def _mapping(groups: list[list], state: tuple) -> list[tuple]:
    return [pair for variables, values in zip(groups, state) for pair in zip(variables, values)]


def _updated(scope: Any, groups: list[list], state: tuple) -> tuple:
    def value(variable, old):
        new = scope.get_current_value(variable)
        return old if new is None else new

    return tuple(
        [value(variable, old) for variable, old in zip(variables, values)]
        for variables, values in zip(groups, state)
    )
