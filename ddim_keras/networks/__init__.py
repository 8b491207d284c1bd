"""Denoising networks: functions of (noisy images, noise variances)."""

from ddim_keras.networks.layers import (
    BatchNormalization,
    BilinearUpsampling2D,
    ConditionedConv2D,
    GroupNormalization,
    ImageNormalization,
    SinusoidalEmbedding,
    Swish,
)
from ddim_keras.networks.unet import residual_unet

__all__ = [
    "BatchNormalization",
    "BilinearUpsampling2D",
    "ConditionedConv2D",
    "GroupNormalization",
    "ImageNormalization",
    "SinusoidalEmbedding",
    "Swish",
    "residual_unet",
]
