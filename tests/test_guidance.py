"""Guidance against closed forms: two Gaussians as classes, a wider one as a weaker model."""

import contextlib

import keras
import numpy as np
import pytest
from conftest import GaussianOracle, first_quick, make_small_model
from keras import ops

import ddim_keras
from ddim_keras import random
from ddim_keras.diffusion.parameterizations import PARAMETERIZATIONS
from ddim_keras.diffusion.schedules import SCHEDULES
from ddim_keras.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    GuidanceFunction,
    count_evaluations,
    guidances,
)
from ddim_keras.runs import exporting
from ddim_keras.samplers import MEMORY, SAMPLERS, Conditions
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.sampling.generate import plan_walk

MEANS, DEVIATION = (-0.5, 0.4), 0.3
WEIGHT, SEED, NUMBER = 2.5, 3, 6


@keras.saving.register_keras_serializable("ddim_keras_tests")
class TwoClasses(keras.layers.Layer):
    """[noisy images, noise variances or times, labels] -> what a parameterization predicts, for
    classes that are Gaussians of one deviation; without a label, a Gaussian around 0.
    """

    def __init__(self, parameterization, schedule, deviation=DEVIATION, **kwargs):
        super().__init__(**kwargs)
        self.names = {"parameterization": parameterization, "schedule": schedule}
        self.parameterization = PARAMETERIZATIONS[parameterization]()
        self.schedule, self.deviation = SCHEDULES[schedule](), deviation
        self.traces = 0

    def get_config(self):
        return {**super().get_config(), **self.names, "deviation": self.deviation}

    def call(self, inputs):
        self.traces += 1
        noisy_images, levels, labels = inputs
        if self.schedule.num_times is None:
            rates = ops.sqrt(1.0 - levels), ops.sqrt(levels)
        else:
            rates = self.schedule(levels / self.schedule.num_times)
        means = ops.take(ops.convert_to_tensor([*MEANS, 0.0]), labels, axis=0)
        means = ops.reshape(means, (-1, 1, 1, 1))
        noises, images = GaussianOracle(means, self.deviation)(noisy_images, rates[1], rates[0])
        return self.parameterization.target(images, noises, *rates)


def make_two_classes(parameterization="velocity", schedule="angle", deviation=DEVIATION, **changes):
    inputs = [
        keras.Input((8, 8, 1)),
        keras.Input((1, 1, 1)),
        keras.Input((), dtype="int32", name="labels"),
    ]
    network = keras.Model(inputs, TwoClasses(parameterization, schedule, deviation)(inputs))
    return make_small_model(
        network=network,
        num_classes=2,
        parameterization=parameterization,
        schedule=schedule,
        **changes,
    )


def walk_in_numpy(model, oracle, **sampling):
    """Take the same walk in float64, with a denoiser in closed form."""
    _, planned, *_ = plan_walk(model.engine, **sampling)
    indices = np.arange(NUMBER, dtype="int32")

    def draw(number):
        return np.asarray(random.normal(SEED, number, indices, (8, 8, 1)), "float64")

    images, memory = draw(0), [0.0] * MEMORY
    for number, row in enumerate(planned.table[: planned.ends[-1]].astype("float64"), 1):
        _, noise_rate, signal_rate, image, noise, fresh, *others = row
        pred_noises, pred_images = oracle(images, noise_rate, signal_rate)
        images = image * pred_images + noise * pred_noises
        images = images + sum(weight * part for weight, part in zip(others, memory))
        if fresh > 0.0:
            images = images + fresh * draw(number)
        keep_image, keep_noise = others[MEMORY:]
        memory = [keep_image * pred_images + keep_noise * pred_noises, *memory[:-1]]
    return np.clip(images, 0.0, 1.0)


def check_all_samplers(model):
    guided = GaussianOracle(WEIGHT * MEANS[1], DEVIATION)
    for name in SAMPLERS:
        sampling = {"diffusion_steps": 8, "sampler": name}
        images = model.generate(NUMBER, seed=SEED, labels=1, guidance=WEIGHT, **sampling)
        expected = walk_in_numpy(model, guided, **sampling)
        np.testing.assert_allclose(images, expected, atol=2e-3, err_msg=name)
        assert images.std() > 0.01, "clipped away"


@pytest.mark.parametrize("parameterization", first_quick(PARAMETERIZATIONS))
def test_the_guided_walk_is_that_of_the_gaussian_further_out(parameterization):
    check_all_samplers(make_two_classes(parameterization))


