"""Train the paper's rivals for equal minutes on this machine, and measure what each then draws.

    python benchmarks/rivals.py --minutes 3 --seeds 0 1 2 [--data-dir TFDS_DATA_DIR]
        [--num-images 250] [--more-images 1000] [--out outputs/rivals] [--docs docs/results.md]

The rivals are
- a GAN: a small DCGAN with spectral normalisation, the hinge loss, batch normalisation in the
  generator and an average of its weights;
- a score-based model ("NCSN"): the package's U-Net trained on the levels of
  `VarianceExplodingSchedule` to predict noises, sampled by `AnnealedLangevin` over 200 of them with
  5 evaluations each;
- DDPM in 1000 steps, and DDIM in 50, 20 and 10: the same U-Net with the recipe of the preset
  fashion_mnist_32, one training for all;
- few steps: samplers of 3 and 2 evaluations that are fitted to that training; the fits come on
  top of the minutes, and the table says how long they took;
- for comparison, that model ships too, trained for far longer.

The images are the 10,000 that ship with the package or, with --data-dir, the 60,000 of
Fashion-MNIST through TFDS, 28 x 28 pixels in the middle of 32 x 32; scores are against the 10,000
by the features of the package's own classifier.

Minutes and seconds are the process's time on the processor, divided by the number of cores, so that
other work on the machine does not count (on a GPU: of the clock). Seconds for 50,000 images are
extrapolated from the images that were drawn, without compilation. Models stay in the output folder
and are not trained again; results.json there holds the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from samplers import Judge, markdown, replace_table

import ddim_keras
from ddim_keras import plotting, presets
from ddim_keras.samplers import AnnealedLangevin
from ddim_keras.schedules import VarianceExplodingSchedule
from ddim_keras.support import backend

PICTURE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "images" / "rivals.png"
PRESET, COLUMNS, BATCH, TIMED_STEPS = "fashion_mnist_32", 16, 50, 12
FEW, LEVELS, LATENT, GAN_BATCH = (3, 2), 200, 100, 64
CORES = os.cpu_count() or 1
# NCSN's levels: 0.01 for pixels in [0, 1], which spread by 0.35 here, and about the largest
# distance between two images.
SCORE = {
    "schedule": VarianceExplodingSchedule(0.03, 50.0),
    "parameterization": "noise",
    "loss_weighting": "uniform",
}
WAYS: dict[str, dict[str, Any]] = {
    "DDPM": {"diffusion_steps": 1000, "eta": 1.0},
    **{f"DDIM, {steps}": {"diffusion_steps": steps, "eta": 0.0} for steps in (50, 20, 10)},
}
SHIPPED = (20, *FEW)
NAMES = (
    "GAN", "NCSN, Langevin", "NCSN by DDIM, 50", *WAYS, *(f"fitted, {budget}" for budget in FEW),
    *(f"shipped, {budget}" for budget in SHIPPED),
)  # fmt: skip


def clock() -> float:
    """Seconds of all cores together, or of the clock where a GPU works."""
    return time.perf_counter() if backend.on_accelerator() else time.process_time() / CORES


class GAN:
    """A DCGAN (Radford et al. 2016) of 32 x 32 grey images with the usual stabilisers."""

    def __init__(self, seed: int):
        keras.utils.set_random_seed(seed)
        self.generator, self.averaged = self._generator(), self._generator()
        self.discriminator = self._discriminator()
        self.averaged.set_weights(self.generator.get_weights())
        self.optimizers = [keras.optimizers.Adam(4e-4, beta_1=0.5) for _ in range(2)]
        self.steps = tf.Variable(0.0)

    @staticmethod
    def _generator() -> keras.Model:
        init = keras.initializers.RandomNormal(0.0, 0.02)
        x = inputs = keras.Input((LATENT,))
        x = layers.Dense(4 * 4 * 256, use_bias=False, kernel_initializer=init)(x)
        x = layers.Reshape((4, 4, 256))(x)
        for width in (128, 64):
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
            x = layers.Conv2DTranspose(
                width, 4, 2, "same", use_bias=False, kernel_initializer=init
            )(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Conv2DTranspose(1, 4, 2, "same", activation="tanh", kernel_initializer=init)(x)
        return keras.Model(inputs, x)

    @staticmethod
    def _discriminator() -> keras.Model:
        init = keras.initializers.RandomNormal(0.0, 0.02)
        x = inputs = keras.Input((32, 32, 1))
        for width in (64, 128, 256):
            convolution = layers.Conv2D(width, 4, 2, "same", kernel_initializer=init)
            x = layers.LeakyReLU(0.2)(layers.SpectralNormalization(convolution)(x))
        x = layers.SpectralNormalization(layers.Dense(1, kernel_initializer=init))(
            layers.Flatten()(x)
        )
        return keras.Model(inputs, x)

    @tf.function
    def step(self, images: tf.Tensor) -> None:
        """One step of each network, and of the average."""
        number = tf.shape(images)[0]
        real = 2.0 * images - 1.0
        fake = self.generator(tf.random.normal((number, LATENT)), training=True)
        with tf.GradientTape() as tape:
            of_real = self.discriminator(real, training=True)
            of_fake = self.discriminator(fake, training=True)
            loss = tf.reduce_mean(tf.nn.relu(1.0 - of_real) + tf.nn.relu(1.0 + of_fake))
        self._apply(0, tape, loss, self.discriminator)
        with tf.GradientTape() as tape:
            fake = self.generator(tf.random.normal((number, LATENT)), training=True)
            loss = -tf.reduce_mean(self.discriminator(fake, training=False))
        self._apply(1, tape, loss, self.generator)
        self.steps.assign_add(1.0)
        kept = tf.minimum(0.995, (1.0 + self.steps) / (10.0 + self.steps))
        for mean, weight in zip(self.averaged.weights, self.generator.weights):
            if "seed" not in weight.path:
                mean.assign(kept * mean + (1.0 - kept) * weight)

    def _apply(self, which: int, tape: tf.GradientTape, loss: tf.Tensor, model: Any) -> None:
        weights = model.trainable_variables
        self.optimizers[which].apply_gradients(zip(tape.gradient(loss, weights), weights))

    def fit(self, images: np.ndarray, seconds: float, seed: int) -> int:
        """Train for so many seconds; returns the number of steps."""
        batches = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images), seed=seed)
        batches = batches.repeat().batch(GAN_BATCH).as_numpy_iterator()
        self.step(next(batches))  # compiles
        start = clock()
        while clock() - start < seconds:
            self.step(next(batches))
        return int(self.steps.numpy())

    def generate(self, number: int, seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=(number, LATENT)).astype("float32")
        images = self.averaged.predict(noise, batch_size=2 * BATCH, verbose=0)
        return np.asarray(0.5 + 0.5 * images)


def untrained(seed: int, steps: int, **changes: Any) -> ddim_keras.DiffusionModel:
    keras.utils.set_random_seed(seed)
    model = ddim_keras.DiffusionModel.from_preset(
        PRESET, load_weights=False, dtype=backend.fastest_precision(), seed=seed, **changes
    )
    model.compile(**presets.training(PRESET).compile_arguments(steps))
    return model


class Ends(keras.callbacks.Callback):
    """The ends of steps, on our clock."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ends.append(clock())


