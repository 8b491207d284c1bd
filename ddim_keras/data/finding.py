"""Which files below a folder are images of the data set, and which are not."""

from __future__ import annotations

import hashlib
import os
import pathlib
import warnings
from collections import defaultdict
from typing import NamedTuple

from ddim_keras.data import decoding, tfds_source
from ddim_keras.data.source import EMBEDDED

# As parts below the data set's folder: ("train", "cat", "1.jpg").
Parts = tuple[str, ...]
_COMMON = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
# Of operating systems, network disks and archives; hidden ones are left out as well.
_OF_SYSTEMS = {
    *("@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found"),
    *(
        "system volume information",
        "network trash folder",
        "temporary items",
        "__macosx",
        "__pycache__",
    ),
}
# What lies beside photos and is no picture: no word about it.
_NO_PICTURES = {
    *(
        ".txt",
        ".md",
        ".rst",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".xml",
        ".xmp",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
    ),
    *(
        ".cfg",
        ".log",
        ".html",
        ".htm",
        ".css",
        ".js",
        ".url",
        ".lnk",
        ".db",
        ".aae",
        ".thm",
        ".py",
        ".sh",
        ".bat",
    ),
    *(
        ".ipynb",
        ".doc",
        ".docx",
        ".xlsx",
        ".odt",
        ".sha256",
        ".md5",
        ".part",
        ".crdownload",
        ".tmp",
        ".lock",
    ),
}
_NO_PICTURE_NAMES = {
    "license",
    "licence",
    "copying",
    "notice",
    "readme",
    "changelog",
    "makefile",
    "dockerfile",
}
_FIRST_BYTES = 4096
_PLACES = 64  # looked at in each file of TFDS, which holds many images
_NAMED = 3  # files named in a message; the rest are counted
_NO_SUFFIX, _BROKEN_LINK, _CLOSED = (
    "without a suffix",
    "links to nothing",
    "folders that cannot be opened",
)


class Found(NamedTuple):
    """What lies below a folder.

    Attributes:
        images: of files that Pillow reads, by their suffix, sorted.
        folders: of all folders that were looked into.
        left_out: names of files that are not read, by their suffix or what else is wrong with them.
        twice: (a link, where it leads): what is counted elsewhere already.
    """

    images: list[Parts]
    folders: set[Parts]
    left_out: dict[str, list[str]]
    twice: list[tuple[str, str]]


def find_images(root: pathlib.Path) -> Found:
    """Look for images below a folder, following links but counting each file once.

    Left out are hidden files and folders, those of operating systems, and what this package writes,
    which is runs, exports, presets and caches. A folder that is linked to counts where it is, a
    file where the link is.

    Raises:
        ValueError: there are none.
    """
    walk = _Walk(root)
    walk.into((), os.path.realpath(root))
    walk.follow_links()
    # As paths are compared, without one of each file.
    images = sorted(walk.files.values(), key=lambda parts: [*map(os.path.normcase, parts)])
    found = Found(images, walk.folders, dict(walk.left_out), walk.twice)
    if not images:
        readable = decoding.suffixes()
        common = [suffix for suffix in _COMMON if suffix in readable]
        others = f" or another of the {len(readable)} that Pillow reads"
        instead = f"; found {_listing(found.left_out)}" if found.left_out else ""
        if walk.of_ours:
            instead += (
                f"; not read: {', '.join(walk.of_ours[:_NAMED])}, which this package wrote: name "
                "its folder itself"
            )
        raise ValueError(
            f"no images in {root}: expected files ending in {', '.join(common)}{others}{instead}"
        )
    return found


