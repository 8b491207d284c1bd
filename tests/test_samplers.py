import keras
import numpy as np
import pytest
from conftest import GaussianOracle, MixtureOracle, first_quick
from keras import ops

from ddim_keras import forward, samplers
from ddim_keras.samplers import (
    DDIM,
    DDPM,
    MEMORY,
    SAMPLERS,
    AdamsBashforth,
    AnnealedLangevin,
    DPMSolverMultistep,
    DPMSolverSinglestep,
    Heun,
    Levels,
    Sampler,
    UniPC,
    plan,
    table_of,
    walk,
)
from ddim_keras.schedules import (
    AngleSchedule,
    CosineBetaSchedule,
    LinearBetaSchedule,
    LinearLogSNRSchedule,
    VarianceExplodingSchedule,
    ZeroTerminalSNRSchedule,
)
from ddim_keras.spacings import diffusion_times, levels_of
from ddim_keras.support import random
from ddim_keras.support.configurable import resolve

SCHEDULE = AngleSchedule()
SHAPE = (4, 4, 1)
STEPS = (8, 16, 32, 64, 128)
DETERMINISTIC = [
    DDIM(),
    Heun(),
    DPMSolverMultistep(),
    DPMSolverSinglestep(),
    *[AdamsBashforth(order) for order in (1, 2, 3, 4)],
    *[UniPC(order) for order in (1, 2, 3)],
    *[AdamsBashforth(order, warm_up=False, even_steps=True) for order in (2, 4)],
]
# Pixels of different spread, so that no error passes through zero for all of them at once.
GAUSSIAN = GaussianOracle(mean=0.4, deviation=np.linspace(0.2, 1.6, 50))
MIXTURE = MixtureOracle(centre=0.8, deviation=0.3)


def even_levels(schedule, steps):
    return Levels(*schedule(np.arange(steps, -1, -1) / steps))


def run_in_float64(sampler, levels, oracle, noisy_images, rng=None):
    """The walk, written out: what the compiled loop must do."""
    memory = [np.zeros_like(noisy_images)] * MEMORY
    for index in range(len(levels.signal_rates) - 1):
        for evaluation in sampler.step(index, levels):
            pred_noises, pred_images = oracle(
                noisy_images, evaluation.noise_rate, evaluation.signal_rate
            )
            noisy_images = evaluation.image * pred_images + evaluation.noise * pred_noises
            noisy_images = noisy_images + sum(
                weight * earlier for weight, earlier in zip(evaluation.remembered, memory)
            )
            if evaluation.fresh:
                noisy_images = noisy_images + evaluation.fresh * rng.normal(size=noisy_images.shape)
            memory = [pred_images if sampler.remembers == "images" else pred_noises, *memory[:-1]]
    return noisy_images


def run(sampler, oracle, levels, number=8, seed=3):
    indices = np.arange(number, dtype="int32")
    noise = random.normal(seed, 0, indices, SHAPE)
    planned = plan(sampler, levels, SCHEDULE.conditions)
    memory = ops.zeros((MEMORY, number, *SHAPE))
    table = ops.convert_to_tensor(planned.table)
    result, _, _ = walk(
        oracle,
        noise,
        memory,
        table,
        0,
        int(planned.ends[-1]),
        lambda step: random.normal(seed, step, indices, SHAPE),
    )
    return ops.convert_to_numpy(noise), ops.convert_to_numpy(result)


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def ends(schedule=SCHEDULE):
    levels = even_levels(schedule, 1)
    return list(zip(*levels))


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=repr)
def test_samplers_have_their_order_on_the_gaussian(sampler):
    """Over even steps in log-SNR, where all of them are small; those near pure noise are not on
    other schedules.
    """
    schedule = LinearLogSNRSchedule()
    noise = np.random.default_rng(0).normal(size=50)
    exact = GAUSSIAN.exact_ode(noise, *ends(schedule))
    errors = [
        np.abs(
            run_in_float64(sampler, even_levels(schedule, steps), GAUSSIAN, noise) - exact
        ).mean()
        for steps in STEPS
    ]
    # The highest order only shows once steps are small.
    assert slope(STEPS, errors) > 0.9 * min(sampler.order, 3), errors
    assert slope(STEPS[2:], errors[2:]) > 0.9 * sampler.order, errors


