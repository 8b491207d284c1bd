"""`evaluate`: scores."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import click

from ddim_keras.cli.group import main
from ddim_keras.cli.models import load
from ddim_keras.cli.options import (
    PNG,
    field_option,
    guidance_of,
    guidance_options,
    model_option,
    sampling,
    sampling_options,
)
from ddim_keras.cli.startup import divide_batches
from ddim_keras.runs import RunConfig
from ddim_keras.support.types import Split

if TYPE_CHECKING:
    from ddim_keras.model import DiffusionModel
    from ddim_keras.support.types import Dataset


@main.command()
@model_option
@click.option(
    "--data",
    "-d",
    default=None,
    help="As for train; its validation part is used.  [default: the run's, or embedded]",
)
@field_option(RunConfig, "split", "the run's, or the data set's own")
@click.option("--data-dir", default=None, help="Where TFDS keeps its data.")
@click.option(
    "--fit", type=click.Choice(["crop", "pad"]), default=None, help="[default: the run's, or crop]"
)
@click.option("--num-images", "-n", default=1000, show_default=True, help="How many to generate.")
@click.option(
    "--features",
    default=None,
    help="inception_v3, cifar10, fashion_mnist, inception_2015.  [default: inception_v3 for "
    "colour, fashion_mnist for grey images]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="fid, kid, precision_recall, bits_per_dim, memorization (copies of training "
    "images), agreement (with --labels), ...  [default: the first three]",
)
@click.option(
    "--pairs",
    type=PNG,
    default=None,
    help="Write a PNG of the generated images, of 100, that are most like a training image, each "
    "above it.",
)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--labels",
    is_flag=True,
    help="Generate by label: the labels of the real images, in their order.",
)
@guidance_options
@sampling_options
def evaluate(
    source: str,
    data: str | None,
    split: Split,
    data_dir: str | None,
    fit: str | None,
    num_images: int,
    features: str | None,
    metrics: tuple[str, ...],
    pairs: pathlib.Path | None,
    seed: int,
    labels: bool,
    guidance: float | None,
    guidance_interval: tuple[float, float] | None,
    **options: Any,
) -> None:
    """Score generated images against real ones.

    Of a run, against the images that it kept for validation.

    \b
    ddim-keras evaluate --data fashion_mnist --fit pad --features fashion_mnist --num-images 10000
    """
    from ddim_keras.runs import validating

    divide_batches(num_images)
    model = load(source)
    chosen_data = {"data": data, "split": split, "data_dir": data_dir, "fit": fit}
    if labels and model.num_classes is None:
        raise click.UsageError("--labels needs a model with labels: train it with --labels")
    validation = validating.held_out_images(model.image_shape, source, labels=labels, **chosen_data)
    told: dict[str, Any] = {"guidance": guidance_of(guidance, guidance_interval)}
    if labels:
        told["labels"] = True
    if model.condition_shape is not None:
        told["condition"] = True
    chosen = metrics or ("fid", "kid", "precision_recall")
    if pairs is not None and model.condition_shape is not None:
        raise click.UsageError("--pairs is for models that make images from noise alone")
    training = None
    if "memorization" in chosen or pairs is not None:
        training = validating.training_images(model.image_shape, source, **chosen_data)
    try:
        scores = model.score(
            validation,
            num_images,
            metrics=chosen,
            extractor=features,
            training_images=training if "memorization" in chosen else None,
            seed=seed,
            **told,
            **sampling(**options),
        )
    except ConnectionError as error:
        raise click.ClickException(
            f"{error}; here that is --features fashion_mnist, rough for colour"
        ) from error
    for name, value in scores.items():
        click.echo(f"{name}: {value:.5f}")
    if pairs is not None:
        _draw_pairs(pairs, model, training, seed, sampling(**options))


def _draw_pairs(
    path: pathlib.Path, model: DiffusionModel, training: Dataset, seed: int, options: dict[str, Any]
) -> None:
    from ddim_keras import plotting
    from ddim_keras.metrics import nearest_training_images

    found = nearest_training_images(model, training, seed=seed, mirrored=True, **options)
    plotting.save_figure(path, plotting.plot_pairs(found))
    click.echo(f"Written to {path}")
