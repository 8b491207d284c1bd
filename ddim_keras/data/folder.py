"""Image data sets from a folder of files: found, divided, looked at, and read."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import warnings
from typing import Any, NamedTuple

import numpy as np

from ddim_keras.data import colours, decoding, depth, ending, finding, layout
from ddim_keras.data.colours import Colour
from ddim_keras.data.decoding import Facts
from ddim_keras.data.finding import Parts
from ddim_keras.data.source import Examples, Source, Wanted

_AT_A_TIME = 4096  # files that wait to be looked at
_NAMED = 10  # unreadable files named in a message; the rest are counted


class _Part(NamedTuple):
    """The images of one part: files, labels, and the facts of each file."""

    files: list[pathlib.Path]
    labels: np.ndarray
    facts: list[Facts]

    def chosen(self, indices: np.ndarray) -> _Part:
        return _Part(
            [self.files[index] for index in indices],
            self.labels[indices],
            [self.facts[index] for index in indices],
        )


def from_images(root: pathlib.Path, wanted: Wanted) -> Source:
    """Open a folder of images: flat, one subfolder a class, or either inside train and validation.

    Raises:
        ValueError: there are no images, some cannot be read, or it is not clear which to train on.
    """
    found = finding.find_images(root)
    division = layout.divide(root, found, wanted.split)
    class_names = _class_names(division, wanted.labels)
    members = [division.train, division.validation or []]
    if division.validation == []:
        raise ValueError(f"no images in {division.names[1]}")
    facts = _examined(root, [file for part in members for file, _ in part], wanted)
    finding.warn_of_left_out(root, found)
    if division.unused:
        warnings.warn(
            f"{len(division.unused)} images in {root} are in neither {division.names[0]} nor "
            f"{division.names[1]}, and are not used: the first is {'/'.join(division.unused[0])}",
            stacklevel=3,
        )
    train, validation = (_part(root, part, class_names, facts) for part in members)
    if wanted.labels:
        _check_classes(root, found, division, class_names or [], train)
    if division.validation is None:
        order = np.random.default_rng(wanted.seed).permutation(len(train.files))
        cut = min(round(len(train.files) * division.fraction), len(train.files) - 1)
        if wanted.labels:
            order, cut = _with_all_classes(order, cut, train.labels)
        train, validation = train.chosen(order[cut:]), train.chosen(order[:cut])
    for part, name in zip((train, validation), division.names):
        if not part.files and (part is train or division.validation is not None):
            raise ValueError(f"no readable image is left in {name}")

    channels = wanted.channels or _own_channels(train.facts + validation.facts, wanted.background)
    names = [os.fspath(file) for file in train.files + validation.files]
    settled = depth.settle(
        [fact.depth for fact in train.facts + validation.facts], names, os.fspath(root)
    )
    bits = (
        np.array(settled, "int64")[: len(train.files)],
        np.array(settled, "int64")[len(train.files) :],
    )
    _warn_of_transparency(
        root, train.files + validation.files, train.facts + validation.facts, channels, wanted
    )
    return Source(
        _decoded(train, bits[0], channels, wanted.background),
        _decoded(validation, bits[1], channels, wanted.background) if validation.files else None,
        channels,
        class_names,
        [_identity(train), _identity(validation), settled, wanted.background],
    )


def _class_names(division: layout.Division, wanted: bool) -> list[str] | None:
    """The names of the classes to train on; None if an image has none, which is no label."""
    names = sorted({name for _, name in division.train if name is not None})
    held_out = division.validation or []
    if wanted:
        if unnamed := [name for name in names if _is_broken(name)]:
            raise ValueError(
                f"the name of the class folder {os.fsencode(unnamed[0])!r} is no UTF-8, so that no "
                "model can hold it: rename the folder"
            )
        _refuse_without_class(division.train, division.names[0], "")
        as_for_training = f", called as for training: {', '.join(names)}"
        _refuse_without_class(held_out, division.names[1], as_for_training)
        if more := sorted({name for _, name in held_out if name is not None} - set(names)):
            raise ValueError(
                f"{division.names[1]} has classes that {division.names[0]} lacks: "
                f"{', '.join(more)}, beside {', '.join(names)}. Rename or remove them, or leave "
                "labels=False"
            )
    found = {name for _, name in [*division.train, *held_out]}
    return names if found == set(names) else None  # or there is no learning by them


def _is_broken(name: str) -> bool:
    """Whether a file's name holds bytes that are no letters."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def _check_classes(
    root: pathlib.Path,
    found: finding.Found,
    division: layout.Division,
    class_names: list[str],
    train: _Part,
) -> None:
    """Warn of subfolders that hold no image and so are no class, and refuse a class of which none
    can be read.
    """
    around = {file[: file.index(name)] for file, name in division.train if name is not None}
    filled = {file[:end] for file in found.images for end in range(len(file))}
    empty = sorted(
        "/".join(folder) for folder in found.folders - filled if folder[:-1] in around and folder
    )
    if empty:
        warnings.warn(
            f"{len(empty)} folders in {root} hold no images, and are no classes: the first is "
            f"{empty[0]}",
            stacklevel=4,
        )
    left = np.bincount(train.labels, minlength=len(class_names))
    if broken := [name for name, number in zip(class_names, left) if not number]:
        raise ValueError(
            f"no readable image is left of the class {', '.join(broken)} in {division.names[0]}: "
            "repair its images, or remove its folder"
        )


