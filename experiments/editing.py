"""What an edit by exact inversion keeps of an image.

    python experiments/editing.py MODEL.keras [--num-images 100] [--diffusion-steps 20 50]

MODEL is a labelled model of 32 x 32 Fashion-MNIST in float32 or half precision, such as the one
that `benchmarks/conditions.py --parts labels` leaves. The embedded validation images are encoded
with their own labels, and decoded with another, by plain DDIM inversion and by the two-step rules
that are taken back by algebra. Prints a table, and writes its picture.

The background is where the original is black, and "far" from the object where no pixel within 3 is
anything but black. Its error is that of all such pixels of all images together. How much an edit
edits is said by the package's classifier: how often it sees the label that was asked for.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from ddim_keras import DiffusionModel, data, metrics, plotting

COLUMNS, FAR = 12, 3
# From each kind of clothes to one that may fill about the same place.
OTHERS = {
    "T-shirt/top": "Dress", "Trouser": "Dress", "Pullover": "Coat", "Dress": "Coat",
    "Coat": "Pullover", "Sandal": "Sneaker", "Shirt": "T-shirt/top", "Sneaker": "Ankle boot",
    "Bag": "Shirt", "Ankle boot": "Sneaker",
}  # fmt: skip
WAYS: dict[str, str | bool] = {
    "plain DDIM inversion": False, "BDIA": "bdia", "O-BELM": "o_belm",
}  # fmt: skip


def in_float32(path: pathlib.Path) -> DiffusionModel:
    """The model of a file, or of a folder by `save_to_preset`; exact inversion asks for float32."""
    if path.is_dir():
        return DiffusionModel.from_preset(path, dtype="float32")
    model = keras.models.load_model(path)
    again = DiffusionModel.from_config({**model.get_config(), "dtype": "float32"})
    again.set_weights(model.get_weights())
    return again


def unseen(number: int) -> tuple[np.ndarray, np.ndarray]:
    _, validation = data.load_dataset("embedded", 32, 100, fit="pad", labels=True)
    parts = [[np.asarray(part) for part in batch] for batch in validation]
    images, labels = (np.concatenate(each) for each in zip(*parts))
    return images[:number], labels[:number]


def far_from_object(images: np.ndarray) -> np.ndarray:
    """Where no pixel within FAR, also across corners, is anything but black; bool."""
    lit = np.pad(images[..., 0] > 0.0, ((0, 0), (FAR, FAR), (FAR, FAR)))
    windows = np.lib.stride_tricks.sliding_window_view(lit, (2 * FAR + 1,) * 2, axis=(1, 2))
    return ~windows.any(axis=(-2, -1))[..., None]


def decibels(images: np.ndarray, true: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio of all pixels there together."""
    errors = (images - true) ** 2
    return float(-10.0 * np.log10(max((errors if where is None else errors[where]).mean(), 1e-12)))


def seen_as(images: np.ndarray, labels: np.ndarray) -> float:
    """How often the classifier sees the label."""
    extractor = metrics.get_extractor("fashion_mnist")
    parts = [images[start : start + 250] for start in range(0, len(images), 250)]
    found = np.concatenate([np.asarray(extractor.probabilities(part)) for part in parts])
    return float((found.argmax(axis=1) == labels).mean())


def edit(
    model: DiffusionModel, images: np.ndarray, labels: np.ndarray, others: np.ndarray,
    way: str | bool, steps: int, guidance: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The images again, and as another kind of clothes."""
    options: dict[str, Any] = {"batch_size": 50, "verbose": 0}
    latents = model.encode(images, steps, exact=way, labels=labels, **options)
    again = model.decode(latents, steps, labels=labels, **options)
    return again, model.decode(latents, steps, labels=others, guidance=guidance, **options)


def main(arguments: argparse.Namespace) -> None:
    model = in_float32(arguments.model)
    images, labels = unseen(arguments.num_images)
    names = model.class_names
    others = np.array([names.index(OTHERS[names[label]]) for label in labels])
    black, far = images == 0.0, far_from_object(images)
    print(f"{len(images)} images, {black.mean():.0%} black, {far.mean():.0%} far from the object")
    print(f"the classifier sees their own labels in {seen_as(images, labels):.0%}")
    for guidance in arguments.guidance:
        drawn = model.generate(len(labels), 20, labels=labels, guidance=guidance, seed=0, verbose=0)
        seen = seen_as(drawn, labels)
        print(
            f"and those asked for in {seen:.0%} of images that are generated, guidance {guidance}"
        )
    rows, titles = [images[:COLUMNS]], ["original"]
    print("| S | guidance | way | the same again | black | far from the object | edited |")
    for steps in arguments.diffusion_steps:
        for guidance in arguments.guidance:
            for name, way in WAYS.items():
                again, made = edit(model, images, labels, others, way, steps, guidance)
                kept = [decibels(again, images)]
                kept += [decibels(made, images, where) for where in (black, far)]
                figures = " | ".join(f"{value:.1f}" for value in kept)
                success = seen_as(made, others)
                print(f"| {steps} | {guidance} | {name} | {figures} | {success:.0%} |", flush=True)
                if steps == arguments.diffusion_steps[-1] and guidance == arguments.guidance[0]:
                    rows.append(made[:COLUMNS])
                    titles.append(name)
    plotting.save_figure(arguments.picture, plotting.plot_rows(np.stack(rows), titles))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--num-images", type=int, default=100)
    parser.add_argument("--diffusion-steps", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--picture", type=pathlib.Path, default="outputs/editing.png")
    main(parser.parse_args())
