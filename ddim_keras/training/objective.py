"""What training minimises, and the losses that are measured beside it."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.diffusion.parameterizations import Parameterization
from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.diffusion.weightings import Weighting
from ddim_keras.networks.copying import copied
from ddim_keras.samplers import Conditions
from ddim_keras.sampling.denoisers import predict
from ddim_keras.sampling.engine import Engine
from ddim_keras.support import backend
from ddim_keras.support.configurable import Configurable
from ddim_keras.support.types import Images, Rates, Tensor


class Teaching(Configurable, abc.ABC):
    """How a model is taught by another: base class of what `DiffusionModel` takes as
    `distillation`.
    """

    @abc.abstractmethod
    def objective(self, *parts: Any) -> Objective:
        """Return what the model minimises; `parts` are the arguments of `Objective`."""


class LossTracker(keras.metrics.Mean):
    """The mean of the losses, which also counts the images it has seen, without those that only
    filled a batch up.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.images = self.add_variable((), "zeros", name="images")

    def update_state(self, values: Tensor, sample_weight: Tensor | None = None) -> None:
        super().update_state(values, sample_weight=sample_weight)
        number = ops.shape(values)[0] if sample_weight is None else ops.sum(sample_weight)
        self.images.assign(self.images + ops.cast(number, "float32"))

    def reset_state(self) -> None:
        super().reset_state()
        self.images.assign(0.0)


