"""Exact inversion by algebra: pairs of states, there and back."""

import warnings

import numpy as np
import pytest
from conftest import (
    GaussianOracle,
    make_oracle_model,
    make_small_model,
    random_images,
    slow_on_jax,
)

from ddim_keras.samplers import BDIA, OBELM, Levels, plan_pairs, walk_pairs
from ddim_keras.sampling import PairLatents, pairs
from ddim_keras.schedules import AngleSchedule

FINE = AngleSchedule(max_signal_rate=0.9999)


@pytest.mark.parametrize("steps", [2, 10, pytest.param(50, marks=pytest.mark.slow)])
def test_any_image_comes_back_at_any_number_of_steps(trained_model, steps):
    images = random_images(5)
    latents = trained_model.encode(images, steps, exact="algebra")
    assert isinstance(latents, PairLatents) and len(latents) == 5
    assert latents.noisier.shape == latents.cleaner.shape == images.shape
    assert np.abs(trained_model.decode(latents) - images).max() < 1e-6
    plain = trained_model.reconstruct(images, steps)
    assert np.abs(plain - images).max() > 1e-3


@slow_on_jax
def test_colours_and_labels_come_back_too():
    images = random_images(4, (8, 8, 3))
    model = make_small_model(channels=3, parameterization="velocity", num_classes=2)
    told = {"labels": [0, 1, None, 1], "guidance": 2.0}
    latents = model.encode(images, 10, exact="algebra", **told)
    assert np.abs(model.decode(latents, **told) - images).max() < 1e-6
    again = model.reconstruct(images, 10, exact="algebra", batch_size=3, **told)
    assert np.abs(again - images).max() < 1e-5


@pytest.mark.slow
def test_half_precision_comes_back_too():
    images = random_images(4, (8, 8, 3))
    half = make_small_model(channels=3, dtype="mixed_bfloat16", parameterization="velocity")
    assert np.abs(half.reconstruct(images, 10, exact="algebra") - images).max() < 1e-5


@slow_on_jax
def test_another_label_makes_another_image_of_the_same_latents():
    images = random_images(2)
    model = make_small_model(parameterization="velocity", num_classes=2, label_dropout=0.0)
    random = np.random.default_rng(0)
    for variable in model.ema_network.weights:
        if "variance" not in variable.path:
            variable.assign(variable + 0.1 * random.normal(size=variable.shape))
    latents = model.encode(images, 10, exact="algebra", labels=0)
    assert np.abs(model.decode(latents, labels=0) - images).max() < 1e-5
    assert np.abs(model.decode(latents, labels=1) - images).max() > 1e-3


@pytest.mark.parametrize(
    ("rule", "order", "backwards"),
    [
        (BDIA(), 2, False),
        (BDIA(), 2, True),
        (OBELM(), 2, False),
        (OBELM(), 2, True),
        (BDIA(0.8), 1, False),
    ],
)
def test_two_step_rules_have_their_order_both_ways(rule, order, backwards):
    oracle = GaussianOracle(0.5, 0.3)
    errors = [walked_error(oracle, rule, backwards, steps) for steps in (16, 32, 64)]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    # O-BELM's errors grow on the way to the noise, but by the same factor at any number of steps.
    assert (slopes > order - 0.25).all(), errors
    if order == 1:
        assert slopes[-1] < 1.5, errors


def walked_error(oracle, rule, backwards, steps):
    """How far a walk over even angles from the exact pair at one end is off at the other end."""
    angles = np.linspace(1.4, 0.1, steps + 1)
    levels = Levels(np.cos(angles), np.sin(angles))
    rates = list(zip(*levels))
    start = np.full((1, 1, 1, 1), 0.9)
    states = [oracle.exact_ode(start, rates[0], each).astype("float32") for each in rates]
    planned = plan_pairs(rule, levels, lambda signal, noise: noise**2, backwards)
    ends = states[::-1] if backwards else states
    _, found = walk_pairs(oracle, ends[0], ends[1], planned.table, np.int32(planned.ends[-1]))
    return abs(float(np.asarray(found).item()) - ends[-1].item())


@pytest.mark.parametrize("exact", ["algebra", "o_belm"])
def test_latents_converge_to_the_gaussians(exact):
    model = make_oracle_model(0.5, 0.2, schedule=FINE)
    images = np.clip(random_images(4), 0.2, 0.8)
    (signal,), (noise,) = FINE(np.array([1.0]))
    scale = np.sqrt(signal**2 * 0.2**2 + noise**2)
    expected = signal * 0.5 + scale * (images - 0.5) / 0.2
    errors = []
    for steps in (10, 20, 40):
        latents = model.encode(images, steps, exact=exact, spacing="log_snr").noisier
        errors.append(np.abs(latents - expected).mean())
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2, errors


def test_bdia_keeps_errors_small_and_o_belm_lets_them_grow_towards_noise():
    """Of the state beside the image, seen at the noise end."""
    oracle = GaussianOracle(0.0, 1.0)  # whose ODE stands still
    angles = np.linspace(1.55, 0.02, 31)
    levels = Levels(np.cos(angles), np.sin(angles))
    grown = {}
    for rule in (BDIA(), OBELM()):
        planned = plan_pairs(rule, levels, lambda signal, noise: noise**2, backwards=True)
        older, newer = np.zeros((2, 1, 1, 1, 1), "float32")
        pair = walk_pairs(oracle, older, newer + np.float32(2.0**-10), planned.table, np.int32(29))
        grown[repr(rule)] = max(abs(float(np.asarray(state).item())) for state in pair) * 2.0**10
    assert grown["BDIA(gamma=1.0)"] == pytest.approx(1.0, abs=0.01)
    assert grown["OBELM()"] > 100


