"""Models that draw in a few steps what their teacher draws in many."""

import dataclasses

import keras
import numpy as np
import PIL.Image
import pytest
from conftest import (
    crossed,
    first_quick,
    make_small_model,
    make_trained_model,
    random_images,
    slow_on_jax,
)
from keras import ops

import ddim_keras
from ddim_keras import ClassifierFreeGuidance, DiffusionModel, distill, load_model, runs
from ddim_keras.distilling import student
from ddim_keras.presets import Training
from ddim_keras.samplers import DDIM, UniPC
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.sampling.distance import distances_through_noise
from ddim_keras.schedules import AngleSchedule
from ddim_keras.training.distilling import Distillation

DEVIATION = 0.25
QUICK = {"epochs": 1, "verbose": 0, "training": Training(batch_size=8)}


@keras.saving.register_keras_serializable("ddim_keras_tests")
class GaussianVelocity(keras.layers.Layer):
    """The velocities of the perfect denoiser of N(0, DEVIATION^2), and a correction by the noise
    level, which is nothing before it is trained.
    """

    def build(self, input_shapes):
        spread = keras.initializers.RandomNormal(1.0, seed=0)
        self.first = self.add_weight(shape=(1, 32), initializer=spread, name="first")
        self.bias = self.add_weight(shape=(32,), initializer="zeros", name="bias")
        self.last = self.add_weight(shape=(32, 1), initializer="zeros", name="last")

    def call(self, inputs):
        noisy_images, variances = inputs
        noise, signal = ops.sqrt(variances), ops.sqrt(1.0 - variances)
        variance = (signal * DEVIATION) ** 2 + variances
        exact = signal * noise * (1.0 - DEVIATION**2) / variance
        hidden = ops.tanh(4.0 * ops.matmul(variances, self.first) + self.bias)
        return (exact + ops.matmul(hidden, self.last)) * noisy_images


@keras.saving.register_keras_serializable("ddim_keras_tests")
class ContrastOfGenerated(keras.metrics.Mean):
    def update_state(self, real, generated, sample_weight=None):
        return super().update_state(ops.abs(generated - 0.5))


def gaussian_model(**changes):
    noisy_images, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    network = keras.Model([noisy_images, variances], GaussianVelocity()([noisy_images, variances]))
    options = {"parameterization": "velocity", "pixels": "symmetric", "ema_decay": 0.9}
    return make_small_model(network=network, **options, **changes)


def gaussian_images(number=256):
    drawn = np.random.default_rng(0).normal(0.5, 0.5 * DEVIATION, (number, 8, 8, 1))
    return np.clip(drawn, 0.0, 1.0).astype("float32")


def scale(angles):
    """What stays constant along the paths of Gaussian data is the noisy image over this.

    They end at the least noise of the schedule, and the image is what is seen there.
    """
    ends = ops.sqrt((ops.cos(angles) * DEVIATION) ** 2 + ops.sin(angles) ** 2)
    signal_rate, noise_rate = (float(rates[0]) for rates in AngleSchedule()(np.array([0.0])))
    least = float(np.hypot(signal_rate * DEVIATION, noise_rate))
    return ops.where(angles == 0.0, signal_rate * DEVIATION**2 / least, ends)


def error_of_one_evaluation(model):
    """Of images, from where the paths of Gaussian data lead exactly."""
    noises = np.random.default_rng(1).normal(size=(16, 8, 8, 1)).astype("float32")
    angles = ops.convert_to_tensor([float(np.arccos(0.02)), 0.0])
    high, low = ops.convert_to_numpy(scale(angles))
    made = model.generate(16, 1, sampler="ddim", initial_noise=noises)
    return float(np.abs(2.0 * made - 1.0 - np.clip(low / high * noises, -1.0, 1.0)).mean())


