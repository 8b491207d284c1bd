"""Small objects that can be named by a string, written to a config and read back."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import keras

from ddim_keras.support.types import Config
from ddim_keras.support.version import __version__

T = TypeVar("T", bound="Configurable")


class Configurable:
    """An object made of its constructor's arguments, which `get_config` returns."""

    def get_config(self) -> Config:
        return {}

    @classmethod
    def from_config(cls, config: Config) -> Configurable:
        check_settings(config, cls.__name__, cls)
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def check_settings(
    settings: Collection[str], what: str, *takers: Callable, advice: str = ""
) -> None:
    """Raise ValueError unless stored settings are arguments that this version knows, and what it
    needs is among them.

    Args:
        settings: their names.
        what: what they make, for the message.
        *takers: functions or classes that take them; what any of them takes is known. A user's own
            class need not take what its base does.
        advice: what else to do, for the message.
    """
    parameters = [
        parameter for taker in takers for parameter in inspect.signature(taker).parameters.values()
    ]
    open_ended = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [parameter for parameter in parameters if parameter.kind not in fixed]
    known = {parameter.name for parameter in named}
    unknown = [] if open_ended else sorted(set(settings) - known)
    needed = {parameter.name for parameter in named if parameter.default is parameter.empty}
    missing = sorted(needed - set(settings))
    if any(map(_is_a_users, takers)):
        _check_of_a_users(what, unknown, missing)
    if open_ended:
        return
    if unknown:
        raise ValueError(
            f"{what} has settings that ddim_keras {__version__} does not know, {unknown}: it was "
            f"written by a later version. Update ddim_keras{advice}; known are {sorted(known)}"
        )
    if missing:
        raise ValueError(f"{what} lacks the settings {missing}: it is damaged, save it again")


def _is_a_users(taker: Callable) -> bool:
    return isinstance(taker, type) and taker.__module__.split(".")[0] != "ddim_keras"


def _check_of_a_users(what: str, unknown: list[str], missing: list[str]) -> None:
    """Raise ValueError if a user's own class, whose `get_config` may be its base's, does not take
    what that gives, or needs more.
    """
    if unknown:
        raise ValueError(
            f"{what}.__init__ does not take {unknown}, which its get_config gives: let it take "
            "them and hand them to super().__init__, or give the class a from_config(cls, config) "
            "that returns one, a classmethod. Files that were saved load then"
        )
    if missing:
        raise ValueError(
            f"{what}.__init__ needs {missing}, which the configuration lacks: give the class a "
            f"get_config that returns {{**super().get_config(), {missing[0]!r}: ...}}. For what "
            "was saved without, give them defaults"
        )


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
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()
        choices = f"one of {sorted(registry)}, or " if registry else ""
        raise ValueError(
            f"unknown {words} {identifier!r}: expected {choices}a {kind.__name__} object"
        )
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, kind):
        return identifier
    choices = f" or one of {sorted(registry)}" if registry else ""
    raise ValueError(
        f"expected a {kind.__name__} object{choices}, got {identifier!r} of "
        f"type {type(identifier).__name__}"
    )
