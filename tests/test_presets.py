import json
import pathlib

import keras
import numpy as np
import pytest
from conftest import first_quick, make_trained_model, random_images, slow_on_jax

from ddim_keras import DiffusionModel, presets


@slow_on_jax
def test_the_shipped_model_draws_clothes_in_one_line():
    """Scored by the classifier that ships: what it draws is told apart as surely as real clothes,
    and all classes occur.
    """
    from ddim_keras import metrics

    images = DiffusionModel.from_preset("fashion_mnist_32").generate(64, seed=0, verbose=0)
    probabilities = np.asarray(metrics.get_extractor("fashion_mnist").probabilities(images))
    assert np.median(probabilities.max(axis=1)) > 0.9
    assert len(set(probabilities.argmax(axis=1))) >= 8


def test_the_shipped_weights_stay_small():
    folder = pathlib.Path(presets.__file__).parent / "pretrained"
    largest = {
        **dict.fromkeys(("cifar10_32", "cifar10_32_guided"), 16e6),
        **dict.fromkeys(
            ("fashion_mnist_32", "fashion_mnist_32_few_steps", "fashion_mnist_32_guided"), 2e6
        ),
    }
    assert {path.parent.name for path in folder.rglob("weights.npz")} == set(largest)
    for weights in folder.rglob("weights.npz"):
        assert weights.stat().st_size < largest[weights.parent.name]
        assert (weights.parent / "README.md").is_file(), "a model that ships has its card"


@pytest.mark.slow
def test_presets_load_without_their_weights_and_with_changes():
    model = DiffusionModel.from_preset(
        "fashion_mnist_32", load_weights=False, image_size=16, channels=3, seed=4
    )
    assert model.image_shape == (16, 16, 3)
    assert not model.normalizer.adapted
    model.compile(**presets.training("fashion_mnist_32").compile_arguments(steps=2))
    model.fit(random_images(8, (16, 16, 3)), batch_size=4, verbose=0)


def test_samplers_fitted_to_a_presets_weights_stay_with_them():
    config = presets.read("fashion_mnist_32").config
    assert config["sampling_defaults"]["config"]["samplers"]
    untrained = presets.read("fashion_mnist_32", load_weights=False).config
    assert "samplers" not in untrained["sampling_defaults"]["config"]
    mine = {"sampling_defaults": config["sampling_defaults"]}
    assert presets.read("fashion_mnist_32", False, mine).config["sampling_defaults"]["config"][
        "samplers"
    ]


@pytest.mark.parametrize(
    "changes", [{}, {"num_classes": None, "class_names": None}, {"label_dropout": 0.0}]
)
def test_guidance_that_suits_the_weights_goes_with_them(changes):
    assert presets.read("cifar10_32").config["sampling_defaults"]["config"]["guidance"] == 3.0
    small = {"widths": [4], "block_depth": 1, "attention_levels": ()}
    model = DiffusionModel.from_preset("cifar10_32", load_weights=False, **small, **changes)
    assert model.sampling_defaults.guidance is None


@pytest.mark.slow
def test_the_example_stays_available_by_name():
    model = DiffusionModel.from_preset("keras_example")
    assert model.network.count_params() == DiffusionModel(image_size=64).network.count_params()
    training = presets.training("keras_example")
    optimizer = training.compile_arguments(10)["optimizer"]
    assert (float(optimizer.learning_rate), optimizer.weight_decay, training.loss) == (
        pytest.approx(1e-3),
        1e-4,
        "mean_absolute_error",
    )


@slow_on_jax
@pytest.mark.parametrize(
    ("half", "tolerance"), [(True, 2e-2), pytest.param(False, 1e-6, marks=pytest.mark.slow)]
)
def test_a_model_comes_back_from_its_folder(tmp_path, half, tolerance):
    model = make_trained_model(parameterization="velocity", schedule="cosine_beta")
    training = presets.Training(batch_size=8, learning_rate=3e-4, schedule="cosine", flip=True)
    model.save_to_preset(tmp_path / "mine", half=half, training=training)
    again = DiffusionModel.from_preset(tmp_path / "mine")
    np.testing.assert_allclose(
        again.generate(2, 5, seed=3), model.generate(2, 5, seed=3), atol=tolerance
    )
    assert presets.training(tmp_path / "mine") == training
    # It can be trained on: the network starts where its average was.
    for average, weight in zip(again.ema_network.get_weights(), again.network.get_weights()):
        np.testing.assert_array_equal(average, weight)
    again.compile(**training.compile_arguments(3))
    again.fit(random_images(), batch_size=8, verbose=0)
    sizes = [(tmp_path / "mine" / "weights.npz").stat().st_size]
    model.save_to_preset(tmp_path / "mine", half=not half)
    sizes.append((tmp_path / "mine" / "weights.npz").stat().st_size)
    assert (sizes[0] < 0.7 * sizes[1]) == half


