"""Where a training step goes, or one of sampling: the time of each kind of operation, as the
backend's profiler has it.

    python benchmarks/step_profile.py [--case recipe|example|ddpm] [--divided] [--one-at-a-time]
    python benchmarks/step_profile.py --case ddpm --sampling

With --one-at-a-time TensorFlow's operations wait for each other, so that their times add up to the
step's. On JAX the kinds are XLA's, which fuses operations.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import statistics
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Before TensorFlow reads it.
if "--one-at-a-time" in sys.argv:
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"

import keras
import numpy as np
import tensorflow as tf

import ddim_keras
from ddim_keras import presets
from ddim_keras.support.backend import fastest_precision

CASES = {
    "recipe": ("fashion_mnist_32", 32, 1, 32),
    "example": ("keras_example", 64, 3, 64),
    "ddpm": ("ddpm_cifar10", 32, 3, 16),
}
STEPS = 10
# The first that fits: what an operation's name or its type contains, and what it is.
KINDS = (
    ("optimizer", ("muon/", "adamw/", "adam/")),
    ("attention", ("_attend",)),
    ("convolution by weights", ("BackpropFilter",)),
    ("convolution by data", ("BackpropInput",)),
    ("convolution forward", ("Conv2D",)),
    ("normalisation", ("normalization", "_norm")),
    ("activation", ("swish", "Swish", "Sigmoid", "activation")),
    ("up- and downsampling", ("upsampling", "up_sampling", "pooling", "Resize")),
    ("concatenation and slices", ("Concat", ":Slice", ":Split")),
    ("bias gradient", ("BiasAddGrad",)),
    ("sums of gradients", (":AddN",)),
    ("casts", (":Cast",)),
    ("dense layers", ("MatMul",)),
    ("layout", ("Transpose", "Reshape")),
    ("random numbers", ("Random",)),
    ("variables", ("VariableOp",)),
)


# XLA's, by what the name of an instruction begins with.
KINDS_OF_XLA = (
    ("convolutions and products with what follows (YNNPACK)", ("ynn",)),
    ("convolutions", ("convolution", "conv")),
    ("matrix products", ("dot", "gemm", "onednn")),
    ("fused elementwise and sums", ("fusion", "loop", "input_", "wrapped", "add", "multiply")),
    ("sums", ("reduce", "select-and-scatter")),
    ("layout", ("copy", "transpose", "bitcast", "reshape", "pad", "concatenate", "slice")),
    ("control", ("while", "call", "conditional")),
)


def kind_of_xla(name: str) -> str:
    for kind, parts in KINDS_OF_XLA:
        if name.startswith(parts) or any(f"_{part}" in name for part in parts):
            return kind
    return "others"


def kind_of(name: str) -> str:
    for kind, parts in KINDS:
        if any(part in name for part in parts):
            return kind
    return "EMA, losses and others"


def operations(folder: str) -> dict[str, float]:
    """Milliseconds a step of each operation, by `name:type`; on JAX by XLA's name."""
    if keras.backend.backend() == "jax":
        return operations_of_xla(folder)
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    space.ParseFromString(path.read_bytes())
    total: dict[str, float] = collections.Counter()
    for plane in space.planes:
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for line in plane.lines:
            if not line.name.startswith("tf_Compute"):
                continue
            for event in line.events:
                name = names[event.metadata_id]
                if ":" in name and "::" not in name:
                    total[name] += event.duration_ps / 1e9 / STEPS
    return total


def operations_of_xla(folder: str) -> dict[str, float]:
    from jax.profiler import ProfileData

    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    total: dict[str, float] = collections.Counter()
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                # What XLA runs says which instruction it is.
                if any(name == "hlo_op" for name, _ in event.stats):
                    total[event.name] += event.duration_ns / 1e6 / STEPS
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", choices=list(CASES), default="recipe")
    parser.add_argument("--divided", action="store_true", help="divide batches among the cores")
    parser.add_argument("--one-at-a-time", action="store_true")
    parser.add_argument("--sampling", action="store_true", help="a step of DDIM, not of training")
    parser.add_argument("--float32", action="store_true", help="instead of the fastest precision")
    arguments = parser.parse_args()
    if arguments.divided:
        ddim_keras.divide_batches_among_cores()
    preset, size, channels, batch = CASES[arguments.case]
    keras.utils.set_random_seed(0)
    precision = "float32" if arguments.float32 else fastest_precision()
    changes = {"image_size": size, "channels": channels, "seed": 0, "dtype": precision}
    model = ddim_keras.DiffusionModel.from_preset(preset, load_weights=False, **changes)
    images = np.random.default_rng(0).uniform(size=(4 * batch, size, size, channels))
    data = tf.data.Dataset.from_tensor_slices(images.astype("float32"))
    data = data.batch(batch, drop_remainder=True).repeat()
    model.normalizer.adapt(images)
    model.compile(**presets.training(preset).compile_arguments(10_000))

    start, stop, kind = tf.profiler.experimental.start, tf.profiler.experimental.stop, kind_of
    if keras.backend.backend() == "jax":
        import jax

        start, stop, kind = jax.profiler.start_trace, jax.profiler.stop_trace, kind_of_xla

    class Trace(keras.callbacks.Callback):
        def __init__(self, folder: str):
            super().__init__()
            self.folder, self.ends, self.number = folder, [], 0

        def on_train_batch_end(self, batch, logs=None):
            self.number += 1
            if self.number <= 3 + STEPS:
                self.ends.append(time.perf_counter())
            if self.number == 3 + STEPS:
                start(self.folder)
            elif self.number == 3 + 2 * STEPS:
                stop()

    def sample(steps: int) -> float:
        begin = time.perf_counter()
        model.generate(batch, steps, sampler="ddim", batch_size=batch, seed=0, verbose=0)
        return 1000 * (time.perf_counter() - begin) / steps

    with tempfile.TemporaryDirectory() as folder:
        if arguments.sampling:
            sample(1)
            step = sample(STEPS)
            start(folder)
            sample(STEPS)
            stop()
        else:
            trace = Trace(folder)
            model.fit(data, epochs=1, steps_per_epoch=4 + 2 * STEPS, verbose=0, callbacks=[trace])
            step = 1000 * statistics.median(np.diff(trace.ends)[2:])
        found = operations(folder)
    kinds: dict[str, float] = collections.Counter()
    for name, value in found.items():
        kinds[kind(name)] += value
    total = sum(kinds.values())
    what = "step of sampling" if arguments.sampling else "step"
    print(f"{arguments.case}, batch {batch}, {precision}: {step:.1f} ms a {what}")
    print(f"{len(found)} operations take {total:.1f} ms, all threads together:")
    for each, value in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"| {each} | {value:.1f} ms | {value / total:.0%} |")


if __name__ == "__main__":
    main()
