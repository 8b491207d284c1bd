"""Train a classifier whose features the package's offline metrics use, of Fashion-MNIST or of
CIFAR-10, and report its test accuracy.

Needs the data set through TFDS (see place_fashion_mnist.py where there is no network). A quarter
of an hour on two cores for Fashion-MNIST, three quarters for CIFAR-10.

    python scripts/train_classifier.py --data cifar10 --data-dir TFDS_DATA_DIR
"""

from __future__ import annotations

import argparse
import os
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from ddim_keras.data import load_dataset
from ddim_keras.metrics.classifiers import (
    CIFAR10,
    CLASSIFIERS,
    FASHION_MNIST,
    IMAGE_SIZE,
    PATCHES,
)
from ddim_keras.support import backend, files

MARGIN = 2  # around the clothes' originals of 28 x 28 pixels
BATCH_SIZE = {FASHION_MNIST.name: 128, CIFAR10.name: 512}


class Stage(NamedTuple):
    """A part of a training, with a learning rate that rises and falls as a cosine.

    Attributes:
        epochs: how often the training images are gone through.
        learning_rate: the highest.
        shift: pixels, at most, by which a photo is shifted.
        hole: side of the square that is cut out of it, or 0.
    """

    epochs: int
    learning_rate: float
    shift: int = 0
    hole: int = 0


STAGES = {
    FASHION_MNIST.name: (Stage(12, 4e-3),),
    CIFAR10.name: (Stage(16, 0.5, shift=2), Stage(14, 0.3, shift=4, hole=10)),
}
LABEL_SMOOTHING = {FASHION_MNIST.name: 0.0, CIFAR10.name: 0.2}


def padded(images):
    return tf.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))


def enlarged(images):
    return tf.image.resize(images, (IMAGE_SIZE, IMAGE_SIZE), antialias=True)


def as_they_are(images):
    return images


def mirrored(images):
    mirror = tf.random.uniform((tf.shape(images)[0], 1, 1, 1)) < 0.5
    return tf.where(mirror, images[:, :, ::-1], images)


def augmented_clothes(images, stage):
    """Half of the batches padded to 32 x 32, half enlarged: both are ways in which people use these
    images. Mirrored too.
    """
    images = tf.cond(tf.random.uniform(()) < 0.5, lambda: padded(images), lambda: enlarged(images))
    shift = tf.random.uniform((2,), -2, 3, dtype=tf.int32)
    return tf.roll(mirrored(images), shift, axis=(1, 2))


def augmented_photos(images, stage):
    """Each mirrored or not, shifted over a mirrored edge, and perhaps with a square cut out
    (DeVries & Taylor 2017).
    """
    number = tf.shape(images)[0]
    images = mirrored(images)
    edges = ((0, 0), (stage.shift, stage.shift), (stage.shift, stage.shift), (0, 0))
    images = tf.pad(images, edges, "reflect")
    pixels = tf.range(IMAGE_SIZE)
    for axis in (1, 2):
        first = tf.random.uniform((number, 1), 0, 2 * stage.shift + 1, dtype=tf.int32)
        images = tf.gather(images, first + pixels, axis=axis, batch_dims=1)
    inside = [
        tf.abs(pixels - tf.random.uniform((number, 1), 0, IMAGE_SIZE, dtype=tf.int32))
        < stage.hole // 2
        for _ in range(2)
    ]
    hole = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return tf.where(hole, tf.reduce_mean(images, axis=(1, 2), keepdims=True), images)


def whiten(layer, images):
    """Set the directions of `layer`'s patches by those of the images: the eigenvectors of their
    covariance, scaled to variance 1, and their opposites.
    """
    side, _, channels, _ = layer.kernel.shape
    patches = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, side * side * channels)
    variances, directions = np.linalg.eigh(np.cov(patches, rowvar=False))
    directions = directions / np.sqrt(variances + 5e-4)
    directions = np.concatenate([directions, -directions], axis=1)
    kernel = directions.reshape(layer.kernel.shape)
    layer.set_weights([kernel, -patches.mean(axis=0) @ directions])


def optimizer_of(classifier, schedule):
    if classifier is FASHION_MNIST:
        return keras.optimizers.AdamW(schedule, weight_decay=0.05)
    optimizer = keras.optimizers.SGD(schedule, 0.9, nesterov=True, weight_decay=1e-3)
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", choices=sorted(CLASSIFIERS), default=FASHION_MNIST.name)
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    arguments = parser.parse_args()
    classifier = CLASSIFIERS[arguments.data]
    clothes = classifier is FASHION_MNIST
    augment = augmented_clothes if clothes else augmented_photos

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(backend.fastest_precision())
    train, test = load_dataset(
        classifier.name,
        28 if clothes else IMAGE_SIZE,
        BATCH_SIZE[classifier.name],
        labels=True,
        data_dir=arguments.data_dir,
    )
    model = classifier.build()
    if not clothes:
        whiten(model.get_layer(PATCHES), np.concatenate([images for images, _ in train.take(10)]))

    def smoothed_loss(labels, logits):
        targets = tf.one_hot(tf.cast(tf.reshape(labels, (-1,)), "int32"), logits.shape[-1])
        return keras.losses.categorical_crossentropy(
            targets, logits, from_logits=True, label_smoothing=LABEL_SMOOTHING[classifier.name]
        )

    def classifies(network):
        """The network's logits alone, ready to be trained or evaluated."""
        return keras.Model(network.input, network.outputs[1])

    for stage in STAGES[classifier.name]:
        steps = stage.epochs * len(train)
        schedule = keras.optimizers.schedules.CosineDecay(
            stage.learning_rate / 20,
            steps,
            alpha=0.005,
            warmup_target=stage.learning_rate,
            warmup_steps=steps // 10,
        )
        trained = classifies(model)
        # On a CPU plain graphs take half the time.
        trained.compile(
            optimizer_of(classifier, schedule), smoothed_loss, ["accuracy"], jit_compile=False
        )
        augmented = train.map(
            lambda images, labels, stage=stage: (augment(images, stage), labels), tf.data.AUTOTUNE
        )
        trained.fit(augmented.prefetch(2), epochs=stage.epochs, verbose=2)

    # What ships is rounded to half precision; it is what is measured.
    weights = [weight.astype("float16") for weight in model.get_weights()]
    model.set_weights([weight.astype("float32") for weight in weights])
    used = classifies(classifier.as_used(model))
    used.compile(loss=smoothed_loss, metrics=["accuracy"], jit_compile=False)
    for how in (padded, enlarged) if clothes else (as_they_are,):
        accuracy = used.evaluate(
            test.map(lambda images, labels, how=how: (how(images), labels)), verbose=0
        )[1]
        print(f"Test accuracy, images {how.__name__}: {accuracy:.4f}")
    with files.written_beside(classifier.weights_file) as temporary:
        np.savez_compressed(temporary, *weights)
    print(
        f"{model.count_params()} parameters, {classifier.weights_file.stat().st_size / 1e6:.2f} MB "
        f"written to {classifier.weights_file}"
    )


if __name__ == "__main__":
    main()
