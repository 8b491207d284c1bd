"""Progress: a bar where somebody watches, and a line now and then in a file or a pipe."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """What shows how far something has come; `keras.utils.Progbar` is one."""

    def update(self, current: int, values: Any = None, finalize: bool | None = None) -> None: ...


class ProgressLines:
    """Prints a line at most every half a minute, and one at the end.

    Args:
        target: how many there are in all, or None if nobody knows.
        unit_name: what they are.
    """

    def __init__(self, target: int | None, unit_name: str):
        self.target, self.unit_name = target, unit_name
        self._begun = self._printed = time.monotonic()

    def update(self, current: int, values: Any = None, finalize: bool | None = None) -> None:
        now = time.monotonic()
        at_end = finalize or current == self.target
        if not at_end and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        parts = [
            f"{current}"
            + (f" of {self.target}" if self.target is not None else "")
            + f" {self.unit_name}"
        ]
        if self.target is not None and not at_end and current:
            parts.append(
                f"about {_duration((now - self._begun) * (self.target - current) / current)} left"
            )
        parts += [f"{name} {float(value):.4g}" for name, value in values or []]
        print(", ".join(parts), flush=True)


def progress(target: int | None, unit_name: str, **options: Any) -> Progress:
    """Return a bar where the output is a terminal or a notebook, and lines elsewhere.

    Args:
        target: how many there are in all, or None if nobody knows.
        unit_name: what they are, in the plural.
        **options: as for `keras.utils.Progbar`.
    """
    if is_watched():
        import keras

        return keras.utils.Progbar(target, unit_name=unit_name.removesuffix("s"), **options)
    return ProgressLines(target, unit_name)


def is_watched() -> bool:
    """Whether the output goes to a terminal or a notebook."""
    ipython = sys.modules.get("IPython")
    return sys.stdout.isatty() or (ipython is not None and ipython.get_ipython() is not None)


def _duration(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} h"
