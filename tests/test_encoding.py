"""The ODE run backwards, and what is made of latents: interpolations, variations, inpainting."""

import numpy as np
import pytest
from conftest import (
    first_quick,
    make_oracle_model,
    make_small_model,
    random_images,
    slow_on_jax,
)

from ddim_keras.interpolation import slerp, slerp_grid
from ddim_keras.sampling import ConvergenceError
from ddim_keras.sampling.inversion import invert_step
from ddim_keras.schedules import AngleSchedule, LinearBetaSchedule

# Down to nearly no noise, where images are.
FINE = AngleSchedule(max_signal_rate=0.9999)


def images_around(mean, deviation, number=6):
    """Images whose normalised pixels, under a normalizer that was not adapted, are N(mean,
    deviation^2).
    """
    return np.clip(
        np.random.default_rng(0).normal(mean, deviation, (number, 8, 8, 1)), 0, 1
    ).astype("float32")


def exact_latents(images, mean, deviation, schedule):
    """The Gaussian's: (x - a mean) / sqrt(a^2 deviation^2 + b^2) does not change along the ODE."""
    (signal,), (noise,) = schedule(np.array([1.0]))
    return (
        signal * mean + np.sqrt(signal**2 * deviation**2 + noise**2) * (images - mean) / deviation
    )


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_encoding_converges_to_the_gaussians_latents(sampler):
    model = make_oracle_model(0.5, 0.2, schedule=FINE)
    images = images_around(0.5, 0.2)
    expected = exact_latents(images, 0.5, 0.2, FINE)
    errors = [
        np.abs(model.encode(images, steps, sampler=sampler, spacing="quadratic") - expected).mean()
        for steps in (10, 40, 160)
    ]
    if sampler == "ddim":
        assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3 and errors[2] < 0.03
    else:
        # So good so soon that what is left is the lowest noise level, below which the network is
        # not asked.
        assert errors[1] < errors[0] / 3 and max(errors[1:]) < 0.01


def test_the_round_trip_is_off_by_less_and_less():
    model = make_oracle_model(0.5, 0.2, schedule=LinearBetaSchedule())
    model.schedule.conditions = lambda signal_rates, noise_rates: (
        noise_rates**2
    )  # what the oracle's network knows
    images = images_around(0.5, 0.2)
    errors = [
        ((model.reconstruct(images, steps) - images) ** 2).mean() for steps in (10, 50, 200, 1000)
    ]
    assert all(later < earlier / 3 for earlier, later in zip(errors, errors[1:])), errors


@pytest.mark.parametrize("steps", [5, 20, 100])
def test_exact_encoding_makes_the_round_trip_exact(steps):
    model = make_oracle_model(0.5, 0.2, schedule=FINE)
    images = images_around(0.5, 0.2)
    latents, report = model.encode(images, steps, exact=True, return_report=True)
    assert np.abs(model.decode(latents, steps) - images).max() <= 1e-5
    assert report.round_trip_error <= 1e-5
    assert report.iterations.shape == report.residuals.shape == (steps,)
    assert (report.iterations >= 1).all() and report.residuals.max() < 1e-5


def test_exact_encoding_inverts_a_trained_network(trained_model):
    images = 0.25 + 0.5 * random_images(3)
    latents, report = trained_model.encode(images, 10, exact=True, return_report=True)
    assert np.abs(trained_model.decode(latents, 10) - images).max() <= 1e-5
    plain = trained_model.decode(trained_model.encode(images, 10), 10)
    assert np.abs(plain - images).max() > 1e-4
    assert report.iterations.max() > 1


def test_exact_encoding_says_where_it_did_not_converge():
    model = make_oracle_model(0.5, 0.01, schedule=AngleSchedule(0.02, 0.5))
    with pytest.raises(
        ConvergenceError, match=r"did not converge: .* Step 1 of 2 from the image .* after 1 iter"
    ) as error:
        model.encode(images_around(0.5, 0.2), 2, exact=True, max_iterations=1)
    assert error.value.report.round_trip_error > 1e-5 and error.value.report.residuals[0] > 1e-5


