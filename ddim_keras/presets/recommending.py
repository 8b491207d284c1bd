"""What to train, from what is known of the images and of the time there is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ddim_keras.presets import folders
from ddim_keras.presets.recipes import Training
from ddim_keras.support.arguments import height_and_width, is_number, positive_int
from ddim_keras.support.types import Config

# Whose settings a recommendation starts from.
RECOMMENDED = "fashion_mnist_32"
_MINUTES = 10.0  # where they are not known
_FINEST = 32  # pixels of the smaller side that the network works at, about, after patches
_LARGEST_PATCH = 8
_COARSEST = 4  # those of its lowest level, at least
_MOST_ATTENDED = 256  # pixels of a level with attention, whose memory grows with their square
_FEW_IMAGES = 10_000
_SHORT, _LONG = 30.0, 240.0
# Signal rates at the noisiest end, of images of 32 x 32. What is left there of an image's
# brightness grows with its side.
_LEAST_SIGNAL = {"colour": 0.005, "grey": 0.02}
_SIDE = 32
_USUAL_LEAST_SIGNAL = 0.02  # the schedule's own
_OF_LEVELS = ("image_size", "patch_size", "widths", "attention_levels")


class _Size(NamedTuple):
    """Of a network: the widths of its levels by the pixels of their smaller side, how many of the
    lowest have attention, and the memory of the average.
    """

    widths: dict[int, int]
    attention: int
    ema_decay: float


# Of colour images by the minutes, the first that reaches; and of grey ones.
_COLOUR = {
    _SHORT: _Size({32: 32, 16: 64, 8: 128, 4: 192}, 1, 0.995),
    _LONG: _Size({32: 64, 16: 96, 8: 160, 4: 224}, 2, 0.999),
    float("inf"): _Size({32: 64, 16: 128, 8: 192, 4: 256}, 2, 0.9995),
}
_GREY = {
    _SHORT: _Size({32: 48, 16: 64, 8: 96, 4: 128}, 0, 0.995),
    _LONG: _Size({32: 48, 16: 64, 8: 96, 4: 128}, 0, 0.999),
    float("inf"): _Size({32: 64, 16: 96, 8: 160, 4: 224}, 2, 0.9995),
}


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """A network, a recipe, and why.

    Attributes:
        preset: whose settings it starts from: `DiffusionModel.from_preset(preset,
            load_weights=False, image_size=..., channels=..., **model)`.
        model: arguments of `DiffusionModel` that differ from the preset's.
        reasons: a sentence for each choice, by the argument that it is about.
    """

    preset: str
    model: Config
    reasons: Mapping[str, str]

    @property
    def training(self) -> Training:
        """The recipe: the preset's."""
        return folders.training(self.preset)

    def without_levels(self) -> Recommendation:
        """Return what of it goes for a network of other levels, too."""
        model, reasons = (
            {name: value for name, value in part.items() if name not in _OF_LEVELS}
            for part in (self.model, self.reasons)
        )
        return dataclasses.replace(self, model=model, reasons=reasons)


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
            time: a GPU takes seconds. None for ten.

    Returns:
        What to train. It was measured on clothes and photos of 32 x 32 and photos of 64 x 64; what
        it says of other sizes follows from those.

    Raises:
        ValueError: an argument out of its range.

    Examples:

    >>> found = recommend(64, channels=3, num_images=4317)
    >>> found.model["patch_size"], found.model["widths"]
    (2, [32, 64, 128, 192])
    """
    size = height_and_width(image_size)
    positive_int("channels", channels)
    if num_images is not None:
        positive_int("num_images", num_images)
    if minutes is not None and (not is_number(minutes) or not 0.0 < minutes < float("inf")):
        raise ValueError(f"minutes must be a positive number, got {minutes!r}")
    reasons: dict[str, str] = {}
    minutes = minutes or _MINUTES
    by_minutes = _GREY if channels == 1 else _COLOUR
    chosen = next(found for most, found in by_minutes.items() if minutes <= most)
    model = _levels(size, channels, chosen, reasons)
    kind, attended = "grey" if channels == 1 else "colour", len(model["attention_levels"])
    reasons["widths"] = (
        f"Widths {model['widths']}, attention at {attended or 'none'} of the levels: for {kind} "
        f"images and {minutes:g} minutes of two CPU cores"
    )
    model["ema_decay"] = chosen.ema_decay
    least = float(f"{_LEAST_SIGNAL[kind] * _SIDE / math.sqrt(size[0] * size[1]):.2g}")
    if least < _USUAL_LEAST_SIGNAL:
        model["schedule"] = _angle_schedule(least)
        reasons["schedule"] = (
            f"Noise up to a signal rate of {least:g}: with more left of them, images of {size[0]} "
            f"x {size[1]} would differ too little in brightness"
        )
    if num_images is not None and num_images < _FEW_IMAGES and minutes > _SHORT:
        model["dropout"] = 0.1
        reasons["dropout"] = (
            f"Dropout of 0.1, as {num_images:,} images are few for so long a training; if mirrored "
            "images are as good, flip them (--flip)"
        )
    return Recommendation(RECOMMENDED, model, reasons)


def recommended_guidance(channels: int) -> float:
    """Return the weight of guidance that is recommended for images by label, of so many channels.

    Of 1, 2 and 3 the last is best for photos (`cifar10_32`, and ten minutes of CIFAR-10), of 1,
    1.5, 2 and 4 the third for clothes: docs/labels.md, docs/how_it_was_found.md.
    """
    return 2.0 if channels == 1 else 3.0


def _angle_schedule(min_signal_rate: float) -> Config:
    """The configuration of an `AngleSchedule`, as a file holds it: Keras is not imported here."""
    return {
        "module": "ddim_keras.diffusion.schedules",
        "class_name": "AngleSchedule",
        "config": {"min_signal_rate": min_signal_rate, "max_signal_rate": 0.95},
        "registered_name": "ddim_keras>AngleSchedule",
    }


def _levels(size: tuple[int, int], channels: int, chosen: _Size, reasons: dict[str, str]) -> Config:
    """Patches that leave 16 to 32 pixels a side, and levels from there down to about 4."""
    patch_size, grid = 1, size
    finest = _FINEST if min(size) > 1.5 * _FINEST else _FINEST / 2
    while min(grid) > 1.5 * finest and _even(grid) and patch_size < _LARGEST_PATCH:
        patch_size, grid = 2 * patch_size, _halved(grid)
    # A grid that cannot be halved again would be all that there is: smaller patches, then.
    while patch_size > 1 and not _even(grid):
        patch_size, grid = patch_size // 2, (2 * grid[0], 2 * grid[1])
    levels, lowest = 1, grid
    while min(lowest) >= 2 * _COARSEST and _even(lowest):
        levels, lowest = levels + 1, _halved(lowest)
    if levels == 1 and min(lowest) >= 2 * _COARSEST:
        nearest = [max(8, 8 * round(side / 8)) for side in size]
        reasons["image_size"] = (
            f"Images of {size[0]} x {size[1]} cannot be halved evenly, so the network sees one "
            f"resolution alone: {nearest[0]} x {nearest[1]} would serve it better"
        )
    patches = f" on patches of {patch_size} x {patch_size} pixels" if patch_size > 1 else ""
    reasons["patch_size"] = (
        f"The network works{patches} at {levels} resolution{'s' if levels > 1 else ''}, from "
        f"{grid[0]} x {grid[1]} to {lowest[0]} x {lowest[1]}: for images of {size[0]} x {size[1]}"
    )
    sides = [min(grid) >> level for level in range(levels)]
    widths = [chosen.widths[min(chosen.widths, key=lambda of: _apart(of, side))] for side in sides]
    if (values := patch_size**2 * channels) > widths[0]:  # of a patch, which it has to tell apart
        widths[0] = 32 * math.ceil(values / 32)
    attention = [
        level
        for level in range(max(0, levels - chosen.attention), levels)
        if (grid[0] * grid[1]) >> (2 * level) <= _MOST_ATTENDED
    ]
    return {"patch_size": patch_size, "widths": widths, "attention_levels": attention}


def _apart(one: int, other: int) -> float:
    return abs(math.log2(one / other))


def _even(grid: tuple[int, int]) -> bool:
    return all(side % 2 == 0 for side in grid)


def _halved(grid: tuple[int, int]) -> tuple[int, int]:
    return grid[0] // 2, grid[1] // 2
