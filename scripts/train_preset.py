"""Train the model of the preset fashion_mnist_32 on real Fashion-MNIST by its own recipe, and write
its weights and its log.

Needs Fashion-MNIST through TFDS (see place_fashion_mnist.py where there is no network). A killed
run resumes when it is started again with the same arguments. With --further it trains
the weights that ship on: from them, up to half the learning rate and down again, and adds to their
log.

    python scripts/train_preset.py --data-dir TFDS_DATA_DIR [--steps 30000] [--further]
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

import ddim_keras
from ddim_keras import metrics, plotting, presets
from ddim_keras.support import backend

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRESET = "fashion_mnist_32"

EVERY = 500  # steps between validations
EMA_DECAY = 0.999  # a long training can average over more steps than the recipe's ten minutes
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument(
        "--steps", type=int, default=30_000, help=f"of training, a multiple of {EVERY}"
    )
    parser.add_argument("--num-images", type=int, default=10_000, help="generated for each score")
    parser.add_argument(
        "--further", action="store_true", help="train the weights that ship on, instead of new ones"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "outputs" / PRESET, help="log, backup, images"
    )
    arguments = parser.parse_args()

    folder = ROOT / "ddim_keras" / "presets" / "pretrained" / PRESET
    log, backup = arguments.out / "log.csv", arguments.out / "backup"
    arguments.out.mkdir(parents=True, exist_ok=True)
    epochs_before = 0
    if arguments.further:
        with open(folder / "training_log.csv", newline="") as file:
            epochs_before = len(list(csv.DictReader(file)))
        if not backup.exists():
            shutil.copy(folder / "training_log.csv", log)

    seed = SEED + epochs_before  # a further leg sees other noises and another order
    keras.utils.set_random_seed(seed)
    recipe = presets.training(PRESET)
    train, test = ddim_keras.data.load_dataset(
        "fashion_mnist",
        32,
        recipe.batch_size,
        fit="pad",
        flip=recipe.flip,
        seed=seed,
        data_dir=arguments.data_dir,
    )
    model = ddim_keras.DiffusionModel.from_preset(
        PRESET,
        load_weights=arguments.further,
        dtype=backend.fastest_precision(),
        seed=seed,
        ema_decay=EMA_DECAY,
    )
    model.normalizer.adapt(train)
    rate = recipe.learning_rate / 2 if arguments.further else recipe.learning_rate
    compiled = dataclasses.replace(recipe, learning_rate=rate).compile_arguments(arguments.steps)
    model.compile(**compiled, metrics=[metrics.KID("fashion_mnist", subsets=20, subset_size=500)])
    model.fit(
        train.repeat(),
        initial_epoch=epochs_before,
        epochs=epochs_before + arguments.steps // EVERY,
        steps_per_epoch=EVERY,
        validation_data=test.take(1000 // recipe.batch_size),
        verbose=2,
        callbacks=[
            keras.callbacks.CSVLogger(str(log), append=arguments.further or backup.exists()),
            keras.callbacks.BackupAndRestore(str(backup)),
        ],
    )
    shipped = ddim_keras.DiffusionModel.from_preset(
        PRESET, load_weights=False
    )  # with the recipe's own EMA decay
    shipped.normalizer.set_weights(model.normalizer.get_weights())
    shipped.ema_network.set_weights(model.ema_network.get_weights())
    shipped.save_to_preset(folder, training=recipe)
    shutil.copy(log, folder / "training_log.csv")
    plotting.save_images(
        arguments.out / "generated.png", model.generate(64, seed=1, verbose=0), columns=16, scale=2
    )
    for number in (5, 20, 50):
        scores = model.score(
            test,
            arguments.num_images,
            network_evaluations=number,
            seed=1,
            extractor="fashion_mnist",
        )
        print(
            f"S = {number}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
