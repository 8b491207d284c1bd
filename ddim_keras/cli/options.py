"""Options that several commands share, and those that come from the fields of a configuration."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import click

from ddim_keras.presets import recipes
from ddim_keras.runs import config
from ddim_keras.support import files
from ddim_keras.support.docstrings import attributes


class _Source(click.ParamType):
    """A name, or a file or folder. A shell leaves the ~ of --model=~/runs as it is; so do the paths
    of the others below.
    """

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return os.path.expanduser(str(value))


class _File(click.Path):
    """A file to read."""

    def __init__(self, exists: bool):
        super().__init__(exists=exists, dir_okay=not exists, path_type=pathlib.Path)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> pathlib.Path:
        return pathlib.Path(os.fsdecode(super().convert(os.path.expanduser(value), param, ctx)))


class _Place(click.Path):
    """A file or a folder to write."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> pathlib.Path:
        if not str(value).strip():  # a shell's variable that is not set; Python takes it for "."
            self.fail("an empty name is nowhere to write to: give a file or a folder", param, ctx)
        value = os.path.expanduser(value)
        return pathlib.Path(os.fsdecode(super().convert(value, param, ctx)))


class _Picture(_Place):
    """A picture to write, found out to be possible before any work is done."""

    def __init__(self, *suffixes: str):
        super().__init__()
        self.suffixes = suffixes

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> pathlib.Path:
        path = super().convert(value, param, ctx)
        if path.suffix.lower() not in self.suffixes:
            *others, last = self.suffixes
            listed = f"{', '.join(others)} or {last}" if others else last
            self.fail(f"must end in {listed}, got {str(path)!r}", param, ctx)
        files.check_file(path)
        return path


PLACE = _Place()
PNG = _Picture(".png")
PNG_OR_ANIMATION = _Picture(".png", ".gif", ".webp")
SOURCE = _Source()
IMAGE_FILE, ANY_FILE = _File(exists=True), _File(exists=False)
images_argument = click.argument("images", nargs=-1, required=True, type=IMAGE_FILE)

_CHOICES: Mapping[tuple[type, str], Collection[str]] = {
    (config.RunConfig, "fit"): config.FITS,
    (config.RunConfig, "unreadable"): config.UNREADABLE,
    (config.RunConfig, "task"): config.TASKS,
    (recipes.Training, "optimizer"): recipes.OPTIMIZERS,
    (recipes.Training, "schedule"): recipes.LEARNING_RATE_SCHEDULES,
}
# Values that a shell writes otherwise than Python.
_SHOWN: Mapping[str, Any] = {"tensorboard": "yes", "jit": "where it is faster"}


def options_of(
    configuration: type, leave_out: Collection[str] = (), default: str | None = None
) -> Callable:
    """Return a decorator that gives a command an option for each field of a dataclass, None where
    it is not given.

    Types and choices come from the fields, the help from the docstring.

    Args:
        configuration: the dataclass.
        leave_out: fields without an option.
        default: what to say of all defaults; None for the fields' own.
    """

    def decorate(command: Callable) -> Callable:
        for field in reversed(dataclasses.fields(configuration)):
            if field.name not in leave_out:
                command = field_option(configuration, field.name, default)(command)
        return command

    return decorate


def field_option(configuration: type, name: str, default: str | None = None) -> Callable:
    """Return the option of one field, as for `options_of`."""
    field = next(field for field in dataclasses.fields(configuration) if field.name == name)
    text = attributes(configuration)[name].replace("`", "")
    text = text[0].upper() + text[1:]
    shown = default or _SHOWN.get(name, field.default)
    flag = "--" + name.replace("_", "-")
    kind = str(field.type).split(" | ")[0]
    options: dict[str, Any] = {
        "default": None,
        "help": text if shown is None else f"{text}  [default: {shown}]",
    }
    if kind == "bool" and name != "cache":
        flag = f"{flag}/--no-{flag[2:]}"
    elif choices := _CHOICES.get((configuration, name)):
        options["type"] = click.Choice(list(choices))
    else:
        options["type"] = _PARSED.get(name) or {"int": int, "float": float}.get(kind, str)
    return click.option(flag, *_SHORT.get(name, ()), **options)


