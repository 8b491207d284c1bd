import math

import keras
import numpy as np
import pytest
from conftest import make_small_model, random_images, slow_on_jax
from keras import ops

from ddim_keras.schedules import (
    SCHEDULES,
    AngleSchedule,
    CosineBetaSchedule,
    LinearBetaSchedule,
    LinearLogSNRSchedule,
    LinearNoisePowerSchedule,
    ScaledLinearBetaSchedule,
    Schedule,
    VarianceExplodingSchedule,
    ZeroTerminalSNRSchedule,
)
from ddim_keras.spacings import SPACINGS, diffusion_times
from ddim_keras.support.configurable import resolve

CONTINUOUS = [AngleSchedule, LinearNoisePowerSchedule, LinearLogSNRSchedule]


def times_of(schedule, number=101):
    if schedule.num_times is None:
        return np.linspace(0, 1, number)
    return np.arange(1, schedule.num_times + 1) / schedule.num_times


def test_angle_schedule_follows_its_formula():
    times = np.linspace(0, 1, 11)
    signal_rates, noise_rates = AngleSchedule(0.02, 0.95)(times)
    angles = math.acos(0.95) + times * (math.acos(0.02) - math.acos(0.95))
    np.testing.assert_allclose(signal_rates, np.cos(angles), rtol=1e-14)
    np.testing.assert_allclose(noise_rates, np.sin(angles), rtol=1e-14)
    np.testing.assert_allclose([signal_rates[0], signal_rates[-1]], [0.95, 0.02], rtol=1e-12)


def test_a_shifted_angle_has_a_ratio_of_rates_as_many_times_as_large():
    """Between the ends, which stay; on tensors as on arrays."""
    times = np.linspace(0, 1, 11)
    plain, shifted = AngleSchedule(), AngleSchedule(shift=2.0)
    signal_rates, noise_rates = shifted(times)
    np.testing.assert_allclose(signal_rates**2 + noise_rates**2, 1.0, rtol=1e-14)
    np.testing.assert_allclose([signal_rates[0], signal_rates[-1]], [0.95, 0.02], rtol=1e-12)
    angles = np.arctan(noise_rates / (2.0 * signal_rates))
    np.testing.assert_allclose(np.diff(angles), (angles[-1] - angles[0]) / 10, rtol=1e-12)
    assert np.all(shifted.log_snr(times)[1:-1] < plain.log_snr(times)[1:-1] - 0.5)
    of_tensors = shifted(keras.ops.convert_to_tensor(times.astype("float32")))
    np.testing.assert_allclose(of_tensors, shifted(times), rtol=1e-5)
    again = AngleSchedule.from_config(shifted.get_config())
    np.testing.assert_array_equal(again(times), shifted(times))


def test_impossible_shifts_are_refused():
    with pytest.raises(ValueError, match="shift must be a positive number, 1 for none, got 0"):
        AngleSchedule(shift=0.0)


def test_the_log_snr_families_are_linear_in_what_they_say():
    times = np.linspace(0, 1, 11)
    _, noise_rates = LinearNoisePowerSchedule(0.1, 0.9)(times)
    np.testing.assert_allclose(np.diff(noise_rates**2), (0.9**2 - 0.1**2) / 10, rtol=1e-12)
    log_snr = LinearLogSNRSchedule(0.1, 0.9).log_snr(times)
    np.testing.assert_allclose(
        log_snr[[0, -1]], [math.log(0.81 / 0.19), math.log(0.01 / 0.99)], rtol=1e-12
    )
    np.testing.assert_allclose(np.diff(log_snr), (log_snr[-1] - log_snr[0]) / 10, rtol=1e-9)


def test_noise_of_the_variance_exploding_schedule_grows_geometrically_beside_the_image():
    signal_rates, noise_rates = VarianceExplodingSchedule(0.01, 50.0)(np.linspace(0, 1, 232))
    np.testing.assert_allclose(noise_rates / signal_rates, np.geomspace(0.01, 50.0, 232), rtol=1e-9)
    with pytest.raises(ValueError, match="0 < min_deviation < max_deviation, got 2.0 and 1.0"):
        VarianceExplodingSchedule(2.0, 1.0)


def test_linear_beta_is_that_of_ddpm():
    signal_rates, noise_rates = LinearBetaSchedule()(times_of(LinearBetaSchedule()))
    alphas = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(signal_rates**2, alphas, rtol=1e-12)
    np.testing.assert_allclose(noise_rates**2, 1.0 - alphas, rtol=1e-10)
    assert [float(rate[0]) for rate in LinearBetaSchedule()(np.array([0.0]))] == [1.0, 0.0]


