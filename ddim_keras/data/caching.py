"""Where resized images are kept: in memory, in files, or nowhere."""

from __future__ import annotations

import hashlib
import os
import pathlib
import warnings

from ddim_keras.support import files, memory
from ddim_keras.support.types import Dataset

AUTO = "auto"
FOLDER_VARIABLE = "DDIM_KERAS_CACHE"
# Of free memory, and of free disk: so much may be taken without being asked for.
_SHARE = 0.5
# What the command line calls them.
_NAMES = {"memory": True, "no": False}


def chosen(
    cache: bool | str | os.PathLike, number: int, image_bytes: int, what: str
) -> bool | str | os.PathLike:
    """Return where images are kept: as the user says, or where there is room for them.

    Args:
        cache: as for `load_dataset`.
        number: of images; negative if it is not known.
        image_bytes: of one resized image.
        what: what to call the data set in a message.

    Returns:
        True for memory, False to read them anew each time, or a folder.

    Raises:
        ValueError: what is none of these.
    """
    if not isinstance(cache, (bool, str, os.PathLike)):
        raise ValueError(
            f'cache must be True, False, "auto" or the path of a folder, got {cache!r}'
        )
    if isinstance(cache, (bool, os.PathLike)) or cache != AUTO:
        return _NAMES.get(cache, cache) if isinstance(cache, str) else cache
    free = memory.available()
    needed = number * image_bytes
    if number < 0 or free is None or needed <= _SHARE * free:
        return True
    size = memory.readable(needed)
    reason = (
        f"the resized images of {what} take {size}, more than half of the "
        f"{memory.readable(free)} of memory that are free"
    )
    folder = default_folder()
    if needed <= _SHARE * memory.free_on_disk(folder):
        warnings.warn(
            f"{reason}: they are kept in files in {folder}, which may be removed after the "
            "training. cache=True would keep them in memory, cache='folder' elsewhere, and "
            "cache=False would read the originals anew in each epoch",
            stacklevel=3,
        )
        return folder
    warnings.warn(
        f"{reason}, and than half of what is free on the disk of {folder}: the originals are read "
        "anew in each epoch. cache='folder' would keep them in files on another disk",
        stacklevel=3,
    )
    return False


def default_folder() -> pathlib.Path:
    """Return the folder for files where the user names none: DDIM_KERAS_CACHE, or one for caches
    in the user's home.
    """
    if own := os.environ.get(FOLDER_VARIABLE):
        return pathlib.Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "ddim_keras"


def cached(dataset: Dataset, cache: bool | str | os.PathLike, name: str, identity: str) -> Dataset:
    """Keep a data set in memory, in a folder of a cache, or nowhere.

    Args:
        dataset: of resized images.
        cache: True for memory, False for nowhere, or the cache's folder.
        name: of the folder.
        identity: tells the data set from others of the same name.
    """
    import tensorflow as tf

    if cache is True:
        return dataset.cache()
    if cache is False:
        return dataset
    # tf.data's own cache file is left locked by a killed process; a folder that is renamed when
    # whole is not.
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    place = files.expanded(cache) / f"{name}_{digest}"
    if not place.exists():
        with files.beside(place) as temporary:
            dataset.save(str(temporary))
            files.place_first(temporary, place)  # another process may read its own by now
    return tf.data.Dataset.load(str(place))
