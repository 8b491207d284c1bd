"""The figures and pictures in the card of a preset that was trained by label.

    python experiments/model_card.py --data-dir TFDS_DATA_DIR [--model cifar10_32] [--data cifar10]

Scores images of each number of network evaluations, with and without labels, and of each guidance,
against the data set's test images, by the package's own classifier, and prints the tables of the
card: one of all, one by class. *Agreement* is how often that classifier sees the label that was
asked for. Draws a picture by label, and one by guidance, into --out.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from ddim_keras import DiffusionModel, data, metrics, plotting
from ddim_keras.runs.finding import load

EVALUATIONS = (5, 20)
GUIDANCES = (1.0, 1.5, 2.0, 3.0)
STEPS = 20  # of the rows with guidance, each of which asks the network twice
COLUMNS = 10
METRICS = ("fid", "kid", "precision_recall")


def row(way: str, steps: str, found: dict[str, Any], agreement: float | None = None) -> str:
    figures = f"{found['fid']:.2f} | {found['kid']:.4f} | {found['precision']:.2f} | "
    seen = "" if agreement is None else f"{100 * agreement:.0f} %"
    return f"| {way} | {steps} | {figures}{found['recall']:.2f} | {seen} |"


def figures(model: DiffusionModel, real: Any, features: str, number: int) -> None:
    """Print the tables."""
    same = {"extractor": metrics.get_extractor(features), "seed": 1}
    labels = np.arange(number) % len(real.class_names)
    print("| labels | steps | FID | KID | precision | recall | agreement |")
    print("|---|---|---|---|---|---|---|")
    for steps in EVALUATIONS:
        found = model.score(real, number, steps, metrics=METRICS, **same)
        print(row("none asked for", str(steps), found), flush=True)
    by_class, own = {}, own_guidance(model)
    for guidance in GUIDANCES:
        told = {"labels": labels, "guidance": guidance, "per_class": True}
        wanted = [*METRICS, "agreement"]
        found = model.score(real, number, STEPS, metrics=wanted, **told, **same)
        way = f"each class in turn, guidance {guidance:g}"
        print(row(way, str(STEPS), found, found["agreement"]), flush=True)
        by_class[guidance] = found["per_class"]
    print("\n| class |", " | ".join(f"agreement at {guidance:g}" for guidance in by_class), end="")
    print(" | precision | recall | coverage |\n|---|" + "---|" * (len(by_class) + 3))
    for name in real.class_names:
        agreements = [f"{100 * each[name]['agreement']:.0f} %" for each in by_class.values()]
        scores = by_class[own][name]
        others = [f"{scores[what]:.2f}" for what in ("precision", "recall", "coverage")]
        print(f"| {name} | " + " | ".join(agreements + others) + " |")
    print(f"\nPrecision, recall and coverage by class: at guidance {own:g}.")


def own_guidance(model: DiffusionModel) -> float:
    """The weight of the picture by label, and of the figures by class."""
    return model.sampling_defaults.guidance or 1.0


def pictures(model: DiffusionModel, names: tuple[str, ...], stem: pathlib.Path) -> None:
    """Draw a row a class, and a row a guidance."""
    shown = np.repeat(np.arange(len(names)), COLUMNS)
    drawn = model.generate(len(shown), 50, labels=shown, seed=0, verbose=0)
    rows = drawn.reshape(len(names), COLUMNS, *model.image_shape)
    plotting.save_figure(stem.with_name(f"{stem.name}_labels.png"), plotting.plot_rows(rows, names))
    labels = np.arange(2 * len(names)) % len(names)
    rows = [
        model.generate(len(labels), 50, labels=labels, guidance=guidance, seed=3, verbose=0)
        for guidance in GUIDANCES
    ]
    picture = plotting.plot_rows(np.stack(rows), [f"guidance {each:g}" for each in GUIDANCES])
    plotting.save_figure(stem.with_name(f"{stem.name}_guidance.png"), picture)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--model", default="cifar10_32", help="a preset's name or folder, a .keras file, or a run"
    )
    parser.add_argument("--data", default="cifar10", help="the name of a TFDS data set")
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument("--features", default="cifar10", help="whose classifier's")
    parser.add_argument("--num-images", type=int, default=2000, help="generated for each row")
    parser.add_argument(
        "--parts", nargs="+", choices=["figures", "pictures"], default=["figures", "pictures"]
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/images"))
    arguments = parser.parse_args()
    model = load(arguments.model)
    if "pictures" in arguments.parts:
        pictures(model, model.class_names, arguments.out / pathlib.Path(arguments.model).stem)
    if "figures" in arguments.parts:
        size = model.image_shape[:2]
        _, real = data.load_dataset(
            arguments.data, size, 100, labels=True, data_dir=arguments.data_dir
        )
        figures(model, real, arguments.features, arguments.num_images)


if __name__ == "__main__":
    main()
