"""Restoring images from measurements, and the operators that measure."""

import warnings

import keras
import numpy as np
import pytest
from conftest import (
    SLOW_CASE_ON_JAX,
    crossed,
    make_oracle_model,
    make_small_model,
    random_images,
    slow_on_jax,
)
from keras import ops

from ddim_keras.operators import (
    Blur,
    Colorize,
    Compressed,
    LinearOperator,
    Mask,
    SuperResolution,
)
from ddim_keras.sampling.restore import agreeing
from ddim_keras.schedules import AngleSchedule

FINE = AngleSchedule(max_signal_rate=0.9999)
SHAPE = (4, 6, 3)
OPERATORS = [
    SuperResolution(2),
    Colorize(),
    Mask(np.arange(24).reshape(4, 6) % 3 > 0),
    Blur([[0.0, 0.1, 0.0], [0.2, 0.4, 0.1], [0.0, 0.2, 0.0]]),
    Blur.gaussian(0.3),
    Blur(np.full((1, 3), 1 / 3), threshold=0.1),
    Compressed(0.4, seed=3),
    LinearOperator(
        lambda images: images[:, :2, ::-1],
        lambda seen: ops.pad(seen[:, :, ::-1], ((0, 0), (0, 2), (0, 0), (0, 0))),
    ),
]


def as_matrix(operator):
    """A, (measurements, pixels), from what it makes of each pixel by itself."""
    pixels = np.eye(np.prod(SHAPE), dtype="float32").reshape(-1, *SHAPE)
    return operator(pixels).reshape(len(pixels), -1).T.astype("float64")


def tensors(operator):
    return [ops.convert_to_tensor(array) for array in operator.arrays]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
