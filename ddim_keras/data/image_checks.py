"""Checks of images: their shape, their type and the range of their values."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras.support.types import DType, Images, Shape

# Resizing with Lanczos or bicubic filters overshoots a little: so much is cut off, and more is
# another range.
RANGE_TOLERANCE = 0.02
NOT_FINITE = "{what} contain NaN or infinity: remove or repair those images before training"
_NOT_FINITE_OF_SCORES = {
    "real images": "remove or repair those images",
    "generated images": "what made them has diverged, or computes in too few digits: repair that, "
    "not the real images",
}
OUT_OF_RANGE = (
    "{what} are out of range: got values from {smallest} to {largest}, expected floats in [0, 1] "
    "or uint8: divide by 255 if "
    "they run from 0 to 255, add 1 and halve if they run from -1 to 1; where resizing overshot [0, "
    "1] by more than "
    f"{RANGE_TOLERANCE}, clip them to it"
)
# TensorFlow wraps the message of a failed assertion in its own words; these find it again.
ERROR_START, ERROR_END = "<ddim_keras input error>", "</ddim_keras input error>"


def as_unit_range(images: Images) -> Images:
    """Return images as float32 in [0, 1]: uint8 is divided by 255, what resizing overshot is cut
    off.

    Values further out than `RANGE_TOLERANCE` are another range, for the checks to refuse: they stay
    as they are.
    """
    images = ops.convert_to_tensor(images)
    if keras.backend.standardize_dtype(images.dtype) == "uint8":
        return ops.cast(images, "float32") / 255.0
    images = ops.cast(images, "float32")
    images = ops.where((images < 0.0) & (images >= -RANGE_TOLERANCE), 0.0, images)
    return ops.where((images > 1.0) & (images <= 1.0 + RANGE_TOLERANCE), 1.0, images)


def check_images(images: Images, image_shape: tuple[int, ...], what: str = "images") -> None:
    """Raise ValueError unless `images` are a batch of the given shape, finite and in [0, 1] (or
    uint8).

    Args:
        images: array of shape (batch, height, width, channels).
        image_shape: the (height, width, channels) expected.
        what: what to call them in the message.
    """
    check_dtype(images.dtype, what, images)
    check_shape(images.shape, image_shape, what)
    if images.dtype != np.uint8 and np.size(images):
        check_range(float(np.min(images)), float(np.max(images)), what)


def check_shape(shape: Shape, image_shape: tuple[int, ...], what: str = "images") -> None:
    """Raise ValueError unless `shape` is (batch, *image_shape), where None matches anything."""
    shape = tuple(shape)
    expected = (
        f"got shape {shape}, expected (batch, height, width, channels) = (batch, "
        f"{', '.join(map(str, image_shape))})"
    )
    if len(shape) != 4:
        hint = _rank_hint(shape, image_shape)
        raise ValueError(f"{what} have the wrong rank: {expected}{hint}")
    if _agree(shape[1:], image_shape):
        return
    height, width, channels = image_shape
    larger = all(size is not None and size > 4 and size != channels for size in shape[2:])
    if _agree(shape[1:], (channels, height, width)) or (shape[1] in (1, 3, 4) and larger):
        raise ValueError(
            f"{what} have their channels first: {expected}: put them last with "
            "images.transpose(0, 2, 3, 1) (in TensorFlow tf.transpose(images, [0, 2, 3, 1]), in "
            "PyTorch images.permute(0, 2, 3, 1))"
        )
    if not _agree(shape[3:], (channels,)):
        raise ValueError(
            f"{what} have {shape[-1]} channels: {expected}: convert them, or build the model with "
            f"channels={shape[-1]}"
        )
    advice = f"resize them, or build the model with image_size={shape[1:3]}"
    if _agree(shape[1:3], (width, height)):
        advice = (
            "height and width have changed places: images come as rows, then columns. Swap them "
            "with "
            f"images.transpose(0, 2, 1, 3), or build the model with image_size={shape[1:3]}"
        )
    raise ValueError(f"{what} have the wrong size: {expected}: {advice}")


def check_dtype(dtype: DType, what: str = "images", values: Any = None) -> None:
    """Raise ValueError unless the dtype is uint8 or a floating type, with what to do about it.

    Args:
        dtype: of NumPy, TensorFlow, JAX or PyTorch.
        what: what to call the images in the message.
        values: the images, if they are at hand: the advice for integers depends on their range.
    """
    name = getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
    if name == "uint8" or name.startswith(("float", "bfloat")):
        return
    kind = "strings" if name.startswith(("str", "bytes")) or name == "string" else name
    raise ValueError(
        f"{what} have dtype {name}, expected uint8 (0 to 255) or floats in [0, 1]: "
        f"{_dtype_advice(kind, values)}"
    )


def check_range(smallest: float, largest: float, what: str = "images") -> None:
    """Raise ValueError unless both ends are finite and, but for an overshoot, inside [0, 1]."""
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        if what in _NOT_FINITE_OF_SCORES:
            raise ValueError(f"{what} contain NaN or infinity: {_NOT_FINITE_OF_SCORES[what]}")
        raise ValueError(NOT_FINITE.format(what=what))
    if smallest < -RANGE_TOLERANCE or largest > 1.0 + RANGE_TOLERANCE:
        raise ValueError(
            OUT_OF_RANGE.format(what=what, smallest=f"{smallest:.4g}", largest=f"{largest:.4g}")
        )


def _agree(shape: tuple, wanted: tuple) -> bool:
    return all(size in (None, other) for size, other in zip(shape, wanted))


def _rank_hint(shape: tuple, image_shape: tuple[int, ...]) -> str:
    if len(shape) == len(image_shape) == 3 and _agree(shape, image_shape):
        return (
            ": this is one image. A data set must hold batches: dataset.batch(32); a single image "
            "becomes "
            "a batch of one with images[None]"
        )
    if len(shape) in (2, 3) and image_shape[-1:] == (1,):
        return ": add the channel axis with images[..., None]"
    if len(shape) == 3 and _agree(shape[1:], image_shape[:2]):
        return (
            ": these are grayscale images, without an axis for channels: images[..., None] adds "
            "it, and numpy.repeat or "
            f"PIL's convert makes {image_shape[-1]} channels of it; or build the model with "
            "channels=1"
        )
    if len(shape) == 3:
        return (
            ": images need the axes batch, height, width and channels: images[None] adds the first"
        )
    if len(shape) == 5:
        return (
            ": these are batches of batches (batched twice?), or videos: give their images one by "
            "one"
        )
    return ""


def _dtype_advice(kind: str, values: Any) -> str:
    if kind == "uint16":
        return (
            "divide by 65535.0 (or, if the camera or scanner gave 12 bits, by 4095.0). "
            ".astype('uint8') would keep the low bits alone"
        )
    if kind == "bool":
        return ".astype('float32') makes them 0.0 and 1.0"
    if kind == "object":
        return (
            "such an array holds images of different sizes, or things that are no images: bring "
            "them to one size, and "
            "join them with numpy.stack"
        )
    if kind == "strings":
        return (
            "names of files? ddim_keras.data.load_dataset(folder, image_size, batch_size) reads "
            "images"
        )
    if kind.startswith("complex"):
        return "take what is to be the image: numpy.abs(images) or images.real, scaled to [0, 1]"
    if not kind.startswith(("int", "uint")):
        return "convert them to floats in [0, 1]"
    if values is None or not np.size(values):
        return (
            "convert them with .astype('uint8') if the values run from 0 to 255; otherwise scale "
            "to floats in [0, 1]"
        )
    smallest, largest = int(np.min(values)), int(np.max(values))
    if smallest >= 0 and largest == 1:
        return "they hold 0 and 1 alone: .astype('float32'), if that means black and white"
    if smallest >= 0 and largest <= 255:
        return f"their values run from {smallest} to {largest}: convert them with .astype('uint8')"
    return (
        f"their values run from {smallest} to {largest}, which .astype('uint8') would wrap around: "
        "scale them to floats in "
        "[0, 1], that is subtract the lowest possible value and divide by the range"
    )
