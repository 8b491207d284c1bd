"""The steps of `fit` and `evaluate`, in the forms in which the backends' trainers call them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from ddim_keras.support.backend.devices import replica
from ddim_keras.support.backend.processes import process
from ddim_keras.support.backend.which import BACKEND


def train_step(model: Any, *arguments: Any) -> Any:
    """One gradient step, in the form that the backend's `fit` calls: (data) -> logs, or (state,
    data) -> (logs, state).

    Raises:
        ValueError: nothing of the network is trainable, or not what was when it was compiled.
    """
    _check_trainable(model)
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


def _check_trainable(model: Any) -> None:
    variables = model.network.trainable_variables
    if not variables:
        raise ValueError(
            "nothing is left to train: the network, or all of its layers, have trainable=False. "
            "Set model.network.trainable = True, and compile the model again"
        )
    known = model.optimizer._trainable_variables
    if BACKEND == "tensorflow":  # its optimizers take a part of what they know
        fits = {*map(id, variables)} <= {*map(id, known)}
    else:
        variables = model.trainable_variables
        fits = [*map(id, variables)] == [*map(id, known)]
    if not fits:
        raise ValueError(
            f"{len(variables)} weights of the network are trainable now, and {len(known)} were as "
            "the model was compiled: compile it again after changing what is trainable"
        )


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
    if inner.gradient_accumulation_steps:
        vars(inner)["_backend_apply_gradients"] = functools.partial(_accumulated, inner)
    context = tf.distribute.get_replica_context()
    there = [part for part in gradients if part is not None]
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, there))
    return [part if part is None else next(summed) for part in gradients]


def _accumulated(optimizer: Any, gradients: list, variables: list) -> None:
    """What Keras's optimizer does with a batch's gradients where those of several make one step.

    Keras asks on each replica whether this is the last batch of a step, and TensorFlow refuses what
    replicas do together within a branch of one. So here it is asked once, for all replicas.
    """
    import tensorflow as tf

    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        type(optimizer)._backend_apply_gradients(optimizer, gradients, variables)
        return
    number = optimizer.gradient_accumulation_steps
    sums = [optimizer._accumulated_gradients[optimizer._get_variable_index(v)] for v in variables]

    def last(gradients: list) -> None:
        means = [(part + kept) / number for part, kept in zip(gradients, sums)]
        means = optimizer._clip_gradients(means)
        optimizer._apply_weight_decay(variables)
        optimizer._backend_update_step(means, variables, optimizer.learning_rate)
        optimizer._backend_reset_gradient_accumulators()

    def before(gradients: list) -> None:
        optimizer._backend_increment_gradient_accumulators(gradients, sums)

    def of_all(strategy: Any, gradients: list) -> None:
        each = strategy.extended.call_for_each_replica
        keras.ops.cond(
            (optimizer._iterations + 1) % number == 0,  # Keras divides `iterations` by it
            lambda: each(last, args=(gradients,)),
            lambda: each(before, args=(gradients,)),
        )

    tf.distribute.get_replica_context().merge_call(of_all, args=(gradients,))
    if optimizer.use_ema:
        optimizer._update_model_variables_moving_average(optimizer._trainable_variables)


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
