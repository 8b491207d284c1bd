"""Whole training states in a run's folder, each with its checksum."""

from __future__ import annotations

import hashlib
import json
import pathlib
import warnings
from typing import Any

import keras
import numpy as np

from ddim_keras.model import DiffusionModel
from ddim_keras.support import files, reading


class DivergedError(ArithmeticError):
    """The loss or the weights are not finite any more; the message names the last good
    checkpoint.
    """


class Checkpoints:
    """Whole training states by step, each with its checksum.

    Args:
        folder: where they are.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, model: DiffusionModel, step: int) -> pathlib.Path:
        """Write the state at a step, beside and renamed, then remove the oldest beyond `keep`.

        Raises:
            DivergedError: a weight is not finite; nothing is written.
            OSError: the disk is full, say; the older checkpoints stay.
        """
        model.synchronize()
        if not weights_are_finite(model):
            raise DivergedError(f"the weights hold NaN or infinity at step {step}. {self.advice()}")
        path = self.folder / f"step_{step:09d}.weights.h5"
        model.save_weights(path)
        # The checksum last: a state without one was not finished.
        with files.written_beside(self._note(path)) as temporary:
            temporary.write_text(json.dumps({"step": step, "sha256": _sha256(path)}) + "\n")
        paths = self.paths()
        newer = [
            other for other in paths if other.name > path.name
        ]  # damaged, as the training went on from an older one
        for old in newer + paths[len(newer) + self.keep :]:
            self._note(old).unlink(missing_ok=True)
            old.unlink()
        return path

    def paths(self) -> list[pathlib.Path]:
        """Return the checkpoints there are, the newest first."""
        return sorted(self.folder.glob("step_*.weights.h5"), reverse=True)

    def newest_whole(self) -> tuple[pathlib.Path, int] | None:
        """Return (path, step) of the newest checkpoint that is whole, warning of newer ones that
        are not; None without any.
        """
        for path in self.paths():
            try:
                note = reading.json_of(self._note(path), "the checkpoint counts as damaged")
                problem = _problem(path, note)
                if problem is None:
                    return path, note["step"]
            except (OSError, ValueError) as error:
                problem = f"its checksum cannot be read ({error})"
            warnings.warn(
                f"the checkpoint {path} is damaged: {problem}. Trying the one before", stacklevel=3
            )
        return None

    def advice(self) -> str:
        newest = self.newest_whole()
        if newest is None:
            return (
                "There is no checkpoint before it. Lower the learning rate, or clip the gradients "
                "(clip_norm)"
            )
        return (
            f"The last good checkpoint is {newest[0]}. Lower the learning rate, or clip the "
            "gradients (clip_norm)"
        )

    @staticmethod
    def _note(path: pathlib.Path) -> pathlib.Path:
        return path.with_name(path.name.replace(".weights.h5", ".json"))


def weights_are_finite(model: DiffusionModel) -> bool:
    """Whether no weight that inference uses is NaN or infinite."""
    arrays = (
        keras.ops.convert_to_numpy(keras.ops.cast(weight, "float32"))
        for weight in model.ema_network.weights
    )
    return all(np.isfinite(array).all() for array in arrays)


def _problem(path: pathlib.Path, note: dict[str, Any]) -> str | None:
    """What is wrong with a checkpoint by what its note says; None if nothing is."""
    if note.get("sha256") != _sha256(path):
        return "its checksum is wrong"
    number = path.name.removeprefix("step_").removesuffix(".weights.h5")
    step = note.get("step")
    if type(step) is not int or not number.isdecimal() or step != int(number):
        return f"its note says that it is of step {step!r}"
    return None


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
