"""Finding a model by what a user calls it: a file, a folder, a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddim_keras.support import files

if TYPE_CHECKING:
    from ddim_keras.model import DiffusionModel


def load(source: str, compile: bool = False, untrained: bool = False) -> DiffusionModel:
    """The model at a .keras file, in a folder of a run or of diffusers', or of a preset; `compile`
    brings the optimizer and metrics along, `untrained` allows for a preset without weights.

    Raises:
        ValueError: there is none, or it is damaged or a preset without weights.
    """
    from ddim_keras import presets
    from ddim_keras.model import DiffusionModel, load_model
    from ddim_keras.presets import diffusers

    path = files.expanded(source)
    if path.is_file() or (path.suffix == ".keras" and not path.is_dir()):
        return load_model(path, compile=compile)
    if (path / "config.yaml").is_file():
        for name in ("model.keras", "best.keras"):
            if (path / name).is_file():
                return load_model(path / name, compile=compile)
        raise ValueError(
            f"the run in {path} has no model yet: resume it with ddim-keras train --out {path}"
        )
    is_preset = (path / "preset.json").is_file() or source in presets.names()
    if (path / "model_index.json").is_file() or (
        not is_preset and diffusers.may_be_of_diffusers(path)
    ):
        return DiffusionModel.from_diffusers(path)
    if not is_preset:
        raise ValueError(
            f"no model at {source}: expected a .keras file, a run's folder, one of diffusers', "
            f"or a preset: {presets.names()}"
        )
    if not untrained and not presets.read(source, load_weights=False).has_weights:
        raise ValueError(
            f"the preset {source} is a recipe without weights: train it first, by ddim-keras train "
            f"--preset {source}"
        )
    return DiffusionModel.from_preset(source)
