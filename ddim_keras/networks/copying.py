"""Networks once more."""

from __future__ import annotations

import keras

from ddim_keras.networks.ddpm_unet import DDPMUNet


def copied(network: keras.Model) -> keras.Model:
    """Return another network of the same layers and weights, never to be trained."""
    if isinstance(network, DDPMUNet):
        copy = network.untrained_copy()
    else:
        copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy
