"""`generate`: many images in a folder."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import click

from ddim_keras.cli.group import main
from ddim_keras.cli.models import load
from ddim_keras.cli.options import (
    IMAGE_FILE,
    devices_option,
    guidance_of,
    guidance_options,
    label_of,
    model_option,
    out_option,
    sampling,
    sampling_options,
)
from ddim_keras.cli.startup import divide_batches

if TYPE_CHECKING:
    from ddim_keras.model import DiffusionModel


@main.command()
@model_option
@click.option(
    "--num-images", "-n", default=16, show_default=True, help="How many, over all machines."
)
@out_option("The images' folder.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["png", "npz", "tfrecord"]),
    default="png",
    show_default=True,
    help="Of a shard: a folder of PNGs, an array `images`, or examples with image/encoded and "
    "image/number.",
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
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="What the images show: a class of the model's (ddim-keras info lists them), by name or "
    "number. Given several times, images take them in turn.  [default: no label]",
)
@click.option("--each-label", is_flag=True, help="All classes in turn.")
@click.option(
    "--condition",
    "conditions",
    multiple=True,
    type=IMAGE_FILE,
    help="An image to make images from, with a model trained for that. Given several times, "
    "images take them in turn.",
)
@devices_option
@guidance_options
@sampling_options
def generate(
    source: str,
    devices: str,
    num_images: int,
    out: pathlib.Path,
    format_: str,
    shard_size: int,
    shard: str,
    seed: int,
    batch_size: int | None,
    labels: tuple[str, ...],
    each_label: bool,
    conditions: tuple[pathlib.Path, ...],
    guidance: float | None,
    guidance_interval: tuple[float, float] | None,
    **options: Any,
) -> None:
    """Generate images into a folder.

    Each is fixed by the seed and its number alone. Interrupted, it is resumed by the same command.
    The folder gets shards, each whole or not there, a contact_sheet.png of the first 64, and a
    metadata.json that says what made them.

    \b
    ddim-keras generate --num-images 64 --out images
    ddim-keras generate -m runs/photos -n 50000 --out images --format npz --shard 2/8
    ddim-keras generate -m runs/flowers --label tulip --guidance 2 --out tulips
    """
    from ddim_keras.runs import exporting
    from ddim_keras.support import devices as on_devices

    parts = shard.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"expected I/N, such as 0/4, got {shard!r}", param_hint="--shard")
    num_images = exporting.checked_number(num_images)  # before a label is found for each
    if devices == "1":
        divide_batches(num_images)
    with on_devices.used(devices):
        model = load(source)
        told = _told(model, num_images, labels, each_label, conditions)
        strength = guidance_of(guidance, guidance_interval)
        if strength is not None:
            told["guidance"] = strength
        made = exporting.export_images(
            model,
            out,
            num_images,
            format=format_,
            shard_size=shard_size,
            shard=(int(parts[0]), int(parts[1])),
            seed=seed,
            batch_size=batch_size,
            tell=click.echo,
            **told,
            **sampling(**options),
        )
    click.echo(f"{made} shards made, in {out}" if made else f"Nothing was left to do in {out}")


def _told(
    model: DiffusionModel,
    number: int,
    labels: tuple[str, ...],
    each_label: bool,
    conditions: tuple[pathlib.Path, ...],
) -> dict[str, Any]:
    """Labels and conditions of all images, as `generate` takes them."""
    told: dict[str, Any] = {}
    if each_label:
        if labels:
            raise click.UsageError("give --label or --each-label, not both")
        if model.num_classes is None:
            raise click.UsageError("--each-label needs a model with labels")
        told["labels"] = [index % model.num_classes for index in range(number)]
    elif labels:
        named = [label_of(text, model) for text in labels]
        told["labels"] = [named[index % len(named)] for index in range(number)]
    if conditions:
        shape = model.condition_shape or ()
        if len(shape) != 3:
            raise click.UsageError("--condition needs a model that makes images from images")
        from ddim_keras.data import read_images

        images = read_images(conditions, shape[:2], shape[2])
        told["condition"] = images[[index % len(images) for index in range(number)]]
    return told
