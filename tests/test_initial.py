"""Runs that start from a trained model's weights."""

import dataclasses
import shutil

import keras
import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from conftest import first_quick, make_small_model, random_images, slow_on_jax

from ddim_keras import Autoguidance, load_model, networks, runs
from ddim_keras.cli import main
from ddim_keras.data import load_dataset
from ddim_keras.distilling import guided_student, student
from ddim_keras.networks.copying import take_weights
from ddim_keras.presets import Training
from ddim_keras.runs import RunConfig, making, training
from ddim_keras.runs.folder import RunFolder
from ddim_keras.runs.making import make_model, sources_of
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.schedules import AngleSchedule

pytestmark = slow_on_jax
KINDS = ("cat", "dog")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of 8 x 8 pixels, of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for kind in KINDS:
        (folder / kind).mkdir()
        for index in range(8):
            pixels = draws.integers(0, 255, (8, 8), dtype="uint8")
            PIL.Image.fromarray(pixels).save(folder / kind / f"{index}.png")
    return folder


def trained(**changes):
    """A model with weights of its own, as if it were trained."""
    options = {"normalization": "group", "conditioning": "every_block"}
    options |= {"widths": [4, 8], "attention_levels": [1]}
    model = make_small_model(**{**options, **changes})
    model.normalizer.adapt(random_images(image_shape=model.image_shape))
    draws = np.random.default_rng(0)
    weights = model.network.get_weights()
    weights = [weight + 0.1 * draws.normal(size=weight.shape) for weight in weights]
    for network in (model.network, model.ema_network):
        network.set_weights(weights)
    return model


def config_of(photos, source, **changes):
    settings = {
        "data": str(photos),
        "split": 0.0,
        "image_size": 8,
        "channels": 1,
        "steps": 2,
        "init_from": str(source),
        "training": {"batch_size": 4, "optimizer": "adamw"},
        "precision": "float32",
        "kid": None,
        "samples": 0,
        "tensorboard": False,
        "memorization": 0,
        "ema_snapshots": 0,
    }
    return RunConfig(**{**settings, **changes})


def started(photos, source, tmp_path, **changes):
    """The model of a run before its first step."""
    config = config_of(photos, source, **changes)
    data, _ = load_dataset(
        photos, config.image_size, 4, split=0.0, channels=config.channels, labels=config.labels
    )
    known = sources_of(config, RunFolder(tmp_path / "run"))
    return make_model(config, config.recipe(), data, known)


