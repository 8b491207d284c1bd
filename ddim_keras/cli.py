"""The command line: `ddim-keras train`, `generate`, `evaluate`, ..."""

from __future__ import annotations

import ast
import os
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np

    from ddim_keras.model import DiffusionModel

INTERRUPTED = 130


class _Commands(click.Group):
    """Shows an error as one line, unless --debug asks for all of it."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)
        except Exception as error:
            if context.params.get("debug"):
                raise
            text = " ".join(str(error).split())
            from ddim_keras.sampling.inversion import ConvergenceError

            if isinstance(error, OSError) and error.strerror and error.filename:
                text = f"{error.filename}: {error.strerror}"
            of_ours = (ValueError, OSError, ImportError, ArithmeticError, ConvergenceError)
            if not isinstance(error, of_ours):  # not made for users' eyes
                text = f"{type(error).__name__}: {text} (ddim-keras --debug ... shows where)"
            raise click.ClickException(text) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.version_option(package_name="ddim_keras")
def main(debug: bool) -> None:
    """Train and use denoising diffusion implicit models.

    \b
    ddim-keras train --data embedded --out runs/clothes
    ddim-keras generate --model runs/clothes/model.keras --num-images 64 --out images
    """
    if not debug:
        warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show a warning to who uses the program: without the line of code that gave it; those for programmers not at all."""
    if issubclass(category, UserWarning):
        click.echo(f"Warning: {message}", err=True)


def _model_option(command: Callable) -> Callable:
    about = "A .keras file, a preset's name or folder, or the folder of a run.  [default: fashion_mnist_32]"
    return click.option("--model", "-m", "source", default="fashion_mnist_32", help=about)(command)


def _split_option(command: Callable) -> Callable:
    about = (
        "What to train on and what to keep for validation. Of TFDS two splits, such as train[:90%],test; of a folder a fraction, "
        "such as 0.1.  [default: the data set's own, or 0.2]"
    )
    return click.option("--split", default=None, help=about)(command)


def _split(text: str) -> float | list[str | None]:
    """What `load_dataset` takes for --split."""
    try:
        return float(text)
    except ValueError:
        parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not parts[0]:
        raise click.BadParameter(
            f"expected TRAIN,VALIDATION, such as train[:90%],test or train,none, or a fraction such as 0.1, got {text!r}",
            param_hint="--split",
        )
    return [parts[0], None if parts[1].lower() in ("", "none") else parts[1]]


def _fit_option(command: Callable) -> Callable:
    about = "How images are brought to the model's size; their colours become its channels."
    return click.option("--fit", type=click.Choice(["crop", "pad"]), default="crop", show_default=True, help=about)(
        command
    )


