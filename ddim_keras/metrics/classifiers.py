"""The small classifiers that ship with the package, for its metrics: how they are built, and their
weights (scripts/train_classifier.py).
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np
from keras import layers

from ddim_keras.support.types import Tensor

IMAGE_SIZE = 32
NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of images (batch, 32, 32, channels) in [0, 1].

    Attributes:
        name: of the data set that it was trained on.
        channels: of its images.
        levels: widths of its convolutions of 3 x 3, batch-normalised, level by level; each level
            halves height and width. The last width is the number of features.
    """

    name: str
    channels: int
    levels: tuple[tuple[int, ...], ...]

    @property
    def weights_file(self) -> pathlib.Path:
        return pathlib.Path(__file__).with_name(f"{self.name}_classifier.npz")

    def build(self) -> keras.Model:
        """Return the untrained network, of images -> [features, logits (batch, 10)]."""

        def convolution(x: Tensor, filters: int) -> Any:
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            return layers.Activation("relu")(layers.BatchNormalization()(x))

        images = keras.Input((IMAGE_SIZE, IMAGE_SIZE, self.channels), name="images")
        x = images
        for level, widths in enumerate(self.levels):
            if level:
                x = layers.MaxPooling2D(2)(x)
            for filters in widths:
                x = convolution(x, filters)
        features = layers.GlobalAveragePooling2D(name="features")(x)
        logits = layers.Dense(NUM_CLASSES, dtype="float32", name="logits")(
            layers.Dropout(0.3)(features)
        )
        return keras.Model(images, [features, logits], name=f"{self.name}_classifier")

    def load(self) -> keras.Model:
        """Return the network with the weights that ship."""
        model = self.build()
        with np.load(self.weights_file) as weights:
            model.set_weights([weights[name].astype("float32") for name in weights.files])
        return model


# 0.38 M parameters, and 0.99 M.
FASHION_MNIST = Classifier("fashion_mnist", 1, ((24, 24), (48, 48, 64), (96, 128, 128)))
CIFAR10 = Classifier("cifar10", 3, ((32, 32), (64, 96), (128, 160), (192, 192)))
CLASSIFIERS = {classifier.name: classifier for classifier in (FASHION_MNIST, CIFAR10)}