@pytest.mark.parametrize("method", first_quick(["progressive", "consistency"]))
def test_of_gaussian_data_one_evaluation_learns_where_the_whole_path_leads(method):
    teacher = gaussian_model()
    recipe = Training(
        batch_size=32, learning_rate=0.03, schedule="cosine", loss="mean_squared_error"
    )
    few = distill(
        teacher, gaussian_images(), steps=1, method=method, epochs=12, training=recipe, verbose=0
    )
    assert error_of_one_evaluation(teacher) > 0.05
    assert error_of_one_evaluation(few) < 0.2 * error_of_one_evaluation(teacher)


class Exact(keras.layers.Layer):
    """The velocities that lead, by DDIM over even times, along the exact paths of Gaussian data."""

    def __init__(self, ends, **kwargs):
        super().__init__(**kwargs)
        self.ends = ends

    def call(self, inputs):
        noisy_images, variances = inputs
        here = ops.arcsin(ops.sqrt(variances))
        there = ops.zeros_like(here)
        for end in self.ends:
            there = ops.where(here > end + 1e-3, end, there)
        apart = here - there
        return (ops.cos(apart) - scale(there) / scale(here)) / ops.sin(apart) * noisy_images


@pytest.mark.parametrize(("method", "steps"), crossed(["progressive", "consistency"], [1, 2, 4]))
def test_the_exact_paths_of_gaussian_data_have_next_to_no_loss(method, steps):
    teacher_steps = {"progressive": 30, "consistency": 100}[method]
    few = student(gaussian_model(), steps, method, teacher_steps=teacher_steps)
    signal, noise = AngleSchedule()(np.linspace(0.0, 1.0, steps + 1)[1:-1])
    noisy_images, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    layer = Exact([float(angle) for angle in np.arctan2(noise, signal)])
    exact = keras.Model([noisy_images, variances], layer([noisy_images, variances]))

    def loss(network):
        times = np.linspace(0.05, 1.0, 16).astype("float32").reshape(-1, 1, 1, 1)
        rng = np.random.default_rng(2)
        images = DEVIATION * rng.normal(size=(16, 8, 8, 1)).astype("float32")
        noises = rng.normal(size=(16, 8, 8, 1)).astype("float32")
        noise_rates, signal_rates = few.diffusion_schedule(times)
        losses, _ = few.objective.measure(
            network,
            *(ops.convert_to_tensor(each) for each in (images, noises)),
            signal_rates,
            noise_rates,
            None,
            training=False,
            told={},
        )
        return float(ops.convert_to_numpy(ops.mean(losses)))

    assert loss(exact) < 0.15 * loss(few.teacher)


def test_a_network_with_a_single_place_to_compare_at_compares_there():
    model = make_small_model(patch_size=2, pixels="symmetric")  # one level, and of patches
    draws = np.random.default_rng(0)
    for weight in model.network.trainable_variables:
        weight.assign(draws.normal(size=weight.shape))
    distances = distances_through_noise(model.engine, model.network)
    images, wanted, noises = draws.normal(0.0, 0.3, (3, 3, 8, 8, 1)).astype("float32")
    wanted[0], rate = images[0], np.full((3, 1, 1, 1), 0.5**0.5, "float32")
    found = ops.convert_to_numpy(distances(images, wanted, noises, rate, rate))
    assert found.shape == (3,) and found[0] == 0.0 and (found[1:] > 0.0).all()


@pytest.fixture(scope="module")
def taught():
    """A teacher and its student of two steps; shared by tests that do not change them."""
    keras.utils.set_random_seed(0)
    teacher = make_trained_model(parameterization="velocity")
    before = teacher.ema_network.get_weights()
    few = distill(teacher, random_images(), steps=2, validation_data=random_images(8), **QUICK)
    return teacher, before, few


@pytest.mark.slow
def test_what_is_drawn_in_a_few_steps_is_the_default_of_the_model(taught):
    _, _, few = taught
    assert few.sampling_defaults.diffusion_steps == 2 == few.distillation.steps
    by_name = few.generate(2, 2, sampler="ddim", spacing="linear", seed=0)
    np.testing.assert_array_equal(few.generate(2, seed=0), by_name)


