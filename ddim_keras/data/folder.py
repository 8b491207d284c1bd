"""Image data sets from a folder of files."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import warnings
from typing import Any

import numpy as np

from ddim_keras.data.loading import Source

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_SPLIT_FOLDERS = ("validation", "val", "valid", "test")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_NAMED = 10  # unreadable files named in a message; the rest are counted


def from_images(root: pathlib.Path, split: Any, channels: int, seed: int, unreadable: str) -> Source:
    """Open a folder of images: flat, one subfolder a class, or either inside subfolders train and validation."""
    names = {path.name for path in root.iterdir() if path.is_dir()}
    held_out = next((name for name in _SPLIT_FOLDERS if name in names), None)
    if "train" in names and held_out and split is None:
        class_names, (train, train_labels) = _list_images(root / "train", unreadable)
        other_names, (validation, validation_labels) = _list_images(root / held_out, unreadable)
        if class_names != other_names:
            raise ValueError(
                f"{root / 'train'} and {root / held_out} have different classes: {class_names} and {other_names}"
            )
        return Source(
            _decoded(train, train_labels, channels),
            _decoded(validation, validation_labels, channels),
            channels,
            class_names,
            _identity(train, validation),
        )

    fraction = 0.2 if split is None else split
    if not isinstance(fraction, (int, float)) or not 0.0 <= fraction < 1.0:
        raise ValueError(f"split of a folder must be the fraction of images for validation, in [0, 1), got {split!r}")
    class_names, (files, labels) = _list_images(root, unreadable)
    order = np.random.default_rng(seed).permutation(len(files))
    cut = min(round(len(files) * fraction), len(files) - 1)
    parts = [([files[index] for index in part], labels[part]) for part in (order[cut:], order[:cut])]
    validation_set = _decoded(*parts[1], channels) if cut else None
    return Source(
        _decoded(*parts[0], channels), validation_set, channels, class_names, _identity(parts[0][0], parts[1][0])
    )


def _identity(*parts: list[str]) -> list:
    return [[(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files] for files in parts]


def _list_images(root: pathlib.Path, unreadable: str) -> tuple[list[str] | None, tuple[list[str], np.ndarray]]:
    """Return (class names or None, (readable files, labels)), sorted by path."""
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not _is_hidden(path.relative_to(root))
    )
    if not files:
        raise ValueError(f"no images in {root}: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    files = _readable(files, root, unreadable)
    classes = [path.relative_to(root).parts[0] for path in files]
    # A class is a subfolder; a file that lies beside them has none, so neither have the others.
    if any(len(path.relative_to(root).parts) == 1 for path in files):
        return None, ([os.fspath(path) for path in files], np.zeros(len(files), "int64"))
    names = sorted(set(classes))
    labels = np.array([names.index(name) for name in classes], "int64")
    return names, ([os.fspath(path) for path in files], labels)


def _is_hidden(path: pathlib.Path) -> bool:
    """Whether a file, or a folder above it, is hidden; or it is the sheet of all images that an export leaves among them."""
    return any(part.startswith(".") for part in path.parts) or path.parts == ("contact_sheet.png",)


def _readable(files: list[pathlib.Path], root: pathlib.Path, unreadable: str) -> list[pathlib.Path]:
    """Decode every file once, so that a broken one is found now and not in the middle of a training."""

    def problem(path: pathlib.Path) -> str | None:
        try:
            read_image(path, 3)
            return None
        except Exception as error:  # decoders raise whatever they like on damaged files
            return f"{path.relative_to(root)} ({type(error).__name__}: {error})"

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(problem, files))
    broken = [text for text in problems if text]
    if broken:
        listing = "; ".join(broken[:_NAMED]) + (f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else "")
        count = f"{len(broken)} of {len(files)} images in {root} cannot be read: {listing}"
        if unreadable == "refuse":
            raise ValueError(f"{count}. Remove or repair them, or give unreadable='skip'")
        warnings.warn(f"Skipped: {count}", stacklevel=2)
        files = [path for path, text in zip(files, problems) if not text]
        if not files:
            raise ValueError(f"no readable image is left in {root}")
    return files


def read_image(path: Any, channels: int) -> np.ndarray:
    """Read an image upright, as uint8 (height, width, channels); of an animation the first frame."""
    import PIL.Image
    import PIL.ImageOps

    with PIL.Image.open(path) as image:
        upright = PIL.ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # 16-bit grayscale, which Pillow would clip to 255
            upright = PIL.Image.fromarray((np.asarray(upright) // 257).astype("uint8"))
        pixels = np.asarray(upright.convert(_MODES[channels]))
        return pixels.reshape(*pixels.shape[:2], channels)


def _decoded(files: list[str], labels: np.ndarray, channels: int) -> Any:
    import tensorflow as tf

    def read(path, label):
        image = tf.numpy_function(lambda path: read_image(path.decode(), channels), [path], tf.uint8)
        image.set_shape((None, None, channels))
        return image, label

    return tf.data.Dataset.from_tensor_slices((files, labels)).map(read, num_parallel_calls=tf.data.AUTOTUNE)
