"""What an edit by exact inversion keeps of an image: docs/labels.md.

    python experiments/editing.py MODEL [--train 450] [--num-images 50] [--guidance 3]

MODEL is a labelled model of 32 x 32 Fashion-MNIST: the .keras file that
`benchmarks/conditions.py --parts labels` leaves, or a folder of `save_to_preset`. With --train, and
where there is none, it is made first: the preset fashion_mnist_32 with a random embedding of
labels, trained for so many batches of the embedded images. The validation images are encoded with
their own labels, and decoded with another, by plain DDIM inversion and by the two-step rules that
are taken back by algebra. Prints the table of docs/labels.md, and writes its picture.

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
from ddim_keras.support import backend

PRESET, BATCH, COLUMNS, FAR = "fashion_mnist_32", 32, 12, 3
# From each kind of clothes to one that may fill about the same place.
OTHERS = {
    "T-shirt/top": "Dress", "Trouser": "Dress", "Pullover": "Coat", "Dress": "Coat",
    "Coat": "Pullover", "Sandal": "Sneaker", "Shirt": "T-shirt/top", "Sneaker": "Ankle boot",
    "Bag": "Shirt", "Ankle boot": "Sneaker",
}  # fmt: skip
WAYS: dict[str, str | bool] = {
    "plain DDIM inversion": False, "BDIA": "bdia", "O-BELM": "o_belm",
}  # fmt: skip


def move_weights(source: keras.Model, target: keras.Model) -> None:
    """Put the weights of a network into the same with labels, whose embedding becomes random.

    Layers of a kind are numbered as they were made, so they pair up kind by kind.
    """

    def by_kind(network: keras.Model) -> dict[str, list[keras.Variable]]:
        kinds: dict[str, list[tuple[int, int, keras.Variable]]] = {}
        for place, weight in enumerate(network.weights):
            layer, name = weight.path.rsplit("/", 2)[-2:]
            kind, _, number = layer.rpartition("_")
            kind, number = (kind, number) if number.isdigit() else (layer, "0")
            kinds.setdefault(f"{kind}/{name}", []).append((int(number), place, weight))
        return {kind: [each[-1] for each in sorted(all_)] for kind, all_ in kinds.items()}

    sources = by_kind(source)
    for kind, weights in by_kind(target).items():
        if kind == "embedding/embeddings":
            weights[0].assign(np.random.default_rng(0).normal(0.0, 0.5, weights[0].shape))
        for old, new in zip(sources.get(kind, []), weights, strict=kind in sources):
            new.assign(old)


def make_labelled(folder: pathlib.Path, steps: int) -> None:
    """Train the preset on with labels for so many batches."""
    train, _ = data.load_dataset("embedded", 32, BATCH, fit="pad", labels=True)
    keras.utils.set_random_seed(0)
    preset = DiffusionModel.from_preset(PRESET)
    model = DiffusionModel.from_preset(
        PRESET,
        load_weights=False,
        dtype=backend.fastest_precision(),
        class_names=train.class_names,
        ema_decay=0.99,
        seed=0,
    )
    model.normalizer.set_weights(preset.normalizer.get_weights())
    for name in ("network", "ema_network"):
        move_weights(getattr(preset, name), getattr(model, name))
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.AdamW(rate, global_clipnorm=1.0), loss="mean_squared_error")
    model.fit(train.repeat(), epochs=1, steps_per_epoch=steps, verbose=2)
    model.save_to_preset(folder)


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
    if arguments.train and not arguments.model.exists():
        make_labelled(arguments.model, arguments.train)
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
    parser.add_argument("--train", type=int, default=0, help="batches, to make MODEL of the preset")
    parser.add_argument("--num-images", type=int, default=100)
    parser.add_argument("--diffusion-steps", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--picture", type=pathlib.Path, default="outputs/editing.png")
    main(parser.parse_args())
