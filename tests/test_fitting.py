"""Samplers that are fitted to a model."""

import json

import keras
import numpy as np
import pytest
from conftest import (
    MixtureOracle,
    make_small_model,
    make_trained_model,
    random_images,
    slow_on_jax,
)
from keras import ops

from ddim_keras import (
    ClassifierFreeGuidance,
    DiffusionModel,
    SamplingDefaults,
    load_model,
    samplers,
)
from ddim_keras.samplers import DDIM, AdamsBashforth, FittedSampler, UniPC, plan, walk_written_out
from ddim_keras.sampling.distance import distance_of
from ddim_keras.sampling.fitting import in_images
from ddim_keras.sampling.fitting_spacing import cheapest, costs_along
from ddim_keras.schedules import AngleSchedule, LinearBetaSchedule, ZeroTerminalSNRSchedule
from ddim_keras.spacings import FittedSpacing, GivenSpacing, diffusion_times, levels_of
from ddim_keras.support import backend

SCHEDULE = AngleSchedule()
TWO = FittedSampler([1.5, 0.8], [[0.7, 0.7], [0.05, 1.2, -0.25]])
QUICK = {"num_images": 64, "batch_size": 8, "teacher_steps": 12, "epochs": 2, "verbose": 0}


@keras.saving.register_keras_serializable("ddim_keras_tests")
class MixtureNoise(keras.layers.Layer):
    """The perfect denoiser of pixels that are near -0.8 or 0.8, as a layer."""

    def call(self, inputs):
        noisy_images, variances = inputs
        oracle = MixtureOracle(centre=0.8, deviation=0.3)
        return oracle(noisy_images, ops.sqrt(variances), ops.sqrt(1.0 - variances))[0]


@pytest.fixture
def mixture_model():
    noisy_images, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    network = keras.Model([noisy_images, variances], MixtureNoise()([noisy_images, variances]))
    return make_small_model(network=network)


def distance(model, sampler, **options):
    """From where 100 steps lead, of noises that no fit has seen."""
    made, exact = (
        model.generate(32, **how, seed=1234, **options)
        for how in ({"sampler": sampler}, {"diffusion_steps": 100})
    )
    return np.sqrt(np.square(made - exact).mean())


@pytest.mark.slow
def test_a_fit_comes_nearer_to_the_long_walk_than_what_it_starts_from(mixture_model):
    fitted = samplers.fit(mixture_model, network_evaluations=3, **{**QUICK, "epochs": 6})
    best = min(
        mixture_model_distance
        for mixture_model_distance in (
            distance_of_steps(mixture_model, sampler, spacing)
            for sampler, spacing in ((UniPC(3), "karras"), (DDIM(), "linear"), (DDIM(), "karras"))
        )
    )
    assert distance(mixture_model, fitted) < 0.8 * best
    assert fitted.errors["fitted"] < 0.7 * fitted.errors["before"]


def distance_of_steps(model, sampler, spacing):
    made = model.generate(32, 3, sampler=sampler, spacing=spacing, seed=1234)
    return np.sqrt(np.square(made - model.generate(32, 100, seed=1234)).mean())


@slow_on_jax
def test_a_fitted_sampler_is_chosen_for_its_number_of_evaluations(mixture_model):
    def three(**options):
        return mixture_model.generate(2, seed=5, **options)

    before, four = three(diffusion_steps=3), three(diffusion_steps=4)
    fitted = mixture_model.fit_sampler(3, **QUICK)
    assert mixture_model.samplers == [fitted]
    expected = three(sampler=fitted)
    assert np.abs(expected - before).max() > 1e-3
    for options in (
        {"diffusion_steps": 3},
        {"network_evaluations": 3},
        {"diffusion_steps": 3, "sampler": fitted},
        {"network_evaluations": 3, "sampler": fitted},
    ):
        np.testing.assert_array_equal(three(**options), expected)
    # What is said goes before what was fitted, and so does another number.
    np.testing.assert_array_equal(three(diffusion_steps=4), four)
    unipc = three(diffusion_steps=3, sampler=UniPC(), spacing="karras")
    np.testing.assert_array_equal(three(diffusion_steps=3, spacing="karras"), unipc)
    mixture_model.samplers = []
    np.testing.assert_array_equal(three(diffusion_steps=3), before)


def test_a_fit_that_is_not_kept_leaves_the_model_as_it_was(mixture_model):
    mixture_model.fit_sampler(1, keep=False, **{**QUICK, "epochs": 1})
    assert mixture_model.samplers == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_sampler_and_another_number_takes_no_ones_place(mixture_model):
    first, second = (mixture_model.fit_sampler(2, **QUICK) for _ in range(2))
    assert first.get_config() == second.get_config()
    mixture_model.fit_sampler(1, **{**QUICK, "epochs": 1})
    assert [each.diffusion_steps for each in mixture_model.samplers] == [1, 2]


def test_no_fit_is_worse_than_its_start(mixture_model):
    wild = mixture_model.fit_sampler(2, learning_rate=5.0, **QUICK)
    assert wild.errors["fitted"] <= 1.001 * wild.errors["before"]


@slow_on_jax
def test_fitted_samplers_are_saved_with_the_model(tmp_path):
    model = make_trained_model(parameterization="velocity")
    model.samplers = [TWO]
    expected = model.generate(3, 2, seed=0)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset", half=False)
    for loaded in (
        load_model(tmp_path / "model.keras"),
        DiffusionModel.from_preset(tmp_path / "preset"),
    ):
        assert [each.get_config() for each in loaded.samplers] == [TWO.get_config()]
        np.testing.assert_array_equal(loaded.generate(3, 2, seed=0), expected)


def test_a_fitted_sampler_survives_its_configuration():
    text = json.dumps(keras.saving.serialize_keras_object(TWO))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert again.get_config() == TWO.get_config()
    defaults = SamplingDefaults(samplers=[TWO])
    again = SamplingDefaults.from_config(json.loads(json.dumps(defaults.get_config())))
    assert again.fitted(2, []).get_config() == TWO.get_config()
    assert "samplers" not in SamplingDefaults().get_config()


def test_fitted_samplers_use_the_loop_that_is_compiled(trained_model):
    trained_model.generate(2, 5, seed=0)
    compiled = trained_model.engine._compiled
    number = len(compiled)
    trained_model.generate(2, sampler=TWO, seed=0)
    assert len(compiled) == number


def test_images_are_compared_by_what_the_network_sees_in_them(trained_model):
    """It is nearer to the same image than to another, and blind to what no pixel can show."""
    images = random_images(16).astype("float32") * 4.0 - 2.0
    noises = np.random.default_rng(1).normal(size=images.shape).astype("float32")
    distance = distance_of(trained_model.engine)

    def between(first, second):
        parts = (ops.convert_to_tensor(part) for part in (first, second, noises))
        return float(distance(*parts))

    assert between(images, images) == 0.0
    assert 0.0 < between(images + 0.02 * noises, images) < 0.1 * between(images[::-1], images)
    assert between(np.where(images > 1.9, 9.0, images).astype("float32"), images) < 1e-3


@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [(DDIM(), "linear"), (UniPC(2), "karras"), (AdamsBashforth(2), "linear")],
)
def test_a_walk_can_be_written_with_images_alone(sampler, spacing):
    """What remembers noises too: the fit may start from it."""
    levels = levels_of(SCHEDULE, diffusion_times(4, spacing, SCHEDULE))
    made = [part for index in range(4) for part in sampler.step(index, levels)]
    rows = in_images(made, sampler.remembers)
    oracle = MixtureOracle(centre=0.8, deviation=0.3)
    noise = np.random.default_rng(0).normal(size=20)
    ends = []
    for remembers, weights in (
        (sampler.remembers, [[part.noise, part.image, *part.remembered] for part in made]),
        ("images", rows),
    ):
        noisy, earlier = noise, []
        for part, row in zip(made, weights):
            pred_noises, pred_images = oracle(noisy, part.noise_rate, part.signal_rate)
            noisy = row[0] * pred_noises + row[1] * pred_images
            noisy = noisy + sum(weight * each for weight, each in zip(row[2:], earlier))
            earlier = [pred_images if remembers == "images" else pred_noises, *earlier]
        ends.append(noisy)
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-9)


