"""How far images come back from their latents, by each way of finding these: the table of
docs/api/forward.md.

    python benchmarks/inversion.py --num-images 1000 --steps 10 50 100
    python benchmarks/inversion.py --preset cifar10_32 --num-images 64 --data-dir TFDS_DATA_DIR

Takes images the preset was not trained on: the embedded validation images for fashion_mnist_32, or
CIFAR-10's test images, with their labels and no guidance, for cifar10_32. All in float32. Says the
largest and the root mean square error of a pixel in [0, 1], and the largest latent in standard
deviations.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from ddim_keras import DiffusionModel, data
from ddim_keras.sampling.inversion import ConvergenceError

WAYS = {"ddim": False, "solved": True, "algebra": "algebra", "o_belm": "o_belm"}


def unseen(preset: str, number: int, data_dir: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    """The first images, and what is told of them."""
    if preset == "fashion_mnist_32":
        _, batches = data.load_dataset("embedded", 32, 100, fit="pad")
        return np.concatenate([np.asarray(batch) for batch in batches])[:number], {}
    _, batches = data.load_dataset("cifar10", 32, 100, labels=True, data_dir=data_dir)
    images, labels = zip(*batches.take(-(-number // 100)).as_numpy_iterator())
    told = {"labels": np.concatenate(labels)[:number], "guidance": 1.0}
    return np.concatenate(images)[:number], told


def largest_latent(latents: Any) -> float:
    """Of both states, where there are two."""
    states = [latents.noisier, latents.cleaner] if hasattr(latents, "noisier") else [latents]
    return max(float(np.abs(state).max()) for state in states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="fashion_mnist_32")
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--data-dir", help="where TFDS keeps CIFAR-10")
    given = parser.parse_args()
    model = DiffusionModel.from_preset(given.preset)
    images, told = unseen(given.preset, given.num_images, given.data_dir)
    options = {"batch_size": given.batch_size, "verbose": 0, **told}
    print(f"{given.preset}, {len(images)} images, {keras.backend.backend()}")
    print("way steps | largest error, root mean square | largest latent | seconds an image")
    for way in given.ways:
        for steps in given.steps:
            start = time.perf_counter()
            try:
                latents = model.encode(images, steps, exact=WAYS[way], **options)
            except ConvergenceError as error:
                print(f"{way} {steps} | {error}", flush=True)
                continue
            # A pair knows the levels between which it lies.
            pair = {} if way in ("algebra", "o_belm") else {"diffusion_steps": steps}
            errors = np.abs(model.decode(latents, **pair, **options) - images)
            seconds = (time.perf_counter() - start) / len(images)
            error = f"{errors.max():.1e} {np.sqrt((errors**2).mean()):.1e}"
            print(
                f"{way} {steps} | {error} | {largest_latent(latents):.1f} | {seconds:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
