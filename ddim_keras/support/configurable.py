"""Small objects that can be named by a string, written to a config and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import keras

T = TypeVar("T", bound="Configurable")


class Configurable:
    """An object made of its constructor's arguments, which `get_config` returns."""

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Configurable:
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def resolve(
    identifier: str | dict | T, kind: type[T], registry: Mapping[str, Callable[[], T]]
) -> T:
    """Return the object that `identifier` (a name, a serialized config or the object itself) stands
    for.

    Args:
        identifier: a key of `registry`, an instance of `kind`, or what
            `keras.saving.serialize_keras_object` made of one.
        kind: the base class expected.
        registry: name -> class or function that makes the object without arguments.

    Raises:
        ValueError: the name is unknown, or the object is of another kind.
    """
    if isinstance(identifier, str):
        if identifier in registry:
            return registry[identifier]()
        raise ValueError(
            f"unknown {kind.__name__.lower()} {identifier!r}: expected one of {sorted(registry)}, "
            f"or a {kind.__name__} object"
        )
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, kind):
        return identifier
    raise ValueError(
        f"expected a {kind.__name__} object or one of {sorted(registry)}, got {identifier!r} of "
        f"type {type(identifier).__name__}"
    )
