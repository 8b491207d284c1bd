"""Train by label, and from small images, for some minutes each, and measure what that is worth.

    python benchmarks/conditions.py --data-dir TFDS_DATA_DIR [--minutes 10 | --steps 5866]
        [--parts labels super_resolution] [--num-images 5000] [--out outputs/conditions]

"labels" trains the recipe of the preset fashion_mnist_32 on the 60,000 padded images of
Fashion-MNIST, once without labels and once with, both from one seed and for as many steps. Scores
are against the 10,000 test images in 20 network evaluations for an image, with the features of the
package's own classifier: without a label, and with the ten labels in turn at several weights of
guidance, of two kinds: without the label, and by the run's own model after a tenth of its steps.
"Agreement" is how often that classifier sees the label that was asked for (on the real test images
it is 92.75 %).

"super_resolution" trains the same recipe on the 10,000 images that ship with the package to make
32 x 32 pixels of 8 x 8, and compares it with bicubic interpolation on the 1,000 held-out ones.

The models stay in the output folder and are not trained again. Results go to results.json there,
pictures beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import quality
import tensorflow as tf

import ddim_keras
from ddim_keras import plotting, presets
from ddim_keras.data import pairs
from ddim_keras.guidance import Autoguidance, ClassifierFreeGuidance
from ddim_keras.metrics.scoring import score
from ddim_keras.support import backend

EVALUATIONS = 20
EARLY = 0.1  # of the steps, where the weaker model for autoguidance is kept
SHOWN = 8


class KeepEarly(keras.callbacks.Callback):
    """Keep the model as it is after some steps."""

    def __init__(self, path: pathlib.Path, step: int):
        super().__init__()
        self.path, self.step, self.done = path, step, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.done += 1
        if self.done == self.step:
            self.model.synchronize()
            self.model.save(self.path)


def make(images: Any, steps: int, **changes: Any) -> ddim_keras.DiffusionModel:
    """Return a compiled model of the recipe that has seen nothing."""
    keras.utils.set_random_seed(0)
    model = ddim_keras.DiffusionModel.from_preset(
        presets.RECOMMENDED,
        load_weights=False,
        dtype=backend.fastest_precision(),
        seed=0,
        **changes,
    )
    model.normalizer.adapt(images)
    model.compile(**presets.training(presets.RECOMMENDED).compile_arguments(steps))
    return model


def seconds_per_step(images: Any, **changes: Any) -> float:
    """Time single steps; the median of the quicker half, as whatever else runs only slows them."""
    times = quality.StepTimes()
    model = make(images, 1000, **changes)
    steps = quality.TIMED_STEPS
    model.fit(images.repeat(), epochs=1, steps_per_epoch=steps, verbose=0, callbacks=[times])
    return float(np.median(sorted(np.diff(times.ends))[: steps // 2]))


def train(name: str, images: Any, steps: int, out: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Train unless it is done already; return where the model is."""
    path = out / f"{name}_{steps}steps.keras"
    if path.exists():
        return path
    model = make(images, steps, **changes)
    early = KeepEarly(out / f"{name}_early_{steps}steps.keras", max(1, int(EARLY * steps)))
    start = time.perf_counter()
    model.fit(images.repeat(), epochs=1, steps_per_epoch=steps, verbose=0, callbacks=[early])
    minutes = (time.perf_counter() - start) / 60.0
    print(f"trained {name}: {steps} steps in {minutes:.1f} min", flush=True)
    model.save(path)
    return path


def scores_of(
    model: ddim_keras.DiffusionModel, test: np.ndarray, num_images: int, **sampling: Any
) -> dict[str, float]:
    """Return FID, precision and recall of a way to sample, and with labels their agreement."""
    asked = [] if sampling.get("labels") is None else ["agreement"]
    options = {"network_evaluations": EVALUATIONS, "seed": 1, **sampling}
    wanted = ["fid", "precision_recall", *asked]
    found = model.score(test, num_images, metrics=wanted, extractor="fashion_mnist", **options)
    return {name: round(float(value), 4) for name, value in found.items()}


def without_labels(dataset: Any) -> Any:
    return dataset.map(lambda images, labels: images)


