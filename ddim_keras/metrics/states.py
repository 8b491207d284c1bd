"""What the metrics remember of the images they have seen: sums, or a sample. Constant memory,
whatever their number.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from ddim_keras.support import backend, random
from ddim_keras.support import replicas as all_replicas
from ddim_keras.support.types import Features, Tensor, Variable

_OWN_COUNTER = 1 << 31


class Sums:
    """Sums over images of arrays of a fixed shape, kept in a metric's variables to twice float32's
    digits.

    Args:
        metric: the metric that owns the variables; they are summed over its replicas.
        name: of the variables.
        shapes: shapes of the arrays that are summed.
    """

    def __init__(self, metric: keras.metrics.Metric, name: str, *shapes: tuple[int, ...]):
        self._variables = [
            [
                metric.add_variable(shape, "zeros", name=f"{name}_{index}_{part}")
                for part in ("high", "low")
            ]
            for index, shape in enumerate([(), *shapes])
        ]

    def update(self, count: Tensor, *sums: Tensor) -> None:
        """Add the sums over `count` more images."""
        for (high, low), value in zip(self._variables, (count, *sums)):
            value = ops.cast(value, "float32")
            total = high.value + value
            # What rounding took from the total (Knuth's two-sum).
            shadow = total - high.value
            low.assign(low + ((high.value - (total - shadow)) + (value - shadow)))
            high.assign(total)

    def count(self) -> Tensor:
        """Return how many images were seen, as an int32 tensor."""
        return ops.cast(self._variables[0][0].value, "int32")

    def values(self) -> tuple[float, list[np.ndarray]]:
        """Return (count, sums) in float64."""
        count, *sums = (
            sum(ops.convert_to_numpy(part).astype("float64") for part in parts)
            for parts in self._variables
        )
        return float(count), sums

    def merge(self, other: Sums) -> None:
        for ours, theirs in zip(self._variables, other._variables):
            for own, their in zip(ours, theirs):
                own.assign(own + their)


class Sample:
    """Feature vectors of images: all of them up to a number, and beyond that a fair sample of this
    number.

    Each image draws a priority, fixed by the seed and by its place among the images, and the
    highest stay: so which stay does not depend on the batches. Replicas fill a part of the
    variables each and leave the others zero, so that their sum is the union.

    Args:
        metric: the metric that owns the variables.
        name: of the variables.
        capacity: how many images to keep.
        dims: numbers in a feature vector.
        seed: fixes the sample.
    """

    def __init__(
        self, metric: keras.metrics.Metric, name: str, capacity: int, dims: int, seed: int
    ):
        self.capacity, self._seed = capacity, seed
        self._features = metric.add_variable((capacity, dims), "zeros", name=f"{name}_features")
        self._priorities = metric.add_variable((capacity,), "zeros", name=f"{name}_priorities")
        self._count = metric.add_variable((), "zeros", name=f"{name}_count")

    def update(self, features: Features, counted: Tensor = None) -> None:
        """Add feature vectors, (batch, dims); those whose `counted`, (batch,), is 0 are left
        out.
        """
        replica, replicas = backend.replica()
        size = ops.shape(features)[0]
        key = tuple(ops.cast(value, "uint32") for value in (self._seed, 0))
        places = ops.cast(all_replicas.places(self._count.value, size), "uint32")
        # Counters that the noises of images never reach: a sample must not depend on what the
        # images are made of.
        words = random.threefry2x32(key, (places, ops.full_like(places, _OWN_COUNTER)))
        room = self.capacity // replicas
        first = replica * room
        # Ties keep their order, which is that of arrival.
        drawn = random.unit_interval(words[0])
        if counted is not None:
            drawn = ops.where(counted > 0, drawn, 0.0)  # as a place that nothing fills
            size = ops.sum(counted)
        priorities = ops.concatenate([self._part(self._priorities, first, room), drawn])
        priorities, kept = ops.top_k(priorities, room)
        joined = ops.concatenate(
            [self._part(self._features, first, room), ops.cast(features, "float32")]
        )
        self._fill(self._priorities, first, priorities)
        self._fill(self._features, first, ops.take(joined, kept, axis=0))
        self._count.assign(self._count + ops.cast(size, "float32"))

    def values(self) -> tuple[int, np.ndarray]:
        """Return (number of images seen, the sample (at most capacity, dims) in float64, in random
        order).
        """
        priorities = ops.convert_to_numpy(self._priorities)
        order = np.argsort(-priorities, kind="stable")[: np.count_nonzero(priorities)]
        return int(ops.convert_to_numpy(self._count)), ops.convert_to_numpy(self._features)[
            order
        ].astype("float64")

    def merge(self, other: Sample) -> None:
        """Take in another sample of the same capacity."""
        priorities = np.concatenate(
            [ops.convert_to_numpy(sample._priorities) for sample in (self, other)]
        )
        features = np.concatenate(
            [ops.convert_to_numpy(sample._features) for sample in (self, other)]
        )
        kept = np.argsort(-priorities, kind="stable")[: self.capacity]
        self._priorities.assign(priorities[kept])
        self._features.assign(features[kept])
        self._count.assign(self._count + other._count)

    @staticmethod
    def _part(variable: Variable, first: Tensor, room: int) -> Tensor:
        return ops.slice(
            variable.value, [first] + [0] * (len(variable.shape) - 1), [room, *variable.shape[1:]]
        )

    @staticmethod
    def _fill(variable: Variable, first: Tensor, values: Tensor) -> None:
        start = [first] + [0] * (len(variable.shape) - 1)
        variable.assign(ops.slice_update(ops.zeros(variable.shape, dtype="float32"), start, values))
