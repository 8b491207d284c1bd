import contextlib
import errno
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
from conftest import (
    ROOT,
    first_quick,
    make_small_model,
    make_trained_model,
    random_images,
    run_python,
)
from keras import ops

import ddim_keras
from ddim_keras import plotting
from ddim_keras.callbacks import KeepBest
from ddim_keras.runs import exporting
from ddim_keras.support import checksums, files, leftovers

NOISE = np.random.default_rng(0).uniform(size=(3, 32, 32, 1))


@pytest.fixture(scope="module")
def saved(trained_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    trained_model.save(path)
    return path


def state_of(model):
    variables = [*model.variables, *model.optimizer.variables, model.seed_generator.state]
    return [ops.convert_to_numpy(variable) for variable in variables]


def assert_same_state(first, second):
    for mine, other in zip(state_of(first), state_of(second), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.slow
def test_a_new_process_gives_the_same_images_to_the_last_bit(trained_model, saved, tmp_path):
    """It imports ddim_keras and nothing else of ours, and leaves Keras's safe mode on."""
    code = f"""
import keras, ddim_keras, numpy as np
model = keras.models.load_model({str(saved)!r})
np.save({str(tmp_path / "images.npy")!r}, model.generate(4, 6, eta=0.5, seed=11))
"""
    run_python(code, keras.backend.backend())
    np.testing.assert_array_equal(
        np.load(tmp_path / "images.npy"), trained_model.generate(4, 6, eta=0.5, seed=11)
    )


@pytest.mark.slow
def test_training_goes_on_where_it_stopped(tmp_path):
    images = random_images()
    model = make_trained_model()
    model.save(tmp_path / "model.keras")
    again = ddim_keras.load_model(tmp_path / "model.keras")
    assert int(again.optimizer.iterations) == 6
    for each in (model, again):
        each.fit(images, batch_size=8, shuffle=False, verbose=0)
    assert_same_state(model, again)
    np.testing.assert_array_equal(model.generate(2, 2), again.generate(2, 2))


def test_every_constructor_argument_survives(tmp_path):
    model = make_small_model(
        image_size=(8, 4),
        channels=2,
        schedule=ddim_keras.schedules.AngleSchedule(0.05, 0.9),
        parameterization="velocity",
        loss_weighting=ddim_keras.weightings.MinSNRWeighting(3.0),
        embedding_dims=8,
        embedding_max_frequency=50.0,
        ema_decay=0.9,
        seed=77,
        dtype="mixed_bfloat16",
        name="mine",
    )
    model.save(tmp_path / "model.keras")
    again = ddim_keras.load_model(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    assert again.loss_weighting.gamma == 3.0 and again.dtype_policy.name == "mixed_bfloat16"


def test_a_network_of_ones_own_survives(tmp_path):
    images, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    network = keras.Model(
        [images, variances], keras.layers.Conv2D(1, 3, padding="same")(images) * variances
    )
    model = make_small_model(network=network)
    model.save(tmp_path / "model.keras")
    again = ddim_keras.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.generate(2, 3, seed=0), model.generate(2, 3, seed=0))


def test_compile_arguments_survive(tmp_path):
    model = make_small_model()
    model.compile(
        keras.optimizers.Adam(3e-4),
        keras.losses.Huber(0.3),
        metrics=[keras.metrics.MeanSquaredError("mse")],
    )
    model.save(tmp_path / "model.keras")
    again = ddim_keras.load_model(tmp_path / "model.keras")
    assert float(again.optimizer.learning_rate) == pytest.approx(3e-4)
    assert isinstance(again.loss, keras.losses.Huber)
    assert again.metrics_names == ["n_loss", "i_loss", "mse", "loss"]


@pytest.mark.slow
def test_weights_alone_and_model_checkpoint(tmp_path):
    images = random_images()
    model = make_trained_model()
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5",
        monitor="val_n_loss",
        save_best_only=True,
        save_weights_only=True,
    )
    model.fit(images, batch_size=8, validation_data=images, callbacks=[checkpoint], verbose=0)
    again = make_small_model()
    again.compile("adamw")
    again.load_weights(tmp_path / "best.weights.h5")
    assert again.normalizer.adapted
    np.testing.assert_array_equal(again.generate(2, 3, seed=0), model.generate(2, 3, seed=0))


@pytest.mark.slow
def test_weights_of_one_backend_load_under_the_other(trained_model, saved, tmp_path):
    other = {"tensorflow": "jax", "jax": "tensorflow"}[keras.backend.backend()]
    if other == "jax":
        pytest.importorskip("jax")
    run_python(
        f"import ddim_keras, numpy as np; model = ddim_keras.load_model({str(saved)!r}); "
        f"np.save({str(tmp_path / 'images.npy')!r}, model.generate(4, 10, eta=1.0, seed=2))",
        other,
    )
    np.testing.assert_allclose(
        np.load(tmp_path / "images.npy"), trained_model.generate(4, 10, eta=1.0, seed=2), atol=1e-4
    )


TRAINING = """
import keras, os, sys, time
sys.path.insert(0, {tests!r})
from conftest import make_small_model, random_images
keras.utils.set_random_seed(3)

class Slow(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch, flush=True)
        if {kill}:
            time.sleep(1.5)

model = make_small_model()
model.compile(keras.optimizers.AdamW(1e-2), "mse")
backup = keras.callbacks.BackupAndRestore({backup!r}, double_checkpoint=True)
options = dict(batch_size=8, epochs=4, shuffle=False, verbose=0)
model.fit(random_images(), callbacks=[backup, Slow()], **options)
model.save({out!r})
"""


@pytest.mark.slow
def test_a_killed_fit_resumes_with_ema_optimizer_and_random_state(tmp_path):
    def script(name, kill):
        return TRAINING.format(
            tests=str(ROOT / "tests"),
            backup=str(tmp_path / f"{name}_backup"),
            out=str(tmp_path / f"{name}.keras"),
            kill=kill,
        )

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": keras.backend.backend()}
    process = subprocess.Popen(
        [sys.executable, "-c", script("killed", True)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    while "epoch 1" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.keras").exists()
    assert "epoch 0" not in run_python(script("killed", False), keras.backend.backend())
    run_python(script("whole", False), keras.backend.backend())
    assert_same_state(
        *(ddim_keras.load_model(tmp_path / f"{name}.keras") for name in ("killed", "whole"))
    )


def test_an_interrupted_save_leaves_the_old_file_whole(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.keras"
    path.write_bytes(saved.read_bytes())
    model = make_small_model()

    def half_a_save(self, filepath, **kwargs):
        with open(filepath, "wb") as file:
            file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(keras.Model, "save", half_a_save)
    with pytest.raises(OSError, match="no space left"):
        model.save(path)
    assert path.read_bytes() == saved.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["model.keras"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model file at .*nothing.keras"):
        ddim_keras.load_model(tmp_path / "nothing.keras")


def test_a_truncated_file_is_refused(saved, tmp_path):
    path = tmp_path / "cut.keras"
    path.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut.keras is not a whole .keras file .*cut short"):
        ddim_keras.load_model(path)


def test_a_file_with_a_flipped_byte_is_refused(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "flipped.keras"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped.keras is (damaged|not a whole)"):
        ddim_keras.load_model(path)


def changed(source, target, change):
    """Write a .keras file like another, with its config.json changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config)
            new.writestr(name, content)
    return target


@pytest.mark.parametrize("part", ["model", "schedule", "parameterization", "compiled", "optimizer"])
def test_settings_of_a_later_version_are_named_with_the_file(part, saved, tmp_path):
    def change(config):
        place = {
            "model": config["config"],
            "schedule": config["config"]["schedule"]["config"],
            "parameterization": config["config"]["parameterization"]["config"],
            "compiled": config["compile_config"],
            "optimizer": config["compile_config"]["optimizer"]["config"],
        }[part]
        place["of_the_future"], place["and_another"] = 3, None

    path = changed(saved, tmp_path / "later.keras", change)
    words = {
        "model": r"later.keras cannot be loaded: DiffusionModel has settings that ddim_keras .* "
        r"does not know, \['and_another', 'of_the_future'\].*Update ddim_keras",
        "schedule": r"later.keras cannot be loaded: AngleSchedule has settings .*'of_the_future'",
        "parameterization": r"later.keras .* VelocityParameterization has .*'of_the_future'",
        "compiled": r"later.keras .* compiled with has .*'of_the_future'.*compile=False",
        "optimizer": "later.keras cannot be loaded: (.|\n)*of_the_future",  # Keras's own words
    }[part]
    with pytest.raises(ValueError, match=words):
        ddim_keras.load_model(path)
    if part in ("compiled", "optimizer"):
        assert ddim_keras.load_model(path, compile=False).normalizer.adapted


def test_a_subclass_that_does_not_take_its_settings_is_told_how_to(tmp_path):
    class Small(ddim_keras.DiffusionModel):
        def __init__(self):
            super().__init__(8, [4], 1)

    class Mended(Small):
        @classmethod
        def from_config(cls, config, custom_objects=None):
            return cls()

    class Needy(ddim_keras.DiffusionModel):
        def __init__(self, image_size, depth, **options):
            super().__init__(image_size, **{**options, "block_depth": depth})

    path = tmp_path / "small.keras"
    Small().save(path)
    with pytest.raises(ValueError, match=r"Small.__init__ does not take .*from_config\(cls, con"):
        keras.models.load_model(path, custom_objects={"Small": Small})
    assert keras.models.load_model(path, custom_objects={"Small": Mended}).widths == [4]
    with pytest.raises(ValueError, match=r"Needy.__init__ needs \['depth'\].*get_config that ret"):
        Needy.from_config(Needy(8, 1, widths=[4]).get_config())


def test_settings_that_are_missing_have_their_defaults(saved, trained_model, tmp_path):
    needed = {"image_size", "widths", "block_depth", "channels", "parameterization"}  # not defaults

    def keep_what_is_needed(config):
        config["config"] = {name: config["config"][name] for name in needed}
        config["config"]["schedule"] = trained_model.get_config()["schedule"]
        config["config"]["schedule"]["config"] = {}

    path = changed(saved, tmp_path / "earlier.keras", keep_what_is_needed)
    again = ddim_keras.load_model(path)
    np.testing.assert_array_equal(
        again.generate(2, 3, seed=0), trained_model.generate(2, 3, seed=0)
    )
    path = changed(
        saved, tmp_path / "damaged.keras", lambda config: config["config"].pop("image_size")
    )
    with pytest.raises(ValueError, match=r"damaged.keras .*lacks the settings \['image_size'\]"):
        ddim_keras.load_model(path)


def test_foreign_files_are_refused(tmp_path):
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    other.save(tmp_path / "other.keras")
    with pytest.raises(
        ValueError, match=r"other.keras holds a Sequential, not a ddim_keras DiffusionModel"
    ):
        ddim_keras.load_model(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("hello.txt", json.dumps("hello"))
    with pytest.raises(
        ValueError,
        match=r"zip.keras is a zip file but not a .keras model: it holds \['hello.txt'\]",
    ):
        ddim_keras.load_model(tmp_path / "zip.keras")
    (tmp_path / "text.keras").write_text("not a model")
    with pytest.raises(ValueError, match=r"text.keras is not a whole .keras file"):
        ddim_keras.load_model(tmp_path / "text.keras")


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return make_trained_model(widths=[4])


@pytest.mark.parametrize("name", ["name", "x.h5", "x.weights.h5", "x.keras.zip"])
def test_other_suffixes_for_whole_models_are_refused(name, small, tmp_path):
    with pytest.raises(
        ValueError, match=f"file for the whole model must end in '.keras', got .*{name}'"
    ):
        small.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x", "x.h5", "x.keras", "x.npz"])
def test_other_suffixes_for_weights_are_refused(name, small, tmp_path):
    with pytest.raises(
        ValueError, match=f"file for weights must end in '.weights.h5', got .*{name}'"
    ):
        small.save_weights(tmp_path / name)
    assert not list(tmp_path.iterdir())


def wrong_weights(kind, small, path):
    """Write weights that do not fit to the path."""
    small.save_weights(path)
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("not weights")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        changes = {
            "wider": {"widths": [8]},
            "deeper": {"widths": [4, 4]},
            "other channels": {"widths": [4], "channels": 3},
        }
        other = make_small_model(**changes[kind])
        other.compile("adamw")
        other.save_weights(path)


@pytest.mark.parametrize(
    "kind", first_quick(["wider", "cut", "text", "empty", "deeper", "other channels"], 4)
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(kind, small, tmp_path):
    path = tmp_path / "wrong.weights.h5"
    wrong_weights(kind, small, path)
    before = state_of(small)
    with pytest.raises(
        ValueError,
        match=r"wrong.weights.h5 holds no weights that fit this model .*damaged, or was written",
    ):
        small.load_weights(path)
    for value, now in zip(before, state_of(small), strict=True):
        np.testing.assert_array_equal(value, now)


def zeroed(path, start, number=64):
    content = bytearray(path.read_bytes())
    content[start : start + number] = bytes(number)
    path.write_bytes(content)


def test_weights_with_zeroed_bytes_are_refused_wherever_numbers_stand(small, tmp_path):
    path, places = tmp_path / "zeroed.weights.h5", {}
    small.save_weights(path)
    whole, before = path.read_bytes(), state_of(small)
    with h5py.File(path) as file:

        def note(name, item):
            if isinstance(item, h5py.Dataset) and np.any(item[()]):
                places[name] = item.id.get_offset(), item.nbytes

        file.visititems(note)
    assert len(places) > 20  # of networks, normalizer and optimizer
    for offset, number in list(places.values())[::6]:
        path.write_bytes(whole)
        zeroed(path, offset, number)
        with pytest.raises(
            ValueError, match="zeroed.weights.h5 is damaged, its numbers fail their"
        ):
            small.load_weights(path)
    for start in range(0, len(whole), len(whole) // 12):  # anywhere: refused, or nothing is lost
        path.write_bytes(whole)
        zeroed(path, start)
        with contextlib.suppress(ValueError):
            small.load_weights(path)
        for value, now in zip(before, state_of(small), strict=True):
            np.testing.assert_array_equal(value, now)


def test_weights_without_a_checksum_still_load(small, tmp_path):
    keras.Model.save_weights(small, tmp_path / "keras.weights.h5")
    small.load_weights(tmp_path / "keras.weights.h5")
    small.save_weights(tmp_path / "ours.weights.h5")
    keras.Model.load_weights(small, tmp_path / "ours.weights.h5")


def test_shards_of_another_saving_are_refused(small, tmp_path):
    """As a process leaves them that is killed while it saves over older ones."""
    weight, index = small.network.weights[0], tmp_path / "parts.weights.json"
    small.save_weights(index, max_shard_size=1e-5)
    older = {path: path.read_bytes() for path in tmp_path.glob("*.h5")}
    weight.assign(weight + 1.0)
    small.save_weights(index, max_shard_size=1e-5)
    weight.assign(weight - 1.0)
    changed = [path for path, content in older.items() if path.read_bytes() != content]
    assert changed and len(changed) < len(older)
    changed[0].write_bytes(older[changed[0]])
    with pytest.raises(ValueError, match=f"{changed[0]} was not written together with {index}"):
        small.load_weights(index)
    changed[0].unlink()
    with pytest.raises(ValueError, match="No such file"):  # which is not what a kill leaves
        small.load_weights(index)


def test_shards_of_weights_have_checksums_too(small, tmp_path):
    small.save_weights(tmp_path / "parts.weights.json", max_shard_size=1e-5)
    shards = sorted(tmp_path.glob("parts_*.weights.h5"))
    assert len(shards) > 1 and len(list(tmp_path.iterdir())) == len(shards) + 1
    before = state_of(small)
    small.load_weights(tmp_path / "parts.weights.json")
    for value, now in zip(before, state_of(small), strict=True):
        np.testing.assert_array_equal(value, now)
    with h5py.File(shards[0], "r+") as file:
        found = []
        file.visititems(lambda _, item: found.append(item) if hasattr(item, "nbytes") else None)
        found[0][...] = 7
    with pytest.raises(ValueError, match="weights.h5 is damaged, its numbers fail their checksum"):
        small.load_weights(tmp_path / "parts.weights.json")


def write_array(path, array):
    with files.written_beside(path) as temporary:
        np.save(temporary, array)


@contextlib.contextmanager
def files_of_at_most(size):
    """Within, no file gets longer, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("model.keras", lambda model, path: model.save(path)),
        ("x.weights.h5", lambda model, path: model.save_weights(path)),
        ("x.weights.json", lambda model, path: model.save_weights(path, max_shard_size=1e-5)),
        ("preset", lambda model, path: model.save_to_preset(path)),
        ("grid.png", lambda model, path: plotting.save_images(path, NOISE)),
        ("latents.npy", lambda model, path: write_array(path, NOISE)),
        ("shard.npz", lambda model, path: exporting._write_shard(path, "npz", NOISE, 0)),
        ("shard", lambda model, path: exporting._write_shard(path, "png", NOISE, 0)),
        ("shard.tfrecord", lambda model, path: exporting._write_shard(path, "tfrecord", NOISE, 0)),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_on_a_full_disk_files_stay_as_they_are_and_the_error_names_them(
    small, tmp_path, name, save, there
):
    path = tmp_path / name
    if there:
        save(small, path)
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    with (
        files_of_at_most(500),
        pytest.raises(OSError, match=": make room; what stood there") as full,
    ):
        save(small, path)
    assert full.value.filename == str(path)
    assert before == {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    assert there or not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.keras", "x.weights.h5"])
def test_a_new_file_is_written_whole_or_not_at_all_also_where_none_may_be_replaced(
    small, tmp_path, name, monkeypatch
):
    def killed(path, *_, **__):
        pathlib.Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    save = "save" if name == "model.keras" else "save_weights"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keras.Model, save, lambda self, path, **options: killed(path))
        getattr(small, save)(tmp_path / name, overwrite=False)
    assert not list(tmp_path.iterdir())


def test_the_room_that_is_looked_for_is_that_of_the_file(tmp_path, monkeypatch):
    small = make_small_model(widths=[4])
    small.compile("adam", metrics=[ddim_keras.metrics.KID("fashion_mnist", capacity=32)])
    small.optimizer.build(small.trainable_variables)
    expected = []
    monkeypatch.setattr(files, "check_room", lambda path, size: expected.append(size))
    small.save_weights(tmp_path / "x.weights.h5")
    small.save(tmp_path / "x.keras")
    for name in ("x.weights.h5", "x.keras"):
        size = (tmp_path / name).stat().st_size
        assert size < expected[0] == expected[1] < 2 * size + 200_000


@pytest.mark.parametrize("in_one_go", [True, False])
def test_a_folder_is_replaced_in_one_go_where_the_system_can(tmp_path, monkeypatch, in_one_go):
    """Or it would be gone for a moment, in which the process may be killed."""
    place, replaced = tmp_path / "there", []
    place.mkdir()
    (place / "old").touch()
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: replaced.append(real(*paths)))
    if not in_one_go:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    with files.written_beside(place) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "new"]
    assert len(replaced) == (0 if in_one_go and sys.platform == "linux" else 2)


def test_where_room_cannot_be_reserved_what_is_free_counts(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(files.ctypes, "CDLL", unknown)
    files.check_room(tmp_path / "file", 1000)
    with pytest.raises(OSError, match="No space left on device: make room"):
        files.check_room(tmp_path / "file", 2**60)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["encrypted", "method", "deep", "list"])
def test_a_model_file_with_a_damaged_directory_or_configuration_is_refused(tmp_path, damage):
    path = tmp_path / "model.keras"
    contents = {"deep": "[" * 100000, "list": "[]"}.get(damage, "{}")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            archive.writestr(name, contents)
    whole = bytearray(path.read_bytes())
    entry = whole.index(b"PK\x01\x02")
    if damage == "encrypted":
        whole[entry + 8] |= 1
    elif damage == "method":
        whole[entry + 10] = 77
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"model.keras is (not|a zip file but not) a .*keras"):
        ddim_keras.load_model(path)
    if damage in ("encrypted", "method"):
        with pytest.raises(ValueError, match="model.keras is damaged .*restore it"):
            checksums.check_weights(path)


def test_weights_of_a_damaged_model_file_are_refused(saved, tmp_path, trained_model):
    path = tmp_path / "zeroed.keras"
    with zipfile.ZipFile(saved) as archive:
        start = archive.getinfo("model.weights.h5").header_offset
    size = saved.stat().st_size
    for place in range(start + 4096, size - 2048, (size - start) // 12):
        path.write_bytes(saved.read_bytes())
        zeroed(path, place, 256)
        if path.read_bytes() != saved.read_bytes():
            with pytest.raises(ValueError, match="zeroed.keras is damaged"):
                trained_model.load_weights(path)


def test_missing_weights_are_named(small, tmp_path):
    for name in ("none.weights.h5", "none"):
        with pytest.raises(
            FileNotFoundError,
            match=f"no weights at .*{name}: expected a file that save_weights wrote",
        ):
            small.load_weights(tmp_path / name)
    with pytest.raises(ValueError, match="file for weights must end in"):
        small.load_weights(tmp_path)


def test_a_file_never_replaces_a_folder(small, tmp_path):
    for name in ("a.keras", "a.weights.h5", "a.png"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dear.txt").write_text("kept")
    for write in (
        lambda: small.save(tmp_path / "a.keras"),
        lambda: small.save_weights(tmp_path / "a.weights.h5"),
        lambda: plotting.save_images(tmp_path / "a.png", np.zeros((1, 2, 2, 1))),
        lambda: KeepBest(tmp_path / "a.keras").on_train_begin(),
    ):
        with pytest.raises(IsADirectoryError, match="a folder stands there"):
            write()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("a.keras", "a.png", "a.weights.h5"),
        *["dear.txt"] * 3,
    ]
    (tmp_path / "a.png").rename(tmp_path / "folder")
    small.save(tmp_path / "folder", zipped=False)
    assert (tmp_path / "folder" / "dear.txt").read_text() == "kept"
    assert (tmp_path / "folder" / "config.json").is_file()


def test_what_a_killed_process_left_is_told_from_what_a_user_keeps(tmp_path):
    (tmp_path / ".0123abcd.model.keras").write_text("half")
    (tmp_path / ".mybackup.txt").write_text("kept")
    leftovers.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mybackup.txt"]


def test_what_a_killed_process_left_goes_when_the_same_is_written_again(tmp_path):
    for name in (".0123abcd.a.png", ".0123abcd-old.a.png", ".0123abcd.other.png"):
        (tmp_path / name).write_text("half")
    (tmp_path / "a.png").write_text("older")
    plotting.save_images(tmp_path / "a.png", NOISE)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".0123abcd.other.png", "a.png"]


def test_a_folder_that_was_put_aside_comes_back_if_nothing_took_its_place(tmp_path):
    """As a kill between two renamings leaves it, where a system cannot do both in one go."""
    (tmp_path / ".0123abcd-old.preset").mkdir()
    (tmp_path / ".0123abcd-old.preset" / "preset.json").write_text("older")
    with pytest.raises(ZeroDivisionError), files.written_beside(tmp_path / "preset"):
        raise ZeroDivisionError
    assert (tmp_path / "preset" / "preset.json").read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_request_to_end_leaves_no_folder_put_aside(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").touch()
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        if pathlib.Path(source).name == "there":
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), files.written_beside(tmp_path / "there") as temporary:
        temporary.mkdir()
    assert (tmp_path / "there" / "old").exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("where", ["this process", "another"])
def test_what_is_just_being_written_is_no_leftover(tmp_path, where):
    code = (
        "import sys; from ddim_keras.support.files import written_beside\n"
        "with written_beside(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('first'); print('begun', flush=True); input()"
    )
    place = tmp_path / "file"
    with contextlib.ExitStack() as stack:
        if where == "another":
            options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            first = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code, str(place)], env=environment, **options
                )
            )
            assert first.stdout.readline() == "begun\n"
        else:
            temporary = stack.enter_context(files.written_beside(place))
            temporary.write_text("first")
        leftovers.remove(tmp_path)
        with files.written_beside(place) as temporary:
            temporary.write_text("second")
        assert place.read_text() == "second" and len(list(tmp_path.iterdir())) == 2
        if where == "another":
            first.communicate("\n")
            assert first.returncode == 0
    assert place.read_text() == "first" and list(tmp_path.iterdir()) == [place]


