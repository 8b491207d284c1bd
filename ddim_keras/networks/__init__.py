"""Denoising networks: functions of (noisy images, noise variances)."""

from ddim_keras.networks.layers import BatchNormalization, ImageNormalization, SinusoidalEmbedding
from ddim_keras.networks.unet import residual_unet

__all__ = ["BatchNormalization", "ImageNormalization", "SinusoidalEmbedding", "residual_unet"]
