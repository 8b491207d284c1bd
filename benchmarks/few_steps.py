"""Measure images of one to five network evaluations of the model that ships, by every way there is.

    python benchmarks/few_steps.py [--images 1000] [--evaluations 1 2 3 4 5] [--fit 3 4]
        [--students fashion_mnist_32_few_steps] [--docs docs/few_steps.md]

Prints FID, precision and recall by the package's own classifier, against the 10,000 embedded
training images; with --docs it replaces the table there. --fit also fits samplers for those numbers
of evaluations, in place of those that ship, and --spacing levels for one to five; both say what
that took. --students are models that were distilled, by name or file.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from samplers import Judge, markdown, replace_table

import ddim_keras
from ddim_keras.runs.finding import load
from ddim_keras.support import backend

PRESET = "fashion_mnist_32"
SEED = 5
DEFAULT, FITTED, SPACING = "default, nothing fitted", "fitted sampler", "fitted spacing"
WAYS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "`DDIM()`, linear": {"sampler": "ddim"},
    "`DDIM()`, karras": {"sampler": "ddim", "spacing": "karras"},
    "`UniPC(2)`, linear": {"sampler": "unipc"},
    "`UniPC(2)`, karras": {"sampler": "unipc", "spacing": "karras"},
    "`UniPC(3)`, karras": {"sampler": ddim_keras.samplers.UniPC(3), "spacing": "karras"},
    "`DPMSolverMultistep()`, karras": {"sampler": "dpm_solver_2m", "spacing": "karras"},
}
OF_SPACING = {"`DDIM()`": "ddim", "`UniPC(2)`": "unipc"}


def timed(name: str, find: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what `find` does, and say how long it took, and of how much of the cores."""
    start, used = time.perf_counter(), time.process_time()
    found = find(*arguments, **options)
    passed, used = time.perf_counter() - start, time.process_time() - used
    print(f"{name}: {passed:.0f} s, of one core {used:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--fit", type=int, nargs="*", default=[])
    parser.add_argument("--walks", type=int, default=384, help="long walks of a fit")
    parser.add_argument("--epochs", type=int, default=6, help="of a fit")
    parser.add_argument(
        "--gaussian-start", action="store_true", help="fits may start below the noise"
    )
    parser.add_argument("--spacing", action="store_true", help="fit levels as well")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--students", nargs="*", default=[], help="models of few steps")
    parser.add_argument("--reference", type=int, default=50, help="evaluations of the long walk")
    parser.add_argument("--docs", type=pathlib.Path, default=None)
    arguments = parser.parse_args()
    ddim_keras.divide_batches_among_cores()
    model = ddim_keras.DiffusionModel.from_preset(PRESET, dtype=backend.fastest_precision())
    train, _ = ddim_keras.data.load_dataset("embedded", model.image_shape[0], 500, fit="pad")
    fits = dict(num_images=arguments.walks, epochs=arguments.epochs, verbose=0)
    if arguments.gaussian_start:
        fits["images"] = np.concatenate([np.asarray(batch) for batch in train])
    for budget in arguments.fit:
        fitted = timed(f"fit_sampler({budget})", model.fit_sampler, budget, **fits)
        print(fitted.get_config(), flush=True)
    samplers, model.sampling_defaults = model.samplers, ddim_keras.SamplingDefaults()
    judge = Judge(train)
    head = ["way", *map(str, arguments.evaluations)]
    rows: list[list[str]] = []

    def measured(of: ddim_keras.DiffusionModel = model, **options: Any) -> str:
        images = of.generate(arguments.images, seed=SEED, batch_size=125, verbose=0, **options)
        found = judge.figures(images)
        return f"{found['fid']:.2f} ({found['precision']:.2f}, {found['recall']:.2f})"

    def measure(name: str, of: ddim_keras.DiffusionModel = model, **options: Any) -> None:
        rows.append([name])
        for budget in arguments.evaluations:
            given = {**options, "network_evaluations": budget}
            if name == FITTED:
                own = {each.diffusion_steps: each for each in samplers}
                if budget not in own:
                    rows[-1].append("")
                    continue
                given["sampler"] = own[budget]
            rows[-1].append(measured(of, **given))
            print(name, budget, rows[-1][-1], flush=True)

    for name in arguments.ways:
        measure(name, **WAYS[name])
    if arguments.spacing:
        spacing = timed("fit_spacing", model.fit_spacing, 5, verbose=0)
        for name, sampler in OF_SPACING.items():
            measure(f"{SPACING}, {name}", sampler=sampler, spacing=spacing)
    measure(FITTED)
    for source in arguments.students:
        measure(f"distilled: `{pathlib.Path(source).stem}`", load(source))
    if arguments.reference:
        head.append(str(arguments.reference))
        far = measured(network_evaluations=arguments.reference)
        rows = [[*row, far if row[0] == DEFAULT else ""] for row in rows]
    table = markdown(head, rows)
    print(table)
    if arguments.docs is not None:
        replace_table(arguments.docs, "few", table)


if __name__ == "__main__":
    main()