@pytest.mark.parametrize("sampler", first_quick(DETERMINISTIC), ids=repr)
def test_samplers_have_their_order_on_the_mixture(sampler):
    schedule = AngleSchedule()
    noise = np.random.default_rng(0).normal(size=200)
    fine = even_levels(LinearLogSNRSchedule(), 3000)
    exact = run_in_float64(UniPC(3), fine, MIXTURE, noise)
    np.testing.assert_allclose(
        exact, run_in_float64(AdamsBashforth(4), fine, MIXTURE, noise), atol=1e-9
    )
    errors = [
        np.abs(run_in_float64(sampler, even_levels(schedule, steps), MIXTURE, noise) - exact).mean()
        for steps in STEPS
    ]
    assert slope(STEPS, errors) > 0.85 * sampler.order, errors


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=repr)
@pytest.mark.parametrize(
    "schedule", [SCHEDULE, ZeroTerminalSNRSchedule()], ids=["angle", "zero_terminal"]
)
def test_the_compiled_loop_is_the_sampler_written_out(sampler, schedule):
    levels = levels_of(schedule, diffusion_times(12, "linear", schedule))
    noise, result = run(sampler, MIXTURE, levels)
    expected = run_in_float64(sampler, levels, MIXTURE, noise.astype("float64"))
    assert np.isfinite(expected).all()
    # From pure noise the weights of high orders are large, and float32 shows.
    np.testing.assert_allclose(result, expected, atol=2e-5 if schedule is SCHEDULE else 5e-4)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (DDIM(), (0.891073, 1.189533)),
        (DPMSolverMultistep(), (0.933026, 1.240460)),
        (UniPC(2), (0.929023, 1.240390)),
        (UniPC(3), (0.924618, 1.239630)),
        (Heun(), (0.930318, 1.253095)),
    ],
    ids=repr,
)
def test_walks_are_those_of_another_implementation(sampler, expected):
    """What the schedulers of diffusers 0.42.1 made of 1 and 2 with this oracle: linear betas, 20
    trailing steps, no clipping.
    """
    schedule = LinearBetaSchedule()
    levels = levels_of(schedule, diffusion_times(20, "trailing", schedule))
    result = run_in_float64(sampler, levels, MIXTURE, np.array([1.0, 2.0]))
    # Its schedule is float32, and Heun's walk passes through noise levels in the hundreds.
    np.testing.assert_allclose(result, expected, atol=2e-5 if isinstance(sampler, Heun) else 2e-6)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_samplers_make_as_many_evaluations_as_they_say(sampler, steps):
    levels = levels_of(SCHEDULE, diffusion_times(steps, "linear", SCHEDULE))
    planned = plan(sampler, levels, SCHEDULE.conditions)
    assert planned.ends[-1] <= sampler.evaluations(steps)
    if (
        steps == 7
    ):  # in large steps Heun's and Adams-Bashforth's corrections from pure noise are left out
        levels = levels_of(LinearLogSNRSchedule(0.1, 0.9), np.arange(7, -1, -1) / 7)
        assert plan(sampler, levels, SCHEDULE.conditions).ends[-1] == sampler.evaluations(steps)
    assert np.isfinite(planned.table).all()


def test_a_budget_of_evaluations_is_used_but_never_passed():
    for sampler in DETERMINISTIC:
        for budget in (4, 5, 10, 33):
            steps = sampler.steps_for(budget)
            assert sampler.evaluations(steps) <= budget < sampler.evaluations(steps + 1)
    with pytest.raises(ValueError, match=r"network_evaluations must be at least 1 for .*, got 0"):
        Heun().steps_for(0)


def test_the_first_order_methods_are_ddim():
    levels = levels_of(SCHEDULE, diffusion_times(9, "karras", SCHEDULE))
    noise = np.random.default_rng(0).normal(size=20)
    expected = run_in_float64(DDIM(), levels, MIXTURE, noise)
    np.testing.assert_allclose(
        run_in_float64(AdamsBashforth(1), levels, MIXTURE, noise), expected, rtol=1e-12
    )


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=repr)
@pytest.mark.parametrize("spacing", ["linear", "karras"])
@pytest.mark.parametrize(
    "schedule",
    [AngleSchedule(), LinearBetaSchedule(), CosineBetaSchedule(), ZeroTerminalSNRSchedule()],
    ids=repr,
)
def test_no_sampler_magnifies_the_errors_of_a_network(sampler, schedule, spacing):
    """Errors of 2 % in the noise, no two alike, near pure noise too where a step is worth a hundred
    others.
    """
    oracle = GaussianOracle(mean=0.3, deviation=0.5)
    rng = np.random.default_rng(0)

    def wrong(noisy_images, noise_rate, signal_rate):
        pred_noises, _ = oracle(noisy_images, noise_rate, max(signal_rate, 1e-9))
        pred_noises = pred_noises + 0.02 * rng.normal(size=noisy_images.shape)
        return pred_noises, (noisy_images - noise_rate * pred_noises) / max(signal_rate, 1e-9)

    for steps in (10, 20):
        levels = levels_of(schedule, diffusion_times(steps, spacing, schedule))
        if levels.signal_rates[0] == 0.0:  # where predicted noises say nothing of the image
            levels = Levels(levels.signal_rates[1:], levels.noise_rates[1:])
        noise = np.random.default_rng(1).normal(size=4000)
        result = run_in_float64(sampler, levels, wrong, noise)
        reference = run_in_float64(DDIM(), levels, wrong, noise)
        assert result.std() < 1.6 * max(reference.std(), 0.5)


