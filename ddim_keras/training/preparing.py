"""What is settled before a training or an evaluation starts: its data, metrics, optimizer and
normalizer; and what is said of its figures.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.networks.layers import ImageNormalization
from ddim_keras.sampling.engine import Engine
from ddim_keras.support import backend
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.types import Data, ImageShape, Labels, SampleWeights


class FitData(NamedTuple):
    """What Keras's `fit` is given.

    Attributes:
        x, y, sample_weight: to train on, every batch checked before it is used.
        validation_data: (x, y, sample_weight) to validate on, or None.
    """

    x: Data
    y: Labels
    sample_weight: SampleWeights
    validation_data: tuple[Data, Labels, SampleWeights] | None

    def in_batches(
        self,
        model: keras.Model,
        given: Data,
        batch_size: int | None,
        validation_batch_size: int | None,
        shuffle: bool,
    ) -> FitData:
        """As `inputs.in_batches`, for both; where several processes train the model, this one's
        parts. `given` is what the user gave as x.
        """
        batched = inputs.in_batches(self.x, self.y, self.sample_weight, batch_size, shuffle)
        validation_data = self.validation_data
        if validation_data is not None:
            size = validation_batch_size or batch_size
            validation_data = inputs.in_batches(*validation_data, size)
            validation_data = (own_part(model, validation_data[0], False), *validation_data[1:])
        x = own_part(model, batched[0], getattr(given, "is_part", False))
        return FitData(x, *batched[1:], validation_data)


def own_part(model: keras.Model, data: Data, is_part: bool) -> Data:
    """Return what this process reads of batches, where several train one model together.

    Args:
        model: the model.
        data: batches of a multiple of all devices; or this process's parts of such.
        is_part: which of both.

    Raises:
        ValueError: there are several processes, and the data are no `tf.data.Dataset`.
    """
    if backend.process(model)[1] == 1:
        return data
    if not inputs.is_tf_dataset(data):
        raise ValueError(
            "several processes train this model, and each reads its part of a tf.data.Dataset of "
            "batches alone: make one of your data, the same in all processes"
        )
    return backend.own_part(model, data, is_part)


def fit_data(
    x: Data,
    y: Labels,
    sample_weight: SampleWeights,
    image_shape: ImageShape,
    *,
    spec: ConditionSpec,
    validation_data: Data,
    validation_split: float,
    class_weight: dict[Any, float] | None,
    batch_size: int | None,
    validation_batch_size: int | None,
    validation_steps: int | None,
    metrics: Sequence[keras.metrics.Metric],
    shuffle: bool,
    model: keras.Model,
) -> FitData:
    """Bring what a user gave to `fit` into the form in which Keras gets it.

    Args:
        spec: what the model is told beside the images.
        metrics: those that were compiled.
        model: whose batches are divided among its devices; the other arguments are those of
            `fit`.

    Raises:
        ValueError: the data are empty, or their structure, shape, type or values are wrong; or
            validation would never end, or has too few images for a metric.
    """
    if x is None:
        raise ValueError("fit needs images: got None for x")
    check_counts(
        batch_size=batch_size,
        validation_batch_size=validation_batch_size,
        validation_steps=validation_steps,
    )
    if validation_split and validation_data is None:
        (x, y, sample_weight), validation_data = inputs.split(
            x, y, sample_weight, validation_split, spec
        )
    devices = backend.devices_of_a_batch(model)
    spec.learn_names(getattr(x, "class_names", None))
    x, y, sample_weight = inputs.for_keras(
        x,
        y,
        sample_weight,
        image_shape,
        spec=spec,
        labels_needed=True,
        class_weight=class_weight,
        batch_size=batch_size,
        shuffle=shuffle,
        multiple=devices // (backend.process(model)[1] if getattr(x, "is_part", False) else 1),
    )
    if validation_data is not None:
        size = validation_batch_size or batch_size
        spec.learn_names(getattr(validation_data, "class_names", None))
        parts = inputs.parts_of(validation_data)
        validation_data = inputs.for_keras(
            *parts,
            image_shape,
            spec=spec,
            labels_needed=spec.needs_labels,
            batch_size=size,
            multiple=devices,
        )
        names = ("validation_data", "validation_steps")
        check_validation(validation_data[0], validation_steps, metrics, *names, size)
    return FitData(x, y, sample_weight, validation_data)


def check_validation(
    data: Data,
    steps: int | None,
    metrics: Sequence[keras.metrics.Metric],
    what: str,
    argument: str,
    batch_size: int | None = None,
) -> None:
    """Find out before training starts, not after its first epoch, what validation could not do.

    Args:
        data: what `inputs.for_keras` returned.
        steps: batches to look at, or None for all.
        metrics: those that were compiled.
        what, argument: what to call the data and the steps in a message.
        batch_size: images in a batch of arrays.

    Raises:
        ValueError: the data never end and no steps are given, or they are too few for a metric.
    """
    require_steps(data, steps, what, argument)
    for metric in metrics:
        minimum = getattr(metric, "minimum_images", 1)
        with input_errors():
            enough = minimum == 1 or inputs.has_at_least(data, minimum, steps, batch_size)
        if not enough:
            raise ValueError(
                f"the metric {metric.name!r} needs at least {minimum} images of each side, but "
                f"{what} holds fewer: "
                "give more, or compile without it"
            )


def require_steps(data: Data, steps: int | None, what: str, argument: str) -> None:
    """Raise ValueError for data that never end, unless the number of steps is given."""
    if steps is None and not inputs.is_one_piece(data) and inputs.can_be_read_again(data):
        if inputs.number_of_batches(data) == -1:
            raise ValueError(f"{what} never ends: give {argument}, or a data set without repeat()")


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Show what is wrong with the data, not TensorFlow's account of the pipeline that found it."""
    try:
        yield
    except Exception as error:
        found = inputs.input_error(error)
        if found is None:
            raise
        raise found from None


