"""Models in the format of diffusers: folders with model_index.json, unet/ and scheduler/.

Neither diffusers nor PyTorch is needed, unless the weights are in a .bin file.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddim_keras.networks.ddpm_unet import DDPMUNet
from ddim_keras.presets import (
    ddpm_names,
    diffusers_configs,
    diffusers_schedulers,
    safetensors,
    weight_files,
)
from ddim_keras.support import files, reading
from ddim_keras.support.arguments import positive_int, truth
from ddim_keras.support.types import Config

_INDEX, _OWN = "model_index.json", "ddim_keras.json"
_SCHEDULER = "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model"
_FORMAT = 1
_LABELS = "class_embedding.weight"


class Published(NamedTuple):
    """A model that another library wrote.

    Attributes:
        config: arguments of `DiffusionModel`, the network as arguments of `ddpm_unet`.
        arrays: its weights by their names there.
        naming: whose names they are.
        source: where it was found.
    """

    config: Config
    arrays: ddpm_names.Arrays
    naming: ddpm_names.Naming
    source: str


def may_be_of_diffusers(path: pathlib.Path) -> bool:
    """Whether a folder holds a pipeline, a part of one, or versions of one in the Hub's cache."""
    parts = (_INDEX, "unet", "config.json")
    return _is_cache(path) or path.is_dir() and any((path / part).exists() for part in parts)


def _is_cache(folder: pathlib.Path) -> bool:
    """Whether a folder is one of the Hub's cache, models--owner--name."""
    return (folder / "snapshots").is_dir() and (folder / "refs").is_dir()


def read(
    source: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    null_class: bool | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> Published:
    """Read a folder of diffusers', or one of the Hub.

    Args:
        source: a folder, or a name on the Hub, "google/ddpm-cifar10-32".
        image_size: instead of the configuration's.
        null_class: whether the last of the class embeddings says nothing; None for what the folder
            says if we wrote it, and False otherwise: then a vector of zeros says nothing.
        variant: which of several weights, "fp16" or "ema".
        revision: which version, on the Hub.

    Raises:
        ValueError: no such folder, a damaged file, or what has no counterpart here; names it.
        ImportError: the Hub is asked, but huggingface_hub is not installed.
    """
    folder = files.expanded(source)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file: give the folder that diffusers wrote; a checkpoint is read by "
            "DiffusionModel.from_checkpoint"
        )
    if not folder.is_dir():
        folder = _from_hub(source, revision)
    folder = _snapshot(folder, revision)
    _check_pipeline(folder)
    unet = _network_folder(folder)
    own = _json(folder / _OWN) if (folder / _OWN).is_file() else {}
    if own and own.get("format") != _FORMAT:
        raise ValueError(
            f"{folder / _OWN} has format {own.get('format')}, this version of ddim_keras reads "
            f"{_FORMAT}: update ddim_keras"
        )
    network = _settings(
        unet / "config.json",
        lambda config: diffusers_configs.network_settings(config, image_size),
    )
    config = _settings(
        _scheduler_folder(folder) / _SCHEDULER,
        lambda config: diffusers_schedulers.scheduler_settings({**_scheduler_of(folder), **config}),
    )
    if (steps := own.get("diffusion_steps")) is not None:
        config["sampling_defaults"].diffusion_steps = positive_int(
            f"the diffusion_steps of {folder / _OWN}", steps
        )
    arrays = dict(_weights(unet, variant))
    has_null = own.get("null_class", False) if null_class is None else null_class
    has_null = truth(f"null_class, or that of {folder / _OWN},", has_null)
    if network["num_classes"] is not None:
        _bring_labels(arrays, network, has_null, folder)
        config["num_classes"] = network["num_classes"]
        config["class_names"] = own.get("class_names")
    elif null_class:
        raise ValueError(f"the network of {folder} takes no labels: leave null_class out")
    config["image_size"] = network["image_shape"][:2]
    config["channels"] = network["image_shape"][2]
    config["network"] = network
    old = any(name.endswith(".proj_attn.weight") for name in arrays)
    naming = ddpm_names.OLD_DIFFUSERS if old else ddpm_names.DIFFUSERS
    return Published(config, arrays, naming, str(folder))


