"""What restoration is worth on clothes and on photos, and how likely clothes are:
docs/restoration.md and docs/likelihood.md.

    python experiments/restoration.py --num-images 100
    python experiments/restoration.py --photos --num-images 48 --data-dir TFDS_DATA_DIR
    python experiments/restoration.py --likelihood --num-images 10000 --data-dir TFDS_DATA_DIR

Takes the preset fashion_mnist_32 and images it was not trained on: the embedded validation images
or, with --data-dir, the 10,000 test images of Fashion-MNIST through TFDS (see
scripts/place_fashion_mnist.py where there is no network). With --photos it is the preset cifar10_32
and CIFAR-10's test images with their labels, of which scripts know by --data-dir alone. Restores in
half precision where the processor computes in it, and finds likelihoods in float32. Prints the
pages' tables, and writes the pictures.
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
from ddim_keras.operators import Blur, Colorize, Mask, SuperResolution
from ddim_keras.support import backend

PICTURES = pathlib.Path(__file__).resolve().parent.parent / "docs" / "images"
COLUMNS, STEPS, SEEDS, TOLD_EACH = 12, 50, 4, 500


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Bicubically, cut off to [0, 1]."""
    made = [
        [
            np.asarray(Image.fromarray(part, "F").resize((size, size), Image.Resampling.BICUBIC))
            for part in np.moveaxis(image, -1, 0)
        ]
        for image in images
    ]
    return np.clip(np.moveaxis(np.asarray(made), 1, -1), 0.0, 1.0)


def psnr(images: np.ndarray, true: np.ndarray) -> float:
    """Mean of the images' peak signal-to-noise ratios, in decibels."""
    errors = np.maximum(((images - true) ** 2).mean(axis=(1, 2, 3)), 1e-10)
    return float((-10.0 * np.log10(errors)).mean())


def ssim(images: np.ndarray, true: np.ndarray) -> float:
    """Mean structural similarity (Wang et al. 2004): Gaussian windows of 11 pixels, the mean of
    colours.
    """
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    line /= line.sum()

    def windowed(values: np.ndarray) -> np.ndarray:
        for axis in (2, 3):
            parts = np.lib.stride_tricks.sliding_window_view(values, 11, axis=axis)
            values = parts @ line
        return values

    one, other = (np.moveaxis(values.astype("float64"), -1, 1) for values in (images, true))
    mean, mean_true = windowed(one), windowed(other)
    variance, variance_true = windowed(one**2) - mean**2, windowed(other**2) - mean_true**2
    covariance = windowed(one * other) - mean * mean_true
    first, second = 0.01**2, 0.03**2
    found = (2.0 * mean * mean_true + first) * (2.0 * covariance + second)
    return float(
        (found / ((mean**2 + mean_true**2 + first) * (variance + variance_true + second))).mean()
    )


def unseen_clothes(number: int, data_dir: str | None) -> np.ndarray:
    """The first of them, 28 x 28 pixels in the middle of 32 x 32, as the preset's were."""
    name = "embedded" if data_dir is None else "fashion_mnist"
    _, images = data.load_dataset(name, 32, 100, fit="pad", data_dir=data_dir)
    return np.concatenate([np.asarray(batch) for batch in images])[:number]


