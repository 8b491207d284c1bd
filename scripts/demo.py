"""Train on the Fashion-MNIST images that ship with the package, generate, and write what came out.

python scripts/demo.py [--minutes 4.5] [--out outputs/demo]
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import pathlib
import time

import keras

import ddim_keras
from ddim_keras import plotting, presets
from ddim_keras.support import backend

PRESET = "fashion_mnist_32"  # its recipe; the weights that ship with it are not used
EPOCHS = 12
MOST_STEPS = 20_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--minutes", type=float, default=4.5, help="time to train for (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("outputs/demo"),
        help="default: %(default)s",
    )
    return parser.parse_args()


def make_model(images, steps: int) -> ddim_keras.DiffusionModel:
    """Return an untrained model, ready for `fit`."""
    keras.utils.set_random_seed(0)
    precision = backend.fastest_precision()
    model = ddim_keras.DiffusionModel.from_preset(
        PRESET, load_weights=False, dtype=precision, seed=0
    )
    model.normalizer.adapt(images)
    model.compile(**presets.training(PRESET).compile_arguments(steps))
    return model


def seconds_per_step(images) -> float:
    """Time a step on this machine, so that the training fills its minutes and no more."""
    model = make_model(images, steps=1000)
    batch = next(iter(images))
    model.train_on_batch(batch)
    start = time.perf_counter()
    for _ in range(20):
        model.train_on_batch(batch)
    return (time.perf_counter() - start) / 20


def main() -> None:
    arguments = parse_arguments()
    ddim_keras.divide_batches_among_cores()
    batch_size = presets.training(PRESET).batch_size
    train, validation = ddim_keras.data.load_dataset(
        "embedded", image_size=32, batch_size=batch_size, fit="pad"
    )
    step_time = seconds_per_step(train)
    steps_per_epoch = max(1, min(MOST_STEPS, int(60 * arguments.minutes / step_time)) // EPOCHS)
    model = make_model(train, EPOCHS * steps_per_epoch)
    print(
        f"Training on 10,000 images of clothes in {model.dtype_policy.name}: {EPOCHS} epochs of "
        f"{steps_per_epoch} steps at "
        f"{1000 * step_time:.0f} ms, about {EPOCHS * steps_per_epoch * step_time / 60:.1f} minutes."
    )
    history = model.fit(
        train.repeat(),
        epochs=EPOCHS,
        steps_per_epoch=steps_per_epoch,
        validation_data=validation,
        verbose=0,
        callbacks=[ddim_keras.callbacks.TrainingProgress()],
    )

    start = time.perf_counter()
    images = model.generate(num_images=64, diffusion_steps=50, seed=1)
    print(f"Generated 64 images in 50 steps in {time.perf_counter() - start:.1f} s.")
    _, trajectory = model.generate(num_images=2, diffusion_steps=50, seed=1, return_trajectory=True)

    out = arguments.out
    plotting.save_images(out / "generated.png", images, columns=8, scale=3)
    walk = plotting.trajectory_images(model, trajectory, columns=10)
    plotting.save_images(out / "noise_to_image.png", walk, scale=3)
    plotting.save_figure(out / "losses.png", plotting.plot_history(history.history))
    model.save(out / "model.keras")
    print(f"Written to {out}:")
    print("  generated.png       64 generated images")
    print(
        "  noise_to_image.png  two noises walking to their images, above what the network predicts "
        "on the way"
    )
    print("  losses.png          training and validation losses")
    print(
        "  model.keras         the model: "
        f"ddim_keras.load_model('{out / 'model.keras'}').generate(16)"
    )


if __name__ == "__main__":
    main()
