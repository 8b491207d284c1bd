"""Measure every sampler: its order, its error against a known solution, its time, and its images of
the model that ships.

    python benchmarks/samplers.py [--parts oracle model few] [--images 500]
        [--docs docs/samplers.md]
    python benchmarks/samplers.py --parts few --model runs/clothes [--brief] [--guidance 3]
        [--data-dir ...]

Replaces the tables in docs/samplers.md, between its comments, and the picture beside the first. Of
another model, a preset, run or file, it prints the table of few evaluations: against CIFAR-10's
training images if it draws colours, with each label in turn if it has labels.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from matplotlib.figure import Figure

import ddim_keras
from ddim_keras import plotting
from ddim_keras.metrics.extractors import get_extractor
from ddim_keras.metrics.fid import frechet_distance
from ddim_keras.metrics.manifolds import PrecisionRecall
from ddim_keras.runs.finding import load
from ddim_keras.samplers import (
    DDIM,
    DDPM,
    MEMORY,
    AdamsBashforth,
    DPMSolverMultistep,
    DPMSolverSinglestep,
    Heun,
    Levels,
    Sampler,
    UniPC,
)
from ddim_keras.schedules import LinearBetaSchedule, LinearLogSNRSchedule
from ddim_keras.spacings import diffusion_times, levels_of
from ddim_keras.support import backend, files

PRESET = "fashion_mnist_32"
BUDGETS = (5, 10, 20, 50)
FEW = (1, 2, 3, 4)
PARTS = ("oracle", "model", "few")
STEPS = (8, 16, 32, 64, 128)
DETERMINISTIC = (
    DDIM(),
    Heun(),
    DPMSolverSinglestep(),
    DPMSolverMultistep(),
    AdamsBashforth(2),
    AdamsBashforth(3),
    AdamsBashforth(4),
    UniPC(1),
    UniPC(2),
    UniPC(3),
)
STOCHASTIC = (DDIM(0.5), DDPM(), DDPM("large"), DPMSolverMultistep(stochastic=True))
CENTRE, DEVIATION = 0.8, 0.3


def mixture_denoiser(
    noisy: np.ndarray, noise_rate: float, signal_rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """The perfect denoiser for pixels that are N(-0.8, 0.3^2) or N(0.8, 0.3^2), equally often."""
    variance = signal_rate**2 * DEVIATION**2 + noise_rate**2
    sign = np.tanh(signal_rate * CENTRE * noisy / variance)
    pred_images = (sign * CENTRE * noise_rate**2 + signal_rate * DEVIATION**2 * noisy) / variance
    return (noisy - signal_rate * pred_images) / noise_rate, pred_images


def run(sampler: Sampler, levels: Levels, noisy: np.ndarray) -> np.ndarray:
    """A walk in float64, without the compiled loop."""
    memory = [np.zeros_like(noisy)] * MEMORY
    for index in range(len(levels.signal_rates) - 1):
        for evaluation in sampler.step(index, levels):
            pred_noises, pred_images = mixture_denoiser(
                noisy, evaluation.noise_rate, evaluation.signal_rate
            )
            noisy = evaluation.image * pred_images + evaluation.noise * pred_noises
            noisy = noisy + sum(
                weight * earlier for weight, earlier in zip(evaluation.remembered, memory)
            )
            memory = [pred_images if sampler.remembers == "images" else pred_noises, *memory[:-1]]
    return noisy


def order_of(sampler: Sampler, noise: np.ndarray, exact: np.ndarray) -> float:
    """The slope of the error over S = 8 to 128 even steps in log-SNR."""
    schedule = LinearLogSNRSchedule()
    levels = (Levels(*schedule(np.arange(steps, -1, -1) / steps)) for steps in STEPS)
    errors = [np.abs(run(sampler, each, noise) - exact).mean() for each in levels]
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def errors_of(
    sampler: Sampler, noise: np.ndarray, exact: np.ndarray, budgets: tuple[int, ...]
) -> list[float]:
    """Root mean squared errors of walks to the clean image, over DDPM's schedule with trailing
    steps.
    """
    schedule = LinearBetaSchedule()
    results = []
    for budget in budgets:
        levels = levels_of(
            schedule, diffusion_times(sampler.steps_for(budget), "trailing", schedule)
        )
        results.append(float(np.sqrt(np.square(run(sampler, levels, noise) - exact).mean())))
    return results


class Judge:
    """Distances from the real images, whose features are found once."""

    def __init__(self, real: Any, extractor: str = "fashion_mnist"):
        self.extractor = get_extractor(extractor)
        self.real = np.concatenate([self.features(np.asarray(batch)) for batch in real])

    def features(self, images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + 250] for start in range(0, len(images), 250)]
        return np.concatenate([np.asarray(self.extractor.features(part)) for part in parts])

    def distance(self, images: np.ndarray) -> float:
        return self.figures(images, others=False)["fid"]

    def figures(self, images: np.ndarray, others: bool = True) -> dict[str, float]:
        """FID, and with `others` precision and recall."""
        found = self.features(images)
        moments = [
            (features.mean(axis=0), np.cov(features.astype("float64").T))
            for features in (self.real, found)
        ]
        result = {"fid": float(frechet_distance(*moments[0], *moments[1]))}
        if others:
            metric = PrecisionRecall(extractor=self.extractor)
            metric.update_features(real=self.real, generated=found)
            result |= metric.result()
        return result


def milliseconds_per_evaluation(samplers: tuple[Sampler, ...], turns: int = 5) -> dict[str, float]:
    """Medians, in turns, of a network evaluation within `generate`: the example's network, 16
    images of 32 x 32 x 1.
    """
    model = ddim_keras.DiffusionModel(32, channels=1, seed=0)
    times: dict[str, list[float]] = {repr(sampler): [] for sampler in samplers}
    model.generate(16, 2, seed=0)
    for _ in range(turns):
        for sampler in samplers:
            start = time.perf_counter()
            model.generate(16, network_evaluations=20, sampler=sampler, seed=0)
            evaluations = sampler.evaluations(sampler.steps_for(20))
            times[repr(sampler)].append(1000 * (time.perf_counter() - start) / evaluations)
    return {name: statistics.median(values) for name, values in times.items()}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def replace_table(path: pathlib.Path, name: str, table: str) -> None:
    """Put a table between the comments of its name."""
    before, rest = path.read_text().split(f"<!-- {name} -->\n")
    _, after = rest.split(f"<!-- end of {name} -->\n")
    with files.written_beside(path) as temporary:
        temporary.write_text(f"{before}<!-- {name} -->\n{table}<!-- end of {name} -->\n{after}")


def oracle_part(picture: pathlib.Path) -> str:
    noise = np.random.default_rng(0).normal(size=500)
    even = LinearLogSNRSchedule()
    ode = run(UniPC(3), Levels(*even(np.arange(4000, -1, -1) / 4000)), noise)
    schedule = LinearBetaSchedule()
    exact = run(UniPC(3), levels_of(schedule, diffusion_times(1000, "linear", schedule)), noise)
    times = milliseconds_per_evaluation((*DETERMINISTIC, *STOCHASTIC))
    rows = []
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    curve = tuple(sorted({*BUDGETS, 7, 14, 30, 70, 100}))
    for sampler in (*DETERMINISTIC, *STOCHASTIC):
        row = [f"`{sampler!r}`", str(sampler.order)]
        if sampler.is_stochastic:
            row += ["random", *["" for _ in BUDGETS]]
        else:
            row += [f"{order_of(sampler, noise, ode):.2f}"]
            row += [f"{error:.4f}" for error in errors_of(sampler, noise, exact, BUDGETS)]
            axes.loglog(
                curve, errors_of(sampler, noise, exact, curve), marker=".", label=repr(sampler)
            )
        rows.append([*row, f"{times[repr(sampler)]:.1f}"])
        print(" ".join(rows[-1]), flush=True)
    axes.set(
        xlabel="network evaluations", ylabel="error of the image (standard deviations of a pixel)"
    )
    axes.legend(fontsize=7)
    plotting.save_figure(picture, figure)
    head = [
        "sampler",
        "order",
        "measured",
        *[f"error at {budget}" for budget in BUDGETS],
        "ms an evaluation",
    ]
    return markdown(head, rows)


def model_part(number: int) -> str:
    """FID of the shipped model's images against the embedded images, which are some of those that
    it was trained on.
    """
    model = ddim_keras.DiffusionModel.from_preset(PRESET, dtype=backend.fastest_precision())
    train, _ = ddim_keras.data.load_dataset("embedded", model.image_shape[0], 500, fit="pad")
    rows = []

    def distance(**options: Any) -> float:
        return model.score(
            train, number, metrics=["fid"], extractor="fashion_mnist", seed=0, **options
        )["fid"]

    def score(label: str, spacing: str, **options: Any) -> None:
        found = (
            distance(network_evaluations=budget, spacing=spacing, **options)
            for budget in BUDGETS[:3]
        )
        rows.append([label, spacing, *(f"{value:.2f}" for value in found)])
        print(" ".join(rows[-1]), flush=True)

    for spacing in ("linear", "karras"):
        for sampler in (*DETERMINISTIC, *STOCHASTIC):
            score(f"`{sampler!r}`", spacing, sampler=sampler)
    for spacing in ("quadratic", "log_snr"):
        for sampler in (DDIM(), UniPC()):
            score(f"`{sampler!r}`", spacing, sampler=sampler)
    for clipping in ("static", "dynamic"):
        score(f"`{UniPC()!r}`, {clipping} clipping", "karras", sampler=UniPC(), clipping=clipping)
    far = distance(diffusion_steps=200, sampler="ddim")
    rows.append(["`DDIM()`", "linear", "", "", f"{far:.2f} at 200"])
    return markdown(
        ["sampler", "spacing", *[f"{budget} evaluations" for budget in BUDGETS[:3]]], rows
    )


def judged(model: ddim_keras.DiffusionModel, data_dir: str | None) -> Judge:
    """The judge of a model of clothes, or of colour photos."""
    size = model.image_shape[0]
    if model.image_shape[-1] == 3:
        train, _ = ddim_keras.data.load_dataset("cifar10", size, 500, data_dir=data_dir)
        return Judge(train.take(20), "cifar10")
    return Judge(ddim_keras.data.load_dataset("embedded", size, 500, fit="pad")[0])


def few_part(
    name: str, number: int, guidance: float | None, data_dir: str | None, brief: bool
) -> str:
    """As `model_part`, of one to four evaluations. Walks whose plans are equal, as many are where
    there is nothing to remember yet, are walked once.
    """
    model = load(name)
    model.samplers = []  # what was fitted is not asked about here
    judge = judged(model, data_dir)
    told: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    if model.num_classes is not None:
        told["labels"] = np.arange(number) % model.num_classes
    some = (DDIM(), UniPC(2))
    every = (*DETERMINISTIC, AdamsBashforth(4, warm_up=False, even_steps=True), *STOCHASTIC)
    rows = []
    known: dict[bytes, str] = {}
    for spacing in ("linear", "karras", "log_snr"):
        for sampler in some if brief else every if spacing != "log_snr" else (*some, UniPC(3)):
            row = [f"`{sampler!r}`", spacing]
            for budget in FEW:
                if sampler.evaluations(1) > budget:
                    row.append("")
                    continue
                steps = sampler.steps_for(budget)
                plan = plan_of(model, sampler, steps, spacing)
                if plan not in known:
                    options: dict[str, Any] = {"sampler": sampler, "spacing": spacing}
                    images = model.generate(
                        number, steps, seed=0, batch_size=125, verbose=0, **options, **told
                    )
                    known[plan] = f"{judge.distance(images):.2f}"
                row.append(known[plan])
            rows.append(row)
            print(" ".join(row), flush=True)
    return markdown(["sampler", "spacing", *map(str, FEW)], rows)


def plan_of(model: ddim_keras.DiffusionModel, sampler: Sampler, steps: int, spacing: str) -> bytes:
    """What tells one walk from another, to five digits."""
    table = model.engine.plan(sampler, steps, spacing, None)[1].table[: sampler.evaluations(steps)]
    if not table[:, 6 : 6 + MEMORY].any():
        table = table[:, :6]  # what is remembered is not used
    return bytes((np.round(table, 5) + 0.0).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--images", type=int, default=500, help="images for each distance (default: %(default)s)"
    )
    parser.add_argument(
        "--docs",
        type=pathlib.Path,
        default=pathlib.Path("docs/samplers.md"),
        help="default: %(default)s",
    )
    parser.add_argument("--model", default=PRESET, help="of the part few (default: %(default)s)")
    parser.add_argument("--brief", action="store_true", help="of it DDIM and UniPC alone")
    parser.add_argument("--guidance", type=float, help="of a model with labels")
    parser.add_argument("--data-dir", help="where TFDS keeps CIFAR-10")
    arguments = parser.parse_args()
    if "oracle" not in arguments.parts:  # whose times are those of whole batches
        ddim_keras.divide_batches_among_cores()
    if "oracle" in arguments.parts:
        replace_table(
            arguments.docs,
            "oracle",
            oracle_part(arguments.docs.parent / "images" / "sampler_error.png"),
        )
    if "model" in arguments.parts:
        replace_table(arguments.docs, "model", model_part(arguments.images))
    if "few" in arguments.parts:
        table = few_part(
            arguments.model,
            arguments.images,
            arguments.guidance,
            arguments.data_dir,
            arguments.brief,
        )
        if arguments.model == PRESET:
            replace_table(arguments.docs, "few", table)
        else:
            print(table)


if __name__ == "__main__":
    main()
