import keras
import numpy as np
import pytest
from conftest import GaussianOracle
from keras import ops

from ddim_keras import random
from ddim_keras.samplers import DDIM, step_table, walk
from ddim_keras.schedules import AngleSchedule

SCHEDULE = AngleSchedule()
SHAPE = (4, 4, 1)


def times(steps):
    return np.arange(steps, -1, -1) / steps


def run(oracle, steps, eta=0.0, number=8, end_on_prediction=False):
    indices = np.arange(number, dtype="int32")
    noise = random.normal(3, 0, indices, SHAPE)
    table = step_table(DDIM(eta), SCHEDULE, times(steps), end_on_prediction)
    result, _ = walk(
        oracle, noise, ops.convert_to_tensor(table), 0, steps, lambda step: random.normal(3, step, indices, SHAPE)
    )
    return ops.convert_to_numpy(noise), ops.convert_to_numpy(result)


def ends():
    signal_rates, noise_rates = SCHEDULE(np.array([1.0, 0.0]))
    return (signal_rates[0], noise_rates[0]), (signal_rates[1], noise_rates[1])


def test_ddim_is_first_order_on_the_gaussian():
    oracle = GaussianOracle(mean=0.4, deviation=0.5)
    errors = []
    for steps in (8, 16, 32, 64, 128):
        noise, result = run(oracle, steps)
        errors.append(np.abs(result - oracle.exact_ode(noise, *ends())).mean())
    slope = -np.polyfit(np.log([8, 16, 32, 64, 128]), np.log(errors), 1)[0]
    assert 0.9 < slope < 1.2, errors


def test_ddim_converges_to_the_exact_solution():
    oracle = GaussianOracle(mean=-0.3, deviation=0.7)
    noise, result = run(oracle, 1000)
    np.testing.assert_allclose(result, oracle.exact_ode(noise, *ends()), atol=5e-3)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_sampling_gives_back_the_moments_of_the_data(eta):
    oracle = GaussianOracle(mean=0.5, deviation=0.6)
    _, result = run(oracle, 400, eta, number=4000)
    (signal, noise_rate) = ends()[1]
    expected = np.sqrt(signal**2 * 0.6**2 + noise_rate**2)
    assert abs(result.mean() - signal * 0.5) < 0.02
    assert abs(result.std() / expected - 1) < 0.01


def test_pixels_stay_independent_under_noise():
    _, result = run(GaussianOracle(0.0, 1.0), 100, eta=1.0, number=4000)
    covariance = np.cov(result.reshape(4000, -1).T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=0.08)


def test_the_last_step_returns_the_predicted_image_without_noise():
    oracle = GaussianOracle(mean=0.5, deviation=1e-3)
    _, result = run(oracle, 5, eta=1.0, end_on_prediction=True)
    np.testing.assert_allclose(result, 0.5, atol=0.01)


def test_eta_zero_is_the_same_to_the_last_bit():
    oracle = GaussianOracle(0.0, 0.5)
    np.testing.assert_array_equal(run(oracle, 20)[1], run(oracle, 20)[1])


def test_step_coefficients_are_those_of_equations_12_and_16():
    signal, noise_rate = 0.6, 0.8
    next_signal, next_noise = 0.8, 0.6
    sigma = 0.7 * (next_noise / noise_rate) * np.sqrt(1 - signal**2 / next_signal**2)
    step = DDIM(eta=0.7).step(signal, noise_rate, next_signal, next_noise)
    assert step.image == next_signal
    assert step.fresh == pytest.approx(sigma, rel=1e-12)
    assert step.noise == pytest.approx(np.sqrt(next_noise**2 - sigma**2), rel=1e-12)


def test_eta_one_is_the_posterior_of_ddpm():
    """Its mean, written as a sum of x_t and x_0, is equation 7 of Ho et al. (2020)."""
    (a, b), (a_next, b_next) = (0.6, 0.8), (0.9, np.sqrt(1 - 0.81))
    step = DDIM(eta=1.0).step(a, b, a_next, b_next)
    alpha = a**2 / a_next**2
    weight_of_image = a_next * (1 - alpha) / (1 - a**2)
    weight_of_noisy = np.sqrt(alpha) * (1 - a_next**2) / (1 - a**2)
    # x_t = a x_0 + b eps, so the coefficient of eps is b times that of x_t.
    assert step.noise == pytest.approx(weight_of_noisy * b, rel=1e-12)
    assert step.image == pytest.approx(weight_of_image + weight_of_noisy * a, rel=1e-12)
    assert step.fresh**2 == pytest.approx((1 - a_next**2) / (1 - a**2) * (1 - alpha), rel=1e-12)


def test_tables_of_different_lengths_have_one_shape():
    assert step_table(DDIM(), SCHEDULE, times(1)).shape == step_table(DDIM(), SCHEDULE, times(4096)).shape
    assert step_table(DDIM(), SCHEDULE, times(5000)).shape[0] >= 5000


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_the_unit_interval_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got"):
        DDIM(eta)


def test_sampler_config_round_trip():
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(DDIM(0.3)))
    assert isinstance(again, DDIM) and again.eta == 0.3
