"""Models by name or file: finding them, and saying what they are."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import click

from ddim_keras.cli.group import main
from ddim_keras.cli.options import (
    EMA_LENGTH,
    PLACE,
    SIZE,
    SOURCE,
    given_flags,
    guidance_of,
    guidance_options,
    model_option,
    sampling,
    sampling_options,
)
from ddim_keras.runs.config import recipe_of
from ddim_keras.runs.finding import load

if TYPE_CHECKING:
    import numpy as np

    from ddim_keras.model import DiffusionModel

# What `export` writes, by the end of its file's name.
_SUFFIXES = {".keras": "keras", ".onnx": "onnx", ".xml": "openvino", ".tflite": "litert"}


def read(model: DiffusionModel, paths: tuple[pathlib.Path, ...], fit: str) -> np.ndarray:
    """Image files as the model takes them: brought to its size, in its channels."""
    import numpy as np

    from ddim_keras.data import read_images

    *size, channels = model.image_shape
    return np.asarray(read_images(paths, size, channels, fit=fit))


def check_out(out: pathlib.Path) -> None:
    """Find out before any work is done whether a model can be written: a .keras file, or the folder
    of a preset.
    """
    from ddim_keras import presets
    from ddim_keras.support import files

    if out.suffix == ".keras":
        files.check_file(out)
    else:
        files.check_folder(presets.check_free(out))


@main.command()
@model_option
@click.argument("out", type=PLACE)
@click.option("--full", is_flag=True, help="Keep float32 weights in a preset.")
@click.option(
    "--ema-length",
    type=EMA_LENGTH,
    default=None,
    help="Of a run: an average of its weights of this length, the standard deviation over the "
    "training's, from 0 to 0.28; or best, for what its validation images like best of a few.  "
    "[default: the average that training kept]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["preset", "keras", "tf_saved_model", "onnx", "openvino", "litert"]),
    default=None,
    help="What to write. The last four are programs of other runtimes, which need nothing of this "
    "library: whole walks with what the options below fix, or the denoiser.  [default: keras, "
    "onnx, openvino or litert if OUT ends in .keras, .onnx, .xml or .tflite, else preset]",
)
@click.option(
    "--signature",
    type=click.Choice(["generate", "denoise"]),
    default=None,
    help="Of a program: from noise to images, or from noisy images to what is predicted.  "
    "[default: generate]",
)
@guidance_options
@sampling_options
def export(
    source: str,
    out: pathlib.Path,
    full: bool,
    ema_length: float | str | None,
    format_: str | None,
    signature: str | None,
    guidance: float | None,
    guidance_interval: tuple[float, float] | None,
    **options: Any,
) -> None:
    """Write a model as a preset or a .keras file, or its sampling for another runtime.

    \b
    ddim-keras export -m runs/photos photos-preset
    ddim-keras export -m photos-preset photos.keras
    ddim-keras export -m runs/photos --ema-length 0.08 photos.keras
    ddim-keras export -m runs/photos --steps 20 photos.onnx
    ddim-keras export -m runs/photos --format tf_saved_model photos-program
    """
    if format_ is None and out.suffix not in ("", *_SUFFIXES):
        raise click.BadParameter(
            f"must end in {', '.join(_SUFFIXES)}, or be a folder, got {str(out)!r}",
            param_hint="OUT",
        )
    format_ = format_ or _SUFFIXES.get(out.suffix, "preset")
    suffix = next((suffix for suffix, name in _SUFFIXES.items() if name == format_), "")
    if out.suffix != suffix:
        wanted = f"end in {suffix}" if suffix else "be a folder, without a suffix"
        raise click.BadParameter(
            f"must {wanted} for the format {format_}, got {str(out)!r}", param_hint="OUT"
        )
    chosen = sampling(**options)
    strength = guidance_of(guidance, guidance_interval)
    if strength is not None:
        chosen["guidance"] = strength
    is_program = format_ not in ("preset", "keras")
    if not is_program and (chosen or signature):
        raise click.UsageError(
            f"a {format_} fixes neither steps nor guidance: give --format onnx, say, or leave "
            "those out"
        )
    from ddim_keras.presets import programs
    from ddim_keras.runs import exporting

    if is_program:
        programs.check(out, format_, signature or "generate")
    else:
        check_out(out)
    model = _to_be_exported(source, ema_length)
    exporting.refuse_diverged(model)
    if is_program:
        model.export(out, format_, signature or "generate", **chosen)
    elif format_ == "keras":
        model.save(out)
    else:
        model.save_to_preset(out, half=not full, training=recipe_of(source))
    click.echo(f"Written to {out}")


def _to_be_exported(source: str, ema_length: float | str | None) -> DiffusionModel:
    if ema_length is None:
        return load(source, compile=True)
    if not (pathlib.Path(source) / "config.yaml").is_file():
        raise click.BadParameter(
            f"needs the folder of a run, got --model {source}", param_hint="--ema-length"
        )
    from ddim_keras.runs import ema

    return ema.reconstruct(source, ema_length, tell=click.echo)


@main.command()
@click.argument("source", type=SOURCE)
@click.argument("out", type=PLACE)
@click.option(
    "--to",
    "kind",
    type=click.Choice(["keras", "preset", "diffusers"]),
    default=None,
    help="What to write.  [default: keras if OUT ends in .keras, else a preset]",
)
@click.option(
    "--image-size",
    type=SIZE,
    default=None,
    help="Of the network's images.  [default: as its configuration says]",
)
@click.option(
    "--null-class",
    is_flag=True,
    help="The last of the class embeddings stands for no label.",
)
@click.option("--variant", default=None, help="Which of several weights, such as fp16.")
@click.option(
    "--noise-schedule",
    type=click.Choice(["linear", "cosine"]),
    default="linear",
    help="What a checkpoint was trained on.  [default: linear]",
)
@click.option(
    "--times",
    type=click.IntRange(min=2),
    default=1000,
    help="The number of times it was trained on.  [default: 1000]",
)
@click.option("--heads", type=click.IntRange(min=1), help="Number of heads of its attention.")
@click.option("--head-channels", type=click.IntRange(min=1), help="Or channels of each head.")
@click.option(
    "--new-attention-order",
    is_flag=True,
    help="Its attention holds all queries before all keys (use_new_attention_order).",
)
@click.option(
    "--rescaled-times/--no-rescaled-times",
    default=True,
    help="Whether its times count as if they were 1000 (rescale_timesteps).  [default: yes]",
)
def convert(
    source: str,
    out: pathlib.Path,
    kind: str | None,
    image_size: int | list[int] | None,
    null_class: bool,
    variant: str | None,
    noise_schedule: str,
    times: int,
    **told: Any,
) -> None:
    """Convert published weights to this library's formats, or a model to diffusers'.

    SOURCE is a folder that diffusers wrote, a name on the Hub, a checkpoint of the DDIM paper's
    code, of improved-diffusion or of guided-diffusion (.ckpt, .pth, .pt, .safetensors), or a model
    as for other commands.

    \b
    ddim-keras convert google/ddpm-cifar10-32 cifar10.keras
    ddim-keras convert model-790000.ckpt cifar10.keras
    ddim-keras convert lsun_bedroom.pt bedroom.keras --head-channels 64
    ddim-keras convert cifar10.keras cifar10-folder --to diffusers
    """
    from ddim_keras.model import DiffusionModel
    from ddim_keras.presets import checkpoints, diffusers, weight_files

    kind = kind or ("keras" if out.suffix == ".keras" else "preset")
    if (kind == "keras") != (out.suffix == ".keras") or out.suffix not in ("", ".keras"):
        raise click.BadParameter(
            f"must end in .keras for a model's file, and is a folder otherwise, got {str(out)!r}",
            param_hint="OUT",
        )
    if kind != "diffusers":
        check_out(out)
    path = pathlib.Path(source)
    if path.suffix in (".safetensors", *weight_files.TORCH_SUFFIXES) and not path.exists():
        raise click.BadParameter(f"no file at {source}", param_hint="SOURCE")
    size = (image_size[0], image_size[1]) if isinstance(image_size, list) else image_size
    if path.is_file() and path.suffix != ".keras":
        _refuse_others(
            {"image_size", "null_class", "noise_schedule", "times", *told}, "a checkpoint"
        )
        schedule = checkpoints.schedule_of_times(noise_schedule, times)
        model = DiffusionModel.from_checkpoint(
            path, image_size=size, schedule=schedule, null_class=null_class, **told
        )
    elif diffusers.may_be_of_diffusers(path) or _may_be_on_the_hub(source):
        _refuse_others({"image_size", "null_class", "variant"}, "what diffusers wrote")
        model = DiffusionModel.from_diffusers(
            source, image_size=size, null_class=null_class or None, variant=variant
        )
    else:
        _refuse_others(set(), "a model of this library")
        model = load(source)
    if kind == "keras":
        model.save(out)
    elif kind == "preset":
        model.save_to_preset(out, half=False, training=recipe_of(source))
    else:
        model.save_to_diffusers(out)
    click.echo(f"Written to {out}")


def _refuse_others(allowed: set[str], what: str) -> None:
    """Raise a usage error where an option was given that says nothing of such a source."""
    source = click.get_current_context().params["source"]
    for name, flag in given_flags().items():
        if name not in {"source", "out", "kind", *allowed}:
            raise click.UsageError(
                f"{flag} says nothing of {what}, which {source} is: leave it out"
            )


def _may_be_on_the_hub(source: str) -> bool:
    from ddim_keras import presets
    from ddim_keras.presets import weight_files

    suffixes = (".keras", ".safetensors", *weight_files.TORCH_SUFFIXES)
    return (
        source.count("/") == 1
        and not source.endswith(suffixes)
        and not pathlib.Path(source).exists()
        and (source not in presets.names())
    )


@main.command()
@model_option
def info(source: str) -> None:
    """Say what a model is.

    \b
    ddim-keras info -m runs/photos/model.keras
    """
    from ddim_keras.runs import exporting

    model = load(source, untrained=True)
    height, width, channels = model.image_shape
    lines = {
        "images": f"{height} x {width} x {channels}",
        "parameters": f"{model.network.count_params():,}",
        "labels": _labels(model),
        "made from": _condition(model),
        "predicts": type(model.parameterization).__name__.removesuffix("Parameterization").lower(),
        "schedule": repr(model.schedule),
        "precision": model.dtype_policy.name,
        "trained": _trained(model),
        "sha256": exporting.model_hash(model),
    }
    for name, value in lines.items():
        if value is None:
            continue
        click.echo(f"{name + ':':12s}{value}")


@main.command()
def datasets() -> None:
    """List what --data takes.

    \b
    ddim-keras datasets
    """
    import tensorflow_datasets as tfds

    click.echo("embedded    10,000 + 1,000 images of clothes that ship with the package")
    click.echo("a folder    of images, flat or one subfolder a class")
    click.echo("or a TFDS name, such as:")
    click.echo(
        "  "
        + "\n  ".join(
            name for name in tfds.list_builders(with_community_datasets=False) if name in _PICTURES
        )
    )


_PICTURES = {
    *(
        "beans",
        "caltech101",
        "cars196",
        "cats_vs_dogs",
        "celeb_a",
        "celeb_a_hq",
        "cifar10",
        "cifar100",
        "emnist",
    ),
    *(
        "eurosat",
        "fashion_mnist",
        "food101",
        "imagenette",
        "kmnist",
        "lsun",
        "mnist",
        "oxford_flowers102",
    ),
    *("oxford_iiit_pet", "stanford_dogs", "stl10", "svhn_cropped", "tf_flowers"),
}


def _trained(model: DiffusionModel) -> str:
    from ddim_keras.runs import checkpoints

    if not checkpoints.weights_are_finite(model):
        return "diverged: its weights hold NaN or infinity"
    # The last layer with weights starts at zero; images from -1 to 1 need no measuring.
    layers = reversed(model.ema_network.layers)
    last: list[Any] = next((weights for layer in layers if (weights := layer.get_weights())), [])
    is_as_it_starts = bool(last) and not any(part.any() for part in last)
    return "yes" if model.normalizer.adapted and not is_as_it_starts else "no"


def _labels(model: DiffusionModel) -> str:
    if model.num_classes is None:
        return "none"
    names = model.class_names
    return f"{model.num_classes} classes" if names is None else ", ".join(names)


def _condition(model: DiffusionModel) -> str | None:
    if model.condition_shape is None:
        return None
    sizes = " x ".join(map(str, model.condition_shape))
    return f"images of {sizes}" if len(model.condition_shape) == 3 else f"vectors of {sizes}"
