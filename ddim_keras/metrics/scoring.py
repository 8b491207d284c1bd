"""`score`: what a model's images are worth, by several metrics at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.metrics.agreement import Agreement
from ddim_keras.metrics.base import ImageMetric, checked_batches, require
from ddim_keras.metrics.extractors import Extractor, get_extractor
from ddim_keras.metrics.fid import FID
from ddim_keras.metrics.inception_score import InceptionScore
from ddim_keras.metrics.kid import KID
from ddim_keras.metrics.manifolds import (
    DensityCoverage,
    PrecisionRecall,
    distances,
    is_within,
    neighbour_radii,
)
from ddim_keras.metrics.memorization import nearest_training_images
from ddim_keras.metrics.states import Sample
from ddim_keras.sampling.conditioning import Conditioning, conditioning
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.generate import generate
from ddim_keras.sampling.likelihood import log_likelihood
from ddim_keras.support.arguments import positive_int, refuse_equal_names
from ddim_keras.support.types import Condition, Data, ExtractorLike, Features, Images, Labels

METRICS: dict[str, Callable[..., ImageMetric]] = {
    "fid": FID,
    "kid": KID,
    "inception_score": InceptionScore,
    "precision_recall": PrecisionRecall,
    "density_coverage": DensityCoverage,
}
MEMORIZATION = "memorization"
AGREEMENT = "agreement"
_BITS = "bits_per_dim"
_BATCH = 256
_NEIGHBOURS = 5
_COMPARED = 1000  # generated images that are compared with the training images, at most


def score(
    generated: Iterable[Images],
    real: Features,
    metrics: Sequence[str | ImageMetric],
    extractor: str | Extractor | keras.Model,
    per_class: bool = False,
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score batches of generated images against a data set; see `score_generated`, which generates
    them.

    Args:
        generated: batches of images (batch, height, width, channels), in [0, 1] or uint8.
        real: the same, as a data set, an array or a pair of arrays (images, labels); `per_class`
            needs labels.
        metrics: names in `METRICS`, or metrics.
        extractor: of the metrics given by name.
        per_class: also score each class of the real images.
        class_names: what to call the classes; None for their numbers.
    """
    if per_class or any(isinstance(metric, str) for metric in metrics):
        extractor = get_extractor(extractor)  # one for all
    found = [_metric(metric, extractor) for metric in metrics]
    refuse_equal_names(found)
    classes = _Classes(extractor) if per_class else None
    for side, data in (("real", real), ("generated", generated)):
        for images, labels in checked_batches(data, side):
            features: dict[Any, Any] = {}  # made once for all that want the same
            for metric in found:
                if side == "real" and not metric.real_is_used:
                    continue
                key = (id(metric.extractor), type(metric).extract)
                if key not in features:
                    features[key] = metric.extract(images)
                metric.update_features(**{side: features[key]})
            if classes is not None:
                of_batch = features.get((id(extractor), ImageMetric.extract))
                if of_batch is None:
                    of_batch = classes.extractor.features(inputs.as_unit_range(images))
                classes.update(side, of_batch, labels)
    scores: dict[str, Any] = {}
    for metric in found:
        scores |= _named_results(metric)
    if classes is not None:
        scores["per_class"] = classes.scores(class_names)
    return scores


class _Classes:
    """Which classes the generated images cover, and how well, from features and the real images'
    labels.

    A generated image counts for the class of the real image nearest to it, as the model does not
    say what it meant.
    """

    def __init__(self, extractor: ExtractorLike):
        self.extractor = extractor
        self._holder = keras.metrics.Metric(name="classes")
        # The label is one more feature: it stays with its image.
        self._real = Sample(self._holder, "real", 10_000, extractor.feature_dims + 1, seed=0)
        self._generated = Sample(self._holder, "generated", 10_000, extractor.feature_dims, seed=0)

    def update(self, side: str, features: Features, labels: np.ndarray | None) -> None:
        if side == "generated":
            self._generated.update(features)
            return
        if labels is None:
            raise ValueError(
                "per_class needs labels: give batches of (images, labels), as load_dataset(..., "
                "labels=True) makes them, or a "
                "pair of arrays"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be integers of shape (batch,), got {labels.dtype} of shape "
                f"{labels.shape}"
            )
        self._real.update(np.concatenate([ops.convert_to_numpy(features), labels[:, None]], axis=1))

    def scores(self, names: Sequence[str] | None) -> dict[str, dict[str, float]]:
        real, generated = self._real.values()[1], self._generated.values()[1]
        real, labels = real[:, :-1], real[:, -1].astype(int)
        for what, features in (("real", real), ("generated", generated)):
            require(len(features), _NEIGHBOURS + 1, what, "a figure for each class")
        radii, generated_radii = (
            neighbour_radii(features, _NEIGHBOURS) for features in (real, generated)
        )
        nearest, covered = np.empty(len(generated), int), np.zeros(len(real), bool)
        realistic = np.empty(len(generated), bool)
        for start in range(0, len(generated), _BATCH):
            block = distances(generated[start : start + _BATCH], real)
            nearest[start : start + _BATCH] = block.argmin(axis=1)
            realistic[start : start + _BATCH] = (block <= radii).any(axis=1)
            covered |= (block <= radii).any(axis=0)
        recalled = is_within(real, generated, generated_radii)
        taken_for = labels[nearest]
        return {
            str(names[label]) if names is not None else str(label): {
                "real_share": float((labels == label).mean()),
                "generated_share": float((taken_for == label).mean()),
                "precision": float(realistic[taken_for == label].mean())
                if (taken_for == label).any()
                else float("nan"),
                "recall": float(recalled[labels == label].mean()),
                "coverage": float(covered[labels == label].mean()),
            }
            for label in np.unique(labels)
        }


