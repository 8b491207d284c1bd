"""Walks that start below pure noise, from the data's mean and covariance."""

import numpy as np
import pytest
from conftest import (
    GaussianOracle,
    first_quick,
    make_oracle_model,
    make_small_model,
    random_images,
    slow_on_jax,
)
from keras import ops

from ddim_keras import load_model
from ddim_keras.samplers import FittedSampler, GaussianStart
from ddim_keras.sampling import portable
from ddim_keras.schedules import AngleSchedule, LinearLogSNRSchedule


def test_gaussians_are_carried_as_the_ode_does():
    """Pixels that are independent, of different spread: the oracle knows where they go."""
    oracle = GaussianOracle(mean=np.linspace(-1, 1, 6), deviation=np.linspace(0.3, 1.5, 6))
    first, last = (0.02, np.sqrt(1 - 0.02**2)), (0.6, 0.8)
    angles = [np.arctan2(noise_rate, signal_rate) for signal_rate, noise_rate in (first, last)]
    variances = oracle.deviation[:5] ** 2
    start = GaussianStart(angles, oracle.mean, np.eye(6)[:5], variances, 1.5**2)
    noise = np.random.default_rng(0).normal(size=(4, 6))
    expected = oracle.exact_ode(noise, first, last)
    found = ops.convert_to_numpy(start(noise.reshape(4, 3, 2, 1)))
    # The mean and the axes are kept in half precision.
    np.testing.assert_allclose(found.reshape(4, 6), expected, atol=5e-4)


def test_mean_and_covariance_are_those_of_the_images():
    draws = np.random.default_rng(0)
    mixing, mean = draws.normal(size=(6, 6)), draws.normal(size=6)
    images = draws.normal(size=(20_000, 6)) @ mixing + mean
    data = GaussianStart.of(images.reshape(-1, 3, 2, 1), [1.5, 1.0], rank=4)
    np.testing.assert_allclose(data.mean, mean, atol=0.1)
    values = np.linalg.eigvalsh(np.cov(images.T))[::-1]
    np.testing.assert_allclose(data.variances, values[:4])
    assert data.rest == pytest.approx(values[4:].mean())
    np.testing.assert_allclose(data.axes @ data.axes.T, np.eye(4), atol=2e-3)
    assert GaussianStart.of(images, [1.5, 1.0], rank=9).rest == 0.0


@slow_on_jax
def test_a_fit_with_images_starts_below_the_noise_and_is_saved_and_exported_with_it(tmp_path):
    """Of data that are nearly Gaussian, one evaluation from below is better than one from noise."""
    model = make_small_model(parameterization="velocity", channels=3)
    draws = np.random.default_rng(0)
    images = 0.5 + 0.1 * draws.normal(size=(40, 1, 1, 3)) + 0.05 * draws.normal(size=(40, 8, 8, 3))
    images = np.clip(images, 0, 1).astype("float32")
    model.normalizer.adapt(images)
    few = {"num_images": 32, "teacher_steps": 8, "epochs": 1, "verbose": 0}
    plain = model.fit_sampler(1, keep=False, **few)
    unfitted = model.fit_sampler(1, images=images, rank=3, **{**few, "epochs": 0})
    assert unfitted.errors["fitted"] == unfitted.errors["before"]
    fitted = model.fit_sampler(1, images=images, rank=3, **few)
    assert fitted.errors["before"] == pytest.approx(unfitted.errors["before"], rel=1e-4)
    assert plain.start is None and isinstance(fitted.start, GaussianStart)
    assert fitted.errors["fitted"] < plain.errors["fitted"]
    made, trajectory = model.generate(3, 1, seed=4, return_trajectory=True)
    np.testing.assert_allclose(model.generate(3, 1, seed=4), made, atol=1e-6)
    noise = model.generate(3, 1, seed=4, sampler=plain, return_trajectory=True)[1].noisy_images[0]
    started = ops.convert_to_numpy(fitted.start(noise))
    np.testing.assert_allclose(trajectory.noisy_images[0], started, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.generate(3, 1, seed=4), model.generate(3, 1, seed=4))
    walk = portable.walk_model(
        portable.portable_walk(model.engine, model.ema_network, diffusion_steps=1)
    )
    exported = ops.convert_to_numpy(walk({"initial_noise": noise})["images"])
    np.testing.assert_allclose(exported, made, atol=1e-5)


def test_starts_that_do_not_fit_are_refused():
    parts = {"mean": np.zeros(4), "axes": np.eye(4)[:2], "variances": [1.0, 0.5], "rest": 0.1}
    start = GaussianStart([1.5, 1.0], **parts)
    assert GaussianStart.from_config(start.get_config()).get_config() == start.get_config()
    wrong = [
        ({"angles": [1.0, 1.5]}, "two between 0 and pi / 2, falling"),
        ({"axes": np.eye(4)}, "2 directions of 4 numbers"),
        ({"variances": [1.0, -0.5]}, "finite and at least 0"),
        ({"mean": "no base64!"}, "float16 numbers in base64"),
        ({"mean": [np.nan] * 4}, "mean must be finite"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            GaussianStart(**{"angles": [1.5, 1.0], **parts, **change})
    sampler = FittedSampler([1.0], [[0.0, 1.0]], start=start)
    model = make_small_model()
    with pytest.raises(ValueError, match="images of 4 numbers, got some of shape"):
        model.generate(1, 1, sampler=sampler)


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
