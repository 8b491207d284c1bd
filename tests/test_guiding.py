"""Models that draw by themselves what their teacher draws with guidance."""

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_small_model, random_images, slow_on_jax
from keras import ops
from test_distilling import (
    distilling_in,
    folder_of_images,
    gaussian_images,
    gaussian_model,
    labelled_model,
)

import ddim_keras
from ddim_keras import Autoguidance, ClassifierFreeGuidance, distill, distill_guidance, load_model
from ddim_keras.cli import main
from ddim_keras.distilling import guided_student
from ddim_keras.guidance import Guidance
from ddim_keras.presets import Training
from ddim_keras.runs.folder import RunFolder
from ddim_keras.runs.making import sources_of
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.schedules import CosineBetaSchedule, LinearBetaSchedule
from ddim_keras.training.guiding import GuidanceDistillation, KeptAutoguidance

__all__ = ["labelled_model"]  # a fixture, which is used by its name
WEIGHT = 1.8


def gaussian_pair():
    """A model of Gaussian data, and a weaker one: both are off, the weaker one more."""
    pair = []
    for off in (0.1, 0.4):
        model = gaussian_model()
        model.normalizer.adapt(gaussian_images(8))
        for network in (model.network, model.ema_network):
            last = next(weight for weight in network.weights if weight.name == "last")
            bias = next(weight for weight in network.weights if weight.name == "bias")
            bias.assign(np.linspace(-1.0, 1.0, 32))
            last.assign(np.full((32, 1), off / 32))
        pair.append(model)
    return pair


def last_of(network):
    return next(weight for weight in network.weights if weight.name == "last")


def loss_of(guided, network, told=None, images=None):
    times = np.linspace(0.05, 0.95, 16).astype("float32").reshape(-1, 1, 1, 1)
    rates = guided.diffusion_schedule(times)
    images = gaussian_images(16) if images is None else images
    noises = np.random.default_rng(1).normal(size=images.shape).astype("float32")
    given = [ops.convert_to_tensor(each) for each in (images, noises, rates[1], rates[0])]
    losses, _ = guided.objective.measure(network, *given, None, False, told or {})
    return ops.convert_to_numpy(losses)


@pytest.mark.parametrize("interval", [None, (0.3, 0.8)])
def test_a_network_that_predicts_as_the_guided_teacher_has_no_loss(interval):
    model, weaker = gaussian_pair()
    guided = guided_student(model, Autoguidance(weaker, WEIGHT, interval))
    # The networks are linear in their last weights: so is what is predicted by guidance.
    strong, weak = (ops.convert_to_numpy(last_of(each.ema_network)) for each in (model, weaker))
    last_of(guided.network).assign(weak + WEIGHT * (strong - weak))
    exact, plain = (loss_of(guided, each) for each in (guided.network, guided.teacher))
    noise_rates = np.ravel(guided.diffusion_schedule(np.linspace(0.05, 0.95, 16))[0])
    low, high = interval or (0.0, 1.0)
    inside = (noise_rates >= low) & (noise_rates <= high)
    assert exact[inside].max() < 1e-5 * plain[inside].min()
    # Outside of the interval the teacher is not guided.
    assert (plain[~inside] < 1e-7).all() and (exact[~inside] > 1e-5).all()


def test_it_draws_after_training_what_the_guided_teacher_draws():
    model, weaker = gaussian_pair()
    recipe = Training(
        batch_size=32, learning_rate=0.02, schedule="cosine", loss="mean_squared_error"
    )
    guidance = Autoguidance(weaker, WEIGHT)
    before = model.ema_network.get_weights()
    guided = distill_guidance(
        model, gaussian_images(), guidance, epochs=12, training=recipe, verbose=0
    )
    noises = 0.5 * np.random.default_rng(2).normal(size=(8, 8, 8, 1)).astype("float32")
    walk = {"num_images": 8, "diffusion_steps": 4, "sampler": "ddim", "initial_noise": noises}
    wanted, plain, found = (
        model.generate(**walk, guidance=guidance),
        model.generate(**walk),
        guided.generate(**walk),
    )
    assert np.abs(found - wanted).mean() < 0.2 * np.abs(plain - wanted).mean()
    for ours, theirs in zip(before, model.ema_network.get_weights()):
        np.testing.assert_array_equal(ours, theirs)  # the teacher stays