def test_both_networks_start_from_the_averaged_weights(photos, tmp_path):
    source = trained(ema_decay=0.9)
    source.network.set_weights([weight + 1.0 for weight in source.network.get_weights()])
    source.save(tmp_path / "source.keras")
    model = started(photos, tmp_path / "source.keras", tmp_path)
    for network in (model.network, model.ema_network):
        for ours, theirs in zip(network.get_weights(), source.ema_network.get_weights()):
            np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(model.normalizer.get_weights(), source.normalizer.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert model.ema_decay == 0.9 and model.network.count_params() == source.network.count_params()
    np.testing.assert_array_equal(
        model.generate(2, 3, seed=0, verbose=0),
        source.generate(2, 3, seed=0, verbose=0),
    )


def test_a_model_that_learned_guidance_is_a_start_without_its_teachers(photos, tmp_path):
    weaker = trained()
    for network in (weaker.network, weaker.ema_network):
        network.set_weights([0.9 * weight for weight in network.get_weights()])
    source = guided_student(trained(), Autoguidance(weaker, 2.0))
    source.save(tmp_path / "source.keras")
    model = started(photos, tmp_path / "source.keras", tmp_path)
    # Its teachers would be networks as they are before any training.
    assert model.distillation is None and model.teacher is None and model.weaker is None
    for ours, theirs in zip(model.network.get_weights(), source.ema_network.get_weights()):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_classes_of_the_same_name_start_from_what_was_learned(photos, tmp_path):
    source = trained(class_names=["bird", "dog", "fish"])
    source.save(tmp_path / "source.keras")
    model = started(photos, tmp_path / "source.keras", tmp_path, labels=True)
    assert tuple(model.class_names) == KINDS and model.num_classes == 2

    def vectors(network):
        (layer,) = [each for each in network.layers if isinstance(each, keras.layers.Embedding)]
        return layer.get_weights()[0]

    ours, theirs = vectors(model.network), vectors(source.ema_network)
    np.testing.assert_array_equal(ours[[1, 2]], theirs[[1, 3]])  # dog, and no class
    assert not np.isclose(ours[0], theirs).any(axis=-1).any()
    options = {"diffusion_steps": 3, "verbose": 0}
    np.testing.assert_allclose(
        model.generate(1, labels="dog", seed=0, **options),
        source.generate(1, labels="dog", seed=0, **options),
        atol=1e-6,
    )


@pytest.mark.slow
def test_the_noise_levels_may_be_others(photos, tmp_path):
    source = trained()
    source.save(tmp_path / "source.keras")
    schedule = keras.saving.serialize_keras_object(AngleSchedule(min_signal_rate=0.005))
    model = started(photos, tmp_path / "source.keras", tmp_path, model={"schedule": schedule})
    assert model.engine.schedule.min_signal_rate == 0.005
    for ours, theirs in zip(model.network.get_weights(), source.ema_network.get_weights()):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_labels_may_be_added_and_another_size_taken(photos, tmp_path):
    source = trained()
    source.save(tmp_path / "source.keras")
    model = started(photos, tmp_path / "source.keras", tmp_path, labels=True, image_size=16)
    assert model.num_classes == 2 and model.image_shape == (16, 16, 1)
    vectors = 3 * 128  # of two classes and of none
    assert model.network.count_params() == source.network.count_params() + vectors
    assert np.isfinite(model.generate(1, 2, labels=0, seed=0, verbose=0)).all()


@pytest.mark.parametrize("conditioning", first_quick(["every_block", "input"]))
def test_added_labels_leave_each_layer_its_own_weights(conditioning):
    settings = {"image_shape": (8, 8, 1), "widths": [8, 16], "block_depth": 2}
    settings |= {"conditioning": conditioning, "normalization": "group", "attention_levels": [0, 1]}
    source = networks.residual_unet(**settings)
    network = networks.residual_unet(**settings, num_classes=3)
    if conditioning == "input":  # labels join the pixels there: another first convolution
        with pytest.raises(ValueError, match="told other things"):
            take_weights(network, source)
        return
    take_weights(network, source)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Embedding):
            layer.set_weights([np.zeros_like(layer.get_weights()[0])])  # nothing is told
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    variances = np.full((2, 1, 1, 1), 0.3, "float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(network([images, variances, np.array([0, 3])])),
        keras.ops.convert_to_numpy(source([images, variances])),
        atol=1e-5,
    )


@pytest.mark.slow
def test_published_networks_take_other_classes_too(photos, tmp_path):
    network = networks.ddpm_unet(
        image_shape=(8, 8, 1), widths=(8, 16), block_depth=1, num_classes=3, groups=4
    )
    source = make_small_model(network=network, class_names=["dog", "cat", "fish"])
    source.normalizer.adapt(random_images())
    source.save(tmp_path / "source.keras")
    model = started(photos, tmp_path / "source.keras", tmp_path, labels=True)
    options = {"diffusion_steps": 3, "verbose": 0, "seed": 0}
    np.testing.assert_allclose(
        model.generate(2, labels=["cat", "dog"], **options),
        source.generate(2, labels=["cat", "dog"], **options),
        atol=1e-6,
    )


