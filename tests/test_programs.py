"""What is exported for other runtimes: the models that are written, and what is refused. The
programs themselves are run by `make test-extras`.
"""

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_small_model, slow_on_jax

from ddim_keras import (
    Autoguidance,
    ClassifierFreeGuidance,
    GuidanceFunction,
    SamplingDefaults,
)
from ddim_keras.cli import main
from ddim_keras.presets import programs
from ddim_keras.sampling import portable
from ddim_keras.support import cores

NOISE = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")
LABELS = [2, 0, None]
NUMBERS = np.array([2, 0, 3], "int32")


@pytest.fixture(scope="module")
def labelled():
    keras.utils.set_random_seed(0)
    model = make_small_model(num_classes=3, parameterization="velocity")
    model.normalizer.fix(0.4, 0.3)
    weights = [
        weight + 0.1 * np.random.default_rng(index).normal(size=weight.shape)
        for index, weight in enumerate(model.network.get_weights())
    ]
    for network in (model.network, model.ema_network):
        network.set_weights(weights)
    return model


@pytest.fixture(scope="module")
def plain():
    return make_small_model()


def walked(model, given, **options):
    found = portable.portable_walk(model.engine, model.ema_network, **options)
    return np.asarray(portable.walk_model(found)(given)["images"])


@pytest.mark.parametrize("sampler", ["unipc", "heun"])
def test_the_exported_walk_makes_the_images_of_generate(labelled, sampler):
    options = {"diffusion_steps": 4, "sampler": sampler, "clipping": "static"}
    options["guidance"] = ClassifierFreeGuidance(2.0, interval=(0.3, 0.9))
    images = walked(labelled, {"initial_noise": NOISE, "labels": NUMBERS}, **options)
    expected = labelled.generate(3, initial_noise=NOISE, labels=LABELS, verbose=0, **options)
    assert expected.std() > 0.05
    np.testing.assert_allclose(images, expected, atol=1e-5)


@pytest.mark.slow
def test_the_models_own_guidance_is_exported_with_the_walk(labelled, monkeypatch):
    monkeypatch.setattr(labelled.engine, "defaults", SamplingDefaults(2, guidance=3.0))
    images = walked(labelled, {"initial_noise": NOISE, "labels": NUMBERS})
    told = {"initial_noise": NOISE, "labels": LABELS, "verbose": 0}
    np.testing.assert_allclose(images, labelled.generate(3, **told), atol=1e-5)
    assert abs(images - labelled.generate(3, guidance=1, **told)).max() > 0.01


def test_one_evaluation_after_another_is_the_walk(labelled):
    found = portable.portable_walk(labelled.engine, labelled.ema_network, diffusion_steps=3)
    step = portable.evaluation_model(found)
    names = ["noisy_images", *portable.memory_names()]
    state = dict.fromkeys(names, np.zeros_like(NOISE)) | {"noisy_images": NOISE}
    for row in found.rows:
        made = step({**state, "row": row[None], "labels": NUMBERS})
        state = {name: np.asarray(made[portable.following(name)]) for name in names}
    images = labelled.denormalize(state["noisy_images"])
    expected = labelled.generate(3, 3, initial_noise=NOISE, labels=LABELS, verbose=0)
    np.testing.assert_allclose(np.asarray(images), expected, atol=1e-5)


@pytest.mark.parametrize("schedule", ["angle", "linear_beta"])
def test_the_exported_denoiser_says_what_denoise_says(schedule):
    model = make_small_model(schedule=schedule)
    found = portable.portable_denoiser(model.engine, model.ema_network)
    noise_rates = np.array([0.3, 0.6, 0.9], "float32").reshape(3, 1, 1, 1)
    signal_rates = np.sqrt(1.0 - noise_rates**2)
    given = {"noisy_images": NOISE, "noise_rates": noise_rates, "signal_rates": signal_rates}
    said = portable.denoiser_model(found)(given)
    expected = model.denoise(NOISE, noise_rates, signal_rates)
    for name, part in zip(("pred_noises", "pred_images"), expected):
        np.testing.assert_allclose(np.asarray(said[name]), np.asarray(part), atol=1e-5)


@slow_on_jax
def test_guidance_of_each_image_by_its_own_rate_is_that_of_each_image_alone(labelled):
    guidance = ClassifierFreeGuidance(3.0, interval=(0.5, 1.0))
    found = portable.portable_denoiser(labelled.engine, labelled.ema_network, guidance=guidance)
    denoise = portable.denoiser_model(found)
    rates = np.array([0.3, 0.6, 0.9], "float32").reshape(3, 1, 1, 1)
    given = {"noise_rates": rates, "signal_rates": np.sqrt(1.0 - rates**2)}
    given |= {"noisy_images": NOISE, "labels": NUMBERS}
    together = np.asarray(denoise(given)["pred_images"])
    for index in range(3):
        alone = denoise({name: part[index : index + 1] for name, part in given.items()})
        np.testing.assert_allclose(together[index], np.asarray(alone["pred_images"])[0], atol=1e-5)


