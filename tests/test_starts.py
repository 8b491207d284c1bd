"""Walks that start below pure noise, from the data's mean and covariance."""

import numpy as np
import pytest
from conftest import GaussianOracle, first_quick, make_oracle_model, random_images

from ddim_keras.sampling.starts import GaussianData
from ddim_keras.schedules import AngleSchedule, LinearLogSNRSchedule


def test_gaussians_are_carried_as_the_ode_does():
    """Pixels that are independent, of different spread: the oracle knows where they go."""
    oracle = GaussianOracle(mean=np.linspace(-1, 1, 6), deviation=np.linspace(0.3, 1.5, 6))
    data = GaussianData(oracle.mean, np.eye(6)[:5], oracle.deviation[:5] ** 2, 1.5**2)
    start, end = (0.02, np.sqrt(1 - 0.02**2)), (0.6, 0.8)
    noise = np.random.default_rng(0).normal(size=(4, 6))
    expected = oracle.exact_ode(noise, start, end)
    np.testing.assert_allclose(data.carried(noise, start, end), expected, atol=1e-6)


def test_mean_and_covariance_are_those_of_the_images():
    draws = np.random.default_rng(0)
    mixing, mean = draws.normal(size=(6, 6)), draws.normal(size=6)
    images = draws.normal(size=(20_000, 6)) @ mixing + mean
    data = GaussianData.of(images.reshape(-1, 3, 2, 1), rank=4)
    np.testing.assert_allclose(data.mean, mean, atol=0.1)
    values = np.linalg.eigvalsh(np.cov(images.T))[::-1]
    np.testing.assert_allclose(data.variances, values[:4])
    assert data.rest == pytest.approx(values[4:].mean())
    assert GaussianData.of(images, rank=9).rest == 0.0


@pytest.mark.parametrize(
    "schedule", first_quick([AngleSchedule(), LinearLogSNRSchedule()]), ids=repr
)
def test_walks_from_there_lead_where_whole_walks_lead(schedule):
    """Of data that are Gaussian: the walk's upper part costs nothing, and loses nothing."""
    model = make_oracle_model(mean=0.0, deviation=1.0, schedule=schedule)
    images = np.clip(np.random.default_rng(0).normal(0.5, 0.1, size=(4000, 8, 8, 1)), 0, 1)
    model.normalizer.adapt(images)
    start = model.gaussian_start(images, 3, 0.5, rank=1, seed=5)
    times = np.arange(50, 0, -2) / 100
    made = model.generate(3, times, initial_noise=start, sampler="unipc")
    whole = model.generate(3, 60, seed=5)
    np.testing.assert_allclose(made, whole, atol=0.02)
    # It is the start that does it: from noise of that level the images would be others.
    noise = np.random.default_rng(1).normal(size=start.shape)
    assert np.abs(model.generate(3, times, initial_noise=noise) - whole).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((random_images(1), 2), "at least two images, got 1"),
        ((random_images(4), 2, 1.5), r"diffusion_time must lie in \(0, 1\], got 1.5"),
        ((random_images(4), 0), "num_images must be an integer, at least 1: got 0"),
        ((random_images(4, (4, 4, 1)), 2), "shape"),
        (
            ((random_images(4), np.zeros(4)), 2),
            "expected an array of images, got images with labels",
        ),
        ((iter([random_images(4)]), 2), "expected an array, got a list_iterator: of a data set"),
    ],
)
def test_bad_starts_are_refused(trained_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained_model.gaussian_start(*arguments)