@slow_on_jax
def test_saving_again_keeps_the_model_card_and_touches_nothing_else(trained_model, tmp_path):
    model = trained_model
    model.save_to_preset(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("my card")
    model.save_to_preset(tmp_path / "mine")
    (tmp_path / "mine" / "samples").mkdir()
    (tmp_path / "mine" / "samples" / "a.png").write_bytes(b"picture")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    model.save_to_preset(tmp_path / "link")
    assert (tmp_path / "mine" / "README.md").read_text() == "my card"
    assert (tmp_path / "mine" / "samples" / "a.png").read_bytes() == b"picture"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "link").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(ValueError, match="exists and is no preset"):
        model.save_to_preset(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"


@slow_on_jax
def test_a_failed_save_leaves_the_old_preset_whole(tmp_path):
    model = make_trained_model()
    model.save_to_preset(tmp_path / "mine")
    before = (tmp_path / "mine" / "weights.npz").read_bytes()
    model.ema_network.weights[0].assign(np.full(model.ema_network.weights[0].shape, np.nan))
    with pytest.raises(ValueError, match="diverged"):
        model.save_to_preset(tmp_path / "mine")
    assert (tmp_path / "mine" / "weights.npz").read_bytes() == before


@slow_on_jax
def test_untrained_models_and_foreign_networks_are_no_presets(tmp_path):
    with pytest.raises(ValueError, match="never trained"):
        DiffusionModel(8, [4], 1).save_to_preset(tmp_path / "mine")
    image, variance = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    network = keras.Model([image, variance], keras.layers.Conv2D(1, 1)(image + variance))
    model = DiffusionModel(8, channels=1, network=network)
    model.normalizer.adapt(random_images())
    with pytest.raises(ValueError, match="network of your own"):
        model.save_to_preset(tmp_path / "mine")


@slow_on_jax
def test_unknown_and_damaged_presets_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"unknown preset 'mnist': expected one of \['cifar10_32', 'cifar10_32_guided', 'ddpm",
    ):
        DiffusionModel.from_preset("mnist")
    make_trained_model().save_to_preset(tmp_path / "mine")
    weights = tmp_path / "mine" / "weights.npz"
    whole = weights.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        b"",
        bytes(byte ^ 255 if 900 < i < 1000 else byte for i, byte in enumerate(whole)),
    ):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            DiffusionModel.from_preset(tmp_path / "mine")
    weights.write_bytes(whole)
    arrays = dict(np.load(weights))
    for bad in (arrays["arr_3"] * np.nan, arrays["arr_3"] + 1j):
        np.savez(weights, **{**arrays, "arr_3": bad})
        with pytest.raises(ValueError, match=r"weights\.npz is damaged \(arr_3 holds NaN"):
            DiffusionModel.from_preset(tmp_path / "mine")
    weights.write_bytes(whole)
    for change in ({"widths": [4, 12]}, {"parameterization": "velocity"}, {"image_size": 16}):
        with pytest.raises(
            ValueError, match=f"do not fit a model with another {next(iter(change))}"
        ):
            DiffusionModel.from_preset(tmp_path / "mine", **change)
    weights.unlink()
    with pytest.raises(ValueError, match="is missing"):
        DiffusionModel.from_preset(tmp_path / "mine")
    weights.write_bytes(whole)
    description = tmp_path / "mine" / "preset.json"
    for text in ("{", json.dumps({"format": 99}), json.dumps({"format": 1})):
        description.write_text(text)
        with pytest.raises(ValueError, match="does not describe a preset"):
            DiffusionModel.from_preset(tmp_path / "mine")


@pytest.mark.parametrize(
    "damage", first_quick(["array", "deep", "type", "lookup", "model", "encrypted"])
)
def test_whatever_is_damaged_in_a_preset_its_file_is_named(tmp_path, damage):
    make_trained_model().save_to_preset(tmp_path / "mine")
    description, weights = (tmp_path / "mine" / name for name in ("preset.json", "weights.npz"))
    said = json.loads(description.read_text())
    damaged = weights if damage in ("array", "encrypted") else description
    if damage == "deep":
        description.write_text("[" * 100000)
    elif damage == "array":
        with open(weights, "wb") as file:
            np.save(file, np.ones(3))
    elif damage == "encrypted":
        contents = bytearray(weights.read_bytes())
        contents[contents.index(b"PK\x01\x02") + 8] |= 1
        weights.write_bytes(contents)
    else:
        wrong = {
            "model": {},
            "type": {**said["model"], "embedding_dims": [1, "a"]},
            "lookup": {**said["model"], "sampling_defaults": {}},
        }
        description.write_text(json.dumps({**said, "model": wrong[damage]}))
    with pytest.raises(ValueError, match=f"{damaged.name} .*: copy or install"):
        DiffusionModel.from_preset(tmp_path / "mine", load_weights=damage != "lookup")


