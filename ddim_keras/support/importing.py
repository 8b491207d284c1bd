"""What makes `import ddim_keras` quick: modules under second names, something to do once Keras
is imported, and no search for garbage meanwhile.

Nothing here imports Keras.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any


class Aliases(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets modules be imported under other names too; both names give one and the same module.

    Args:
        modules: other name -> name of the module.
    """

    def __init__(self, modules: Mapping[str, str]):
        self.modules = dict(modules)
        self._specs: dict[str, Any] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in self.modules else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.modules[spec.name])
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        alias = module.__spec__.name if module.__spec__ is not None else ""
        module.__spec__ = self._specs.pop(
            alias
        )  # the import system has just written the alias's there


class _OnImport(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, action: Callable[[], None]):
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            try:
                execute(module)
            except BaseException:
                sys.meta_path.insert(0, self)  # the next attempt may succeed
                raise
            self.action()

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Within, Python looks for no garbage. Of the time in which TensorFlow is imported a quarter is
    such a search, again and again, and nothing is found.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Call `action` as soon as the module is imported: now, if it is already."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _OnImport(name, action))


def register_by_name(package: str, classes: Mapping[str, Sequence[str]]) -> None:
    """Let `keras.models.load_model` and `deserialize_keras_object` find classes whose modules were
    not imported yet.

    Under each class's registered name Keras is given a stand-in, which imports the module when it
    is needed. The class itself takes the stand-in's place when it is registered.

    Args:
        package: what the classes are registered under.
        classes: module -> names of the classes in it that are registered.
    """
    import keras

    registered = keras.saving.get_custom_objects()
    for module, names in classes.items():
        for name in names:
            registered.setdefault(f"{package}>{name}", _stand_in(module, name))


def _stand_in(module: str, name: str) -> type:
    def from_config(config: dict[str, Any], **options: Any) -> Any:
        return getattr(importlib.import_module(module), name).from_config(config, **options)

    return type(name, (), {"from_config": staticmethod(from_config), "__module__": module})
