"""Training that keeps only what goes into a network's blocks, and works out the rest again for the
gradients (Chen et al. 2016, "Training deep nets with sublinear memory cost").
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras

from ddim_keras.support.types import Tensor


class Step(NamedTuple):
    """A part of a functional network, from some of its symbolic tensors to another.

    Attributes:
        inputs, output: the tensors.
        recomputed: whether training forgets what lies between them.
    """

    inputs: Sequence[keras.KerasTensor]
    output: keras.KerasTensor
    recomputed: bool


# Beside the networks and not in them: they are saved, and count their weights, as ever.
_CALLS: weakref.WeakKeyDictionary[keras.Model, Callable] = weakref.WeakKeyDictionary()


def recompute(
    network: keras.Model, first: Sequence[keras.KerasTensor], steps: Sequence[Step]
) -> None:
    """Have `in_training` call a network step by step.

    Args:
        network: a functional model.
        first: tensors that follow from its inputs without any step.
        steps: in their order. What each takes is among `first` or an earlier one's output; the
            last one's is the network's.
    """
    parts = [keras.Model(list(step.inputs), step.output) for step in steps]
    head, last = keras.Model(network.inputs, list(first)), steps[-1].output

    def call(inputs: Sequence[Tensor]) -> Tensor:
        found = dict(zip(map(id, first), head(inputs, training=True)))
        for step, part in zip(steps, parts):
            run = _of_training(part)
            given = [found[id(tensor)] for tensor in step.inputs]
            found[id(step.output)] = keras.remat(run)(*given) if step.recomputed else run(*given)
        return found[id(last)]

    _CALLS[network] = call


def in_training(network: keras.Model, inputs: Sequence[Tensor]) -> Tensor:
    """Return `network(inputs, training=True)`, by steps if `recompute` said so."""
    call = _CALLS.get(network)
    return network(inputs, training=True) if call is None else call(inputs)


def _of_training(part: keras.Model) -> Callable[..., Tensor]:
    return lambda *tensors: part(list(tensors), training=True)