def write(
    folder: str | os.PathLike, network: DDPMUNet, model: Mapping[str, Any], has_null: bool
) -> None:
    """Write a folder that diffusers' `DDIMPipeline.from_pretrained` takes; beside and renamed.

    Args:
        folder: where to; such a folder that stands there is replaced, but for what else is in it, a
            model card say.
        network: whose weights are written, as safetensors.
        model: what else it takes: "schedule", "parameterization", "sampling_defaults" and
            "class_names" of a `DiffusionModel`.
        has_null: whether the network has learned what the null class's vector is.

    Raises:
        ValueError: something else stands there, or the model has what the format has no place for;
            nothing is written.
    """
    path = files.expanded(folder).resolve()
    if not files.is_free(path) and not (path / _INDEX).is_file():
        raise ValueError(
            f"{path} exists and is no folder of diffusers': choose another, or remove it"
        )
    if (path / _INDEX).is_file() and not _is_known(_json(path / _INDEX)):
        raise ValueError(
            f"{path} holds a pipeline of another kind, which would be lost: choose another folder"
        )
    arrays = ddpm_names.arrays_of(network, ddpm_names.DIFFUSERS)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError(
            "the weights hold NaN or infinity: the training has diverged; nothing was written"
        )
    has_null = has_null and _LABELS in arrays and bool(np.any(arrays[_LABELS][-1]))
    if _LABELS in arrays and not has_null:
        arrays[_LABELS] = arrays[_LABELS][:-1]
    scheduler = diffusers_schedulers.scheduler_config(
        model["schedule"], model["parameterization"], model["sampling_defaults"]
    )
    index = {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": diffusers_configs.VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    own = {"format": _FORMAT, "null_class": has_null, "class_names": model["class_names"]}
    own["diffusion_steps"] = model["sampling_defaults"].diffusion_steps
    unet = diffusers_configs.network_config(network.settings, has_null)
    with files.written_beside(path) as temporary:
        for part in ("unet", "scheduler"):
            (temporary / part).mkdir(parents=True)
        _write_json(temporary / _INDEX, index)
        _write_json(temporary / _OWN, own)
        _write_json(temporary / "unet" / "config.json", unet)
        _write_json(temporary / "scheduler" / _SCHEDULER, scheduler)
        safetensors.write(temporary / "unet" / f"{_WEIGHTS}.safetensors", arrays)
        files.keep_others(path, temporary)


def _settings(path: pathlib.Path, read: Callable[[Config], Config]) -> Config:
    """What a configuration says, as `read` understands it; errors name the file."""
    config = _json(path)
    try:
        return read(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Nothing was loaded") from error


def _bring_labels(
    arrays: dict[str, npt.NDArray[Any]], network: Config, has_null: bool, folder: pathlib.Path
) -> None:
    """Let the last of the class embeddings be the null class's; zeros, where it has none."""
    classes = network["num_classes"]
    if has_null:
        if classes == 1:
            raise ValueError(
                f"the network of {folder} has a single class, which cannot be the one that says "
                "nothing: leave null_class out"
            )
        network["num_classes"] -= 1
    elif _LABELS in arrays:
        table = arrays[_LABELS]
        if table.ndim != 2 or len(table) != classes:
            raise ValueError(
                f"the weights of {folder} do not fit its configuration: {_LABELS} is {table.shape} "
                f"for {classes} classes. Nothing was loaded"
            )
        arrays[_LABELS] = np.concatenate([table, np.zeros_like(table[:1])])


def _from_hub(source: str | os.PathLike, revision: str | None) -> pathlib.Path:
    name = os.fspath(source)
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name[0] in "./~":
        raise ValueError(
            f"no folder at {name}: expected one with model_index.json, or a name on the Hub, such "
            "as google/ddpm-cifar10-32"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"no folder at {name}; to fetch it from the Hub, pip install 'ddim_keras[hub]', or "
            "download it and give the folder"
        ) from error
    try:
        fetched = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", f"*{_WEIGHTS}*"],
            ignore_patterns=["checkpoint-*/*"],
        )
        return pathlib.Path(fetched)
    except Exception as error:  # whatever the network and the Hub have to say
        raise ValueError(
            f"{name} is no folder, and could not be fetched from the Hub ({error}): is the name "
            "right, and is there a connection?"
        ) from error


def _check_pipeline(folder: pathlib.Path) -> None:
    if not (folder / _INDEX).is_file():
        if not (_network_folder(folder) / "config.json").is_file():
            raise ValueError(f"{folder} has no {_INDEX}: expected a folder that diffusers wrote")
        if not (_scheduler_folder(folder) / _SCHEDULER).is_file():
            raise ValueError(
                f"{folder} holds a network, but not the noise levels that it was trained on: write "
                f"them to {folder / 'scheduler' / _SCHEDULER}, by diffusers' "
                "DDPMScheduler(...).save_pretrained, or give the folder of the whole pipeline"
            )
        return
    index = _json(folder / _INDEX)
    kind = _network_of(index)
    if kind != "UNet2DModel":
        raise ValueError(
            f"{folder / _INDEX} describes a {index.get('_class_name')} with the network {kind}: "
            "only unconditional and class-conditional pipelines with a UNet2DModel can be read"
        )
    if others := _others_of(index):
        raise ValueError(
            f"{folder / _INDEX} describes a {index.get('_class_name')}, which also has a "
            f"{' and a '.join(others)}: only pipelines that are a network of images and a "
            "scheduler can be read, none of latents or of spectrograms"
        )


def _is_known(index: Config) -> bool:
    return _network_of(index) == "UNet2DModel" and not _others_of(index)


def _others_of(index: Config) -> list[str]:
    """The parts of a pipeline besides the network and the scheduler; null are those it lacks."""
    return [
        name
        for name, part in sorted(index.items())
        if isinstance(part, list) and any(part) and name not in ("unet", "scheduler")
    ]


def _network_of(index: Config) -> Any:
    found = index.get("unet")
    return found[1] if isinstance(found, list) and len(found) == 2 else None


def _scheduler_of(folder: pathlib.Path) -> Config:
    """What a pipeline says of its scheduler, which the scheduler's own configuration may leave
    out.
    """
    path = folder / _INDEX
    found = _json(path).get("scheduler") if path.is_file() else None
    if isinstance(found, list) and len(found) == 2 and isinstance(found[1], str):
        return {"_class_name": found[1]}
    return {}


def _part(folder: pathlib.Path, name: str, config: str) -> pathlib.Path:
    """The folder of a part of a pipeline and its configuration; the oldest ones have all in one."""
    has_all = not (folder / name).is_dir() and (folder / config).is_file()
    return folder if has_all else folder / name


def _network_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the network; of a checkpoint of diffusers' training script that of the average,
    which its pipelines are of.
    """
    is_checkpoint = not (folder / _INDEX).is_file() and (folder / "unet").is_dir()
    averaged = folder / "unet_ema"
    return averaged if is_checkpoint and averaged.is_dir() else _part(folder, "unet", "config.json")


def _scheduler_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the scheduler: a network's or a checkpoint's is the one of the pipeline that
    they lie in.
    """
    own = _part(folder, "scheduler", _SCHEDULER)
    if (folder / _INDEX).is_file() or (own / _SCHEDULER).is_file():
        return own
    whole = [each for each in folder.resolve().parents[:2] if (each / _INDEX).is_file()]
    return _part(whole[0], "scheduler", _SCHEDULER) if whole else own


def _snapshot(folder: pathlib.Path, revision: str | None) -> pathlib.Path:
    """The folder of a version, in one of the Hub's cache: models--owner--name."""
    if not _is_cache(folder):
        return folder
    named = folder / "refs" / (revision or "main")
    found = (
        folder
        / "snapshots"
        / (named.read_text(errors="replace").strip() if named.is_file() else (revision or "main"))
    )
    if not found.is_dir():
        there = sorted(path.name for path in (folder / "snapshots").iterdir())
        raise ValueError(
            f"{folder} is a folder of the Hub's cache without the revision {revision or 'main'}: "
            f"give one of its snapshots, {there}, as the revision"
        )
    return found


def _weights(folder: pathlib.Path, variant: str | None) -> ddpm_names.Arrays:
    ending = "" if variant is None else f".{variant}"
    for suffix in (".safetensors", ".bin"):
        path = folder / f"{_WEIGHTS}{ending}{suffix}"
        # Earlier versions of diffusers wrote the second.
        named = ["index"] if variant is None else [f"index.{variant}", f"{variant}.index"]
        indices = [folder / f"{_WEIGHTS}{suffix}.{name}.json" for name in named]
        index = next((each for each in indices if each.is_file()), indices[0])
        if not path.is_file() and not index.is_file():
            continue
        # Of both, diffusers takes the shards; those of an earlier saving it removes.
        instead = f", or remove it, and {path.name} is read" if path.is_file() else ""
        has_shards = weight_files.has_shards(index, f"copy it again{instead}")
        is_sharded = has_shards or not path.is_file()
        found = weight_files.read_sharded(index) if is_sharded else weight_files.read(path)
        if not weight_files.is_arrays(found):
            raise ValueError(f"{path} holds no weights by name: copy it again")
        return found
    lost = [each for each in sorted(folder.glob(f"{_WEIGHTS}{ending}.*")) if not each.exists()]
    if lost:  # as in a cache of the Hub's that was copied or emptied in part
        raise ValueError(
            f"{lost[0]} is a link to {os.readlink(lost[0])}, which is not there: copy or download "
            "the folder again, with what its links lead to"
        )
    raise ValueError(
        f"no weights in {folder}: expected {_WEIGHTS}{ending}.safetensors or .bin, found "
        f"{sorted(path.name for path in folder.glob('*'))}; of weights such as "
        f'{_WEIGHTS}.fp16.safetensors, give variant="fp16"'
    )


def _json(path: pathlib.Path) -> Config:
    if not path.is_file():
        raise ValueError(f"{path} is missing: copy or download the folder again")
    return reading.json_of(path, "copy or download it again")


def _write_json(path: pathlib.Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
