"""Measure images of one to five network evaluations of the model that ships, by every way there is.

    python benchmarks/few_steps.py [--images 1000] [--evaluations 1 2 3 4 5] [--fit 2 3 4]
        [--students fashion_mnist_32_few_steps] [--docs docs/few_steps.md]

Prints FID, precision and recall by the package's own classifier, against the 10,000 embedded
training images; with --docs it replaces the table there. --fit also fits samplers for those numbers
and says how long it took; --students are models that were distilled, by name or file.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from samplers import Judge, markdown, replace_table

import ddim_keras
from ddim_keras.runs.finding import load
from ddim_keras.support import backend

PRESET = "fashion_mnist_32"
SEED = 5
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "`DDIM()`, linear": {"sampler": "ddim"},
    "`DDIM()`, karras": {"sampler": "ddim", "spacing": "karras"},
    "`UniPC(2)`, linear": {"sampler": "unipc"},
    "`UniPC(2)`, karras": {"sampler": "unipc", "spacing": "karras"},
    "`UniPC(3)`, karras": {"sampler": ddim_keras.samplers.UniPC(3), "spacing": "karras"},
    "`DPMSolverMultistep()`, karras": {"sampler": "dpm_solver_2m", "spacing": "karras"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--fit", type=int, nargs="*", default=[])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--students", nargs="*", default=[], help="models of few steps")
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

    def measured(of: ddim_keras.DiffusionModel = model, **options: Any) -> str:
        images = of.generate(arguments.images, seed=SEED, batch_size=125, verbose=0, **options)
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
    for source in arguments.students:
        student = load(source)
        rows.append([f"{source}, as it comes: {measured(student)}"])
        print(rows[-1][0], flush=True)
    if arguments.reference:
        rows.append([f"the default in {arguments.reference}: {far}"])
    table = markdown(["sampler", *map(str, arguments.evaluations)], rows)
    print(table)
    if arguments.docs is not None:
        replace_table(arguments.docs, "few", table)


if __name__ == "__main__":
    main()