class Objective:
    """The weighted loss of what the network predicts, and the plain losses of the noises and images
    in it.

    Args:
        schedule: what the network is told of the noise.
        parameterization: what it predicts.
        loss_weighting: how much each noise level counts.
        spec: which conditions the network takes.

    Attributes:
        loss: a Keras loss, or a function (true, predicted) -> values.
        teacher, weaker: networks that it is learned from, and that are never trained, or None.
        noise_losses, image_losses, losses: their running means, n_loss, i_loss and loss.
    """

    def __init__(
        self,
        schedule: Schedule,
        parameterization: Parameterization,
        loss_weighting: Weighting,
        spec: ConditionSpec,
    ):
        self.schedule = schedule
        self.parameterization = parameterization
        self.loss_weighting = loss_weighting
        self.spec = spec
        self.loss: Callable[[Images, Images], Tensor] = keras.losses.get("mean_absolute_error")
        # Whatever Keras's floatx is: 16 bits could not count the images.
        self.noise_losses = keras.metrics.Mean(name="n_loss", dtype="float32")
        self.image_losses = keras.metrics.Mean(name="i_loss", dtype="float32")
        self.losses = LossTracker(name="loss", dtype="float32")
        self.teacher: keras.Model | None = None
        self.weaker: keras.Model | None = None

    def take_teachers(self, network: keras.Model, engine: Engine) -> None:
        """Take the networks to learn from, which begin as copies of one; an objective that is
        learned from the data alone has none.
        """

    def results(self) -> dict[str, Tensor]:
        """Return the running n_loss, i_loss and loss, by the names of their trackers."""
        return {
            tracker.name: tracker.result()
            for tracker in (self.noise_losses, self.image_losses, self.losses)
        }

    def measure(
        self,
        network: keras.Model,
        images: Images,
        noises: Images,
        signal_rates: Rates,
        noise_rates: Rates,
        sample_weight: Tensor | None,
        training: bool,
        told: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """Ask a network for the images and noises of a batch, and take their losses into the
        running ones.

        Args:
            network: of [noisy images, noise levels].
            images, noises: (batch, height, width, channels), of zero mean and unit variance.
            signal_rates, noise_rates: (batch, 1, 1, 1).
            sample_weight: (batch,), by which the losses are multiplied; negative for what only
                fills the batch up. Or None.
            training: as for `keras.Model.call`.
            told: labels and condition of the batch, as in `Conditions`; empty if there are none.

        Returns:
            (each image's loss, weighted, (batch,); 1 where the image counts and 0 where it only
            fills the batch up, (batch,), or None if all count).
        """
        noisy_images = signal_rates * images + noise_rates * noises
        noise_levels = self.schedule.conditions(signal_rates, noise_rates)
        conditions = Conditions(noise_levels, **told)
        prediction = predict(network, noisy_images, conditions, self.spec, training)
        pred_noises, pred_images = self.parameterization.components(
            prediction, noisy_images, signal_rates, noise_rates
        )
        target = self.parameterization.target(images, noises, signal_rates, noise_rates)
        weights = self.loss_weighting(signal_rates, noise_rates, self.parameterization)
        losses = ops.reshape(weights, (-1,)) * self.of_images(target, prediction)
        noise_losses = self.of_images(noises, pred_noises)
        image_losses = self.of_images(images, pred_images)
        return self.taken(network, losses, noise_losses, image_losses, sample_weight)

    def compared(
        self,
        wanted: tuple[Images, Images],
        predicted: tuple[Images, Images],
        signal_rates: Rates,
        noise_rates: Rates,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of a batch's images, weighted, of the noises and of the images in them,
        each (batch,).

        Args:
            wanted, predicted: (noises, images), each (batch, height, width, channels).
            signal_rates, noise_rates: (batch, 1, 1, 1).
        """
        target, prediction = (
            self.parameterization.target(images, noises, signal_rates, noise_rates)
            for noises, images in (wanted, predicted)
        )
        weights = self.loss_weighting(signal_rates, noise_rates, self.parameterization)
        losses = ops.reshape(weights, (-1,)) * self.of_images(target, prediction)
        noise_losses, image_losses = (
            self.of_images(true, found) for true, found in zip(wanted, predicted)
        )
        return losses, noise_losses, image_losses

    def taken(
        self,
        network: keras.Model,
        losses: Tensor,
        noise_losses: Tensor,
        image_losses: Tensor,
        sample_weight: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Take the losses of a batch's images, each (batch,), into the running ones; returns what
        `measure` does. What the regularizers of a network's weights say is a part of each loss.
        """
        sample_weight, counted = _weights_and_counted(sample_weight)
        if sample_weight is not None:
            losses = losses * sample_weight
        penalties = [
            variable.regularizer(variable)
            for variable in network.weights
            if getattr(variable, "regularizer", None) is not None
        ]
        if penalties:
            penalty = ops.cast(sum(penalties), losses.dtype)
            losses = losses + (penalty if counted is None else penalty * counted)
        self.noise_losses.update_state(noise_losses, sample_weight=sample_weight)
        self.image_losses.update_state(image_losses, sample_weight=sample_weight)
        self.losses.update_state(losses, sample_weight=counted)
        return losses, counted

    def of_images(self, true: Images, predicted: Images) -> Tensor:
        """Return the loss for each image, float32 (batch,).

        A function that gives one number for a batch is asked about each image by itself: only so
        can images, and noise levels, count more or less than others.

        Raises:
            ValueError: there is no loss, or what it gives is none of these images.
        """
        if self.loss is None:
            raise ValueError(
                "there is no loss to minimise, as the model was compiled with loss=None: give "
                "compile a loss, or leave loss= out for the mean absolute error"
            )
        function = self.loss.call if isinstance(self.loss, keras.losses.Loss) else self.loss
        values = function(true, predicted)
        _check_values(values, function, true)
        if _rank(values) == 0:
            values = backend.of_each(function, true, predicted)
        values = ops.reshape(ops.cast(values, "float32"), (ops.shape(true)[0], -1))
        return ops.mean(values, axis=1)


class TaughtObjective(Objective):
    """What is learned from another network, the teacher: base class of what a `Teaching` makes.

    Args:
        distillation: how.
        *parts: the arguments of `Objective`.
    """

    def __init__(self, distillation: Teaching, *parts: Any):
        super().__init__(*parts)
        self.distillation = distillation
        self._engine: Engine | None = None

    def take_teachers(self, network: keras.Model, engine: Engine) -> None:
        self._engine, self.teacher = engine, copied(network)
        self.teacher.trainable = False


def _rank(values: Tensor) -> int | None:
    """How many axes there are; None where TensorFlow's graph does not know it."""
    shape = values.shape
    return shape.rank if hasattr(shape, "rank") else len(shape)


def _check_values(values: Any, function: Callable, true: Images) -> None:
    """Raise ValueError unless a loss function gave floating numbers, one or as many for each image
    of a batch.
    """
    expected = (
        "a loss is a function (true, predicted) -> numbers, both arguments (batch, height, width, "
        "channels): for each image one, (batch,), or several, (batch, ...), or one for all"
    )
    name = getattr(function, "__qualname__", repr(function))
    if not hasattr(values, "shape") or not hasattr(values, "dtype"):
        raise ValueError(f"the loss {name} gives a {type(values).__name__}: {expected}")
    if "float" not in keras.backend.standardize_dtype(values.dtype):
        raise ValueError(
            f"the loss {name} gives {keras.backend.standardize_dtype(values.dtype)}, which has no "
            "gradient: let it give floating numbers"
        )
    if _rank(values) is None:
        raise ValueError(f"the loss {name} gives no known shape, set_shape says it: {expected}")
    if _rank(values) == 0:
        return
    shape, given = tuple(values.shape), tuple(true.shape)
    flat = len(shape) == 1 and (shape[0] is None or None not in given)
    if flat and shape[0] is not None:
        flat = shape[0] == math.prod(given)
    of_images = shape[0] == given[0]
    if of_images and given[0] in given[1:] and len(shape) < len(given):
        # By chance, perhaps: the mean over the batch has an axis of pixels first.
        of_images = function(true[:1], true[:1]).shape[0] == 1
    if not (of_images or flat):
        raise ValueError(
            f"the loss {name} gives the shape {shape} for images {given}, without their first "
            f"axis: {expected}"
        )


def _weights_and_counted(sample_weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return weights of images, and 1 for those that count and 0 for those that only fill the batch
    up; or (None, None).
    """
    if sample_weight is None:
        return None, None
    sample_weight = ops.cast(sample_weight, "float32")
    if len(sample_weight.shape) != 1:
        raise ValueError(
            "sample weights must be one number for each image, shape (batch,), got shape "
            f"{tuple(sample_weight.shape)}: "
            "images are weighted, not their pixels"
        )
    return ops.maximum(sample_weight, 0.0), ops.cast(sample_weight >= 0.0, "float32")
