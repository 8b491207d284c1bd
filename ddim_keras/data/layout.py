"""How a folder of images is divided into parts and classes, by the names of its subfolders."""

from __future__ import annotations

import numbers
import pathlib
import re
from typing import Any, NamedTuple

from ddim_keras.data.finding import Found, Parts
from ddim_keras.support.types import Split

# Images, each with the name of its class; None if it lies in no class folder.
Members = list[tuple[Parts, str | None]]
_TRAINING = {"train", "training", "trn", "trainval"}
_VALIDATION = {"val", "valid", "validation", "dev"}
_TEST = {"test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"}
_AFTER = re.compile(r"(set|split|data|images?)$")


class Division(NamedTuple):
    """Files of the two parts, with the names of their classes.

    Attributes:
        train: the training images.
        validation: the held-out ones; None where a fraction of `train` is to be held out.
        fraction: of `train` to hold out, in [0, 1).
        names: what to call the two parts in messages.
        unused: images that belong to neither part.
    """

    train: Members
    validation: Members | None
    fraction: float
    names: tuple[str, str]
    unused: list[Parts]


class _Parted(NamedTuple):
    """Folders that were found to be parts; `problem` says what is unclear about them."""

    train: str | None
    held_out: str | None
    others: list[str]  # subfolders beside them, of neither part
    loose: int  # images beside them
    problem: str | None


def divide(root: pathlib.Path, found: Found, split: Split) -> Division:
    """Divide the images of a folder.

    Args:
        root: the folder, for messages.
        found: what lies in it.
        split: None for the subfolders' own division, or a fifth held out; a fraction in [0, 1); or
            a pair of subfolders, the second or None.

    Raises:
        ValueError: it is not clear what is meant to be trained on.
    """
    is_pair = isinstance(split, (tuple, list)) and len(split) == 2
    if is_pair and isinstance(split[0], str) and (split[1] is None or isinstance(split[1], str)):
        return _named(root, found, *split)
    is_fraction = (
        isinstance(split, numbers.Real)
        and not isinstance(split, bool)
        and 0.0 <= float(split) < 1.0
    )
    if split is not None and not is_fraction:
        raise ValueError(
            "split of a folder must be the fraction of images for validation, in [0, 1), or a pair "
            "of "
            f"its subfolders, such as ('train', 'val') or ('train', None), got {split!r}"
        )
    fraction = None if split is None else float(split)
    # What an archive was unpacked to: a single folder around all.
    inside: Parts = ()
    while len(tops := _tops(found.images, inside)) == 1 and not _loose(found.images, inside):
        if _kind(tops[0]) is not None:
            break
        inside = (*inside, tops[0])
    for around in sorted({(), inside}, key=len, reverse=True):
        parted = _parted(found, around)
        clear = parted is not None and parted.problem is None
        if parted is None or (around and not (clear and parted.held_out)):
            continue  # within a single folder, only what is sure
        return _by_names(root, found, around, parted, fraction)
    in_classes = _parts_in_classes(root, found, fraction)
    if in_classes is not None:
        return in_classes
    return _all_below(root, found, (), 0.2 if fraction is None else fraction)


def _all_below(root: pathlib.Path, found: Found, around: Parts, fraction: float) -> Division:
    """All images below a folder, to be divided by chance. A single folder around all classes, as an
    archive is unpacked to, is no class.
    """
    inside = around
    while len(tops := _tops(found.images, inside)) == 1 and not _loose(found.images, inside):
        inside = (*inside, tops[0])
    if len(inside) > len(around):
        around = inside if tops else inside[:-1]
    return Division(_members(found.images, around), None, fraction, (str(root), str(root)), [])


def _by_names(
    root: pathlib.Path, found: Found, around: Parts, parted: _Parted, fraction: float | None
) -> Division:
    """Divide by subfolders whose names say train, validation or test."""
    place = root.joinpath(*around)
    if fraction is not None and parted.train and parted.held_out:
        train_place = place / parted.train
        _refuse_fraction(place, fraction, parted.train, parted.held_out, f"load {train_place}")
    if parted.problem:
        if fraction is not None:  # it says that all subfolders are classes
            return _all_below(root, found, (), fraction)
        others = parted.others if len(parted.others) == 1 else ["train"]
        pair = (parted.train or others[0], parted.held_out)
        words = ",".join((pair[0], pair[1] or "none"))
        raise ValueError(
            f"it is not clear what of {place} is to be trained on: {parted.problem}. Name the two "
            f"folders, such as split={pair!r} (--split {words}), the second or None, "
            "several joined by +; or, if every subfolder is a class, also one that is called like "
            "a "
            "part, give the fraction to hold out of all, such as split=0.2"
        )
    train = (*around, parted.train or "")
    if parted.held_out is None:  # all that there is
        return _all_below(root, found, train, 0.2 if fraction is None else fraction)
    held_out = (*around, parted.held_out)
    used = {train, held_out}
    is_part = {name for name in _tops(found.images, around) if _kind(name) is not None}
    unused = [
        parts
        for parts in found.images
        if parts[: len(train)] not in used
        and not (len(parts) > len(train) and parts[len(around)] in is_part)
    ]
    return Division(
        _members(found.images, train),
        _members(found.images, held_out),
        0.0,
        (str(root.joinpath(*train)), str(root.joinpath(*held_out))),
        unused,
    )