def test_the_gradient_through_a_walk_is_that_of_differences():
    """By each number of the table that is not the network's condition."""
    levels = levels_of(SCHEDULE, diffusion_times(2, "linear", SCHEDULE))
    table = plan(UniPC(), levels, SCHEDULE.conditions).table[:2].astype("float64")
    noise = np.random.default_rng(0).normal(size=(4, 2, 2, 1)).astype("float32")
    oracle = MixtureOracle(centre=0.8, deviation=0.3)

    def loss(table):
        memory = ops.zeros((samplers.MEMORY, *noise.shape))
        ended = walk_written_out(oracle, ops.convert_to_tensor(noise), memory, table, 2)
        return ops.mean(ops.square(ended - 0.3))

    gradient = backend.compile_gradient(loss, [], jit_compile=True)
    found = ops.convert_to_numpy(gradient([], ops.convert_to_tensor(table.astype("float32"))))
    for place in [(0, 1), (0, 3), (1, 2), (1, 4), (1, 6)]:
        ends = []
        for sign in (1.0, -1.0):
            moved = table.copy()
            moved[place] += sign * 1e-2
            ends.append(float(loss(ops.convert_to_tensor(moved.astype("float32")))))
        assert found[place] == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.05, abs=2e-3)


@pytest.mark.slow
def test_a_sampler_of_guided_walks_is_chosen_where_they_are_guided():
    model = make_small_model(num_classes=3, parameterization="velocity")
    model.compile(optimizer=keras.optimizers.AdamW(1e-2))
    model.fit(random_images(), np.arange(24) % 3, batch_size=8, epochs=2, verbose=0)
    fitted = model.fit_sampler(4, guidance=2.0, **{**QUICK, "epochs": 1})
    assert fitted.diffusion_steps == 2  # the network is called twice in each

    def made(**options):
        return model.generate(2, labels=[0, 1], seed=0, **options)

    expected = made(sampler=fitted, guidance=2.0)
    for options in ({"network_evaluations": 4}, {"diffusion_steps": 2}):
        np.testing.assert_array_equal(made(guidance=2.0, **options), expected)
        same = made(guidance=ClassifierFreeGuidance(2.0), **options)
        np.testing.assert_array_equal(same, expected)
    model.sampling_defaults = SamplingDefaults(guidance=2.0)
    own = model.fit_sampler(4, **{**QUICK, "epochs": 1})  # guided as the model is by itself
    assert own.guidance == fitted.guidance and model.samplers == [own]
    by_default = made(network_evaluations=4)
    np.testing.assert_array_equal(by_default, made(sampler=own, guidance=2.0))
    assert np.abs(by_default - made(sampler=own, guidance=1.0)).max() > 1e-4
    with pytest.raises(
        ValueError, match="must divide by 2, .* or the model's own, got 3: guidance=1"
    ):
        model.fit_sampler(3)
    model.sampling_defaults = SamplingDefaults(guidance=30.0)
    spacing = {"num_images": 4, "fine_steps": 30, "verbose": 0}
    of_itself = model.fit_spacing(3, **spacing).get_config()
    assert of_itself == model.fit_spacing(3, guidance=30.0, **spacing).get_config()
    assert of_itself != model.fit_spacing(3, guidance=1.0, **spacing).get_config()
    model.sampling_defaults = SamplingDefaults(samplers=[fitted])
    usual = {"sampler": "ddim", "spacing": "linear", "diffusion_steps": 2}
    for guidance in (3.0, None):
        assert np.abs(made(guidance=guidance, diffusion_steps=2) - expected).max() > 0
        plain = made(guidance=guidance, **usual)
        np.testing.assert_array_equal(made(guidance=guidance, diffusion_steps=2), plain)


