"""What restoration is worth on clothes, and how likely clothes are: docs/restoration.md and
docs/likelihood.md.

    python experiments/restoration.py --num-images 200
    python experiments/restoration.py --likelihood --num-images 1000 --data-dir TFDS_DATA_DIR

Takes the preset fashion_mnist_32 and images it was not trained on: the embedded validation images
or, with --data-dir, the 10,000 test images of Fashion-MNIST through TFDS (see
scripts/place_fashion_mnist.py where there is no network). Restores in half precision where the
processor computes in it, and finds likelihoods in float32. Prints the pages' tables, and writes the
picture.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from PIL import Image

from ddim_keras import DiffusionModel, data, plotting
from ddim_keras.metrics import scoring
from ddim_keras.operators import Blur, Mask, SuperResolution
from ddim_keras.support import backend

PICTURE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "images" / "restoration.png"
PRESET, COLUMNS, STEPS, SEEDS = "fashion_mnist_32", 12, 50, 4


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Bicubically, cut off to [0, 1]."""
    made = [
        np.asarray(
            Image.fromarray(image[..., 0], "F").resize((size, size), Image.Resampling.BICUBIC)
        )
        for image in images
    ]
    return np.clip(np.stack(made)[..., None], 0.0, 1.0)


def psnr(images: np.ndarray, true: np.ndarray) -> float:
    """Mean of the images' peak signal-to-noise ratios, in decibels."""
    errors = np.maximum(((images - true) ** 2).mean(axis=(1, 2, 3)), 1e-10)
    return float((-10.0 * np.log10(errors)).mean())


def ssim(images: np.ndarray, true: np.ndarray) -> float:
    """Mean structural similarity (Wang et al. 2004): Gaussian windows of 11 pixels."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    line /= line.sum()

    def windowed(values: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            parts = np.lib.stride_tricks.sliding_window_view(values, 11, axis=axis)
            values = parts @ line
        return values

    one, other = (values[..., 0].astype("float64") for values in (images, true))
    mean, mean_true = windowed(one), windowed(other)
    variance, variance_true = windowed(one**2) - mean**2, windowed(other**2) - mean_true**2
    covariance = windowed(one * other) - mean * mean_true
    first, second = 0.01**2, 0.03**2
    found = (2.0 * mean * mean_true + first) * (2.0 * covariance + second)
    return float(
        (found / ((mean**2 + mean_true**2 + first) * (variance + variance_true + second))).mean()
    )


def unseen_images(number: int, data_dir: str | None) -> np.ndarray:
    """The first of them, 28 x 28 pixels in the middle of 32 x 32, as the preset's were."""
    name = "embedded" if data_dir is None else "fashion_mnist"
    _, images = data.load_dataset(name, 32, 100, fit="pad", data_dir=data_dir)
    return np.concatenate([np.asarray(batch) for batch in images])[:number]


def restoration(number: int, data_dir: str | None) -> None:
    model = DiffusionModel.from_preset(PRESET, dtype=backend.fastest_precision())
    true = unseen_images(number, data_dir)
    holes = np.ones((32, 32))
    holes[8:24, 8:24] = 0.0
    noise = np.random.default_rng(0).normal(0.0, 0.05, (number, 16, 16, 1)).astype("float32")
    small, half = SuperResolution(4)(true), SuperResolution(2)(true)
    blurred = Blur.gaussian(2.0)
    tasks = {
        "4 times larger": (SuperResolution(4), small, 0.0, enlarged(small, 32)),
        "2 times larger": (SuperResolution(2), half, 0.0, enlarged(half, 32)),
        "2 times larger, noise 0.05": (
            *(SuperResolution(2), half + noise, 0.05, enlarged(half + noise, 32)),
        ),
        "blurred by 2 pixels": (blurred, blurred(true), 0.0, np.clip(blurred(true), 0.0, 1.0)),
        "the middle missing": (Mask(holes), Mask(holes)(true), 0.0, Mask(holes)(true)),
    }
    rows, names = [true[:COLUMNS]], ["true"]
    for name, (operator, measured, noise_level, plain) in tasks.items():
        start = time.perf_counter()
        options = {"noise_level": noise_level, "batch_size": 50, "verbose": 0}
        made = [model.restore(measured, operator, STEPS, seed=s, **options) for s in range(SEEDS)]
        seconds = (time.perf_counter() - start) / SEEDS / number
        for what, images in (
            ("measured, or bicubic", plain),
            ("restored", made[0]),
            (f"mean of {SEEDS}", np.mean(made, axis=0)),
        ):
            fid = scoring.score([images], true, ["fid"], "fashion_mnist")["fid"]
            figures = f"{psnr(images, true):.1f} | {ssim(images, true):.3f} | {fid:.1f}"
            print(f"| {name} | {what} | {figures} |", flush=True)
        print(f"{seconds:.3f} s an image")
        rows += [plain[:COLUMNS], made[0][:COLUMNS]]
        names += [name, "restored"]
    plotting.save_figure(PICTURE, plotting.plot_rows(np.stack(rows), names))


def likelihood(number: int, steps: int, data_dir: str | None) -> None:
    model, images = DiffusionModel.from_preset(PRESET), unseen_images(number, data_dir)
    number = len(images)
    start = time.perf_counter()
    found = model.log_likelihood(images, steps, seed=0, batch_size=25, verbose=0)
    seconds = (time.perf_counter() - start) / number
    print(
        f"{number} images, S = {steps}: {found.mean_bits_per_dim:.4f} bits per dimension, standard "
        f"error {found.standard_error:.4f}, {seconds:.2f} s an image",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--likelihood", action="store_true")
    parser.add_argument("--steps", type=int, default=100, help="of the likelihood")
    parser.add_argument("--data-dir", help="where TFDS keeps Fashion-MNIST")
    given = parser.parse_args()
    if given.likelihood:
        likelihood(given.num_images, given.steps, given.data_dir)
    else:
        restoration(given.num_images, given.data_dir)
