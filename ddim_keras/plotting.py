"""Pictures of what a model does. Grids are written pixel for pixel; charts are matplotlib
figures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np

from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.metrics.memorization import NearestImages
from ddim_keras.sampling.generate import Trajectory
from ddim_keras.support import files
from ddim_keras.support.types import Images

if TYPE_CHECKING:
    import matplotlib.figure


class Generator(Protocol):
    """What makes images: a `DiffusionModel`, or what has its methods."""

    def generate(self, num_images: int, diffusion_steps: int = 20, **options: Any) -> Any: ...

    def denormalize(self, images: Images) -> Images: ...


def image_grid(
    images: Images, columns: int | None = None, padding: int = 1, scale: int = 1
) -> np.ndarray:
    """Lay images out in rows.

    Args:
        images: (number, height, width, channels) in [0, 1] or uint8; channels 1, 3 or 4, any other
            count shows its first. Or (rows, columns, height, width, channels), laid out as they
            are: a strip of an interpolation in each row, say.
        columns: images per row; None for about a square.
        padding: white pixels around each image.
        scale: each image pixel becomes scale x scale.

    Returns:
        uint8 array (grid height, grid width, 3 or 4).
    """
    images = np.asarray(images)
    images = images / np.float32(255.0) if images.dtype == np.uint8 else images.astype("float32")
    if images.ndim == 5:
        columns = images.shape[1]
        images = images.reshape(-1, *images.shape[2:])
    if images.ndim != 4 or not len(images):
        raise ValueError(
            "expected at least one image, (number, height, width, channels), got shape "
            f"{images.shape}"
        )
    if images.shape[-1] not in (1, 3, 4):
        images = images[..., :1]
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    images = (np.clip(images, 0.0, 1.0) * 255.0).round().astype("uint8")
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    images = np.pad(
        images,
        ((0, rows * columns - len(images)), *((padding, padding),) * 2, (0, 0)),
        constant_values=255,
    )
    _, height, width, channels = images.shape
    grid = images.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def save_images(
    path: str | os.PathLike, images: Images, columns: int | None = None, scale: int = 1
) -> None:
    """Write images as one PNG, laid out by `image_grid`; whole or not at all."""
    import PIL.Image

    with files.written_beside(path) as temporary:
        PIL.Image.fromarray(image_grid(images, columns, scale=scale)).save(temporary, format="PNG")


def show_images(images: Images, columns: int | None = None, title: str | None = None) -> None:
    """Show images in a notebook or window, laid out by `image_grid`."""
    import matplotlib.pyplot as plt

    grid = image_grid(images, columns)
    figure, axes = plt.subplots(
        figsize=(grid.shape[1] / max(grid.shape) * 8, grid.shape[0] / max(grid.shape) * 8)
    )
    axes.imshow(grid, interpolation="nearest")
    axes.axis("off")
    if title:
        axes.set_title(title)
    figure.tight_layout()
    plt.show()
    plt.close(figure)


def trajectory_images(model: Generator, trajectory: Trajectory, columns: int = 10) -> np.ndarray:
    """Arrange a walk for a grid: for each image a row of noisy images above a row of the images
    predicted in them.

    Args:
        model: the model that made the walk.
        trajectory: what `model.generate(..., return_trajectory=True)` gave.
        columns: how many of the steps to show, evenly chosen, both ends included.

    Returns:
        (2 * number, columns, height, width, channels) in [0, 1], for `image_grid`.
    """
    steps = len(trajectory.pred_images)
    chosen = np.linspace(0, steps - 1, min(columns, steps)).round().astype(int)
    noisy = keras.ops.convert_to_numpy(model.denormalize(trajectory.noisy_images[:-1][chosen]))
    rows = np.stack([noisy, trajectory.pred_images[chosen]]).transpose(2, 0, 1, 3, 4, 5)
    return rows.reshape(-1, *rows.shape[2:])


def trajectory_frames(
    model: Generator, trajectory: Trajectory, columns: int | None = None
) -> list[np.ndarray]:
    """Draw each step of a walk as a grid of all its images: the frames of an animation.

    Args:
        model: the model that made the walk.
        trajectory: what `model.generate(..., return_trajectory=True)` gave.
        columns: images per row; None for about a square.

    Returns:
        steps + 1 uint8 grids, from noise to images, for `save_animation`.
    """
    return [
        image_grid(keras.ops.convert_to_numpy(model.denormalize(images)), columns)
        for images in trajectory.noisy_images
    ]


def save_animation(
    path: str | os.PathLike,
    frames: Sequence[Any],
    milliseconds: int = 80,
    hold: int = 1500,
    scale: int = 1,
) -> None:
    """Write frames as an animated GIF or WebP that runs for ever; whole or not at all.

    Args:
        path: ends in .gif or .webp.
        frames: uint8 (height, width, channels) of one shape, such as `image_grid` and
            `trajectory_frames` give; or floats in [0, 1], (height, width, channels).
        milliseconds: how long a frame is shown.
        hold: how long the last one is.
        scale: each pixel becomes scale x scale.

    Raises:
        ValueError: another suffix, no frames, or frames of different shapes.
    """
    import PIL.Image

    format = {".gif": "GIF", ".webp": "WEBP"}.get(os.path.splitext(path)[1].lower())
    if format is None:
        raise ValueError(f"an animation's name must end in .gif or .webp, got {os.fspath(path)!r}")
    if not len(frames):
        raise ValueError("an animation needs at least one frame, got none")
    pictures: list[PIL.Image.Image] = []
    for frame in frames:
        picture = PIL.Image.fromarray(image_grid(np.asarray(frame)[None], padding=0))
        if pictures and (picture.width * scale, picture.height * scale) != pictures[0].size:
            raise ValueError(
                f"the frames of an animation must have one shape, got {np.shape(frames[0])} and "
                f"{np.shape(frame)}"
            )
        pictures.append(
            picture.resize(
                (picture.width * scale, picture.height * scale), PIL.Image.Resampling.NEAREST
            )
        )
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    durations = [milliseconds] * (len(pictures) - 1) + [hold]
    with files.written_beside(path) as temporary:
        pictures[0].save(
            temporary,
            format=format,
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            **options,
        )


def plot_rows(
    images: Images, labels: Sequence[str], title: str | None = None
) -> matplotlib.figure.Figure:
    """Draw rows of images with a label before each.

    Args:
        images: (rows, columns, height, width, channels) in [0, 1].
        labels: one for each row.

    Returns:
        The figure; it is not shown.
    """
    from matplotlib.figure import Figure

    if len(images) != len(labels):
        raise ValueError(f"expected a label for each of {len(images)} rows, got {len(labels)}")
    strips = [image_grid(row[None]) for row in np.asarray(images)]
    height, width = strips[0].shape[:2]
    figure = Figure(figsize=(9, 8 * height * len(strips) / width + 0.4), layout="constrained")
    for axes, strip, label in zip(np.atleast_1d(figure.subplots(len(strips), 1)), strips, labels):
        axes.imshow(strip, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
    if title:
        figure.suptitle(title)
    return figure


def plot_consistency(
    model: Generator,
    steps: Sequence[int] = (5, 10, 20, 50, 100),
    num_images: int = 10,
    seed: int = 0,
    **options: Any,
) -> matplotlib.figure.Figure:
    """Draw what the same noises become in different numbers of steps, a row for each (the paper's
    figure 5).

    Args:
        model: a trained model.
        steps: numbers of steps.
        num_images: images per row.
        seed: fixes the noises.
        **options: as for `model.generate`; deterministic DDIM if no sampler is among them.

    Returns:
        The figure; it is not shown.
    """
    if "eta" not in options:
        options.setdefault("sampler", "ddim")
    rows = [model.generate(num_images, number, seed=seed, **options) for number in steps]
    return plot_rows(np.stack(rows), [f"S = {number}" for number in steps])


def plot_pairs(pairs: NearestImages, number: int = 10) -> matplotlib.figure.Figure:
    """Draw generated images above the training images nearest to them, the most suspicious first.

    Above each pair stands how far they are apart, over the distance from the training image to the
    next one: below 0.5 it counts as a copy.

    Args:
        pairs: what `metrics.nearest_training_images` found.
        number: how many pairs to draw, at most.

    Returns:
        The figure; it is not shown.
    """
    from matplotlib.figure import Figure

    ratios = pairs.distances / pairs.to_next
    chosen = np.argsort(ratios, kind="stable")[:number]
    figure = Figure(figsize=(0.9 * len(chosen) + 0.9, 2.4), layout="constrained")
    all_axes = figure.subplots(2, len(chosen), squeeze=False)
    for row, images in zip(all_axes, (pairs.images, pairs.nearest)):
        for axes, index in zip(row, chosen):
            axes.imshow(image_grid(images[index][None], padding=0), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, index in zip(all_axes[0], chosen):
        axes.set_title(f"{ratios[index]:.2f}", color="tab:red" if pairs.copies[index] else "black")
    for axes, label in zip(all_axes[:, 0], ("generated", "nearest in\ntraining")):
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


def plot_history(history: Mapping[str, Sequence[float]]) -> matplotlib.figure.Figure:
    """Draw the losses of `model.fit(...).history` by epoch, training and validation in one colour
    each.

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
        axes.set(
            title={"n_loss": "noise loss", "i_loss": "image loss"}.get(name, name),
            xlabel="epoch",
            yscale="log",
        )
        axes.legend()
    return figure