@pytest.mark.slow
def test_on_a_list_of_times_levels_stay_and_weights_are_fitted():
    model = make_trained_model(
        schedule=LinearBetaSchedule(50, 1e-3, 0.3), parameterization="velocity"
    )
    fitted = model.fit_sampler(2, **QUICK)
    times = model.schedule.times_at(-2.0 * np.log(np.tan(fitted.angles)))
    np.testing.assert_allclose(50 * times, np.rint(50 * times), atol=1e-3)
    assert fitted.errors["fitted"] < fitted.errors["before"]
    assert model.generate(2, 2, seed=0).shape == (2, 8, 8, 1)


def test_the_cheapest_way_is_found_among_all():
    """Against all ways there are."""
    import itertools

    costs = np.full((7, 7), np.inf)
    draws = np.random.default_rng(0)
    for first, last in itertools.combinations(range(7), 2):
        costs[first, last] = draws.uniform()
    for steps, way in enumerate(cheapest(costs, 4), 1):
        every = [(0, *between, 6) for between in itertools.combinations(range(1, 6), steps - 1)]
        least = min(every, key=lambda each: sum(costs[pair] for pair in zip(each, each[1:])))
        assert tuple(way) == least


def test_costs_are_those_of_ddims_steps():
    """From where the fine walk is: nothing to its next level, and the known error beyond."""
    levels = levels_of(SCHEDULE, diffusion_times(6, "linear", SCHEDULE))
    oracle = MixtureOracle(centre=0.8, deviation=0.3)
    states = [np.random.default_rng(0).normal(size=(3, 4))]
    for index in range(6):
        (step,) = DDIM().step(index, levels)
        pred_noises, pred_images = oracle(states[-1], step.noise_rate, step.signal_rate)
        states.append(step.image * pred_images + step.noise * pred_noises)
    costs = costs_along(states, levels)
    np.testing.assert_allclose(np.diag(costs, 1), 0.0, atol=1e-12)
    pred_noises, pred_images = oracle(states[1], levels.noise_rates[1], levels.signal_rates[1])
    led = levels.signal_rates[4] * pred_images + levels.noise_rates[4] * pred_noises
    assert costs[1, 4] == pytest.approx(np.sqrt(np.square(led - states[4]).mean()))


def test_a_fitted_spacing_leads_nearer_to_the_long_walk(mixture_model):
    spacing = mixture_model.fit_spacing(4, num_images=8, fine_steps=30, verbose=0)
    assert sorted(spacing.walks) == [1, 2, 3, 4]
    exact = mixture_model.generate(32, 100, seed=7)

    def error(**how):
        made = mixture_model.generate(32, 4, sampler="ddim", seed=7, **how)
        return np.sqrt(np.square(made - exact).mean())

    assert error(spacing=spacing) < 0.9 * min(error(), error(spacing="karras"))
    again = FittedSpacing.from_config(json.loads(json.dumps(spacing.get_config())))
    assert error(spacing=again) == error(spacing=spacing)
    with pytest.raises(ValueError, match=r"was fitted for \[1, 2, 3, 4\] steps, got 5"):
        mixture_model.generate(1, 5, spacing=spacing)


