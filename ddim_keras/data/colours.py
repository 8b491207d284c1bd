"""Colours and alpha of an image in 8 bits: on a background, in the wanted channels, averaged."""

from __future__ import annotations

import warnings

import numpy as np

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)


def parse_colour(background: object) -> Colour:
    """Return (red, green, blue) of a name that Pillow knows, or of three integers from 0 to 255."""
    import PIL.ImageColor

    message = (
        "background must be a colour that Pillow knows, such as 'white' or '#808080', or (red, "
        "green, "
        f"blue) of integers from 0 to 255, got {background!r}"
    )
    if isinstance(background, str):
        try:
            colour: tuple = PIL.ImageColor.getrgb(background)
        except ValueError:
            raise ValueError(message) from None
    else:
        colour = tuple(background) if isinstance(background, (tuple, list, np.ndarray)) else ()
    in_range = all(
        isinstance(part, (int, np.integer)) and not isinstance(part, bool) and 0 <= part <= 255
        for part in colour
    )
    if len(colour) != 3 or not in_range:
        raise ValueError(message)
    return int(colour[0]), int(colour[1]), int(colour[2])


def is_grey(colour: Colour) -> bool:
    return len(set(colour)) == 1


def warn_of_transparency(images: str, first: str, background: Colour) -> None:
    """Say what is done with what is transparent."""
    warnings.warn(
        f"{images} are transparent in parts, and laid on the background {background}: the first is "
        f"{first}. background= chooses another colour, channels=4 keeps the transparency",
        stacklevel=4,
    )


def with_channels(
    values: np.ndarray, alpha: np.ndarray | None, channels: int, background: Colour
) -> np.ndarray:
    """Bring an image to the wanted channels.

    Args:
        values: uint8 (height, width) or (height, width, 3).
        alpha: uint8 (height, width), or None where all of it is opaque.
        channels: 1 or 3, with what is transparent laid on the background; or 4, which keeps it.
        background: the colour under what is transparent.

    Returns:
        uint8 (height, width, channels).
    """
    if channels == 4:
        opaque = np.full(values.shape[:2], 255, "uint8") if alpha is None else alpha
        return np.concatenate([_with_colours(values), opaque[..., None]], axis=-1)
    if alpha is not None:
        if values.ndim == 2 and not (channels == 1 and is_grey(background)):
            values = _with_colours(values)
        values = laid_on(values.reshape(*values.shape[:2], -1), alpha[..., None], background)
    if channels == 1 and values.shape[2:] == (3,):
        values = _luminance(values)
    if channels == 3:
        values = _with_colours(values)
    return np.ascontiguousarray(values.reshape(*values.shape[:2], channels))


def _with_colours(values: np.ndarray) -> np.ndarray:
    if values.shape[2:] == (3,):
        return values
    return np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=-1)


def _luminance(values: np.ndarray) -> np.ndarray:
    import PIL.Image

    return np.asarray(PIL.Image.fromarray(np.ascontiguousarray(values)).convert("L"))


def laid_on(values: np.ndarray, alpha: np.ndarray, background: Colour) -> np.ndarray:
    """Lay uint8 colours (..., channels) with alpha (..., 1) on a background of 1 or 3 channels."""
    under = np.asarray(background[: values.shape[-1]], "uint16") * (255 - alpha.astype("uint16"))
    # At most 255 * 255 + 127, which 16 bits just hold.
    return ((values.astype("uint16") * alpha + under + 127) // 255).astype("uint8")


def averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Averages of squares of `factor` pixels; of colours with alpha, weighted by it."""
    height, width, channels = pixels.shape
    values = pixels.astype("float32")
    if channels == 4:
        values[..., :3] *= values[..., 3:] / 255.0
    for axis, length in ((0, height), (1, width)):
        starts = np.arange(0, length, factor)
        counts = np.minimum(starts + factor, length) - starts
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        values = np.add.reduceat(values, starts, axis=axis) / counts.reshape(shape).astype(
            "float32"
        )
    if channels == 4:
        values[..., :3] *= 255.0 / np.maximum(values[..., 3:], 1e-6)
    return np.rint(np.clip(values, 0.0, 255.0)).astype("uint8")