def unseen_photos(number: int, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The first of CIFAR-10's test images, and their labels."""
    _, batches = data.load_dataset("cifar10", 32, 100, labels=True, data_dir=data_dir)
    images, labels = zip(*batches.take(-(-number // 100)).as_numpy_iterator())
    return np.concatenate(images)[:number], np.concatenate(labels)[:number]


def tasks(true: np.ndarray) -> dict[str, tuple]:
    """By name: operator, measurements, the noise in them, and what one has without a model."""
    number, size, _, channels = true.shape
    holes = np.ones((size, size))
    holes[size // 4 : -size // 4, size // 4 : -size // 4] = 0.0
    small, half = SuperResolution(4)(true), SuperResolution(2)(true)
    noise = np.random.default_rng(0).normal(0.0, 0.05, half.shape).astype("float32")
    blurred = Blur.gaussian(2.0)
    made = {
        "4 times larger": (SuperResolution(4), small, 0.0, enlarged(small, size)),
        "2 times larger": (SuperResolution(2), half, 0.0, enlarged(half, size)),
        "2 times larger, noise 0.05": (
            *(SuperResolution(2), half + noise, 0.05, enlarged(half + noise, size)),
        ),
        "blurred by 2 pixels": (blurred, blurred(true), 0.0, np.clip(blurred(true), 0.0, 1.0)),
        "the middle missing": (Mask(holes), Mask(holes)(true), 0.0, Mask(holes)(true)),
    }
    if channels == 3:
        grey = Colorize()(true)
        made["grey"] = (Colorize(), grey, 0.0, np.repeat(grey, 3, axis=-1))
    return made


def restoration(number: int, data_dir: str | None, photos: bool) -> None:
    preset, extractor, picture = "fashion_mnist_32", "fashion_mnist", "restoration.png"
    options: dict = {"batch_size": 50, "verbose": 0}
    if photos:
        preset, extractor, picture = "cifar10_32", "cifar10", "restoration_photos.png"
        true, options["labels"] = unseen_photos(number, data_dir)
    else:
        true = unseen_clothes(number, data_dir)
    model = DiffusionModel.from_preset(preset, dtype=backend.fastest_precision())
    rows, names = [true[:COLUMNS]], ["true"]
    for name, (operator, measured, noise, plain) in tasks(true).items():
        start = time.perf_counter()
        made = [
            model.restore(measured, operator, STEPS, seed=seed, noise_level=noise, **options)
            for seed in range(SEEDS)
        ]
        seconds = (time.perf_counter() - start) / SEEDS / len(true)
        for what, images in (
            ("measured, or bicubic", plain),
            ("restored", made[0]),
            (f"mean of {SEEDS}", np.mean(made, axis=0)),
        ):
            fid = scoring.score([images], true, ["fid"], extractor)["fid"]
            figures = f"{psnr(images, true):.1f} | {ssim(images, true):.3f} | {fid:.1f}"
            print(f"| {name} | {what} | {figures} |", flush=True)
        print(f"{seconds:.3f} s an image", flush=True)
        rows += [plain[:COLUMNS], made[0][:COLUMNS]]
        names += [name, "restored"]
    plotting.save_figure(PICTURES / picture, plotting.plot_rows(np.stack(rows), names))


def likelihood(number: int, steps: int, data_dir: str | None) -> None:
    """So many images at a time, so that what is known by then is said meanwhile."""
    model, images = DiffusionModel.from_preset("fashion_mnist_32"), unseen_clothes(number, data_dir)
    start, bits = time.perf_counter(), np.zeros(0)
    for first in range(0, len(images), TOLD_EACH):
        some = images[first : first + TOLD_EACH]
        found = model.log_likelihood(some, steps, seed=first, batch_size=50, verbose=0)
        bits = np.append(bits, found.bits_per_dim)
        seconds = (time.perf_counter() - start) / len(bits)
        print(
            f"{len(bits)} images, S = {steps}: {bits.mean():.4f} bits per dimension, standard "
            f"error {bits.std(ddof=1) / len(bits) ** 0.5:.4f}, {seconds:.2f} s an image",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--photos", action="store_true", help="of CIFAR-10 instead of clothes")
    parser.add_argument("--likelihood", action="store_true")
    parser.add_argument("--steps", type=int, default=100, help="of the likelihood")
    parser.add_argument("--data-dir", help="where TFDS keeps Fashion-MNIST, or CIFAR-10")
    given = parser.parse_args()
    if given.likelihood:
        likelihood(given.num_images, given.steps, given.data_dir)
    else:
        restoration(given.num_images, given.data_dir, given.photos)
