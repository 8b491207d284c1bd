"""What a run stores of its power-function averages, to make one of any length afterwards."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np

from ddim_keras.model import DiffusionModel
from ddim_keras.runs.checkpoints import DivergedError
from ddim_keras.support import files, leftovers, reading
from ddim_keras.support.types import Array

_ARRAYS = ("averages", "step", "updates", "lengths")


class Snapshot(NamedTuple):
    """One file: the averages as they stood after a step.

    Attributes:
        path: of the file.
        step: of the run.
        updates: how many steps the averages had seen.
        lengths: sigma_rel of each.
    """

    path: pathlib.Path
    step: int
    updates: int
    lengths: tuple[float, ...]

    def averages(self) -> np.ndarray:
        """Return all weights of each average in one row, (lengths, parameters), float16.

        Raises:
            ValueError: the file is damaged.
        """
        advice = "remove it, and the averages are made without"
        return reading.arrays_of(self.path, advice, ["averages"])["averages"]


class Snapshots:
    """The averages at even distances over a run, in float16.

    Half precision rounds each weight to 11 bits, as a preset does. The coefficients of a
    combination are of the order of 1, so that it is rounded no more than that, and a snapshot takes
    half the room.

    Args:
        folder: where they are.
        number: how many there are to be over the whole run; 0 for none.
        steps: of the whole run.
    """

    def __init__(self, folder: pathlib.Path, number: int, steps: int):
        self.folder, self.number, self.steps = folder, number, steps

    def is_due(self, step: int) -> bool:
        """Whether there is to be one after a step: the last is after the run's last."""
        return self.number > 0 and step * self.number // self.steps > (
            (step - 1) * self.number // self.steps
        )

    def save(self, model: DiffusionModel, step: int) -> pathlib.Path:
        """Write the model's averages at a step, whole or not at all.

        Raises:
            DivergedError: an average is not finite; nothing is written.
            OSError: the disk is full, say.
        """
        model.synchronize()
        averages = np.stack([_flat(weights) for weights in model.power_averages.averages])
        if not np.isfinite(averages).all():
            raise DivergedError(
                f"the averaged weights hold NaN or infinity at step {step}. Lower the learning "
                "rate, or clip the gradients (clip_norm)"
            )
        path = self.folder / f"step_{step:09d}.npz"
        updates = int(keras.ops.convert_to_numpy(model.power_averages.updates))
        with files.written_beside(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                averages=averages,
                step=step,
                updates=updates,
                lengths=np.array(model.power_averages.lengths),
            )
        return path

    def forget_after(self, step: int) -> None:
        """Remove those of steps that will be taken again."""
        leftovers.remove(self.folder)
        for path in self.folder.glob("step_*.npz"):
            number = path.stem.removeprefix("step_")
            if number.isdecimal() and int(number) > step:
                path.unlink()


def stored(folder: pathlib.Path, step: int | None = None) -> list[Snapshot]:
    """Return the snapshots in a folder, the oldest first: those that belong together with the
    newest, with a warning of what is damaged.

    Args:
        folder: where they are.
        step: the last step that counts; None for all.
    """
    found = []
    for path in sorted(folder.glob("step_*.npz")):
        try:
            each = _read(path)
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        except OSError as error:
            warnings.warn(f"{path} cannot be read ({error}): it is left out", stacklevel=2)
            continue
        if step is None or each.step <= step:
            found.append(each)
    # Averages that were begun anew, as they were turned on in the middle of a run, are others.
    return [
        each
        for each in found
        if (each.step - each.updates, each.lengths)
        == (found[-1].step - found[-1].updates, found[-1].lengths)
    ]


def _read(path: pathlib.Path) -> Snapshot:
    """What a file says of itself, when all of it can be read."""
    advice = "it is left out"
    arrays = reading.arrays_of(path, advice, _ARRAYS)
    with reading.refusing_damage(path, advice):
        lengths = tuple(arrays["lengths"].tolist())
        shape = arrays["averages"].shape
        if len(shape) != 2 or shape[0] != len(lengths):
            raise ValueError(f"its averages have the shape {shape}, for {len(lengths)} lengths")
        return Snapshot(path, int(arrays["step"]), int(arrays["updates"]), lengths)


def combined(snapshots: Iterable[Snapshot], coefficients: Array) -> np.ndarray:
    """Return the sum of all averages of the snapshots, one file after the other, each times its
    coefficient, (parameters,).

    Args:
        snapshots: of equal lengths.
        coefficients: one for each length of the first, then of the second, ...
    """
    total, remaining = np.zeros(0), list(coefficients)
    for snapshot in snapshots:
        averages = snapshot.averages()
        these, remaining = remaining[: len(averages)], remaining[len(averages) :]
        part = np.asarray(these) @ averages.astype("float64")
        total = part if not total.size else total + part
    return total


def _flat(weights: list) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinity is refused
        return np.concatenate(
            [keras.ops.convert_to_numpy(weight).ravel().astype("float16") for weight in weights]
        )
