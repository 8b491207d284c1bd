"""Denoising networks: functions of (noisy images, noise variances)."""

from ddim_keras.networks.layers import (
    BatchNormalization,
    ConditionedConv2D,
    GroupNormalization,
    ImageNormalization,
    SinusoidalEmbedding,
)
from ddim_keras.networks.unet import residual_unet

__all__ = [
    "BatchNormalization",
    "ConditionedConv2D",
    "GroupNormalization",
    "ImageNormalization",
    "SinusoidalEmbedding",
    "residual_unet",
]