def test_a_models_own_guidance_acts_where_there_are_labels_and_no_other(tmp_path):
    model = make_two_classes()
    told = {"labels": [1, 0, None], "seed": SEED}
    plain, guided = (model.generate(3, 4, **told, guidance=weight) for weight in (1, WEIGHT))
    unlabelled = model.generate(3, 4, seed=SEED)
    model.sampling_defaults = SamplingDefaults(guidance=WEIGHT)
    model.save(tmp_path / "model.keras")
    for own in (model, ddim_keras.load_model(tmp_path / "model.keras")):
        assert own.sampling_defaults.guidance == WEIGHT
        np.testing.assert_array_equal(own.generate(3, 4, **told), guided)
        np.testing.assert_array_equal(own.generate(3, 4, **told, guidance=1), plain)
        np.testing.assert_array_equal(own.generate(3, 4, seed=SEED), unlabelled)
    assert abs(guided - plain)[:2].max() > 0.1
    changed = {"image": guided[0], "num_images": 1, "diffusion_steps": 4, "labels": 1, "seed": SEED}
    np.testing.assert_array_equal(
        model.variations(**changed), model.variations(**changed, guidance=WEIGHT)
    )
    described = [tmp_path / "own" / "metadata.json", tmp_path / "given" / "metadata.json"]
    for path, chosen in zip(described, ({}, {"guidance": WEIGHT})):
        exporting.export_images(model, path.parent, 2, labels=1, diffusion_steps=4, **chosen)
    assert described[0].read_text() == described[1].read_text()


@pytest.mark.parametrize("exact", [False, "algebra"])
def test_a_models_own_guidance_leaves_encoding_and_decoding_to_each_other(exact):
    model = make_two_classes()
    told = {"labels": [1, 0], "exact": exact}
    images = model.generate(2, 4, labels=[1, 0], seed=SEED)
    plain = model.reconstruct(images, 4, **told)
    between = model.interpolate(images[0], images[1], 3, 4, from_images=True, labels=1)
    unlabelled = model.decode(images, 4)
    model.sampling_defaults = SamplingDefaults(guidance=WEIGHT)
    np.testing.assert_array_equal(model.reconstruct(images, 4, **told), plain)
    again = model.interpolate(images[0], images[1], 3, 4, from_images=True, labels=1)
    np.testing.assert_array_equal(again, between)
    np.testing.assert_array_equal(model.decode(images, 4), unlabelled)


@pytest.mark.parametrize("weight", ["strong", float("nan"), ClassifierFreeGuidance(2.0), [2.0]])
def test_a_models_own_guidance_is_a_weight(weight):
    with pytest.raises(ValueError, match="None or a finite weight, such as 2.0"):
        SamplingDefaults(guidance=weight)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, "needs a model with labels"), ({"num_classes": 2, "label_dropout": 0.0}, "label_drop")],
)
def test_a_model_that_cannot_be_guided_has_no_guidance_of_its_own(changes, told):
    with pytest.raises(ValueError, match=told):
        make_small_model(sampling_defaults=SamplingDefaults(guidance=2.0), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "angle"])
def test_guidance_follows_every_schedule(schedule):
    check_all_samplers(make_two_classes(schedule=schedule))


@pytest.fixture(scope="module")
def two_classes():
    return make_two_classes()


def test_weight_one_is_no_guidance(two_classes):
    plain = two_classes.generate(NUMBER, 5, seed=SEED, labels=0)
    for guidance in (None, 1, 1.0, ClassifierFreeGuidance(1.0)):
        found = two_classes.generate(NUMBER, 5, seed=SEED, labels=0, guidance=guidance)
        np.testing.assert_array_equal(found, plain)


def test_weight_zero_forgets_the_label(two_classes):
    forgot = two_classes.generate(NUMBER, 5, seed=SEED, labels=0, guidance=0.0)
    np.testing.assert_allclose(forgot, two_classes.generate(NUMBER, 5, seed=SEED), atol=1e-5)


def test_nothing_compiles_anew_for_another_weight_label_or_interval(two_classes):
    layer = two_classes.ema_network.layers[-1]
    two_classes.generate(4, 5, labels=0, guidance=2.0)
    traces = layer.traces
    two_classes.generate(4, 7, labels=[1, 0, None, 1], guidance=3.0, seed=5)
    two_classes.generate(4, 5, labels=1, guidance=ClassifierFreeGuidance(4.0, interval=(0.2, 0.8)))
    assert layer.traces == traces


