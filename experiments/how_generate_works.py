"""Draw the picture of docs/how_generate_works.md: one walk of the model that ships, with its real
numbers.

    python experiments/how_generate_works.py

Also prints the table and the levels, which the page quotes.
"""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from matplotlib.figure import Figure

import ddim_keras
from ddim_keras import plotting
from ddim_keras.diffusion.spacings import diffusion_times, levels_of
from ddim_keras.samplers import Plan, UniPC, plan
from ddim_keras.samplers.base import MEMORY

PICTURE = (
    pathlib.Path(__file__).resolve().parent.parent / "docs" / "images" / "how_generate_works.png"
)
PRESET = "fashion_mnist_32"
STEPS, SEED = 4, 3
COLUMNS = [
    "noise\nlevel",
    "noise\nrate",
    "signal\nrate",
    "x pred_\nimage",
    "x pred_\nnoise",
    "fresh\nnoise",
]
COLUMNS += [f"x image\n{back} ago" for back in range(1, MEMORY + 1)]
BLUE, ORANGE, GREY = "#3465a4", "#c4500c", "#666666"


def draw_times_and_levels(axes, schedule, times, levels) -> None:
    """The rates over time, and the levels of the walk on them."""
    every = np.linspace(0.0, 1.0, 200)
    for rates, own, name, colour in zip(
        schedule(every), levels, ("signal_rates  a", "noise_rates  b"), (BLUE, ORANGE), strict=True
    ):
        axes.plot(every, rates, color=colour, label=name)
        axes.plot(times[:-1], own[:-1], "o", color=colour)
        axes.plot(times[-1:], own[-1:], "o", color=colour, fillstyle="none")
    for index, time in enumerate(times):
        axes.axvline(time, color=GREY, linewidth=0.6, linestyle=":")
        label = "then the image" if index == STEPS else f"{time:.3f}"
        axes.annotate(
            label, (time, 1.08 + 0.09 * (index % 2 == 0)), ha="center", fontsize=8, color=GREY
        )
    axes.set(xlim=(1.05, -0.08), ylim=(-0.05, 1.27), xlabel="diffusion time: from noise to image")
    axes.legend(loc="center left", fontsize=8)


def draw_table(axes, planned: Plan) -> None:
    """The rows of the plan that the loop reads; the last two columns, which say what is remembered,
    are left out.
    """
    axes.axis("off")
    cells = [
        [f"{value:.3f}" if value else "0" for value in row[: 6 + MEMORY]]
        for row in planned.table[:STEPS]
    ]
    names = [f"evaluation {index}" for index in range(STEPS)]
    table = axes.table(cells, colLabels=COLUMNS, rowLabels=names, loc="center", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1.0, 1.45)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.3)
        if row == 0:
            cell.set_height(cell.get_height() * 1.5)
        elif column >= 3:
            cell.set_facecolor("#eef3fa" if column < 6 else "#fdf3ea")


def draw_walk(figure, model, trajectory) -> None:
    """The noisy images at each level, and below them what the network predicts there."""
    noisy = keras.ops.convert_to_numpy(model.denormalize(trajectory.noisy_images[:, 0]))
    grid = figure.subplots(2, STEPS + 1)
    for index in range(STEPS + 1):
        for row, images in enumerate((noisy, trajectory.pred_images[:, 0])):
            axes = grid[row, index]
            axes.axis("off")
            if index < len(images):
                axes.imshow(images[index, ..., 0], cmap="gray", vmin=0.0, vmax=1.0)
        grid[0, index].set_title(
            "the image" if index == STEPS else f"t = {trajectory.diffusion_times[index]:.3f}",
            fontsize=8,
        )
    grid[0, 0].text(-6, 16, "noisy\nimages", fontsize=8, ha="right", va="center")
    grid[1, 0].text(-6, 16, "pred_\nimages", fontsize=8, ha="right", va="center")


def main() -> None:
    model = ddim_keras.DiffusionModel.from_preset(PRESET)
    times = diffusion_times(STEPS, "karras", model.schedule)
    levels = levels_of(model.schedule, times)
    planned = plan(UniPC(), levels, model.schedule.conditions)
    _, trajectory = model.generate(
        1, STEPS, sampler="unipc", spacing="karras", seed=SEED, return_trajectory=True, verbose=0
    )
    np.testing.assert_allclose(trajectory.diffusion_times, times)

    figure = Figure(figsize=(8, 9.2), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[3.0, 2.1, 3.4])
    top.suptitle("1, 2   diffusion_times, and levels_of them", fontsize=10, x=0.02, ha="left")
    draw_times_and_levels(top.subplots(), model.schedule, times, levels)
    middle.suptitle(
        "3, 4   sampler.step: an Evaluation a row of the plan's table",
        fontsize=10,
        x=0.02,
        ha="left",
    )
    draw_table(middle.subplots(), planned)
    bottom.suptitle(
        "5   walk: the loop reads a row, asks the network, adds up images",
        fontsize=10,
        x=0.02,
        ha="left",
    )
    draw_walk(bottom, model, trajectory)
    plotting.save_figure(PICTURE, figure)

    np.set_printoptions(precision=4, suppress=True, linewidth=120)
    print("times", times)
    print("signal_rates", levels.signal_rates)
    print("noise_rates", levels.noise_rates)
    print(planned.table[: STEPS + 1])
    print("ends", planned.ends)
    for corrector in (False, True):
        weights = [UniPC()._weights(levels, index, corrector) for index in range(STEPS)]
        print("corrector" if corrector else "predictor", np.array(weights), sep="\n")


if __name__ == "__main__":
    main()
