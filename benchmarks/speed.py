"""Time training and sampling against the Keras example's recipe, in turns in one run; print medians
and their ratios.

    python benchmarks/speed.py [--turns 5] [--quick] [--xla]

On the JAX backend the example cannot run; then only our own figures are printed. On a GPU the batch
is 256.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import ddim_keras
from ddim_keras.support.backend import BACKEND, on_accelerator

CASES = ((32, 1), (64, 3))  # image size, channels
PRECISIONS = ("float32", "mixed_bfloat16")


def in_turns(contestants: dict[str, Callable[[], float]], turns: int) -> dict[str, float]:
    """Call each contestant once to warm up, then all of them in each turn; return each one's median
    seconds.
    """
    for run in contestants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            times[name].append(run())
    return {name: statistics.median(values) for name, values in times.items()}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def make_ours(
    images: np.ndarray, precision: str, jit_compile: bool | str = "auto"
) -> ddim_keras.DiffusionModel:
    model = ddim_keras.DiffusionModel(
        images.shape[1], channels=images.shape[-1], dtype=precision, seed=0
    )
    model.normalizer.adapt(images)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3, weight_decay=1e-4),
        loss="mean_absolute_error",
        jit_compile=jit_compile,
    )
    return model


def multiplications(model: ddim_keras.DiffusionModel) -> int:
    """Multiply-adds of the convolutions in one pass of one image through the network: nearly all of
    its work.
    """
    total = 0
    for layer in model.network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = int(np.prod(layer.kernel.shape))
            if isinstance(
                layer, ddim_keras.networks.ConditionedConv2D
            ):  # the vector's part is done once, not per pixel
                kernel = kernel // layer.kernel.shape[2] * layer.input[0].shape[-1]
            total += int(np.prod(layer.output.shape[1:3])) * kernel
    return total


def matrix_peak(dtype: str, size: int) -> float:
    """Multiply-adds per second of a square matrix product on this device, the best of ten."""
    matrix = keras.ops.ones((size, size), dtype=dtype)
    multiply = keras.ops.matmul
    if BACKEND == "jax":
        import jax

        multiply = jax.jit(multiply)

    def run() -> float:
        return seconds(lambda: float(keras.ops.sum(multiply(matrix, matrix)[0])))

    run()
    return size**3 / min(run() for _ in range(10))


def training(size: int, channels: int, batch_size: int, steps: int, turns: int, xla: bool) -> None:
    images = (
        np.random.default_rng(0)
        .uniform(size=(batch_size * steps, size, size, channels))
        .astype("float32")
    )
    models = {f"ddim_keras, {precision}": make_ours(images, precision) for precision in PRECISIONS}
    work = (
        3 * multiplications(next(iter(models.values()))) * batch_size
    )  # forward, and twice as much backward
    contestants = {
        name: fit_time(model, images, batch_size, steps) for name, model in models.items()
    }
    baselines = []
    if BACKEND == "tensorflow":
        from keras_example import make_example

        examples = {"Keras example": make_example(images)}
        assert (
            examples["Keras example"].network.count_params()
            == next(iter(models.values())).network.count_params()
        )
        if xla:
            examples["Keras example, XLA"] = make_example(images, jit_compile=True)
            ours = make_ours(images, "float32", jit_compile=True)
            contestants["ddim_keras, float32, XLA"] = fit_time(ours, images, batch_size, steps)
        contestants |= {
            name: fit_time(model, images, batch_size, steps) for name, model in examples.items()
        }
        baselines = list(examples)
        chosen = "XLA" if examples[baselines[0]].jit_compile else "a plain graph"
        print(f"  (Keras's default compilation on this device is {chosen})")
    report("training step", in_turns(contestants, turns), baselines, batch_size, work)


def fit_time(
    model: keras.Model, images: np.ndarray, batch_size: int, steps: int
) -> Callable[[], float]:
    if BACKEND == "tensorflow":
        import tensorflow as tf

        data = (
            tf.data.Dataset.from_tensor_slices(images)
            .batch(batch_size, drop_remainder=True)
            .cache()
        )
        return lambda: seconds(lambda: model.fit(data, shuffle=False, verbose=0)) / steps
    return lambda: seconds(lambda: model.fit(images, batch_size=batch_size, verbose=0)) / steps


def sampling(size: int, channels: int, batch_size: int, diffusion_steps: int, turns: int) -> None:
    images = np.random.default_rng(0).uniform(size=(8, size, size, channels)).astype("float32")
    models = {f"ddim_keras, {precision}": make_ours(images, precision) for precision in PRECISIONS}
    work = multiplications(next(iter(models.values()))) * diffusion_steps
    for number in (batch_size, 1):

        def generate(model: keras.Model, number: int = number) -> Callable[[], float]:
            def run() -> float:
                options = (
                    {}
                    if model.__class__.__name__ == "KerasExample"
                    else {"batch_size": number, "verbose": 0}
                )
                return seconds(
                    lambda: np.asarray(model.generate(number, diffusion_steps, **options))
                )

            return run

        contestants = {name: generate(model) for name, model in models.items()}
        baselines = []
        if BACKEND == "tensorflow":
            from keras_example import make_example

            contestants["Keras example"] = generate(make_example(images))
            baselines = ["Keras example"]
        report(
            f"generate({number}, {diffusion_steps})",
            in_turns(contestants, turns),
            baselines,
            number,
            work * number,
        )


def report(
    title: str, medians: dict[str, float], baselines: list[str], images: int, work: float
) -> None:
    print(f"  {title}")
    for name, median in medians.items():
        peak = PEAKS["bfloat16" if "bfloat16" in name else "float32"]
        text = f"    {name:32s} {1000 * median:9.1f} ms {images / median:9.1f} images/s"
        text += f" {work / median / peak:5.0%} of matrix peak"
        if name not in baselines:
            text += "".join(
                f"   {medians[baseline] / median:5.2f}x {baseline}" for baseline in baselines
            )
        print(text, flush=True)


PEAKS: dict[str, float] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--turns", type=int, default=5, help="how often each is timed (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="only 32 x 32 x 1, one turn")
    parser.add_argument(
        "--xla", action="store_true", help="also train under XLA where plain graphs are the default"
    )
    arguments = parser.parse_args()
    turns = 1 if arguments.quick else arguments.turns
    accelerator = on_accelerator()
    batch_size = 256 if accelerator else 64
    print(
        f"Backend {BACKEND}, Keras {keras.__version__}, "
        f"{'accelerator' if accelerator else f'{os.cpu_count()} CPU cores'}"
    )
    for dtype in ("float32", "bfloat16"):
        PEAKS[dtype] = matrix_peak(dtype, 8192 if accelerator else 2048)
        print(f"Matrix product in {dtype}: {2e-9 * PEAKS[dtype]:.0f} GFLOP/s")
    for size, channels in CASES[:1] if arguments.quick else CASES:
        print(
            f"{size} x {size} x {channels}, batch {batch_size}, medians of {turns} turns",
            flush=True,
        )
        training(size, channels, batch_size, 20 if accelerator else 4, turns, arguments.xla)
        sampling(size, channels, batch_size, 20, turns)


if __name__ == "__main__":
    main()
