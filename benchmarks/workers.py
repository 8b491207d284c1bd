"""How much quicker two processes train than one, each on a core of its own: weak scaling, with as
many images for each, and strong scaling, with as many images in all.

    python benchmarks/workers.py [--steps 60] [--batch-size 32] [--turns 3]

The recommended recipe on clothes by `ddim-keras train --workers`, over the loopback, on Linux.
Prints images a second of the second half of each training, medians of turns, for the backend of
KERAS_BACKEND.
"""

from __future__ import annotations

import argparse
import csv
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile

SETTINGS = (
    "--data embedded --fit pad --image-size 32 --preset fashion_mnist_32 --precision float32 "
    "--validation-images 64 --kid none --samples 0 --no-tensorboard --memorization 0"
).split()
PROGRAM = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv.pop(1))})
from ddim_keras.cli import main
main()
"""


def two_free_addresses() -> str:
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        return ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second))


def images_per_second(workers: int, batch_size: int, steps: int, cores: list[int]) -> float:
    """Train anew, in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        command = [sys.executable, "-c", PROGRAM]
        options = ["train", *SETTINGS, "--out", str(run), "--batch-size", str(batch_size)]
        options += ["--steps", str(steps), "--validate-every", str(steps // 2)]
        if workers > 1:
            options += ["--workers", two_free_addresses()]
        processes = [
            subprocess.Popen(
                [*command, str(core), *options, *(["--worker", str(index)] * (workers > 1))],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index, core in enumerate(cores[:workers])
        ]
        said = [process.communicate()[1] for process in processes]
        if any(process.returncode for process in processes):
            sys.exit("\n".join(said))
        with open(run / "log.csv", newline="") as file:
            return float(list(csv.DictReader(file))[-1]["images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed")
    cases = {
        "one process": (1, given.batch_size),
        "two, as many images for each": (2, 2 * given.batch_size),
        "two, as many images in all": (2, given.batch_size),
    }
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(given.turns):
        for name, (workers, batch_size) in cases.items():
            speeds[name].append(images_per_second(workers, batch_size, given.steps, cores))
    one = statistics.median(speeds["one process"])
    print(os.environ.get("KERAS_BACKEND", "tensorflow"))
    for name, found in speeds.items():
        speed = statistics.median(found)
        print(f"{name}: {speed:.1f} images a second, {speed / one:.2f} times as many", flush=True)


if __name__ == "__main__":
    main()
