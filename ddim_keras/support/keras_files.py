"""Keras's model files: written whole or not at all, and checked before they are read."""

from __future__ import annotations

import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from ddim_keras.support import checksums, files, reading

_ROOM_FOR_NAMES = 4096  # bytes of a file for each variable, at most, beside its numbers
_LOADERS = {
    "ddim_keras>DiffusionModel": "ddim_keras.load_model",
    "ddim_keras>CategoricalDiffusionModel": "ddim_keras.categorical.load_model",
}


class WholeFiles(keras.Model):
    """A model whose files are written beside and renamed, and whose weights stay as they were if
    they cannot be read.
    """

    def save(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any) -> None:
        """Write the whole model, optimizer included, to one `.keras` file; as `keras.Model.save`.

        The file is written beside and renamed: an interrupted save leaves the old one whole.

        Raises:
            ValueError: another suffix.
        """
        if kwargs.get("zipped", True) is not False:  # a folder may have any name
            _refuse_other_suffixes(filepath, [".keras"], "the whole model")
        _save_whole(super().save, filepath, overwrite, self._size(), **kwargs)

    def save_weights(
        self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any
    ) -> None:
        """Write all weights (EMA, optimizer and random state included) to a `.weights.h5` file,
        whole or not at all, with a checksum that `load_weights` compares.

        Raises:
            ValueError: another suffix.
        """
        suffix = ".weights.json" if kwargs.get("max_shard_size") else ".weights.h5"
        _refuse_other_suffixes(filepath, [suffix], "weights")
        write = super().save_weights

        def write_signed(path: str | os.PathLike, overwrite: bool, **kwargs: Any) -> None:
            keep = os.path.exists(path)  # Keras may ask, and be told to leave it as it is
            write(path, overwrite=overwrite, **kwargs)
            if "://" not in str(path) and (overwrite or not keep):
                checksums.sign_weights(path)

        _save_whole(write_signed, filepath, overwrite, self._size(), **kwargs)

    def _size(self) -> int:
        """Of a file of the weights, in bytes, or somewhat more."""
        variables = self._all_variables()
        numbers = sum(math.prod(variable.shape) * _width(variable) for variable in variables)
        return numbers + _ROOM_FOR_NAMES * (len(variables) + 16)

    def _all_variables(self) -> list[Any]:
        return [*self.variables, *(self.optimizer.variables if self.compiled else [])]

    def load_weights(
        self, filepath: str | os.PathLike, skip_mismatch: bool = False, **kwargs: Any
    ) -> None:
        """Read the weights that `save_weights` wrote, or those of a `.keras` file; as
        `keras.Model.load_weights`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or its weights are another model's. The model stays as
                it was.
        """
        if "://" not in str(filepath):
            filepath = files.expanded(filepath)
            if not filepath.exists():
                raise FileNotFoundError(
                    f"no weights at {filepath}: expected a file that save_weights wrote"
                )
            _refuse_other_suffixes(filepath, [".weights.h5", ".weights.json", ".keras"], "weights")
            checksums.check_weights(filepath)
        variables = self._all_variables()
        before = [ops.convert_to_numpy(variable) for variable in variables]
        try:
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        except Exception as error:
            for variable, value in zip(variables, before):
                variable.assign(value)
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{filepath} holds no weights that fit this model ({reason}): it is damaged, or "
                "was written by a model of "
                "other arguments; make the model with the same ones, or load a whole .keras file "
                "with "
                "ddim_keras.load_model"
            ) from error


def _width(variable: Any) -> int:
    """Of a variable's numbers in a file, in bytes; the narrow ones may become 32 bits wide."""
    bits = re.search(r"\d+$", keras.backend.standardize_dtype(variable.dtype))
    return max(4, int(bits[0]) // 8 if bits else 0)


def check_model_file(filepath: str | os.PathLike, registered_name: str) -> pathlib.Path:
    """Return the path of a `.keras` file that is whole and holds a model of the given class.

    Args:
        filepath: of the file.
        registered_name: the class's, as Keras writes it: "package>Class".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else.
    """
    path = files.expanded(filepath)
    package, name = registered_name.split(">")
    if not path.is_file():
        raise FileNotFoundError(
            f"no model file at {path}: expected a .keras file written by {name}.save"
        )
    advice = "restore it from a backup or save the model again"
    cut = f"it was cut short, or never was one; {advice}"
    with (
        reading.refusing_damage(path, cut, "is not a whole .keras file"),
        zipfile.ZipFile(path) as archive,
    ):
        damaged = archive.testzip()
        names = set(archive.namelist())
        has_config = "config.json" in names
        config = reading.dictionary_in(archive.read("config.json")) if has_config else None
    if damaged is not None:
        raise ValueError(f"{path} is damaged: its part {damaged} fails its checksum; {advice}")
    if config is None or not names >= {"metadata.json", "model.weights.h5"}:
        raise ValueError(
            f"{path} is a zip file but not a .keras model: it holds {sorted(names)[:5]}"
        )
    if config.get("registered_name") != registered_name:
        found = config.get("registered_name") or config.get("class_name")
        raise ValueError(
            f"{path} holds a {found}, not a {package} {name}: load it with "
            f"{_LOADERS.get(str(found), 'keras.models.load_model')}"
        )
    return path


def load_model_file(filepath: str | os.PathLike, registered_name: str, **kwargs: Any) -> Any:
    """Return the model in a `.keras` file, as `keras.models.load_model` does, which says little of
    damaged ones.

    Args:
        filepath: of the file.
        registered_name: of the model's class, as for `check_model_file`.
        **kwargs: as for `keras.models.load_model`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds something else, or has settings that are not known; names
            the file.
    """
    path = check_model_file(filepath, registered_name)
    try:
        return keras.models.load_model(path, **kwargs)
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{path} cannot be loaded: {error}") from error


def _refuse_other_suffixes(filepath: str | os.PathLike, suffixes: Sequence[str], what: str) -> None:
    if not str(filepath).endswith(tuple(suffixes)):
        raise ValueError(
            f"the file for {what} must end in {' or '.join(map(repr, suffixes))}, got "
            f"{os.fspath(filepath)!r}: with another "
            "name it could not be loaded again"
        )


def _save_whole(
    save: Callable, filepath: str | os.PathLike, overwrite: bool, size: int, **kwargs: Any
) -> None:
    if "://" not in str(filepath):
        filepath = files.expanded(filepath)
    # Keras asks whether to replace what is there.
    if "://" in str(filepath) or (not overwrite and os.path.exists(filepath)):
        save(filepath, overwrite=overwrite, **kwargs)
        return
    if kwargs.get("max_shard_size"):
        _save_shards(save, pathlib.Path(filepath), size, **kwargs)
        return
    with files.written_beside(filepath) as temporary:
        files.check_room(filepath, size)
        save(str(temporary), overwrite=True, **kwargs)
        if temporary.is_dir():  # not zipped: what else the folder holds stays, as with Keras
            files.keep_others(pathlib.Path(filepath), temporary)


def _save_shards(save: Callable, path: pathlib.Path, size: int, **kwargs: Any) -> None:
    """Save to several files, which name each other; the one that names all of them comes last."""
    with files.beside(path) as folder:
        files.check_room(path, size)
        folder.mkdir()
        whole = folder / path.name
        save(str(whole), overwrite=True, **kwargs)
        for shard in folder.glob("*.weights.h5"):
            os.replace(shard, path.with_name(shard.name))
        os.replace(whole, path)