@slow_on_jax
def test_a_folder_cannot_take_the_name_of_a_preset_that_ships(trained_model, tmp_path):
    with pytest.raises(ValueError, match="'keras_example' is the name of a preset that ships"):
        trained_model.save_to_preset(tmp_path / "keras_example")


@pytest.mark.slow
def test_what_half_precision_cannot_hold_stays_whole(tmp_path):
    model = make_trained_model()
    weight = model.ema_network.weights[0]
    weight.assign(np.full(weight.shape, 1e5))
    model.save_to_preset(tmp_path / "mine")
    again = DiffusionModel.from_preset(tmp_path / "mine")
    np.testing.assert_array_equal(again.ema_network.weights[0], weight)


@slow_on_jax
def test_training_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="schedule must be"):
        presets.Training(schedule="linear")
    with pytest.raises(ValueError, match="warmup"):
        presets.Training(warmup=1.0)
    with pytest.raises(ValueError, match="steps"):
        presets.Training().compile_arguments(0)


@slow_on_jax
def test_the_learning_rate_rises_and_falls():
    rate = (
        presets.Training(learning_rate=1.0, schedule="cosine", warmup=0.1)
        .compile_arguments(100)["optimizer"]
        ._learning_rate
    )
    rates = [float(rate(step)) for step in (0, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0.05, 1.0, 0.505, 0.01], rtol=0.02)


@slow_on_jax
def test_the_learning_rate_takes_as_many_batches_where_several_make_a_step():
    rates = {}
    for accumulate in (1, 4):
        recipe = presets.Training(schedule="cosine", warmup=0.1, accumulate=accumulate)
        optimizer = recipe.compile_arguments(40)["optimizer"]
        variable = keras.Variable([1.0])
        optimizer.build([variable])
        rates[accumulate] = []
        for _ in range(40):
            rates[accumulate].append(float(optimizer.learning_rate))
            optimizer.apply([keras.ops.ones(1)], [variable])
    assert rates[4] == rates[1]


@pytest.mark.parametrize("size", [8, 16, 28, 32, 48, (48, 80), 64, 96, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_recommended_fits_the_size(size, channels):
    """Levels down to a handful of pixels, and a network that takes such images."""
    found = presets.recommend(size, channels, num_images=4000)
    height, width = (size, size) if isinstance(size, int) else size
    shrunk = found.model["patch_size"] * 2 ** (len(found.model["widths"]) - 1)
    assert height % shrunk == width % shrunk == 0
    assert 4 <= min(height, width) // shrunk <= 8
    assert found.reasons


@pytest.mark.parametrize(
    ("size", "channels", "least"),
    [(32, 3, 0.005), (64, 3, 0.0025), ((64, 16), 4, 0.005), (64, 1, 0.01), (32, 1, None)],
)
def test_larger_images_are_recommended_a_noisier_end(size, channels, least):
    """Or something of their brightness would be left in what a walk takes for noise."""
    found = presets.recommend(size, channels)
    if least is None:
        assert "schedule" not in found.model and "schedule" not in found.reasons
        return
    own = {"load_weights": False, "image_size": size, "channels": channels}
    model = DiffusionModel.from_preset(found.preset, **own, **found.model)
    assert model.engine.schedule.min_signal_rate == least
    assert f"signal rate of {least:g}" in found.reasons["schedule"]


@pytest.mark.slow
def test_a_recommended_model_trains():
    found = presets.recommend(16, 3)
    model = DiffusionModel.from_preset(
        found.preset, load_weights=False, image_size=16, channels=3, seed=0, **found.model
    )
    model.compile(**found.training.compile_arguments(steps=2))
    losses = model.fit(random_images(8, (16, 16, 3)), batch_size=4, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


def test_clothes_are_recommended_the_recipe_that_was_found_on_them():
    found = presets.recommend(32, channels=1, num_images=60_000)
    config = presets.read("fashion_mnist_32", load_weights=False).config
    assert {name: config[name] for name in found.model} == found.model
    assert found.training == presets.training("fashion_mnist_32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be an integer, at least 1"),
        ({"image_size": 32, "channels": 0}, "channels must be"),
        ({"image_size": 32, "num_images": 0}, "num_images must be"),
        ({"image_size": 32, "minutes": 0.0}, "minutes must be a positive number, got 0.0"),
    ],
)
def test_nothing_is_recommended_for_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        presets.recommend(**arguments)