@pytest.mark.slow
@slow_on_jax
def test_the_teacher_stays_and_the_student_moves(taught):
    teacher, before, few = taught
    for network in (teacher.ema_network, few.teacher):
        for ours, theirs in zip(before, network.get_weights()):
            np.testing.assert_array_equal(ours, theirs)
    moved = zip(before, few.network.get_weights())
    assert all(np.abs(ours - theirs).max() > 0 for ours, theirs in moved)
    assert len(few.trainable_variables) == len(teacher.trainable_variables)


@pytest.mark.slow
def test_training_goes_on_after_a_file_as_if_nothing_had_happened(tmp_path):
    few = distill(make_trained_model(), random_images(), steps=1, **QUICK)
    few.save(tmp_path / "few.keras")
    again = load_model(tmp_path / "few.keras")
    assert again.distillation.get_config() == few.distillation.get_config()
    for model in (few, again):
        model.fit(random_images(), batch_size=8, epochs=1, shuffle=False, verbose=0)
    for ours, theirs in zip(few.network.get_weights(), again.network.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@slow_on_jax
def test_a_preset_draws_the_same_without_the_teacher(tmp_path, taught):
    _, _, few = taught
    few.save_to_preset(tmp_path / "few", half=False)
    preset = DiffusionModel.from_preset(tmp_path / "few")
    assert preset.teacher is None and preset.distillation is None
    np.testing.assert_allclose(preset.generate(2, seed=3), few.generate(2, seed=3), atol=1e-5)


def test_the_losses_of_a_validation_are_those_of_the_few_steps(taught):
    _, _, few = taught
    first, second = (few.evaluate(random_images(8), return_dict=True, verbose=0) for _ in range(2))
    assert first == second and set(first) == {"n_loss", "i_loss", "loss"}
    assert few.metric_diffusion_steps == 2


@slow_on_jax
def test_a_student_teaches_by_its_own_steps():
    four = student(make_trained_model(), steps=4)
    two = student(four, steps=2)
    assert (two.distillation.teacher_steps, two.distillation.sampler.eta) == (4, 0.0)
    assert isinstance(two.distillation.sampler, DDIM)
    assert isinstance(four.distillation.sampler, UniPC)
    with pytest.raises(ValueError, match=r"taught to draw in 4 steps.*got steps=4"):
        student(four, steps=4)


@pytest.mark.slow
def test_a_preset_of_few_steps_teaches_by_its_own_steps():
    one = student(DiffusionModel.from_preset("fashion_mnist_32_few_steps"), steps=1)
    assert one.distillation.teacher_steps == 2
    assert isinstance(one.distillation.sampler, DDIM)


@pytest.fixture(scope="module")
def labelled_model():
    keras.utils.set_random_seed(0)
    model = make_small_model(num_classes=2, label_dropout=0.2, parameterization="velocity")
    model.compile(optimizer=keras.optimizers.AdamW(1e-2))
    model.fit(random_images(), np.arange(24) % 2, batch_size=8, epochs=2, verbose=0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_guidance_becomes_a_part_of_what_is_learned(method, labelled_model):
    images = (random_images(), np.arange(24) % 2)
    few = distill(labelled_model, images, steps=1, method=method, guidance=2.0, **QUICK)
    assert few.distillation.guidance[0].weight == 2.0
    assert few.generate(2, labels=[0, 1], seed=0).shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_the_guided_teacher_is_what_the_loss_compares_with(labelled_model):
    plain, guided = (
        student(labelled_model, 1, guidance=guidance)
        for guidance in (None, ClassifierFreeGuidance(4.0))
    )
    labelled_model.sampling_defaults = SamplingDefaults(guidance=4.0)
    by_itself = [student(labelled_model, 1, guidance=guidance) for guidance in (None, 1.0)]
    labelled_model.sampling_defaults = None
    told = [[part.weight for part in few.distillation.guidance] for few in by_itself]
    assert told == [[4.0], []]  # the teacher's own, unless another is asked for
    noises = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), "float32")
    told = {"labels": ops.convert_to_tensor([0, 1, 0, 1], "int32")}
    rates = [ops.ones((4, 1, 1, 1)) * rate for rate in (0.6, 0.8)]
    losses = [
        few.objective.measure(few.network, noises, noises, *rates, None, False, told)[0]
        for few in (plain, guided)
    ]
    assert np.abs(ops.convert_to_numpy(losses[0] - losses[1])).max() > 1e-3


