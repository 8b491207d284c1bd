"""`fit-sampler`: few network evaluations for a model that is there."""

from __future__ import annotations

import pathlib

import click

from ddim_keras.cli.group import main
from ddim_keras.cli.models import check_out
from ddim_keras.cli.options import PLACE, model_option
from ddim_keras.cli.startup import divide_batches
from ddim_keras.runs.config import recipe_of
from ddim_keras.runs.finding import load
from ddim_keras.support import folder_locks

_USUAL_STEPS = (2, 3, 4)


@main.command("fit-sampler")
@model_option
@click.argument("out", type=PLACE)
@click.option(
    "--evaluations",
    "-e",
    "budgets",
    type=click.IntRange(1),
    multiple=True,
    help="Network evaluations for each image. Given several times, a sampler for each.  "
    "[default: those of 2, 3 and 4 steps]",
)
@click.option(
    "--guidance",
    type=float,
    default=None,
    help="Of the images, as for generate; the network is then called twice in a step.  "
    "[default: the model's own]",
)
@click.option(
    "--num-images", default=384, show_default=True, help="Long walks to compare with, in all."
)
@click.option("--epochs", default=6, show_default=True, help="How often they are gone through.")
@click.option("--teacher-steps", default=30, show_default=True, help="Of the long walks.")
@click.option(
    "--data",
    "-d",
    default=None,
    help="As for train: walks then start below pure noise, where the mean and the covariance of "
    "these images lead it, if that is better. It often is, most in 1 and 2 evaluations.",
)
@click.option("--data-dir", default=None, help="Where TFDS keeps its data.")
@click.option(
    "--fit", type=click.Choice(["crop", "pad"]), default=None, help="[default: the run's, or crop]"
)
@click.option("--seed", default=0, show_default=True, help="Fixes the noises.")
def fit_sampler(
    source: str,
    out: pathlib.Path,
    budgets: tuple[int, ...],
    guidance: float | None,
    num_images: int,
    epochs: int,
    teacher_steps: int,
    data: str | None,
    data_dir: str | None,
    fit: str | None,
    seed: int,
) -> None:
    """Fit samplers of few network evaluations to a model, and write the model with them.

    The network stays as it is; levels and weights of the walk are found by gradient descent
    against walks of many steps. generate then takes them for their numbers of steps. Minutes on
    two cores.

    \b
    ddim-keras fit-sampler -m runs/photos --data path/to/photos photos.keras
    ddim-keras fit-sampler -m photos.keras --evaluations 3 photos-preset
    ddim-keras generate -m photos.keras --steps 3 --out images
    """
    if out.suffix not in ("", ".keras"):
        raise click.BadParameter(
            f"must end in .keras, or be a preset's folder, got {str(out)!r}", param_hint="OUT"
        )
    from ddim_keras.runs import validating
    from ddim_keras.sampling.fitting import calls_by_default, steps_of

    check_out(out)  # not after minutes
    divide_batches()
    with folder_locks.only_one_in(  # or it would write over what another has just found
        out.absolute().parent, f"fits samplers for {out.name}", f".lock_{out.name}"
    ):
        model = load(source, compile=True)
        calls = calls_by_default(model.engine, guidance)
        budgets = budgets or tuple(steps * calls for steps in _USUAL_STEPS)
        for budget in budgets:  # all, before the first takes minutes
            steps_of(budget, calls)
        images = None
        if data is not None:
            images = validating.some_training_images(
                model.image_shape, source, data=data, data_dir=data_dir, fit=fit
            )
        for budget in budgets:
            fitted = model.fit_sampler(
                budget,
                guidance=guidance,
                num_images=num_images,
                epochs=epochs,
                teacher_steps=teacher_steps,
                images=images,
                seed=seed,
            )
            click.echo(
                f"{budget} evaluation{'s' if budget > 1 else ''}: distance from the long walks "
                f"{fitted.errors['fitted']:.3g}, before {fitted.errors['before']:.3g}"
            )
        if out.suffix == ".keras":
            model.save(out)
        else:
            model.save_to_preset(out, training=recipe_of(source))
    click.echo(f"Written to {out}")
