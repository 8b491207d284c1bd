"""All that is to be known of the speed on a GPU, in one run of at most ten minutes: matrix peak,
training, sampling, memory, and a look for transfers in the trace. Writes JSON.

    KERAS_BACKEND=jax python benchmarks/gpu.py [--batch 256] [--out outputs/gpu]

Runs on a CPU too, with a small --batch, to see that it does.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from speed import matrix_peak, multiplications

import ddim_keras
from ddim_keras import presets
from ddim_keras.support.backend import BACKEND, on_accelerator

CASES = {
    # preset, image size, channels, changes
    "recipe 32": ("fashion_mnist_32", 32, 3, {}),
    "recipe 64": ("fashion_mnist_32", 64, 3, {}),
    "recipe 64, attention": ("fashion_mnist_32", 64, 3, {"attention_levels": [2]}),
    "example 64": ("keras_example", 64, 3, {}),
}
TRANSFERS = ("MemcpyD2H", "MemcpyH2D", "TransferToDevice", "TransferFromDevice")


class Times(keras.callbacks.Callback):
    """When each epoch ended; with epochs of many steps, no callback waits within one."""

    def on_train_begin(self, logs=None):
        self.ends: list[float] = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(time.perf_counter())


def measure(case: tuple, batch: int, steps: int, peak: float, precision: str) -> dict[str, Any]:
    preset, size, channels, changes = case
    keras.utils.set_random_seed(0)
    changes = {"image_size": size, "channels": channels, "dtype": precision, **changes}
    model = ddim_keras.DiffusionModel.from_preset(preset, load_weights=False, seed=0, **changes)
    images = np.random.default_rng(0).uniform(size=(steps * batch, size, size, channels))
    images = images.astype("float32")
    model.normalizer.adapt(images)
    arguments = presets.training(preset).compile_arguments(10_000)
    model.compile(**arguments, steps_per_execution=min(10, steps))
    times = Times()
    start = time.perf_counter()
    model.fit(images, batch_size=batch, epochs=4, verbose=0, callbacks=[times])
    step = float(np.median(np.diff(times.ends))) / steps
    work = 6.0 * multiplications(model) * batch  # FLOPs, forward and twice as much backward
    model.generate(batch, 20, seed=0, batch_size=batch, verbose=0)
    begun = time.perf_counter()
    model.generate(batch, 20, seed=0, batch_size=batch, verbose=0)
    sampling = time.perf_counter() - begun
    found = {
        "precision": precision,
        "batch": batch,
        "first_epoch_s": times.ends[0] - start,
        "step_ms": 1000 * step,
        "training_images_per_s": batch / step,
        "training_share_of_matrix_peak": work / step / peak,
        "generate_20_steps_s": sampling,
        "generated_images_per_s": batch / sampling,
        "sampling_share_of_matrix_peak": work / 3.0 * 20 / sampling / peak,
    }
    if BACKEND == "jax":
        import jax

        statistics = jax.devices()[0].memory_stats() or {}
        found["peak_memory_MiB"] = statistics.get("peak_bytes_in_use", 0) / 2**20
        found["transfers"] = transfers(model, images, batch)
    return found


def transfers(model: ddim_keras.DiffusionModel, images: np.ndarray, batch: int) -> Any:
    """How many transfers between host and device the trace of an epoch has, by kind."""
    import tempfile

    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            model.fit(images, batch_size=batch, epochs=1, verbose=0)
        traces = [path.read_bytes() for path in pathlib.Path(folder).rglob("*.xplane.pb")]
    counts = {kind: 0 for kind in TRANSFERS}
    try:
        from jax.profiler import ProfileData
    except ImportError:
        return "this JAX cannot read its traces"
    for trace in traces:
        for plane in ProfileData.from_serialized_xspace(trace).planes:
            for line in plane.lines:
                for event in line.events:
                    for kind in TRANSFERS:
                        counts[kind] += kind in event.name
    return {"steps": len(images) // batch, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40, help="in an epoch, of which four are run")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no case is begun")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/gpu"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    size = 8192 if on_accelerator() else 1024
    peaks = {dtype: 2.0 * matrix_peak(dtype, size) for dtype in ("bfloat16", "float32")}
    found: dict[str, Any] = {"backend": BACKEND, "accelerator": on_accelerator()}
    if BACKEND == "jax":
        import jax

        found["device"] = jax.devices()[0].device_kind
    found["matrix_peak_TFLOPs"] = {dtype: peak / 1e12 for dtype, peak in peaks.items()}
    start = time.perf_counter()
    for precision, dtype in (("mixed_bfloat16", "bfloat16"), ("float32", "float32")):
        for name in arguments.cases:
            if time.perf_counter() - start > 60 * arguments.minutes:
                break
            key = f"{name}, {precision}"
            found[key] = measure(
                CASES[name], arguments.batch, arguments.steps, peaks[dtype], precision
            )
            print(key, json.dumps(found[key]), flush=True)
            # After each, so that what was measured outlives an interruption.
            (arguments.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