def plot_schedule(schedule: Schedule, diffusion_steps: int = 200) -> matplotlib.figure.Figure:
    """Draw the signal and noise rates of a schedule, and its log signal-to-noise ratio, over
    diffusion time.

    Args:
        schedule: what to draw; on T discrete times from the first to the last.
        diffusion_steps: how many points.

    Returns:
        The figure; it is not shown.
    """
    from matplotlib.figure import Figure

    times = np.linspace(schedule.first_time, 1.0, diffusion_steps)
    signal_rates, noise_rates = schedule(times)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    rates, ratio = figure.subplots(1, 2)
    rates.plot(times, signal_rates, label="signal rate")
    rates.plot(times, noise_rates, label="noise rate")
    rates.set(xlabel="diffusion time", ylim=(0, 1.02))
    rates.legend()
    has_signal = signal_rates > 0.0  # a schedule of zero terminal SNR ends with none
    ratio.plot(times[has_signal], schedule.log_snr(times[has_signal]))
    ratio.set(xlabel="diffusion time", ylabel="log signal-to-noise ratio")
    return figure


def save_figure(path: str | os.PathLike, figure: matplotlib.figure.Figure, dpi: int = 110) -> None:
    """Write a figure as PNG; whole or not at all."""
    with files.written_beside(path) as temporary:
        figure.savefig(
            temporary, format="png", dpi=dpi, bbox_inches="tight"
        )  # labels may reach beyond