def _sampling_options(command: Callable) -> Callable:
    options = [
        click.option("--steps", "-s", default=20, show_default=True, help="S, the number of sampling steps."),
        click.option("--sampler", default=None, help="ddim, ddpm, heun, dpm_solver_2m, unipc, ...  [default: unipc]"),
        click.option("--eta", type=float, default=None, help="DDIM's stochasticity, from 0 (DDIM) to 1 (DDPM)."),
        click.option(
            "--spacing",
            default=None,
            help="linear, quadratic, trailing, karras, ...  [default: karras with unipc, else linear]",
        ),
        click.option("--clipping", default=None, help="none, static or dynamic.  [default: none]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _sampling(steps: int, **options: Any) -> dict[str, Any]:
    return {"diffusion_steps": steps, **{name: value for name, value in options.items() if value is not None}}


@main.command()
@click.option("--data", "-d", default=None, help="embedded, the name of a TFDS data set, or a folder of images.")
@click.option("--out", "-o", required=True, type=click.Path(path_type=pathlib.Path), help="The run's folder.")
@click.option(
    "--config", "-c", type=click.Path(path_type=pathlib.Path), help="A config.yaml; flags given beside it win."
)
@click.option("--image-size", type=int, default=None, help="Side of the images in pixels.  [default: 32]")
@click.option("--channels", type=int, default=None, help="1, 3 or 4.  [default: the data set's own]")
@click.option(
    "--fit", type=click.Choice(["crop", "pad"]), default=None, help="How images are brought to size.  [default: crop]"
)
@_split_option
@click.option(
    "--unreadable",
    type=click.Choice(["refuse", "skip"]),
    default=None,
    help="What to do with a folder's images that cannot be read.  [default: refuse]",
)
@click.option("--data-dir", default=None, help="Where TFDS keeps its data.")
@click.option(
    "--cache",
    default=None,
    help="Where resized images are kept: memory, no (resized anew each epoch), or a folder.  [default: memory]",
)
@click.option("--steps", type=int, default=None, help="Batches in all.  [default: 5000]")
@click.option("--preset", default=None, help="Whose network and recipe.  [default: fashion_mnist_32]")
@click.option("--batch-size", type=int, default=None, help="Images in a step.  [default: the recipe's]")
@click.option("--optimizer", default=None, help="adamw, or muon.  [default: the recipe's]")
@click.option("--learning-rate", type=float, default=None, help="At its highest.  [default: the recipe's]")
@click.option(
    "--schedule",
    type=click.Choice(["constant", "cosine"]),
    default=None,
    help="Of the learning rate.  [default: the recipe's]",
)
@click.option("--clip-norm", type=float, default=None, help="Largest norm of the gradient.  [default: the recipe's]")
@click.option("--accumulate", type=int, default=None, help="Batches whose gradients make one step.  [default: 1]")
@click.option("--flip/--no-flip", default=None, help="Mirror images at random.  [default: the recipe's]")
@click.option("--ema-decay", type=float, default=None, help="Of the averaged weights.  [default: the preset's]")
@click.option("--precision", default=None, help="float32, mixed_bfloat16, mixed_float16 or auto.  [default: auto]")
@click.option("--jit/--no-jit", default=None, help="Compile with XLA.  [default: where it is faster]")
@click.option("--seed", type=int, default=None, help="Fixes everything.  [default: 0]")
@click.option(
    "--kid",
    default=None,
    help="Features for the KID of each validation: inception_v3, fashion_mnist, or none for no KID.  [default: inception_v3 for "
    "colour where its weights can be had, else fashion_mnist]",
)
@click.option(
    "--validate-every", type=int, default=None, help="Steps between validations.  [default: one pass, at least 100]"
)
@click.option("--validation-images", type=int, default=None, help="How many to validate on, about.  [default: 2000]")
@click.option("--checkpoint-every", type=int, default=None, help="Steps between checkpoints.  [default: 1000]")
@click.option("--keep", type=int, default=None, help="Newest checkpoints to keep.  [default: 3]")
@click.option("--samples", type=int, default=None, help="Images drawn after a validation; 0 for none.  [default: 16]")
@click.option(
    "--samples-every", type=int, default=None, help="Draw them after every so many validations.  [default: 1]"
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help='Any argument of DiffusionModel, such as parameterization=noise or "widths=(32, 64)".',
)
def train(out: pathlib.Path, config: pathlib.Path | None, settings: tuple[str, ...], **flags: Any) -> None:
    """Train, or go on with an interrupted training.

    The same command goes on, or the one with --out alone; a new run needs --data or --config.

    \b
    ddim-keras train --data embedded --out runs/clothes
    ddim-keras train --data path/to/photos --image-size 64 --out runs/photos
    ddim-keras train --config runs/photos/config.yaml --seed 1 --out runs/photos-1
    """
    from ddim_keras import runs

    given = {name: value for name, value in flags.items() if value is not None}
    if "split" in given:
        given["split"] = _split(given["split"])
    if "cache" in given:
        given["cache"] = {"memory": True, "no": False}.get(given["cache"], os.path.abspath(given["cache"]))
    if given.get("kid") == "none":
        given["kid"] = None
    for name in ("data", "data_dir", "preset"):  # found again from any folder
        if name in given and pathlib.Path(given[name]).expanduser().is_dir():
            given[name] = str(pathlib.Path(given[name]).expanduser().resolve())
    if config is None and (out / "config.yaml").is_file():
        config = out / "config.yaml"
    if config is None and "data" not in given:
        raise click.UsageError(f"there is no run in {out} to go on with: give --data, or --config, to start one")
    start = runs.dataclasses.asdict(runs.RunConfig.read(config) if config else runs.RunConfig())
    training = {
        name: given.pop(name)
        for name in ("batch_size", "optimizer", "learning_rate", "schedule", "clip_norm", "accumulate", "flip")
        if name in given
    }
    model = {"ema_decay": given.pop("ema_decay")} if "ema_decay" in given else {}
    model |= dict(_setting(text) for text in settings)
    chosen = {
        **start,
        **given,
        "training": {**start["training"], **training},
        "model": {**start["model"], **model},
    }
    result = runs.train(runs.RunConfig(**chosen), out, tell=click.echo)
    if not result.finished:
        sys.exit(INTERRUPTED)


@main.command()
@_model_option
@click.option("--num-images", "-n", default=16, show_default=True, help="How many, over all machines.")
@click.option("--out", "-o", required=True, type=click.Path(path_type=pathlib.Path), help="The images' folder.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["png", "npz", "tfrecord"]),
    default="png",
    show_default=True,
    help="Of a shard: a folder of PNGs, an array `images`, or examples with image/encoded and image/number.",
)
@click.option("--shard-size", default=1000, show_default=True, help="Images in a shard.")
@click.option(
    "--shard",
    default="0/1",
    show_default=True,
    metavar="I/N",
    help="This is machine I of N, counted from 0, and makes every N-th shard.",
)
@click.option("--seed", default=0, show_default=True, help="Fixes the images.")
@click.option("--batch-size", type=int, default=None, help="Images made at a time.")
@_sampling_options
def generate(
    source: str,
    num_images: int,
    out: pathlib.Path,
    format_: str,
    shard_size: int,
    shard: str,
    seed: int,
    batch_size: int | None,
    **options: Any,
) -> None:
    """Generate images into a folder.

    Each is fixed by the seed and its number alone. Started again after a kill, the same command goes on. The folder gets shards,
    each whole or not there, a contact_sheet.png of the first 64, and a metadata.json that says what made them.

    \b
    ddim-keras generate --num-images 64 --out images
    ddim-keras generate -m runs/photos -n 50000 --out images --format npz --shard 2/8
    """
    from ddim_keras import exporting

    parts = shard.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise click.BadParameter(f"expected I/N, such as 0/4, got {shard!r}", param_hint="--shard")
    made = exporting.export_images(
        _load(source),
        out,
        num_images,
        format=format_,
        shard_size=shard_size,
        shard=(int(parts[0]), int(parts[1])),
        seed=seed,
        batch_size=batch_size,
        tell=click.echo,
        **_sampling(**options),
    )
    click.echo(f"{made} shards made, in {out}" if made else f"Nothing was left to do in {out}")


@main.command()
@_model_option
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=pathlib.Path), help="A .npy file of latents.")
@click.option("--steps", "-s", default=100, show_default=True, help="Steps; decode with as many.")
@click.option(
    "--exact",
    is_flag=True,
    help="Solve each step, so that decoding gives just these images. For models whose schedule ends near the clean image, such "
    "as linear_beta; few images have such latents with the angle schedule.",
)
@_fit_option
def encode(source: str, images: tuple[pathlib.Path, ...], out: pathlib.Path, steps: int, exact: bool, fit: str) -> None:
    """Find the noises that images come from.

    They are an array (images, height, width, channels); in Python, model.decode(numpy.load("latents.npy"), 100) gives the images.

    \b
    ddim-keras encode shirt.png shoe.png --out latents.npy
    """
    import numpy as np

    from ddim_keras.support import files

    model = _load(source)
    latents = model.encode(_read(model, images, fit), steps, exact=exact)
    if out.suffix != ".npy":
        raise click.BadParameter(f"must end in .npy, got {str(out)!r}", param_hint="--out")
    with files.written_beside(out) as temporary:
        np.save(temporary, latents)
    click.echo(f"{len(latents)} latents of shape {latents.shape[1:]} written to {out}")