def labels_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with and without labels, and score both."""
    batch_size = presets.training(presets.RECOMMENDED).batch_size
    images, test = ddim_keras.data.load_dataset(
        "fashion_mnist", 32, batch_size, fit="pad", labels=True, data_dir=arguments.data_dir
    )
    plain = without_labels(images)
    names = images.class_names
    each = {
        "without labels": seconds_per_step(plain),
        "with labels": seconds_per_step(images, class_names=names),
    }
    result: dict[str, Any] = {"milliseconds per step": {k: 1e3 * v for k, v in each.items()}}
    steps = arguments.steps or int(60.0 * arguments.minutes / max(each.values()))
    result["steps"] = steps
    unlabelled = train("plain", plain, steps, arguments.out)
    weighting = arguments.loss_weighting
    changes = {} if weighting is None else {"loss_weighting": weighting}
    name = "_".join(["labels", *changes.values()])
    labelled = train(name, images, steps, arguments.out, class_names=names, **changes)
    early = keras.models.load_model(arguments.out / f"{name}_early_{steps}steps.keras")
    result["loss weighting"] = weighting or "the recipe's"
    real = np.concatenate(list(without_labels(test).as_numpy_iterator()))
    number = arguments.num_images
    figures = {"without labels": scores_of(keras.models.load_model(unlabelled), real, number)}
    model = keras.models.load_model(labelled)
    figures["with labels, none asked for"] = scores_of(model, real, number)
    labels = np.arange(number) % len(names)
    ways = {
        "1": None,
        **{str(weight): ClassifierFreeGuidance(weight) for weight in (1.5, 2.0, 4.0)},
        "2.0 below 0.9": ClassifierFreeGuidance(2.0, (0.0, 0.9)),
        "2.0 above 0.5": ClassifierFreeGuidance(2.0, (0.5, 1.0)),
        **{f"auto {weight}": Autoguidance(early, weight) for weight in (1.5, 2.0, 4.0)},
    }
    shown = np.repeat(np.arange(len(names)), SHOWN)
    for way, guidance in ways.items():
        told = {"labels": labels, "guidance": guidance}
        figures[f"guidance {way}"] = scores_of(model, real, number, **told)
        print(way, figures[f"guidance {way}"], flush=True)
        drawn = model.generate(
            len(shown), labels=shown, guidance=guidance, seed=0, batch_size=len(shown), verbose=0
        )
        rows = drawn.reshape(len(names), SHOWN, *model.image_shape)
        plotting.save_figure(
            arguments.out / f"{name}_guidance_{way.replace(' ', '_')}.png",
            plotting.plot_rows(rows, names),
        )
    result["scores"] = figures
    return result


def super_resolution_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on pairs, and compare with bicubic interpolation."""
    batch_size = presets.training(presets.RECOMMENDED).batch_size
    train_images, held_out = (
        pairs.super_resolution(part, 4)
        for part in ddim_keras.data.load_dataset("embedded", 32, batch_size, fit="pad")
    )
    shape = {"condition_shape": (8, 8, 1)}
    seconds = seconds_per_step(train_images, **shape)
    steps = arguments.steps or int(60.0 * arguments.minutes / seconds)
    path = train("super_resolution", train_images, steps, arguments.out, **shape)
    model = keras.models.load_model(path)
    parts = list(held_out.as_numpy_iterator())
    large, small = (np.concatenate([part[name] for part in parts]) for name in parts[0])
    made = {
        "bicubic": np.asarray(tf.image.resize(small, (32, 32), "bicubic")).clip(0.0, 1.0),
        "ours": model.generate(len(large), EVALUATIONS, condition=small, seed=0),
    }
    draws = [model.generate(len(large), EVALUATIONS, condition=small, seed=s) for s in range(1, 8)]
    made["ours, mean of 8"] = np.mean([made["ours"], *draws], axis=0)
    blocks = (-1, 8, 4, 8, 4, 1)
    figures = {}
    for name, images in made.items():
        again = images.reshape(blocks).mean(axis=(2, 4))
        figures[name] = {
            "psnr": float(np.mean(tf.image.psnr(large, images, 1.0))),
            "ssim": float(np.mean(tf.image.ssim(large, images, 1.0))),
            "fid": float(score([images], large, ["fid"], "fashion_mnist")["fid"]),
            "error of the small image": float(np.sqrt(np.mean((again - small) ** 2))),
        }
        print(name, figures[name], flush=True)
    columns = np.arange(0, len(large), len(large) // 12)[:12]
    enlarged = small.repeat(4, axis=1).repeat(4, axis=2)
    rows = [enlarged, made["bicubic"], made["ours"], draws[0], large]
    names = ["8 x 8", "bicubic", "ours", "ours, another seed", "the image"]
    picture = plotting.plot_rows(np.stack([row[columns] for row in rows]), names)
    plotting.save_figure(arguments.out / "super_resolution.png", picture)
    return {"steps": steps, "milliseconds per step": 1e3 * seconds, "scores": figures}


PARTS = {"labels": labels_part, "super_resolution": super_resolution_part}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training")
    parser.add_argument("--steps", type=int, help="of each training, instead of minutes")
    parser.add_argument(
        "--loss-weighting", help="of the model with labels, instead of the recipe's"
    )
    parser.add_argument("--num-images", type=int, default=5000, help="generated for each score")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/conditions"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    place = arguments.out / "results.json"
    results = json.loads(place.read_text()) if place.is_file() else {}
    for part in arguments.parts:
        results[part] = PARTS[part](arguments)
        place.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
