"""Taking a batch apart into images, labels, conditions and sample weights, in whatever form it was
given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.data.image_checks import check_images
from ddim_keras.support.arguments import is_number
from ddim_keras.support.types import BatchLike, Condition, Images, Labels, SampleWeights, Tensor

IMAGE_KEYS = ("image", "images", "img", "pixel_values")
LABEL_KEYS = ("label", "labels")
CONDITION_KEYS = ("condition", "conditions")
WEIGHT_KEYS = ("sample_weight",)
_ONE = (
    "of a data set or a generator give one batch of images, such as next(iter(...)), or all of "
    "them in one array"
)


class Batch(NamedTuple):
    """What one batch holds.

    Attributes:
        images: (batch, height, width, channels).
        labels: of each image, or None.
        sample_weight: (batch,), how much each image counts, or None. A weight below 0 marks an
            image that only fills the batch up, so that it can be divided among devices: it does not
            count at all.
        condition: an image or a vector to condition each image on, or None.
    """

    images: Images
    labels: Labels = None
    sample_weight: SampleWeights = None
    condition: Condition = None

    def selected(self, where: Any) -> Batch:
        """Return the batch of some of the images; its parts must be arrays."""
        return Batch(*(None if part is None else part[where] for part in self))


def taken_apart(batch: BatchLike) -> Batch:
    """Return a batch by its parts, which are None where there are none.

    Args:
        batch: images; a tuple or list (images,), (images, labels) or (images, labels,
            sample_weight); a dictionary with one of the keys "image", "images", "img" or
            "pixel_values", and perhaps "label" or "labels", "condition", and "sample_weight"; a
            tuple that begins with such a dictionary, or whose labels are one; or a list of single
            images or of such dictionaries of one image each. It may hold arrays, tensors, or the
            specifications of a `tf.data.Dataset`.

    Raises:
        ValueError: another structure.
    """
    if isinstance(batch, Batch):
        return batch
    if _is_list_of_examples(batch):
        return _stacked(batch)
    labels = sample_weight = condition = None
    images = batch
    if isinstance(batch, (tuple, list)):
        if not 1 <= len(batch) <= 3:
            raise ValueError(
                "a batch must be images, (images, labels), (images, labels, sample_weight) or a "
                "dictionary, got "
                f"{type(batch).__name__} of {len(batch)}"
            )
        images, labels, sample_weight = (*batch, None, None)[:3]
    while isinstance(images, (tuple, list)) and len(images) == 1:
        images = images[0]
    if isinstance(images, Mapping):
        found = _of_dictionary(images)
        images = found.images
        labels = found.labels if labels is None else labels
        sample_weight = found.sample_weight if sample_weight is None else sample_weight
        condition = found.condition
    if isinstance(images, (tuple, list)):
        if _is_list_of_examples(images):
            images = _stacked(list(images)).images
        else:
            raise ValueError(
                f"a batch must begin with images, one array of them, got {len(images)} parts: "
                f"{_described(images)}"
            )
    if isinstance(labels, Mapping):
        told = _only(labels, CONDITION_KEYS)
        condition = told if condition is None else condition
        labels = _only(labels, LABEL_KEYS)
    if labels is not None and known_shape(labels)[1:] == (0,):
        labels = None  # `packed` filled their place
    return Batch(images, labels, sample_weight, condition)


def handed_by_keras(data: BatchLike) -> Batch:
    """Return a batch that `packed` made, as Keras's trainer hands it to a step."""
    batch = taken_apart(data)
    if isinstance(batch.sample_weight, Mapping):  # the same weights for each of several parts
        return batch._replace(sample_weight=next(iter(batch.sample_weight.values())))
    return batch


def by_spec(batch: Batch, spec: ConditionSpec) -> Batch:
    """Return a batch whose second part, in a pair, is taken for what the model takes.

    Raises:
        ValueError: the model takes a condition and there is none.
    """
    if spec.takes_condition and batch.condition is None:
        if spec.takes_labels or batch.labels is None:
            raise ValueError(
                "the model is conditioned on "
                f"{'images' if spec.takes_images else 'vectors'} of shape {spec.condition_shape}, "
                'but the data hold none: give dictionaries with "images" and "condition"'
                + (', and "labels"' if spec.takes_labels else ", or pairs (images, condition)")
            )
        return batch._replace(labels=None, condition=batch.labels)
    return batch if spec.takes_condition else batch._replace(condition=None)


def packed(batch: Batch) -> tuple:
    """Return a batch in a form that Keras hands on as it is: (images,), (images, labels) or all
    three. With conditions the labels are a dictionary.
    """
    told = told_of(batch)
    if batch.sample_weight is None:
        return (batch.images,) if told is None else (batch.images, told)
    # Keras drops weights where there are no labels.
    told = np.zeros((len(batch.images), 0), "float32") if told is None else told
    return batch.images, told, batch.sample_weight


def told_of(batch: Batch) -> Any:
    """Return labels and conditions as the one part that Keras has for them."""
    if batch.condition is None:
        return batch.labels
    labels = {} if batch.labels is None else {"labels": batch.labels}
    return {**labels, "condition": batch.condition}


