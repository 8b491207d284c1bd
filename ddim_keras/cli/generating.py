"""`generate`: many images in a folder."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from ddim_keras.cli.group import main
from ddim_keras.cli.models import load
from ddim_keras.cli.options import model_option, sampling, sampling_options


@main.command()
@model_option
@click.option(
    "--num-images", "-n", default=16, show_default=True, help="How many, over all machines."
)
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=pathlib.Path),
    help="The images' folder.",
)
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
@sampling_options
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

    Each is fixed by the seed and its number alone. Interrupted, it is resumed by the same command.
    The folder gets shards, each whole or not there, a contact_sheet.png of the first 64, and a
    metadata.json that says what made them.

    \b
    ddim-keras generate --num-images 64 --out images
    ddim-keras generate -m runs/photos -n 50000 --out images --format npz --shard 2/8
    """
    from ddim_keras.runs import exporting

    parts = shard.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise click.BadParameter(f"expected I/N, such as 0/4, got {shard!r}", param_hint="--shard")
    made = exporting.export_images(
        load(source),
        out,
        num_images,
        format=format_,
        shard_size=shard_size,
        shard=(int(parts[0]), int(parts[1])),
        seed=seed,
        batch_size=batch_size,
        tell=click.echo,
        **sampling(**options),
    )
    click.echo(f"{made} shards made, in {out}" if made else f"Nothing was left to do in {out}")
