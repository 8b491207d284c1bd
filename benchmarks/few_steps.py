"""Measure images of one to five network evaluations of the model that ships, by every way there is.

    python benchmarks/few_steps.py [--images 2000] [--evaluations 1 2 3 4 5] [--fit 2 3 4]
        [--docs docs/few_steps.md]

Prints FID, precision and recall by the package's own classifier, against the 10,000 embedded
training images; with --docs it replaces the table there. --fit also fits samplers for those numbers
and says how long it took.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from samplers import markdown, replace_table

import ddim_keras
from ddim_keras.metrics.extractors import get_extractor
from ddim_keras.metrics.fid import frechet_distance
from ddim_keras.metrics.manifolds import PrecisionRecall
from ddim_keras.support import backend

PRESET = "fashion_mnist_32"
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "`DDIM()`, linear": {"sampler": "ddim"},
    "`DDIM()`, karras": {"sampler": "ddim", "spacing": "karras"},
    "`UniPC(2)`, linear": {"sampler": "unipc"},
    "`UniPC(2)`, karras": {"sampler": "unipc", "spacing": "karras"},
    "`UniPC(3)`, karras": {"sampler": ddim_keras.samplers.UniPC(3), "spacing": "karras"},
    "`DPMSolverMultistep()`, karras": {"sampler": "dpm_solver_2m", "spacing": "karras"},
}


class Judge:
    """Distances from the real images, whose features are found once."""

    def __init__(self, real: Any):
        self.extractor = get_extractor("fashion_mnist")
        self.real = np.concatenate([self.features(np.asarray(batch)) for batch in real])

    def features(self, images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + 250] for start in range(0, len(images), 250)]
        return np.concatenate([np.asarray(self.extractor.features(part)) for part in parts])

    def figures(self, images: np.ndarray) -> dict[str, float]:
        found = self.features(images)
        moments = [
            (features.mean(axis=0), np.cov(features.astype("float64").T))
            for features in (self.real, found)
        ]
        metric = PrecisionRecall(extractor=self.extractor)
        metric.update_features(real=self.real, generated=found)
        return {"fid": frechet_distance(*moments[0], *moments[1]), **metric.result()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--fit", type=int, nargs="*", default=[])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--reference", type=int, default=50, help="evaluations of the long walk")
    parser.add_argument("--docs", type=pathlib.Path, default=None)
    arguments = parser.parse_args()
    ddim_keras.divide_batches_among_cores()
    model = ddim_keras.DiffusionModel.from_preset(PRESET, dtype=backend.fastest_precision())
    for budget in arguments.fit:
        start = time.perf_counter()
        fitted = model.fit_sampler(budget, verbose=0)
        print(f"fitted {budget}: {time.perf_counter() - start:.0f} s, {fitted.errors}", flush=True)
    real, _ = ddim_keras.data.load_dataset("embedded", model.image_shape[0], 500, fit="pad")
    judge = Judge(real)

    def measured(**options: Any) -> str:
        images = model.generate(arguments.images, seed=12345, batch_size=125, verbose=0, **options)
        found = judge.figures(images)
        return f"{found['fid']:.2f} ({found['precision']:.2f}, {found['recall']:.2f})"

    rows = []
    if arguments.reference:
        far = measured(network_evaluations=arguments.reference)
        print("default in", arguments.reference, far, flush=True)
    for name in arguments.ways:
        rows.append([name])
        for budget in arguments.evaluations:
            rows[-1].append(measured(network_evaluations=budget, **WAYS[name]))
            print(name, budget, rows[-1][-1], flush=True)
    if arguments.reference:
        rows.append([f"the default in {arguments.reference}: {far}"])
    table = markdown(["sampler", *map(str, arguments.evaluations)], rows)
    print(table)
    if arguments.docs is not None:
        replace_table(arguments.docs, "few", table)


if __name__ == "__main__":
    main()
