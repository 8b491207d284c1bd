"""Starting a walk below pure noise: from noisy images that the data's mean and covariance give."""

from __future__ import annotations

import numpy as np
from keras import ops

from ddim_keras.diffusion.spacings import diffusion_times
from ddim_keras.samplers import GaussianStart
from ddim_keras.sampling.engine import Engine
from ddim_keras.support.arguments import is_number, positive_int
from ddim_keras.support.types import ImageArray, Images


def measured_start(
    engine: Engine, images: Images, diffusion_time: float, rank: int
) -> GaussianStart:
    """Return the start at a time that the mean and the covariance of a model's images give.

    Raises:
        ValueError: fewer than two images, or of a wrong shape.
    """
    normalized = ops.convert_to_numpy(engine.normalize(images))
    if len(normalized) < 2:
        raise ValueError(f"a covariance takes at least two images, got {len(normalized)}")
    top, *_ = diffusion_times(1, "linear", engine.schedule, float(diffusion_time))
    signal_rates, noise_rates = engine.schedule(np.array([1.0, top]))
    return GaussianStart.of(normalized, np.arctan2(noise_rates, signal_rates), rank)


def gaussian_start(
    engine: Engine,
    images: Images,
    num_images: int,
    diffusion_time: float = 0.9,
    *,
    rank: int = 128,
    seed: int | None = None,
) -> ImageArray:
    """Return noisy images to start walks of few steps from, at a time below pure noise.

    High up, noisy images are nearly those of a Gaussian with the data's mean and covariance, for
    which the ODE's solution is known: no network evaluation is spent there.

    Args:
        images: (number, height, width, channels) of the data, in [0, 1] or uint8; some hundreds.
        num_images: how many to start.
        diffusion_time: in (0, 1]; on a schedule of T times the nearest of those.
        rank: how many axes of the covariance are kept; across them all directions are alike.
        seed: fixes the noises, as for `generate`.

    Returns:
        (num_images, height, width, channels), to be given to `generate` as its `initial_noise`,
        with times that begin with `diffusion_time` as its `diffusion_steps`.

    Raises:
        ValueError: a time outside (0, 1], fewer than two images, or images of a wrong shape.

    Source: Wang & Vastola 2024, "The Unreasonable Effectiveness of Gaussian Score Approximation for
        Diffusion Models"; the analytic first step of Dockhorn et al. 2022 is its case of no
        variance.

    Examples:

    >>> model = DiffusionModel(image_size=8, widths=[8], block_depth=1, channels=1, seed=0)
    >>> images = np.random.default_rng(0).uniform(size=(20, 8, 8, 1))
    >>> start = model.gaussian_start(images, 2, 0.8, seed=0)
    >>> model.generate(2, [0.8, 0.3], initial_noise=start, sampler="ddim").shape
    (2, 8, 8, 1)
    """
    num_images, rank = positive_int("num_images", num_images), positive_int("rank", rank)
    if not is_number(diffusion_time) or not 0.0 < diffusion_time <= 1.0:
        raise ValueError(f"diffusion_time must lie in (0, 1], got {diffusion_time!r}")
    start = measured_start(engine, images, diffusion_time, rank)
    seed = engine.seed(seed)
    noises = np.empty((num_images, *engine.image_shape), "float32")
    for batch in engine.batches(num_images, None, verbose=0):
        batch.store(noises, engine.draw(seed, batch.indices))
    return ops.convert_to_numpy(start(noises))