def _named(root: pathlib.Path, found: Found, train: str, held_out: str | None) -> Division:
    """Divide into subfolders that the user named, several joined by +."""

    def prefixes(text: str) -> list[Parts]:
        for names in ([text], text.split("+")):
            chosen = [pathlib.PurePath(name.strip()).parts for name in names]
            if all(parts and parts in found.folders for parts in chosen):
                return chosen
        there = sorted("/".join(parts) for parts in found.folders if len(parts) == 1)
        raise ValueError(f"split names {text!r}, but the subfolders of {root} are {there}")

    parts = []
    for text in (train, held_out):
        if text is None:
            continue
        members = [member for prefix in prefixes(text) for member in _members(found.images, prefix)]
        if not members:
            raise ValueError(f"no images in {root / text}")
        parts.append(sorted(set(members), key=lambda member: root.joinpath(*member[0])))
    names = (str(root / train), str(root / (held_out or "")))
    if held_out is None:
        return Division(parts[0], None, 0.0, names, [])
    if both := {file for file, _ in parts[0]} & {file for file, _ in parts[1]}:
        raise ValueError(
            f"split={(train, held_out)!r} has {len(both)} images in both parts, such as "
            f"{'/'.join(min(both))}"
        )
    return Division(parts[0], parts[1], 0.0, names, [])


def _parts_in_classes(root: pathlib.Path, found: Found, fraction: float | None) -> Division | None:
    """Divide folders of classes that are each divided: cat/train, cat/test, dog/train, ..."""
    kinds = {parts: _kind(parts[1]) if len(parts) > 2 else None for parts in found.images}
    held_out_kinds = set(kinds.values()) & {"validation", "test"}
    if "training" not in kinds.values() or not held_out_kinds:
        return None
    # One class may have such a folder by chance; a division has both in one class.
    divided = {parts[0] for parts, kind in kinds.items() if kind == "training"}
    divided &= {parts[0] for parts, kind in kinds.items() if kind in held_out_kinds}
    if not divided:
        return None
    first = min(divided)
    stray = [parts for parts, kind in kinds.items() if kind is None]
    if stray and fraction is None:
        raise ValueError(
            f"it is not clear what of {root} is to be trained on: {first} is divided into training "
            "and "
            f"held-out images, but {len(stray)} images lie elsewhere, such as "
            f"{'/'.join(stray[0])}. "
            "Move them, or give the fraction to hold out of all, such as split=0.2"
        )
    if stray:
        return None
    held_out = "validation" if "validation" in held_out_kinds else "test"
    if fraction is not None:
        _refuse_fraction(
            root, fraction, f"{first}/train", f"{first}/{held_out}", "move one of them away"
        )

    def of_kind(wanted: str) -> Members:
        return [(parts, parts[0]) for parts in found.images if kinds[parts] == wanted]

    names = (f"{root}/*/train", f"{root}/*/{held_out}")
    return Division(of_kind("training"), of_kind(held_out), 0.0, names, [])


def _refuse_fraction(
    place: Any, fraction: float, train: str, held_out: str, otherwise: str
) -> None:
    raise ValueError(
        f"split={fraction} of {place}, which is divided already, would train on images of "
        f"{held_out}: "
        f"leave split out to use {train} and {held_out}, or {otherwise} to hold out a fraction of "
        f"{train}"
    )


def _parted(found: Found, around: Parts) -> _Parted | None:
    """What the names of a folder's subfolders say; None if none of them is called like a part."""
    depth = len(around)
    tops = _tops(found.images, around)
    # An empty `val` is still a part, and its emptiness a mistake to be told.
    folders = {
        parts[depth]
        for parts in found.folders
        if parts[:depth] == around and len(parts) == depth + 1
    }
    named = {kind: [] for kind in ("training", "validation", "test")}  # type: dict[str, list[str]]
    for name in sorted(folders):
        if (kind := _kind(name)) is not None:
            named[kind].append(name)
    if not any(name in tops for names in named.values() for name in names):
        return None
    others = [name for name in tops if _kind(name) is None]
    loose = _loose(found.images, around)
    beside = ", ".join(others[:5] + (["..."] if len(others) > 5 else []))
    beside += (" and " if beside and loose else "") + (f"{loose} images" if loose else "")
    held_out = named["validation"] or named["test"]
    train = named["training"]
    problem = None
    if len(train) > 1:
        problem = f"{len(train)} folders are called like the training part, {' and '.join(train)}"
    elif len(held_out) > 1:
        names = held_out
        problem = f"{len(names)} folders are called like the held-out part, {' and '.join(names)}"
    elif not train:
        names = named["validation"] + named["test"]
        called = " and ".join(names) + (" is" if len(names) == 1 else " are")
        problem = f"{called} called like a held-out part, but there is no training part"
        problem += (
            f", only {beside}: move what is to be trained on into a folder train" if beside else ""
        )
    elif not held_out and (others or loose):
        problem = f"{train[0]} is called like the training part, but there is no held-out part"
        problem += f", only {beside}"
    return _Parted(
        train[0] if train else None, held_out[0] if held_out else None, others, loose, problem
    )


def _kind(name: str) -> str | None:
    """Which part a folder's name speaks of: "Train", "train2017" and "training_set" of training."""
    word = re.sub(r"[^a-z]", "", name.lower())
    for text in (word, _AFTER.sub("", word)):
        for kind, names in (("training", _TRAINING), ("validation", _VALIDATION), ("test", _TEST)):
            if text in names:
                return kind
    return None


def _tops(images: list[Parts], around: Parts) -> list[str]:
    """The subfolders of a folder that hold images, sorted."""
    depth = len(around)
    return sorted(
        {parts[depth] for parts in images if parts[:depth] == around and len(parts) > depth + 1}
    )


def _loose(images: list[Parts], around: Parts) -> int:
    """How many images lie in the folder itself."""
    return sum(parts[:-1] == around for parts in images)


def _members(images: list[Parts], around: Parts) -> Members:
    """The images below a folder, each with the class that the folder below names."""
    depth = len(around)
    return [
        (parts, parts[depth] if len(parts) > depth + 1 else None)
        for parts in images
        if parts[:depth] == around
    ]
