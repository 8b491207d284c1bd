import dataclasses
import gc
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
import weakref

import click
import numpy as np
import PIL.Image
import pytest
import yaml
from click.testing import CliRunner
from conftest import (
    ROOT,
    first_quick,
    make_small_model,
    make_trained_model,
    random_images,
    run_python,
    slow_on_jax,
)

import ddim_keras
from ddim_keras import exporting
from ddim_keras.cli import main
from ddim_keras.cli.options import SIZE
from ddim_keras.data import pairs
from ddim_keras.guidance import ClassifierFreeGuidance
from ddim_keras.presets import Training
from ddim_keras.runs import RunConfig
from ddim_keras.runs.signals import terminated_like_interrupted
from ddim_keras.support import cores
from ddim_keras.support.docstrings import attributes
from ddim_keras.support.folder_locks import only_one_in

pytestmark = slow_on_jax


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    make_trained_model(parameterization="velocity").save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    draws = np.random.default_rng(0)
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        PIL.Image.fromarray(draws.integers(0, 255, (10, 12, 3), dtype="uint8")).save(path)
    return paths


def size_of(path):
    with PIL.Image.open(path) as picture:
        return picture.size


# Help


def test_every_command_shows_an_example():
    commands = set(main.commands)
    assert commands == {
        *(
            "train",
            "fit-sampler",
            "distill",
            "generate",
            "encode",
            "decode",
            "reconstruct",
            "interpolate",
            "inpaint",
            "restore",
            "serve",
            "demo",
            "evaluate",
            "export",
            "convert",
            "info",
            "datasets",
        )
    }
    for name in commands:
        assert f"ddim-keras {name}" in run(name, "--help").split("Options:")[0]


def in_a_process(*arguments):
    """What a command writes: (its status, standard output, standard error)."""
    command = [
        sys.executable,
        "-c",
        "from ddim_keras.cli import main; main(prog_name='ddim-keras')",
        *arguments,
    ]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    variables.pop("TF_CPP_MIN_LOG_LEVEL", None)
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.slow
def test_what_tensorflow_says_at_every_start_is_kept_back():
    status, output, errors = in_a_process("info")
    assert (status, errors) == (0, "")
    assert "trained:    yes" in output
    status, output, errors = in_a_process("info", "-m", "nothing")
    assert (status, output) == (1, "")
    assert errors.startswith("Error: no model at nothing") and errors.count("\n") == 1


def test_help_and_wrong_flags_import_neither_keras_nor_a_backend():
    code = """
import sys
from ddim_keras.cli import main
helps = [[name, "--help"] for name in main.commands]
for arguments in (["--help"], ["--version"], ["train", "--bogus"], *helps):
    try:
        main(arguments)
    except SystemExit:
        pass
print(sorted({"keras", "tensorflow", "jax"} & set(sys.modules)))
"""
    assert run_python(code).split("\n")[-2] == "[]"


def test_ctrl_c_is_answered_in_a_line_before_a_command_begins():
    code = """
import importlib.abc, os, signal, sys

class Impatient(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "ddim_keras.cli.group":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # of background jobs it is ignored
sys.meta_path.insert(0, Impatient())
sys.argv = ["ddim-keras", "--version"]
from ddim_keras.__main__ import start
start()
"""
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")


def test_the_options_of_train_are_the_settings_of_a_run():
    said = " ".join(run("train", "--help").split())
    for configuration in (RunConfig, Training):
        texts = attributes(configuration)
        for field in dataclasses.fields(configuration):
            if field.name not in ("model", "training", "distill"):
                assert f"--{field.name.replace('_', '-')}" in said
                assert texts[field.name].replace("`", "")[1:] in said


@pytest.mark.parametrize("written", ["8x12", "8,12", "8X12"])
def test_sizes_are_height_and_width(written):
    assert SIZE.convert(written, None, None) == [8, 12]
    assert SIZE.convert("64", None, None) == 64


@pytest.mark.parametrize("written", ["x12", "8x12x3", "0", "-8", "a", "", "8x"])
def test_what_is_no_size_is_refused(tmp_path, written):
    said = run("train", "-d", "embedded", "-o", tmp_path / "a", f"--image-size={written}", code=2)
    assert "HEIGHTxWIDTH, such as 64x96" in " ".join(said.split())


# Errors


def test_errors_are_one_line_unless_debugged(tmp_path):
    said = run("info", "-m", tmp_path / "no.keras", code=1)
    assert said.startswith("Error: no model file at") and said.count("\n") == 1
    result = CliRunner().invoke(main, ["--debug", "info", "-m", str(tmp_path / "no.keras")])
    assert isinstance(result.exception, FileNotFoundError)


