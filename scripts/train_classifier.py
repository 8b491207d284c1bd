"""Train a classifier whose features the package's offline metrics use, of Fashion-MNIST or of
CIFAR-10, and report its test accuracy.

Needs the data set through TFDS (see place_fashion_mnist.py where there is no network). A quarter
of an hour on two cores for Fashion-MNIST, half an hour for CIFAR-10.

    python scripts/train_classifier.py --data cifar10 --data-dir TFDS_DATA_DIR [--epochs 18]
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from ddim_keras.data import load_dataset
from ddim_keras.metrics.classifiers import CIFAR10, CLASSIFIERS, FASHION_MNIST, IMAGE_SIZE
from ddim_keras.support import backend, files

BATCH_SIZE = 128
PEAK_LEARNING_RATE = 4e-3
MARGIN = 2  # around the clothes' originals of 28 x 28 pixels
SHIFT = 3  # pixels, at most, by which a photo is shifted
HOLE = 8  # side of the square that is cut out of it
EPOCHS = {FASHION_MNIST.name: 12, CIFAR10.name: 18}
LABEL_SMOOTHING = {FASHION_MNIST.name: 0.0, CIFAR10.name: 0.1}


def padded(images):
    return tf.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))


def enlarged(images):
    return tf.image.resize(images, (IMAGE_SIZE, IMAGE_SIZE), antialias=True)


def as_they_are(images):
    return images


def mirrored(images):
    mirror = tf.random.uniform((tf.shape(images)[0], 1, 1, 1)) < 0.5
    return tf.where(mirror, images[:, :, ::-1], images)


def augmented_clothes(images):
    """Half of the batches padded to 32 x 32, half enlarged: both are ways in which people use these
    images. Mirrored too.
    """
    images = tf.cond(tf.random.uniform(()) < 0.5, lambda: padded(images), lambda: enlarged(images))
    shift = tf.random.uniform((2,), -2, 3, dtype=tf.int32)
    return tf.roll(mirrored(images), shift, axis=(1, 2))


def augmented_photos(images):
    """Each mirrored or not, shifted over a mirrored edge, and with a square cut out (DeVries &
    Taylor 2017)."""
    number = tf.shape(images)[0]
    images = mirrored(images)
    edges = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
    images = tf.pad(images, edges, "reflect")
    pixels = tf.range(IMAGE_SIZE)
    for axis in (1, 2):
        first = tf.random.uniform((number, 1), 0, 2 * SHIFT + 1, dtype=tf.int32)
        images = tf.gather(images, first + pixels, axis=axis, batch_dims=1)
    inside = [
        tf.abs(pixels - tf.random.uniform((number, 1), 0, IMAGE_SIZE, dtype=tf.int32)) < HOLE // 2
        for _ in range(2)
    ]
    hole = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return tf.where(hole, tf.reduce_mean(images, axis=(1, 2), keepdims=True), images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", choices=sorted(CLASSIFIERS), default=FASHION_MNIST.name)
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    arguments = parser.parse_args()
    classifier = CLASSIFIERS[arguments.data]
    epochs = arguments.epochs or EPOCHS[classifier.name]
    clothes = classifier is FASHION_MNIST
    augment = augmented_clothes if clothes else augmented_photos

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(backend.fastest_precision())
    train, test = load_dataset(
        classifier.name,
        28 if clothes else IMAGE_SIZE,
        BATCH_SIZE,
        labels=True,
        data_dir=arguments.data_dir,
    )
    steps = epochs * len(train)
    model = classifier.build()
    schedule = keras.optimizers.schedules.CosineDecay(
        PEAK_LEARNING_RATE / 20,
        steps,
        alpha=0.005,
        warmup_target=PEAK_LEARNING_RATE,
        warmup_steps=steps // 10,
    )

    def smoothed_loss(labels, logits):
        targets = tf.one_hot(tf.cast(tf.reshape(labels, (-1,)), "int32"), logits.shape[-1])
        return keras.losses.categorical_crossentropy(
            targets, logits, from_logits=True, label_smoothing=LABEL_SMOOTHING[classifier.name]
        )

    trained = keras.Model(model.input, model.outputs[1])
    trained.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.05),
        loss=smoothed_loss,
        metrics=["accuracy"],
        jit_compile=False,  # on a CPU plain graphs take half the time
    )
    train = train.map(lambda images, labels: (augment(images), labels), tf.data.AUTOTUNE)
    trained.fit(train.prefetch(2), epochs=epochs, verbose=2)

    # What ships is rounded to half precision; it is what is measured.
    weights = [weight.astype("float16") for weight in model.get_weights()]
    model.set_weights([weight.astype("float32") for weight in weights])
    for how in (padded, enlarged) if clothes else (as_they_are,):
        accuracy = trained.evaluate(
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
