"""How an object that has an engine gets the engine's functions as methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from ddim_keras.sampling.engine import Engine

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
OfEngine = TypeVar("OfEngine", bound=Engine)


def verb(
    function: Callable[Concatenate[OfEngine, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """Return a method that hands over to `function` with the object's `engine`, holding the weights
    meanwhile.

    Its signature and docstring are the function's, so that they are written once.
    """

    @functools.wraps(function)
    def method(self: Any, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with self.engine.weights_held():
            return function(self.engine, *arguments, **options)

    first, *others = inspect.signature(function).parameters.values()
    signature = [first.replace(name="self", annotation=inspect.Parameter.empty), *others]
    method.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    return method