def test_the_recipe_is_that_of_where_the_weights_come_from(photos, tmp_path):
    assert config_of(photos, "keras_example", training={}).recipe() == Training()
    own = config_of(photos, "keras_example", training={"batch_size": 8}, preset="fashion_mnist_32")
    assert own.recipe().optimizer == "muon" and own.recipe().batch_size == 8
    trained().save_to_preset(tmp_path / "mine", training=Training(learning_rate=0.5))
    assert config_of(photos, tmp_path / "mine", training={}).recipe().learning_rate == 0.5
    config_of(photos, tmp_path / "mine").write(tmp_path / "config.yaml")
    assert config_of(photos, tmp_path, training={}).recipe().learning_rate == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "weight", "expected"),
    [
        ({"num_classes": 2}, 3.0, 3.0),
        ({"num_classes": 2}, None, 2.0),
        ({}, None, 2.0),
        ({"label_dropout": 0.0}, None, None),
    ],
)
def test_a_run_by_label_is_guided_as_its_start_is(photos, tmp_path, source, weight, expected):
    model = trained(**source)
    model.sampling_defaults = SamplingDefaults(guidance=weight)
    model.save(tmp_path / "source.keras")
    config = config_of(photos, tmp_path / "source.keras", labels=True, steps=1)
    said = []
    made = runs.train(config, tmp_path / "run", tell=said.append, verbose=0).model
    assert made.sampling_defaults.guidance == expected
    told = [line for line in said if line.startswith("Images by label are guided")]
    assert len(told) == (expected is not None)


@pytest.mark.slow
def test_a_run_trains_on_and_resumes_without_what_it_started_from(photos, tmp_path):
    trained(ema_decay=0.5).save_to_preset(tmp_path / "mine", training=Training(batch_size=4))
    config = config_of(photos, tmp_path / "mine", training={})
    result = runs.train(config, tmp_path / "run", verbose=0)
    assert result.step == 2 and result.model.ema_decay == 0.5
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "run" / "model.keras").unlink()
    told = []
    longer = dataclasses.replace(config, steps=4)
    result = runs.train(longer, tmp_path / "run", told.append, verbose=0)
    assert result.step == 4 and any("Resuming from step 2" in line for line in told)
    written = RunConfig.read(tmp_path / "run" / "config.yaml")
    assert written.training == dataclasses.asdict(Training(batch_size=4))
    assert (
        load_model(tmp_path / "run" / "initial.keras").network.count_params()
        == load_model(tmp_path / "run" / "model.keras").network.count_params()
    )
    (tmp_path / "run" / "initial.keras").write_bytes(b"half")
    message = r"initial.keras is not a whole .keras file .*the run's copy of .*mine: .*remove"
    with pytest.raises(ValueError, match=message):
        runs.train(dataclasses.replace(config, steps=6), tmp_path / "run", verbose=0)