def test_what_cannot_be_distilled_is_refused():
    with pytest.raises(ValueError, match="never trained"):
        distill(make_small_model(), random_images())
    with pytest.raises(ValueError, match="the teacher must be a DiffusionModel, got str: a file"):
        distill("photos.keras", random_images())
    trained = make_trained_model()
    for options, message in (
        ({"method": "adversarial"}, "method must be one of"),
        ({"steps": 0}, "steps must be"),
        ({"teacher_steps": 1}, "teacher_steps must be an integer, at least 3"),
        ({"guidance": 2.0}, "needs a model with labels"),
        ({"guidance": ddim_keras.Autoguidance(trained, 2.0)}, "no file can hold"),
    ):
        with pytest.raises(ValueError, match=message):
            student(trained, **{"steps": 2, **options})
    with pytest.raises(ValueError, match="give steps_per_epoch"):
        distill(trained, (images for images in [random_images(8)]), steps=1)


def test_a_distillation_is_what_its_configuration_says():
    made = Distillation(2, "consistency", guidance=ClassifierFreeGuidance(2.0, (0.2, 0.8)))
    again = Distillation.from_config(made.get_config())
    assert again.get_config() == made.get_config() and again.teacher_steps == 24


def folder_of_images(folder):
    for index, image in enumerate(random_images(20)):
        pixels = (255 * image[..., 0]).astype("uint8")
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@slow_on_jax
def test_a_student_walks_by_the_sampler_that_was_fitted_to_its_teacher(tmp_path):
    model = make_small_model(parameterization="velocity")
    images = random_images(24)
    model.normalizer.adapt(images)
    with pytest.raises(ValueError, match="keeps no fitted sampler of 1 steps: fit one first"):
        distill(model, images, 1, own=True, **QUICK)
    fitting = {"num_images": 16, "teacher_steps": 6, "epochs": 1, "verbose": 0}
    fitted = model.fit_sampler(1, images=images, rank=2, **fitting)
    few = distill(model, images, 1, own=True, **{**QUICK, "epochs": 0})
    # Before it has learned anything it draws what the sampler draws.
    expected = model.generate(3, 1, seed=1, sampler=fitted)
    np.testing.assert_allclose(few.generate(3, seed=1), expected, atol=1e-6)
    # So does a metric that looks at images while it is trained.
    few.compile(metrics=[ContrastOfGenerated(name="drawn")], metric_diffusion_steps=1)
    noted = few.evaluate(images, verbose=0, return_dict=True)["drawn"]
    walked, ddim = (
        np.abs(few.generate(24, 1, seed=0, **how) - 0.5).mean() for how in ({}, {"eta": 0.0})
    )
    assert 5 * abs(noted - walked) < abs(noted - ddim)
    few.fit(images, verbose=0)
    assert np.abs(few.generate(3, seed=1) - expected).max() > 1e-4
    few.save(tmp_path / "few.keras")
    again = load_model(tmp_path / "few.keras")
    np.testing.assert_array_equal(again.generate(3, seed=1), few.generate(3, seed=1))
    assert again.distillation.get_config() == few.distillation.get_config()
    with pytest.raises(ValueError, match="FittedSampler of 2 steps, taught by the method 'progr"):
        Distillation(2, own=fitted)
    with pytest.raises(ValueError, match="and 'consistency'"):
        Distillation(1, "consistency", own=fitted)


