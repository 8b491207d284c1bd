"""The architecture of the small Fashion-MNIST classifier that ships with the package
(scripts/train_classifier.py).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from ddim_keras.support.types import Tensor

IMAGE_SIZE = 32
NUM_CLASSES = 10


def fashion_mnist_classifier() -> keras.Model:
    """Build the untrained network: images (batch, 32, 32, 1) in [0, 1] -> [features (batch, 128),
    logits (batch, 10)].

    Eight convolutions, batch-normalised, in three levels; the features are the last level's
    averages. 0.38 M parameters.
    """

    def convolution(x: Tensor, filters: int) -> Any:
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        return layers.Activation("relu")(layers.BatchNormalization()(x))

    images = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1), name="images")
    x = images
    for level, widths in enumerate(((24, 24), (48, 48, 64), (96, 128, 128))):
        if level:
            x = layers.MaxPooling2D(2)(x)
        for filters in widths:
            x = convolution(x, filters)
    features = layers.GlobalAveragePooling2D(name="features")(x)
    logits = layers.Dense(NUM_CLASSES, dtype="float32", name="logits")(
        layers.Dropout(0.3)(features)
    )
    return keras.Model(images, [features, logits], name="fashion_mnist_classifier")
