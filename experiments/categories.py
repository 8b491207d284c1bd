"""Train a model of binarised clothes, and measure what steps and eta are worth: docs/categories.md.

    python experiments/categories.py --steps 1500

Takes the embedded images. Prints the page's table, and writes its picture.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from ddim_keras import CategoricalDiffusionModel, data, plotting
from ddim_keras.metrics import scoring

PICTURE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "images" / "categories.png"
BUDGETS, ETAS, COLUMNS = (1, 2, 5, 10, 20, 50), (0.0, 0.5, 1.0), 12


def binarised() -> tuple[np.ndarray, np.ndarray]:
    """Training and validation images of the embedded data set, 0 or 1, (images, 28, 28)."""
    sets = data.load_dataset("embedded", image_size=28, batch_size=100)
    return tuple(
        (np.concatenate([np.asarray(batch) for batch in each])[..., 0] > 0.5).astype("int32")
        for each in sets
    )


def main(steps: int, batch_size: int, num_images: int, file: pathlib.Path) -> None:
    train, validation = binarised()
    print(f"{len(train)} images, {train.mean():.3f} of their pixels white")
    if file.is_file():
        model = keras.models.load_model(file)
    else:
        model = CategoricalDiffusionModel((28, 28), 2, [24, 48], 1, patch_size=2, seed=0)
        rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
        model.compile(keras.optimizers.Adam(rate, clipnorm=1.0))
        start, epochs = time.perf_counter(), max(1, steps * batch_size // len(train))
        model.fit(train, batch_size=batch_size, epochs=epochs, verbose=2)
        print(f"trained for {epochs} epochs, {time.perf_counter() - start:.0f} s")
        model.save(file)
    print(dict(zip(("loss", "accuracy"), model.evaluate(validation, verbose=0))))
    real = validation[..., None].astype("float32")
    rows, names = [], []
    print("S    " + "  ".join(f"eta {eta}: FID, KID" for eta in ETAS))
    for budget in BUDGETS:
        found = []
        for eta in ETAS:
            images = model.generate(num_images, budget, eta=eta, seed=0, batch_size=250, verbose=0)
            images = images[..., None].astype("float32")
            scores = scoring.score([images], real, ["fid", "kid"], "fashion_mnist")
            found.append(f"{scores['fid']:.2f}, {scores['kid']:.4f}")
            if eta in (0.0, 1.0):
                rows.append(images[:COLUMNS])
                names.append(f"S = {budget}, eta = {eta:.0f}")
        print(f"{budget:3d}  " + "  ".join(found), flush=True)
    other = train[:num_images, ..., None].astype("float32")
    scores = scoring.score([other], real, ["fid", "kid"], "fashion_mnist")
    print(f"training images instead: {scores['fid']:.2f}, {scores['kid']:.4f}")
    rows.append(real[:COLUMNS])
    plotting.save_figure(PICTURE, plotting.plot_rows(np.stack(rows), [*names, "data"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--file", type=pathlib.Path, default="outputs/binarised_clothes.keras")
    given = parser.parse_args()
    given.file.parent.mkdir(parents=True, exist_ok=True)
    main(given.steps, given.batch_size, given.num_images, given.file)