@slow_on_jax
def test_interpolation_begins_and_ends_with_the_images_themselves(trained_model):
    images = random_images(4)
    path = trained_model.interpolate(images[0], images[1], 5, 10, from_images=True, exact="algebra")
    assert np.abs(path[[0, -1]] - images[:2]).max() < 1e-5
    assert (np.abs(np.diff(path, axis=0)).max(axis=(1, 2, 3)) > 1e-3).all()
    latents = trained_model.encode(images, 10, exact="algebra")
    np.testing.assert_allclose(
        trained_model.interpolate(latents[0], latents[1], 5), path, atol=1e-5
    )
    grid = trained_model.interpolate_grid(latents, 2, 3)
    corners = np.stack([grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]])
    assert np.abs(corners - images).max() < 1e-5


def test_pairs_are_written_and_read(tmp_path, trained_model):
    images = random_images(3)
    latents = trained_model.encode(images, 5, exact="o_belm")
    latents[1:].save(tmp_path / "latents.npz")
    read = PairLatents.load(tmp_path / "latents.npz")
    assert read.rule == "o_belm" and len(read) == 2
    np.testing.assert_array_equal(trained_model.decode(read, 5), trained_model.decode(latents[1:]))
    (tmp_path / "other.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="other.npz holds no pair of states"):
        PairLatents.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="only rules by name can be saved"):
        trained_model.encode(images, 5, exact=BDIA(0.9)).save(tmp_path / "latents.npz")


@pytest.mark.parametrize("damage", ["cut", "flipped", "array", "deep", "empty"])
def test_damaged_pairs_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "latents.npz"
    states, rates = random_images(2).astype("float32"), np.linspace(0.1, 0.9, 4)
    PairLatents(states, states, rates, rates[::-1]).save(path)
    whole = path.read_bytes()
    if damage == "array":
        with open(path, "wb") as file:
            np.save(file, states)
    else:
        flipped = bytearray(whole)
        flipped[600] ^= 1
        contents = {"cut": whole[:7], "flipped": flipped, "deep": b"[" * 100000, "empty": b""}
        path.write_bytes(contents[damage])
    with pytest.raises(
        ValueError, match=r"latents.npz holds no pair of states \(.*\): .*encode .*again"
    ):
        PairLatents.load(path)
    with pytest.raises(FileNotFoundError):
        PairLatents.load(tmp_path / "missing.npz")


@slow_on_jax
def test_a_pair_may_begin_with_nothing_of_the_image_left():
    model = make_small_model(schedule="zero_terminal_snr", parameterization="velocity")
    images = random_images(2)
    assert np.abs(model.reconstruct(images, 10, exact="bdia") - images).max() < 1e-5
    with pytest.raises(ValueError, match="O-BELM divides by the signal rate, which is 0"):
        model.encode(images, 10, exact="o_belm")


@pytest.mark.slow
def test_states_too_large_to_be_exact_are_told(trained_model, monkeypatch):
    monkeypatch.setattr(pairs, "LARGEST_EXACT", 0.1)
    with pytest.warns(UserWarning, match=r"reach .* standard deviations: .* do not come back exac"):
        trained_model.encode(random_images(2), 5, exact="algebra")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trained_model.encode(random_images(2), 5, exact="o_belm")  # promises nothing


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, z: m.encode(x, 1, exact="algebra"), "it needs at least 2 diffusion_steps"),
        (
            lambda m, x, z: m.encode(x, 5, exact="algebre"),
            "exact must be False, True, one of .*'algebre'",
        ),
        (lambda m, x, z: m.encode(x, 5, exact=""), "exact must be False, True, one of .*got ''"),
        (
            lambda m, x, z: m.encode(x, 5, exact=2),
            r"expected a TwoStepRule object or one of \['alg",
        ),
        (
            lambda m, x, z: m.generate(2, 5, initial_noise=z),
            r"initial_noise must be an array .* got PairLatents; pairs of states, .* for decode",
        ),
        (
            lambda m, x, z: m.encode(x, 5, exact="algebra", sampler="heun"),
            "a two-step rule walks by itself: leave out sampler='heun'",
        ),
        (
            lambda m, x, z: m.encode(x, 5, exact="algebra", return_report=True),
            "a report is made with exact=True only",
        ),
        (lambda m, x, z: m.decode(z, 6), "encoded by a walk of 5 steps over other noise levels"),
        (lambda m, x, z: m.decode(z, spacing="quadratic"), "a walk of 5 steps over other"),
        (lambda m, x, z: m.decode(z, sampler="heun"), "decoded by its own rule"),
        (lambda m, x, z: m.decode(z.replaced(z.noisier, z.cleaner[:1])), "must be of equal shapes"),
        (lambda m, x, z: m.interpolate(z[0], x[0], 3), "each end must be one pair of states"),
        (lambda m, x, z: m.interpolate(z, z, 3), "each end must be one pair of states"),
        (
            lambda m, x, z: m.interpolate(z[0], m.encode(x, 6, exact="algebra")[0], 3),
            "the ends were encoded by different walks",
        ),
        (lambda m, x, z: m.interpolate(z[0], z[1], 3, from_images=True), "leave from_images and"),
        (
            lambda m, x, z: m.interpolate(x[0], x[1], 3, 5, exact="algebra"),
            'exact="algebra" is for images, with from_images=True',
        ),
        (lambda m, x, z: BDIA(0.0), r"gamma must lie in \(0, 1\], got 0.0"),
    ],
)
def test_what_pairs_cannot_do_is_refused(trained_model, call, message):
    images = random_images(2)
    latents = trained_model.encode(images, 5, exact="algebra")
    with pytest.raises(ValueError, match=message):
        call(trained_model, images, latents)