def prepared(
    batch: BatchLike,
    image_shape: tuple[int, ...],
    class_weight: dict | None = None,
    multiple: int = 1,
    spec: ConditionSpec | None = None,
    labels_needed: bool = False,
) -> Batch:
    """Return a batch of arrays, taken apart and checked.

    Args:
        batch: as for `taken_apart`.
        image_shape: the (height, width, channels) expected.
        class_weight: weights by class, which become weights by image; labels are then needed.
        multiple: the number of images is brought to a multiple of this one, by images of weight -1.
        spec: what the model is told. Labels become class numbers, and what it does not take is
            left out; None leaves labels as they are.
        labels_needed: whether a model that takes labels must get some.

    Raises:
        ValueError: images, labels, conditions or weights that do not fit.
    """
    found = taken_apart(batch)
    images, labels, sample_weight, condition = found if spec is None else by_spec(found, spec)
    images = as_array(images)
    check_images(images, image_shape)
    number = len(images)
    if labels is not None:
        labels = as_array(labels)
        if labels.ndim and len(labels) != number:
            raise ValueError(f"expected a label for each of {number} images, got {len(labels)}")
    if sample_weight is not None:
        sample_weight = check_sample_weight(as_array(sample_weight), number)
    told = labels
    if spec is not None:
        told = _labels_for(spec, labels, labels_needed, class_weight is not None)
        if condition is not None:
            condition = spec.check_condition(as_array(condition), number)
    if class_weight is not None:
        labels = labels if told is None else told
        check_class_weight(class_weight, labels, sample_weight)
        classes = classes_of(labels)
        sample_weight = 1.0 + sum(
            (weight - 1.0) * (classes == index) for index, weight in class_weight.items()
        ).astype("float32")
    return _filled_up(Batch(images, told, sample_weight, condition), multiple)


def _labels_for(spec: ConditionSpec, labels: Labels, needed: bool, are_used: bool) -> Labels:
    """The class numbers that a model gets for the labels of a batch, or None."""
    if not spec.takes_labels:
        if labels is not None and not are_used:
            spec.say_that_labels_are_ignored()
        return None
    if labels is None:
        if needed:
            raise ValueError(no_labels(spec))
        return None
    return spec.class_numbers(labels)


def no_labels(spec: ConditionSpec) -> str:
    """Return what to say of data without labels."""
    return (
        f"the model has {spec.num_classes} classes, but the data have no labels: give batches of "
        '(images, labels), or y beside an array, or dictionaries with "images" and "labels"'
    )


def known_shape(values: Any) -> tuple:
    """Return the shape of an array, tensor or specification; () where not even its rank is
    known.
    """
    shape = getattr(values, "shape", ())
    return () if getattr(shape, "rank", 0) is None else tuple(shape)


def as_array(values: Tensor) -> np.ndarray:
    """Return an array, or tensor of any library, as a NumPy array."""
    if isinstance(values, (tuple, list)):
        try:
            shapes = [np.shape(value) for value in values]
        except ValueError as error:  # of pairs in a list, say
            raise ValueError(
                f"expected an array, got a list of batches of parts: {_ONE}"
            ) from error
        if len(set(shapes)) > 1:
            is_pair = len(shapes[0]) == 4 and all(len(shape) <= 2 for shape in shapes[1:])
            raise ValueError(
                f"expected an array of images, got images with labels, {shapes}: give them apart"
                if is_pair
                else "images must all be of one size to make a batch, got "
                f"{sorted(set(shapes))[:4]}: resize them first"
            )
        return np.asarray([_of_torch(value) for value in values])
    array = np.asarray(_of_torch(values))
    if array.dtype == object and not array.ndim:  # what NumPy does not look into
        raise ValueError(f"expected an array, got a {type(values).__name__}: {_ONE}")
    return array


def _of_torch(values: Any) -> Any:
    """A tensor of PyTorch in a form that NumPy takes: without its gradient, not on a GPU, in a type
    that NumPy knows. Anything else as it is.
    """
    if not (hasattr(values, "detach") and hasattr(values, "cpu")):
        return values
    values = values.detach().cpu()
    return values.float() if str(values.dtype) == "torch.bfloat16" else values


def check_sample_weight(weights: np.ndarray, number: int) -> np.ndarray:
    """Return weights as float32, or raise ValueError unless there is one for each image, finite and
    not below 0.
    """
    if weights.shape != (number,):
        raise ValueError(
            f"sample weights must be one number for each image, shape ({number},), got shape "
            f"{weights.shape}: "
            "images are weighted, not their pixels"
        )
    if weights.dtype.kind not in "biuf" and "float" not in weights.dtype.name:
        raise ValueError(f"sample weights must be numbers, got dtype {weights.dtype}")
    weights = weights.astype("float32")
    if not np.isfinite(weights).all() or (weights < 0.0).any():
        raise ValueError(
            "sample weights must be finite and at least 0: got NaN, infinity or a negative number"
        )
    return weights