def test_a_weaker_model_is_exported_with_the_walk(labelled):
    weaker = make_small_model(parameterization="velocity")
    weaker.normalizer.fix(0.4, 0.3)
    options = {"diffusion_steps": 2, "guidance": Autoguidance(weaker, 2.0)}
    images = walked(labelled, {"initial_noise": NOISE, "labels": NUMBERS}, **options)
    expected = labelled.generate(3, initial_noise=NOISE, labels=LABELS, verbose=0, **options)
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_what_computes_in_half_precision_is_exported_in_float32(plain):
    model = make_small_model(dtype="mixed_bfloat16")
    network = portable.in_float32(model.ema_network)
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}
    for weight, before in zip(network.get_weights(), model.ema_network.get_weights()):
        np.testing.assert_array_equal(weight, before)
    assert portable.in_float32(plain.ema_network) is plain.ema_network


def test_nothing_that_is_exported_divides_batches(monkeypatch):
    monkeypatch.setattr(cores.backend, "is_tensorflow_on_processor", lambda: False)
    with cores.whole_batches():
        assert cores.parts_of_a_batch() == 1


REFUSED = {
    "an unknown format": (("out", "coreml", "generate"), {}, "format must be one of"),
    "an unknown signature": (("out", "tf_saved_model", "train"), {}, "signature must be one of"),
    "a file that should be a folder": (("out.onnx", "tf_saved_model", "generate"), {}, "a folder"),
    "a wrong suffix": (("out", "onnx", "generate"), {}, "must end in .onnx"),
    "noise on the way": (
        ("out", "tf_saved_model", "generate"),
        {"eta": 1.0},
        "adds fresh noise .* deterministic",
    ),
    "steps of a denoiser": (
        ("out", "tf_saved_model", "denoise"),
        {"diffusion_steps": 3},
        "diffusion_steps belong to a walk",
    ),
    "steps of the network alone": (
        ("out", "tf_saved_model"),
        {"diffusion_steps": 3, "labels": 1},
        'diffusion_steps, labels belong to a walk.* give signature="generate"',
    ),
    "labels that are fixed": (
        ("out", "tf_saved_model", "generate"),
        {"labels": 1},
        "labels cannot be fixed in a program",
    ),
    "a misspelt option": (
        ("out", "tf_saved_model", "generate"),
        {"steps": 3},
        r"unknown options of a walk \['steps'\]: expected some of",
    ),
    "a function with an interval": (
        ("out", "tf_saved_model", "denoise"),
        {"guidance": GuidanceFunction(lambda noisy, images, *rates: images, (0.1, 0.5))},
        "leave its interval out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused_in_words_and_nothing_is_written(case, plain, tmp_path):
    (name, *kind), options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        plain.export(tmp_path / name, *kind, **options)
    assert not list(tmp_path.iterdir())


def test_what_stands_there_is_kept(plain, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(ValueError, match="exists: move it away"):
        plain.export(tmp_path / "mine", "tf_saved_model", "generate")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"


def test_a_missing_library_is_named_with_what_installs_it(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(programs.backend, "MAKES_GRAPHS", True)
    monkeypatch.setattr(programs, "_is_installed", lambda module: module != "tf2onnx")
    with pytest.raises(ImportError, match=r"needs tf2onnx, .* pip install 'ddim_keras\[onnx\]'"):
        plain.export(tmp_path / "walk.onnx", "onnx", "generate")


def test_under_jax_other_formats_than_the_saved_model_are_refused(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(programs.backend, "MAKES_GRAPHS", False)
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        plain.export(tmp_path / "walk.tflite", "litert", "generate")


def test_without_a_signature_the_network_is_exported_as_keras_does(plain, tmp_path, monkeypatch):
    model = plain
    calls = []
    monkeypatch.setattr(
        model.ema_network, "export", lambda *given, **options: calls.append((given, options))
    )
    model.export(tmp_path / "network", verbose=False)
    model.export(tmp_path / "network.onnx", format="onnx")
    (usual, options), (_, onnx) = calls
    assert usual == (str(tmp_path / "network"),)
    assert options == {"format": "tf_saved_model", "verbose": False}
    # Keras refuses to write ONNX of a network that was never called, unless it is told its inputs.
    shapes = [spec.shape for spec in onnx["input_signature"][0]]
    assert shapes == [(None, 8, 8, 1), (None, 1, 1, 1)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["model.h5"], "must end in .keras, .onnx, .xml, .tflite"),
        (["--format", "onnx", "walk"], "must end in .onnx for the format onnx"),
        (["--steps", "5", "preset"], "a preset fixes neither steps nor guidance"),
    ],
)
def test_the_command_line_refuses_what_does_not_fit(tmp_path, arguments, message):
    *options, out = arguments
    result = CliRunner().invoke(main, ["export", *options, str(tmp_path / out)])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_the_command_line_hands_over_what_is_to_be_fixed(labelled, tmp_path, monkeypatch):
    model = labelled
    told = []
    monkeypatch.setattr("ddim_keras.cli.models.load", lambda *given, **options: model)
    monkeypatch.setattr(programs, "write", lambda *given, **options: told.append((given, options)))
    out = tmp_path / "walk"
    options = ["--steps", "5", "--sampler", "ddim", "--guidance", "2"]
    chosen = ["export", "--format", "tf_saved_model", *options, str(out)]
    result = CliRunner().invoke(main, chosen, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (_, _, *kind), fixed = told[0]
    assert kind == [out, "tf_saved_model", "generate"]
    assert fixed.pop("guidance").weight == 2.0
    assert fixed == {"diffusion_steps": 5, "sampler": "ddim"}
