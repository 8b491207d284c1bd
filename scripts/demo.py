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
from ddim_keras import backend, plotting

BATCH_SIZE = 64
EPOCHS = 12
PEAK_LEARNING_RATE = 2e-3
MOST_STEPS = 6000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=4.5, help="time to train for (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/demo"), help="default: %(default)s")
    return parser.parse_args()


def make_model(precision: str) -> ddim_keras.DiffusionModel:
    return ddim_keras.DiffusionModel(
        image_size=28,
        widths=[16, 48, 96],
        block_depth=1,
        channels=1,
        parameterization="velocity",
        embedding_dims=16,
        ema_decay=0.995,
        seed=0,
        dtype=precision,
    )


def compile_model(model: ddim_keras.DiffusionModel, steps: int) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(
        PEAK_LEARNING_RATE / 20, steps, alpha=0.02, warmup_target=PEAK_LEARNING_RATE, warmup_steps=max(1, steps // 20)
    )
    model.compile(optimizer=keras.optimizers.AdamW(schedule, weight_decay=1e-4), loss="mean_absolute_error")


def seconds_per_step(model: ddim_keras.DiffusionModel, images) -> float:
    """Time a step on this machine, so that the training fills its minutes and no more."""
    compile_model(model, steps=1000)
    model.train_on_batch(images)
    start = time.perf_counter()
    for _ in range(10):
        model.train_on_batch(images)
    return (time.perf_counter() - start) / 10


def main() -> None:
    arguments = parse_arguments()
    keras.utils.set_random_seed(0)
    train, validation = ddim_keras.data.load_dataset("embedded", image_size=28, batch_size=BATCH_SIZE)
    precision = backend.fastest_precision()
    trial = make_model(precision)
    trial.normalizer.adapt(train)
    step_time = seconds_per_step(trial, next(iter(train)))
    steps_per_epoch = max(1, min(MOST_STEPS, int(60 * arguments.minutes / step_time)) // EPOCHS)
    print(
        f"Training on {10_000} images of clothes in {precision}: {EPOCHS} epochs of {steps_per_epoch} steps at "
        f"{1000 * step_time:.0f} ms, about {EPOCHS * steps_per_epoch * step_time / 60:.1f} minutes."
    )

    keras.utils.set_random_seed(0)
    model = make_model(precision)
    model.normalizer.adapt(train)
    compile_model(model, EPOCHS * steps_per_epoch)
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
    print("  noise_to_image.png  two noises walking to their images, above what the network predicts on the way")
    print("  losses.png          training and validation losses")
    print(f"  model.keras         the model: ddim_keras.load_model('{out / 'model.keras'}').generate(16)")


if __name__ == "__main__":
    main()
