"""Progress: a bar where somebody watches, and a line now and then in a file or a pipe."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """What shows how far something has come; `keras.utils.Progbar` is one."""

    def update(self, current: int, values: Any = None, finalize: bool | None = None) -> None: ...


class _Pace:
    """How long each of what is counted takes, from the first one that is seen on: what was done
    before a training was resumed took none of this time, and the first may have compiled.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def seconds_each(self, current: int, now: float) -> float:
        """Return the seconds, or 0 as long as they are not known."""
        if self._first is None:
            self._first = current, now
        number, begun = self._first
        return (now - begun) / (current - number) if current > number else 0.0


class ProgressLines:
    """Prints a line at most every half a minute, and one at the end.

    Args:
        target: how many there are in all, or None if nobody knows.
        unit_name: what they are.
    """

    def __init__(self, target: int | None, unit_name: str):
        self.target, self.unit_name = target, unit_name
        self._printed = time.monotonic()
        self._pace = _Pace()

    def update(self, current: int, values: Any = None, finalize: bool | None = None) -> None:
        now = time.monotonic()
        each = self._pace.seconds_each(current, now)
        at_end = finalize or current == self.target
        if not at_end and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        parts = [
            f"{current}"
            + (f" of {self.target}" if self.target is not None else "")
            + f" {self.unit_name}"
        ]
        if self.target is not None and not at_end and each:
            parts.append(f"about {_duration(each * (self.target - current))} left")
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

        class Bar(keras.utils.Progbar):
            pace = _Pace()

            def _estimate_step_duration(self, current: int, now: float) -> float:
                return self.pace.seconds_each(current, now)

        return Bar(target, unit_name=unit_name.removesuffix("s"), **options)
    return ProgressLines(target, unit_name)


def is_watched() -> bool:
    """Whether the output goes to a terminal or a notebook."""
    ipython = sys.modules.get("IPython")
    return sys.stdout.isatty() or (ipython is not None and ipython.get_ipython() is not None)


def _duration(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} h"
