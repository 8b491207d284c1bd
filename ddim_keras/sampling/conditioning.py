"""What the images of a call are conditioned on: labels, conditions, guidance, as a user says it."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.sampling.engine import Batch, Engine
from ddim_keras.sampling.guidance import Guidance, guidances
from ddim_keras.support import backend
from ddim_keras.support.types import Condition, GuidanceLike, Images, Labels, Numbers, Tensor


class Told(Wrapper):
    """A denoiser that is told the labels and conditions of a batch.

    Args:
        engine: whose conditions they are.
        labels: class numbers, (batch,), or None.
        condition: (batch, *condition_shape), as a user gives them, or None.
    """

    def __init__(self, engine: Engine, labels: Labels = None, condition: Condition = None):
        self._spec = engine.spec
        parts = {"labels": labels, "condition": condition}
        self._names = [name for name, part in parts.items() if part is not None]
        self.key = ("told", *self._names)
        self.arrays = tuple(parts[name] for name in self._names)

    def wrap(self, denoise, arrays, draw_noises):
        given = dict(zip(self._names, arrays))
        if "condition" in given:
            given["condition"] = self._spec.scaled(given["condition"])

        def told(noisy_images, noise_rates, signal_rates, conditions):
            conditions = conditions._replace(**given)
            return denoise(noisy_images, noise_rates, signal_rates, conditions)

        return told


class Conditioning(NamedTuple):
    """Labels, conditions and guidance of all images of a call, checked.

    Attributes:
        engine: which makes the images.
        labels: class numbers, int32 (num_images,), or None if the model takes none.
        condition: (num_images, *condition_shape), or None.
        guidance: what acts, the innermost first.
        guides: its wrappers.
    """

    engine: Engine
    labels: Numbers | None
    condition: np.ndarray | None
    guidance: list[Guidance]
    guides: list[Wrapper]

    def of(self, batch: Batch) -> list[Wrapper]:
        """Return the wrappers for a batch of the images, to be put around the network first."""
        told = [None if part is None else batch.of(part) for part in (self.labels, self.condition)]
        return self._replace(labels=told[0], condition=told[1]).of_all()

    def of_all(self) -> list[Wrapper]:
        """As `of`, for all images at once."""
        if self.labels is None and self.condition is None:
            return list(self.guides)
        return [*self.guides, Told(self.engine, self.labels, self.condition)]

    def scaled(self) -> dict[str, Any]:
        """Return labels and conditions of all images as the network takes them."""
        told: dict[str, Any] = {}
        if self.labels is not None:
            told["labels"] = ops.convert_to_tensor(self.labels)
        if self.condition is not None:
            told["condition"] = self.engine.spec.scaled(ops.convert_to_tensor(self.condition))
        return told

    def arguments(self, indices: Any) -> dict[str, Any]:
        """Return labels and conditions of some of the images, as a verb takes them."""
        parts = {"labels": self.labels, "condition": self.condition}
        found = {name: part[indices] for name, part in parts.items() if part is not None}
        if "labels" in found:
            null = self.engine.spec.num_classes
            found["labels"] = [None if label == null else int(label) for label in found["labels"]]
        return found


def conditioning(
    engine: Engine,
    number: int,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    default_guidance: float | None = None,
) -> Conditioning:
    """Check what a user says of the conditions of `number` images.

    Args:
        engine: which makes the images.
        labels: a class number or name, for all images; a list of one for each image, in which None
            says nothing, or one-hot (number, K); or None for no labels.
        condition: (number, *condition_shape), or one condition for all images; None for none.
        guidance: as for `guidances`.
        default_guidance: the weight where there is no other and an image has a label or condition.

    Raises:
        ValueError: a label or condition that is wrong or that the model does not take, or guidance
            that it was not trained for.
    """
    numbers = _labels(engine, number, labels)
    by_label = engine.spec.label_dropout and _tells(engine, numbers)
    if guidance is None and (by_label or (engine.spec.condition_dropout and condition is not None)):
        guidance = default_guidance
    chosen = guidances(guidance)
    guides: list[Wrapper] = [part.wrapper(engine) for part in chosen]
    nothing_is_told = labels is None and condition is None
    if nothing_is_told and any(part.needs_condition() for part in chosen):
        what = "labels" if engine.spec.takes_labels else "condition"
        raise ValueError(
            f"guidance strengthens {what}, but none are given: give {what}=, or leave guidance out"
        )
    return Conditioning(engine, numbers, _condition(engine, number, condition), chosen, guides)


def _tells(engine: Engine, numbers: Numbers | None) -> bool:
    """Whether any image has a label."""
    return numbers is not None and bool((numbers != engine.spec.num_classes).any())


def conditioning_of(
    engine: Engine, noisy_images: Images, labels: Labels = None, condition: Condition = None
) -> Conditioning:
    """As `conditioning`, of noisy images that may be a tensor of a function being traced: then how
    many they are, and labels and conditions, may be known only when it runs.

    Args:
        engine: which sees the images.
        noisy_images: (batch, height, width, channels).
        labels: as for `conditioning`; a tensor without values holds class numbers, (batch,) or ().
        condition: as for `conditioning`.

    Raises:
        ValueError: as for `conditioning`, as far as it can be known.
    """
    known = noisy_images.shape[0]
    number = ops.shape(noisy_images)[0]
    if known is None:
        axes = len(engine.spec.condition_shape or ()) + 1
        known = _length(labels, 1) or _length(condition, axes) or 1
    stand_ins = [labels, condition]
    if backend.has_no_value(labels):
        stand_ins[0] = 0
    if backend.has_no_value(condition):
        stand_ins[1] = np.full(engine.spec.condition_shape or (), engine.spec.nothing, "float32")
    found = conditioning(engine, known, *stand_ins)
    if backend.has_no_value(labels):
        found = found._replace(labels=_class_numbers(labels))
    if backend.has_no_value(condition):
        if len(condition.shape) == len(engine.spec.condition_shape or ()):  # one for all
            condition = condition[None]
        engine.spec.check_condition_shape(tuple(condition.shape))
        found = found._replace(condition=condition)

    def for_all(part: Any) -> Any:
        alike = (
            part is None or not backend.has_no_value(part) and len(part) == noisy_images.shape[0]
        )
        return part if alike else ops.broadcast_to(part, (number, *part.shape[1:]))

    return found._replace(labels=for_all(found.labels), condition=for_all(found.condition))


def _length(part: Any, axes: int) -> int | None:
    """How many images labels or conditions are for, where they have values, and an axis of images;
    a string is one label.
    """
    if part is None or isinstance(part, str) or backend.has_no_value(part):
        return None
    shape = np.shape(part)
    return shape[0] if len(shape) == axes else None


def _class_numbers(labels: Tensor) -> Tensor:
    """Labels that have no value yet, int32 (batch,) or (1,)."""
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if "int" not in dtype or len(labels.shape) > 1:
        raise ValueError(
            "labels that have no value yet must be class numbers, integers of shape (batch,), got "
            f"{dtype} of shape {tuple(labels.shape)}"
        )
    return ops.reshape(ops.cast(labels, "int32"), (-1,))


def _labels(engine: Engine, number: int, labels: Labels) -> Numbers | None:
    spec = engine.spec
    if not spec.takes_labels:
        if labels is not None:
            raise ValueError(
                f"the model has no labels, but labels={labels!r} is given: build it with "
                "num_classes=, and fit it on (images, labels)"
            )
        return None
    if labels is None:
        if number and spec.needs_labels:
            raise ValueError(
                "the model was trained with a label for every image (label_dropout=0), so it "
                "cannot make images without: give labels="
            )
        return np.full(number, spec.num_classes, "int32")
    is_one = isinstance(labels, (str, bytes)) or not hasattr(labels, "__len__")
    is_one = is_one or getattr(labels, "ndim", 1) == 0
    if is_one:
        return np.repeat(spec.class_numbers([labels]), number)
    if len(labels) != number:
        raise ValueError(
            f"labels holds {len(labels)} labels, but there are {number} images: give one for each, "
            "or a single one for all"
        )
    return spec.class_numbers(labels, allow_none=True)


def _condition(engine: Engine, number: int, condition: Condition) -> np.ndarray | None:
    spec = engine.spec
    if not spec.takes_condition:
        if condition is not None:
            raise ValueError(
                "the model takes no condition: build it with condition_shape=, and fit it on "
                "pairs (images, condition)"
            )
        return None
    if condition is None:
        if number and not spec.condition_dropout:
            raise ValueError(
                "the model is conditioned on "
                f"{'images' if spec.takes_images else 'vectors'} of shape {spec.condition_shape}: "
                "give condition="
            )
        return np.full((number, *(spec.condition_shape or ())), spec.nothing, "float32")
    values = np.asarray(condition)
    if values.shape == spec.condition_shape:  # one for all
        values = np.repeat(values[None], number, axis=0)
    return spec.check_condition(values, number)