def test_the_pseudo_inverse_is_that_of_the_matrix(operator):
    matrix, built = as_matrix(operator), operator.built(SHAPE)
    images = random_images(2, SHAPE)
    measured = operator(images)
    inverse = np.linalg.pinv(matrix, rcond=1e-5)
    found = ops.convert_to_numpy(built.pseudo_inverse(measured, *tensors(built)))
    flat = measured.reshape(2, -1).astype("float64")
    np.testing.assert_allclose(found.reshape(2, -1), flat @ inverse.T, atol=1e-4)
    np.testing.assert_allclose(operator(found), measured, atol=1e-5)  # A A^+ A = A
    ridge = 0.3
    found = built.regularized_inverse(measured, ops.convert_to_tensor(ridge), *tensors(built))
    system = matrix.T @ matrix + ridge * np.eye(matrix.shape[1])
    expected = flat @ matrix @ np.linalg.inv(system)
    found = ops.convert_to_numpy(found).reshape(2, -1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_compressed_coefficients_are_as_many_as_asked_for():
    assert as_matrix(Compressed(0.4)).shape[0] == round(0.4 * 24) * 3
    images = random_images(1, SHAPE)
    assert np.abs(Compressed(0.4, seed=1)(images) - Compressed(0.4, seed=2)(images)).max() > 0.1


@pytest.mark.parametrize(
    "operator",
    [
        SuperResolution(4),
        pytest.param(Blur.gaussian(1.0), marks=SLOW_CASE_ON_JAX),
        pytest.param(Mask(np.arange(64).reshape(8, 8) % 2), marks=pytest.mark.slow),
        pytest.param(Compressed(0.25), marks=pytest.mark.slow),
        pytest.param(
            LinearOperator(lambda images: images[:, :3], lambda seen: _padded(seen)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_restored_images_measure_as_given(trained_model, operator):
    images = 0.25 + 0.5 * np.round(random_images(3))
    restored = trained_model.restore(operator(images), operator, 5, seed=0)
    assert restored.shape == images.shape and restored.min() >= 0.0 and restored.max() <= 1.0
    assert np.abs(operator(restored) - operator(images)).max() <= 1e-4
    assert np.abs(restored - images).max() > 1e-2
    again = trained_model.restore(operator(images), operator, 5, seed=0, batch_size=2, verbose=0)
    np.testing.assert_allclose(again, restored, atol=1e-3)


def _padded(seen):
    return ops.pad(seen, ((0, 0), (0, 5), (0, 0), (0, 0)))


@slow_on_jax
def test_colours_are_restored_from_bytes_by_label():
    model = make_small_model(channels=3, parameterization="velocity", num_classes=2)
    grey = (Colorize()(random_images(2, (8, 8, 3))) * 255).round().astype("uint8")
    restored = model.restore(grey, Colorize(), 5, seed=0, labels=[0, 1], guidance=2.0)
    assert np.abs(Colorize()(restored) - grey / np.float32(255)).max() <= 1e-4


def make_gaussian_model(deviation):
    """The perfect denoiser of images whose pixels are N(0.5, deviation^2)."""
    model = make_oracle_model(0.0, 1.0, schedule=FINE)
    model.normalizer.mean.assign(np.full(model.normalizer.mean.shape, 0.5))
    model.normalizer.variance.assign(np.full(model.normalizer.variance.shape, deviation**2))
    return model


@slow_on_jax
@pytest.mark.parametrize(("eta", "noise_level"), crossed([0.85, 0.0], [0.0, 0.05]))
def test_a_gaussian_is_restored_to_its_posterior(eta, noise_level):
    """The mean of 4 pixels is measured: their deviations from it stay as they were."""
    deviation, operator = 0.12, SuperResolution(2)
    model = make_gaussian_model(deviation)
    measured = np.full((200, 4, 4, 1), 0.7, "float32")
    options = {"seed": 0, "eta": eta, "noise_level": noise_level, "verbose": 0}
    images = model.restore(measured, operator, 100, **options)
    means = operator(images)
    variance, noise = deviation**2 / 4, noise_level**2
    expected = 0.5 + 0.2 * variance / (variance + noise)
    assert means.mean() == pytest.approx(expected, abs=0.004)
    if noise_level:
        expected = np.sqrt(variance * noise / (variance + noise))
        assert means.std() == pytest.approx(expected, rel=0.1)
    rest = images - means.repeat(2, axis=1).repeat(2, axis=2)
    assert rest.std() == pytest.approx(deviation * np.sqrt(3 / 4), rel=0.05)


@slow_on_jax
def test_the_methods_trust_predictions_differently_where_there_is_noise(trained_model):
    measured = SuperResolution(2)(random_images(2))
    made = {
        (method, noise): trained_model.restore(
            measured, SuperResolution(2), 5, method=method, noise_level=noise, seed=0
        )
        for method in ("ddnm", "diffpir")
        for noise in (0.0, 0.2)
    }
    np.testing.assert_allclose(made["ddnm", 0.0], made["diffpir", 0.0], atol=1e-5)
    assert np.abs(made["ddnm", 0.2] - made["diffpir", 0.2]).max() > 1e-3
    for method in ("ddnm", "diffpir"):
        errors = np.abs(SuperResolution(2)(made[method, 0.2]) - measured)
        assert errors.max() > 1e-3  # noise is not reproduced


@slow_on_jax
def test_masks_may_differ_from_image_to_image(trained_model):
    images = random_images(3)
    masks = np.arange(3 * 64).reshape(3, 8, 8) % 5 > 1
    restored = trained_model.restore(Mask(masks)(images), Mask(masks), 5, seed=0)
    assert np.abs(np.where(masks[..., None], restored - images, 0.0)).max() <= 1e-4


def test_even_blurred_black_and_white_images_agree():
    """No image in [0, 1] is far from where these were measured: the hardest case."""
    images = np.round(random_images(2, (16, 16, 1)))
    blurred = Blur.gaussian(1.0).built((16, 16, 1))
    start = np.clip(images + np.random.default_rng(1).normal(0.0, 0.2, images.shape), 0.0, 1.0)
    start, measured = (ops.convert_to_tensor(part, "float32") for part in (start, blurred(images)))
    found = agreeing(blurred, tensors(blurred), start, measured)
    assert np.abs(blurred(found) - blurred(images)).max() <= 1e-4


def test_what_is_beyond_reach_is_left_near():
    """Two pixels whose mean was measured as 1.2: both end at 1."""
    measured = np.full((1, 1, 1, 1), 1.2, "float32")
    images = agreeing(
        SuperResolution(2), (), ops.zeros((1, 2, 2, 1)), ops.convert_to_tensor(measured)
    )
    np.testing.assert_allclose(ops.convert_to_numpy(images), 1.0)


def test_operators_are_serialized():
    for operator in OPERATORS[:-1]:
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(operator))
        images = random_images(1, SHAPE)
        np.testing.assert_allclose(again(images), operator(images), atol=1e-6)


def own(model, forward, pseudo_inverse, gain=1.0):
    operator = LinearOperator(forward, pseudo_inverse, gain)
    return model.restore(np.full((2, 8, 8, 1), 0.5), operator, 1)


def test_operators_measure_bytes_as_what_they_stand_for():
    images = (255 * random_images(2)).astype("uint8")
    operator = SuperResolution(2)
    np.testing.assert_allclose(operator(images), operator(images / 255.0), atol=1e-6)


def test_a_gain_that_the_pair_does_not_have_is_told_where_noise_is_weighed_by_it(trained_model):
    def mean(images):
        return ops.mean(images, axis=1, keepdims=True)

    def spread(seen):
        return ops.repeat(seen, 8, axis=1)

    seen = np.full((1, 1, 8, 1), 0.5, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(
            UserWarning, match=r"gain=1, but .* it is 0.125 .*: give gain=0.125, or"
        ):
            trained_model.restore(seen, LinearOperator(mean, spread), 1, noise_level=0.1)
        LinearOperator(mean, spread, gain=0.125).check_gain((8, 8, 1))
        for operator in (*OPERATORS, Mask(np.zeros((4, 6)))):
            operator.built(SHAPE).check_gain(SHAPE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.restore(np.ones((2, 3, 3, 1)), SuperResolution(4), 3),
            r"must have shape \(batch, 2, 2, 1\), got \(2, 3, 3, 1\)",
        ),
        (
            lambda m: m.restore(np.ones((2, 2, 2, 1)), SuperResolution(3), 3),
            "factor 3 does not div",
        ),
        (lambda m: m.restore(np.ones((2, 2, 2, 1)), "blur", 3), "operator must be an Operator"),
        (lambda m: m.restore(np.ones((2, 8, 8, 1)), Colorize(), 3), "there is nothing to colour"),
        (
            lambda m: m.restore(np.ones((2, 8, 8, 1)), Mask(np.full((8, 8), 0.5)), 3),
            "masks must hold 1",
        ),
        (
            lambda m: m.restore(np.ones((2, 8, 8, 1)), Mask(np.ones((3, 8, 8))), 3),
            "there are 3 masks for 2 images",
        ),
        (
            lambda m: m.restore(np.ones((2, 2, 2, 1)), SuperResolution(4), 3, method="dps"),
            "method must be one of",
        ),
        (
            lambda m: m.restore(np.ones((2, 2, 2, 1)), SuperResolution(4), 3, noise_level=-1),
            "noise_level must be a number of at least 0",
        ),
        (
            lambda m: m.restore(np.full((2, 2, 2, 1), np.nan), SuperResolution(4), 3),
            "measurements must be finite",
        ),
        (
            lambda m: m.restore(np.full((2, 2, 2, 1), 255.0), SuperResolution(4), 3),
            r"lie from 0 to 1, got 255 to 255: give uint8 or float pixels in \[0, 1\]",
        ),
        (
            lambda m: m.restore(-np.ones((2, 8, 8, 1)), Blur.gaussian(1.0), 3),
            "lie from 0 to 1, got -1 to -1",
        ),
        (lambda m: m.restore(np.ones((2, 8, 8, 1)), Blur(np.ones((9, 9))), 3), "kernel, 9 x 9, is"),
        (lambda m: Blur(np.ones((2, 2))), "both odd"),
        (lambda m: Blur.gaussian(0.0), "width must be positive"),
        (lambda m: Compressed(0.0), r"ratio must lie in \(0, 1\]"),
        (lambda m: SuperResolution(1), "factor must be an integer, at least 2"),
        (lambda m: Blur(np.full((3, 3), np.nan)), "kernel must be finite"),
        (lambda m: Blur.gaussian(np.inf), "width must be positive, got inf"),
        (lambda m: Compressed("a quarter"), r"ratio must lie in \(0, 1\], got 'a quarter'"),
        (lambda m: SuperResolution(2)(np.ones((8, 8, 1))), r"becomes a batch of one with images\["),
        (lambda m: LinearOperator(2.0, lambda seen: seen), "forward must be a function of tensors"),
        (lambda m: own(m, lambda x: x, lambda y: y, gain=0.0), "gain must be positive, got 0.0"),
        (lambda m: own(m, lambda x: 2.0 * x, lambda y: y), r"are no pair: A A\^\+ A = A must hold"),
        (lambda m: own(m, lambda x: 1.0 - x, lambda y: 1.0 - y), "is not linear: .* A x"),
        (lambda m: own(m, lambda x: x**2, lambda y: y**0.5), "is not linear: .* A x"),
        (
            lambda m: own(m, lambda x: x[:, :4], lambda y: y),
            r"must make images \(batch, 8, 8, 1\) of measurements \(1, 4, 8, 1\), got shape \(1, 4",
        ),
    ],
)
def test_what_cannot_be_restored_is_refused(trained_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(trained_model)