def distilling_in(folder, **changes):
    """A run on the photos of a folder, taught by the model in it."""
    settings = {
        "data": str(folder / "photos"),
        "split": 0.0,
        "image_size": 8,
        "channels": 1,
        "distill": {"model": str(folder / "teacher.keras"), "steps": 1},
        "training": {"batch_size": 4, "optimizer": "adamw"},
        "precision": "float32",
        "samples": 0,
        "tensorboard": False,
        "memorization": 0,
        "ema_snapshots": 0,
    }
    return runs.RunConfig(**{**settings, **changes})


@pytest.mark.slow
def test_a_run_distills_and_resumes_without_the_file_its_teacher_came_from(tmp_path):
    (tmp_path / "photos").mkdir()
    make_trained_model(parameterization="velocity").save(tmp_path / "teacher.keras")
    folder_of_images(tmp_path / "photos")
    config = distilling_in(tmp_path, steps=2)
    assert runs.train(config, tmp_path / "run", verbose=0).step == 2
    (tmp_path / "teacher.keras").unlink()
    (tmp_path / "run" / "model.keras").unlink()
    longer = dataclasses.replace(config, steps=4)
    told = []
    result = runs.train(longer, tmp_path / "run", told.append, verbose=0)
    assert result.step == 4 and any("Resuming from step 2" in line for line in told)
    few = load_model(tmp_path / "run" / "model.keras")
    assert few.distillation.steps == 1 == few.sampling_defaults.diffusion_steps
    teacher = load_model(tmp_path / "run" / "teacher.keras")
    for ours, theirs in zip(few.teacher.get_weights(), teacher.ema_network.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "run" / "teacher.keras").write_bytes(b"half")
    message = (
        r"run/teacher.keras is not a whole .keras .*the run's copy of .*teacher.keras: .*remove"
    )
    with pytest.raises(ValueError, match=message):
        runs.train(longer, tmp_path / "run", verbose=0)


@pytest.mark.slow
def test_a_run_writes_down_the_guidance_that_its_teacher_keeps(tmp_path, labelled_model):
    for kind in ("a", "b"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        folder_of_images(tmp_path / "photos" / kind)
    config = distilling_in(tmp_path, steps=1, labels=True, kid=None)
    for weight, expected in ((3.0, [3.0]), (None, [])):
        labelled_model.sampling_defaults = SamplingDefaults(guidance=weight)
        labelled_model.save(tmp_path / "teacher.keras")
        labelled_model.sampling_defaults = None
        out, told = tmp_path / f"run_{weight}", []
        few = runs.train(config, out, told.append, verbose=0).model
        assert [part.weight for part in few.distillation.guidance] == expected
        assert runs.RunConfig.read(out / "config.yaml").distill.get("guidance") == weight
        assert len([line for line in told if "The teacher is guided by 3" in line]) == len(expected)
        assert runs.train(config, out, verbose=0).finished  # the same command resumes


def test_a_sampler_that_a_guided_teacher_lacks_is_named_by_its_evaluations(labelled_model):
    with pytest.raises(ValueError, match=r"of 3 steps: fit one first, by model.fit_sampler\(6, "):
        student(labelled_model, 3, guidance=2.0, own=True)


def test_a_run_says_what_its_distillation_lacks():
    with pytest.raises(ValueError, match="distill must hold a model"):
        runs.RunConfig(distill={"steps": 2})
    config = runs.RunConfig(distill={"model": "fashion_mnist_32"})
    assert config.recipe().optimizer == "muon"


def test_nothing_of_a_teacher_with_attention_is_trained():
    teacher = make_small_model(attention_levels=[0])
    teacher.normalizer.adapt(random_images(8))
    few = student(teacher, 1)
    kept = [*few.ema_network.variables, *few.teacher.variables]
    assert not any(variable.trainable for variable in kept)
    assert len(few.trainable_variables) == len(few.network.trainable_variables)
