"""Layers that training leaves as they are: what Keras's `layer.trainable = False` says."""

from __future__ import annotations

from collections.abc import Sequence

import keras


def trainable_flags(network: keras.Model) -> bytes:
    """Return for each layer of a network, those within layers too, 1 if it is trainable."""
    return bytes(layer.trainable for layer in _layers(network))


def frozen_layers(network: keras.Model) -> list[int]:
    """Return the places of the layers that are not trainable."""
    return [place for place, flag in enumerate(trainable_flags(network)) if not flag]


def freeze_layers(network: keras.Model, places: Sequence[int]) -> None:
    """Make layers not trainable, given by what `frozen_layers` returned of such a network.

    Raises:
        ValueError: it has no such layers.
    """
    layers = _layers(network)
    if unknown := [place for place in places if place not in range(len(layers))]:
        raise ValueError(
            f"the layers {unknown} are said to be frozen, but the network has {len(layers)}: what "
            "says so is damaged or of another network, save the model again"
        )
    for place in places:
        layers[place].trainable = False


def _layers(network: keras.Model) -> list[keras.layers.Layer]:
    return list(network._flatten_layers(include_self=False))
