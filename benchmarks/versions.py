"""Compare this version's training step and sampling with another's, in turns on this machine; print
the ratios, so that a slowdown is seen when it is made.

    python benchmarks/versions.py --before HEAD~1 [--turns 7] [--divided]

Each version runs in a process of its own from first to last; one of them computes at a time.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CASES = {
    # preset, image size, channels, batch, steps in a turn, images to generate
    "the recipe, 32 x 32 x 1": ("fashion_mnist_32", 32, 1, 32, 50, 128),
    "the Keras example's network, 64 x 64 x 3": ("keras_example", 64, 3, 32, 4, 16),
}
CHILD = """
import sys, time
import keras, numpy as np, tensorflow as tf, ddim_keras
from ddim_keras import presets

preset, size, channels, batch, steps, number, divided = sys.argv[1:]
size, channels, batch, steps, number = map(int, (size, channels, batch, steps, number))
if divided == "True" and hasattr(ddim_keras, "divide_batches_among_cores"):
    ddim_keras.divide_batches_among_cores()
from ddim_keras.support.backend import fastest_precision
keras.utils.set_random_seed(0)
changes = {"image_size": size, "channels": channels, "seed": 0, "dtype": fastest_precision()}
model = ddim_keras.DiffusionModel.from_preset(preset, load_weights=False, **changes)
images = np.random.default_rng(0).uniform(size=(steps * batch, size, size, channels))
images = images.astype("float32")
model.normalizer.adapt(images)
data = tf.data.Dataset.from_tensor_slices(images).batch(batch, drop_remainder=True).repeat()
model.compile(**presets.training(preset).compile_arguments(10_000))
for line in sys.stdin:
    start = time.perf_counter()
    if line.strip() == "train":
        model.fit(data, steps_per_epoch=steps, verbose=0)
        print((time.perf_counter() - start) / steps, flush=True)
    else:
        model.generate(number, 20, seed=0, verbose=0)
        print(time.perf_counter() - start, flush=True)
"""


class Version:
    """A process of one version, which times what it is told to do."""

    def __init__(self, source: pathlib.Path, arguments: list[str]):
        environment = {**os.environ, "PYTHONPATH": str(source), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=source,
            env=environment,
        )

    def seconds(self, what: str) -> float:
        print(what, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"the version in {self.process.args} failed")
        return float(answer)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(before: pathlib.Path, case: tuple, turns: int, divided: bool) -> None:
    arguments = [*map(str, case), str(divided)]
    versions = {"before": Version(before, arguments), "now": Version(ROOT, arguments)}
    for what in ("train", "generate"):
        times: dict[str, list[float]] = {name: [] for name in versions}
        for turn in range(turns + 1):
            for name, version in versions.items():
                seconds = version.seconds(what)
                if turn:  # the first compiles
                    times[name].append(seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratio = statistics.median(b / n for b, n in zip(times["before"], times["now"]))
        label = "training step" if what == "train" else f"generate({case[-1]}, 20)"
        print(
            f"  {label:18s} before {1000 * medians['before']:8.1f} ms, now "
            f"{1000 * medians['now']:8.1f} ms: {ratio:.2f} times as fast",
            flush=True,
        )
    for version in versions.values():
        version.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--before", default="HEAD~1", help="a commit or tag (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="default: %(default)s")
    parser.add_argument(
        "--divided",
        action="store_true",
        help="divide batches among the cores, in versions that can",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = pathlib.Path(folder) / "before"
        subprocess.run(
            ["git", "worktree", "add", "--detach", "--quiet", str(before), arguments.before],
            cwd=ROOT,
            check=True,
        )
        try:
            for title, case in CASES.items():
                print(title, flush=True)
                compare(before, case, arguments.turns, arguments.divided)
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=True
            )


if __name__ == "__main__":
    main()
