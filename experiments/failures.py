"""Make the pictures of docs/troubleshooting.md: what goes wrong, each brought about by its cause.

    python experiments/failures.py

Uses the preset fashion_mnist_32 and, for the training that diverges, the embedded images; some
three minutes on two cores.
"""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from matplotlib.figure import Figure

import ddim_keras
from ddim_keras import plotting, presets
from ddim_keras.schedules import AngleSchedule
from ddim_keras.support import backend

IMAGES = pathlib.Path(__file__).resolve().parent.parent / "docs" / "images"
PRESET = "fashion_mnist_32"
COLUMNS = 12


def draw(name: str, rows: dict[str, np.ndarray]) -> None:
    plotting.save_figure(
        IMAGES / f"failure_{name}.png",
        plotting.plot_rows(np.stack(list(rows.values())), list(rows)),
    )


def noise_only() -> None:
    """What an average that started from other random weights holds after so many steps, if training
    ended at once.
    """
    model = ddim_keras.DiffusionModel.from_preset(PRESET)
    trained = model.ema_network.get_weights()
    keras.utils.set_random_seed(1)
    others = ddim_keras.DiffusionModel.from_preset(PRESET, load_weights=False).network.get_weights()
    rows = {}
    for steps in (700, 1500, 3000, 6000):
        kept = 0.999**steps
        model.ema_network.set_weights(
            [kept * other + (1 - kept) * own for other, own in zip(others, trained)]
        )
        rows[f"{steps} steps"] = model.generate(COLUMNS, 20, seed=3, verbose=0)
    model.ema_network.set_weights(trained)
    rows["from the network's own"] = model.generate(COLUMNS, 20, seed=3, verbose=0)
    draw("noise_only", rows)


def with_contrast(model: ddim_keras.DiffusionModel, factor: float, **options) -> np.ndarray:
    """What the model draws once its normalizer was adapted to images of other contrast."""
    variance = np.array(model.normalizer.variance)
    model.normalizer.variance.assign(variance * factor**2)
    images = model.generate(COLUMNS, 20, seed=3, verbose=0, **options)
    model.normalizer.variance.assign(variance)
    return images


def oversaturated(model: ddim_keras.DiffusionModel) -> None:
    """A normalizer of other images, and an initial noise that is too strong."""
    noise = np.random.default_rng(3).normal(size=(COLUMNS, *model.image_shape)).astype("float32")
    draw(
        "oversaturated",
        {
            "other normalizer": with_contrast(model, 2.0, initial_noise=noise),
            "noise of deviation 1.3": model.generate(
                COLUMNS, 20, initial_noise=1.3 * noise, verbose=0
            ),
            "as it should be": model.generate(COLUMNS, 20, initial_noise=noise, verbose=0),
        },
    )


def washed_out(model: ddim_keras.DiffusionModel) -> None:
    """A normalizer of other images, and too few steps for an extrapolation of high order."""
    high = ddim_keras.samplers.AdamsBashforth(order=4)
    draw(
        "washed_out",
        {
            "other normalizer": with_contrast(model, 0.5),
            "4th order, 5 evaluations": model.generate(
                COLUMNS, network_evaluations=5, sampler=high, seed=3, verbose=0
            ),
            "the default, 5": model.generate(COLUMNS, network_evaluations=5, seed=3, verbose=0),
        },
    )


def broken(model: ddim_keras.DiffusionModel) -> None:
    """A walk that begins at a noise level with image left in it, but from noise alone."""
    rows = {}
    for signal in (0.5, 0.3, 0.02):
        schedule = AngleSchedule(min_signal_rate=signal)
        rows[f"min_signal_rate {signal}"] = model.generate(
            COLUMNS, 20, schedule=schedule, seed=3, verbose=0
        )
    draw("broken", rows)


def diverging() -> None:
    """AdamW at 4e-3 with clipping, and at two and eight times as much without."""
    recipe = presets.training(PRESET)
    train, _ = ddim_keras.data.load_dataset("embedded", 32, recipe.batch_size, fit="pad")
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for rate, clip in ((4e-3, 1.0), (8e-3, None), (3.2e-2, None)):
        keras.utils.set_random_seed(0)
        model = ddim_keras.DiffusionModel.from_preset(
            PRESET, load_weights=False, dtype=backend.fastest_precision(), seed=0
        )
        model.normalizer.adapt(train)
        optimizer = keras.optimizers.AdamW(rate, global_clipnorm=clip)
        model.compile(optimizer, loss=recipe.loss)
        losses = model.fit(train.repeat(), epochs=50, steps_per_epoch=5, verbose=0).history[
            "n_loss"
        ]
        label = f"learning rate {rate:g}, " + (
            "not clipped" if clip is None else f"clipped to norm {clip:g}"
        )
        axes.plot(5 * np.arange(1, 51), losses, label=label)
    axes.set(xlabel="step", ylabel="noise loss", yscale="log")
    axes.legend()
    plotting.save_figure(IMAGES / "failure_diverging.png", figure)


def main() -> None:
    model = ddim_keras.DiffusionModel.from_preset(PRESET)
    noise_only()
    oversaturated(model)
    washed_out(model)
    broken(model)
    diverging()


if __name__ == "__main__":
    main()
