"""Presets: models and training recipes by name, some with trained weights; each a folder of
preset.json and weights.npz.

`presets.diffusers` and `presets.checkpoints` read and write what other libraries know of such
models.

Nothing here knows `DiffusionModel`, which reads and writes presets: a preset is a configuration,
arrays and a recipe.
"""

from ddim_keras.presets.folders import (
    FIT_ANY_WEIGHTS,
    Preset,
    assign,
    changed,
    check_free,
    names,
    read,
    training,
    write,
)
from ddim_keras.presets.recipes import DISTILLING, Training
from ddim_keras.presets.recommending import (
    RECOMMENDED,
    Recommendation,
    recommend,
    recommended_guidance,
)

__all__ = [
    "DISTILLING",
    "FIT_ANY_WEIGHTS",
    "RECOMMENDED",
    "Preset",
    "Recommendation",
    "Training",
    "assign",
    "changed",
    "check_free",
    "names",
    "read",
    "recommend",
    "recommended_guidance",
    "training",
    "write",
]