def test_even_steps_in_the_ratio_have_the_classical_weights():
    """Where the steps are even both kinds of weights are the same, in the limit of small ones."""
    angles = np.arctan(0.5 - 1e-5 * np.arange(6))
    levels = Levels(np.cos(angles), np.sin(angles))
    even, exact = (
        AdamsBashforth(4, warm_up=False, even_steps=each).step(4, levels)[0]
        for each in (True, False)
    )
    step = np.cos(angles[5]) * (np.tan(angles[5]) - np.tan(angles[4]))
    np.testing.assert_allclose(np.array(even.remembered) / step, np.array([-59, 37, -9]) / 24)
    np.testing.assert_allclose(exact.remembered, even.remembered, rtol=1e-3)
    assert resolve("ipndm", Sampler, SAMPLERS).evaluations(3) == 3


def test_adams_bashforth_on_even_angles_has_the_classical_weights_in_the_limit():
    small = 0.5 + 1e-4 * np.arange(
        1, -4, -1
    )  # the end of the step, its start, and three nodes before
    end, *nodes = small
    weights = samplers.adams_bashforth.integral_weights(nodes, nodes[0], end)
    np.testing.assert_allclose(
        weights / (np.tan(end) - np.tan(nodes[0])),
        np.array([55, -59, 37, -9]) / 24,
        rtol=0,
        atol=2e-3,
    )


STOCHASTIC = [
    DDIM(0.5),
    pytest.param(DDPM(), marks=pytest.mark.slow),  # DDIM of eta 1
    pytest.param(DDPM(variance="large"), marks=pytest.mark.slow),
    pytest.param(DPMSolverMultistep(stochastic=True), marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=repr)
def test_stochastic_sampling_gives_back_the_moments_of_the_data(sampler):
    oracle = GaussianOracle(mean=0.5, deviation=0.6)
    _, result = run(sampler, oracle, even_levels(SCHEDULE, 200), number=4000)
    (signal, noise_rate) = ends()[1]
    expected = np.sqrt(signal**2 * 0.6**2 + noise_rate**2)
    assert abs(result.mean() - signal * 0.5) < 0.02
    assert abs(result.std() / expected - 1) < 0.015


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=repr)
def test_stochastic_sampling_finds_both_parts_of_a_mixture(sampler):
    levels = levels_of(SCHEDULE, diffusion_times(200, "log_snr", SCHEDULE))
    _, result = run(sampler, MixtureOracle(centre=1.0, deviation=0.05), levels, number=1000)
    assert abs((result > 0).mean() - 0.5) < 0.02
    # The last step returns predictions from noise at the schedule's end, 0.31, which tells the two
    # apart.
    assert abs(np.abs(result).mean() - 1.0) < 0.02


def test_a_langevin_step_follows_the_score_at_its_level():
    """In y = x / a: half a step size of the score of the data under noise, and the noise of it."""
    levels = even_levels(VarianceExplodingSchedule(0.1, 10.0), 4)
    oracle = GaussianOracle(mean=0.4, deviation=0.7)
    sampler, noisy_images = AnnealedLangevin(3, step_size=0.2), np.array([-1.0, 0.3, 2.0])
    stay, _, leave = sampler.step(2, levels)
    signal, next_signal = levels.signal_rates[2:4]
    ratio = levels.ratios[2]
    y, size = noisy_images / signal, 0.2 * ratio**2
    expected = y - 0.5 * size * (y - 0.4) / (0.7**2 + ratio**2)
    for evaluation, scale in ((stay, signal), (leave, next_signal)):
        pred_noises, pred_images = oracle(
            noisy_images, evaluation.noise_rate, evaluation.signal_rate
        )
        moved = evaluation.image * pred_images + evaluation.noise * pred_noises
        np.testing.assert_allclose(moved / scale, expected, rtol=1e-12)
        assert evaluation.fresh / scale == pytest.approx(np.sqrt(size), rel=1e-12)


def test_langevin_dynamics_forget_where_they_began():
    """One level, from far off: the moments of the data under its noise, but for the steps' error of
    about step_size / 4.
    """
    oracle, rng = GaussianOracle(mean=0.5, deviation=0.6), np.random.default_rng(0)
    levels = Levels(np.array([0.8, 1.0]), np.array([0.6, 0.0]))
    variances = []
    for steps in (5, 300):
        sampler = AnnealedLangevin(steps, step_size=0.05, denoise=False)
        result = run_in_float64(sampler, levels, oracle, 3.0 * rng.normal(size=40000), rng)
        variances.append(result.var() / (0.6**2 + (0.6 / 0.8) ** 2))
    assert variances[0] > 5.0
    assert abs(result.mean() - 0.5) < 0.02
    assert abs(variances[1] - 1.0) < 0.03


def test_annealed_langevin_gives_back_the_data():
    schedule, sampler = VarianceExplodingSchedule(0.05, 20.0), AnnealedLangevin(50)
    levels = levels_of(schedule, diffusion_times(40, sampler.spacing, schedule))
    rng = np.random.default_rng(0)
    noise = rng.normal(size=4000)
    gaussian = run_in_float64(sampler, levels, GaussianOracle(0.5, 0.6), noise, rng)
    assert abs(gaussian.mean() - 0.5) < 0.03
    assert abs(gaussian.std() / 0.6 - 1.0) < 0.08  # low levels have no time to forget
    mixture = run_in_float64(sampler, levels, MixtureOracle(1.0, 0.05), noise, rng)
    assert abs((mixture > 0).mean() - 0.5) < 0.03
    assert abs(np.abs(mixture).mean() - 1.0) < 0.01
    # The image predicted at a level of 0.05, of data that spread by 0.05.
    assert abs(np.abs(mixture).std() / (0.05 / np.sqrt(2.0)) - 1.0) < 0.06


def test_annealed_langevin_in_the_compiled_loop_is_that_written_out():
    levels = even_levels(VarianceExplodingSchedule(0.5, 5.0), 3)
    levels = Levels(*(np.append(rates, end) for rates, end in zip(levels, (1.0, 0.0))))
    noise, result = run(AnnealedLangevin(3), MIXTURE, levels)

    class SameNoises:
        step = 0

        def normal(self, size):
            self.step += 1
            drawn = random.normal(3, self.step, np.arange(8, dtype="int32"), SHAPE)
            return ops.convert_to_numpy(drawn)

    expected = run_in_float64(
        AnnealedLangevin(3), levels, MIXTURE, noise.astype("float64"), SameNoises()
    )
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_langevin_step_sizes_are_those_of_the_paper():
    """Song & Ermon 2020, table 3, of CIFAR-10: 232 levels from 50 to 0.01, 5 steps each, and step
    size 6.2e-6 for 0.01, without the half.
    """
    ratios = np.geomspace(50.0, 0.01, 232)
    signals = 1.0 / np.hypot(1.0, ratios)
    levels = Levels(np.append(signals, 1.0), np.append(signals * ratios, 0.0))
    sampler = AnnealedLangevin(5)
    assert sampler.size_at(100, levels) == pytest.approx(2 * 6.2e-6 / 0.01**2, abs=0.004)
    assert sampler.size_at(0, levels) == sampler.size_at(231, levels)
    assert len(plan(sampler, levels, SCHEDULE.conditions).ends) == 232
    assert plan(sampler, levels, SCHEDULE.conditions).ends[-1] == sampler.evaluations(232) == 1161
    assert sampler.steps_for(1165) == 232


def test_langevin_dynamics_begin_even_where_nothing_is_left_of_the_image():
    levels = levels_of(ZeroTerminalSNRSchedule(), np.array([1.0, 0.5, 0.1, 0.0]))
    table = plan(AnnealedLangevin(2), levels, SCHEDULE.conditions).table
    assert np.isfinite(table).all() and not table[0, 5] and table[1, 5] > 0.0


