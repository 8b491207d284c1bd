"""`distill`: of a trained model another one, of few steps or with its guidance learned, as a run in
a folder.
"""

from __future__ import annotations

import pathlib
from typing import Any

import click

from ddim_keras.cli.group import main
from ddim_keras.cli.options import SOURCE, devices_option, options_of, out_option
from ddim_keras.cli.training import run
from ddim_keras.presets import Training
from ddim_keras.runs import RunConfig

# What a teacher that is a run says of its images.
_OF_IMAGES = ("data", "data_dir", "split", "fit", "background", "bits", "unreadable")
# What the teacher says, and what `distill` has options of its own for.
_NOT_OPTIONS = (
    *("model", "training", "distill", "preset", "init_from"),
    *("image_size", "channels", "labels", "guidance"),
)


@main.command()
@out_option("The run's folder.")
@click.option(
    "--model",
    "-m",
    "source",
    type=SOURCE,
    default=None,
    help="The teacher: a .keras file, a preset's name or folder, or the folder of a run.",
)
@click.option(
    "--evaluations",
    "-e",
    type=click.IntRange(1),
    default=None,
    help="Network evaluations for each image of the model that is taught: 1, 2 or 4, say.  "
    "[default: 2]",
)
@click.option(
    "--method",
    type=click.Choice(["progressive", "consistency", "guidance"]),
    default=None,
    help="progressive compares whole walks with the teacher's; consistency learns at all noise "
    "levels where the teacher's paths lead; guidance teaches no few steps, but better images in as "
    "many as before: what the teacher draws when it is guided.  [default: progressive]",
)
@click.option(
    "--guidance",
    type=float,
    default=None,
    help="Of the teacher, as for generate; it costs nothing afterwards.  [default: the teacher's "
    "own]",
)
@click.option(
    "--autoguidance",
    type=float,
    default=None,
    help="With the method guidance: how far to go away from what a weaker model predicts, at noise "
    "rates up to 0.99. It needs no labels.  [default: 2, where there is no other guidance, or "
    "--weaker is given]",
)
@click.option(
    "--weaker",
    type=SOURCE,
    default=None,
    help="The weaker model for it, of the same network, as for --model.  [default: the teacher, a "
    "run's folder, after a tenth of its training]",
)
@click.option(
    "--teacher-steps",
    type=click.IntRange(1),
    default=None,
    help="Of the teacher.  [default: 6, or 24 with consistency]",
)
@click.option(
    "--own",
    is_flag=True,
    default=None,
    help="Walk by the sampler that the teacher keeps for so many evaluations (fit-sampler --data), "
    "in place of DDIM: fewer steps of training for better images.",
)
@devices_option
@options_of(RunConfig, leave_out=_NOT_OPTIONS)
@options_of(Training, default="the recipe's")
def distill(
    out: pathlib.Path,
    source: str | None,
    evaluations: int | None,
    method: str | None,
    guidance: float | None,
    autoguidance: float | None,
    weaker: str | None,
    teacher_steps: int | None,
    own: bool | None,
    devices: str,
    **flags: Any,
) -> None:
    """Teach a model to draw in a few steps, or its guidance, or resume an interrupted teaching.

    The new model starts from the teacher's weights, and is trained as by train: with checkpoints,
    validation and samples, in a folder. The same command resumes, or the one with --out alone. Of a
    teacher that is a run --data is what that was trained on, if nothing else is said.

    \b
    ddim-keras distill -m runs/photos --data path/to/photos --out runs/photos-2
    ddim-keras distill -m photos.keras -d path/to/photos -e 1 --minutes 60 -o runs/photos-1
    ddim-keras generate -m runs/photos-2 --out images
    ddim-keras distill --method guidance -m runs/photos --steps 1000 -o runs/photos-guided
    """
    settings: dict[str, Any] = {
        "model": source,
        "steps": evaluations,
        "method": method,
        "guidance": guidance,
        "autoguidance": autoguidance,
        "weaker": _found_again(weaker),
        "teacher_steps": teacher_steps,
        "own": own or None,
    }
    told = {name: value for name, value in settings.items() if value is not None}
    if not (out / "config.yaml").is_file():
        if source is None:
            raise click.UsageError(
                f"there is no run in {out} to resume: give --model, the teacher, and --data"
            )
        flags |= _as_the_teacher(source, flags)
        told["model"] = _found_again(source)
        flags["distill"] = told
    elif told:
        before = RunConfig.read(out / "config.yaml").distill
        told |= _as_before(out, before, {"model": source, "weaker": weaker})
        flags["distill"] = {**before, **told, "model": before.get("model", source)}
    run(out, None, devices, {}, flags)


def _found_again(source: str | None) -> str | None:
    """A model's name, or its place, as it is found from any folder."""
    place = None if source is None else pathlib.Path(source).expanduser()
    return str(place.resolve()) if place is not None and place.exists() else source


def _as_before(
    out: pathlib.Path, before: dict[str, Any], given: dict[str, str | None]
) -> dict[str, Any]:
    """Where the run says that its teacher and its weaker model came from, of which the run has its
    own: they may have been moved, or be gone.

    Raises:
        ValueError: another model is there.
    """
    from ddim_keras.runs.folder import RunFolder

    place = RunFolder(out)
    kept = {"model": place.teacher, "weaker": place.weaker}
    is_meant = {name: source for name, source in given.items() if source and name in before}
    for name, source in is_meant.items():
        _refuse_another(out, kept[name], str(before[name]), source)
    return {name: before[name] for name in is_meant}


def _refuse_another(out: pathlib.Path, kept: pathlib.Path, before: str, source: str) -> None:
    """Raise ValueError if a model is there that is not the one of which the run has a copy."""
    from ddim_keras import presets
    from ddim_keras.runs.exporting import model_hash
    from ddim_keras.runs.finding import load

    is_there = pathlib.Path(source).expanduser().exists() or source in presets.names()
    if before in (source, _found_again(source)) or not is_there or not kept.is_file():
        return
    if model_hash(load(source)) != model_hash(load(str(kept))):
        raise ValueError(
            f"the model in {out} learns from {before}, and {source} is another one: choose "
            "another folder for another teacher, or another weaker model"
        )


def _as_the_teacher(source: str, flags: dict[str, Any]) -> dict[str, Any]:
    """What a run must know of the images that the teacher makes; where the teacher is a run, and no
    others are asked for, those that it was trained on.
    """
    from ddim_keras.runs.finding import load

    teacher = load(source)
    *size, channels = teacher.image_shape
    labels = True if teacher.num_classes is not None else None
    found = {"image_size": size, "channels": channels, "labels": labels}
    config = pathlib.Path(source).expanduser() / "config.yaml"
    if flags.get("data") is None and config.is_file():
        trained = RunConfig.read(config)
        of_images = {name: getattr(trained, name) for name in _OF_IMAGES}
        of_images["flip"] = trained.recipe().flip
        found |= {name: value for name, value in of_images.items() if flags.get(name) is None}
    return found
