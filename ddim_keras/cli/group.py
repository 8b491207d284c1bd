"""The command itself: what all its commands share."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from ddim_keras.cli.startup import quiet_start
from ddim_keras.runs.signals import terminated_like_interrupted
from ddim_keras.support.version import __version__

INTERRUPTED = 130


class _Commands(click.Group):
    """Shows an error as one line, unless --debug asks for all of it."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with terminated_like_interrupted():
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
            if isinstance(error, OSError) and error.strerror and error.filename:
                text = f"{error.filename}: {error.strerror}"
            if not _is_for_users(error):
                text = f"{type(error).__name__}: {text} (ddim-keras --debug ... shows where)"
            raise click.ClickException(text) from error


class _Command(click.Command):
    """A command that works with Keras, which is imported when it runs and not for its help."""

    def invoke(self, context: click.Context) -> Any:
        # Processes that train together find their devices together.
        if not context.find_root().params.get("debug") and not context.params.get("workers"):
            quiet_start()
        return super().invoke(context)


_Commands.command_class = _Command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--debug", is_flag=True, help="Show where an error came from, and all that TensorFlow says."
)
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context, debug: bool) -> None:
    """Train and use denoising diffusion implicit models.

    \b
    ddim-keras train --data embedded --out runs/clothes
    ddim-keras generate --model runs/clothes --num-images 64 --out images
    """
    if debug:
        return
    context.with_resource(_warnings_for_users())


def _is_for_users(error: Exception) -> bool:
    """Whether an error was worded for who uses the program."""
    if isinstance(error, (ValueError, OSError, ImportError, ArithmeticError)):
        return True
    # Its module is imported wherever it can have been raised.
    inversion = sys.modules.get("ddim_keras.sampling.inversion")
    return inversion is not None and isinstance(error, inversion.ConvergenceError)


@contextlib.contextmanager
def _warnings_for_users() -> Iterator[None]:
    """Write warnings without the line of code that gave them, and those for programmers not at
    all.
    """

    def for_users(message: Warning | str, category: type[Warning], *place: Any) -> str:
        return f"Warning: {message}\n" if issubclass(category, UserWarning) else ""

    before = warnings.formatwarning
    warnings.formatwarning = for_users  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = before