def test_large_variance_leaves_too_much_noise_in_few_steps_and_the_posterior_too_little():
    """Table 1's sigma-hat: where steps are few the marginals are no longer those of the data."""
    oracle = GaussianOracle(mean=0.0, deviation=1.0)
    deviations = {
        variance: run(DDPM(variance), oracle, even_levels(SCHEDULE, 5), number=4000)[1].std()
        for variance in ("posterior", "large")
    }
    # For data of unit variance the posterior's is that of the worst case, nothing known; the large
    # one is exact.
    assert deviations["posterior"] < 0.9
    assert abs(deviations["large"] - 1.0) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [DDIM(1.0), DPMSolverMultistep(stochastic=True)], ids=repr)
def test_pixels_stay_independent_under_noise(sampler):
    _, result = run(sampler, GaussianOracle(0.0, 1.0), even_levels(SCHEDULE, 100), number=4000)
    covariance = np.cov(result.reshape(4000, -1).T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=0.08)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC, AnnealedLangevin()], ids=repr)
def test_the_last_step_returns_the_predicted_image_without_noise(sampler):
    levels = levels_of(SCHEDULE, diffusion_times(5, "linear", SCHEDULE))
    (last,) = sampler.step(4, levels)[-1:]
    assert last.fresh == 0.0
    assert last.image == pytest.approx(1.0, abs=1e-12) and last.noise == pytest.approx(
        0.0, abs=1e-12
    )
    assert np.allclose(last.remembered, 0.0)


def test_eta_zero_is_the_same_to_the_last_bit():
    levels = even_levels(SCHEDULE, 20)
    np.testing.assert_array_equal(run(DDIM(), MIXTURE, levels)[1], run(DDIM(), MIXTURE, levels)[1])


def test_step_coefficients_are_those_of_equations_12_and_16():
    signal, noise_rate = 0.6, 0.8
    next_signal, next_noise = 0.8, 0.6
    sigma = 0.7 * (next_noise / noise_rate) * np.sqrt(1 - signal**2 / next_signal**2)
    levels = Levels(np.array([signal, next_signal]), np.array([noise_rate, next_noise]))
    (step,) = DDIM(eta=0.7).step(0, levels)
    assert step.image == next_signal
    assert step.fresh == pytest.approx(sigma, rel=1e-12)
    assert step.noise == pytest.approx(np.sqrt(next_noise**2 - sigma**2), rel=1e-12)
    (large,) = DDIM(eta=1.0, variance="large").step(0, levels)
    (ddpm,) = DDPM().step(0, levels)
    assert large.fresh == pytest.approx(np.sqrt(1 - signal**2 / next_signal**2), rel=1e-12)
    assert (large.image, large.noise) == (ddpm.image, ddpm.noise)


def test_eta_one_is_the_posterior_of_ddpm():
    """Its mean, written as a sum of x_t and x_0, is equation 7 of Ho et al. (2020)."""
    (a, b), (a_next, b_next) = (0.6, 0.8), (0.9, np.sqrt(1 - 0.81))
    (step,) = DDPM().step(0, Levels(np.array([a, a_next]), np.array([b, b_next])))
    alpha = a**2 / a_next**2
    weight_of_image = a_next * (1 - alpha) / (1 - a**2)
    weight_of_noisy = np.sqrt(alpha) * (1 - a_next**2) / (1 - a**2)
    # x_t = a x_0 + b eps, so the coefficient of eps is b times that of x_t.
    assert step.noise == pytest.approx(weight_of_noisy * b, rel=1e-12)
    assert step.image == pytest.approx(weight_of_image + weight_of_noisy * a, rel=1e-12)
    assert step.fresh**2 == pytest.approx((1 - a_next**2) / (1 - a**2) * (1 - alpha), rel=1e-12)


def test_tables_of_different_lengths_have_one_shape():
    def table(steps):
        return plan(DDIM(), even_levels(SCHEDULE, steps), SCHEDULE.conditions).table

    assert table(1).shape == table(4096).shape
    assert table(5000).shape[0] >= 5000


