"""The small classifiers that ship with the package, for its metrics: how they are built, and their
weights (scripts/train_classifier.py).
"""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np
from keras import layers

from ddim_keras.support.types import Tensor

IMAGE_SIZE = 32
NUM_CLASSES = 10
# The layer that brings patches of 2 x 2 pixels to uncorrelated directions of variance 1.
PATCHES = "patches"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of images (batch, 32, 32, channels) in [0, 1].

    Attributes:
        name: of the data set that it was trained on.
        channels: of its images.
        levels: widths of its convolutions of 3 x 3, batch-normalised, level by level; each level
            halves height and width. The last width is the number of features.
        for_photos: whether it begins with `PATCHES`, which is set by the data and not trained, and
            halves within each level instead of before it (Jordan 2024); and whether what ships
            looks at an image and its mirror image, and takes the mean.
    """

    name: str
    channels: int
    levels: tuple[tuple[int, ...], ...]
    for_photos: bool = False

    @property
    def weights_file(self) -> pathlib.Path:
        return pathlib.Path(__file__).with_name(f"{self.name}_classifier.npz")

    def build(self) -> keras.Model:
        """Return the untrained network, of images -> [features, logits (batch, 10)]."""

        def convolution(x: Tensor, filters: int, halve: bool) -> Tensor:
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.MaxPooling2D(2)(x) if halve else x
            x = layers.BatchNormalization(momentum=0.9 if self.for_photos else 0.99)(x)
            return layers.Activation("gelu" if self.for_photos else "relu")(x)

        images = keras.Input((IMAGE_SIZE, IMAGE_SIZE, self.channels), name="images")
        x = images
        if self.for_photos:
            patches = 2 * 2 * 2 * self.channels  # each direction and its opposite
            x = layers.Conv2D(patches, 2, trainable=False, dtype="float32", name=PATCHES)(x)
            x = layers.Activation("gelu")(x)
        for level, widths in enumerate(self.levels):
            if level and not self.for_photos:
                x = layers.MaxPooling2D(2)(x)
            for index, filters in enumerate(widths):
                x = convolution(x, filters, halve=self.for_photos and not index)
        features = layers.GlobalAveragePooling2D(name="features")(x)
        x = features if self.for_photos else layers.Dropout(0.3)(features)
        logits = layers.Dense(NUM_CLASSES, dtype="float32", name="logits")(x)
        return keras.Model(images, [features, logits], name=f"{self.name}_classifier")

    def load(self) -> keras.Model:
        """Return the network with the weights that ship."""
        model = self.build()
        with np.load(self.weights_file) as weights:
            model.set_weights([weights[name].astype("float32") for name in weights.files])
        return self.as_used(model)

    def as_used(self, model: keras.Model) -> keras.Model:
        """Return a network that was built, trained or not, as `load` does."""
        if not self.for_photos:
            return model
        images = keras.Input((IMAGE_SIZE, IMAGE_SIZE, self.channels), name="images")
        features = layers.Average(name="features")([model(images)[0], model(images[:, :, ::-1])[0]])
        logits = model.get_layer("logits")(features)
        return keras.Model(images, [features, logits], name=f"{self.name}_classifier")


# 0.38 M parameters, and 0.99 M.
FASHION_MNIST = Classifier("fashion_mnist", 1, ((24, 24), (48, 48, 64), (96, 128, 128)))
CIFAR10 = Classifier("cifar10", 3, ((64, 64), (176, 176), (176, 176)), for_photos=True)
CLASSIFIERS = {classifier.name: classifier for classifier in (FASHION_MNIST, CIFAR10)}