def test_cosine_and_scaled_linear_betas_follow_their_formulas():
    signal_rates, _ = CosineBetaSchedule()(times_of(CosineBetaSchedule()))
    wanted = np.cos((np.arange(1, 1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    wanted /= np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(
        signal_rates[:-1] ** 2, wanted[:-1], rtol=1e-9
    )  # the last beta is cut off at 0.999
    assert signal_rates[-1] ** 2 == pytest.approx(wanted[-2] * 0.001, rel=1e-9)
    signal_rates, _ = ScaledLinearBetaSchedule(1000, 0.00085, 0.012)(np.array([1.0]))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(signal_rates**2, np.prod(1.0 - betas), rtol=1e-10)


def test_zero_terminal_snr_leaves_nothing_at_the_end_and_the_start_as_it_was():
    before = LinearBetaSchedule()
    after = ZeroTerminalSNRSchedule(before)
    times = times_of(before)
    old, new = before(times)[0], after(times)[0]
    assert (
        new[-1] == 0.0 and after(times)[1][-1] == 1.0 and new[0] == pytest.approx(old[0], rel=1e-12)
    )
    ratios = np.diff(new) / np.diff(old)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_rates_keep_unit_variance_and_signal_falls(name):
    schedule = resolve(name, Schedule, SCHEDULES)
    signal_rates, noise_rates = schedule(times_of(schedule))
    np.testing.assert_allclose(signal_rates**2 + noise_rates**2, 1.0, rtol=1e-13)
    assert (np.diff(signal_rates) < 0).all() and signal_rates.dtype == np.float64


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_tensors_agree_with_arrays(name):
    schedule = resolve(name, Schedule, SCHEDULES)
    times = times_of(schedule)
    exact = schedule(times)
    tensors = schedule(ops.convert_to_tensor(times, "float32"))
    for tensor, array in zip(tensors, exact):
        np.testing.assert_allclose(ops.convert_to_numpy(tensor), array, atol=1e-6)
    conditions = ops.convert_to_numpy(schedule.conditions(*tensors))
    np.testing.assert_allclose(conditions, schedule.conditions(*exact), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_times_are_found_again_by_their_noise_level(name):
    schedule = resolve(name, Schedule, SCHEDULES)
    times = times_of(schedule)
    np.testing.assert_allclose(schedule.times_at(schedule.log_snr(times)), times, atol=1e-9)
    np.testing.assert_allclose(schedule.times_at([1e3, -1e3]), [times[0], 1.0], atol=1e-12)


@pytest.mark.parametrize("name", ["linear_beta", "cosine_beta", "zero_terminal_snr"])
def test_networks_of_discrete_times_are_told_the_integers(name):
    schedule = resolve(name, Schedule, SCHEDULES)
    times = ops.convert_to_tensor(times_of(schedule), "float32")
    np.testing.assert_array_equal(schedule.conditions(*schedule(times)), np.arange(1, 1001))
    uniform = np.array([0.0, 0.0005, 0.0015, 0.9999])
    np.testing.assert_allclose(schedule.training_times(uniform), [0.001, 0.001, 0.002, 1.0])


def test_noise_levels_between_two_times_are_told_as_a_fraction():
    schedule = LinearBetaSchedule()
    levels = schedule.log_snr([0.5, 0.501])
    signal_rate = np.sqrt(1 / (1 + np.exp(-levels.mean())))
    assert schedule.conditions(signal_rate, np.sqrt(1 - signal_rate**2)) == pytest.approx(
        500.5, abs=1e-6
    )


@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize(
    "rates", [(0.0, 0.9), (0.02, 1.0), (-0.1, 0.9), (0.02, 1.5), (float("nan"), 0.9)]
)
def test_rates_outside_the_open_unit_interval_are_refused(kind, rates):
    with pytest.raises(ValueError, match=r"_signal_rate must lie strictly between 0 and 1, got"):
        kind(*rates)


def test_minimum_above_maximum_is_refused():
    with pytest.raises(
        ValueError, match=r"min_signal_rate must be below max_signal_rate, got 0.9 and 0.1"
    ):
        AngleSchedule(0.9, 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearBetaSchedule(1), "num_times must be an integer, at least 2: got 1"),
        (
            lambda: LinearBetaSchedule(10, 0.5, 0.1),
            "betas must satisfy 0 < min_beta <= max_beta < 1, got 0.5 and 0.1",
        ),
        (lambda: CosineBetaSchedule(10, max_beta=1.0), "betas must satisfy"),
        (lambda: CosineBetaSchedule(10, offset=-1.0), "offset must not be negative, got -1.0"),
        (lambda: ZeroTerminalSNRSchedule("angle"), "expected a schedule with discrete times"),
        (
            lambda: make_small_model(schedule="zero_terminal_snr"),
            'train with parameterization="velocity" or "image"',
        ),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_config_round_trip(name):
    schedule = resolve(name, Schedule, SCHEDULES)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(again) is type(schedule)
    np.testing.assert_array_equal(again(np.array([0.3, 1.0])), schedule(np.array([0.3, 1.0])))


# Spacings


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize(
    "schedule", [AngleSchedule(), LinearBetaSchedule(), ZeroTerminalSNRSchedule()], ids=repr
)
@pytest.mark.parametrize("steps", [1, 2, 10, 333])
def test_spacings_give_different_falling_times(spacing, schedule, steps):
    times = diffusion_times(steps, spacing, schedule)
    assert times.shape == (steps + 1,) and times[-1] == 0.0 and times[0] <= 1.0
    assert (np.diff(times[:-1]) < 0).all() and times[-2] >= 0.0
    if schedule.num_times:
        numbers = times * schedule.num_times
        np.testing.assert_allclose(numbers, np.rint(numbers), atol=1e-9)
        assert np.rint(numbers)[-2] >= 1
    if spacing in ("linear", "quadratic", "trailing", "karras", "log_snr"):
        assert times[0] == 1.0


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
def test_as_many_steps_as_times_walk_over_all_of_them(spacing):
    times = diffusion_times(50, spacing, LinearBetaSchedule(50))
    np.testing.assert_allclose(times * 50, np.arange(50, -1, -1), atol=1e-9)


def test_spacings_follow_their_formulas():
    def numbers(steps, spacing):
        return (
            np.rint(diffusion_times(steps, spacing, LinearBetaSchedule())[-2::-1] * 1000)
            .astype(int)
            .tolist()
        )

    assert numbers(10, "linear") == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    assert numbers(7, "linear") == [142, 285, 428, 571, 714, 857, 1000]
    assert numbers(4, "quadratic") == [62, 250, 562, 1000]
    assert numbers(4, "quadratic_0.8") == [50, 200, 450, 800]
    assert numbers(7, "trailing") == [143, 286, 429, 571, 714, 857, 1000]
    assert numbers(7, "leading") == [1, 143, 285, 427, 569, 711, 853]
    np.testing.assert_allclose(
        diffusion_times(4, "quadratic", AngleSchedule()), [1.0, 0.5625, 0.25, 0.0625, 0.0]
    )
    levels = LinearLogSNRSchedule(0.02, 0.95)
    sigmas = np.exp(-0.5 * levels.log_snr(diffusion_times(5, "karras", levels)[:-1])) ** (1 / 7)
    np.testing.assert_allclose(np.diff(sigmas), (sigmas[-1] - sigmas[0]) / 4, rtol=1e-6)


def test_users_own_times_are_walked_over_as_they_are():
    assert diffusion_times([0.2, 0.9, 0.5], "linear", AngleSchedule()).tolist() == [
        0.9,
        0.5,
        0.2,
        0.0,
    ]
    assert diffusion_times([1, 1000, 30], "linear", LinearBetaSchedule()).tolist() == [
        1.0,
        0.03,
        0.001,
        0.0,
    ]
    assert diffusion_times(np.array([0.5]), "linear", LinearBetaSchedule()).tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("steps", "spacing", "schedule", "message"),
    [
        (0, "linear", "angle", "diffusion_steps must be an integer, at least 1: got 0"),
        (
            1001,
            "linear",
            "linear_beta",
            "diffusion_steps must be at most 1000, the number of training times",
        ),
        (3, "even", "angle", r"unknown spacing 'even': expected one of \['karras'"),
        ([], "linear", "angle", "an integer or a list of times"),
        ([0.5, 0.5], "linear", "angle", "must differ from each other"),
        ([0.5, 1.2], "linear", "angle", r"must be numbers in \[0, 1\]; got \[0.5 1.2\]"),
        ([0, 5], "linear", "linear_beta", "must be integers from 1 to 1000"),
        (
            [0.50051],
            "linear",
            "linear_beta",
            "must be integers from 1 to 1000, or these divided by T",
        ),
        (["a"], "linear", "angle", "an integer or a list of times"),
    ],
)
def test_bad_steps_are_refused(steps, spacing, schedule, message):
    with pytest.raises(ValueError, match=message):
        diffusion_times(steps, spacing, resolve(schedule, Schedule, SCHEDULES))


# Models


@slow_on_jax
@pytest.mark.parametrize(
    "schedule",
    [
        "linear_beta",
        pytest.param("cosine_beta", marks=pytest.mark.slow),
        pytest.param("zero_terminal_snr", marks=pytest.mark.slow),
        pytest.param("linear_log_snr", marks=pytest.mark.slow),
    ],
)
def test_models_train_and_sample_with_every_kind_of_schedule(schedule, tmp_path):
    model = make_small_model(schedule=schedule, parameterization="velocity")
    model.compile(optimizer="adam", loss="mse")
    history = model.fit(random_images(), batch_size=8, epochs=3, verbose=0).history
    assert np.isfinite(history["n_loss"]).all() and np.isfinite(history["i_loss"]).all()
    images = {
        name: model.generate(2, 10, sampler=name, seed=0)
        for name in ("ddim", "ddpm", "dpm_solver_2m")
    }
    assert all(np.isfinite(image).all() for image in images.values())
    assert np.abs(images["ddim"] - images["ddpm"]).max() > 0.01
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.generate(2, 10, sampler="ddim", seed=0), images["ddim"])


def test_discrete_training_asks_the_network_at_integer_times_only():
    seen = []

    @keras.saving.register_keras_serializable("ddim_keras_tests")
    class Spy(keras.layers.Layer):
        def call(self, inputs):
            seen.append(ops.convert_to_numpy(inputs[1]).ravel())
            return 0.0 * inputs[0]

        def compute_output_spec(self, inputs):
            return keras.KerasTensor(inputs[0].shape, "float32")

    noisy_images, times = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    network = keras.Model([noisy_images, times], Spy()([noisy_images, times]))
    model = make_small_model(network=network, schedule="linear_beta")
    model.loss = keras.losses.get("mse")
    seen.clear()
    for _ in range(20):
        model.training_loss(random_images())
    numbers = np.concatenate(seen)
    np.testing.assert_array_equal(numbers, np.rint(numbers))
    assert 1 <= numbers.min() < 60 and 940 < numbers.max() <= 1000


def test_a_walk_may_follow_another_schedule_matched_by_noise_level():
    """Under the training schedule's own levels, written as another schedule's, the images are the
    same.
    """
    model = make_small_model(parameterization="velocity")
    model.ema_network.set_weights(
        [
            w + 0.05 * np.sin(np.arange(w.size)).reshape(w.shape)
            for w in model.ema_network.get_weights()
        ]
    )
    same_levels = LinearLogSNRSchedule().times_at(
        AngleSchedule().log_snr(np.linspace(0.1, 1.0, 10))
    )
    images = model.generate(2, np.linspace(0.1, 1.0, 10), seed=0)
    other = model.generate(2, same_levels, schedule="linear_log_snr", seed=0)
    np.testing.assert_allclose(other, images, atol=1e-4)
    assert np.abs(model.generate(2, 10, schedule="linear_log_snr", seed=0) - images).max() > 1e-3


def test_walks_that_leave_what_was_trained_are_refused_or_said():
    model = make_small_model()
    with pytest.raises(ValueError, match="predicted noise says nothing of it"):
        model.generate(1, 2, schedule="zero_terminal_snr")
    with pytest.warns(
        UserWarning, match="down to a noise rate of 0.01, but the model was trained down to 0.312"
    ):
        model.generate(1, 2, schedule="linear_beta")
    with pytest.warns(
        UserWarning, match="ends with a signal rate of 0.6, but sampling starts from noise alone"
    ):
        make_small_model(schedule=LinearBetaSchedule(100))


@pytest.mark.slow
def test_a_ddpm_is_sampled_as_a_ddim_without_retraining():
    """All T times with eta 1 and few with eta 0, from one network, with its integer times."""
    model = make_small_model(
        schedule=LinearBetaSchedule(50, 1e-3, 0.3), parameterization="velocity"
    )
    model.compile(optimizer="adam", loss="mse")
    model.fit(random_images(), batch_size=8, epochs=2, verbose=0)
    assert np.isfinite(model.generate(2, 50, sampler="ddpm_large", seed=0)).all()
    few = model.generate(2, 5, sampler="ddim", spacing="quadratic", seed=0)
    np.testing.assert_array_equal(
        few, model.generate(2, [2, 8, 18, 32, 50], sampler="ddim", seed=0)
    )
    with pytest.raises(ValueError, match="diffusion_steps must be at most 50"):
        model.generate(2, 51)
