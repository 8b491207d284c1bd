"""Functions compiled for the backend, and their gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from ddim_keras.support.backend.devices import (
    batch_axis,
    devices_of_walks,
    mesh_of_walks,
    strategy_of,
)
from ddim_keras.support.backend.processes import process
from ddim_keras.support.backend.which import BACKEND

_HALVES = ("float16", "bfloat16")


def in_graph() -> bool:
    """Whether a tf.function is being traced, where tensors have no values yet."""
    if BACKEND != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


def has_no_value(array: Any) -> bool:
    """Whether it is a tensor of a function that is being traced, which has no value yet."""
    if BACKEND == "jax":
        import jax

        return isinstance(array, jax.core.Tracer)
    import tensorflow as tf

    return bool(tf.is_symbolic_tensor(array))


def of_each(function: Callable, *batches: Any) -> Any:
    """Return what a function of batches gives for each element as a batch of its own, stacked."""

    def of_one(parts: Any) -> Any:
        return function(*(part[None] for part in parts))

    if BACKEND == "tensorflow":
        import tensorflow as tf

        if tf.executing_eagerly():  # which may print, or look at values
            return tf.stack([of_one(parts) for parts in zip(*batches)])
    return keras.ops.vectorized_map(of_one, batches)


def traced_once(function: Callable) -> Callable:
    """Return a function of tensors, and of constants that can be hashed, which larger graphs of
    TensorFlow call instead of being built of its operations each time.
    """
    if BACKEND != "tensorflow":
        return function
    import tensorflow as tf

    traced = tf.function(function, autograph=False)
    traced._omit_frequent_tracing_warning = True  # batches of several shapes are no mistake
    return traced


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
        strategy = strategy_of(variables)
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


def _divided_among_mesh(arguments: Any, axes: Any) -> Any:
    """Arguments with each part of the batch on the device that works on it."""
    mesh = mesh_of_walks()
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
            names[axis] = batch_axis()
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


class _CastWeights(keras.StatelessScope):
    """A scope where weights that layers read in half precision are there already; all else is read
    and assigned as without it.
    """

    def __init__(self, weights: dict[tuple[int, str], Any]) -> None:
        super().__init__()
        self.weights = weights

    def get_current_value(self, variable: Any) -> Any:
        if variable._value is None:  # made within, as Keras's own generator of seeds may be
            self.__exit__()  # makes its value
            self.__enter__()
        # Its dtype is the one that the layer which reads it computes in.
        return self.weights.get((id(variable), variable.dtype))

    def add_update(self, update: tuple[Any, Any]) -> None:
        variable, value = update
        variable._direct_assign(value)
        for dtype in _HALVES:  # from here on it is another
            self.weights.pop((id(variable), dtype), None)


@contextlib.contextmanager
def weights_cast_once(network: Any) -> Iterator[None]:
    """Within, layers that compute in half precision find their weights cast to it already.

    Else each step of a loop casts them again on TensorFlow: a fifth of the time of a single image.
    XLA, and so JAX, takes that out of a loop by itself. Only weights to train are: layers may
    assign to others, statistics and states of random numbers, in every step.
    """
    if BACKEND != "tensorflow":
        yield
        return
    weights = {
        (id(variable), layer.compute_dtype): keras.ops.cast(variable, layer.compute_dtype)
        for layer in network._flatten_layers()
        if layer.compute_dtype in _HALVES
        for variable in layer._trainable_variables
        if variable.dtype == "float32" and variable._autocast
    }
    if not weights:
        yield
        return
    with _CastWeights(weights):
        yield


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