def score_generated(
    engine: Engine,
    dataset: Data,
    num_images: int = 10_000,
    diffusion_steps: int | Sequence[float] | None = None,
    *,
    metrics: Sequence[Any] = ("fid", "kid", "precision_recall"),
    extractor: ExtractorLike = None,
    per_class: bool = False,
    training_images: Data = None,
    labels: Labels = None,
    condition: Condition = None,
    seed: int = 0,
    batch_size: int | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """Generate images and score them against real ones, at constant memory.

    Args:
        dataset: real images as for `fit`, in a data set that ends; compare with images that the
            model was not trained on.
        num_images: how many to generate. All metrics but KID depend on it: compare figures of equal
            numbers.
        diffusion_steps: S, as for `generate`.
        metrics: names, "fid", "kid", "inception_score", "precision_recall" and "density_coverage",
            or `ddim_keras.metrics.ImageMetric` objects. "memorization" is the share of the first
            1,000 generated images that are copies of `training_images`, by their pixels
            (`metrics.nearest_training_images`); "agreement" the share of images that show, to a
            classifier, the `labels` that were asked for; "bits_per_dim" is `log_likelihood`'s, of
            the first `num_images` of the real images themselves.
        extractor: features of the metrics given by name: "inception_v3", "cifar10",
            "fashion_mnist", "inception_2015" (comparable with papers), an `Extractor` or a Keras
            model. None takes
            "fashion_mnist" for images of one channel, and otherwise "inception_v3". For "agreement"
            it must give class probabilities, of the model's classes in their order.
        per_class: also score each class; `dataset` must then hold (images, labels), or be a pair of
            such arrays.
        training_images: what the model was trained on, for "memorization".
        labels: as for `generate`; or True for those of `dataset`, in their order, and again from
            the first where more images are made.
        condition: likewise.
        seed, batch_size: as for `generate`.
        **sampling: as for `generate`: sampler, eta, spacing, guidance, ...

    Returns:
        Figures by name: "fid", "kid" and "kid_standard_deviation", "precision", "recall", ...; with
        `per_class` also "per_class", for each class its share of the real and of the generated
        images, precision, recall and coverage, and its "agreement" where that is asked for.

    Raises:
        ValueError: an argument out of its range, or images of a wrong shape or range.
        FloatingPointError: the model's weights or images are not finite.

    Examples:

    >>> model = DiffusionModel(image_size=28, widths=[8], block_depth=1, channels=1)
    >>> real = np.random.default_rng(0).uniform(size=(20, 28, 28, 1))
    >>> sorted(model.score(real, 20, 2, metrics=["precision_recall"], extractor="fashion_mnist"))
    ['precision', 'recall']
    """
    batch_size = min(engine.batch_size(batch_size), positive_int("num_images", num_images))
    found, metrics = {}, list(metrics)
    options = {"diffusion_steps": diffusion_steps, "seed": seed, **sampling}
    told: dict[str, Any] = {"labels": labels, "condition": condition}
    guidance = sampling.get("guidance")
    if metrics != [_BITS]:
        _check_asked(options, metrics, training_images, labels)
    if _BITS in metrics:
        metrics.remove(_BITS)
        given = {**told, "guidance": guidance}
        found = _bits_per_dim(engine, dataset, num_images, diffusion_steps, given, seed, batch_size)
        if not metrics:
            return found
    if extractor is None:
        extractor = "fashion_mnist" if engine.image_shape[-1] == 1 else "inception_v3"
    if broken := engine.broken_weights():  # not after a pass over the real images
        raise FloatingPointError(broken)
    wanted = [name for name, value in told.items() if value is True]
    if wanted:
        told |= _told_by(dataset, engine, num_images, wanted)
    checked = conditioning(
        engine, num_images, **told, guidance=guidance, default_guidance=engine.defaults.guidance
    )
    generated = _generated_in_batches(engine, num_images, batch_size, checked, **options)
    names = getattr(dataset, "class_names", None)
    real = inputs.checked(dataset, engine.image_shape)
    first: list[np.ndarray] = []
    if MEMORIZATION in metrics:
        generated = _keeping_first(generated, first)
    agreement = None
    if AGREEMENT in metrics:
        classes = engine.spec.num_classes
        agreement = Agreement(get_extractor(extractor), checked.labels, classes)  # type: ignore
        generated = agreement.counted(generated)
    others = [metric for metric in metrics if metric not in (MEMORIZATION, AGREEMENT)]
    scores = score(generated, real, others, extractor, per_class, names)
    if agreement is not None:
        agreement.add_to(scores, names)
    if first:
        training = inputs.checked(training_images, engine.image_shape)
        compared = np.concatenate(first)[:_COMPARED]
        scores[MEMORIZATION] = nearest_training_images(compared, training, mirrored=True).share
    return scores | found


def _check_asked(
    options: dict[str, Any], metrics: Sequence[Any], training_images: Data, labels: Labels
) -> None:
    """Raise ValueError for options that scoring has no use for, and metrics that lack something."""
    for name in ("initial_noise", "return_trajectory", "first_image", "verbose"):
        if name in options:
            raise ValueError(
                f"score cannot take {name}: it generates in batches, from noise that the seed fixes"
            )
    if MEMORIZATION in metrics and training_images is None:
        raise ValueError(
            f"the metric {MEMORIZATION!r} compares with what the model was trained on: give "
            "training_images"
        )
    if AGREEMENT in metrics and labels is None:
        raise ValueError(
            f"the metric {AGREEMENT!r} asks whether images show their labels: give labels, or True "
            "for those of the data set"
        )


def _keeping_first(batches: Iterable[np.ndarray], kept: list[np.ndarray]) -> Iterable[np.ndarray]:
    """Yield batches of images, and leave the first of them in a list."""
    for images in batches:
        if sum(map(len, kept)) < _COMPARED:
            kept.append(images)
        yield images


def _bits_per_dim(
    engine: Engine,
    dataset: Data,
    number: int,
    diffusion_steps: int | Sequence[float] | None,
    given: dict[str, Any],
    seed: int,
    batch_size: int,
) -> dict[str, float]:
    """Return the mean and its standard error of the first images of a data set."""
    wanted = [name for name, value in given.items() if value is True]
    found: list[np.ndarray] = []
    data = inputs.checked(dataset, engine.image_shape)
    for batch in inputs.iterate_batches(data, _BATCH)[0]:
        images = inputs.as_array(batch.images)
        found.append(ops.convert_to_numpy(inputs.as_unit_range(images)))
        if sum(map(len, found)) >= number:
            break
    images = np.concatenate(found)[:number]
    told = given | (_told_by(dataset, engine, len(images), wanted) if wanted else {})
    told |= {} if diffusion_steps is None else {"diffusion_steps": diffusion_steps}
    result = log_likelihood(engine, images, seed=seed, batch_size=batch_size, verbose=0, **told)
    return {_BITS: result.mean_bits_per_dim, f"{_BITS}_standard_error": result.standard_error}


def _told_by(
    dataset: Data, engine: Engine, number: int, wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return labels or conditions of a data set, repeated until there are `number`."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    count = 0
    data = inputs.checked(dataset, engine.image_shape, engine.spec)
    for batch in inputs.iterate_batches(data, _BATCH)[0]:
        for name in wanted:
            values = getattr(batch, name)
            if values is None:
                raise ValueError(f"{name}=True takes the data set's own, but it holds none")
            found[name].append(np.asarray(values))
        count += len(batch.images)
        if count >= number:
            break
    return {name: np.concatenate(parts)[np.arange(number) % count] for name, parts in found.items()}


def _generated_in_batches(
    engine: Engine, num_images: int, batch_size: int, told: Conditioning, **options: Any
) -> Iterable[np.ndarray]:
    """Yield images batch by batch, so that they need not all be held."""
    for start in range(0, num_images, batch_size):
        count = min(batch_size, num_images - start)
        # Whole batches, so that one compiled loop serves; image i is the same in any.
        these = told.arguments(np.minimum(np.arange(start, start + batch_size), num_images - 1))
        same = {"batch_size": batch_size, "verbose": 0, **these, **options}
        images = generate(engine, batch_size, first_image=start, **same)
        yield images[:count]


def _metric(metric: str | ImageMetric, extractor: ExtractorLike) -> ImageMetric:
    if isinstance(metric, ImageMetric):
        metric.reset_state()
        return metric
    if metric not in METRICS:
        raise ValueError(
            f"unknown metric {metric!r}: expected one of {sorted(METRICS)}, or an ImageMetric; of "
            f"what a model generates also {AGREEMENT}, {_BITS} and {MEMORIZATION}"
        )
    return METRICS[metric](extractor=extractor)


def _named_results(metric: ImageMetric) -> dict[str, float]:
    if hasattr(metric, "mean_and_deviation"):
        mean, deviation = metric.mean_and_deviation()
        return {metric.name: mean, f"{metric.name}_standard_deviation": deviation}
    result = metric.result()
    return dict(result) if isinstance(result, dict) else {metric.name: result}