@pytest.mark.slow
def test_a_run_keeps_the_very_model_that_it_started_from(photos, tmp_path, monkeypatch):
    """Though another training writes a newer one there meanwhile; and all processes resume so."""
    source, place = trained(), tmp_path / "source.keras"
    source.save(place)
    load, started_from = making.load, []

    def loading(name):
        started_from.append(load(name).ema_network.get_weights())
        found = load(name)
        source.ema_network.set_weights([each + 1.0 for each in started_from[0]])
        source.save(place)
        return found

    def ended(prepared, *_):
        started_from.append(prepared.model.ema_network.get_weights())
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "load", loading)
    monkeypatch.setattr(training, "_resume", ended)
    with pytest.raises(KeyboardInterrupt):
        runs.train(config_of(photos, place, jit=False), tmp_path / "run", verbose=0)
    kept = load_model(tmp_path / "run" / "initial.keras").ema_network.get_weights()
    place.unlink()
    monkeypatch.setattr(making, "load", load)
    config, shared = RunConfig.read(tmp_path / "run" / "config.yaml"), RunFolder(tmp_path / "run")
    second = training._prepare(config, shared, RunFolder(tmp_path / "second"), print, True)
    for others in (started_from[1], kept, second.model.ema_network.get_weights()):
        for ours, theirs in zip(started_from[0], others, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_the_command_finds_the_model_from_any_folder(photos, tmp_path, monkeypatch):
    trained().save(tmp_path / "source.keras")
    monkeypatch.chdir(tmp_path)
    flags = ["--split", "0", "--image-size", "8", "--samples", "0", "--steps", "1"]
    flags += ["--batch-size", "4", "--no-tensorboard", "--memorization", "0", "--channels", "1"]
    told = ["train", "--data", str(photos), "--init-from", "source.keras", "--out", "run", *flags]
    result = CliRunner().invoke(main, told)
    assert result.exit_code == 0, result.output
    written = RunConfig.read(tmp_path / "run" / "config.yaml")
    assert written.init_from == str(tmp_path / "source.keras")


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_anything_is_written(photos, tmp_path):
    small = {"widths": [4], "attention_levels": (), "conditioning": "input"}
    make_small_model().save(tmp_path / "untrained.keras")
    trained(**small, class_names=KINDS).save(tmp_path / "by_label.keras")
    trained(**small, channels=3).save(tmp_path / "colour.keras")
    student(trained(**small), 2).save(tmp_path / "few.keras")
    trained(**small, condition_shape=(4, 4, 1)).save(tmp_path / "upscaler.keras")
    for name, message in (
        ("untrained.keras", "never trained"),
        ("by_label.keras", "takes labels, and the run has none: give --labels"),
        ("colour.keras", "images of 3 channels, and the run's have 1: give --channels 3"),
        ("few.keras", "draws in 2 steps what another model draws in more"),
        ("upscaler.keras", "makes images from conditions of shape .4, 4, 1., and the run from"),
        ("missing.keras", "missing.keras"),
        ("nothing", "no model at"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            runs.train(config_of(photos, tmp_path / name), tmp_path / "run", verbose=0)
    trained(conditioning="input").save(tmp_path / "input.keras")
    with pytest.raises(ValueError, match="do not fit this run.*every_block.*leave .* out, or lab"):
        runs.train(config_of(photos, tmp_path / "input.keras", labels=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="do not fit a model with another widths"):
        config_of(photos, tmp_path / "colour.keras", model={"widths": [8]})
    with pytest.raises(ValueError, match="is told of noise variances, and .* has 1000 times: give"):
        started(
            photos,
            tmp_path / "colour.keras",
            tmp_path,
            channels=3,
            model={"schedule": "linear_beta"},
        )
    with pytest.raises(ValueError, match="starts from its teacher"):
        config_of(photos, "cifar10_32", distill={"model": "cifar10_32"})
    with pytest.raises(ValueError, match="init_from must be a name"):
        config_of(photos, " ")


@pytest.mark.slow
def test_a_preset_of_few_steps_is_no_start_for_a_run_of_many(photos, tmp_path):
    student(trained(), 2).save_to_preset(tmp_path / "few")
    with pytest.raises(ValueError, match="draws in 2 steps what another model draws in more"):
        started(photos, tmp_path / "few", tmp_path)


@pytest.mark.slow
def test_the_same_command_resumes_where_what_it_started_from_is_gone(photos, tmp_path, monkeypatch):
    trained().save(tmp_path / "source.keras")
    monkeypatch.chdir(tmp_path)
    flags = ["--split", "0", "--image-size", "8", "--samples", "0", "--batch-size", "4"]
    flags += ["--no-tensorboard", "--memorization", "0", "--channels", "1", "--steps"]
    told = ["train", "--data", str(photos), "--init-from", "source.keras", "--out", "run", *flags]
    for steps in ("1", "2"):
        result = CliRunner().invoke(main, [*told, steps])
        assert result.exit_code == 0, result.output
        (tmp_path / "source.keras").unlink(missing_ok=True)