def test_guidance_acts_in_its_interval_alone(two_classes):
    plain = two_classes.generate(NUMBER, 6, seed=SEED, labels=1)
    nowhere = ClassifierFreeGuidance(5.0, interval=(0.0, 0.001))
    found = two_classes.generate(NUMBER, 6, seed=SEED, labels=1, guidance=nowhere)
    np.testing.assert_allclose(found, plain, atol=1e-6)
    interval = (0.5, 0.9)

    def oracle(noisy_images, noise_rate, signal_rate):
        weight = WEIGHT if interval[0] <= noise_rate <= interval[1] else 1.0
        return GaussianOracle(weight * MEANS[1], DEVIATION)(noisy_images, noise_rate, signal_rate)

    within = ClassifierFreeGuidance(WEIGHT, interval)
    sampling = {"diffusion_steps": 8, "sampler": "ddim"}
    found = two_classes.generate(NUMBER, seed=SEED, labels=1, guidance=within, **sampling)
    expected = walk_in_numpy(two_classes, oracle, **sampling)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def running_branches():
    """Within, `ops.cond` runs one branch, as in a compiled walk, and not both to trace them."""
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.disable_jit()


@pytest.mark.parametrize("noise_rate, expected", [(0.5, 2), (0.95, 1)])
def test_outside_the_interval_nothing_is_evaluated_twice(two_classes, noise_rate, expected):
    seen = []

    def denoise(noisy_images, noise_rates, signal_rates, conditions):
        seen.append(len(noisy_images))
        return noisy_images, noisy_images

    wrapper = ClassifierFreeGuidance(3.0, interval=(0.2, 0.8)).wrapper(two_classes.engine)
    images, rate = ops.zeros((4, 8, 8, 1)), ops.convert_to_tensor(noise_rate, "float32")
    conditions = Conditions(rate**2, labels=ops.zeros(4, "int32"))
    with running_branches():
        guided = wrapper.wrap(denoise, wrapper.arrays, None)
        guided(images, rate, ops.sqrt(1.0 - rate**2), conditions)
    assert sum(seen) == 4 * expected


def test_guidances_around_each_other_are_counted_as_they_cost(two_classes):
    seen = []

    def denoise(noisy_images, noise_rates, signal_rates, conditions):
        seen.append(len(noisy_images))
        return noisy_images, noisy_images

    weaker = make_two_classes()
    weaker.engine.denoise = denoise
    rate = ops.convert_to_tensor(0.6)
    conditions = Conditions(rate**2, labels=ops.zeros(1, "int32"))
    _, planned, *_ = plan_walk(two_classes.engine, 1)
    auto = Autoguidance(weaker, 2.0)
    for chosen, expected in (
        ([2.0, 3.0], 4),
        ([2.0, auto], 3),
        ([auto, 2.0], 4),
        ([auto, auto], 3),
        ([2.0, GuidanceFunction(lambda x, images, b, a: images)], 2),
    ):
        found, wrapped = guidances(chosen), denoise
        seen.clear()
        with running_branches():
            for part in found:
                wrapper = part.wrapper(two_classes.engine)
                wrapped = wrapper.wrap(wrapped, wrapper.arrays, None)
            wrapped(ops.zeros((1, 8, 8, 1)), rate, ops.sqrt(1.0 - rate**2), conditions)
        assert sum(seen) == count_evaluations(planned, found) == expected


def test_budgets_count_the_evaluations_of_guidance(two_classes):
    half = ClassifierFreeGuidance(3.0, interval=(0.5, 1.0))
    for guidance in (ClassifierFreeGuidance(3.0), half, GuidanceFunction(lambda x, i, b, a: i)):
        for budget in (5, 12, 31):
            options = {"network_evaluations": budget, "guidance": [guidance]}
            times, planned, *_ = plan_walk(two_classes.engine, **options)
            steps = len(times) - 1
            assert count_evaluations(planned, [guidance]) <= budget
            _, longer, *_ = plan_walk(two_classes.engine, steps + 1)
            assert count_evaluations(longer, [guidance]) > budget
    with pytest.raises(ValueError, match="at least 2"):
        two_classes.generate(1, network_evaluations=1, labels=0, guidance=2.0)
    images, trajectory = two_classes.generate(
        1, network_evaluations=10, labels=0, guidance=2.0, return_trajectory=True
    )
    assert len(trajectory.pred_images) == 5


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_rescaling_brings_the_deviation_back_to_the_unguided_one(parameterization):
    model = make_small_model(
        num_classes=2, parameterization=parameterization, normalization="group"
    )
    rng = np.random.default_rng(0)
    weights = model.ema_network.get_weights()
    model.ema_network.set_weights([rng.normal(scale=0.3, size=part.shape) for part in weights])
    rates = ops.convert_to_tensor(0.8), ops.convert_to_tensor(0.6)
    images = ops.convert_to_tensor(rng.normal(size=(3, 8, 8, 1)).astype("float32"))
    conditions = Conditions(rates[1] ** 2, labels=ops.convert_to_tensor([0, 1, 0]))

    def deviation(denoise):
        noises, pred_images = denoise(images, rates[1], rates[0], conditions)
        target = model.parameterization.target(pred_images, noises, *rates)
        return ops.convert_to_numpy(ops.std(target, axis=(1, 2, 3)))

    def guided(rescale):
        wrapper = ClassifierFreeGuidance(4.0, rescale=rescale).wrapper(model.engine)
        return deviation(wrapper.wrap(model.engine.denoise, wrapper.arrays, None))

    wanted = deviation(model.engine.denoise)
    assert (abs(guided(0.0) - wanted) > 1e-3 * wanted).all()
    np.testing.assert_allclose(guided(1.0), wanted, rtol=1e-4)
    np.testing.assert_allclose(guided(0.5), (guided(0.0) + wanted) / 2, rtol=1e-4)