@main.command()
@_model_option
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=pathlib.Path), help="A PNG of both rows.")
@click.option("--steps", "-s", default=100, show_default=True)
@_fit_option
def reconstruct(source: str, images: tuple[pathlib.Path, ...], out: pathlib.Path, steps: int, fit: str) -> None:
    """Encode images and decode them again.

    Draws the images above what came back.

    \b
    ddim-keras reconstruct shirt.png shoe.png --steps 200 --out again.png
    """
    import numpy as np

    from ddim_keras import plotting

    model = _load(source)
    before = _read(model, images, fit)
    after = model.reconstruct(before, steps)
    plotting.save_images(out, np.concatenate([before, after]), columns=len(before), scale=4)
    click.echo(f"Mean squared error of a pixel: {np.mean((before - after) ** 2):.6f}. Written to {out}")


@main.command()
@_model_option
@click.argument("start", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path), required=False)
@click.argument("end", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path), required=False)
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=pathlib.Path), help="A PNG, or an animated GIF or WebP."
)
@click.option(
    "--num-images", "-n", type=click.IntRange(min=2), default=9, show_default=True, help="The two ends included."
)
@click.option("--seed", default=0, show_default=True, help="Of the two noises, if no images are given.")
@click.option("--steps", "-s", default=50, show_default=True)
@_fit_option
def interpolate(
    source: str,
    start: pathlib.Path | None,
    end: pathlib.Path | None,
    out: pathlib.Path,
    num_images: int,
    seed: int,
    steps: int,
    fit: str,
) -> None:
    """Draw images between two images, or between two noises.

    \b
    ddim-keras interpolate shirt.png dress.png --out between.gif
    ddim-keras interpolate --seed 3 --out between.png
    """
    import numpy as np

    from ddim_keras import plotting

    animated = out.suffix.lower() in (".gif", ".webp")
    if not animated and out.suffix.lower() != ".png":
        raise click.BadParameter(f"must end in .png, .gif or .webp, got {str(out)!r}", param_hint="--out")
    if (start is None) != (end is None):
        raise click.UsageError("give two images, or none for two noises")
    model = _load(source)
    if start is None or end is None:
        ends = np.random.default_rng(seed).normal(size=(2, *model.image_shape)).astype("float32")
    else:
        ends = _read(model, (start, end), fit)
    path = model.interpolate(
        ends[0], ends[1], num_images=num_images, diffusion_steps=steps, from_images=start is not None
    )
    if animated:
        plotting.save_animation(out, list(path), scale=4)
    else:
        plotting.save_images(out, path, columns=num_images, scale=4)
    click.echo(f"{num_images} images written to {out}")


