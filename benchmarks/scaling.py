"""How time and peak memory of a training step and of an image grow with size, batch, width, steps
and number of images; what 24 and 80 GiB hold.

    python benchmarks/scaling.py [--quick] [--out outputs/scaling]

The network is the recommended recipe's, in colour; each figure comes from a process of its own.
Writes scaling.json and scaling.png, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

CHILD = """
import json, resource, statistics, sys, time
import keras, numpy as np
import ddim_keras
from ddim_keras import presets
from ddim_keras.support.backend import fastest_precision

given = json.loads(sys.argv[1])
ddim_keras.divide_batches_among_cores()

def mebibytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

size, batch = given.get("size", 32), given.get("batch", 32)
widths = [round(given.get("width", 1) * width) for width in (64, 96, 128)]
changes = {"image_size": size, "channels": 3, "widths": widths, "dtype": fastest_precision()}
changes["recompute"] = given.get("recompute", False)
model = ddim_keras.DiffusionModel.from_preset(
    "fashion_mnist_32", load_weights=False, seed=0, **changes)
images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3)).astype("uint8")
model.normalizer.adapt(images)
found = {}
if given["what"] == "train":
    model.compile(**presets.training("fashion_mnist_32").compile_arguments(1000))

    class Times(keras.callbacks.Callback):
        ends = []
        def on_train_batch_end(self, step, logs=None):
            self.ends.append(time.perf_counter())

    import tensorflow as tf
    data = tf.data.Dataset.from_tensors(images).repeat()
    start = mebibytes()
    model.fit(data, steps_per_epoch=given.get("repeats", 8), verbose=0, callbacks=[Times()])
    found["seconds"] = statistics.median(np.diff(Times.ends)[1:])
else:
    number, steps = given.get("number", 32), given.get("steps", 20)
    options = {"batch_size": min(number, batch), "seed": 0, "verbose": 0}
    model.generate(min(number, batch), 2, **options)
    start = mebibytes()
    seconds = []
    for _ in range(given.get("repeats", 3)):
        begun = time.perf_counter()
        model.generate(number, steps, **options)
        seconds.append(time.perf_counter() - begun)
    found["seconds"] = statistics.median(seconds)
found["mebibytes"], found["before"] = mebibytes(), start
print(json.dumps(found))
"""
SERIES: dict[str, dict[str, Any]] = {
    "training step by size (batch 8)": {
        "what": "train", "batch": 8, "by": "size", "values": [32, 64, 128, 256],
    },
    "training step by batch": {"what": "train", "by": "batch", "values": [8, 16, 32, 64, 128]},
    "training step by width": {"what": "train", "by": "width", "values": [0.5, 1, 1.5, 2, 3]},
    "generate 8 by size": {
        "what": "generate", "number": 8, "batch": 8, "steps": 10, "by": "size",
        "values": [32, 64, 128, 256],
    },
    "generate 32 by steps": {"what": "generate", "by": "steps", "values": [5, 10, 20, 50, 100]},
    "generate by number of images": {
        "what": "generate", "batch": 256, "steps": 4, "by": "number", "repeats": 1,
        "values": [256, 1024, 4096, 16384],
    },
}  # fmt: skip
MEMORIES = (24, 80)  # GiB
# Two batches at each size give what an image adds to what all else takes.
HELD = {size: (batch, 4 * batch) for size, batch in ((32, 64), (64, 32), (128, 8), (256, 4))}


def run(given: dict[str, Any]) -> dict[str, float]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(given)],
        capture_output=True,
        text=True,
        env=environment,
    )
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def measure(series: dict[str, Any], quick: bool) -> list[dict[str, float]]:
    fixed = {name: value for name, value in series.items() if name not in ("by", "values")}
    values = series["values"][:2] if quick else series["values"]
    return [{series["by"]: value, **run({**fixed, series["by"]: value})} for value in values]


def capacity(quick: bool) -> list[dict[str, float]]:
    """The largest batch that a memory holds, worked out from two."""
    rows = []
    for size, batches in list(HELD.items())[: 1 if quick else None]:
        for recompute in (False, True):
            given = {"what": "train", "size": size, "recompute": recompute, "repeats": 3}
            few, many = (run({**given, "batch": batch}) for batch in batches)
            each = (many["mebibytes"] - few["mebibytes"]) / (batches[1] - batches[0])
            rest = few["mebibytes"] - batches[0] * each
            row = {"size": size, "recompute": recompute, "each": each, "rest": rest}
            row["seconds"] = many["seconds"] / batches[1]
            row |= {f"{memory} GiB": int((1024 * memory - rest) / each) for memory in MEMORIES}
            rows.append(row)
            print(
                f"  {size} x {size}, recompute={recompute}: {each:.1f} MiB an image, "
                f"{1000 * row['seconds']:.1f} ms an image; "
                + ", ".join(f"{memory} GiB: {row[f'{memory} GiB']}" for memory in MEMORIES),
                flush=True,
            )
    return rows


def draw(found: dict[str, list[dict[str, float]]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for axis, (title, rows) in zip(axes.flat, found.items()):
        by = SERIES[title]["by"]
        values = [row[by] for row in rows]
        times = axis.plot(values, [row["seconds"] for row in rows], "o-", color="C0")
        axis.set(title=title, xlabel=by, ylabel="seconds", xscale="log", yscale="log")
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
        memory = axis.twinx()
        peaks = memory.plot(values, [row["mebibytes"] for row in rows], "s--", color="C1")
        memory.set_ylabel("peak MiB")
        memory.set_ylim(bottom=0)
        axis.legend([*times, *peaks], ["time", "peak memory"], loc="lower right")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="two values of each")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/scaling"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for title, series in SERIES.items():
        found[title] = measure(series, arguments.quick)
        print(title, flush=True)
        for row in found[title]:
            print(
                f"  {series['by']} {row[series['by']]:g}: {1000 * row['seconds']:.0f} ms, peak "
                f"{row['mebibytes']:.0f} MiB"
            )
    print("The largest batch in training", flush=True)
    held = capacity(arguments.quick)
    text = json.dumps({"series": found, "capacity": held}, indent=1)
    (arguments.out / "scaling.json").write_text(text + "\n")
    draw(found, arguments.out / "scaling.png")


if __name__ == "__main__":
    main()
