import keras
import numpy as np
import pytest

from ddim_keras.parameterizations import PARAMETERIZATIONS, NoiseParameterization
from ddim_keras.weightings import WEIGHTINGS, MinSNRWeighting, SigmoidWeighting


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.fixture
def mixture():
    random = np.random.default_rng(0)
    images, noises = random.normal(size=(2, 5, 4, 4, 2)).astype("float32")
    angles = np.linspace(0.3, 1.5, 5, dtype="float32").reshape(-1, 1, 1, 1)
    return images, noises, np.cos(angles), np.sin(angles)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_perfect_prediction_gives_back_noise_and_image(name, mixture):
    images, noises, signal, noise_rate = mixture
    parameterization = PARAMETERIZATIONS[name]()
    noisy_images = signal * images + noise_rate * noises
    target = parameterization.target(images, noises, signal, noise_rate)
    pred_noises, pred_images = parameterization.components(target, noisy_images, signal, noise_rate)
    np.testing.assert_allclose(pred_noises, noises, atol=1e-4)
    np.testing.assert_allclose(pred_images, images, atol=1e-4)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_image_error_scale_is_the_ratio_of_squared_errors(name, mixture):
    images, noises, signal, noise_rate = mixture
    parameterization = PARAMETERIZATIONS[name]()
    noisy_images = signal * images + noise_rate * noises
    target = parameterization.target(images, noises, signal, noise_rate)
    _, pred_images = parameterization.components(target + 0.1, noisy_images, signal, noise_rate)
    image_error = ((pred_images - images) ** 2).mean(axis=(1, 2, 3), keepdims=True)
    scale = np.asarray(to_numpy(parameterization.image_error_scale(signal, noise_rate)))
    np.testing.assert_allclose(0.1**2 / image_error, scale, rtol=1e-2)


def test_min_snr_weights_of_the_noise_loss_are_those_of_the_paper():
    signal = np.sqrt(np.array([0.1, 0.5, 0.9, 0.99], "float32"))
    ratio = signal**2 / (1 - signal**2)
    weights = MinSNRWeighting(gamma=5.0)(signal, np.sqrt(1 - signal**2), NoiseParameterization())
    np.testing.assert_allclose(to_numpy(weights), np.minimum(ratio, 5.0) / ratio, rtol=1e-4)


def test_sigmoid_weight_of_the_noise_loss_is_one_half_at_its_bias():
    log_snr = np.array([-4.0, 2.0, 6.0], "float32")
    signal, noise_rate = np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))
    weights = to_numpy(SigmoidWeighting(bias=2.0)(signal, noise_rate, NoiseParameterization()))
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(log_snr - 2.0)), rtol=1e-4)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("weighting", ["min_snr", "sigmoid"])
def test_a_weighting_means_the_same_whatever_the_network_predicts(
    weighting, parameterization, mixture
):
    """Weight times squared error of the prediction is one and the same function of the image
    error.
    """
    _, _, signal, noise_rate = mixture
    made = PARAMETERIZATIONS[parameterization]()
    weights = WEIGHTINGS[weighting]()(signal, noise_rate, made) * made.image_error_scale(
        signal, noise_rate
    )
    expected = WEIGHTINGS[weighting]().image_weights((signal / noise_rate) ** 2)
    np.testing.assert_allclose(to_numpy(weights), to_numpy(expected), rtol=1e-4)


def test_gamma_must_be_positive():
    with pytest.raises(ValueError, match="gamma must be positive, got 0"):
        MinSNRWeighting(gamma=0)
