"""What the images of a call are conditioned on: labels, conditions, guidance, as a user says it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.sampling.engine import Batch, Engine
from ddim_keras.sampling.guidance import Guidance, guidances
from ddim_keras.support.types import Condition, GuidanceLike, Labels, Numbers


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
        if all(part is None for part in told):
            return list(self.guides)
        return [*self.guides, Told(self.engine, *told)]

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
) -> Conditioning:
    """Check what a user says of the conditions of `number` images.

    Args:
        engine: which makes the images.
        labels: a class number or name, for all images; a list of one for each image, in which None
            says nothing, or one-hot (number, K); or None for no labels.
        condition: (number, *condition_shape), or one condition for all images; None for none.
        guidance: as for `guidances`.

    Raises:
        ValueError: a label or condition that is wrong or that the model does not take, or guidance
            that it was not trained for.
    """
    chosen = guidances(guidance)
    guides: list[Wrapper] = [part.wrapper(engine) for part in chosen]
    nothing_is_told = labels is None and condition is None
    if nothing_is_told and any(part.needs_condition() for part in chosen):
        what = "labels" if engine.spec.takes_labels else "condition"
        raise ValueError(
            f"guidance strengthens {what}, but none are given: give {what}=, or leave guidance out"
        )
    return Conditioning(
        engine,
        _labels(engine, number, labels),
        _condition(engine, number, condition),
        chosen,
        guides,
    )


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