def test_levels_that_are_given_are_found_in_any_schedule():
    angles = [1.5, 1.0, 0.4]
    for schedule in (SCHEDULE, LinearBetaSchedule()):
        levels = levels_of(schedule, diffusion_times(3, GivenSpacing(angles), schedule))
        found = np.arctan2(levels.noise_rates, levels.signal_rates)
        np.testing.assert_allclose(found, [*angles, 0.0], atol=2e-3)
    assert GivenSpacing([np.pi / 2, 1.0])(2, ZeroTerminalSNRSchedule())[0] == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FittedSampler([], []), "angles must be a list of at least one number"),
        (lambda: FittedSampler([0.3, 0.9], [[1, 1]] * 2), "angles must fall and lie between 0"),
        (lambda: FittedSampler([2.0], [[1, 1]]), "angles must fall and lie between 0 and pi / 2"),
        (lambda: FittedSampler([1.0], [[1, 1, 1]]), r"rows of \[2\] numbers for 1 angles"),
        (lambda: FittedSampler([1.0], [[1, np.nan]]), "weights must be finite"),
        (lambda: TWO.steps_for(3), r"FittedSampler\(2 steps\) takes 2 network evaluations, got 3"),
        (
            lambda: TWO.step(0, levels_of(SCHEDULE, np.array([1.0, 0.5, 0.0]))),
            "walks over its own levels from noise to image, in 2 steps",
        ),
        (lambda: GivenSpacing([1.0])(2, SCHEDULE), "for a walk of 1 steps, got 2"),
        (lambda: GivenSpacing([1.0])(1, SCHEDULE, 0.5), "this one starts between, at time 0.5"),
    ],
)
def test_bad_tables_and_walks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network_evaluations": 0}, "network_evaluations must be an integer, at least 1: got 0"),
        ({"network_evaluations": 2.5}, "network_evaluations must be an integer"),
        ({"network_evaluations": 21}, "network_evaluations must be at most 20, got 21"),
        (
            {"network_evaluations": 3, "teacher_steps": 3},
            "teacher_steps must be an integer, at lea",
        ),
        ({"network_evaluations": 3, "num_images": 7}, "num_images must be an integer, at least 8"),
        ({"network_evaluations": 3, "labels": 1}, "the model has no labels"),
        ({"network_evaluations": 3, "learning_rate": -0.1}, "learning_rate must be positive, got"),
        ({"network_evaluations": 3, "patience": -1}, "patience must be an integer, at least 1"),
        ({"network_evaluations": 3, "epochs": -1}, "epochs must be an integer, at least 0"),
    ],
)
def test_bad_fits_are_refused(trained_model, options, message):
    with pytest.raises(ValueError, match=message):
        trained_model.fit_sampler(**options)


@pytest.mark.parametrize(
    ("samplers", "message"),
    [
        (TWO, r"samplers must be a list of FittedSampler objects, .* got FittedSampler\(2 steps\)"),
        (["unipc"], "unknown fitted sampler 'unipc': expected a FittedSampler object"),
        ([3], "expected a FittedSampler object, got 3 of type int"),
    ],
)
def test_what_is_no_list_of_fitted_samplers_is_refused(trained_model, samplers, message):
    with pytest.raises(ValueError, match=message):
        trained_model.samplers = samplers
    assert trained_model.samplers == []


def test_guidance_that_no_file_holds_is_refused(trained_model):
    from ddim_keras import Autoguidance, GuidanceFunction

    for guidance in (
        Autoguidance(trained_model, 2.0),
        GuidanceFunction(lambda x, image, *_: image),
    ):
        with pytest.raises(ValueError, match="a sampler cannot be fitted with .*, which no file"):
            trained_model.fit_sampler(2, guidance=guidance)


def test_a_fitted_sampler_is_refused_where_it_cannot_walk(trained_model):
    with pytest.raises(ValueError, match="for a walk of 2 steps, got 7"):
        trained_model.generate(1, 7, sampler=TWO)
    with pytest.raises(ValueError, match="over its own levels"):
        trained_model.generate(1, 2, sampler=TWO, spacing="linear")
    with pytest.raises(ValueError, match="cannot run backwards"):
        trained_model.encode(np.zeros((1, 8, 8, 1)), 2, sampler=TWO)
    with pytest.raises(ValueError, match="starts between"):
        trained_model.variations(np.zeros((8, 8, 1)), 0.5, 1, diffusion_steps=2, sampler=TWO)