def test_autoguidance_by_a_wider_gaussian_is_in_closed_form(two_classes):
    weaker = make_two_classes("noise", "linear_log_snr", deviation=0.6)
    sampling = {"diffusion_steps": 10, "sampler": "dpm_solver_2m"}

    def oracle(*arguments):
        strong, weak = (GaussianOracle(MEANS[0], width)(*arguments) for width in (DEVIATION, 0.6))
        return tuple(w + 1.7 * (s - w) for s, w in zip(strong, weak))

    found = two_classes.generate(
        NUMBER, seed=SEED, labels=0, guidance=Autoguidance(weaker, 1.7), **sampling
    )
    expected = walk_in_numpy(two_classes, oracle, **sampling)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_autoguidance_needs_no_labels_and_sees_the_weaker_model_as_it_is_now():
    rng = np.random.default_rng(0)
    options = {"parameterization": "velocity", "normalization": "group"}
    model, weaker = (make_small_model(**options) for _ in range(2))

    def shake(one, scale):
        weights = one.ema_network.get_weights()
        one.ema_network.set_weights([scale * rng.normal(size=part.shape) for part in weights])

    shake(model, 0.1)
    plain = model.generate(3, 4, seed=0)
    guidance = Autoguidance(weaker, 2.0)
    first = model.generate(3, 4, seed=0, guidance=guidance)
    assert abs(first - plain).max() > 1e-3
    shake(weaker, 0.1)
    second = model.generate(3, 4, seed=0, guidance=guidance)
    assert abs(second - first).max() > 1e-3
    weaker.ema_network.set_weights(model.ema_network.get_weights())
    np.testing.assert_allclose(model.generate(3, 4, seed=0, guidance=guidance), plain, atol=1e-5)


def test_a_function_guides_by_what_it_makes_of_the_predicted_images(two_classes):
    target = 0.8

    def towards(noisy_images, pred_images, noise_rate, signal_rate):
        return 0.5 * (pred_images + target)

    def oracle(noisy_images, noise_rate, signal_rate):
        _, images = GaussianOracle(MEANS[0], DEVIATION)(noisy_images, noise_rate, signal_rate)
        images = 0.5 * (images + target)
        return (noisy_images - signal_rate * images) / noise_rate, images

    sampling = {"diffusion_steps": 6, "sampler": "ddim"}
    guidance = GuidanceFunction(towards)
    found = two_classes.generate(NUMBER, seed=SEED, labels=0, guidance=guidance, **sampling)
    expected = walk_in_numpy(two_classes, oracle, **sampling)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_guidances_are_put_around_each_other(two_classes):
    def brighter(noisy_images, pred_images, noise_rate, signal_rate):
        return pred_images + 0.1

    def oracle(noisy_images, noise_rate, signal_rate):
        guided = GaussianOracle(WEIGHT * MEANS[1], DEVIATION)
        _, images = guided(noisy_images, noise_rate, signal_rate)
        images = images + 0.1
        return (noisy_images - signal_rate * images) / noise_rate, images

    sampling = {"diffusion_steps": 6, "sampler": "ddim"}
    both = [WEIGHT, GuidanceFunction(brighter)]
    found = two_classes.generate(NUMBER, seed=SEED, labels=1, guidance=both, **sampling)
    np.testing.assert_allclose(found, walk_in_numpy(two_classes, oracle, **sampling), atol=2e-3)


