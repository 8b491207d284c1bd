"""Networks once more, and their weights in others."""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras

from ddim_keras.networks.ddpm_unet import DDPMUNet


def copied(network: keras.Model) -> keras.Model:
    """Return another network of the same layers and weights, never to be trained."""
    if isinstance(network, DDPMUNet):
        copy = network.untrained_copy()
    else:
        copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    # Each by itself: what is within a layer that is frozen already stays as it was on TensorFlow,
    # and that of attention is made trainable.
    for layer in copy._flatten_layers():
        layer.trainable = False
    return copy


def take_weights(
    network: keras.Model, source: keras.Model, classes: Sequence[int | None] = ()
) -> None:
    """Give a network the weights of another one of the same levels.

    Args:
        network: whose weights are set. It may take labels where the other does not: the vectors of
            its classes then stay as they are.
        source: whose weights are taken.
        classes: of each class of `network`, which one of `source` it is; None for one that is new,
            whose vector stays as it is. The null class's is taken.

    Raises:
        ValueError: the networks are made of other layers.
    """
    own, others = _in_order(network), _in_order(source)
    shapes, theirs = ([_shapes(layer) for layer in layers] for layers in (own, others))
    if shapes != theirs:
        raise ValueError("the networks have other levels, or are told other things")
    for layer, other in zip(own, others):
        layer.set_weights(other.get_weights())
    vectors, known = _class_vectors(network), _class_vectors(source)
    if vectors is not None and known is not None:
        (values,), (found,) = vectors.get_weights(), known.get_weights()
        if values.shape[1:] != found.shape[1:]:
            raise ValueError("the networks' classes have vectors of other lengths")
        values[-1] = found[-1]
        for number, before in enumerate(classes):
            if before is not None:
                values[number] = found[before]
        vectors.set_weights([values])


def _in_order(network: keras.Model) -> list[keras.Layer]:
    """The layers with weights, but for the classes' vectors, in the order in which they were made:
    that in which Keras names them.
    """
    layers = [
        layer
        for layer in network.layers
        if layer.weights and not isinstance(layer, keras.layers.Embedding)
    ]
    return sorted(layers, key=lambda layer: _natural(layer.name))


def _natural(name: str) -> list[tuple[str, int]]:
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D*)(\d*)", name)]


def _shapes(layer: keras.Layer) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in layer.weights]


def _class_vectors(network: keras.Model) -> keras.layers.Embedding | None:
    found = [layer for layer in network.layers if isinstance(layer, keras.layers.Embedding)]
    return found[0] if found else None