def test_guidance_by_label_is_learned_with_the_labels(labelled_model):
    labelled_model.sampling_defaults = SamplingDefaults(7, guidance=3.0, version="0.1")
    own, other = guided_student(labelled_model), guided_student(labelled_model, 1.5)
    labelled_model.sampling_defaults = None
    assert own.distillation.guidance[0].weight == 3.0 and own.weaker is None
    # Of the teacher's defaults it keeps what is not of those weights; it needs no guidance.
    assert own.sampling_defaults.get_config() == SamplingDefaults(7).get_config()
    told = {"labels": ops.convert_to_tensor(np.arange(16) % 2, "int32")}
    images = random_images(16)
    far, near = (loss_of(each, each.teacher, told, images) for each in (own, other))
    # A weight of 3 leads four times as far from none as one of 1.5.
    assert near.min() > 0.0 and far / near == pytest.approx(4.0, rel=1e-3)
    null = {"labels": ops.convert_to_tensor(np.full(16, 2), "int32")}
    assert loss_of(own, own.teacher, null, images).max() < 1e-10  # there is nothing to guide by


@slow_on_jax
def test_files_hold_both_teachers_and_presets_none(tmp_path, trained_model):
    weaker = make_small_model(parameterization="velocity", widths=[4, 8], seed=2)
    weaker.normalizer.set_weights(trained_model.normalizer.get_weights())
    recipe = {"training": Training(batch_size=8, optimizer="adamw"), "verbose": 0}
    guided = distill_guidance(
        trained_model, random_images(), Autoguidance(weaker, 2.0, (0.2, 0.9)), **recipe
    )
    for ours, theirs in zip(weaker.ema_network.get_weights(), guided.weaker.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    kept = [*guided.teacher.variables, *guided.weaker.variables]
    assert not {id(each) for each in kept} & {id(each) for each in guided.trainable_variables}
    guided.save(tmp_path / "guided.keras")
    again = load_model(tmp_path / "guided.keras")
    assert again.distillation.get_config() == guided.distillation.get_config()
    for name in ("teacher", "weaker"):
        pair = (getattr(each, name).get_weights() for each in (guided, again))
        assert all(np.array_equal(*each) for each in zip(*pair))
    for each in (guided, again):
        each.fit(random_images(), batch_size=8, epochs=1, shuffle=False, verbose=0)
    for ours, theirs in zip(guided.network.get_weights(), again.network.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    guided.save_to_preset(tmp_path / "preset", half=False)
    preset = ddim_keras.DiffusionModel.from_preset(tmp_path / "preset")
    assert preset.distillation is None and preset.weaker is None
    np.testing.assert_allclose(preset.generate(2, seed=3), guided.generate(2, seed=3), atol=1e-5)
    # It can teach a model of few steps.
    assert distill(guided, random_images(), 1, epochs=0).distillation.steps == 1


def test_what_cannot_be_learned_is_refused(trained_model):
    other = make_small_model(parameterization="velocity", widths=[8, 8])
    noise = make_small_model(widths=[4, 8])
    same, quicker = (
        make_small_model(parameterization="velocity", widths=[4, 8], **changes)
        for changes in ({}, {"embedding_max_frequency": 500.0})
    )
    for each in (other, noise, same, quicker):
        each.normalizer.set_weights(trained_model.normalizer.get_weights())
    same.ema_network.set_weights(trained_model.ema_network.get_weights())
    function = ddim_keras.GuidanceFunction(lambda noisy, images, *rates: images)
    weaker = Autoguidance(trained_model, 2.0)
    for guidance, message in (
        (None, "there is no guidance to learn: give a weight"),
        (1.0, "there is no guidance to learn"),
        (2.0, "needs a model with labels"),
        (function, "cannot be taught with GuidanceFunction, which no file can hold"),
        (Autoguidance(other, 2.0), r"network is another one .* ddim_keras.ema.early\(run\)"),
        (Autoguidance(noise, 2.0), "network is another one than the model's"),
        (Autoguidance(quicker, 2.0), "network is another one than the model's"),
        (Autoguidance(same, 2.0), "has the weights of the model itself, so that there is nothing"),
        ([weaker, weaker], "one weaker network: give one Autoguidance, not several"),
    ):
        with pytest.raises(ValueError, match=message):
            guided_student(trained_model, guidance)
    with pytest.raises(ValueError, match="never trained"):
        guided_student(make_small_model(), weaker)
    few = distill(trained_model, random_images(), 2, epochs=0)
    with pytest.raises(ValueError, match="taught to draw in 2 steps.*teach guidance to the model"):
        guided_student(few, weaker)
    with pytest.raises(ValueError, match=r"generate takes Autoguidance\(model, 2.0\)"):
        trained_model.generate(1, guidance=KeptAutoguidance(2.0))


def test_a_weaker_model_of_other_times_is_refused():
    """A network of T times is told which of them it is, which is another noise level there."""
    noises = {"min_beta": 1e-3, "max_beta": 0.2, "num_times": 50}
    model, weaker, other = (
        make_small_model(schedule=schedule, parameterization="velocity", seed=seed)
        for seed, schedule in enumerate(
            [LinearBetaSchedule(**noises)] * 2 + [CosineBetaSchedule(num_times=50)]
        )
    )
    for each in (model, weaker, other):
        each.normalizer.adapt(random_images())
    assert guided_student(model, Autoguidance(weaker, 2.0)).weaker is not None
    with pytest.raises(ValueError, match="network is another one than the model's"):
        guided_student(model, Autoguidance(other, 2.0))


def test_guidance_by_label_is_not_learned_from_images_alone(labelled_model):
    own = guided_student(labelled_model, 3.0)
    with pytest.raises(ValueError, match="by label is learned from images with their labels"):
        loss_of(own, own.teacher, {}, random_images(16))
    with pytest.raises(ValueError, match="'guidance': ddim_keras.distill_guidance teaches that"):
        distill(labelled_model, random_images(), method="guidance")


def test_it_is_what_its_configuration_says():
    made = GuidanceDistillation([KeptAutoguidance(2.0, (0.2, 0.8)), ClassifierFreeGuidance(3.0)])
    again = GuidanceDistillation.from_config(made.get_config())
    assert again.get_config() == made.get_config()
    assert all(isinstance(part, Guidance) for part in again.guidance)


@pytest.mark.slow
def test_a_run_learns_to_differ_from_its_own_beginning(tmp_path):
    (tmp_path / "photos").mkdir()
    folder_of_images(tmp_path / "photos")
    small = {"widths": [4], "attention_levels": [], "block_depth": 1, "patch_size": 1}
    first = distilling_in(tmp_path, distill={}, steps=20, ema_snapshots=10, model=small)
    ddim_keras.runs.train(first, tmp_path / "first", verbose=0)
    teacher = {"model": str(tmp_path / "first"), "method": "guidance"}
    config = distilling_in(tmp_path, steps=2, distill=teacher)
    told = []
    ddim_keras.runs.train(config, tmp_path / "run", told.append, verbose=0)
    assert any("autoguidance by 2" in line for line in told)
    kept = ddim_keras.runs.RunConfig.read(tmp_path / "run" / "config.yaml").distill
    assert kept == {**teacher, "autoguidance": 2.0}
    early = ddim_keras.ema.early(tmp_path / "first")
    guided = load_model(tmp_path / "run" / "model.keras")
    for ours, theirs in zip(guided.weaker.get_weights(), early.ema_network.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    # Resumed without what it came from.
    (tmp_path / "first").rename(tmp_path / "gone")
    (tmp_path / "run" / "model.keras").unlink()
    longer = dataclasses.replace(config, steps=4)
    assert ddim_keras.runs.train(longer, tmp_path / "run", verbose=0).step == 4
    again = load_model(tmp_path / "run" / "model.keras")
    for ours, theirs in zip(guided.weaker.get_weights(), again.weaker.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    # A model alone has no beginning.
    teacher = {"model": str(tmp_path / "run" / "teacher.keras"), "method": "guidance"}
    with pytest.raises(ValueError, match="needs a weaker model.*is not the folder of a run"):
        ddim_keras.runs.train(
            dataclasses.replace(config, distill=teacher), tmp_path / "other", verbose=0
        )
    teacher["weaker"] = str(tmp_path / "run" / "weaker.keras")
    other = dataclasses.replace(config, distill={**teacher, "autoguidance": 1.5})
    result = ddim_keras.runs.train(other, tmp_path / "other", verbose=0)
    (part,) = result.model.distillation.guidance
    assert (part.weight, part.interval) == (1.5, (0.0, 0.99))


def test_a_run_says_what_does_not_go_with_its_method():
    teacher = {"model": "fashion_mnist_32"}
    for told, message in (
        ({"method": "guidance", "steps": 2}, "holds steps, which the method guidance has not"),
        ({"weaker": "a.keras"}, "holds weaker, which the method guidance alone has"),
        ({"method": "guiding"}, "method must be one of .*'guidance'., got 'guiding'"),
        ({"method": "guidance", "weaker": None}, "weaker must be a name, file or folder, got None"),
        ({"method": "guidance", "autoguidance": float("nan")}, "autoguidance must be a number"),
        ({"method": "guidance", "autoguidance": "2"}, "autoguidance must be a number.*got '2'"),
        ({"method": "guidance", "autoguidance": 1.0, "weaker": "a"}, "autoguidance of 1 is none"),
    ):
        with pytest.raises(ValueError, match=message):
            ddim_keras.runs.RunConfig(distill={**teacher, **told})


def test_a_run_learns_autoguidance_where_it_is_told_to_or_nothing_else(tmp_path, labelled_model):
    place = RunFolder(tmp_path / "run")
    labelled_model.sampling_defaults = SamplingDefaults(guidance=3.0)
    labelled_model.save(tmp_path / "model.keras")
    labelled_model.sampling_defaults = None
    guided_student(labelled_model, 3.0).save(tmp_path / "learned.keras")
    labelled_model.save(tmp_path / "plain.keras")

    def learned(name, **told):
        told = {"model": str(tmp_path / name), "method": "guidance", **told}
        return sources_of(distilling_in(tmp_path, labels=True, distill=told), place).weaker

    weaker = str(tmp_path / "plain.keras")
    for told, is_learned in (
        ({}, False),
        ({"guidance": 2.0}, False),
        ({"autoguidance": 1.0}, False),
        ({"weaker": weaker}, True),
        ({"guidance": 1.0, "weaker": weaker}, True),
        ({"autoguidance": 1.5, "weaker": weaker}, True),
    ):
        assert (learned("model.keras", **told) is not None) == is_learned
    message = "needs a weaker model, and .*{}.keras"
    for name, told, advice in (
        ("model", {"guidance": 1.0}, " is not the folder of a run"),  # 1 is none
        ("model", {"autoguidance": 2.0}, " is not the folder of a run"),
        ("plain", {}, " is not the folder of a run"),
        ("learned", {}, " has learned guidance from another one"),
    ):
        with pytest.raises(ValueError, match=message.format(name) + advice):
            learned(f"{name}.keras", **told)
    place.path.mkdir()
    distilling_in(tmp_path).write(place.config)
    with pytest.raises(ValueError, match="run/weaker.keras is missing, .*bring one of them back"):
        learned("plain.keras", autoguidance=2.0)


@pytest.mark.slow
def test_the_same_command_resumes_without_the_weaker_model(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    folder_of_images(tmp_path / "photos")
    for seed, name in enumerate(("model", "early", "other")):
        model = make_small_model(widths=[4], parameterization="velocity", seed=seed)
        model.normalizer.adapt(random_images(8))
        model.save(tmp_path / f"{name}.keras")
    monkeypatch.chdir(tmp_path)
    flags = ["-d", "photos", "--split", "0", "--batch-size", "4", "--samples", "0", "--steps", "1"]
    flags += ["--no-tensorboard", "--memorization", "0", "--ema-snapshots", "0", "--out", "run"]
    command = ["distill", "--method", "guidance", "-m", "model.keras", *flags, "--weaker"]

    def said(*told):
        result = CliRunner().invoke(main, list(map(str, told)))
        return f"{result.output}{result.exception or ''}"

    assert "Trained for 1 steps" in said(*command, "early.keras")
    assert "other.keras is another one" in said(*command, "other.keras")
    (tmp_path / "early.keras").rename(tmp_path / "moved.keras")
    for weaker in ("early.keras", "moved.keras"):
        assert "Nothing is left to do" in said(*command, weaker)
    assert "another configuration" in said(*command, "moved.keras", "--autoguidance", "3")
