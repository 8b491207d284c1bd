"""Denoising Diffusion Implicit Models for Keras: train, sample, save and reload as one
`keras.Model`.

Nothing is imported until it is used: neither Keras nor a backend.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

from ddim_keras.support import importing
from ddim_keras.support.version import __version__

if TYPE_CHECKING:
    from ddim_keras import (
        data,
        metrics,
        networks,
        optimizers,
        plotting,
        presets,
        runs,
        samplers,
        sampling,
    )
    from ddim_keras.categorical import CategoricalDiffusionModel
    from ddim_keras.diffusion import forward, parameterizations, schedules, spacings, weightings
    from ddim_keras.distilling import distill, distill_guidance
    from ddim_keras.model import DiffusionModel, load_model
    from ddim_keras.runs import callbacks, ema, exporting
    from ddim_keras.sampling import clipping, guidance, operators
    from ddim_keras.sampling.defaults import SamplingDefaults
    from ddim_keras.sampling.guidance import (
        Autoguidance,
        ClassifierFreeGuidance,
        GuidanceFunction,
    )

# Public names that stand elsewhere. The modules can be imported by them too.
_MOVED = {
    "backend": "ddim_keras.support.backend",
    "callbacks": "ddim_keras.runs.callbacks",
    "clipping": "ddim_keras.sampling.clipping",
    "ema": "ddim_keras.runs.ema",
    "exporting": "ddim_keras.runs.exporting",
    "forward": "ddim_keras.diffusion.forward",
    "guidance": "ddim_keras.sampling.guidance",
    "interpolation": "ddim_keras.sampling.interpolate",
    "inversion": "ddim_keras.sampling.inversion",
    "operators": "ddim_keras.sampling.operators",
    "parameterizations": "ddim_keras.diffusion.parameterizations",
    "random": "ddim_keras.support.random",
    "schedules": "ddim_keras.diffusion.schedules",
    "spacings": "ddim_keras.diffusion.spacings",
    "weightings": "ddim_keras.diffusion.weightings",
}

# What is registered with Keras; a test compares.
_REGISTERED = {
    "ddim_keras.categorical": ("CategoricalDiffusionModel",),
    "ddim_keras.diffusion.parameterizations": (
        *("ImageParameterization", "NoiseParameterization", "VelocityParameterization"),
    ),
    "ddim_keras.diffusion.schedules": (
        *("AngleSchedule", "CosineBetaSchedule", "GivenBetaSchedule"),
        *("LinearBetaSchedule", "LinearLogSNRSchedule"),
        *("LinearNoisePowerSchedule", "ScaledLinearBetaSchedule", "VarianceExplodingSchedule"),
        "ZeroTerminalSNRSchedule",
    ),
    "ddim_keras.diffusion.spacings": (
        *(
            "FittedSpacing",
            "GivenSpacing",
            "KarrasSpacing",
            "LeadingSpacing",
            "LinearSpacing",
            "LinspaceSpacing",
            "LogSNRSpacing",
            "QuadraticSpacing",
            "TrailingSpacing",
        ),
    ),
    "ddim_keras.diffusion.weightings": ("MinSNRWeighting", "SigmoidWeighting", "UniformWeighting"),
    "ddim_keras.metrics": ("DensityCoverage", "FID", "InceptionScore", "KID", "PrecisionRecall"),
    "ddim_keras.metrics.extractors": (
        *(
            "CIFAR10Extractor",
            "FashionMNISTExtractor",
            "Inception2015Extractor",
            "InceptionV3Extractor",
            "KerasExtractor",
        ),
    ),
    "ddim_keras.model": ("DiffusionModel",),
    "ddim_keras.networks.ddpm_layers": (
        *("Conv2D", "Modulation", "Scaling", "SelfAttention2D", "TimeEmbedding"),
    ),
    "ddim_keras.networks.ddpm_unet": ("DDPMUNet",),
    "ddim_keras.networks.layers": (
        *("BatchNormalization", "BilinearUpsampling2D", "ConditionedConv2D", "Dropout"),
        *("GroupNormalization", "ImageNormalization", "SinusoidalEmbedding", "Swish"),
    ),
    "ddim_keras.networks.tokens": ("PlacesEmbedding",),
    "ddim_keras.optimizers": ("Muon",),
    "ddim_keras.samplers": (
        *(
            "AdamsBashforth",
            "AnnealedLangevin",
            "BDIA",
            "DDIM",
            "DDPM",
            "DPMSolverMultistep",
            "DPMSolverSinglestep",
            "FittedSampler",
            "GaussianStart",
            "Heun",
            "OBELM",
            "UniPC",
        ),
    ),
    "ddim_keras.sampling.clipping": (
        *("DynamicClipping", "ImageOnlyClipping", "NoClipping", "StaticClipping"),
    ),
    "ddim_keras.sampling.defaults": ("SamplingDefaults",),
    "ddim_keras.sampling.guidance": ("ClassifierFreeGuidance",),
    "ddim_keras.sampling.operators": (
        *("Blur", "Colorize", "Compressed", "Mask", "SuperResolution"),
    ),
    "ddim_keras.training.distilling": ("Distillation",),
    "ddim_keras.training.guiding": ("GuidanceDistillation", "KeptAutoguidance"),
}

# Public names that are no modules.
_NAMES = {
    "Autoguidance": "ddim_keras.sampling.guidance",
    "ClassifierFreeGuidance": "ddim_keras.sampling.guidance",
    "CategoricalDiffusionModel": "ddim_keras.categorical",
    "DiffusionModel": "ddim_keras.model",
    "GuidanceFunction": "ddim_keras.sampling.guidance",
    "SamplingDefaults": "ddim_keras.sampling.defaults",
    "distill": "ddim_keras.distilling",
    "distill_guidance": "ddim_keras.distilling",
    "divide_batches_among_cores": "ddim_keras.support.cores",
    "load_model": "ddim_keras.model",
}

__all__ = [
    "Autoguidance",
    "CategoricalDiffusionModel",
    "ClassifierFreeGuidance",
    "DiffusionModel",
    "GuidanceFunction",
    "SamplingDefaults",
    "__version__",
    "callbacks",
    "clipping",
    "data",
    "distill",
    "distill_guidance",
    "divide_batches_among_cores",
    "ema",
    "exporting",
    "forward",
    "guidance",
    "load_model",
    "metrics",
    "networks",
    "operators",
    "optimizers",
    "parameterizations",
    "plotting",
    "presets",
    "runs",
    "samplers",
    "sampling",
    "schedules",
    "spacings",
    "weightings",
]

sys.meta_path.insert(
    0, importing.Aliases({f"{__name__}.{name}": module for name, module in _MOVED.items()})
)
importing.when_imported(
    "keras", functools.partial(importing.register_by_name, __name__, _REGISTERED)
)


def __getattr__(name: str) -> Any:
    with importing.without_collections():
        if name in _NAMES:
            return getattr(importlib.import_module(_NAMES[name]), name)
        if name in __all__ or name in _MOVED:
            return importlib.import_module(f"ddim_keras.{name}")
    raise AttributeError(f"module 'ddim_keras' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
