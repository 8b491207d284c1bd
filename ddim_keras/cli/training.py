"""`train`: its options are the settings of a run and of a recipe."""

from __future__ import annotations

import ast
import dataclasses
import os
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from ddim_keras.cli.group import INTERRUPTED, main
from ddim_keras.cli.options import ANY_FILE, devices_option, options_of, out_option
from ddim_keras.cli.startup import divide_batches
from ddim_keras.presets import Training
from ddim_keras.runs import RunConfig

if TYPE_CHECKING:
    from ddim_keras.model import DiffusionModel
    from ddim_keras.support.devices import Workers


@main.command()
@out_option("The run's folder.")
@click.option(
    "--config",
    "-c",
    type=ANY_FILE,
    help="A config.yaml; flags given beside it win.",
)
@devices_option
@click.option(
    "--workers",
    default=None,
    metavar="HOST:PORT,...",
    help="Processes that train together, each given the same command and a folder --out that all "
    "share; all GPUs or TPU cores of each are used.",
)
@click.option("--worker", type=int, default=None, help="Which of --workers this one is, from 0.")
@options_of(RunConfig, leave_out=("model", "training", "distill"))
@options_of(Training, default="the recipe's")
@click.option(
    "--ema-decay",
    type=float,
    default=None,
    help="Of the averaged weights.  [default: the preset's]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help='Any argument of DiffusionModel, such as parameterization=noise or "widths=(32, 64)".',
)
def train(
    out: pathlib.Path,
    config: pathlib.Path | None,
    devices: str,
    workers: str | None,
    worker: int | None,
    settings: tuple[str, ...],
    **flags: Any,
) -> None:
    """Train, or resume an interrupted training.

    The same command resumes, or the one with --out alone; a new run needs --data or --config. More
    --steps make a run longer, and --data may name another place of the same images.

    \b
    ddim-keras train --data embedded --out runs/clothes
    ddim-keras train --data path/to/photos --image-size 64 --out runs/photos
    ddim-keras train --config runs/photos/config.yaml --seed 1 --out runs/photos-1
    """
    together = _joined(workers, worker, devices)
    run(out, config, devices, dict(_setting(text) for text in settings), flags, together)


def run(
    out: pathlib.Path,
    config: pathlib.Path | None,
    devices: str,
    model: dict[str, Any],
    flags: dict[str, Any],
    together: Workers | None = None,
) -> None:
    """Train in a folder, or resume there: `flags` are settings of a run and of a recipe, None where
    they were not given; `model` those of the model; `together` the processes, where they are
    several.
    """
    from ddim_keras import runs

    given = {name: value for name, value in flags.items() if value is not None}
    if "cache" in given:
        given["cache"] = {"memory": True, "no": False, "auto": "auto"}.get(
            given["cache"], os.path.abspath(os.path.expanduser(given["cache"]))
        )
    if given.get("kid") == "none":
        given["kid"] = None
    for name in ("data", "data_dir", "preset", "init_from"):  # found again from any folder
        place = pathlib.Path(given.get(name) or "").expanduser()
        if given.get(name) and (place.is_dir() or (name == "init_from" and place.is_file())):
            given[name] = str(place.resolve())
    if config is None and (out / "config.yaml").is_file():
        config = out / "config.yaml"
    if config is None and "data" not in given:
        raise click.UsageError(
            f"there is no run in {out} to resume: give --data, or --config, to start one"
        )
    start = dataclasses.asdict(runs.RunConfig.read(config) if config else runs.RunConfig())
    named = os.path.abspath(os.path.expanduser(given.get("init_from") or ""))
    if named == start["init_from"]:  # which may be gone: the run has kept it
        given["init_from"] = named
    if "steps" in given and "minutes" not in given:
        start["minutes"] = None
    if given.get("labels") is False:  # a file's guidance was of its labels
        start["guidance"] = None
    training = {
        name: given.pop(name)
        for name in [field.name for field in dataclasses.fields(Training)]
        if name in given
    }
    model = {**({"ema_decay": given.pop("ema_decay")} if "ema_decay" in given else {}), **model}
    chosen = {
        **start,
        **given,
        "training": {**start["training"], **training},
        "model": {**start["model"], **model},
    }
    run_config = runs.RunConfig(**chosen)
    # Batch normalisation looks at whole batches, and virtual devices divide them already.
    if run_config.normalization() != "batch" and devices == "1" and together is None:
        divide_batches()
    try:
        options: dict[str, Any] = {"devices": devices, "workers": together}
        result = runs.train(run_config, out, tell=click.echo, **options)
    except runs.WorkerLostError as error:
        # Without waiting for the others, as the backends would when the interpreter ends.
        click.echo(f"Error: {error}", err=True)
        sys.stdout.flush()
        os._exit(1)
    if not result.finished:
        sys.exit(INTERRUPTED)
    if (further := _guided(result.model, run_config, out)) is not None:
        click.echo(further)


def _guided(model: DiffusionModel, config: RunConfig, out: pathlib.Path) -> str | None:
    """Say how the model of a run learns guidance; None for one that cannot, or has."""
    has_guidance = model.sampling_defaults.guidance not in (None, 1.0)
    has_beginning = config.ema_snapshots > 1 and not config.init_from  # which is a weaker model
    if config.distill or config.task or not (has_guidance or has_beginning):
        return None
    gain = "The same images at half the cost" if has_guidance else "Better images at the same cost"
    command = ["ddim-keras", "distill", "--method", "guidance", "-m", str(out)]
    command += ["--steps", "1000", "--out", f"{out}-guided"]
    return f"{gain}, after a little more training: {shlex.join(command)}"


def _joined(workers: str | None, worker: int | None, devices: str) -> Workers | None:
    """The processes that train together, joined; or None."""
    if workers is None:
        if worker is not None:
            raise click.UsageError("--worker says which of --workers this one is: give both")
        return None
    if devices not in ("1", "all"):
        raise click.UsageError(
            f"with --workers all devices of each are used, and --devices {devices} asks for some: "
            "leave it out"
        )
    from ddim_keras.support.devices import Workers

    together = Workers.parse(workers, worker)
    together.join()
    return together


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise click.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--set")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word, such as velocity