def adapt_normalizer(
    normalizer: ImageNormalization,
    data: Data,
    batch_size: int | None,
    steps: int | None,
    verbose: str | int,
) -> None:
    """Adapt a normalizer to the data of a training that is about to start, unless it was adapted.

    Raises:
        ValueError: a look at the data would use them up, or never end; or no positive number of
            steps.
    """
    check_counts(steps_per_epoch=steps)
    if normalizer.adapted:
        return
    advice = "adapt it first: model.normalizer.adapt(images), on an array or a data set that ends"
    if not inputs.can_be_read_again(data):
        raise ValueError(
            "the normalizer was not adapted, and adapting it would use up the images of a "
            f"{type(data).__name__}: {advice}"
        )
    if not inputs.is_one_piece(data) and inputs.number_of_batches(data) == -1 and steps is None:
        raise ValueError(
            f"the normalizer was not adapted, and the data set never ends: {advice}; or give "
            "steps_per_epoch"
        )
    if verbose:
        print("Adapting the normalizer to the data, as model.normalizer.adapt was not called:")
    normalizer.adapt(data, batch_size or 32, steps, verbose=1 if verbose else 0)


def require_adapted(normalizer: ImageNormalization, method: str) -> None:
    """Raise ValueError unless the normalizer was adapted, or loaded."""
    if not normalizer.adapted:
        raise ValueError(
            f"{method} needs an adapted normalizer: call model.normalizer.adapt(images) or "
            "model.fit first"
        )


def check_counts(**counts: int | None) -> None:
    """Raise ValueError unless each of these arguments is a positive integer or None; Keras takes 0
    for None.
    """
    for name, number in counts.items():
        if number is not None:
            positive_int(name, number)


def warn_if_not_adapted(normalizer: ImageNormalization) -> None:
    """Warn that images reach the network as they are."""
    if not normalizer.adapted:
        warnings.warn(
            "the normalizer was not adapted, as a single batch is too little for it: images from 0 "
            "to 1 enter the network, which trains worse. Call model.normalizer.adapt(images) first",
            stacklevel=3,
        )


def warn_of_broken_losses(losses: Mapping[str, float], engine: Engine) -> bool:
    """Warn if the losses of an evaluation are not finite, and say why.

    Returns:
        Whether the weights are at fault, so that no other figure means anything.
    """
    if all(math.isfinite(value) for value in losses.values()):
        return False
    broken = engine.broken_weights()
    advice = (
        f"the weights and the images are finite: the network computes in {engine.compute_dtype}. "
        "Give its weights to a model with dtype='float32', or look at what was compiled as loss"
    )
    warnings.warn(f"the evaluation's losses are NaN or infinite: {broken or advice}", stacklevel=3)
    return broken is not None