NOTES = ["", "[]", "[" * 100000, '{"monitor": "val_i_loss"}']
NOTES += [f'{{"monitor": "val_i_loss", "value": {value}}}' for value in ("NaN", "-Infinity", "[]")]


@pytest.mark.parametrize("content", NOTES, ids=range(len(NOTES)))
def test_a_damaged_note_of_the_best_model_is_said_and_replaced(small, tmp_path, content):
    keep = KeepBest(tmp_path / "best.keras", "val_i_loss")
    keep.set_model(small)
    keep.on_train_begin()
    keep.on_epoch_end(0, {"val_i_loss": 0.5})
    (tmp_path / "best_score.json").write_text(content)
    with pytest.warns(UserWarning, match="best_score.json is damaged.*replaces it"):
        keep.on_train_begin()
    keep.on_epoch_end(1, {"val_i_loss": 0.7})
    assert json.loads((tmp_path / "best_score.json").read_text())["value"] == 0.7


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "average"])
def test_a_quantized_model_makes_images_but_no_file_that_could_not_be_loaded(tmp_path, part):
    model = make_small_model(conditioning="every_block")
    model.normalizer.adapt(random_images(4))
    (model if part == "model" else model.ema_network).quantize("int8")
    refused = r"quantized \(int8\).*call quantize after loading it"
    for write in (model.save, model.save_to_preset):
        with pytest.raises(ValueError, match=refused):
            write(tmp_path / "model.keras")
    assert np.isfinite(model.generate(1, 1, seed=0)).all()
    assert not list(tmp_path.iterdir())
    assert exporting.export_images(model, tmp_path / "images", 2, diffusion_steps=1) == 1


@pytest.mark.slow
def test_other_models_are_not_written_quantized_either(tmp_path):
    network = ddim_keras.networks.ddpm_unet((8, 8, 1), [4, 8], 1, groups=4)
    published = ddim_keras.DiffusionModel(8, channels=1, network=network)
    categorical = ddim_keras.CategoricalDiffusionModel((8, 8), 2, widths=[4], block_depth=1)
    for model in (published, categorical):
        model.quantize("int8")
        with pytest.raises(ValueError, match="call quantize after loading it"):
            model.save(tmp_path / "model.keras")
    own = keras.Sequential([keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    noisy, rates = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    network = keras.Model([noisy, rates], own(noisy) * rates)
    model = ddim_keras.DiffusionModel(8, channels=1, network=network)
    model.quantize("int8")
    model.save(tmp_path / "model.keras")
    ddim_keras.load_model(tmp_path / "model.keras")
