"""Teach the model that ships to draw in two steps, and write the preset fashion_mnist_32_few_steps.

    python scripts/distill_preset.py [--steps 750] [--further] [--out FOLDER]

With --further it teaches the weights that ship on, instead of starting from the teacher's.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import ddim_keras
from ddim_keras import presets
from ddim_keras.distilling import student
from ddim_keras.support import backend

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRESET, TEACHER = "fashion_mnist_32_few_steps", "fashion_mnist_32"
EVALUATIONS = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=750, help="of training, of 32 images each")
    parser.add_argument("--learning-rate", type=float, default=presets.DISTILLING.learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--further", action="store_true", help="from the weights that ship")
    folder = ROOT / "ddim_keras" / "presets" / "pretrained" / PRESET
    parser.add_argument("--out", type=pathlib.Path, default=folder, help="the preset's folder")
    arguments = parser.parse_args()
    ddim_keras.divide_batches_among_cores()
    teacher = ddim_keras.DiffusionModel.from_preset(TEACHER)
    few = student(teacher, EVALUATIONS, seed=arguments.seed, dtype=backend.fastest_precision())
    if arguments.further:
        before = ddim_keras.DiffusionModel.from_preset(PRESET).ema_network.get_weights()
        for network in (few.network, few.ema_network):
            network.set_weights(before)
    recipe = dataclasses.replace(presets.DISTILLING, learning_rate=arguments.learning_rate)
    train, _ = ddim_keras.data.load_dataset("embedded", 32, recipe.batch_size, fit="pad")
    few.compile(**recipe.compile_arguments(arguments.steps))
    few.fit(train.repeat(), epochs=1, steps_per_epoch=arguments.steps, verbose=2)
    few.save_to_preset(arguments.out, training=recipe)
    print(f"Written to {arguments.out}")


if __name__ == "__main__":
    main()
