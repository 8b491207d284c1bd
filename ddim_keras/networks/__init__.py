"""Denoising networks: functions of (noisy images, noise variances)."""

from ddim_keras.networks.ddpm_layers import Modulation, Scaling, SelfAttention2D, TimeEmbedding
from ddim_keras.networks.ddpm_unet import DDPMUNet, ddpm_unet
from ddim_keras.networks.layers import (
    BatchNormalization,
    BilinearUpsampling2D,
    ConditionedConv2D,
    GroupNormalization,
    ImageNormalization,
    SinusoidalEmbedding,
    Swish,
)
from ddim_keras.networks.tokens import PlacesEmbedding, sequence_transformer
from ddim_keras.networks.unet import residual_unet

__all__ = [
    "BatchNormalization",
    "BilinearUpsampling2D",
    "ConditionedConv2D",
    "DDPMUNet",
    "GroupNormalization",
    "ImageNormalization",
    "Modulation",
    "PlacesEmbedding",
    "Scaling",
    "SelfAttention2D",
    "SinusoidalEmbedding",
    "Swish",
    "TimeEmbedding",
    "ddpm_unet",
    "residual_unet",
    "sequence_transformer",
]
