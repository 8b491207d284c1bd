"""What to train, from what is known of the images and of the time there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ddim_keras.presets import folders
from ddim_keras.presets.recipes import Training
from ddim_keras.support.arguments import height_and_width, positive_int
from ddim_keras.support.types import Config

# Whose settings a recommendation starts from.
RECOMMENDED = "fashion_mnist_32"
_WIDTHS = (64, 96, 128)
_FINEST = 24
_COARSEST = 4  # pixels of the smaller side of the lowest level, at least


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """A network, a recipe, and why.

    Attributes:
        preset: whose settings it starts from: `DiffusionModel.from_preset(preset,
            load_weights=False, image_size=..., channels=..., **model)`.
        model: arguments of `DiffusionModel` that differ from the preset's.
        training: the recipe.
        reasons: a sentence for each choice.
    """

    preset: str
    model: Config
    training: Training
    reasons: tuple[str, ...]


def recommend(
    image_size: int | Sequence[int],
    channels: int = 3,
    num_images: int | None = None,
    minutes: float | None = None,
) -> Recommendation:
    """Recommend a network and a recipe.

    Args:
        image_size: side of the images in pixels, or (height, width).
        channels: of the images.
        num_images: to train on; None if it is not known.
        minutes: of training on two CPU cores, or on what else there is as much as they do in that
            time; None for ten or so.

    Returns:
        What to train. Measured on clothes of 32 x 32 and on photos of 32 x 32 and 64 x 64; other
        sizes follow from those.

    Raises:
        ValueError: an argument out of its range.

    Examples:

    >>> found = recommend(64, channels=3, num_images=4317)
    >>> found.model["patch_size"], found.model["widths"]
    (4, [64, 96, 128])
    """
    size = height_and_width(image_size)
    positive_int("channels", channels)
    if num_images is not None:
        positive_int("num_images", num_images)
    if minutes is not None and not minutes > 0.0:
        raise ValueError(f"minutes must be a positive number, got {minutes!r}")
    reasons: list[str] = []
    model = _network(size, channels, minutes, reasons)
    return Recommendation(RECOMMENDED, model, folders.training(RECOMMENDED), tuple(reasons))


def _network(size: tuple[int, int], channels: int, minutes: float, reasons: list[str]) -> Config:
    """The levels: patches that leave a grid of about 16, halved down to about 4."""
    patch_size = _patch_size(size, reasons)
    grid = [side // patch_size for side in size]
    levels = 1
    while levels < len(_WIDTHS) and min(grid) > _COARSEST and all(side % 2 == 0 for side in grid):
        grid = [side // 2 for side in grid]
        levels += 1
    widths = list(_WIDTHS[:levels])
    reasons.append(f"{levels} levels, down to {grid[0]} x {grid[1]}: widths {widths}")
    return {"patch_size": patch_size, "widths": widths}


def _patch_size(size: tuple[int, int], reasons: list[str]) -> int:
    """The smallest power of two that leaves a grid of at most 16 or so, and divides both sides."""
    patch_size = 1
    while min(size) // patch_size > _FINEST and all(side % (2 * patch_size) == 0 for side in size):
        patch_size *= 2
    return patch_size