def by_number(class_weight: Any, spec: ConditionSpec | None) -> Any:
    """Return weights by class with numbers for the names of classes that a model knows."""
    if not isinstance(class_weight, Mapping) or spec is None or not spec.takes_labels:
        return class_weight
    named = [name for name in class_weight if isinstance(name, str)]
    numbers = dict(zip(named, spec.class_numbers(named).tolist()))
    found = {numbers.get(each, each): weight for each, weight in class_weight.items()}
    if len(found) < len(class_weight):
        raise ValueError(
            f"class_weight gives a class two weights, by name and by number: {class_weight!r}"
        )
    return found


def check_class_weight(class_weight: Any, labels: Labels, sample_weight: SampleWeights) -> None:
    """Raise ValueError unless weights by class can be used: a dictionary, labels to look up, and no
    other weights.
    """
    if not isinstance(class_weight, Mapping) or not class_weight:
        raise ValueError(
            f"class_weight must be a dictionary {{class: weight}}, got {class_weight!r}"
        )
    for index, weight in class_weight.items():
        numbers = is_number(index) and is_number(weight)
        if not (numbers and np.isfinite(weight) and weight >= 0.0 and int(index) == index):
            raise ValueError(
                "class_weight must give integer classes finite weights of at least 0, got "
                f"{{{index!r}: {weight!r}}}"
            )
    if sample_weight is not None:
        raise ValueError(
            "give class_weight or sample weights, not both: multiply them yourself if you mean both"
        )
    if labels is None:
        raise ValueError(
            "class_weight needs labels to look the weights up by: give batches of (images, "
            "labels), or y beside an array"
        )
    shape = known_shape(labels)
    number = shape[1] if len(shape) == 2 else None
    for index in class_weight:
        if number is not None and number > 1 and not 0 <= index < number:
            raise ValueError(
                f"class_weight names class {index}, but the one-hot labels have the classes 0 to "
                f"{number - 1}"
            )


def classes_of(labels: Labels) -> np.ndarray:
    """Return integer classes of labels (batch,), (batch, 1) or one-hot (batch, classes)."""
    if labels.ndim == 2:
        labels = labels.argmax(axis=-1) if labels.shape[-1] > 1 else labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise ValueError(
            "class_weight needs labels that are integers, shape (batch,), or one-hot, shape "
            "(batch, classes), got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return np.rint(labels).astype("int64")


def _filled_up(batch: Batch, multiple: int) -> Batch:
    if multiple == 1:
        return batch
    number = len(batch.images)
    weights = np.ones(number, "float32") if batch.sample_weight is None else batch.sample_weight
    places = np.arange(number + -number % multiple) % max(number, 1)
    counted = np.where(np.arange(len(places)) < number, weights[places], -1.0).astype("float32")
    return batch.selected(places)._replace(sample_weight=counted)


def _of_dictionary(batch: Mapping) -> Batch:
    images = _only(batch, IMAGE_KEYS)
    if images is None:
        raise ValueError(
            f"a batch must hold images, got a dictionary with keys {sorted(map(str, batch))}: name "
            "them by one of "
            f"{list(IMAGE_KEYS)}, or pick them out first, for instance with "
            "dataset.map(lambda example: example['picture'])"
        )
    others = (_only(batch, keys) for keys in (LABEL_KEYS, WEIGHT_KEYS, CONDITION_KEYS))
    return Batch(images, *others)


def _only(batch: Mapping, keys: tuple[str, ...]) -> Any:
    found = [key for key in keys if key in batch]
    if len(found) > 1:
        raise ValueError(
            f"a batch must name its {found[0].rstrip('s')}s once, got a dictionary with both "
            f"{found[0]!r} and {found[1]!r}"
        )
    return batch[found[0]] if found else None


def _is_list_of_examples(batch: BatchLike) -> bool:
    """Whether it is a list of single images, as arrays of one rank or as dictionaries."""
    if not isinstance(batch, list) or not batch:
        return False
    if all(isinstance(part, Mapping) for part in batch):
        return True
    ranks = {
        len(getattr(part, "shape", ())) if not isinstance(part, (tuple, list)) else -1
        for part in batch
    }
    # PIL's images have no shape, but become arrays.
    pictures = all(
        hasattr(part, "__array_interface__") and not hasattr(part, "shape") for part in batch
    )
    return pictures or ranks == {3} or (ranks == {2} and len(batch) > 3)


def _stacked(examples: list) -> Batch:
    if isinstance(examples[0], Mapping):
        parts = [_of_dictionary(example) for example in examples]
        columns: list[list[Any]] = [
            [None if value is None else as_array(value) for value in column]
            for column in zip(*parts)
        ]
        join: Any = (
            np.concatenate if columns[0][0].ndim == 4 else as_array
        )  # of batches, or of single images
        return Batch(*(None if column[0] is None else join(column) for column in columns))
    return Batch(as_array([as_array(example) for example in examples]))


def _described(parts: Any) -> str:
    shapes = [getattr(part, "shape", None) for part in parts][:4]
    return ", ".join(
        type(part).__name__ if shape is None else f"shape {tuple(shape)}"
        for part, shape in zip(parts, shapes)
    )
