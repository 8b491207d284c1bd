"""Pictures of what a model does. Grids are written pixel for pixel; charts are matplotlib figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ddim_keras import files

if TYPE_CHECKING:
    import matplotlib.figure

    from ddim_keras.model import DiffusionModel, Trajectory


def image_grid(images: Any, columns: int | None = None, padding: int = 1, scale: int = 1) -> np.ndarray:
    """Lay images out in rows.

    Args:
        images: (number, height, width, channels) in [0, 1]; channels 1, 3 or 4, any other count shows its first.
        columns: images per row; None for about a square.
        padding: white pixels around each image.
        scale: each image pixel becomes scale x scale.

    Returns:
        uint8 array (grid height, grid width, 3 or 4).
    """
    images = np.asarray(images, "float32")
    if images.ndim != 4 or not len(images):
        raise ValueError(f"expected at least one image, (number, height, width, channels), got shape {images.shape}")
    if images.shape[-1] not in (1, 3, 4):
        images = images[..., :1]
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    images = (np.clip(images, 0.0, 1.0) * 255.0).round().astype("uint8")
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    images = np.pad(
        images, ((0, rows * columns - len(images)), *((padding, padding),) * 2, (0, 0)), constant_values=255
    )
    _, height, width, channels = images.shape
    grid = images.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def save_images(path: str | os.PathLike, images: Any, columns: int | None = None, scale: int = 1) -> None:
    """Write images as one PNG, laid out by `image_grid`; whole or not at all."""
    import PIL.Image

    with files.written_beside(path) as temporary:
        PIL.Image.fromarray(image_grid(images, columns, scale=scale)).save(temporary, format="PNG")


def show_images(images: Any, columns: int | None = None, title: str | None = None) -> None:
    """Show images in a notebook or window, laid out by `image_grid`."""
    import matplotlib.pyplot as plt

    grid = image_grid(images, columns)
    figure, axes = plt.subplots(figsize=(grid.shape[1] / max(grid.shape) * 8, grid.shape[0] / max(grid.shape) * 8))
    axes.imshow(grid, interpolation="nearest")
    axes.axis("off")
    if title:
        axes.set_title(title)
    figure.tight_layout()
    plt.show()
    plt.close(figure)


def trajectory_images(model: DiffusionModel, trajectory: Trajectory, columns: int = 10) -> np.ndarray:
    """Arrange a walk for a grid: for each image a row of noisy images above a row of the images predicted in them.

    Args:
        model: the model that made the walk.
        trajectory: what `model.generate(..., return_trajectory=True)` gave.
        columns: how many of the steps to show, evenly chosen, both ends included.

    Returns:
        (2 * number * columns, height, width, channels) in [0, 1]; lay it out with the same `columns`.
    """
    steps = len(trajectory.pred_images)
    chosen = np.linspace(0, steps - 1, min(columns, steps)).round().astype(int)
    noisy = keras.ops.convert_to_numpy(model.denormalize(trajectory.noisy_images[:-1][chosen]))
    rows = np.stack([noisy, trajectory.pred_images[chosen]]).transpose(2, 0, 1, 3, 4, 5)
    return rows.reshape(-1, *rows.shape[3:])


def plot_history(history: Mapping[str, Sequence[float]]) -> matplotlib.figure.Figure:
    """Draw the losses of `model.fit(...).history` by epoch, training and validation in one colour each.

    Returns:
        The figure; it is not shown.
    """
    from matplotlib.figure import Figure

    names = [name for name in history if not name.startswith("val_") and "loss" in name]
    if not names:
        raise ValueError(f"no losses to draw: the history holds {list(history)}")
    figure = Figure(figsize=(4.5 * len(names), 3.2), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names):
        epochs = np.arange(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], label="training")
        if f"val_{name}" in history:
            axes.plot(epochs, history[f"val_{name}"], label="validation (EMA network)")
        axes.set(title={"n_loss": "noise loss", "i_loss": "image loss"}.get(name, name), xlabel="epoch", yscale="log")
        axes.legend()
    return figure


def plot_schedule(schedule: Any, diffusion_steps: int = 200) -> matplotlib.figure.Figure:
    """Draw the signal and noise rates of a schedule, and its log signal-to-noise ratio, over diffusion time.

    Returns:
        The figure; it is not shown.
    """
    from matplotlib.figure import Figure

    times = np.linspace(0.0, 1.0, diffusion_steps)
    signal_rates, noise_rates = schedule(times)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    rates, ratio = figure.subplots(1, 2)
    rates.plot(times, signal_rates, label="signal rate")
    rates.plot(times, noise_rates, label="noise rate")
    rates.set(xlabel="diffusion time", ylim=(0, 1.02))
    rates.legend()
    ratio.plot(times, 2 * np.log(signal_rates / noise_rates))
    ratio.set(xlabel="diffusion time", ylabel="log signal-to-noise ratio")
    return figure


def save_figure(path: str | os.PathLike, figure: matplotlib.figure.Figure, dpi: int = 110) -> None:
    """Write a figure as PNG; whole or not at all."""
    with files.written_beside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
