"""How likely images are, against densities that are known."""

import numpy as np
import pytest
from conftest import (
    SLOW_CASE_ON_JAX,
    make_oracle_model,
    make_small_model,
    random_images,
    slow_on_jax,
)

from ddim_keras.diffusion.spacings import diffusion_times, levels_of
from ddim_keras.schedules import AngleSchedule

FINE = AngleSchedule(max_signal_rate=0.9999)
MEAN, DEVIATION = 0.5, 0.2


def gaussian_images(number=4):
    images = np.random.default_rng(0).normal(MEAN, DEVIATION, (number, 8, 8, 1))
    return np.clip(images, 0.0, 1.0).astype("float32")


def gaussian_density(images):
    """The logarithm, of all pixels, in nats."""
    distances = (images.astype("float64") - MEAN) / DEVIATION
    each = -0.5 * distances**2 - np.log(DEVIATION) - 0.5 * np.log(2.0 * np.pi)
    return each.sum(axis=(1, 2, 3))


@pytest.mark.parametrize(
    "divergence", ["hutchinson", pytest.param("exact", marks=SLOW_CASE_ON_JAX)]
)
def test_the_gaussians_density_is_found(divergence):
    model, images = make_oracle_model(MEAN, DEVIATION, schedule=FINE), gaussian_images()
    found = model.log_likelihood(images, 100, divergence=divergence, dequantize=False)
    np.testing.assert_allclose(found.nats / 64, gaussian_density(images) / 64, atol=1e-3)
    np.testing.assert_allclose(found.bits_per_dim, -found.nats / 64 / np.log(2.0))
    assert found.mean_bits_per_dim == pytest.approx(found.bits_per_dim.mean())
    expected = found.bits_per_dim.std(ddof=1) / 2.0
    assert found.standard_error == pytest.approx(expected)


def test_the_normalizers_scale_and_the_levels_bins_are_counted():
    """The same density as above, of a network that sees standard normal pixels."""
    model, images = make_oracle_model(0.0, 1.0, schedule=FINE), gaussian_images()
    model.normalizer.mean.assign(np.full(model.normalizer.mean.shape, MEAN))
    model.normalizer.variance.assign(np.full(model.normalizer.variance.shape, DEVIATION**2))
    found = model.log_likelihood(images, 20, dequantize=False)
    np.testing.assert_allclose(found.nats / 64, gaussian_density(images) / 64, atol=1e-3)
    # 255 bins between 0 and 1, of which each is nearly even.
    levels = (255.0 * images).round().astype("uint8")
    found = model.log_likelihood(levels, 20, samples=4)
    expected = gaussian_density(levels / 255.0) / 64 - np.log(255.0)
    np.testing.assert_allclose(found.nats / 64, expected, atol=5e-3)
    again = model.log_likelihood(levels, 20, samples=4, batch_size=3, verbose=0)
    np.testing.assert_allclose(again.nats, found.nats, atol=1e-2)


@pytest.mark.slow
def test_the_estimate_is_right_on_average(trained_model):
    images = random_images(2)
    exact = trained_model.log_likelihood(images, 4, divergence="exact", dequantize=False).nats
    estimates = np.array(
        [
            trained_model.log_likelihood(images, 4, dequantize=False, seed=seed).nats
            for seed in range(30)
        ]
    )
    error = estimates.std(axis=0, ddof=1) / np.sqrt(30)
    assert (error > 0.0).all()
    assert (np.abs(estimates.mean(axis=0) - exact) < 4.0 * error).all()
    mean = trained_model.log_likelihood(images, 4, dequantize=False, samples=30, seed=7).nats
    assert (np.abs(mean - exact) < 5.0 * error).all()


def test_the_slope_along_a_direction_is_the_derivative():
    from keras import ops

    from ddim_keras.support import backend

    point = ops.convert_to_tensor(np.array([[0.5, 2.0]], "float32"))
    direction = ops.convert_to_tensor(np.array([[1.0, 10.0]], "float32"))
    value, slope = backend.value_and_slope(lambda x: x**3, point, direction)
    np.testing.assert_allclose(ops.convert_to_numpy(value), [[0.125, 8.0]], rtol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(slope), [[0.75, 120.0]], rtol=1e-6)


def test_the_variational_bound_is_the_gaussians_and_comes_down_to_the_likelihood():
    model = make_oracle_model(0.0, 1.0, schedule=FINE)
    model.normalizer.mean.assign(np.full(model.normalizer.mean.shape, MEAN))
    model.normalizer.variance.assign(np.full(model.normalizer.variance.shape, DEVIATION**2))
    images = np.clip(np.random.default_rng(0).normal(MEAN, DEVIATION, (128, 8, 8, 1)), 0.0, 1.0)
    levels = (255.0 * images).round().astype("uint8")
    true = -(gaussian_density(levels / 255.0) / 64 - np.log(255.0)).mean() / np.log(2.0)
    gaps = []
    for steps in (40, 160, 640):
        found = model.variational_bound(levels, steps, spacing="log_snr", batch_size=128)
        expected = bound_of_a_gaussian(steps, "log_snr")
        assert abs(found.mean_bits_per_dim - expected) < 4.0 * found.standard_error < 0.2
        gaps.append(found.mean_bits_per_dim - true)
    assert gaps[0] > gaps[1] > gaps[2] > -0.02 and gaps[2] < 0.15, gaps


def bound_of_a_gaussian(steps, spacing):
    """In bits, of levels: each term's mean where E[(x - pred_image)^2] = 1 / (1 + a^2 / b^2)."""
    signals, noises = levels_of(FINE, diffusion_times(steps, spacing, FINE))
    ratios = (signals[:-1] / noises[:-1]) ** 2
    at_noise = 0.5 * (signals[0] ** 2 + noises[0] ** 2 - 1.0) - np.log(noises[0])
    between = 0.5 * (np.diff(ratios) / (1.0 + ratios[:-1])).sum()
    at_image = 0.5 * np.log(2.0 * np.pi * np.e * noises[-2] ** 2) + np.log(255.0 * DEVIATION)
    return (at_noise + between + at_image) / np.log(2.0)


@slow_on_jax
def test_score_can_ask_for_bits_per_dimension():
    model = make_small_model(parameterization="velocity", num_classes=2)
    images = random_images(5)
    scores = model.score((images, [0, 1, 0, 1, 0]), 4, 3, metrics=["bits_per_dim"], labels=True)
    found = model.log_likelihood(images[:4], 3, labels=[0, 1, 0, 1])
    assert scores == {
        "bits_per_dim": pytest.approx(found.mean_bits_per_dim, abs=1e-4),
        "bits_per_dim_standard_error": pytest.approx(found.standard_error, abs=1e-4),
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.log_likelihood(x, 5, divergence="trace"), "divergence must be one of"),
        (lambda m, x: m.log_likelihood(x, 5, samples=0), "samples must be an integer, at least 1"),
        (lambda m, x: m.log_likelihood(x, [0.0]), "there is no way to noise"),
        (lambda m, x: m.log_likelihood(x * 300.0, 5), "images are out of range"),
        (lambda m, x: m.log_likelihood(x[:0], 5), "at least one image, got none"),
        (lambda m, x: m.variational_bound(x[:0], 5), "at least one image, got none"),
    ],
)
def test_what_has_no_likelihood_is_refused(trained_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(trained_model, random_images(2))