def test_the_implicit_step_is_solved_where_plain_iteration_would_diverge():
    slopes = np.linspace(-4.0, 0.9, 16).reshape(1, 16, 1, 1)

    def pred_noises(x):
        return slopes * x + 0.1 * np.sin(x)

    rates, noisier = (1.0, 0.0), (0.8, 0.6)
    wanted = np.random.default_rng(0).normal(size=(2, 16, 1, 1)).astype("float32")
    noisy_images = (wanted - 0.6 * pred_noises(wanted)) / 0.8
    found, residuals, iterations = invert_step(
        pred_noises, noisy_images, rates, noisier, noisy_images, 1e-6, 100
    )
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert residuals.max() <= 1e-6 and iterations < 60


def test_encoding_is_deterministic_and_takes_any_batch(trained_model):
    images = random_images(5)
    latents = trained_model.encode(images, 10)
    assert latents.shape == images.shape and latents.dtype == np.float32
    np.testing.assert_allclose(
        trained_model.encode(images, 10, batch_size=2, verbose=0), latents, atol=1e-5
    )
    as_bytes = (images * 255).round().astype("uint8")
    np.testing.assert_allclose(
        trained_model.encode(as_bytes, 10),
        trained_model.encode(as_bytes / np.float32(255), 10),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "ddpm"}, "DDPM.* cannot run backwards"),
        ({"sampler": "unipc"}, "UniPC.* cannot run backwards"),
        ({"exact": True, "tolerance": 0.0}, "tolerance must be positive, got 0.0"),
        ({"exact": True, "max_iterations": 0}, "max_iterations must be an integer, at least 1"),
        ({"exact": True, "schedule": "zero_terminal_snr"}, "begins with nothing of the image left"),
        ({"sampler": "heun", "exact": True}, "exact encoding inverts deterministic DDIM, not Heun"),
        ({"return_report": True}, "a report is made with exact=True only"),
        ({"images": random_images(2) * 2}, "images are out of range"),
        ({"images": random_images(2)[0]}, "images have the wrong rank"),
    ],
)
def test_what_cannot_be_encoded_is_refused(trained_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained_model.encode(**{"images": random_images(2), "diffusion_steps": 5, **arguments})


def test_exact_encoding_wants_float32():
    with pytest.raises(ValueError, match="needs a float32 network, this one computes in bfloat16"):
        make_small_model(dtype="mixed_bfloat16").encode(random_images(1), 5, exact=True)


# Interpolation


def test_slerp_keeps_to_the_sphere_and_to_its_ends():
    start, end = np.random.default_rng(0).normal(size=(2, 4, 4, 1))
    path = slerp(start, end, np.linspace(0, 1, 7))
    np.testing.assert_allclose(path[0], start, atol=1e-6)
    np.testing.assert_allclose(path[-1], end, atol=1e-6)
    unit = slerp(start / np.linalg.norm(start), end / np.linalg.norm(end), np.linspace(0, 1, 7))
    np.testing.assert_allclose(np.linalg.norm(unit.reshape(7, -1), axis=1), 1.0, atol=1e-6)
    angles = np.arccos(np.clip((unit[1:] * unit[:-1]).sum(axis=(1, 2, 3)), -1, 1))
    np.testing.assert_allclose(angles, angles[0], atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1.0 + 1e-9, 3.0])
def test_slerp_between_equal_directions_is_the_line(scale):
    start = np.random.default_rng(0).normal(size=(4, 4, 1))
    np.testing.assert_allclose(
        slerp(start, scale * start, [0.5])[0], (1 + scale) / 2 * start, rtol=1e-6
    )


@pytest.mark.parametrize("perturbation", [0.0, 1e-8])
def test_slerp_between_opposite_latents_goes_round_one_side(perturbation):
    start = np.random.default_rng(0).normal(size=(4, 4, 1))
    path = slerp(start, -start + perturbation, np.linspace(0, 1, 5))
    np.testing.assert_allclose(
        np.linalg.norm(path.reshape(5, -1), axis=1), np.linalg.norm(start), rtol=1e-5
    )
    np.testing.assert_allclose(path[[0, -1]], [start, -start], atol=1e-6)
    assert abs((path[2] * start).sum()) < 1e-4
    np.testing.assert_array_equal(path, slerp(start, -start + perturbation, np.linspace(0, 1, 5)))