def figures_of(metric: keras.metrics.Metric, broken: bool) -> dict[str, float]:
    """Return a metric's figures by name; NaN for weights that are `broken`, whose images a metric
    may give any figure.
    """
    if broken:
        return dict.fromkeys(getattr(metric, "result_names", [metric.name]), math.nan)
    result = metric.result()
    return result if isinstance(result, dict) else {metric.name: float(result)}


def has_seen_nothing(tracker: keras.metrics.Metric) -> bool:
    """Whether a tracker is as it was when it was reset."""
    return not any(np.any(ops.convert_to_numpy(variable)) for variable in tracker.variables)


WITHOUT_EFFECT = ("loss_weights", "weighted_metrics")


def check_compile_arguments(optimizer: Any, others: Mapping[str, Any]) -> None:
    """Raise ValueError for what `keras.Model.compile` takes and would change nothing here, or
    cannot be.
    """
    if optimizer is None:
        raise ValueError("compile needs an optimizer, such as 'adamw', got None")
    advice = {
        "loss_weights": "there is one loss: let loss= multiply it, or take another learning rate",
        "weighted_metrics": "sample weights count for the losses; give metrics=",
    }
    for name in WITHOUT_EFFECT:
        if others.get(name) is not None:
            raise ValueError(f"{name} would change nothing of this model: {advice[name]}")
    if others.get("steps_per_execution") is not None:
        positive_int("steps_per_execution", others["steps_per_execution"])


def as_loss(loss: Any) -> Any:
    """Return the loss function that a user names or gives; None stays.

    Raises:
        ValueError: it is none, or no such name is known.
    """
    is_one = loss is None or isinstance(loss, (str, Mapping)) or callable(loss)
    if not is_one or isinstance(loss, keras.metrics.Metric):
        raise ValueError(
            "loss, which model.loss is as well, is what training minimises: a function of "
            "(true, predicted), the name of one or a keras.losses.Loss, got "
            f"{loss!r}. A tracker of your own needs another name"
        )
    return keras.losses.get(loss)


def as_lengths(lengths: Any) -> list[float]:
    """Return lengths of averages as a list.

    Raises:
        ValueError: they are no sequence of numbers.
    """
    if isinstance(lengths, str) or not hasattr(lengths, "__iter__"):
        raise ValueError(f"ema_lengths must be a list, such as [0.05, 0.1], got {lengths!r}")
    return list(lengths)


def as_metrics(metrics: Any, run_eagerly: bool) -> list[keras.metrics.Metric]:
    """Return what a user gave to `compile` as metrics: Keras metrics, or functions, in a list.

    Raises:
        ValueError: it is no list, or as for each of them.
    """
    if metrics is None:
        return []
    if not isinstance(metrics, (list, tuple)):
        raise ValueError(f"metrics must be a list, such as [KID(extractor)], got {metrics!r}")
    return [_as_metric(metric, run_eagerly) for metric in metrics]


def _as_metric(metric: Any, run_eagerly: bool) -> keras.metrics.Metric:
    """Return what a user gave to `compile` as a Keras metric.

    Raises:
        ValueError: it is neither a metric nor a function, or cannot run within a compiled step.
    """
    extractor = getattr(metric, "extractor", None)
    if not getattr(extractor, "compiles", True) and not run_eagerly:
        raise ValueError(
            f"{extractor!r} cannot run within a compiled step: compile with run_eagerly=True, or "
            "score the trained model with "
            "model.score"
        )
    if isinstance(metric, keras.metrics.Metric):
        return metric
    if callable(metric) and not isinstance(metric, type):
        return keras.metrics.MeanMetricWrapper(
            metric, name=getattr(metric, "__name__", "metric"), dtype="float32"
        )
    raise ValueError(
        "a metric must be a keras.metrics.Metric or a function (real_images, generated_images), "
        f"got {metric!r}: "
        + (
            "make one of the class first"
            if isinstance(metric, type)
            else "names of metrics are for model.score"
        )
    )


def with_loss_scale(optimizer: Any, policy: keras.DTypePolicy, wanted: bool) -> Any:
    """Return an optimizer that scales the loss where gradients are float16; Keras does so for
    "mixed_float16" alone.
    """
    if not wanted or policy.name != "float16":
        return optimizer
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)