class _ImageSize(click.ParamType):
    """64, or 64x96 for height and width."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | list[int]:
        try:
            sizes = [int(part) for part in str(value).lower().replace(",", "x").split("x")]
        except ValueError:
            sizes = []
        if len(sizes) not in (1, 2) or min(sizes) < 1:
            self.fail(
                "expected a side in pixels, such as 64, or HEIGHTxWIDTH, such as 64x96, got "
                f"{value!r}",
                param,
                ctx,
            )
        return sizes[0] if len(sizes) == 1 else sizes


class _Split(click.ParamType):
    """A fraction, or two names with a comma between them."""

    name = "split"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | list[str | None]:
        try:
            return float(value)
        except ValueError:
            parts = [part.strip() for part in str(value).split(",")]
        if len(parts) != 2 or not parts[0]:
            self.fail(
                "expected TRAIN,VALIDATION, such as train[:90%],test or train,none, or a fraction "
                f"such as 0.1, got {value!r}",
                param,
                ctx,
            )
        return [parts[0], None if parts[1].lower() in ("", "none") else parts[1]]


class _Interval(click.ParamType):
    """Two numbers with a comma between them."""

    name = "low,high"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected LOW,HIGH, such as 0.5,1, got {value!r}", param, ctx)
        return low, high


class _EMALength(click.ParamType):
    """A number, or best."""

    name = "length"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        if value == "best":
            return "best"
        try:
            return float(value)
        except ValueError:
            self.fail(f"expected a number, such as 0.08, or best, got {value!r}", param, ctx)


EMA_LENGTH = _EMALength()
_SHORT: Mapping[str, tuple[str, ...]] = {"data": ("-d",)}
SIZE = _ImageSize()
_PARSED: Mapping[str, click.ParamType] = {"image_size": SIZE, "split": _Split()}


def given_flags() -> dict[str, str]:
    """Return the flags that stand on the command line, by the names of their values."""
    context = click.get_current_context()
    return {
        option.name: option.opts[0]
        for option in context.command.params
        if option.name
        and context.get_parameter_source(option.name) == click.core.ParameterSource.COMMANDLINE
    }


def model_option(command: Callable) -> Callable:
    about = (
        "A .keras file, a preset's name or folder, or the folder of a run.  [default: "
        "fashion_mnist_32]"
    )
    return click.option(
        "--model", "-m", "source", type=SOURCE, default="fashion_mnist_32", help=about
    )(command)


def out_option(about: str, kind: click.ParamType = PLACE) -> Callable:
    """Return the decorator for where a command writes: `about` is its help."""
    return click.option("--out", "-o", required=True, type=kind, help=about)


def fit_option(command: Callable) -> Callable:
    about = "How images are brought to the model's size; their colours become its channels."
    return click.option(
        "--fit", type=click.Choice(list(config.FITS)), default="crop", show_default=True, help=about
    )(command)


def sampling_options(command: Callable) -> Callable:
    options = [
        click.option(
            "--steps",
            "-s",
            type=int,
            default=None,
            help="S, the number of sampling steps.  [default: 20, or the model's own]",
        ),
        click.option(
            "--sampler",
            default=None,
            help="ddim, ddpm, heun, dpm_solver_2m, unipc, ...  [default: unipc]",
        ),
        click.option(
            "--eta",
            type=float,
            default=None,
            help="DDIM's stochasticity, from 0 (DDIM) to 1 (DDPM).",
        ),
        click.option(
            "--spacing",
            default=None,
            help="linear, quadratic, trailing, karras, log_snr, ...  [default: what suits the "
            "default sampler, else linear]",
        ),
        click.option(
            "--clipping",
            default=None,
            help="none, static, dynamic or image_only.  [default: none, or the model's own]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def devices_option(command: Callable) -> Callable:
    about = (
        "Among how many of this machine's GPUs or TPU cores each batch is divided: a number, or "
        "all."
    )
    return click.option("--devices", default="1", show_default=True, help=about)(command)


def label_options(command: Callable) -> Callable:
    """A label and its guidance: `told` makes of them what verbs take."""
    about = (
        "What the images show: a class of the model's (ddim-keras info lists them), by name or "
        "number.  [default: no label]"
    )
    return click.option("--label", default=None, help=about)(guidance_options(command))


def guidance_options(command: Callable) -> Callable:
    options = [
        click.option(
            "--guidance",
            type=float,
            default=None,
            help="How strongly images follow their labels: 1 is none, 1.5 to 4 are usual.  "
            "[default: the model's own, 3 or 2 as train --labels makes it; from latents and to "
            "them, 1]",
        ),
        click.option(
            "--guidance-interval",
            type=_Interval(),
            default=None,
            help="Noise rates, from 0 to 1, between which guidance acts, such as 0.5,1.  "
            "[default: all]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def guidance_of(guidance: float | None, guidance_interval: tuple[float, float] | None) -> Any:
    """What verbs take for the options of `guidance_options`."""
    if guidance is None:
        if guidance_interval is not None:
            raise click.UsageError("--guidance-interval says where --guidance acts: give both")
        return None
    from ddim_keras.sampling.guidance import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance, guidance_interval)


def label_of(text: str | None, model: Any) -> str | int | None:
    """The label that a word on the command line stands for: a class by name, or else by number."""
    if text is None or text in (model.class_names or ()):
        return text
    return int(text) if text.isdecimal() else text


def sampling(steps: int | None, **options: Any) -> dict[str, Any]:
    """What `generate` takes for the options of `sampling_options`."""
    given = {"diffusion_steps": steps, **options}
    return {name: value for name, value in given.items() if value is not None}


def told(
    model: Any,
    label: str | None,
    guidance: float | None,
    guidance_interval: tuple[float, float] | None,
) -> dict[str, Any]:
    """What verbs take for the options of `label_options`."""
    strength = guidance_of(guidance, guidance_interval)
    return {"labels": label_of(label, model), "guidance": strength}
