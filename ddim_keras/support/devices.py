"""On which devices a model lives: some of this machine's, each with a part of every batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from ddim_keras.support import backend
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.types import Variable

ALL = "all"


def check(devices: Any) -> int | str:
    """Return a number of devices, or "all".

    Raises:
        ValueError: neither a positive integer nor "all".
    """
    if devices == ALL:
        return ALL
    text = str(devices)
    if isinstance(devices, bool) or not text.isdecimal() or int(text) < 1:
        raise ValueError(f"devices must be a positive number, such as 2, or 'all', got {devices!r}")
    return int(text)


def available() -> list[str]:
    """Return the names of this machine's devices: its GPUs or TPUs, or else its processor, which
    is one device unless it was divided into virtual ones.
    """
    return backend.device_names()


class Workers(NamedTuple):
    """The processes that train one model together.

    Attributes:
        addresses: of each, "host:port"; the first is the one that the others look for.
        number: which of them this one is, from 0.
    """

    addresses: Sequence[str]
    number: int

    @classmethod
    def parse(cls, workers: str, number: int | None) -> Workers:
        """Return what a command line says: addresses with commas between them, and a number.

        Raises:
            ValueError: an address without a port, the same one twice, or no such number.
        """
        addresses = [part.strip() for part in workers.split(",") if part.strip()]
        wrong = [part for part in addresses if not part.rpartition(":")[2].isdecimal()]
        if wrong or len(set(addresses)) < max(2, len(addresses)):
            raise ValueError(
                "workers must be at least two different HOST:PORT, such as "
                f"10.0.0.1:9000,10.0.0.2:9000, got {workers!r}"
            )
        if number is None or not 0 <= number < len(addresses):
            raise ValueError(
                f"of {len(addresses)} workers this one must be a number from 0 to "
                f"{len(addresses) - 1}, got {number}"
            )
        return cls(addresses, number)

    def join(self) -> None:
        """Train together with the others from now on; before anything is computed."""
        backend.join_processes(list(self.addresses), self.number)


@contextlib.contextmanager
def used(devices: int | str, workers: Workers | None = None) -> Iterator[int]:
    """Within, models are made on so many devices, and each device has a part of every batch.

    The same as `tf.distribute.MirroredStrategy(...).scope()` on TensorFlow, and
    `keras.distribution.DataParallel(...).scope()` on JAX.

    Args:
        devices: how many, or "all" that there are.
        workers: processes that have joined, whose devices all of the model's batches are divided
            among; then of each all are used.

    Yields:
        How many they are, over all processes.

    Raises:
        ValueError: more than there are.
    """
    if workers is not None:
        with backend.scope_on(available()):
            yield backend.devices_in_scope()
        return
    names = available()
    number = len(names) if check(devices) == ALL else int(devices)
    if number > len(names):
        raise ValueError(
            f"{number} devices are asked for, but there are {len(names)} for Keras on "
            f"{backend.BACKEND}: {', '.join(names)}. Give at most {len(names)}, or 'all'"
        )
    if number == 1:
        yield 1
        return
    with backend.scope_on(names[:number]):
        yield number


class WeightsDivided(keras.distribution.ModelParallel):
    """Weights divided among devices on JAX, for networks too large for one: of each kernel every
    device has a part of the filters, where their number allows it. What is small is on all.

    Args:
        parts: among how many devices each kernel is divided.
        devices: names of all devices, whose number is a multiple of `parts`; the batch is divided
            among groups of them. None for all that there are.

    Raises:
        ValueError: another backend than JAX, or a number of devices that is no multiple of `parts`.

    Examples:

        keras.distribution.set_distribution(WeightsDivided(parts=4))
        model = ddim_keras.DiffusionModel(image_size=256, widths=(256, 512, 1024, 1024))
    """

    def __init__(self, parts: int, devices: Sequence[str] | None = None):
        if not backend.BACKEND_HOLDS_WEIGHTS:
            raise ValueError(
                f"weights are divided among devices on JAX alone, and Keras runs on "
                f"{backend.BACKEND}: set KERAS_BACKEND=jax"
            )
        names = available() if devices is None else list(devices)
        self.parts = positive_int("parts", parts)
        if len(names) % parts:
            raise ValueError(
                f"{len(names)} devices cannot be divided into groups of {parts}, each of which "
                f"shares the weights: give parts that divide {len(names)}"
            )
        mesh = keras.distribution.DeviceMesh(
            (len(names) // parts, parts), ["batch", "weights"], names
        )
        layout = keras.distribution.LayoutMap(mesh)
        super().__init__(layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False)

    def get_variable_layout(self, variable: Variable) -> keras.distribution.TensorLayout:
        shape = variable.shape
        if len(shape) < 2 or shape[-1] % self.parts:
            return super().get_variable_layout(variable)
        axes: list[str | None] = [None] * len(shape)
        axes[-1] = "weights"
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def check_batch(batch_size: int, devices: int) -> None:
    """Raise ValueError unless each of the devices gets as many images of a batch as the others."""
    if batch_size % devices:
        below = batch_size - batch_size % devices
        near = [size for size in (below, below + devices) if size]
        raise ValueError(
            f"a batch of {batch_size} images cannot be divided among {devices} devices: give "
            f"batch_size={' or '.join(map(str, near))}, or another number of devices"
        )
