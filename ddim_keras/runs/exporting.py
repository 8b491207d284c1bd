"""Many generated images in a folder: as PNGs or shards, resumed after a kill, spread over
machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import platform
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from ddim_keras import plotting
from ddim_keras.data.batches import as_array
from ddim_keras.diffusion.schedules import GivenBetaSchedule, ZeroTerminalSNRSchedule
from ddim_keras.diffusion.spacings import FittedSpacing
from ddim_keras.model import DiffusionModel
from ddim_keras.runs.checkpoints import DivergedError, weights_are_finite
from ddim_keras.samplers import FittedSampler, Sampler
from ddim_keras.sampling.conditioning import Conditioning, conditioning
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.sampling.generate import PlannedWalk, plan_walk
from ddim_keras.sampling.guidance import Autoguidance, count_evaluations
from ddim_keras.support import backend, files, folder_locks, reading
from ddim_keras.support.arguments import integer, positive_int
from ddim_keras.support.random import MOST_IMAGES
from ddim_keras.support.types import ImageArray
from ddim_keras.support.version import __version__

_DESCRIPTION = "metadata.json"
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
_CONTACT_SHEET = 64  # images
_OF_COLOURS = ("png", "tfrecord")  # what writes PNGs
_TOLD_BESIDE = ("versions", "network_evaluations")  # what does not fix the images by itself


def export_images(
    model: DiffusionModel,
    folder: str | os.PathLike,
    num_images: int,
    *,
    format: str = "png",
    shard_size: int = 1000,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
    batch_size: int | None = None,
    tell: Callable[[str], None] = print,
    **sampling: Any,
) -> int:
    """Generate images into a folder, each fixed by the seed and its number alone, at constant
    memory.

    A shard is a part of the numbers. It is written beside and renamed, and skipped where it stands
    already: started again, a killed export resumes. A shard that has been damaged since is made
    again, with a warning. `metadata.json` says what made the images; a folder of other images is
    refused.

    Args:
        model: a trained model.
        folder: gets `shard_00000/000000.png`, ..., or `shard_00000.npz` (uint8 array `images`), or
            `shard_00000.tfrecord` (of `image/encoded` PNGs with `image/number`);
            `contact_sheet.png` of the first images; and `metadata.json`.
        num_images: in all, over all machines.
        format: "png", "npz" or "tfrecord".
        shard_size: images in a shard.
        shard: (i, n): of n machines this is the i-th, from 0; it makes every n-th shard.
        seed: integer in [0, 2**32).
        batch_size: images made at a time, as for `generate`.
        tell: called with a line for each shard.
        **sampling: as for `DiffusionModel.generate`: diffusion_steps, sampler, eta, labels,
            condition, guidance, ...

    Returns:
        How many shards were made now.

    Raises:
        ValueError: an argument out of its range, or a folder that holds other images.
        DivergedError: a weight of the model is NaN or infinite; nothing is written.
        BlockingIOError: another process makes the same part.
        NotADirectoryError, PermissionError: the folder cannot be written to.
    """
    num_images = checked_number(num_images)
    shard_size = positive_int("shard_size", shard_size)
    seed = integer("seed", seed, minimum=0, below=2**32)
    _check_format(format, model.image_shape[-1])
    refuse_diverged(model)
    starts = range(0, num_images, shard_size)
    machine, machines = _checked_part(shard, len(starts), shard_size)
    # Refuses what cannot work before anything is written.
    told = conditioning(
        model.engine,
        num_images,
        sampling.get("labels"),
        sampling.get("condition"),
        sampling.get("guidance"),
        model.engine.defaults.guidance,
    )
    plain = {name: sampling[name] for name in sampling if name not in ("labels", "condition")}
    options = {"seed": seed, "batch_size": batch_size, "verbose": 0, **plain}
    model.generate(0, **{**options, "guidance": None})
    walk = _walk(model, sampling, told)
    description = {
        "model_sha256": model_hash(model),
        "num_images": num_images,
        "format": format,
        "shard_size": shard_size,
        "seed": seed,
        "sampling": _described_sampling(sampling, model.engine.defaults, walk, told),
        "network_evaluations": count_evaluations(walk.planned, told.guidance),
        "versions": _versions(),
    }
    folder = _checked_folder(folder)
    # None of its shards is made twice.
    part = f"makes part {machine}/{machines} of the images"
    with folder_locks.only_one_in(folder, part, f".lock_{machine}_of_{machines}"):
        _describe(folder, description)
        made = 0
        for index in list(range(len(starts)))[machine::machines]:
            path = folder / (f"shard_{index:05d}" + ("" if format == "png" else f".{format}"))
            count = min(shard_size, num_images - starts[index])
            if path.exists() and _is_whole(path, format, count):
                continue
            these = told.arguments(np.arange(starts[index], starts[index] + count))
            images = model.generate(count, first_image=starts[index], **these, **options)
            if index == 0:
                plotting.save_images(folder / "contact_sheet.png", images[:_CONTACT_SHEET])
            _write_shard(path, format, images, starts[index])
            made += 1
            last = starts[index] + count - 1
            tell(f"{path.name}: images {starts[index]} to {last} of {num_images}")
        return made


def checked_number(num_images: Any) -> int:
    """The number of images, or ValueError where there are none, or more than a seed has."""
    return integer("num_images", num_images, minimum=1, below=MOST_IMAGES)


def _checked_part(shard: tuple[int, int], shards: int, shard_size: int) -> tuple[int, int]:
    machines = positive_int("the number of machines", shard[1])
    machine = integer("the machine's number", shard[0], minimum=0, below=machines)
    if machine >= shards:
        raise ValueError(
            f"there are only {shards} shards of {shard_size} images for {machines} machines: lower "
            "the shard size"
        )
    return machine, machines


def _checked_folder(folder: str | os.PathLike) -> pathlib.Path:
    """The folder as a path; of one with pictures that were not made here it is warned, as shards
    would be a class among them.
    """
    folder = files.expanded(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder for the images")
    if folder.suffix.lower() in _PICTURES and not folder.exists():
        raise ValueError(
            f"{folder} would be a folder, for the images, with the name of a picture: give another "
            f"name, such as {folder.with_suffix('')}"
        )
    if not (folder / _DESCRIPTION).exists() and (own := _picture_of(folder)) is not None:
        warnings.warn(
            f"{folder} holds images that were not generated here, such as {own}: the new ones will "
            "stand among them, and would be trained on with them. A folder of their own, such as "
            f"{folder / 'generated'}, keeps them apart",
            stacklevel=3,
        )
    return folder


def _picture_of(folder: pathlib.Path) -> pathlib.Path | None:
    """A picture of a folder of pictures, flat or one subfolder a class; None if it is none."""

    def first(place: pathlib.Path) -> pathlib.Path | None:
        return next((path for path in place.glob("*") if path.suffix.lower() in _PICTURES), None)

    below = [first(path) for path in folder.glob("[!.]*") if path.is_dir()]
    return first(folder) or (below[0] if below and all(below) else None)


def _write_shard(path: pathlib.Path, format: str, images: ImageArray, first: int) -> None:
    with files.written_beside(path) as temporary:
        FORMATS[format].write(temporary, np.rint(255.0 * images).astype("uint8"), first)


def refuse_diverged(model: DiffusionModel) -> None:
    """Raise DivergedError if a weight is NaN or infinite."""
    if not weights_are_finite(model):
        raise DivergedError(
            "the model's weights hold NaN or infinity: its training has diverged; nothing was "
            "written"
        )


def _check_format(format: str, channels: int) -> None:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {list(FORMATS)}, got {format!r}")
    if format in _OF_COLOURS and channels not in (1, 2, 3, 4):
        raise ValueError(
            f"PNG holds images of 1 to 4 channels, this model's have {channels}: give format='npz'"
        )


def model_hash(model: DiffusionModel) -> str:
    """Return a SHA-256 over what fixes the images: the configuration and the EMA weights."""
    config = {
        name: value
        for name, value in model.get_config().items()
        if name not in ("seed", "name", "ema_decay", "class_names", *_told_in_training(model))
    }
    # They change no prediction, and what makes an image is said beside.
    for name in ("samplers", "guidance", "version"):
        config["sampling_defaults"]["config"].pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    normalizer = model.normalizer
    for weight in (normalizer.mean, normalizer.variance, *model.ema_network.weights):
        digest.update(keras.ops.convert_to_numpy(weight).astype("float32").tobytes())
    return digest.hexdigest()


def _told_in_training(model: DiffusionModel) -> list[str]:
    """Settings of conditions, which older versions did not know, where the model has none."""
    names = {
        "num_classes": model.num_classes,
        "condition_shape": model.condition_shape,
    }
    training = ["label_dropout", "condition_dropout", "condition_noise"]
    return [*training, *(name for name, value in names.items() if value is None)]


def _described_sampling(
    sampling: dict[str, Any], defaults: SamplingDefaults, walk: PlannedWalk, told: Conditioning
) -> dict[str, Any]:
    """Return the arguments of `generate` that fix the images, the defaults that they stand for
    included, as JSON knows them.
    """
    given = {name: value for name, value in sampling.items() if name not in ("sampler", "eta")}
    own = walk.sampler.diffusion_steps
    given["diffusion_steps"] = own or defaults.steps(given.get("diffusion_steps"))
    if "clipping" in given or defaults.clipping is not None:
        given["clipping"] = defaults.clipping_for(given.get("clipping"))
    if told.guidance and given.get("guidance") is None:
        given["guidance"] = defaults.guidance
    described = {**given, "sampler": _described(walk.sampler), "spacing": walk.spacing}
    return {name: _plain(value) for name, value in sorted(described.items())}


def _plain(value: object) -> Any:
    """A value as JSON knows it: what is long by its hash, and not as it is printed, which leaves
    most of a long tensor out.
    """
    if isinstance(value, np.generic) or keras.ops.is_tensor(value) or hasattr(value, "__array__"):
        value = as_array(value)
        value = value.item() if value.ndim == 0 else value
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, np.ndarray) and value.ndim > 1:
        data = np.ascontiguousarray(value)
        return f"sha256 {hashlib.sha256(data.tobytes()).hexdigest()} of {data.shape}"
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(part) for part in value]
    if isinstance(value, Autoguidance):
        return f"{value!r} of {model_hash(value.model)}"
    listed = value.schedule if isinstance(value, ZeroTerminalSNRSchedule) else value
    if isinstance(listed, (FittedSpacing, GivenBetaSchedule)):
        return f"{value!r}, {_hash_of(listed.get_config())}"
    return repr(value)


def _hash_of(numbers: Any) -> str:
    return f"sha256 {hashlib.sha256(json.dumps(numbers).encode()).hexdigest()}"


def _described(sampler: Sampler) -> str:
    """A sampler by its name and settings; what was fitted by a hash of its numbers."""
    if not isinstance(sampler, FittedSampler):
        return repr(sampler)
    numbers = [sampler.angles.tolist(), sampler.weights]
    if sampler.start is not None:
        numbers.append(sampler.start.get_config())
    return f"{sampler!r}, {_hash_of(numbers)}"


def _walk(model: DiffusionModel, sampling: dict[str, Any], told: Conditioning) -> PlannedWalk:
    """The walk that makes an image."""
    names = ("diffusion_steps", "sampler", "eta", "spacing", "schedule", "network_evaluations")
    chosen = {name: sampling[name] for name in names if name in sampling}
    return plan_walk(model.engine, **chosen, guidance=told.guidance)


def _describe(folder: pathlib.Path, description: dict[str, Any]) -> None:
    """Write metadata.json, or refuse a folder whose images were made otherwise."""
    path = folder / _DESCRIPTION
    # Looked for first: another machine may write both meanwhile.
    has_shards = next(folder.glob("shard_*"), None) is not None
    if not path.is_file():
        if has_shards:
            raise ValueError(f"{folder} holds shards without metadata.json: choose another folder")
        with files.beside(path) as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n")
            files.place_first(temporary, path)
    found = reading.json_of(path, "choose another folder")
    if not found.keys() & description.keys():
        raise ValueError(
            f"{path} says nothing of generated images: it is of something else, so choose another "
            "folder"
        )
    different = [
        name
        for name in description
        if name not in _TOLD_BESIDE and found.get(name) != description[name]
    ]
    if different:
        changes = ", ".join(
            f"{name}: {found.get(name)!r} there, {description[name]!r} now" for name in different
        )
        raise ValueError(
            f"{folder} holds images that were made otherwise ({changes}): choose another folder"
        )


def _versions() -> dict[str, str]:
    return {
        "ddim_keras": __version__,
        "keras": keras.__version__,
        "backend": backend.BACKEND,
        "python": platform.python_version(),
    }


def _is_whole(path: pathlib.Path, format: str, count: int) -> bool:
    """Whether all images of a shard that is there can be read; warns if not."""
    try:
        found = FORMATS[format].count(path)
        problem = f"{found} images of {count}"
    except Exception as error:  # decoders raise whatever they like on damaged files
        found, problem = 0, f"{type(error).__name__}: {error}"
    if found != count:
        warnings.warn(f"{path} is damaged ({problem}): made again", stacklevel=3)
    return found == count


def _write_pngs(folder: pathlib.Path, images: np.ndarray, first: int) -> None:
    folder.mkdir()
    for number, image in enumerate(images, first):
        (folder / f"{number:06d}.png").write_bytes(_png(image))


def _count_pngs(folder: pathlib.Path) -> int:
    import PIL.Image

    paths = list(folder.glob("*.png"))
    for path in paths:
        with PIL.Image.open(path) as image:
            image.verify()
    return len(paths)


def _write_npz(path: pathlib.Path, images: np.ndarray, first: int) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, images=images, first_image=first)


def _count_npz(path: pathlib.Path) -> int:
    with np.load(path) as arrays:
        return len(arrays["images"])


def _write_tfrecord(path: pathlib.Path, images: np.ndarray, first: int) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, image in enumerate(images, first):
            features = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[_png(image)])
                ),
                "image/number": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
            }
            writer.write(
                tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
            )


def _count_tfrecord(path: pathlib.Path) -> int:
    import tensorflow as tf

    return sum(1 for _ in tf.data.TFRecordDataset(str(path)))


def _png(image: np.ndarray) -> bytes:
    import io

    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


class _Format(NamedTuple):
    """How a shard is written, and how many images of one that is there can be read."""

    write: Callable[[pathlib.Path, np.ndarray, int], None]
    count: Callable[[pathlib.Path], int]


FORMATS = {
    "png": _Format(_write_pngs, _count_pngs),
    "npz": _Format(_write_npz, _count_npz),
    "tfrecord": _Format(_write_tfrecord, _count_tfrecord),
}