def test_the_table_tells_the_network_the_noise_level():
    levels = Levels(*CosineBetaSchedule()(np.array([1.0, 0.5, 0.001])))
    planned = plan(DDIM(), levels, CosineBetaSchedule().conditions)
    np.testing.assert_array_equal(planned.table[:2, 0], [1000.0, 500.0])
    assert not planned.table[2:].any()
    assert table_of([], SCHEDULE.conditions).shape == planned.table.shape


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan"), "0.5", None, [0.5, 0.1]])
def test_eta_outside_the_unit_interval_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got"):
        DDIM(eta)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(variance="huge"), 'variance must be "posterior" or "large", got \'huge\''),
        (lambda: AdamsBashforth(5), "order must be 1, 2, 3 or 4, got 5"),
        (lambda: AdamsBashforth(even_steps=True), "even_steps takes the noises there are"),
        (lambda: AnnealedLangevin(0), "steps_per_level must be an integer, at least 1: got 0"),
        (lambda: AnnealedLangevin(step_size=4.0), r"step_size must lie in \(0, 4\).*, got 4.0"),
        (lambda: UniPC(0), "predictor_order must be 1, 2 or 3, got 0"),
        (
            lambda: resolve("euler", Sampler, SAMPLERS),
            r"unknown sampler 'euler': expected one of \['adams_bashforth'",
        ),
    ],
)
def test_bad_samplers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_sampler_config_round_trip(name):
    sampler = resolve(name, Sampler, SAMPLERS)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(sampler))
    assert type(again) is type(sampler) and again.get_config() == sampler.get_config()


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("step", "start", "end"),
    [(forward.posterior, 0.8, 0.3), (forward.forward_step, 0.3, 0.8)],
    ids=["back", "forward"],
)
def test_steps_lead_from_marginal_to_marginal(step, start, end, eta):
    """q(x_end | x_0) from x_start ~ q(x_start | x_0) and the step between them, in closed form."""
    images, times = np.array([0.7]), (max(start, end), min(start, end))
    mean, deviation = forward.marginal(SCHEDULE, images, start)
    at_mean, step_deviation = step(SCHEDULE, mean, images, *times, eta)
    above, _ = step(SCHEDULE, mean + deviation, images, *times, eta)
    expected_mean, expected_deviation = forward.marginal(SCHEDULE, images, end)
    np.testing.assert_allclose(at_mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(
        (above - at_mean) ** 2 + step_deviation**2, expected_deviation**2, rtol=1e-12
    )


def test_the_forward_process_is_markovian_at_eta_one_alone():
    noisy_images = np.array([0.2])
    means = {
        eta: [
            forward.forward_step(SCHEDULE, noisy_images, x, 0.8, 0.3, eta)[0] for x in (-1.0, 1.0)
        ]
        for eta in (0.0, 1.0)
    }
    np.testing.assert_allclose(*means[1.0], rtol=1e-12)
    assert abs(means[0.0][0] - means[0.0][1]) > 0.1


def test_the_sampler_is_the_posterior_with_the_predicted_image():
    noisy_images, images = np.array([0.3]), np.array([-0.4])
    levels = Levels(*SCHEDULE(np.array([0.7, 0.2])))
    (step,) = DDIM(0.6).step(0, levels)
    noises = (noisy_images - levels.signal_rates[0] * images) / levels.noise_rates[0]
    mean, deviation = forward.posterior(SCHEDULE, noisy_images, images, 0.7, 0.2, eta=0.6)
    np.testing.assert_allclose(step.image * images + step.noise * noises, mean, rtol=1e-12)
    assert step.fresh == pytest.approx(deviation, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.3, 0.8, 0.5), "s must not be above t, got s = 0.8 and t = 0.3"),
        ((0.8, 0.3, 2.0), "eta must lie in"),
        ((500, 499, 0.5), r"diffusion times must lie in \[0, 1\]: got 500"),
    ],
)
def test_impossible_posteriors_are_refused(arguments, message):
    for function in (forward.posterior, forward.forward_step):
        with pytest.raises(ValueError, match=message):
            function(SCHEDULE, np.zeros(1), np.zeros(1), *arguments)


def test_the_forward_process_takes_training_times_as_integers():
    schedule, x = LinearBetaSchedule(), np.ones(1)
    by_number, by_time = (
        forward.posterior(schedule, 0 * x, x, *times) for times in ((500, 499), (0.5, 0.499))
    )
    assert by_number == by_time and by_number[1] > 0
    with pytest.raises(ValueError, match="or be integers from 0 to 1000: got 1001"):
        forward.marginal(schedule, x, 1001)
    with pytest.raises(ValueError, match="there is no noise at t"):
        forward.posterior(schedule, x, x, 0, 0)
    with pytest.raises(ValueError, match="there is no noise at s: use marginal"):
        forward.forward_step(schedule, x, x, 1, 0)
