"""The only code that asks which Keras backend runs, beside `support/cores.py`: the gradient step,
compiling a function, a few kernels, the devices.

Everything else is written once in `keras.ops` and `keras.random`.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

BACKEND = keras.backend.backend()
SUPPORTED_BACKENDS = ("tensorflow", "jax")
# JAX's `fit` keeps the weights outside the model, in arrays that each step overwrites.
BACKEND_HOLDS_WEIGHTS = BACKEND == "jax"

if BACKEND not in SUPPORTED_BACKENDS:
    raise ImportError(
        f"ddim_keras runs on the Keras backends {SUPPORTED_BACKENDS}, got {BACKEND!r}: set the "
        "environment variable "
        "KERAS_BACKEND to one of them before Keras is imported"
    )


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


def compile_function(function: Callable, variables: list, jit_compile: bool) -> Callable:
    """Return `function` compiled for the backend, as a function of (values of the variables,
    *arguments).

    Args:
        function: takes and returns arrays; may read `variables` but must not assign to them.
        variables: the Keras variables that `function` reads.
        jit_compile: whether to use XLA. On TensorFlow False means a plain graph, on JAX it means no
            compilation.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(function, jit_compile=jit_compile, autograph=False)
        compiled._omit_frequent_tracing_warning = True  # batches of several shapes are no mistake
        return lambda values, *arguments: compiled(*arguments)

    def pure_function(values: list, *arguments: Any) -> Any:
        with values_used(variables, values):
            return function(*arguments)

    if not jit_compile:
        return pure_function
    import jax

    return jax.jit(pure_function)


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

    return [jnp.array(variable.value, copy=True) for variable in variables]


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
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            variables = model.network.trainable_variables
            gradients = tape.gradient(scaled_loss, variables)
            # An embedding's are sparse.
            gradients = [part if part is None else tf.convert_to_tensor(part) for part in gradients]
            model.track_gradients(
                gradients, model.optimizer.scale_loss(tf.constant(1.0 / replicas))
            )
            model.optimizer.apply_gradients(zip(gradients, variables))
            model.update_ema()
            return model.training_logs()

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


def test_step(model: Any, *arguments: Any) -> Any:
    """One evaluation step, in the form that the backend's `evaluate` calls."""
    if BACKEND == "tensorflow":
        (data,) = arguments
        return model.evaluation_logs(data)
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
    """Return the sum of a scalar over all replicas, where the model is copied to several devices;
    else the scalar.
    """
    if replica()[1] == 1:
        return value
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def devices_of_a_batch(model: Any) -> int:
    """Return among how many devices each batch is divided: TensorFlow's replicas, or the batch axis
    of a JAX mesh.
    """
    if BACKEND == "tensorflow":
        return int(model.distribute_strategy.num_replicas_in_sync)
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