def test_a_file_in_the_way_of_a_folder_is_named_and_stays(tmp_path, model_path):
    (tmp_path / "file").write_text("in the way")
    below = tmp_path / "file" / "deep"
    for arguments in (
        ["train", "-d", "embedded", "-o", tmp_path / "file"],
        ["train", "-d", "embedded", "-o", below],
        ["generate", "-n", 1, "-s", 2, "-m", model_path, "-o", below],
        ["export", "-m", model_path, below],
        ["export", "-m", model_path, below / "model.keras"],
    ):
        said = run(*arguments, code=1)
        assert said.startswith("Error: cannot write to") and said.count("\n") == 1, said
        assert f"{tmp_path}/file is a file, not a folder. Give another folder" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def interruptible():
    """Python's own answer to SIGINT, which a shell takes away from what it runs beside itself."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_the_command_in_a_line(tmp_path, monkeypatch, number):
    before = signal.getsignal(signal.SIGTERM)

    def prepare(*_, **__):
        os.kill(os.getpid(), number)
        for _ in range(1000):  # another thread may get the signal, which then takes a moment
            time.sleep(0.01)

    monkeypatch.setattr("ddim_keras.runs.training._prepare", prepare)
    said = run("train", "-d", "embedded", "-o", tmp_path / "run", code=130)
    assert said == "Interrupted.\n" and not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["collector", "finalizer", "reference"])
def test_a_signal_is_not_lost_where_python_ignores_exceptions(number, where):
    """JAX has a callback of the garbage collector, in which a Ctrl-C during imports often came."""

    def signalled(phase="start", *_):
        if phase == "start":
            os.kill(os.getpid(), number)
            time.sleep(0.001)

    class Finalized:
        def __del__(self):
            signalled()

    before = [signal.getsignal(number), sys.unraisablehook]
    with pytest.raises(KeyboardInterrupt), terminated_like_interrupted():
        if where == "finalizer":
            Finalized()
        elif where == "reference":
            dropped = np.empty(1)
            reference = weakref.ref(dropped, lambda _: signalled())
            del dropped
            assert reference() is None
        else:
            gc.callbacks.append(signalled)
            try:
                gc.collect()
            finally:
                gc.callbacks.remove(signalled)
        for _ in range(200):
            time.sleep(0.01)
    assert before == [signal.getsignal(number), sys.unraisablehook]


@pytest.mark.parametrize(
    ("arguments", "divides"),
    [
        (["train", "--data", "nowhere", "--out", "run"], True),
        (["train", "--data", "nowhere", "--out", "run", "--preset", "keras_example"], False),
        (["train", "--data", "nowhere", "--out", "run", "--set", "normalization=batch"], False),
        (["generate", "-m", "nowhere", "--out", "images", "-n", "64"], True),
        (["generate", "-m", "nowhere", "--out", "images", "-n", "16"], False),
        (["evaluate", "-m", "nowhere"], True),
    ],
)
def test_batches_are_divided_among_the_cores_where_it_pays(
    arguments, divides, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(cores, "divide_batches_among_cores", lambda: calls.append(1))
    monkeypatch.chdir(tmp_path)
    run(*arguments, code=1)  # there is nothing to read
    assert bool(calls) == divides


def test_unknown_models_name_what_there_is(tmp_path):
    assert "fashion_mnist_32" in run("info", "-m", "nothing", code=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("steps: 3\n")
    assert "has no model yet" in run("info", "-m", tmp_path / "run", code=1)


def test_an_error_that_nobody_foresaw_says_where_to_see_more(model_path, monkeypatch):
    def fail(source: str, **options):
        raise TypeError("an odd thing")

    monkeypatch.setattr("ddim_keras.cli.models.load", fail)
    output = run("info", "-m", model_path, code=1)
    assert "TypeError: an odd thing (ddim-keras --debug" in output


def test_bad_flags_are_refused(tmp_path, model_path):
    assert "expected I/N" in run(
        "generate", "-m", model_path, "-o", tmp_path / "a", "--shard", "3", code=2
    )
    assert "there are only 1 shards" in run(
        "generate", "-m", model_path, "-o", tmp_path / "a", "--shard", "1/2", code=1
    )
    train = ["train", "-o", tmp_path / "a", "-d", "embedded"]
    assert "bogus" in run(*train, "--set", "bogus=3", code=1)
    assert "widths must be a list of integers" in run(*train, "--set", "widths=3", code=1)
    assert "no run in" in run(
        "train", "-o", tmp_path / "a", code=2
    )  # a misspelt folder must not train the clothes
    assert not (tmp_path / "a").exists()
    assert "below 2" in run(
        "generate", "-m", model_path, "-o", tmp_path / "a", "--shard", "2/2", code=1
    )
    assert "such as train[:90%],test" in run(*train, "--split", "train", code=2)
    assert "must be a pair of split names" in run(*train, "--split", "0.1", code=1)
    assert "expected NAME=VALUE" in run(*train, "--set", "widths", code=2)


# Training


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for index in range(12):
        PIL.Image.fromarray(draws.integers(0, 255, (9, 9), dtype="uint8")).save(
            folder / f"{index}.png"
        )
    return folder


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, photos):
    """(folder, the options that made it, what the command said) of a short training."""
    folder = tmp_path_factory.mktemp("small")
    options = ["--set", "widths=(4,)", "--set", "patch_size=1", "--samples", 0]
    options += ["--precision", "float32", "--data", photos, "--image-size", 8, "--channels", 1]
    options += ["--steps", 6, "--batch-size", 4, "--ema-decay", 0.9, "--split", "0.25"]
    options += ["--cache", folder / "cache"]
    return folder / "run", options, run("train", "--out", folder / "run", *options)


def test_train_writes_a_configuration(small_run):
    out, options, said = small_run
    assert "Trained for 6 steps" in said
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"] == {"ema_decay": 0.9, "widths": [4], "patch_size": 1}
    assert config["training"] == {"batch_size": 4}
    assert (config["split"], config["cache"]) == (0.25, str(out.parent / "cache"))
    assert list((out.parent / "cache").iterdir())
    log = (out / "log.csv").read_text()
    assert "Nothing is left to do" in run("train", "--out", out)
    assert "Nothing is left to do" in run("train", "--out", out, *options)
    assert (out / "log.csv").read_text() == log
    assert len(log.split()) == 2  # though its epoch is a short one
    assert "predicts:   velocity" in run("info", "-m", out)


@pytest.mark.slow
def test_a_configuration_repeats_its_run(small_run, tmp_path):
    out = small_run[0]
    assert "n_loss" not in run(
        "evaluate", "-m", out, "--features", "fashion_mnist", "-n", 8, "--metric", "kid", "-s", 2
    )
    run("train", "--config", out / "config.yaml", "--out", tmp_path / "again")
    one, other = (
        ddim_keras.load_model(folder / "model.keras") for folder in (out, tmp_path / "again")
    )
    for left, right in zip(one.ema_network.get_weights(), other.ema_network.get_weights()):
        np.testing.assert_array_equal(left, right)
    assert "seed: 0 there, 7 now" in run(
        "train", "--config", out / "config.yaml", "--seed", 7, "--out", out, code=1
    )
    # In a new process, which knows of no metric yet: the run has a KID.
    code = (
        "import keras, ddim_keras; "
        f"print(keras.models.load_model({str(out / 'best.keras')!r}).metrics)"
    )
    assert "name=kid" in run_python(code)


# Generating


def test_generate_fixes_each_image_by_seed_and_number(tmp_path, model_path):
    run(
        "generate",
        "-m",
        model_path,
        "-n",
        10,
        "-o",
        tmp_path / "whole",
        "--steps",
        3,
        "--shard-size",
        4,
    )
    files = sorted(
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("shard_*/*.png")
    )
    assert [str(path) for path in files[:2]] == ["shard_00000/000000.png", "shard_00000/000001.png"]
    assert len(files) == 10
    assert (tmp_path / "whole" / "contact_sheet.png").is_file()
    for machine in ("1/2", "0/2"):
        run(
            "generate",
            "-m",
            model_path,
            "-n",
            10,
            "-o",
            tmp_path / "parts",
            "--steps",
            3,
            "--shard-size",
            4,
            "--shard",
            machine,
        )
    expected = np.rint(255 * ddim_keras.load_model(model_path).generate(10, 3, seed=0)).astype(int)
    for number, path in enumerate(files):
        for folder in ("whole", "parts"):
            with PIL.Image.open(tmp_path / folder / path) as picture:
                np.testing.assert_allclose(
                    np.asarray(picture, int), expected[number, ..., 0], atol=1
                )
    metadata = json.loads((tmp_path / "whole" / "metadata.json").read_text())
    assert metadata["num_images"] == 10 and len(metadata["model_sha256"]) == 64


def test_a_killed_export_goes_on_and_leaves_nothing_half_written(tmp_path, model_path, monkeypatch):
    model = ddim_keras.load_model(model_path)
    options = {"diffusion_steps": 2, "format": "npz", "shard_size": 3, "tell": lambda line: None}

    class KilledError(Exception):
        pass

    def fail(path, images, first):
        path.write_bytes(b"half")
        raise KilledError

    assert exporting.export_images(model, tmp_path / "whole", 8, **options) == 3
    (tmp_path / "whole" / "shard_00001.npz").unlink()
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setitem(exporting.FORMATS, "npz", exporting.FORMATS["npz"]._replace(write=fail))
        exporting.export_images(model, tmp_path / "whole", 8, **options)
    assert not (tmp_path / "whole" / "shard_00001.npz").exists()
    kept = (tmp_path / "whole" / "shard_00000.npz").stat().st_mtime_ns
    assert exporting.export_images(model, tmp_path / "whole", 8, **options) == 1
    assert (tmp_path / "whole" / "shard_00000.npz").stat().st_mtime_ns == kept
    shards = [np.load(path)["images"] for path in sorted((tmp_path / "whole").glob("*.npz"))]
    expected = np.rint(255 * model.generate(8, 2, seed=0)).astype(int)
    np.testing.assert_allclose(np.concatenate(shards).astype(int), expected, atol=1)


@pytest.mark.parametrize("format", first_quick(exporting.FORMATS))
def test_a_damaged_shard_is_made_again_and_said(tmp_path, model_path, format):
    model = ddim_keras.load_model(model_path)
    options = {"diffusion_steps": 1, "format": format, "shard_size": 2, "tell": lambda line: None}
    exporting.export_images(model, tmp_path, 4, **options)
    shard = sorted(tmp_path.glob("shard_*"))[1]
    damaged = sorted(shard.iterdir())[0] if format == "png" else shard
    whole = damaged.read_bytes()
    place = len(whole) // 4  # among the pixels in every format
    for wrong in (whole[:place], whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]):
        damaged.write_bytes(wrong)
        with pytest.warns(UserWarning, match=f"{shard.name}.* is damaged"):
            assert exporting.export_images(model, tmp_path, 4, **options) == 1
        assert exporting.export_images(model, tmp_path, 4, **options) == 0


def test_a_damaged_description_is_refused(tmp_path, model_path):
    (tmp_path / "metadata.json").write_text('{"model_sha256": ')
    assert "metadata.json is damaged" in run("generate", "-m", model_path, "-o", tmp_path, code=1)


@pytest.mark.slow
def test_tfrecords_hold_the_images(tmp_path, model_path):
    import tensorflow as tf

    run(
        "generate",
        "-m",
        model_path,
        "-n",
        3,
        "-o",
        tmp_path,
        "--steps",
        2,
        "--format",
        "tfrecord",
        "--seed",
        5,
    )
    expected = np.rint(255 * ddim_keras.load_model(model_path).generate(3, 2, seed=5)).astype(int)
    records = list(tf.data.TFRecordDataset(str(tmp_path / "shard_00000.tfrecord")))
    for number, record in enumerate(records):
        features = tf.train.Example.FromString(record.numpy()).features.feature
        assert features["image/number"].int64_list.value[0] == number
        image = tf.io.decode_png(features["image/encoded"].bytes_list.value[0]).numpy().astype(int)
        np.testing.assert_allclose(image, expected[number], atol=1)


def test_what_cannot_be_generated_leaves_nothing_behind(tmp_path, model_path):
    out = tmp_path / "images"
    for wrong in (
        ["--sampler", "foo"],
        ["--steps", 0],
        ["--spacing", "foo"],
        ["--eta", 3],
        ["--batch-size", 0],
    ):
        assert "Error: " in run("generate", "-m", model_path, "-o", out, *wrong, code=1)
        assert not out.exists()
    for number in (10**10, 10**20):
        told = ["generate", "-m", model_path, "-o", out]
        many = ["--num-images", number, "--label", 0]  # no label is made for each
        assert "below 2147483648" in run(*told, *many, code=1)
        assert "at most 1000000" in run(*told, "--steps", number, code=1)
        assert not out.exists()
    out.write_text("a file")
    assert "is a file: give a folder" in run("generate", "-m", model_path, "-o", out, code=1)
    picture = tmp_path / "new.png"
    assert f"such as {tmp_path / 'new'}" in run("generate", "-m", model_path, "-o", picture, code=1)
    assert not picture.exists()


def test_metadata_names_what_the_defaults_stood_for(tmp_path, model_path):
    run("generate", "-m", model_path, "-n", 2, "-o", tmp_path, "--steps", 3)
    sampling = json.loads((tmp_path / "metadata.json").read_text())["sampling"]
    assert sampling == {
        "diffusion_steps": 3,
        "sampler": "UniPC(predictor_order=2)",
        "spacing": "log_snr",
    }
    same = ["--steps", 3, "--sampler", "unipc", "--spacing", "log_snr"]
    assert "Nothing was left to do" in run(
        "generate", "-m", model_path, "-n", 2, "-o", tmp_path, *same
    )
    (tmp_path / "shard_00000" / "000001.png").unlink()
    assert "1 shards made" in run("generate", "-m", model_path, "-n", 2, "-o", tmp_path, *same)


def test_a_folder_of_other_images_is_refused(tmp_path, model_path):
    run("generate", "-m", model_path, "-n", 2, "-o", tmp_path, "--steps", 2)
    assert "Nothing was left to do" in run(
        "generate", "-m", model_path, "-n", 2, "-o", tmp_path, "--steps", 2
    )
    said = run(
        "generate", "-m", model_path, "-n", 2, "-o", tmp_path, "--steps", 2, "--seed", 1, code=1
    )
    assert "made otherwise (seed: 0 there, 1 now)" in said


def test_a_folder_of_pictures_of_ones_own_is_warned_of(tmp_path, model_path):
    def generate_into(folder, code=0):
        return run("generate", "-m", model_path, "-n", 1, "-o", folder, "--steps", 1, code=code)

    photos, classes, notes, other = (
        tmp_path / name for name in ("photos", "classes", "notes", "other")
    )
    for place in (photos, classes / "cats", classes / "dogs", notes / "pictures"):
        place.mkdir(parents=True)
        (place / "mine.JPG").write_bytes(b"a photo")
    (notes / "texts").mkdir()
    said = "holds images that were not generated here, such as"
    for folder, own in ((photos, photos / "mine.JPG"), (classes, "mine.JPG"), (notes, None)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert "1 shards made" in generate_into(folder)
            generate_into(folder)  # its own images are none of others
        told = [str(each.message) for each in caught if said in str(each.message)]
        assert len(told) == (own is not None) and all(str(own) in each for each in told)
    other.mkdir()
    (other / "metadata.json").write_text('{"title": "mine"}')
    assert "says nothing of generated images" in generate_into(other, 1)


@pytest.mark.slow
def test_a_diverged_model_is_said_to_be_and_makes_nothing(tmp_path, model_path):
    model = ddim_keras.load_model(model_path)
    kernel = model.ema_network.weights[0]
    kernel.assign(np.full(kernel.shape, np.nan))
    model.save(tmp_path / "nan.keras")
    assert "trained:    diverged" in run("info", "-m", tmp_path / "nan.keras")
    for arguments in (
        ["generate", "-o", tmp_path / "out"],
        ["export", tmp_path / "out"],
        ["export", tmp_path / "out.keras"],
        ["evaluate", "-n", 4, "-s", 2],
    ):
        assert "weights hold NaN or infinity" in run(
            *arguments, "-m", tmp_path / "nan.keras", code=1
        )
    assert [path.name for path in tmp_path.iterdir()] == ["nan.keras"]


def test_a_png_of_five_channels_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(
        ValueError,
        match="PNG holds images of 1 to 4 channels, this model's have 5: give format='npz'",
    ):
        exporting.export_images(make_small_model(channels=5), tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()


# The others


@pytest.mark.slow
def test_encode_writes_latents_that_decode_to_the_images(tmp_path, model_path, pictures):
    said = run("encode", "-m", model_path, *pictures, "-o", tmp_path / "latents.npy", "--steps", 50)
    assert "2 latents of shape (8, 8, 1)" in said
    model = ddim_keras.load_model(model_path)
    images = ddim_keras.data.read_images(pictures, 8, 1)
    np.testing.assert_allclose(
        np.load(tmp_path / "latents.npy"), model.encode(images, 50), atol=1e-5
    )
    run(
        "encode",
        "-m",
        model_path,
        *pictures,
        "-o",
        tmp_path / "latents.npy",
        "--steps",
        50,
        "--fit",
        "pad",
    )
    images = ddim_keras.data.read_images(pictures, 8, 1, fit="pad")
    np.testing.assert_allclose(
        np.load(tmp_path / "latents.npy"), model.encode(images, 50), atol=1e-5
    )
    assert "must end in .npy" in run(
        "encode", "-m", model_path, *pictures, "-o", tmp_path / "latents.txt", code=2
    )


def test_encode_by_algebra_writes_pairs_that_decode_to_just_the_images(
    tmp_path, model_path, pictures
):
    path = tmp_path / "latents.npz"
    said = run("encode", "-m", model_path, *pictures, "--algebra", "-s", 10, "-o", path)
    assert "2 latents of shape (8, 8, 1)" in said
    latents = ddim_keras.sampling.PairLatents.load(path)
    images = ddim_keras.data.read_images(pictures, 8, 1)
    model = ddim_keras.load_model(model_path)
    assert np.abs(model.decode(latents) - images).max() < 1e-5
    said = run("encode", "-m", model_path, *pictures, "--algebra", "--exact", "-o", path, code=2)
    assert "two ways: give one" in said
    out = tmp_path / "again.png"
    assert "2 images written" in run("decode", "-m", model_path, path, "-o", out)
    ddim_keras.plotting.save_images(tmp_path / "expected.png", images, scale=4)
    drawn, expected = (
        np.asarray(PIL.Image.open(tmp_path / name), int) for name in ("again.png", "expected.png")
    )
    assert np.abs(drawn - expected).max() <= 1
    assert "a walk of 10 steps" in run("decode", "-m", model_path, path, "-s", 9, "-o", out, code=1)


def test_decode_takes_latents_of_the_same_steps_and_refuses_other_files(
    tmp_path, model_path, pictures
):
    path, out = tmp_path / "latents.npy", tmp_path / "again.png"
    model = ddim_keras.load_model(model_path)
    latents = model.encode(ddim_keras.data.read_images(pictures, 8, 1), 5)
    np.save(path, latents)
    assert "2 images written" in run("decode", "-m", model_path, path, "-s", 5, "-o", out)
    ddim_keras.plotting.save_images(tmp_path / "expected.png", model.decode(latents, 5), scale=4)
    assert out.read_bytes() == (tmp_path / "expected.png").read_bytes()
    out.unlink()
    np.save(tmp_path / "large.npy", np.zeros((2, 16, 16, 1)))
    np.savez(tmp_path / "other.npz", images=np.zeros((2, 8, 8, 1)))
    (tmp_path / "damaged.npy").write_bytes(path.read_bytes()[:-9])
    for name, code, message in (
        ("large.npy", 1, "(batch, 8, 8, 1)"),
        ("other.npz", 1, "holds no pair of states"),
        ("damaged.npy", 1, "damaged.npy is damaged"),
        (pictures[0], 2, "must end in .npy or .npz"),
        ("missing.npy", 2, "does not exist"),
    ):
        said = run("decode", "-m", model_path, tmp_path / name, "-o", out, code=code)
        assert message in said, said
    assert not out.exists()


@pytest.mark.parametrize(
    "task",
    [
        "super-resolution",
        pytest.param("blur", marks=pytest.mark.slow),
        pytest.param("mask", marks=pytest.mark.slow),
    ],
)
def test_restore_draws_what_was_measured_above_what_it_made(tmp_path, model_path, pictures, task):
    out = tmp_path / "restored.png"
    options = {"super-resolution": ["--factor", 2], "mask": ["--mask", pictures[0]]}.get(task, [])
    command = ("restore", "-m", model_path, *pictures, "--task", task, *options)
    assert "2 images restored" in run(*command, "-s", 3, "-o", out)
    assert out.is_file()


def test_what_the_restore_command_cannot_do_is_said(tmp_path, model_path, pictures):
    out = tmp_path / "restored.png"
    assert "there is nothing to colour" in run(
        "restore", "-m", model_path, *pictures, "--task", "colorize", "-o", out, code=1
    )
    assert "belong together" in run(
        "restore", "-m", model_path, *pictures, "--task", "mask", "-o", out, code=2
    )
    said = run(
        *("restore", "-m", model_path, *pictures, "--task", "colorize", "--factor", 2, "-o", out),
        code=2,
    )
    assert "--factor is for --task super-resolution, not for --task colorize" in said


@pytest.mark.slow
def test_reconstruct_interpolate_and_inpaint_draw(tmp_path, model_path, pictures):
    said = run(
        "reconstruct", "-m", model_path, *pictures, "-o", tmp_path / "again.png", "--steps", 5
    )
    assert "Mean squared error of a pixel: 0." in said
    run(
        "interpolate",
        "-m",
        model_path,
        *pictures,
        "-o",
        tmp_path / "between.gif",
        "-n",
        4,
        "--steps",
        3,
    )
    run("interpolate", "-m", model_path, "-o", tmp_path / "between.png", "-n", 4, "--steps", 3)
    mask = tmp_path / "mask.png"
    PIL.Image.fromarray(np.pad(np.zeros((6, 8), "uint8"), 2, constant_values=255)).save(mask)
    inpaint = [
        "inpaint",
        "-m",
        model_path,
        pictures[0],
        mask,
        "-o",
        tmp_path / "filled.png",
        "--steps",
        4,
    ]
    run(*inpaint, "-n", 3)
    run(*inpaint, "-n", 0, code=2)
    PIL.Image.fromarray(np.full((10, 12), 255, "uint8")).save(mask)
    assert "nowhere black" in run(*inpaint, code=1)
    PIL.Image.fromarray(np.zeros((4, 4), "uint8")).save(mask)
    assert "is 4 x 4 pixels" in run(*inpaint, code=1)
    assert size_of(tmp_path / "between.gif") == (32, 32)
    for name in ("again", "between", "filled"):
        assert size_of(tmp_path / f"{name}.png")[0] > 60
    assert "give two images, or none" in run(
        "interpolate", "-m", model_path, pictures[0], "-o", "a.png", code=2
    )
    assert "must end in .png" in run("interpolate", "-m", model_path, "-o", "a.xyz", code=2)


@pytest.mark.slow
def test_the_mask_of_a_phones_picture_is_drawn_upright(tmp_path, model_path):
    image = PIL.Image.new("L", (20, 10), 200)
    exif = image.getexif()
    exif[0x0112] = 6  # stored lying, seen standing
    image.save(tmp_path / "photo.jpg", exif=exif)
    mask = PIL.Image.new("L", (10, 20), 255)
    mask.paste(0, (0, 0, 10, 8))
    mask.save(tmp_path / "standing.png")
    mask.rotate(90, expand=True).save(tmp_path / "lying.png")
    inpaint = ["inpaint", "-m", model_path, tmp_path / "photo.jpg"]
    run(*inpaint, tmp_path / "standing.png", "-o", tmp_path / "filled.png", "--steps", 2)
    said = run(
        *inpaint, tmp_path / "lying.png", "-o", tmp_path / "filled.png", "--steps", 2, code=1
    )
    assert "lying.png is 20 x 10 pixels" in said and "photo.jpg 10 x 20" in said
    (tmp_path / "lying.png").write_text("no image")
    said = run(*inpaint, tmp_path / "lying.png", "-o", tmp_path / "filled.png", code=1)
    assert "lying.png cannot be read as an image" in said


@pytest.mark.slow
def test_masks_of_every_kind_fill_the_same_part(tmp_path, model_path, pictures, monkeypatch):
    filled = []
    monkeypatch.setattr(
        ddim_keras.DiffusionModel,
        "inpaint",
        lambda model, images, known, *more, **options: filled.append(known) or images,
    )
    black = np.zeros((10, 12), bool)
    black[:, :6] = True
    grey = np.where(black, 0, 255).astype("uint8")
    # Black strokes on an empty layer: what is transparent stays, of whatever colour it is.
    layer = np.stack([np.zeros_like(grey), np.where(black, 255, 0).astype("uint8")], axis=-1)
    masks = {
        "grey.png": PIL.Image.fromarray(grey),
        "palette.gif": PIL.Image.fromarray(grey).convert("P"),
        "bits.png": PIL.Image.fromarray(grey).convert("1"),
        "deep.png": PIL.Image.fromarray(grey.astype("uint16") * 257),
        "twelve.png": PIL.Image.fromarray(grey.astype("uint16") * 16),
        "layer.png": PIL.Image.fromarray(layer),
        "layer_palette.png": PIL.Image.fromarray(layer).convert("RGBA").quantize(4),
        "floats.tif": PIL.Image.fromarray((grey / 255).astype("float32")),
    }
    for name, mask in masks.items():
        mask.save(tmp_path / name)
        run(
            "inpaint",
            "-m",
            model_path,
            pictures[0],
            tmp_path / name,
            "-o",
            tmp_path / "a.png",
            "-n",
            1,
        )
    assert len(filled) == len(masks) and 0 < filled[0].mean() < 1
    for name, known in zip(masks, filled):
        np.testing.assert_array_equal(known, filled[0], err_msg=name)


def test_evaluate_prints_the_figures(model_path, photos):
    flags = ("-n", 8, "--metric", "kid", "-s", 2, "--features", "fashion_mnist")
    with pytest.warns(UserWarning, match="KID of 6 images in subsets of 1000"):
        said = run("evaluate", "-m", model_path, "-d", photos, "--split", "0.5", *flags)
    assert said.startswith("kid: ") and "\nkid_standard_deviation: " in said


def test_warnings_are_a_line_without_the_code_that_gave_them(monkeypatch):
    words = []

    @click.command(name="warn")
    def warn():
        for category in (UserWarning, DeprecationWarning):
            words.append(warnings.formatwarning("left out", category, "a.py", 1))

    monkeypatch.setitem(main.commands, "warn", warn)
    before = warnings.formatwarning
    run("warn")
    assert words == ["Warning: left out\n", ""] and warnings.formatwarning is before
    run("--debug", "warn")
    assert "a.py:1: UserWarning: left out" in words[2]


@pytest.fixture(scope="module")
def labelled_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled") / "model.keras"
    model = make_small_model(class_names=["rose", "tulip", "3"], parameterization="velocity")
    model.compile()
    model.fit(random_images(), np.arange(24) % 3, verbose=0)
    model.save(path)
    return path


def made_in(folder):
    paths = sorted(folder.glob("shard_00000/*.png"))
    return np.stack([np.asarray(PIL.Image.open(path)) for path in paths]) / 255.0


@pytest.mark.slow
def test_generate_by_label_is_generate_by_label(tmp_path, labelled_path):
    model = ddim_keras.load_model(labelled_path)
    common = ("generate", "-m", labelled_path, "-n", 4, "-s", 4)
    guidance = ClassifierFreeGuidance(2.0, (0.2, 0.9))
    flags = ("--guidance", 2, "--guidance-interval", "0.2,0.9")
    for name, options, told in (
        ("one", ("--label", "tulip", *flags), {"labels": "tulip", "guidance": guidance}),
        ("in turn", ("--label", "rose", "--label", 1), {"labels": [0, 1, 0, 1]}),
        ("called 3", ("--label", "3"), {"labels": 2}),
        ("each", ("--each-label",), {"labels": [0, 1, 2, 0]}),
    ):
        run(*common, "--out", tmp_path / name, *options)
        wanted = model.generate(4, 4, seed=0, **told)[..., 0]
        np.testing.assert_allclose(made_in(tmp_path / name), wanted, atol=0.003, err_msg=name)
    facts = json.loads((tmp_path / "one" / "metadata.json").read_text())
    assert facts["sampling"]["labels"] == ["tulip"] * 4
    assert facts["network_evaluations"] > 4 and "interval" in facts["sampling"]["guidance"]
    said = run(*common, "--out", tmp_path / "one", "--label", "rose", *flags, code=1)
    assert "made otherwise" in said
    assert "Nothing was left to do" in run(
        *common, "--out", tmp_path / "one", "--label", "tulip", *flags
    )


@pytest.mark.slow
def test_images_are_edited_by_label_and_guidance(tmp_path, labelled_path, pictures):
    model = ddim_keras.load_model(labelled_path)
    told = ("--label", "tulip", "--guidance", 2, "-s", 3, "-m", labelled_path)
    images = ddim_keras.data.read_images(pictures[:1], (8, 8), 1)
    wanted = {"labels": "tulip", "guidance": ClassifierFreeGuidance(2.0)}

    run("encode", pictures[0], *told, "--out", tmp_path / "latents.npy")
    latents = model.encode(images, 3, **wanted)
    np.testing.assert_allclose(np.load(tmp_path / "latents.npy"), latents, atol=1e-5)
    run("restore", pictures[0], *told, "--task", "blur", "--out", tmp_path / "restored.png")
    assert "--guidance-interval says where" in run(
        *("reconstruct", pictures[0], "-m", labelled_path, "--out", tmp_path / "again.png"),
        *("--guidance-interval", "0.2,1"),
        code=2,
    )


@pytest.mark.slow
def test_info_lists_the_labels(labelled_path, model_path):
    assert "labels:     rose, tulip, 3" in run("info", "-m", labelled_path)
    assert "labels:     none" in run("info", "-m", model_path)


def test_wrong_labels_are_refused_before_anything_is_written(tmp_path, labelled_path, model_path):
    common = ("--out", tmp_path / "out", "-n", 2)
    for options, code, message in (
        (("-m", labelled_path, "--label", "lily"), 1, "expected one of 'rose'"),
        (("-m", labelled_path, "--guidance", 2), 1, "none are given"),
        (("-m", labelled_path, "--label", "rose", "--each-label"), 2, "not both"),
        (("-m", labelled_path, "--guidance-interval", "0,1"), 2, "give both"),
        (("-m", labelled_path, "--guidance", 2, "--guidance-interval", "a"), 2, "LOW,HIGH"),
        (("-m", model_path, "--label", "rose"), 1, "no labels"),
        (("-m", model_path, "--each-label"), 2, "a model with labels"),
    ):
        assert message in run("generate", *options, *common, code=code)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_evaluate_by_label(labelled_path, tmp_path):
    draws = np.random.default_rng(0)
    for name in ("rose", "tulip", "3"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for index in range(4):
            image = draws.integers(0, 255, (9, 9), dtype="uint8")
            PIL.Image.fromarray(image).save(tmp_path / "flowers" / name / f"{index}.png")
    said = run(
        *("evaluate", "-m", labelled_path, "-d", tmp_path / "flowers", "--split", "0.5"),
        *("--features", "fashion_mnist", "-n", 8, "--metric", "precision_recall", "-s", 2),
        *("--labels", "--guidance", 2),
    )
    assert "precision: " in said and "recall: " in said


@pytest.mark.slow
def test_images_are_made_from_images(tmp_path, pictures):
    path = tmp_path / "model.keras"
    model = make_small_model(condition_shape=(4, 4, 1))
    model.compile()
    model.fit(pairs.super_resolution(random_images(), 2), verbose=0)
    model.save(path)
    run("generate", "-m", path, "--condition", pictures[0], "-n", 2, "--out", tmp_path / "out")
    assert made_in(tmp_path / "out").shape == (2, 8, 8)
    assert "made from:  images of 4 x 4 x 1" in run("info", "-m", path)
    assert "give condition=" in run("generate", "-m", path, "--out", tmp_path / "no", code=1)


@pytest.mark.slow
def test_export_turns_a_model_into_a_preset_and_back(tmp_path, model_path):
    run("export", "-m", model_path, tmp_path / "preset")
    run("export", "-m", tmp_path / "preset", tmp_path / "back.keras")
    one, other = (
        ddim_keras.load_model(path).generate(2, 3, seed=0)
        for path in (model_path, tmp_path / "back.keras")
    )
    np.testing.assert_allclose(one, other, atol=0.02)
    assert "must end in .keras" in run("export", "-m", model_path, tmp_path / "model.h5", code=2)


@pytest.mark.slow
def test_fit_sampler_writes_the_model_with_its_samplers(tmp_path, model_path):
    few = ["--num-images", 16, "--epochs", 1, "--teacher-steps", 5]
    out = tmp_path / "fitted.keras"
    printed = run("fit-sampler", "-m", model_path, out, "-e", 2, *few)
    assert "2 evaluations: distance from the long walks" in printed
    model = ddim_keras.load_model(out)
    assert [sampler.diffusion_steps for sampler in model.samplers] == [2]
    run("generate", "-m", out, "-n", 2, "-o", tmp_path / "images", "--steps", 2)
    described = json.loads((tmp_path / "images" / "metadata.json").read_text())
    assert described["sampling"]["sampler"].startswith("FittedSampler(2 steps), sha256")
    assert described["network_evaluations"] == 2
    before = exporting.model_hash(ddim_keras.load_model(model_path))
    assert described["model_sha256"] == before
    lower = tmp_path / "lower.keras"
    run("fit-sampler", "-m", model_path, lower, "-e", 1, "--data", "embedded", *few)
    assert ddim_keras.load_model(lower).samplers[0].start is not None
    assert "must end in .keras" in run("fit-sampler", "-m", model_path, "x.npz", code=2)


@pytest.mark.slow
def test_fit_sampler_fits_guided_walks_of_whole_steps(tmp_path, labelled_path):
    few = ["--num-images", 16, "--epochs", 0, "--teacher-steps", 5]
    common = ["fit-sampler", "-m", labelled_path, tmp_path / "fitted.keras", *few]
    printed = run(*common, "--guidance", 2)
    assert [f"{number} evaluations" in printed for number in (2, 3, 4, 6, 8)] == [
        *(False, False),
        *(True, True, True),
    ]
    samplers = ddim_keras.load_model(tmp_path / "fitted.keras").samplers
    assert [sampler.diffusion_steps for sampler in samplers] == [2, 3, 4]
    model = ddim_keras.load_model(labelled_path)
    model.sampling_defaults = ddim_keras.SamplingDefaults(guidance=2.0)
    model.save(tmp_path / "guided.keras")
    by_itself = ["fit-sampler", "-m", tmp_path / "guided.keras", tmp_path / "own.keras", *few]
    assert "8 evaluations" in run(*by_itself)
    assert "3 evaluations" in run(*by_itself, "--guidance", 1)
    printed = run(*common, "--guidance", 2, "-e", 4, "-e", 3, code=1)
    assert "must divide by 2" in printed and "distance" not in printed  # before the first is fitted


def test_a_model_gets_its_samplers_from_one_process_at_a_time(tmp_path):
    """The second would have written over what the first had found."""
    with only_one_in(tmp_path, "fits", ".lock_few.keras"):
        said = run("fit-sampler", "-m", "nowhere", tmp_path / "few.keras", code=1)
    assert f"fits samplers for few.keras in {tmp_path} already: wait until" in said
    assert "no model at nowhere" in run("fit-sampler", "-m", "nowhere", tmp_path / "x", code=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_distill_teaches_a_model_in_a_folder(tmp_path, model_path):
    (tmp_path / "photos").mkdir()
    for index, image in enumerate(random_images(12)):
        pixels = (255 * image[..., 0]).astype("uint8")
        PIL.Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    out, quick = tmp_path / "run", ["--steps", 2, "--batch-size", 4, "--samples", 0]
    quick += ["--split", 0.0, "--no-tensorboard"]
    run("distill", "-m", model_path, "-d", tmp_path / "photos", "-o", out, "-e", 1, *quick)
    assert RunConfig.read(out / "config.yaml").distill["steps"] == 1
    assert "Nothing is left to do" in run("distill", "-o", out)
    run("generate", "-m", out, "-n", 2, "-o", tmp_path / "images")
    described = json.loads((tmp_path / "images" / "metadata.json").read_text())
    assert described["network_evaluations"] == 1
    assert "give --model, the teacher" in run("distill", "-o", tmp_path / "other", code=2)


@pytest.mark.slow
def test_the_command_that_train_ends_with_teaches_guidance_on_the_same_images(small_run):
    out, _, said = small_run
    told = said.split("Better images at the same cost, after a little more training: ddim-keras ")
    command = shlex.split(told[1].splitlines()[0])
    assert command[:3] == ["distill", "--method", "guidance"] and command[4] == str(out)
    run(*command, "--steps", 2, "--samples", 0, "--no-tensorboard")
    folder = out.with_name(f"{out.name}-guided")
    before, config = (RunConfig.read(each / "config.yaml") for each in (out, folder))
    assert (config.data, config.split, config.steps) == (before.data, before.split, 2)
    assert config.distill["autoguidance"] == 2.0
    # It is not told again of what is learned already, and resumes by its folder alone.
    again = run("distill", "--out", folder)
    assert "Nothing is left to do" in again and "at the same cost" not in again


def test_datasets_are_listed():
    assert "oxford_flowers102" in run("datasets")


def test_a_file_that_is_no_image_is_named(tmp_path, model_path):
    (tmp_path / "text.png").write_text("no image")
    said = run(
        "reconstruct", "-m", model_path, tmp_path / "text.png", "-o", tmp_path / "a.png", code=1
    )
    assert "text.png cannot be read as an image" in said


def test_nothing_is_written_over_a_folder_and_no_work_is_done_in_vain(
    tmp_path, model_path, pictures
):
    for name in ("photos", "photos.png", "photos.keras"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dear.txt").write_text("kept")
    model, one, folder = ["-m", model_path], pictures[0], tmp_path / "photos.png"
    blur, few = ["--task", "blur"], ["--steps", 2]
    drawing = (
        ["restore", *model, one, *blur, *few],
        ["reconstruct", *model, one, *few],
        ["inpaint", *model, one, one, *few],
        ["interpolate", *model, *few],
    )
    for command in drawing:
        assert "a folder stands there" in run(*command, "-o", folder, code=1)
        assert "must end in .png" in run(*command, "-o", tmp_path / "photos", code=2)
        assert "must end in .png" in run(*command, "-o", tmp_path / "s.jpg", code=2)
        assert "is a file, not a folder" in run(*command, "-o", one / "s.png", code=1)
        assert "nowhere to write to" in run(*command, "-o", "", code=2)
    writing = (
        ["fit-sampler", *model],
        ["export", *model],
        ["convert", model_path],
    )
    for command in writing:
        assert "a folder stands there" in run(*command, tmp_path / "photos.keras", code=1)
        assert "exists and is no preset" in run(*command, tmp_path / "photos", code=1)
        assert "nowhere to write to" in run(*command, "", code=2)
    for command in (["train", "-d", "embedded"], ["distill", *model], ["generate", *model]):
        assert "nowhere to write to" in run(*command, "-o", " ", code=2)
    pairs_to = ["evaluate", *model, "--pairs"]
    assert "a folder stands there" in run(*pairs_to, folder, code=1)
    assert "seed must be an integer" in run(*drawing[3], "--seed", -1, "-o", "s.png", code=1)
    for name in ("photos", "photos.png", "photos.keras"):
        assert os.listdir(tmp_path / name) == ["dear.txt"]


@pytest.mark.slow
def test_another_teacher_is_refused_and_a_moved_one_is_not(tmp_path, model_path, photos):
    (tmp_path / "moved.keras").write_bytes(model_path.read_bytes())
    make_trained_model(parameterization="velocity", seed=2, widths=[4]).save(tmp_path / "o.keras")
    flags = ["-d", photos, "--steps", 1, "--split", 0, "--batch-size", 4, "--samples", 0]
    flags += ["--no-tensorboard", "--memorization", 0, "--ema-snapshots", 0]
    run("distill", "-m", model_path, "-o", tmp_path / "few", *flags)
    again = ["distill", "-o", tmp_path / "few", "-m"]
    assert "is another one: choose another folder" in run(*again, tmp_path / "o.keras", code=1)
    assert "Nothing is left to do" in run(*again, tmp_path / "moved.keras")


@pytest.mark.slow
def test_a_tilde_that_the_shell_leaves_is_the_home_folder(
    tmp_path, model_path, pictures, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(model_path, tmp_path / "kept.keras")
    few = ["--steps", 1]
    run("generate", "--model=~/kept.keras", "--out=~/new", "-n", 1, *few)
    run("reconstruct", "-m", "~/kept.keras", f"~/{pictures[0].name}", "-o", "~/rows.png", *few)
    run("export", "-m", "~/kept.keras", "~/preset")
    run("convert", "~/preset", "~/again.keras")
    for name in ("new/metadata.json", "rows.png", "preset/preset.json", "again.keras"):
        assert (tmp_path / name).is_file()
    told = run("train", "--config=~/none.yaml", "--out=~/run", code=1)
    assert str(tmp_path / "none.yaml") in told
    assert not (tmp_path / "~").exists()


def test_a_tilde_is_the_home_folder_in_python_too(tmp_path, model_path, pictures, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    shutil.copy(model_path, tmp_path / "kept.keras")
    model = ddim_keras.load_model("~/kept.keras")
    model.save("~/new.keras")
    model.save_weights("~/new.weights.h5")
    model.load_weights("~/new.weights.h5")
    model.save_to_preset("~/preset")
    assert ddim_keras.DiffusionModel.from_preset("~/preset").image_shape == model.image_shape
    exporting.export_images(model, "~/images", 1, diffusion_steps=1, tell=str)
    latents = model.encode(np.zeros((1, *model.image_shape)), 2, exact="algebra")
    latents.save("~/latents.npz")
    ddim_keras.sampling.PairLatents.load(pathlib.Path("~/latents.npz"))
    ddim_keras.plotting.save_images("~/images.png", np.zeros((1, *model.image_shape)))
    ddim_keras.data.read_images([f"~/{pictures[0].name}"], 8, 1)
    config = RunConfig(data="~/photos", cache="~/cache", init_from="~/kept.keras")
    assert config.data == str(tmp_path / "photos") and config.init_from == str(
        tmp_path / "kept.keras"
    )
    config.write("~/config.yaml")
    assert RunConfig.read("~/config.yaml") == config
    for name in ("new.keras", "preset/preset.json", "images/metadata.json", "images.png"):
        assert (tmp_path / name).is_file()
    assert not any(elsewhere.iterdir())
