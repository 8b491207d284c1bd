"""The images to score a model against: those that were not trained on."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ddim_keras import data as datasets
from ddim_keras.data.batches import taken_apart
from ddim_keras.runs.config import RunConfig
from ddim_keras.support import files
from ddim_keras.support.types import Dataset, ImageArray, ImageShape, Split

if TYPE_CHECKING:
    import tensorflow as tf

BATCH_SIZE = 100
_MOST_NUMBERS = 100_000_000  # 400 MB


def held_out_images(
    image_shape: ImageShape, run: str | os.PathLike | None = None, **chosen: Any
) -> tf.data.Dataset:
    """Return the validation part of a data set, of a run's own if nothing else is said.

    Args:
        image_shape: the model's (height, width, channels).
        run: the folder of a run, whose settings count where others are not given. Anything else is
            no run, and the embedded images are taken.
        **chosen: data, split, data_dir, fit and labels, as for `load_dataset`; what is None or not
            given is the run's.

    Returns:
        Batches of images, or of what the run's task makes of them.

    Raises:
        ValueError: the data set has no validation part, or cannot be read.
    """
    _, validation, config = _loaded(image_shape, run, **chosen)
    if validation is None:
        raise ValueError(f"{chosen.get('data') or config.data} has no images kept for validation")
    return for_task(validation, config.task, config.factor) if config.task else validation


def _loaded(
    image_shape: ImageShape,
    run: str | os.PathLike | None,
    *,
    data: str | None = None,
    split: Split = None,
    data_dir: str | None = None,
    fit: str | None = None,
    labels: bool = False,
) -> tuple[Dataset, Dataset, RunConfig]:
    """Return the two parts of a data set, and the run's configuration."""
    settings = files.expanded(run or "") / "config.yaml"
    config = RunConfig.read(settings) if run is not None and settings.is_file() else RunConfig()
    if split is None and data in (None, config.data):
        split = config.split
    *size, channels = image_shape
    loaded = datasets.load_dataset(
        config.data if data is None else data,
        size,
        BATCH_SIZE,
        channels=channels,
        labels=labels,
        fit=fit or config.fit,
        background=config.background,
        bits=config.bits,
        unreadable=config.unreadable,
        data_dir=data_dir or config.data_dir,
        split=tuple(split) if isinstance(split, list) else split,
        seed=config.seed,  # what was trained on must not come back here
    )
    return *loaded, config


def training_images(
    image_shape: ImageShape, run: str | os.PathLike | None = None, **chosen: Any
) -> tf.data.Dataset:
    """Return the training part of a data set, of a run's own if nothing else is said; as
    `held_out_images`.
    """
    return _loaded(image_shape, run, **chosen)[0]


def some_training_images(
    image_shape: ImageShape, run: str | os.PathLike | None = None, **chosen: Any
) -> ImageArray:
    """Return 2,000 images of the training part of a data set, fewer of large ones; as
    `training_images`.
    """
    number = min(2000, _MOST_NUMBERS // math.prod(image_shape))
    batches, found = [], 0
    for batch in training_images(image_shape, run, **chosen):
        batches.append(np.asarray(batch))
        found += len(batches[-1])
        if found >= number:
            break
    return np.concatenate(batches)[:number]


def spread_over(validation: Dataset, number: int | None, batch_size: int) -> Any:
    """Return about as many images of a validation set: every so many batches, as it may be sorted
    by class.
    """
    if validation is None or number is None:
        return validation
    stride = -(-int(validation.cardinality()) // -(-number // batch_size))
    return validation.shard(stride, 0) if stride > 1 else validation


def for_task(dataset: Dataset, task: str, factor: int) -> Any:
    """Return a data set with what its images are to be made from.

    Args:
        dataset: as `load_dataset` makes it.
        task, factor: as in `RunConfig`.
    """
    if task == "colorization":
        return datasets.pairs.colorization(dataset)
    return datasets.pairs.super_resolution(dataset, factor)


def conditions_of(dataset: Dataset, number: int) -> np.ndarray:
    """Return the conditions of the first `number` images of a data set, or of as many as there
    are.
    """
    found: list[np.ndarray] = []
    for batch in dataset:
        found.append(np.asarray(taken_apart(batch).condition))
        if sum(map(len, found)) >= number:
            break
    return np.concatenate(found)[:number]
