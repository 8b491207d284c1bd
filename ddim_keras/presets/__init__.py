"""Presets: models and training recipes by name, some with trained weights; each a folder of
preset.json and weights.npz.

Nothing here knows `DiffusionModel`, which reads and writes presets: a preset is a configuration,
arrays and a recipe.
"""

from ddim_keras.presets.folders import Preset, assign, check_free, names, read, training, write
from ddim_keras.presets.recipes import Training
from ddim_keras.presets.recommending import RECOMMENDED, Recommendation, recommend

__all__ = [
    "RECOMMENDED",
    "Preset",
    "Recommendation",
    "Training",
    "assign",
    "check_free",
    "names",
    "read",
    "recommend",
    "training",
    "write",
]