def test_interpolation_begins_and_ends_with_what_the_ends_decode_to(trained_model):
    latents = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    path = trained_model.interpolate(latents[0], latents[1], num_images=5, diffusion_steps=8)
    assert path.shape == (5, 8, 8, 1)
    np.testing.assert_allclose(path[[0, -1]], trained_model.decode(latents, 8), atol=1e-5)
    steps = np.abs(np.diff(path, axis=0)).max(axis=(1, 2, 3))
    assert (steps > 0).all()
    assert trained_model.interpolate(latents[0], latents[1], 1, 3).shape == (1, 8, 8, 1)


def test_interpolation_between_images_goes_through_their_latents(trained_model):
    images = random_images(2)
    path = trained_model.interpolate(
        images[0], images[1], 3, 20, from_images=True, spacing="quadratic"
    )
    np.testing.assert_allclose(
        path[[0, 2]], trained_model.reconstruct(images, 20, spacing="quadratic"), atol=1e-5
    )


@slow_on_jax
def test_a_grid_has_the_corners_in_its_corners(trained_model):
    corners = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    grid = trained_model.interpolate_grid(corners, rows=3, cols=4, diffusion_steps=5)
    assert grid.shape == (3, 4, 8, 8, 1)
    found = np.stack([grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]])
    np.testing.assert_allclose(found, trained_model.decode(corners, 5), atol=1e-5)
    middle = slerp(
        *(slerp_grid(corners, 3, 1)[1, 0], slerp(corners[1], corners[3], [0.5])[0]), [1 / 3]
    )
    np.testing.assert_allclose(grid[1, 1], trained_model.decode(middle, 5)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, z: m.interpolate(z[0], z[1, :4], 3, 3),
            r"each end must be one image or latent, \(8, 8, 1\), got",
        ),
        (lambda m, z: m.interpolate(z[0], 0 * z[0], 3, 3), "a latent of zeros has no direction"),
        (
            lambda m, z: m.interpolate(z[0], z[1], 0, 3),
            "num_images must be an integer, at least 1: got 0",
        ),
        (lambda m, z: m.interpolate(z[0], np.nan * z[0], 3, 3), "latents must be finite"),
        (lambda m, z: m.interpolate_grid(z[:2], 2, 2, 3), "expected 4 corners .*, got 2"),
        (lambda m, z: m.decode(z[0], 3), "latents have the wrong rank"),
        (
            lambda m, z: m.interpolate(z[0], z[1], 3, 3, return_trajectory=True),
            "no trajectory is returned here",
        ),
        (
            lambda m, z: m.interpolate(
                *random_images(2), 3, from_images=True, network_evaluations=3
            ),
            "network_evaluations does not say how to encode",
        ),
    ],
)
def test_bad_latents_are_refused(trained_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(trained_model, np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32"))


# Editing


def test_variations_differ_more_the_stronger_they_are(trained_model):
    image = random_images(1)[0]
    distances = [
        np.abs(trained_model.variations(image, strength, 4, 10, seed=0) - image).mean()
        for strength in (0.0, 0.2, 1.0)
    ]
    assert distances[0] < 1e-6 < distances[1] < distances[2]
    images = trained_model.variations(image, 0.6, 5, 10, seed=0)
    assert images.shape == (5, 8, 8, 1) and np.abs(images[0] - images[1]).max() > 0.01
    np.testing.assert_allclose(
        trained_model.variations(image, 0.6, 5, 10, seed=0, batch_size=2, verbose=0),
        images,
        atol=1e-5,
    )


def test_ends_may_be_bytes_and_floats():
    model = make_oracle_model(0.5, 0.2)
    images = random_images(2)
    as_bytes = (images[0] * 255).round().astype("uint8")
    path = model.interpolate(as_bytes, images[1], 3, 10, from_images=True, spacing=None)
    other = model.interpolate(as_bytes / np.float32(255), images[1], 3, 10, from_images=True)
    np.testing.assert_allclose(path, other, atol=1e-5)


def test_weak_variations_on_discrete_times_take_the_steps_there_are():
    model = make_small_model(schedule=LinearBetaSchedule(), parameterization="velocity")
    image = random_images(1)[0]
    images = model.variations(image, 0.005, 2, 20, seed=0)
    np.testing.assert_array_equal(images, model.variations(image, 0.005, 2, 5, seed=0))
    assert np.abs(images - image).max() < 0.2


def test_variations_start_from_the_noisy_image():
    """For the Gaussian at full strength: the image shines through by the signal rate at the start,
    no more.
    """
    model = make_oracle_model(0.5, 0.2, schedule=FINE)
    image = np.full((8, 8, 1), 0.9, "float32")
    images = model.variations(image, 0.5, 500, 100, eta=0.0, seed=0)
    signal_rates, noise_rates = FINE(np.array([0.5]))
    gain = 0.2 / np.sqrt(signal_rates[0] ** 2 * 0.2**2 + noise_rates[0] ** 2)
    assert images.mean() == pytest.approx(0.5 + gain * signal_rates[0] * 0.4, abs=0.01)


@pytest.mark.parametrize("shape", first_quick([(3, 8, 8), (8, 8), (3, 8, 8, 1), (8, 8, 1)]))
def test_inpainting_keeps_the_known_region_to_the_last_bit(trained_model, shape):
    images = random_images(3)
    masks = np.zeros(shape, bool)
    masks.reshape(-1, 8, 8)[:, :, :4] = True
    painted = trained_model.inpaint(images, masks, 5, resampling=2, seed=0)
    np.testing.assert_array_equal(painted[:, :, :4], images[:, :, :4])
    assert np.abs(painted[:, :, 4:] - images[:, :, 4:]).max() > 0.05
    other = images.copy()
    other[:, :, 4:] = 0.5  # what is hidden makes no difference
    np.testing.assert_array_equal(
        trained_model.inpaint(other, masks, 5, resampling=2, seed=0), painted
    )
    again = trained_model.inpaint(images, masks, 5, resampling=2, seed=0, batch_size=2, verbose=0)
    np.testing.assert_allclose(again, painted, atol=1e-5)


def test_resampling_makes_the_painted_part_fit_the_known_part():
    """Images of one brightness each: half of one says what the other half must be."""

    model = make_brightness_model()
    images = np.repeat(np.array([0.2, 0.8], "float32"), 8).reshape(16, 1, 1, 1) * np.ones(
        (1, 8, 8, 1), "float32"
    )
    masks = np.zeros((8, 8))
    masks[:, :4] = 1
    errors = {
        resampling: np.abs(
            model.inpaint(images, masks, 4, resampling=resampling, seed=0) - images
        ).mean()
        for resampling in (1, 10)
    }
    assert errors[10] < 0.6 * errors[1] and errors[10] < 0.05


def make_brightness_model():
    """The perfect denoiser of even images whose brightness is N(0.5, 0.3^2)."""
    import keras
    from keras import ops

    noisy_images, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    signal = ops.sqrt(1.0 - variances)
    centred = ops.mean(noisy_images, axis=(1, 2), keepdims=True) - signal * 0.5
    brightness = 0.5 + signal * 0.09 / (signal**2 * 0.09 + variances / 64) * centred
    noises = (noisy_images - signal * brightness) / ops.sqrt(variances)
    return make_small_model(network=keras.Model([noisy_images, variances], noises), schedule=FINE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, x: m.inpaint(x, np.ones((4, 4)), 3),
            r"masks must be \(height, width\) or .*, got shape \(4, 4, 1\)",
        ),
        (
            lambda m, x: m.inpaint(x, np.full((8, 8), 0.5), 3),
            "masks must hold 1 where the image is known",
        ),
        (
            lambda m, x: m.inpaint(x, np.ones((8, 8)), 3, resampling=0),
            "resampling must be an integer, at least 1",
        ),
        (lambda m, x: m.variations(x, 0.5), "variations takes one image"),
        (
            lambda m, x: m.variations(x[0], 0.5, 2, [0.5, 0.1]),
            "diffusion_steps must be an integer, at least 1",
        ),
        (lambda m, x: m.variations(x[0], 1.5), r"strength must lie in \[0, 1\], got 1.5"),
        (lambda m, x: m.variations(x[0], "0.5"), r"strength must lie in \[0, 1\], got '0.5': 0 k"),
    ],
)
def test_bad_edits_are_refused(trained_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(trained_model, random_images(2))