def _with_all_classes(order: np.ndarray, cut: int, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the order of a division by chance, and how many of its first are held out, so that
    every class has an image to train on.
    """
    first_of = {labels[index]: index for index in reversed(order[:cut])}
    moved = [first_of[label] for label in sorted(set(first_of) - set(labels[order[cut:]]))]
    return np.concatenate([order[~np.isin(order, moved)], moved]).astype(int), cut - len(moved)


def _refuse_without_class(members: layout.Members, place: str, called: str) -> None:
    stray = [file for file, name in members if name is None]
    if stray:
        others, verb = (f" and {len(stray) - 1} others", "lie") if len(stray) > 1 else ("", "lies")
        raise ValueError(
            f"{place} has no labels: {'/'.join(stray[0])}{others} {verb} in no class folder. Leave "
            f"labels=False, or put each class into a subfolder of its own{called}"
        )


def _examined(root: pathlib.Path, files: list[Parts], wanted: Wanted) -> dict[Parts, Facts]:
    """Decode every file once, so that a broken one is found now, not in the middle of a
    training.
    """

    def examined(parts: Parts) -> Facts | str:
        try:
            return decoding.examine(root.joinpath(*parts), wanted.bits)
        except Exception as error:  # decoders raise whatever they like on damaged files
            return f"{os.path.join(*parts)} ({type(error).__name__}: {error})"

    results: list[Facts | str] = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), _AT_A_TIME):  # what waits takes memory
            results += pool.map(examined, files[start : start + _AT_A_TIME])
    broken = [result for result in results if isinstance(result, str)]
    if broken:
        listing = "; ".join(broken[:_NAMED]) + (
            f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        )
        count = f"{len(broken)} of {len(files)} images in {root} cannot be read: {listing}"
        if wanted.unreadable == "refuse":
            raise ValueError(
                f"{count}. Remove or repair them, or give unreadable='skip' (--unreadable skip)"
            )
        warnings.warn(f"Skipped: {count}", stacklevel=3)
    return {file: result for file, result in zip(files, results) if not isinstance(result, str)}


def _part(
    root: pathlib.Path,
    members: layout.Members,
    class_names: list[str] | None,
    facts: dict[Parts, Facts],
) -> _Part:
    members = [(file, name) for file, name in members if file in facts]
    numbers = {name: index for index, name in enumerate(class_names or [])}
    return _Part(
        [root.joinpath(*file) for file, _ in members],
        # A class that training lacks comes only where no labels are asked for.
        np.array([numbers.get(name or "", 0) for _, name in members], "int64"),
        [facts[file] for file, _ in members],
    )


def _own_channels(facts: list[Facts], background: Colour) -> int:
    """1 if all images are grey, and stay so on their background; otherwise 3."""
    on_colour = not colours.is_grey(background) and any(fact.transparent for fact in facts)
    return 1 if all(fact.grey for fact in facts) and not on_colour else 3


def _warn_of_transparency(
    root: pathlib.Path, files: list[pathlib.Path], facts: list[Facts], channels: int, wanted: Wanted
) -> None:
    transparent = [file for file, fact in zip(files, facts) if fact.transparent]
    if transparent and channels != 4:
        colours.warn_of_transparency(
            f"{len(transparent)} of {len(files)} images in {root}",
            os.fspath(transparent[0]),
            wanted.background,
        )


def _identity(part: _Part) -> list:
    stats = [os.stat(path) for path in part.files]
    files = [
        (os.fspath(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(part.files, stats)
    ]
    return [files, part.labels.tolist()]


def _decoded(part: _Part, bits: np.ndarray, channels: int, background: Colour) -> Examples:
    import tensorflow as tf

    @ending.ended_before_python
    def read_one(path: bytes, bits: Any) -> np.ndarray:
        return decoding.read_image(os.fsdecode(path), channels, background, int(bits))

    def read(path, bits, label):
        image = tf.numpy_function(read_one, [path, bits], tf.uint8)
        image.set_shape((None, None, channels))
        return image, label

    paths = [os.fsencode(path) for path in part.files]
    return Examples(tf.data.Dataset.from_tensor_slices((paths, bits, part.labels)), read)