def seconds_per_step(images: np.ndarray) -> float:
    """Of the U-Net, which is the same for all; the median."""
    model, ends = untrained(0, TIMED_STEPS), Ends()
    model.normalizer.adapt(images)
    options = {"batch_size": presets.training(PRESET).batch_size, "verbose": 0}
    model.fit(images[: TIMED_STEPS * options["batch_size"]], callbacks=[ends], **options)
    return float(np.median(np.diff(ends.ends)[2:]))


def trained(
    path: pathlib.Path, images: np.ndarray, seed: int, steps: int, **changes: Any
) -> ddim_keras.DiffusionModel:
    """The U-Net, trained unless it lies at `path` already."""
    if path.exists():
        return keras.models.load_model(path)
    model = untrained(seed, steps, **changes)
    model.normalizer.adapt(images)
    batch_size = presets.training(PRESET).batch_size
    batches = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images), seed=seed)
    batches = batches.repeat().batch(batch_size)
    start = clock()
    model.fit(batches, epochs=1, steps_per_epoch=steps, verbose=0)
    print(f"{path.stem}: {steps} steps in {clock() - start:.0f} s", flush=True)
    model.save(path)
    return model


class Table:
    """Draws, times, scores and keeps what each rival makes."""

    def __init__(self, judge: Judge, number: int, more: int, path: pathlib.Path):
        self.judge, self.number, self.more, self.path = judge, number, more, path
        self.found = json.loads(path.read_text()) if path.is_file() else {}
        self.rows: dict[str, np.ndarray] = {}

    def add(
        self,
        seed: int,
        name: str,
        evaluations: int,
        generate: Callable[[int, int], np.ndarray],
        compiled: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        """Measure `generate`, of (number of images, seed). `compiled` is quicker and compiles the
        same.
        """
        pictures = self.path.parent / f"images_{seed}_{name.replace(' ', '_')}.npy"
        key = f"{seed}/{name}"
        if key in self.found and pictures.exists():
            self.rows.setdefault(name, np.load(pictures))
            return
        (compiled or generate)(BATCH, 1)
        number = self.number if evaluations > 100 else max(self.more, self.number)
        start = clock()
        images = generate(number, 2)
        seconds = (clock() - start) / number
        few = self.judge.figures(images[: self.number])
        found = {
            "evaluations": evaluations,
            "seconds": 50_000 * seconds,
            "fid": few["fid"],
            "recall": few["recall"],
            "precision": few["precision"],
        }
        if number > self.number:
            found["fid_of_more"] = self.judge.figures(images)["fid"]
        self.found[key] = found
        self.path.write_text(json.dumps(self.found, indent=2) + "\n")
        np.save(pictures, images[:COLUMNS])
        self.rows.setdefault(name, images[:COLUMNS])
        print(key, {what: round(float(value), 3) for what, value in found.items()}, flush=True)

    def markdown(self) -> str:
        head = [
            "", "evaluations", "seconds for 50,000", f"FID of {self.number}",
            f"FID of {self.more:,}", "precision", "recall",
        ]  # fmt: skip
        lines = []
        for name in NAMES:
            runs = [run for key, run in self.found.items() if key.split("/", 1)[1] == name]
            if not runs:
                continue

            def of(what: str, digits: int, runs: list[dict[str, float]] = runs) -> str:
                values = [run[what] for run in runs if what in run]
                if not values:
                    return ""
                spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
                return f"{np.mean(values):,.{digits}f}{spread}"

            seconds = f"{np.mean([run['seconds'] for run in runs]):,.0f}"
            count = f"{runs[0]['evaluations']}"
            figures = [of("fid", 1), of("fid_of_more", 1), of("precision", 2), of("recall", 2)]
            lines.append([name, count, seconds, *figures])
        return markdown(head, lines)


def by(model: ddim_keras.DiffusionModel, **way: Any) -> Callable[[int, int], np.ndarray]:
    """What draws images by a model, of (number of images, seed)."""
    options = {"batch_size": BATCH, "verbose": 0, **way}
    return lambda number, seed: np.asarray(model.generate(number, seed=seed, **options))


def compare(
    seed: int, images: np.ndarray, steps: int, table: Table, seconds: float, fit_images: int
) -> None:
    """Train and measure all rivals of a seed."""
    out = table.path.parent
    weights = out / f"gan_{seed}.weights.h5"
    gan = GAN(seed)
    if weights.exists():
        gan.averaged.load_weights(weights)
    else:
        print(f"gan_{seed}: {gan.fit(images, seconds, seed)} steps", flush=True)
        gan.averaged.save_weights(weights)
    table.add(seed, "GAN", 1, gan.generate)
    score = trained(out / f"score_{seed}.keras", images, seed, steps, **SCORE)
    model = trained(out / f"diffusion_{seed}.keras", images, seed, steps)
    for budget in FEW if fit_images else ():
        name = f"fitted, {budget}"
        if f"{seed}/{name}" not in table.found:
            start = clock()
            model.fit_sampler(budget, num_images=fit_images, seed=seed, verbose=0)
            print(f"fitted {budget}: {clock() - start:.0f} s", flush=True)
        table.add(seed, name, budget, by(model, diffusion_steps=budget))
    table.add(seed, "NCSN by DDIM, 50", 50, by(score, diffusion_steps=50, eta=0.0))
    for name, way in reversed(WAYS.items()):
        short = by(model, **{**way, "diffusion_steps": 2})
        table.add(seed, name, way["diffusion_steps"], by(model, **way), short)
    langevin = AnnealedLangevin(5)
    way = {"diffusion_steps": LEVELS, "sampler": langevin}
    short = by(score, diffusion_steps=1, sampler=langevin)
    table.add(seed, "NCSN, Langevin", langevin.evaluations(LEVELS), by(score, **way), short)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-images", type=int, default=250, help="that all are scored by")
    parser.add_argument("--more-images", type=int, default=1000, help="of the quick ones")
    parser.add_argument("--steps", type=int, help="of the U-Nets, instead of what fits the minutes")
    parser.add_argument(
        "--fit-images", type=int, default=384, help="that samplers are fitted by; 0 for none"
    )
    parser.add_argument("--data-dir", help="where TFDS keeps Fashion-MNIST")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/rivals"))
    parser.add_argument("--docs", type=pathlib.Path, help="where to replace the table")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    real, _ = ddim_keras.data.load_dataset("embedded", 32, 500, fit="pad")
    judge = Judge(real)
    if arguments.data_dir is not None:
        real, _ = ddim_keras.data.load_dataset(
            "fashion_mnist", 32, 500, fit="pad", data_dir=arguments.data_dir
        )
    images = np.concatenate([np.asarray(batch) for batch in real]).astype("float32")
    steps = arguments.steps
    if steps is None:
        each = seconds_per_step(images)
        steps = max(int(60.0 * arguments.minutes / each), 1)
        print(f"{1000 * each:.0f} ms a step of the U-Net: {steps} steps", flush=True)
    table = Table(
        judge, arguments.num_images, arguments.more_images, arguments.out / "results.json"
    )
    shipped = ddim_keras.DiffusionModel.from_preset(PRESET, dtype=backend.fastest_precision())
    for budget in SHIPPED:
        table.add(0, f"shipped, {budget}", budget, by(shipped, diffusion_steps=budget))
    for seed in arguments.seeds:
        seconds = 60.0 * arguments.minutes
        compare(seed, images, steps, table, seconds, arguments.fit_images)
    print(table.markdown())
    shown = {name: table.rows[name] for name in NAMES if name in table.rows}
    shown["data"] = images[:COLUMNS]
    picture = plotting.plot_rows(np.stack(list(shown.values())), list(shown))
    plotting.save_figure(PICTURE, picture)
    if arguments.docs is not None:
        replace_table(arguments.docs, "rivals", table.markdown())


if __name__ == "__main__":
    main()