def fingerprint(source: str, data_dir: str | None = None) -> str | None:
    """Return by what images are known wherever they stand: names, sizes and first bytes of their
    files.

    Args:
        source: as for `load_dataset`: a folder, or the name of a TFDS data set.
        data_dir: where TFDS keeps its data; None for ~/tensorflow_datasets.

    Returns:
        A SHA-256; or None for the embedded images, and for a data set that is not on disk.
    """
    if source == EMBEDDED:
        return None
    root = pathlib.Path(source).expanduser()
    if not root.is_dir():
        prepared = tfds_source.prepared_folder(source, data_dir)
        if prepared is None:
            return None
        root = prepared
    digest = hashlib.sha256()
    if (root / "dataset_info.json").is_file():  # a prepared TFDS data set
        # Not its descriptions: to prepare the same images anew changes their words.
        paths = sorted(path for path in root.iterdir() if path.suffix not in (".json", ".txt"))
        named = [(path.name, path, _PLACES) for path in paths if path.is_file()]
    else:
        found = find_images(root).images
        named = [("/".join(parts), root.joinpath(*parts), 1) for parts in found]
    for name, path, places in named:
        size = path.stat().st_size
        digest.update(f"{name} {size} ".encode())
        with open(path, "rb") as file:
            for place in range(places):
                file.seek(size * place // places)
                digest.update(file.read(_FIRST_BYTES))
    return digest.hexdigest()


def warn_of_left_out(root: pathlib.Path, found: Found) -> None:
    """Say once which files are not read, and which were reached twice."""
    if found.left_out:
        number = sum(len(names) for names in found.left_out.values())
        heic = any(suffix in found.left_out for suffix in (".heic", ".heif", ".hif"))
        advice = " (or register the opener of the package pillow-heif)" if heic else ""
        warnings.warn(
            f"{number} files in {root} are left out beside {len(found.images)} images: "
            f"{_listing(found.left_out)}. Pillow does not read them: convert what should be "
            "trained "
            f"on to PNG or JPEG{advice}",
            stacklevel=4,
        )
    if found.twice:
        link, target = found.twice[0]
        warnings.warn(
            f"{len(found.twice)} links in {root} lead to files that are counted once only: the "
            f"first is {link}, which leads to {target}",
            stacklevel=4,
        )


def _listing(left_out: dict[str, list[str]]) -> str:
    texts = []
    for kind, names in sorted(left_out.items(), key=lambda item: (-len(item[1]), item[0])):
        named = ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        texts.append(f"{len(names)} {kind} ({named})")
    return ", ".join(texts)


class _Walk:
    """A walk over a folder: what is in it first, then what its links lead to."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.suffixes = decoding.suffixes()
        self.files: dict[str, Parts] = {}  # by real path
        self.folders: set[Parts] = set()
        self.left_out: dict[str, list[str]] = defaultdict(list)
        self.twice: list[tuple[str, str]] = []
        self.links: list[Parts] = []
        self.of_ours: list[str] = []  # runs and other folders that this package wrote
        self.seen: dict[str, Parts] = {}  # folders, by real path

    def into(self, parts: Parts, real: str) -> None:
        """Look into a folder; its links are only noted."""
        try:
            entries = sorted(os.scandir(self.root.joinpath(*parts)), key=lambda entry: entry.name)
        except OSError:
            if not parts:
                raise
            self.left_out[_CLOSED].append(os.path.join(*parts))
            return
        if parts and _is_written_by_us(
            self.root.joinpath(*parts), {entry.name for entry in entries}
        ):
            self.of_ours.append(os.path.join(*parts))
            return
        self.seen[real] = parts
        self.folders.add(parts)
        for entry in entries:
            inner = (*parts, entry.name)
            if entry.name.startswith(".") or entry.name.lower() in _OF_SYSTEMS:
                continue
            if entry.is_symlink():
                self.links.append(inner)
            elif entry.is_dir():
                self.into_once(inner, os.path.join(real, entry.name))
            elif entry.is_file():
                self.take(inner, os.path.join(real, entry.name))

    def follow_links(self) -> None:
        """Look into what links lead to, and the links found there, each folder once."""
        real_root = os.path.realpath(self.root)
        while self.links:
            parts = self.links.pop(0)
            link, real = os.path.join(*parts), os.path.realpath(self.root.joinpath(*parts))
            if not os.path.exists(real):
                self.left_out[_BROKEN_LINK].append(link)
            elif os.path.isfile(real):
                self.take(parts, real)
            elif (real_root + os.sep).startswith(real.rstrip(os.sep) + os.sep):  # one around it
                self.twice.append((link, real))
            else:
                self.into_once(parts, real)

    def into_once(self, parts: Parts, real: str) -> None:
        """As `into`, unless another way has led there already."""
        if real in self.seen:
            self.twice.append((os.path.join(*parts), os.path.join(*self.seen[real])))
        else:
            self.into(parts, real)

    def take(self, parts: Parts, real: str) -> None:
        """Note a file as an image, as left out, or not at all."""
        stem, suffix = os.path.splitext(parts[-1].lower())
        if parts == ("contact_sheet.png",):  # of all images, which an export leaves among them
            return
        if suffix not in self.suffixes:
            if suffix not in _NO_PICTURES and not (not suffix and stem in _NO_PICTURE_NAMES):
                self.left_out[suffix or _NO_SUFFIX].append(os.path.join(*parts))
            return
        if real in self.files:
            self.twice.append((os.path.join(*parts), os.path.join(*self.files[real])))
        self.files[real] = parts


def _is_written_by_us(folder: pathlib.Path, names: set[str]) -> bool:
    """Whether this package wrote a folder: a run, an export, a preset, or a cache."""

    def says(name: str, *words: str) -> bool:
        if name not in names:
            return False
        try:
            with open(folder / name, encoding="utf-8", errors="replace") as file:
                text = file.read(1 << 16)
        except OSError:
            return False
        return all(word in text for word in words)

    return (
        {"dataset_spec.pb", "snapshot.metadata"} <= names
        or {"config.yaml", "checkpoints"} <= names
        or {"preset.json", "weights.npz"} <= names
        # A run that has no checkpoint yet, a preset without weights.
        or says("config.yaml", "\ncheckpoint_every:", "\npreset:", "\nvalidate_every:")
        or says("preset.json", '"model"', '"has_weights"')
        or says("metadata.json", '"model_sha256"')
    )
