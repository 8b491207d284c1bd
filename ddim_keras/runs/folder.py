"""The folder of a run: what lies where, and whether a configuration may resume it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ddim_keras.data import fingerprint
from ddim_keras.data.source import EMBEDDED
from ddim_keras.runs.config import AUTO, MAY_CHANGE, RunConfig
from ddim_keras.support import files, reading


class RunFolder:
    """A run's folder.

    Args:
        path: of the folder; it need not exist yet.

    Attributes:
        config, checkpoints, ema, samples, log, tensorboard, best, model, teacher, weaker, initial:
            what lies in it.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.ema = path / "ema"
        self.samples = path / "samples"
        self.log = path / "log.csv"
        self.tensorboard = path / "tensorboard"
        self.best = path / "best.keras"
        self.model = path / "model.keras"
        self.teacher = path / "teacher.keras"
        self.weaker = path / "weaker.keras"
        self.initial = path / "initial.keras"
        self._fingerprint = path / "data.json"
        self._moved_from: str | None = None

    @contextlib.contextmanager
    def of_process(self, index: int) -> Iterator[RunFolder]:
        """Yield the folder that a process writes to: the first to this one, the others, which do
        the same, to one that is removed afterwards.
        """
        if index == 0:
            yield self
            return
        with tempfile.TemporaryDirectory() as temporary:
            own = RunFolder(pathlib.Path(temporary) / self.path.name)
            own.path.mkdir()
            for best in self.path.glob("best*"):  # or this process would take another for better
                shutil.copyfile(best, own.path / best.name)
            yield own

    def reconcile(self, config: RunConfig, tell: Callable[[str], None]) -> RunConfig:
        """Return the configuration to train with: the one given, with what an earlier run in the
        folder has found out.

        Another number of steps and another place of the same images are taken, and said.

        Raises:
            ValueError: the folder holds a run with another configuration, or something other than a
                run.
        """
        if not self.config.is_file():
            if self.path.exists() and any(
                not path.name.startswith(".") for path in self.path.iterdir()
            ):
                raise ValueError(
                    f"{self.path} holds something other than a run: choose another folder, or "
                    "empty it"
                )
            return config
        found = RunConfig.read(self.config)
        if config.validate_every is None:  # as was settled then
            config = dataclasses.replace(config, validate_every=found.validate_every)
        if config.kid == "auto":  # as it was found out then
            config = dataclasses.replace(config, kid=found.kid)
        if config.init_from and config.init_from == found.init_from:  # and so is its recipe
            config = dataclasses.replace(config, training={**found.training, **config.training})
        if config.preset == AUTO:  # and so are network and recipe, but for what is said of them now
            config = dataclasses.replace(
                config, preset=found.preset, model={**found.model, **config.model}
            )
        is_told_the_same = (config.labels, config.task) == (found.labels, found.task)
        if config.guidance is None and is_told_the_same:  # and so are weights
            config = dataclasses.replace(config, guidance=found.guidance)
        settled = {"guidance", "autoguidance"} & set(found.distill) - set(config.distill)
        if config.distill and settled:
            taught = {**config.distill, **{name: found.distill[name] for name in settled}}
            config = dataclasses.replace(config, distill=taught)
        if config.minutes is not None:  # and so is their number of steps
            if config.minutes != found.minutes:
                raise ValueError(
                    f"{self.path} was begun for {found.minutes or 'no number of'} minutes, "
                    f"{found.steps} steps: give --steps to make it longer, or choose another folder"
                )
            config = dataclasses.replace(config, steps=found.steps)
        if config.channels is None:
            config = dataclasses.replace(config, channels=found.channels)
        before, now = _place(found), _place(config)
        self._moved_from = before if before != now else None
        if before != now:
            self._check_moved_data(found, config)
            tell(f"The images are at {now} now, where they were at {before}")
        elif self._holds_others(config):
            warnings.warn(
                f"the images in {config.data} are not those that the run in {self.path} began "
                "with: some were added, removed or "
                "changed, and what was held out for validation may be trained on now",
                stacklevel=3,
            )
        self._refuse_other_settings(config, found)
        if config.steps != found.steps:
            tell(_changed_length(config, found.steps))
        return config

    def write(self, config: RunConfig) -> None:
        """Write the configuration, and by what the images are known if they move.

        Raises:
            ValueError: TFDS has now prepared other images than those of the run.
        """
        known = fingerprint(config.data, config.data_dir)
        if self._moved_from is not None and self._known() not in (None, known):
            raise ValueError(self._of_other_images(self._moved_from, _place(config)))
        config.write(self.config)
        if known is not None:
            with files.written_beside(self._fingerprint) as temporary:
                temporary.write_text(json.dumps({"images": known}) + "\n")

    def _check_moved_data(self, found: RunConfig, config: RunConfig) -> None:
        """Raise ValueError unless the images of a run are the same in another place."""
        before, now = _place(found), _place(config)
        known = fingerprint(config.data, config.data_dir)
        expected = self._known()
        by_name = config.data == found.data  # the data set of TFDS in another data_dir
        if known is None and by_name and not pathlib.Path(config.data).is_dir():
            return  # TFDS may prepare it there; `write` compares it then
        if known is None or (expected is None and pathlib.Path(found.data).is_dir()):
            raise ValueError(
                f"{self.path} was trained on {before}, not on {now}: choose another folder for "
                "another data set"
            )
        if expected is None:
            warnings.warn(
                f"the run in {self.path} does not say which images {before} held: those in {now} "
                "are taken to be the same",
                stacklevel=2,
            )
        elif known != expected:
            raise ValueError(self._of_other_images(before, now))

    def _holds_others(self, config: RunConfig) -> bool:
        """Whether the place that was not moved holds other images than when the run began."""
        expected = self._known()
        if expected is None:
            return False
        known = fingerprint(config.data, config.data_dir)
        return known is not None and known != expected  # what is not there, loading says

    def _of_other_images(self, before: str, now: str) -> str:
        return (
            f"{self.path} was trained on {before}, and {now} holds other images (by the "
            "names, sizes and first bytes of their files): a "
            "run can only be resumed on the same ones"
        )

    def _known(self) -> str | None:
        """By what the images of the run are known; None if it does not say."""
        if not self._fingerprint.is_file():
            return None
        advice = "remove it if the images are the same"
        known = reading.json_of(self._fingerprint, advice)
        with reading.refusing_damage(self._fingerprint, advice):
            return str(known["images"])

    def _refuse_other_settings(self, config: RunConfig, found: RunConfig) -> None:
        ours, theirs = dataclasses.asdict(config), dataclasses.asdict(found)
        may_change = MAY_CHANGE | {"steps", "data", "data_dir"}
        different = [name for name in ours if ours[name] != theirs[name] and name not in may_change]
        if different:
            changes = ", ".join(
                f"{name}: {theirs[name]!r} there, {ours[name]!r} now" for name in different
            )
            raise ValueError(
                f"{self.path} holds a run with another configuration ({changes}): resume it with "
                f"its own, {self.config}, or "
                "choose another folder"
            )


def _place(config: RunConfig) -> str:
    """Where the images are: a folder, or a name and where TFDS keeps its data."""
    if config.data_dir is None or config.data == EMBEDDED or pathlib.Path(config.data).is_dir():
        return config.data
    return f"{config.data} in {config.data_dir}"


def _changed_length(config: RunConfig, before: int) -> str:
    text = (
        f"The run is {'longer' if config.steps > before else 'shorter'} now: {config.steps} steps "
        f"instead of {before}."
    )
    recipe: Any = config.recipe()
    if recipe.schedule == "constant":
        return f"{text} The learning rate stays {recipe.learning_rate:g}"
    return (
        f"{text} The learning rate follows the {recipe.schedule} schedule of {config.steps} steps "
        "from here on" + (", so it rises again at first" if config.steps > before else "")
    )
