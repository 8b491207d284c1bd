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
_FEW_IMAGES = 20_000
_LONG_MINUTES = 180.0
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
    model = _network(size, channels, minutes or _SHORT, reasons)
    return Recommendation(RECOMMENDED, model, folders.training(RECOMMENDED), tuple(reasons))


def _network(size: tuple[int, int], channels: int, minutes: float, reasons: list[str]) -> Config:
    raise NotImplementedError
