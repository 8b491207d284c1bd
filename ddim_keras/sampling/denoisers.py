"""Denoisers, and what is put around them.

A denoiser says which noises and which images it sees in noisy images. Everything that steers a walk
takes a denoiser and makes another of it: clipping changes what it returns, inpainting what it is
shown.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Mapping, Sequence

import keras
import numpy as np
from keras import ops

from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.diffusion.parameterizations import Parameterization
from ddim_keras.networks.recomputing import in_training
from ddim_keras.networks.unet import CONDITION, LABELS
from ddim_keras.samplers import Conditions, Denoiser
from ddim_keras.support.cores import by_parts
from ddim_keras.support.types import Images, Tensor, Variable


class Wrapper(abc.ABC):
    """Base class: turns a denoiser into another.

    Attributes:
        key: wrappers of equal keys make the same of the same arrays, so that a loop compiled for
            one serves the other.
        arrays: what changes from walk to walk without compiling anew.
        axes: of each of them the axis of the batch; -1 if all images share it.
        variables: what it reads besides, such as another network's weights.
        values: theirs, from `backend.values_of`.
    """

    key: Hashable
    arrays: Sequence[np.ndarray] = ()
    variables: Sequence[Variable] = ()
    values: Sequence[Tensor] = ()

    @property
    def axes(self) -> Sequence[int]:
        return (0,) * len(self.arrays)

    @abc.abstractmethod
    def wrap(
        self, denoise: Denoiser, arrays: Sequence[Tensor], draw_noises: Callable[[Tensor], Images]
    ) -> Denoiser:
        """Return a denoiser around another.

        Args:
            denoise: (noisy_images, noise_rates, signal_rates, conditions) -> (pred_noises,
                pred_images).
            arrays: this wrapper's, as tensors.
            draw_noises: number -> standard normal noises shaped as the images, fixed by the walk's
                seed and the number.
        """


def network_denoiser(
    network: keras.Model,
    parameterization: Parameterization,
    spec: ConditionSpec,
    training: bool = False,
) -> Denoiser:
    """Return the denoiser that a network is; `spec` says which conditions it takes."""

    def denoise(noisy_images, noise_rates, signal_rates, conditions):
        prediction = predict(network, noisy_images, conditions, spec, training)
        return parameterization.components(prediction, noisy_images, signal_rates, noise_rates)

    return denoise


def telling(denoise: Denoiser, told: Mapping[str, Tensor]) -> Denoiser:
    """Return a denoiser that is told labels and condition of a batch, as in `Conditions`."""

    def told_denoise(noisy_images, noise_rates, signal_rates, conditions):
        return denoise(noisy_images, noise_rates, signal_rates, conditions._replace(**told))

    return told_denoise


def predict(
    network: keras.Model,
    noisy_images: Images,
    conditions: Conditions,
    spec: ConditionSpec,
    training: bool,
) -> Images:
    """Return what a network says of noisy images, in float32.

    Args:
        network: its inputs called "labels" and "condition" get those; of the other two the first
            gets the noisy images and the second the noise levels.
        noisy_images: (batch, height, width, channels).
        conditions: its noise level broadcasts against (batch, 1, 1, 1).
        spec: which conditions the network takes. Those that are not given say nothing.
        training: as for `keras.Model.call`.
    """
    inputs = _inputs_of(network, noisy_images, conditions, spec)
    call = in_training if training else _in_inference
    if _needs_whole_batches(network, training):
        return ops.cast(call(network, inputs), "float32")
    return ops.cast(by_parts(lambda part: call(network, part), inputs), "float32")


def predict_all(
    network: keras.Model, noisy_images: Images, conditions: Conditions, spec: ConditionSpec
) -> list[Tensor]:
    """As `predict`, of a network of several outputs, in inference."""
    outputs = network(_inputs_of(network, noisy_images, conditions, spec), training=False)
    # Of a single output, Keras gives no list.
    return [ops.cast(output, "float32") for output in keras.tree.flatten(outputs)]


def _inputs_of(
    network: keras.Model, noisy_images: Images, conditions: Conditions, spec: ConditionSpec
) -> list[Tensor]:
    """What a network is given, in the order of its inputs."""
    number = ops.shape(noisy_images)[0]
    unnamed = [noisy_images, ops.broadcast_to(conditions.noise_level, (number, 1, 1, 1))]
    named = {}
    if spec.takes_labels:
        labels = conditions.labels
        named[LABELS] = spec.null_labels(number) if labels is None else labels
    if spec.takes_condition:
        condition = conditions.condition
        named[CONDITION] = spec.null_condition(number) if condition is None else condition
    return [
        _shaped(named[tensor.name], tensor) if tensor.name in named else unnamed.pop(0)
        for tensor in network.inputs
    ]


def _in_inference(network: keras.Model, inputs: Sequence[Tensor]) -> Tensor:
    return network(inputs, training=False)


def _needs_whole_batches(network: keras.Model, training: bool) -> bool:
    """Whether the batch's size is fixed, or training takes statistics of it or draws for it."""
    fixed = any(tensor.shape[0] is not None for tensor in network.inputs)
    return fixed or (training and bool(network.non_trainable_variables))


def _shaped(values: Tensor, wanted: keras.KerasTensor) -> Tensor:
    """Labels as the network's input has them: (batch,), or (batch, 1)."""
    return ops.reshape(values, (-1, 1)) if len(wanted.shape) == len(values.shape) + 1 else values
