"""Guidance: how predictions with and without a condition, or of a weaker model, are combined.

    pred = pred_without + weight (pred_with - pred_without)

for noises and images alike: both are linear in what the network predicts. A weight of 1 is no
guidance; above it samples follow the condition more closely, and vary less.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.samplers import Denoiser, Plan
from ddim_keras.sampling.denoisers import Wrapper
from ddim_keras.sampling.engine import Engine
from ddim_keras.support.arguments import is_number
from ddim_keras.support.configurable import Configurable
from ddim_keras.support.types import Config, GuidanceLike, Images, Rates, Tensor, Variable

Interval = Sequence[float]
# Noise rates from 0 to 1 lie inside, whatever their rounding.
_EVERYWHERE = (-1.0, 2.0)
_SAME_SCALE = 1e-3


class Guidance(Configurable, abc.ABC):
    """Base class.

    Args:
        weight: 1 is none.
        interval: (lowest, highest) noise rate at which it acts, in [0, 1], both included; None for
            all of them. Source: Kynkäänniemi et al. 2024.

    Raises:
        ValueError: a weight that is not finite, or an interval outside [0, 1].
    """

    def __init__(self, weight: float = 1.0, interval: Interval | None = None):
        if not is_number(weight) or not np.isfinite(weight):
            raise ValueError(f"the weight of guidance must be a finite number, got {weight!r}")
        self.weight = float(weight)
        self.interval = None if interval is None else _checked_interval(interval)

    def get_config(self) -> Config:
        return {"weight": self.weight, "interval": self.interval}

    @property
    def is_none(self) -> bool:
        """Whether it changes nothing."""
        return self.weight == 1.0

    def acts_at(self, noise_rates: npt.ArrayLike) -> np.ndarray:
        """Return whether it acts at noise rates, as the compiled walk finds it."""
        low, high = (np.float32(end) for end in self.interval or _EVERYWHERE)
        rates = np.asarray(noise_rates, "float32")
        return (rates >= low) & (rates <= high)

    @abc.abstractmethod
    def evaluations(self, inside: Tensor) -> Tensor:
        """Return how often networks are called where it acts around a denoiser that calls them
        `inside` times; both are integers, or arrays of them.
        """

    @abc.abstractmethod
    def wrapper(self, engine: Engine) -> _Within:
        """Return what puts it around the denoiser of an engine.

        Raises:
            ValueError: the engine's model was not trained for it.
        """

    def needs_condition(self) -> bool:
        """Whether it changes nothing where no label and no condition is given."""
        return False


@keras.saving.register_keras_serializable("ddim_keras")
class ClassifierFreeGuidance(Guidance):
    """Away from what the network predicts without label and condition.

    Args:
        weight: 1 is none; 1.5 to 4 are usual.
        interval: (lowest, highest) noise rate at which it acts, in [0, 1]; None for all of them.
        rescale: in [0, 1], how far each image of the guided prediction is brought back to the
            standard deviation of the unguided one; 0.7 tames large weights. It applies to what the
            network predicts. Source: Lin et al. 2024, section 3.4.

    Source: Ho & Salimans 2022, with their w + 1 as the weight.

    Examples:

    >>> ClassifierFreeGuidance(3.0, interval=(0.2, 0.8)).acts_at([0.1, 0.5]).tolist()
    [False, True]
    """

    def __init__(self, weight: float, interval: Interval | None = None, rescale: float = 0.0):
        super().__init__(weight, interval)
        if not is_number(rescale) or not 0.0 <= rescale <= 1.0:
            raise ValueError(f"rescale must lie in [0, 1], got {rescale!r}")
        self.rescale = float(rescale)

    def get_config(self) -> Config:
        return {**super().get_config(), "rescale": self.rescale}

    def wrapper(self, engine: Engine) -> _Within:
        spec = engine.spec
        if not (spec.takes_labels or spec.takes_condition):
            raise ValueError(
                "guidance by label needs a model with labels: build it with num_classes=, and fit "
                "it on (images, labels); Autoguidance(weaker_model, weight) works without"
            )
        if not spec.is_left_out:
            what = "label_dropout" if spec.takes_labels else "condition_dropout"
            raise ValueError(
                "guidance needs a model that was trained without its condition now and then, "
                f"but its {what} is 0: train with {what}=0.1, say"
            )
        return _ClassifierFree(self, engine)

    def needs_condition(self) -> bool:
        return True

    def evaluations(self, inside: Tensor) -> Tensor:
        return 2 * inside


class Autoguidance(Guidance):
    """Away from what a weaker model of the same images predicts. Works without labels too.

    Args:
        model: the weaker model: smaller, or trained for a shorter time. Labels and conditions reach
            it too, if it takes them.
        weight: 1 is none; 1.5 to 3 are usual.
        interval: (lowest, highest) noise rate at which it acts, in [0, 1]; None for all of them.

    It holds a model, so it is not written to files.

    Source: Karras et al. 2024, "Guiding a diffusion model with a bad version of itself".
    """

    def __init__(self, model: Any, weight: float, interval: Interval | None = None):
        super().__init__(weight, interval)
        if not isinstance(getattr(model, "engine", None), Engine):
            raise ValueError(
                f"the weaker model must be a DiffusionModel, got {model!r} of type "
                f"{type(model).__name__}"
            )
        self.model = model

    def evaluations(self, inside: Tensor) -> Tensor:
        return inside + 1

    def __repr__(self) -> str:
        return f"Autoguidance(model, weight={self.weight}, interval={self.interval})"

    def wrapper(self, engine: Engine) -> _Within:
        weaker: Engine = self.model.engine
        if weaker.image_shape != engine.image_shape:
            raise ValueError(
                f"the weaker model makes images of shape {weaker.image_shape}, the model of "
                f"{engine.image_shape}: they must be equal"
            )
        ours, theirs = engine.spec, weaker.spec
        for what in ("num_classes", "condition_shape"):
            wanted, found = getattr(ours, what), getattr(theirs, what)
            if found not in (None, wanted):
                raise ValueError(
                    f"the weaker model has {what}={found}, the model {wanted}: they must be equal, "
                    "or the weaker model's None"
                )
        if ours.class_names and theirs.class_names and ours.class_names != theirs.class_names:
            raise ValueError(
                f"the weaker model's classes are {list(theirs.class_names)}, the model's "
                f"{list(ours.class_names)}: a label would say one thing to each, so they must be "
                "equal, and in the same order"
            )
        scales = (each.normalizer.scales() for each in (engine, weaker))
        if np.abs(np.subtract(*scales)).max() > _SAME_SCALE:
            raise ValueError(
                "the weaker model's normalizer has another mean or variance than the model's: both "
                "must be trained on the same images (weaker.normalizer.set_weights("
                "model.normalizer.get_weights()) before it is)"
            )
        with weaker.weights_held():
            values = weaker.held_values()
        return _Weaker(self, weaker.denoise, weaker, weaker.schedule, (weaker.variables, values))


class GuidanceFunction(Guidance):
    """A function of your own that changes the predicted images: a gradient, or a projection.

    Args:
        function: (noisy_images, pred_images, noise_rate, signal_rate) -> predicted images, in
            `keras.ops` or the backend's functions; images are (batch, height, width, channels) of
            zero mean and unit variance, the rates scalars. The predicted noises follow from what it
            returns. For a classifier's gradient g of log p(label | noisy image), return
            `pred_images + weight * noise_rate**2 / signal_rate * g`. It is compiled into the walk,
            once for a function.
        interval: (lowest, highest) noise rate at which it acts, in [0, 1]; None for all of them.

    It holds a function, so it is not written to files. What the function costs is not counted among
    the network's evaluations.

    Source: Dhariwal & Nichol 2021, section 4 (the gradient of a classifier).

    Examples:

    >>> dark_left = GuidanceFunction(lambda noisy, images, noise_rate, signal_rate: images * 0.9)
    >>> dark_left.evaluations(inside=1)
    1
    """

    def __init__(
        self,
        function: Callable[[Images, Images, Rates, Rates], Images],
        interval: Interval | None = None,
    ):
        super().__init__(1.0, interval)
        if not callable(function):
            raise ValueError(
                "expected a function (noisy_images, pred_images, noise_rate, signal_rate) -> "
                f"images, got {function!r}"
            )
        self.function = function

    def evaluations(self, inside: Tensor) -> Tensor:
        return inside

    def __repr__(self) -> str:
        return f"GuidanceFunction({self.function!r}, interval={self.interval})"

    @property
    def is_none(self) -> bool:
        return False

    def wrapper(self, engine: Engine) -> _Within:
        return _ByFunction(self)


def guidances(guidance: GuidanceLike) -> list[Guidance]:
    """Return the guidances that a user's argument stands for, without those that do nothing.

    Args:
        guidance: a weight for `ClassifierFreeGuidance`, a `Guidance`, a list of those, each around
            the one before, or None.

    Raises:
        ValueError: something else.
    """
    if guidance is None:
        return []
    parts = guidance if isinstance(guidance, (list, tuple)) else [guidance]
    found = []
    for part in parts:
        if is_number(part):
            part = ClassifierFreeGuidance(float(part))
        if not isinstance(part, Guidance):
            raise ValueError(
                "guidance must be a number, such as 2.0, a Guidance, such as "
                f"ClassifierFreeGuidance(2.0), or a list of those, got {part!r}"
            )
        found.append(part)
    return [part for part in found if not part.is_none]


def calls_in_a_step(chosen: Sequence[Guidance]) -> int:
    """Return how often a step calls networks where all of the guidance acts."""
    calls = 1
    for part in chosen:
        calls = int(part.evaluations(calls))
    return calls


def count_evaluations(planned: Plan, chosen: Sequence[Guidance] = ()) -> int:
    """Return how often networks are called in a walk, those for guidance included."""
    number = int(planned.ends[-1])
    noise_rates = planned.table[:number, 1]
    at_each = np.ones(number, int)
    for part in chosen:  # the innermost first
        at_each = np.where(part.acts_at(noise_rates), part.evaluations(at_each), at_each)
    return int(at_each.sum())


class _Within(Wrapper):
    """A wrapper that acts within an interval of noise rates; elsewhere the denoiser is as it was.

    Args:
        guidance: whose interval and weight are arrays, so that other ones need no compiling.
        kind: what else the compiled code depends on.
        numbers: further arrays.
    """

    def __init__(self, guidance: Guidance, *kind: Hashable, numbers: Sequence[float] = ()):
        self.key = (type(self).__name__, *kind)
        interval = guidance.interval or _EVERYWHERE
        self.arrays = (np.array([*interval, guidance.weight, *numbers], "float32"),)

    axes = (-1,)

    def wrap(self, denoise, arrays, draw_noises):
        low, high, *numbers = ops.unstack(ops.convert_to_tensor(arrays[0]), num=len(self.arrays[0]))

        def guided(noisy_images, noise_rates, signal_rates, conditions):
            def plain():
                return denoise(noisy_images, noise_rates, signal_rates, conditions)

            def steered():
                return self.steered(
                    denoise, numbers, noisy_images, noise_rates, signal_rates, conditions
                )

            # A walk's rates are scalars.
            acts = ops.logical_and(noise_rates >= low, noise_rates <= high)
            return ops.cond(acts, steered, plain)

        return guided

    def without_branch(self, denoise: Denoiser) -> Denoiser:
        """Return the same denoiser as `wrap`, without a branch, which few exported programs take,
        and for rates of each image: outside the interval the weight is 1.
        """
        low, high, weight, *numbers = (float(number) for number in self.arrays[0])

        def guided(noisy_images, noise_rates, signal_rates, conditions):
            acts = ops.logical_and(noise_rates >= low, noise_rates <= high)
            here = weight if (low, high) == _EVERYWHERE else ops.where(acts, weight, 1.0)
            given = (noisy_images, noise_rates, signal_rates, conditions)
            return self.steered(denoise, [here, *numbers], *given)

        return guided

    @abc.abstractmethod
    def steered(
        self,
        denoise: Denoiser,
        numbers: Sequence[Tensor],
        noisy_images: Images,
        noise_rates: Rates,
        signal_rates: Rates,
        conditions: Any,
    ) -> tuple[Images, Images]:
        """Return (pred_noises, pred_images) with guidance; `numbers` are the weight and more."""


class _ClassifierFree(_Within):
    def __init__(self, guidance: ClassifierFreeGuidance, engine: Engine):
        self._rescales, self._parameterization = guidance.rescale > 0.0, engine.parameterization
        self._spec = engine.spec
        super().__init__(guidance, self._rescales, numbers=[guidance.rescale])

    def steered(self, denoise, numbers, noisy_images, noise_rates, signal_rates, conditions):
        weight, rescale = numbers
        # Both in one batch of twice the size. What the network was never without stays.
        spec = self._spec
        twice = conditions._replace(
            labels=_twice(conditions.labels, spec.num_classes if spec.label_dropout else None),
            condition=_twice(conditions.condition, 0.0 if spec.condition_dropout else None),
        )
        rates = [_each_twice(rate) for rate in (noise_rates, signal_rates)]
        twice = twice._replace(noise_level=_each_twice(conditions.noise_level))
        both = denoise(ops.concatenate([noisy_images] * 2), *rates, twice)
        (with_noises, without_noises), (with_images, without_images) = (
            ops.split(part, 2) for part in both
        )
        noises = without_noises + weight * (with_noises - without_noises)
        images = without_images + weight * (with_images - without_images)
        if not self._rescales:
            return noises, images
        rates = (signal_rates, noise_rates)
        told = self._parameterization.target(with_images, with_noises, *rates)
        guided = self._parameterization.target(images, noises, *rates)
        ratio = _deviation(told) / ops.maximum(_deviation(guided), 1e-6)
        guided = guided * (rescale * ratio + (1.0 - rescale))
        return self._parameterization.components(guided, noisy_images, *rates)


class _Weaker(_Within):
    """Away from a weaker denoiser.

    Args:
        guidance: how far.
        weaker: the denoiser.
        whose: what it belongs to.
        schedule: by which it is told of noise levels.
        reads: its variables, and their values; none where it is a part of what is trained.
    """

    def __init__(
        self,
        guidance: Guidance,
        weaker: Denoiser,
        whose: Any,
        schedule: Schedule,
        reads: tuple[Sequence[Variable], Sequence[Tensor]] = ((), ()),
    ):
        super().__init__(guidance, id(whose))
        # `whose` is kept, so that no other takes its place under this key
        self._weaker, self._whose, self._schedule = weaker, whose, schedule
        self.variables, self.values = reads

    def steered(self, denoise, numbers, noisy_images, noise_rates, signal_rates, conditions):
        noises, images = denoise(noisy_images, noise_rates, signal_rates, conditions)
        level = self._schedule.conditions(signal_rates, noise_rates)
        weak_noises, weak_images = self._weaker(
            noisy_images, noise_rates, signal_rates, conditions._replace(noise_level=level)
        )
        weight = numbers[0]
        return (
            weak_noises + weight * (noises - weak_noises),
            weak_images + weight * (images - weak_images),
        )


def away_from(
    guidance: Guidance, denoise: Denoiser, weaker: Denoiser, schedule: Schedule
) -> Denoiser:
    """Return a denoiser that moves away from what a weaker one predicts, as `Autoguidance` does,
    for rates of each image.

    Args:
        guidance: how far, and at which noise rates.
        denoise, weaker: of networks that are told of noise levels by the `schedule`.
    """
    return _Weaker(guidance, weaker, weaker, schedule).without_branch(denoise)


class _ByFunction(_Within):
    def __init__(self, guidance: GuidanceFunction):
        self._function = guidance.function
        super().__init__(guidance, guidance.function)

    def without_branch(self, denoise):
        if tuple(self.arrays[0][:2]) != _EVERYWHERE:
            raise ValueError(
                "an exported GuidanceFunction acts at all noise rates: leave its interval out, and "
                "let the function look at noise_rate"
            )
        return super().without_branch(denoise)

    def steered(self, denoise, numbers, noisy_images, noise_rates, signal_rates, conditions):
        _, images = denoise(noisy_images, noise_rates, signal_rates, conditions)
        images = self._function(noisy_images, images, noise_rates, signal_rates)
        images = ops.cast(images, "float32")
        return (noisy_images - signal_rates * images) / noise_rates, images


def _twice(told: Tensor | None, nothing: Tensor) -> Tensor | None:
    """What the network is told, and then as much of what says nothing, or of the same."""
    if told is None:
        return None
    second = told if nothing is None else ops.full_like(told, nothing)
    return ops.concatenate([told, second])


def _each_twice(rates: Rates) -> Rates:
    """Rates of images in a batch of twice the size; those that all share stay."""
    return ops.concatenate([rates] * 2) if len(ops.shape(rates)) else rates


def _deviation(values: Images) -> Tensor:
    return ops.std(values, axis=(1, 2, 3), keepdims=True)


def _checked_interval(interval: Any) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in interval)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(
            "interval must be (lowest, highest) noise rate, in [0, 1] and in this order, got "
            f"{interval!r}"
        )
    return low, high