@main.command()
@_model_option
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path))
@click.argument("mask", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=pathlib.Path), help="A PNG of the fillings.")
@click.option(
    "--num-images", "-n", type=click.IntRange(min=1), default=4, show_default=True, help="Different fillings."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", "-s", default=50, show_default=True)
@_fit_option
def inpaint(
    source: str,
    image: pathlib.Path,
    mask: pathlib.Path,
    out: pathlib.Path,
    num_images: int,
    seed: int,
    steps: int,
    fit: str,
) -> None:
    """Fill in a part of an image.

    The part where the mask, a picture of the same size, is black; where it is white or transparent the image stays.

    \b
    ddim-keras inpaint shirt.png mask.png --num-images 8 --out filled.png
    """
    import numpy as np

    from ddim_keras import plotting
    from ddim_keras.data import decoding, read_images

    sizes = []
    for path in (image, mask):  # as they are seen: a phone stores its pictures turned
        try:
            sizes.append(decoding.upright_size(path))
        except Exception as error:  # decoders raise whatever they like on damaged files
            raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}: {error})") from error
    whole, part = sizes
    if whole != part:
        raise ValueError(
            f"the mask must be of the image's size: {mask} is {part[0]} x {part[1]} pixels, {image} {whole[0]} x {whole[1]}"
        )
    model = _load(source)
    known = read_images((mask,), model.image_shape[:2], 1, fit=fit, background="white") > 0.5
    if known.all():
        raise ValueError(f"nothing is to be filled: {mask} is nowhere black (what is transparent counts as white)")
    images = np.repeat(_read(model, (image,), fit), num_images, axis=0)
    filled = model.inpaint(images, np.repeat(known, num_images, axis=0), steps, seed=seed)
    plotting.save_images(out, filled, columns=num_images, scale=4)
    click.echo(f"{num_images} fillings written to {out}")


@main.command()
@_model_option
@click.option(
    "--data", "-d", default=None, help="As for train; its validation part is used.  [default: the run's, or embedded]"
)
@_split_option
@click.option("--data-dir", default=None, help="Where TFDS keeps its data.")
@click.option("--fit", type=click.Choice(["crop", "pad"]), default=None, help="[default: the run's, or crop]")
@click.option("--num-images", "-n", default=1000, show_default=True, help="How many to generate.")
@click.option(
    "--features",
    default=None,
    help="inception_v3, fashion_mnist, inception_2015.  [default: inception_v3 for colour, fashion_mnist for grey images]",
)
@click.option("--metric", "metrics", multiple=True, help="fid, kid, precision_recall, ...  [default: these three]")
@click.option("--seed", default=0, show_default=True)
@_sampling_options
def evaluate(
    source: str,
    data: str | None,
    split: str | None,
    data_dir: str | None,
    fit: str | None,
    num_images: int,
    features: str | None,
    metrics: tuple[str, ...],
    seed: int,
    **options: Any,
) -> None:
    """Score generated images against real ones.

    Of a run, against the images that it kept for validation.

    \b
    ddim-keras evaluate --data fashion_mnist --fit pad --features fashion_mnist --num-images 10000
    """
    from ddim_keras import data as datasets_
    from ddim_keras import runs

    model = _load(source)
    of_run = pathlib.Path(source) / "config.yaml"
    run = runs.RunConfig.read(of_run) if of_run.is_file() else runs.RunConfig()
    same = data is None or data == run.data
    *size, channels = model.image_shape
    _, validation = datasets_.load_dataset(
        data or run.data,
        size,
        100,
        channels=channels,
        fit=fit or run.fit,
        data_dir=data_dir or run.data_dir,
        split=_split(split)
        if split is not None
        else run.split
        if same
        else None,  # and its seed: what it trained on must not come back here
        seed=run.seed,
    )
    if validation is None:
        raise click.ClickException(f"{data} has no images kept for validation")
    chosen = metrics or ("fid", "kid", "precision_recall")
    try:
        scores = model.score(
            validation, num_images, metrics=chosen, extractor=features, seed=seed, **_sampling(**options)
        )
    except ConnectionError as error:
        raise click.ClickException(f"{error}; here that is --features fashion_mnist, rough for colour") from error
    for name, value in scores.items():
        click.echo(f"{name}: {value:.5f}")