@pytest.mark.slow
def test_every_verb_takes_guidance(two_classes):
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype("float32")
    told = {"labels": 1, "guidance": 2.0}
    latents = two_classes.encode(images, 20, **told)
    plain = two_classes.encode(images, 20, labels=1)
    assert abs(latents - plain).max() > 0.01
    np.testing.assert_array_equal(
        two_classes.reconstruct(images, 20, **told), two_classes.decode(latents, 20, **told)
    )
    for make in (
        lambda **told: two_classes.variations(images[0], 0.9, 2, 5, seed=0, **told),
        lambda **told: two_classes.interpolate(*latents, 3, 5, **told),
        lambda **told: two_classes.inpaint(images, np.eye(8), 4, seed=0, **told),
    ):
        assert abs(make(**told) - make(labels=1)).max() > 1e-3


REFUSED = {
    "a text": ("2", "must be a number"),
    "NaN": (float("nan"), "finite"),
    "a truth": (True, "must be a number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_guidance_is_refused(two_classes, name):
    guidance, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        two_classes.generate(1, labels=0, guidance=guidance)


@pytest.mark.parametrize("rescale", ["x", None, True, -0.1, float("nan")])
def test_rescaling_is_a_share(rescale):
    with pytest.raises(ValueError, match="rescale must lie in"):
        ClassifierFreeGuidance(2.0, rescale=rescale)


@pytest.mark.parametrize("interval", [(0.8, 0.2), (-0.1, 1.0), (0.0, 1.1), 0.5, (0.1, 0.2, 0.3)])
def test_an_interval_is_two_noise_rates_in_order(interval):
    with pytest.raises(ValueError, match="interval must be"):
        ClassifierFreeGuidance(2.0, interval=interval)


def test_guidance_says_what_is_missing(two_classes):
    with pytest.raises(ValueError, match="none are given"):
        two_classes.generate(1, guidance=2.0)
    with pytest.raises(ValueError, match="num_classes"):
        make_small_model().generate(1, guidance=2.0)
    with pytest.raises(ValueError, match="label_dropout is 0"):
        make_small_model(num_classes=2, label_dropout=0.0).generate(1, labels=0, guidance=2.0)
    with pytest.raises(ValueError, match="must be a DiffusionModel"):
        Autoguidance("a model", 2.0)
    for weaker, message in (
        (make_small_model(image_size=16), "must be equal"),
        (make_small_model(num_classes=3), "num_classes=3"),
    ):
        with pytest.raises(ValueError, match=message):
            two_classes.generate(1, labels=0, guidance=Autoguidance(weaker, 2.0))
    cats_first, dogs_first = (
        make_small_model(class_names=names) for names in (["cat", "dog"], ["dog", "cat"])
    )
    with pytest.raises(ValueError, match=r"are \['dog', 'cat'\], the model's \['cat', 'dog'\]"):
        cats_first.generate(1, labels="cat", guidance=Autoguidance(dogs_first, 2.0))
    other = make_small_model(num_classes=2)
    other.normalizer.adapt(np.full((4, 8, 8, 1), 0.2, "float32"))
    with pytest.raises(ValueError, match="normalizer"):
        two_classes.generate(1, labels=0, guidance=Autoguidance(other, 2.0))


def test_guidance_by_label_is_written_to_a_config_and_read_back():
    guidance = ClassifierFreeGuidance(3.0, interval=(0.2, 0.8), rescale=0.7)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(guidance))
    assert repr(again) == repr(guidance)


def test_what_the_network_was_never_without_stays_under_guidance():
    """With dropout of the label alone, guidance compares with and without it, both told the
    condition.
    """
    model = make_small_model(num_classes=2, condition_shape=(3,))
    assert model.objective.spec.condition_dropout == 0.0
    seen = {}

    def denoise(noisy_images, noise_rates, signal_rates, conditions):
        seen["labels"] = ops.convert_to_numpy(conditions.labels)
        seen["condition"] = ops.convert_to_numpy(conditions.condition)
        return noisy_images, noisy_images

    wrapper = ClassifierFreeGuidance(3.0).wrapper(model.engine)
    rate = ops.convert_to_tensor(0.6)
    conditions = Conditions(rate**2, labels=ops.ones(2, "int32"), condition=ops.ones((2, 3)))
    with running_branches():
        guided = wrapper.wrap(denoise, wrapper.arrays, None)
        guided(ops.zeros((2, 8, 8, 1)), rate, ops.sqrt(1 - rate**2), conditions)
    assert seen["labels"].tolist() == [1, 1, 2, 2]
    assert (seen["condition"] == 1.0).all()
