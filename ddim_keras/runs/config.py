"""The configuration of a run. Keras is imported when a run begins, not before."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import yaml

from ddim_keras import presets
from ddim_keras.support import files
from ddim_keras.support.arguments import height_and_width, integer, is_number, positive_int

# What does not touch the weights.
MAY_CHANGE = {
    "minutes",
    "cache",
    "keep",
    "checkpoint_every",
    "checkpoint_minutes",
    "samples",
    "samples_every",
    "tensorboard",
    "ema_snapshots",
    "memorization",
}
FEATURES = ("inception_v3", "cifar10", "fashion_mnist")  # what can run within a compiled step
FITS = ("crop", "pad")
UNREADABLE = ("refuse", "skip")
TASKS = ("super-resolution", "colorization")
AUTO = "auto"  # a preset: what is recommended for the data
# The settings of which version 0.1 wrote all, and no others.
_SETTINGS_OF_0_1 = frozenset(
    "data steps image_size channels split fit unreadable data_dir cache preset model training "
    "precision jit seed validate_every validation_images kid samples samples_every tensorboard "
    "checkpoint_every checkpoint_minutes keep".split()
)
# Of a run that distills, for few steps or for guidance; and of both.
_OF_FEW_STEPS = frozenset(("steps", "teacher_steps", "own"))
_OF_GUIDANCE = frozenset(("autoguidance", "weaker"))
_DISTILL = frozenset(("model", "method", "guidance")) | _OF_FEW_STEPS | _OF_GUIDANCE
DISTILLING_METHODS = ("progressive", "consistency", "guidance")
# Not settings of a run's `model`: it has its own for these, or a file cannot hold them.
_NOT_SET_BY_MODEL = {
    *("self", "name", "network", "seed", "dtype", "distillation"),
    *("num_classes", "class_names", "condition_shape"),
}

_OF_THE_RUN = {"image_size", "channels"}


_MOST_VALUES = 100_000  # in a file, names that stand for others written out


class _Loader(yaml.SafeLoader):
    """Plain YAML, in which a setting stands once: PyYAML would take the last of several."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and (number := _values_of(node, {})) > _MOST_VALUES:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"its names (*name) stand for {number} values, more than {_MOST_VALUES}: write "
                "the settings out",
                node.start_mark,
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({name for name in names if name != "<<" and names.count(name) > 1}):
            raise yaml.constructor.ConstructorError(
                None, None, f"given more than once: {', '.join(twice)}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _values_of(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for: a name counts as what it stands for, each time."""
    if node not in known:
        known[node] = 1  # in itself, which is refused when it is written out
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = isinstance(node, yaml.MappingNode)
        each = [part for pair in parts for part in pair] if pairs else parts
        known[node] += sum(_values_of(part, known) for part in each)
    return known[node]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything about a run: `config.yaml` in its folder holds just this.

    Attributes:
        data: what to train on: embedded, the name of a TFDS data set, or a folder of images.
        steps: batches in all, where the minutes do not say it.
        minutes: of training that there are: steps becomes what fits into them, by a few steps that
            are tried at the start, and auto chooses the network by them. Validations come on top.
        image_size: side of the images in pixels, or height and width, such as 64x96.
        channels: 1, 3 or 4; without it the data set's own.
        labels: whether to train by label, so that images can be asked for by it: of a folder, each
            subfolder is a class.
        guidance: the weight that the model keeps for images by label, or of a task, where its user
            gives none; the run's own samples have it, too, the validation's KID has none. 1 for
            none. Without it, with labels, that of the model to start from, or 3, of grey images 2.
        task: what images are made from: super-resolution from small ones, colorization from grey
            ones; without it from noise alone.
        factor: of super-resolution, by how much the small images are smaller.
        split: what to train on and what to keep for validation. Of TFDS two splits, such as
            train[:90%],test; of a folder two subfolders, such as train,dev, or a fraction, such as
            0.1. Without it the data set's own, or 0.2.
        fit: how images are brought to size: crop takes the largest centred part, pad shrinks the
            whole image.
        background: the colour that transparent images are laid on: a name, or #rrggbb.
        bits: of images deeper than 8 bits, how many they use; without it this is found out.
        unreadable: what to do with a folder's images that cannot be read: refuse, or skip.
        data_dir: where TFDS keeps its data.
        cache: where resized images are kept: memory (true in the file), no (false; they are read
            anew each epoch), or a folder; auto for memory where they take at most half of what is
            free, else for files or reading anew, as `load_dataset` says.
        preset: whose network and recipe to take; auto for what `presets.recommend` says of the
            images and the minutes.
        init_from: a trained model to start from: a preset, a run's folder, a .keras file or a
            folder of diffusers'. Its network is taken with its averaged weights, and its recipe,
            where it says one and `preset` does not. The run keeps it in its folder.
        model: arguments of `DiffusionModel` that differ from the preset's.
        training: settings of `presets.Training` that differ from the preset's, or from those of a
            distillation.
        distill: of a run that distills: model, where the teacher is, and steps, method, guidance,
            teacher_steps and own (true or false) as for `ddim_keras.distill`; or, with the method
            guidance, guidance as for `ddim_keras.distill_guidance`, the weight of autoguidance, 2
            where there is no other guidance or a weaker model is given, at noise rates up to 0.99,
            and weaker, where that is; without it the teacher, a run, as it was after a tenth of its
            training. The run keeps both in its folder.
        precision: a Keras dtype policy, such as float32 or mixed_bfloat16, or auto: bfloat16 where
            the hardware computes in it.
        jit: whether to compile with XLA; auto where it is faster.
        seed: fixes weights, order, noises and sampled images.
        validate_every: steps between validations, sampled images and lines of the log; without it
            one pass over the data; of few images 1,000, or a fifth of all, but at least 100.
        validation_images: how many images of the validation part to validate on, about, from all
            over it; null in the file for all.
        kid: features for the KID of each validation: inception_v3, cifar10, fashion_mnist, or none
            for no KID. auto becomes the first for colour images where its weights can be had, else
            the second, and the third for grey ones.
        samples: images generated after validations, to look at; 0 for none.
        samples_every: validations between them.
        tensorboard: whether to write a TensorBoard log.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: minutes between them at the most.
        keep: how many of the newest checkpoints to keep.
        ema_snapshots: how many times over the run to store two averages of the weights, of which
            averages of any length are made afterwards (`ddim_keras.ema.reconstruct`); each takes
            four bytes a parameter. 0 for none.
        memorization: how many images are generated at each validation and compared with those
            trained on, to warn of a network that copies them; 0 for none. Of sets of more than 64
            million numbers, and with a task, it is left out.

    Raises:
        ValueError: a setting out of its range.
    """

    data: str = "embedded"
    steps: int = 5000
    minutes: float | None = None
    image_size: int | list[int] = 32
    channels: int | None = None
    labels: bool = False
    guidance: float | None = None
    task: str | None = None
    factor: int = 4
    split: Any = None
    fit: str = "crop"
    background: str | list[int] = "white"
    bits: int | None = None
    unreadable: str = "refuse"
    data_dir: str | None = None
    cache: bool | str = "auto"
    preset: str = AUTO
    init_from: str | None = None
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    distill: dict[str, Any] = dataclasses.field(default_factory=dict)
    precision: str = "auto"
    jit: bool | str = "auto"
    seed: int = 0
    validate_every: int | None = None
    validation_images: int | None = 2000
    kid: str | None = "auto"
    samples: int = 16
    samples_every: int = 1
    tensorboard: bool = True
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 10.0
    keep: int = 3
    ema_snapshots: int = 12
    memorization: int = 64

    def __post_init__(self) -> None:
        for name in ("model", "training", "distill"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} must hold settings by name, got {getattr(self, name)!r}")
        # As a file would give it back, so that a run equals its own.
        plain = yaml.safe_load(yaml.safe_dump(_plain(dataclasses.asdict(self))))
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        self._expand_places()
        self._check_numbers()
        self._check_words()
        self.recipe()

    def _expand_places(self) -> None:
        for name in ("data", "data_dir", "cache", "preset", "init_from"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, os.path.expanduser(getattr(self, name)))
        for name in ("model", "weaker"):
            if isinstance(place := self.distill.get(name), str):
                self.distill[name] = os.path.expanduser(place)

    def _check_numbers(self) -> None:
        for name in ("steps", "checkpoint_every", "keep", "samples_every", "factor"):
            positive_int(name, getattr(self, name))
        for name in ("samples", "ema_snapshots", "memorization"):
            integer(name, getattr(self, name), minimum=0)
        integer("seed", self.seed, minimum=0, below=2**32)
        for name in ("validate_every", "validation_images", "bits"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        height_and_width(self.image_size)
        if self.guidance is not None and not (
            is_number(self.guidance) and math.isfinite(self.guidance)
        ):
            raise ValueError(f"guidance must be a number, such as 2.0, got {self.guidance!r}")
        for name in ("checkpoint_minutes", "minutes"):
            minutes = getattr(self, name)
            if name == "minutes" and minutes is None:
                continue
            if not is_number(minutes) or not 0.0 < minutes < math.inf:
                hint = " (in YAML 1e1 is a word: write 1.0e+1)" if isinstance(minutes, str) else ""
                raise ValueError(f"{name} must be a positive number, got {minutes!r}{hint}")

    def _check_words(self) -> None:
        self._check_distill()
        self._check_init_from()
        for name in ("data", "preset", "precision"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} must be a name or a folder, got {value!r}")
        if not isinstance(self.cache, (bool, str)):
            raise ValueError(f"cache must be true, false, auto or a folder, got {self.cache!r}")
        for name in ("tensorboard", "labels"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.task not in (None, *TASKS):
            raise ValueError(f"task must be one of {list(TASKS)}, or None, got {self.task!r}")
        if self.factor != RunConfig.factor and self.task != "super-resolution":
            raise ValueError(
                f"factor={self.factor} says how much smaller the images of task='super-resolution' "
                f"are, but the task is {self.task!r}: give that task, or leave the factor out"
            )
        self._check_guidance()
        if self.jit not in (True, False, "auto"):
            raise ValueError(f"jit must be true, false or auto, got {self.jit!r}")
        for name, choices in (("fit", FITS), ("unreadable", UNREADABLE)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {list(choices)}, got {getattr(self, name)!r}"
                )
        if self.channels not in (None, 1, 3, 4) or isinstance(self.channels, (bool, float)):
            raise ValueError(
                f"channels must be 1, 3 or 4, or None for the data set's own, got {self.channels!r}"
            )
        if self.kid not in (None, "auto", *FEATURES):
            raise ValueError(f"kid must be one of {['auto', *FEATURES]}, or None, got {self.kid!r}")

    def _check_distill(self) -> None:
        told = self.distill
        if told and ("model" not in told or set(told) - _DISTILL):
            raise ValueError(
                f"distill must hold a model and some of {sorted(_DISTILL)}, got {told!r}"
            )
        if not isinstance(told.get("own", False), bool):
            raise ValueError(f"own must be true or false, got {told['own']!r}")
        method = told.get("method", DISTILLING_METHODS[0])
        if method not in DISTILLING_METHODS:
            raise ValueError(f"method must be one of {list(DISTILLING_METHODS)}, got {method!r}")
        is_guidance = method == "guidance"
        if unfit := sorted(set(told) & (_OF_FEW_STEPS if is_guidance else _OF_GUIDANCE)):
            raise ValueError(
                f"distill holds {', '.join(unfit)}, which "
                + (
                    "the method guidance has not, as it teaches no number of steps: leave that "
                    "out, and distill once more for few steps"
                    if is_guidance
                    else "the method guidance alone has: give that, or leave it out"
                )
            )
        self._check_autoguidance()

    def _check_autoguidance(self) -> None:
        weight, weaker = (self.distill.get(name, "none") for name in ("autoguidance", "weaker"))
        if not isinstance(weaker, str) or not weaker.strip():
            raise ValueError(f"weaker must be a name, file or folder, got {weaker!r}")
        if weight == "none":
            return
        if not is_number(weight) or not math.isfinite(weight):
            raise ValueError(f"autoguidance must be a number, such as 2.0, got {weight!r}")
        if weight == 1.0 and "weaker" in self.distill:
            raise ValueError(
                "autoguidance of 1 is none, and makes nothing of the weaker model: give another "
                "weight, such as 2.0, or leave weaker out"
            )

    def _check_guidance(self) -> None:
        if self.guidance is None:
            return
        if self.distill:
            raise ValueError(
                f"guidance={self.guidance} beside distill: a student draws guided by itself, as it "
                "was taught to: give the guidance within distill"
            )
        if not self.labels and not self.task:
            raise ValueError(
                f"guidance={self.guidance} strengthens labels, and the run has none: give labels "
                "(--labels), or leave guidance out"
            )

    def _check_init_from(self) -> None:
        if self.init_from is None:
            return
        if not isinstance(self.init_from, str) or not self.init_from.strip():
            raise ValueError(f"init_from must be a name, file or folder, got {self.init_from!r}")
        if self.distill:
            raise ValueError(
                "a distillation starts from its teacher: leave init_from out, or give it as the "
                "teacher"
            )
        # Levels of noise that the network has not seen are learned, as it is told of them.
        if unfit := sorted(set(self.model) - presets.FIT_ANY_WEIGHTS - {"schedule"}):
            raise ValueError(
                f"the weights of {self.init_from} do not fit a model with another "
                f"{', '.join(unfit)}: leave that out, or leave init_from out and train from the "
                "beginning"
            )

    def recipe(self) -> presets.Training:
        """Return the preset's training with this run's changes.

        Raises:
            ValueError: an unknown preset, or a setting that is unknown or out of range.
        """
        known = {field.name for field in dataclasses.fields(presets.Training)}
        if unknown := sorted(set(self.training) - known, key=str):
            raise ValueError(
                f"unknown training settings {unknown}: expected some of {sorted(known)}"
            )
        base = presets.training(presets.RECOMMENDED if self.preset == AUTO else self.preset)
        if self.distill:
            base = presets.DISTILLING
        elif self.init_from and self.preset == AUTO:
            base = recipe_of(self.init_from) or base
        return dataclasses.replace(base, **self.training)

    def recommended(
        self, image_size: Sequence[int], channels: int, num_images: int
    ) -> tuple[RunConfig, Sequence[str]]:
        """Return the configuration with what is recommended for such images in the place of "auto",
        and the reasons. What it says of the model itself stands.
        """
        found = presets.recommend(image_size, channels, num_images, self.minutes)
        if "widths" in self.model:  # whose levels these are, has chosen the rest of them, too
            found = found.without_levels()
        model = {**found.model, **self.model}
        changed = dataclasses.replace(self, preset=found.preset, model=model)
        return changed, list(found.reasons.values())

    def paced(self, steps_per_pass: int) -> RunConfig:
        """Return the configuration of a new run with the steps between its validations, of which
        there would be many in the passes over few images.
        """
        if self.validate_every is not None:
            return self
        every = max(100, min(1000, self.steps // 5), steps_per_pass)
        return dataclasses.replace(self, validate_every=every)

    def normalization(self) -> str:
        """Return how the network is normalised, "batch" or "group"; "batch" where only the model's
        file would say it.
        """
        if self.init_from:
            return _normalization_of(self.init_from)
        preset = presets.RECOMMENDED if self.preset == AUTO else self.preset
        found = presets.read(preset, load_weights=False, changes=self.model)
        return str(found.config.get("normalization", "batch"))

    def write(self, path: pathlib.Path) -> None:
        """Write `config.yaml`, whole or not at all."""
        with files.written_beside(path) as temporary:
            temporary.write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))

    @classmethod
    def read(cls, path: str | os.PathLike) -> RunConfig:
        """Read a `config.yaml`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no YAML, or has settings that are unknown or out of range; names the
                file.
        """
        path = files.expanded(path)
        if not path.is_file():
            raise FileNotFoundError(f"no configuration at {path}")
        try:  # bytes, whose encoding is not the system's: UTF-8, or as their first ones say
            values = yaml.load(path.read_bytes(), _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise ValueError(
                f"{path} must hold settings as NAME: VALUE, a line each, got {values!r}"
            )
        if unknown := sorted(set(values) - known, key=str):
            raise ValueError(
                f"{path} has unknown settings {unknown}: expected some of {sorted(known)}"
            )
        try:
            return cls(**_of_this_version(values))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{path}: a setting holds itself, by its own name: {error}") from error


def recipe_of(source: str) -> presets.Training | None:
    """How the model of a run or a preset was trained; None for others, which do not say it."""
    path = files.expanded(source)
    if (path / "config.yaml").is_file():
        return RunConfig.read(path / "config.yaml").recipe()
    return presets.training(source) if _is_preset(source) else None


def _normalization_of(source: str) -> str:
    path = files.expanded(source)
    if (path / "config.yaml").is_file():
        return RunConfig.read(path / "config.yaml").normalization()
    if _is_preset(source):
        config = presets.read(source, load_weights=False).config
        return str(config.get("normalization", "batch"))
    return "group" if path.is_dir() else "batch"  # diffusers' networks have groups


def _is_preset(source: str) -> bool:
    return source in presets.names() or (files.expanded(source) / "preset.json").is_file()


def check_model_settings(settings: dict[str, Any], parameters: set[str]) -> None:
    """Raise ValueError unless a run's `model` holds arguments of `DiffusionModel`, whose names are
    `parameters`.
    """
    for name in _OF_THE_RUN & set(settings):
        raise ValueError(
            f"{name} is a setting of the run, which its images are brought to, not one of its "
            f"model: give --{name.replace('_', '-')}, or {name}: outside of model: in the file"
        )
    known = parameters - _NOT_SET_BY_MODEL - _OF_THE_RUN
    if unknown := sorted(set(settings) - known, key=str):
        raise ValueError(f"unknown model settings {unknown}: expected some of {sorted(known)}")


def _of_this_version(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as version 0.1 wrote them, all of them, meaning what they meant there."""
    if (
        set(values) == _SETTINGS_OF_0_1
        and values["channels"] is None
        and files.expanded(str(values["data"])).is_dir()
    ):
        return {**values, "channels": 3}  # grey folders, too, were read as RGB
    return values


def _plain(value: Any) -> Any:
    """Tuples as lists, paths as text: what YAML knows."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