@main.command()
@_model_option
@click.argument("out", type=click.Path(path_type=pathlib.Path))
@click.option("--full", is_flag=True, help="Keep float32 weights in a preset.")
def export(source: str, out: pathlib.Path, full: bool) -> None:
    """Write a model as a preset or a .keras file.

    \b
    ddim-keras export -m runs/photos photos-preset
    ddim-keras export -m photos-preset photos.keras
    """
    if out.suffix not in ("", ".keras"):
        raise click.BadParameter(f"must end in .keras, or be a preset's folder, got {str(out)!r}", param_hint="OUT")
    model = _load(source, compile=True)
    if out.suffix == ".keras":
        model.save(out)
    else:
        model.save_to_preset(out, half=not full)
    click.echo(f"Written to {out}")


@main.command()
@_model_option
def info(source: str) -> None:
    """Say what a model is.

    \b
    ddim-keras info -m runs/photos/model.keras
    """
    from ddim_keras import exporting

    model = _load(source)
    height, width, channels = model.image_shape
    lines = {
        "images": f"{height} x {width} x {channels}",
        "parameters": f"{model.network.count_params():,}",
        "predicts": type(model.parameterization).__name__.removesuffix("Parameterization").lower(),
        "schedule": repr(model.schedule),
        "precision": model.dtype_policy.name,
        "trained": "yes" if model.normalizer.adapted else "no",
        "sha256": exporting.model_hash(model),
    }
    for name, value in lines.items():
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
        "  " + "\n  ".join(name for name in tfds.list_builders(with_community_datasets=False) if name in _PICTURES)
    )


_PICTURES = {
    *("beans", "caltech101", "cars196", "cats_vs_dogs", "celeb_a", "celeb_a_hq", "cifar10", "cifar100", "emnist"),
    *("eurosat", "fashion_mnist", "food101", "imagenette", "kmnist", "lsun", "mnist", "oxford_flowers102"),
    *("oxford_iiit_pet", "stanford_dogs", "stl10", "svhn_cropped", "tf_flowers"),
}


def _load(source: str, compile: bool = False) -> DiffusionModel:
    """The model at a .keras file, in a run's folder, or of a preset; `compile` brings the optimizer and metrics along."""
    import ddim_keras
    from ddim_keras import presets

    path = pathlib.Path(source)
    if path.suffix == ".keras" or path.is_file():
        return ddim_keras.load_model(path, compile=compile)
    if (path / "config.yaml").is_file():
        for name in ("model.keras", "best.keras"):
            if (path / name).is_file():
                return ddim_keras.load_model(path / name, compile=compile)
        raise ValueError(f"the run in {path} has no model yet: go on with ddim-keras train --out {path}")
    if not (path / "preset.json").is_file() and source not in presets.names():
        raise ValueError(
            f"no model at {source}: expected a .keras file, a run's folder, or a preset: {presets.names()}"
        )
    return ddim_keras.DiffusionModel.from_preset(source)


def _read(model: DiffusionModel, paths: tuple[pathlib.Path, ...], fit: str) -> np.ndarray:
    """Image files as the model takes them: brought to its size, in its channels."""
    import numpy as np

    from ddim_keras.data import read_images

    *size, channels = model.image_shape
    return np.asarray(read_images(paths, size, channels, fit=fit))


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise click.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--set")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word, such as velocity
