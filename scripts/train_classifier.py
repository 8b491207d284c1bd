"""Train the Fashion-MNIST classifier whose features the package's offline metrics use, and report
its test accuracy.

Needs Fashion-MNIST through TFDS (see place_fashion_mnist.py where there is no network). A quarter
of an hour on two cores.

    python scripts/train_classifier.py --data-dir TFDS_DATA_DIR [--epochs 12]
"""

from __future__ import annotations

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from ddim_keras.data import load_dataset
from ddim_keras.metrics.fashion_mnist_classifier import IMAGE_SIZE, fashion_mnist_classifier
from ddim_keras.support import backend, files

TARGET = (
    pathlib.Path(__file__).resolve().parent.parent
    / "ddim_keras"
    / "metrics"
    / "fashion_mnist_classifier.npz"
)
BATCH_SIZE = 128
PEAK_LEARNING_RATE = 4e-3
MARGIN = 2  # around the originals of 28 x 28 pixels


def padded(images):
    return tf.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))


def enlarged(images):
    return tf.image.resize(images, (IMAGE_SIZE, IMAGE_SIZE), antialias=True)


def augmented(images, labels):
    """Half of the batches padded to 32 x 32, half enlarged: both are ways in which people use these
    images. Mirrored too.
    """
    images = tf.cond(tf.random.uniform(()) < 0.5, lambda: padded(images), lambda: enlarged(images))
    mirror = tf.random.uniform((tf.shape(images)[0], 1, 1, 1)) < 0.5
    images = tf.where(mirror, images[:, :, ::-1], images)
    shift = tf.random.uniform((2,), -2, 3, dtype=tf.int32)
    return tf.roll(images, shift, axis=(1, 2)), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument("--epochs", type=int, default=12, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(backend.fastest_precision())
    train, test = load_dataset(
        "fashion_mnist", 28, BATCH_SIZE, labels=True, data_dir=arguments.data_dir
    )
    steps = arguments.epochs * len(train)
    model = fashion_mnist_classifier()
    schedule = keras.optimizers.schedules.CosineDecay(
        PEAK_LEARNING_RATE / 20,
        steps,
        alpha=0.005,
        warmup_target=PEAK_LEARNING_RATE,
        warmup_steps=steps // 10,
    )
    trained = keras.Model(model.input, model.outputs[1])
    trained.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    trained.fit(train.map(augmented), epochs=arguments.epochs, verbose=1)

    # What ships is rounded to half precision; it is what is measured.
    weights = [weight.astype("float16") for weight in model.get_weights()]
    model.set_weights([weight.astype("float32") for weight in weights])
    for how in (padded, enlarged):
        accuracy = trained.evaluate(
            test.map(lambda images, labels, how=how: (how(images), labels)), verbose=0
        )[1]
        print(f"Test accuracy, images {how.__name__}: {accuracy:.4f}")
    with files.written_beside(TARGET) as temporary:
        np.savez_compressed(temporary, *weights)
    print(
        f"{model.count_params()} parameters, {TARGET.stat().st_size / 1e6:.2f} MB written to "
        f"{TARGET}"
    )


if __name__ == "__main__":
    main()
