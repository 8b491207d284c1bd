import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import warnings

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import yaml
from conftest import ROOT, make_small_model, make_trained_model, slow_on_jax

import ddim_keras
from ddim_keras import presets, runs
from ddim_keras.data import seeded
from ddim_keras.runs import (
    Checkpoints,
    DivergedError,
    RunConfig,
    finding,
    timing,
    training,
    validating,
    watching,
)
from ddim_keras.runs.folder import RunFolder
from ddim_keras.support.folder_locks import FolderInUseError, only_one_in

pytestmark = slow_on_jax
SMALL = {"widths": [4], "block_depth": 1, "patch_size": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for index in range(22):
        PIL.Image.fromarray(draws.integers(0, 255, (8, 8), dtype="uint8")).save(
            folder / f"{index}.png"
        )
    return folder


def small_config(photos, **changes):
    training = {"batch_size": 4, **changes.pop("training", {})}
    settings = {
        "data": str(photos),
        "split": 0.0,
        "image_size": 8,
        "channels": 1,
        "steps": 12,
        "model": SMALL,
        "training": training,
        "precision": "float32",
        "validate_every": 5,
        "checkpoint_every": 4,
        "samples": 0,
        "tensorboard": False,
        "memorization": 0,
        "ema_snapshots": 0,
    }
    return RunConfig(**{**settings, **changes})


def final_weights(folder):
    model = ddim_keras.load_model(folder / "model.keras")
    return [
        *model.network.get_weights(),
        *model.ema_network.get_weights(),
        *model.optimizer.variables,
    ]


def tensorboard_tags(folder):
    records = tf.data.TFRecordDataset([str(path) for path in folder.iterdir()])
    events = [tf.compat.v1.Event.FromString(record.numpy()) for record in records]
    return {value.tag for event in events for value in event.summary.value}


def assert_equal_weights(one, other):
    for left, right in zip(final_weights(one), final_weights(other), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, photos):
    """A run of the small configuration that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    runs.train(small_config(photos), folder, verbose=0)
    return folder


def test_a_run_leaves_what_it_promises(tmp_path, photos):
    options = {"samples": 4, "samples_every": 2, "tensorboard": True, "ema_snapshots": 12}
    config = small_config(photos, split=0.2, **options)
    result = runs.train(config, tmp_path / "run", verbose=0)
    assert (result.step, result.finished) == (12, True)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.yaml",
        "checkpoints",
        "ema",
        "log.csv",
        "samples",
        "tensorboard",
        "best.keras",
        "best_score.json",
        "data.json",
        "model.keras",
    }
    assert {path.name for path in (tmp_path / "run" / "samples").iterdir()} == {
        "samples_0002.png",
        "trajectory_0002.png",
    }
    log = tmp_path / "run" / "tensorboard"
    losses = {
        "epoch_n_loss",
        "epoch_i_loss",
        "epoch_learning_rate",
        "epoch_images_per_second",
        "epoch_gradient_norm",
    }
    assert losses <= tensorboard_tags(log / "train")
    assert {"epoch_n_loss", "epoch_i_loss", "epoch_kid"} <= tensorboard_tags(log / "validation")
    assert tensorboard_tags(log / "samples") == {"samples", "trajectory"}
    header, *lines = (tmp_path / "run" / "log.csv").read_text().split()
    assert len(lines) == 3  # five steps, five, and the two that are left
    assert {
        "n_loss",
        "i_loss",
        "val_i_loss",
        "val_kid",
        "images_per_second",
        "gradient_norm",
        "learning_rate",
    } <= set(header.split(","))
    assert [
        step for _, step in [Checkpoints(tmp_path / "run" / "checkpoints", 3).newest_whole()]
    ] == [12]
    assert len(Checkpoints(tmp_path / "run" / "checkpoints", 3).paths()) == 3
    assert ddim_keras.load_model(tmp_path / "run" / "model.keras").generate(2, 3).shape == (
        2,
        8,
        8,
        1,
    )
    found = RunConfig.read(tmp_path / "run" / "config.yaml")
    recommended = {"ema_decay": 0.995, **config.model}
    assert found == dataclasses.replace(
        config, preset=presets.RECOMMENDED, model=recommended, kid="fashion_mnist"
    )  # what grey images are judged by


def batches_of(number, batch_size, channels):
    images = (
        np.arange(number, dtype="float32")[:, None, None, None]
        / number
        * np.ones((1, 8, 8, channels), "float32")
    )
    return tf.data.Dataset.from_tensor_slices(images).batch(batch_size)


def test_validation_looks_all_over_a_large_validation_set():
    some = validating.spread_over(batches_of(118, 4, 1), 20, 4)
    assert [round(118 * float(batch[0, 0, 0, 0])) for batch in some] == [0, 24, 48, 72, 96]
    for number in (None, 118, 500):
        assert len(validating.spread_over(batches_of(118, 4, 1), number, 4)) == 30


def test_the_kid_of_colour_images_is_rough_where_inception_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("ddim_keras.metrics.extractors.reachable", lambda url: False)
    said = []
    assert training._features_for(batches_of(4, 4, 3), said.append) == "cifar10"
    assert "rough one, by the features of cifar10: the weights of InceptionV3 are not in" in said[0]
    monkeypatch.setattr("ddim_keras.metrics.get_extractor", lambda name: name)
    assert training._features_for(batches_of(4, 4, 3), said.append) == "inception_v3"
    assert training._features_for(batches_of(4, 4, 1), said.append) == "fashion_mnist"
    assert (
        training._features_for(batches_of(1, 4, 1), said.append) is None
    )  # a KID needs two images
    assert training._features_for(None, said.append) is None
    assert len(said) == 1


@pytest.mark.parametrize("global_seed", [None, 0, 5])
def test_an_order_by_a_seed_from_a_data_set_is_that_of_the_same_number(global_seed):
    if global_seed is not None:
        keras.utils.set_random_seed(global_seed)
    numbers = tf.data.Dataset.range(20)
    for seed in (0, 3, 2**31 - 1, 10_000_000_019):
        seeds = tf.data.Dataset.from_tensors(tf.constant(seed, tf.int64))
        found = seeds.flat_map(lambda seed: seeded.shuffled(numbers, 20, seed))
        expected = numbers.shuffle(20, seed=seed, reshuffle_each_iteration=False)
        assert list(found.as_numpy_iterator()) == list(expected.as_numpy_iterator())
        found = seeds.flat_map(lambda seed: seeded.random(seed).take(5))
        assert list(found.as_numpy_iterator()) == list(
            tf.data.Dataset.random(seed).take(5).as_numpy_iterator()
        )


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_accumulated_and_mirrored_batches_are_gone_on_with_too(tmp_path, photos, monkeypatch):
    # Wide enough for Muon to train the kernels.
    model = {**SMALL, "widths": [16, 24]}
    config = small_config(photos, model=model, training={"accumulate": 3, "flip": True})
    runs.train(config, tmp_path / "whole", verbose=0)
    interrupt_and_go_on(config, tmp_path / "cut", 9, monkeypatch)
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.fixture
def flowers(tmp_path):
    """Photos by class."""
    draws = np.random.default_rng(0)
    for name in ("rose", "tulip"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for index in range(11):
            image = draws.integers(0, 255, (8, 8), dtype="uint8")
            PIL.Image.fromarray(image).save(tmp_path / "flowers" / name / f"{index}.png")
    return tmp_path / "flowers"


@pytest.mark.slow
def test_a_run_by_label_goes_on_and_shows_a_row_for_each_class(tmp_path, flowers, monkeypatch):
    config = small_config(flowers, split=0.2, labels=True, samples=4, kid=None)
    interrupt_and_go_on(config, tmp_path / "run", 6, monkeypatch)
    model = ddim_keras.load_model(tmp_path / "run" / "model.keras")
    assert model.class_names == ["rose", "tulip"]
    with PIL.Image.open(tmp_path / "run" / "samples" / "samples_0003.png") as picture:
        assert picture.size == (2 * (16 + 2), 2 * (16 + 2))
    changed = dataclasses.replace(config, labels=False)
    with pytest.raises(ValueError, match="labels: True there, False now"):
        runs.train(changed, tmp_path / "run", verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["auto", "keras_example"])
def test_a_run_by_label_keeps_a_guidance_and_says_so(tmp_path, flowers, preset):
    quick = {"steps": 2, "kid": None, "split": 0.2, "preset": preset}
    config, said = small_config(flowers, labels=True, **quick), []
    model = runs.train(config, tmp_path / "run", tell=said.append, verbose=0).model
    assert [line for line in said if line.startswith("Images by label are guided by 2, unless")]
    saved = ddim_keras.load_model(tmp_path / "run" / "model.keras")
    assert saved.sampling_defaults.guidance == model.sampling_defaults.guidance == 2.0
    said.clear()
    assert runs.train(config, tmp_path / "run", tell=said.append, verbose=0).finished
    assert RunConfig.read(tmp_path / "run" / "config.yaml").guidance == 2.0
    assert not [line for line in said if "guided" in line]  # the same command resumes
    other = dataclasses.replace(config, guidance=3.0)
    colour = dataclasses.replace(config, channels=3, image_size=16)
    in_colour = runs.train(colour, tmp_path / "colour", verbose=0).model
    assert in_colour.sampling_defaults.guidance == 3.0
    if preset == "auto":
        assert in_colour.engine.schedule.min_signal_rate == 0.01
    with pytest.raises(ValueError, match="guidance: 2.0 there, 3.0 now"):
        runs.train(other, tmp_path / "run", verbose=0)
    changed = runs.train(other, tmp_path / "other", verbose=0).model
    assert changed.sampling_defaults.guidance == 3.0


@pytest.mark.slow
def test_a_run_that_cannot_be_guided_or_says_how_itself_is_given_no_guidance(tmp_path, flowers):
    task = {"task": "super-resolution", "factor": 2}
    defaults = ddim_keras.SamplingDefaults(5, guidance=4.0)
    own = {**SMALL, "sampling_defaults": keras.saving.serialize_keras_object(defaults)}
    for index, (options, weight) in enumerate(
        (
            ({"labels": False}, None),
            ({"model": {**SMALL, "label_dropout": 0.0}}, None),
            (task, None),
            ({"model": own}, 4.0),
        )
    ):
        settings = {"labels": True, "steps": 1, "kid": None, "split": 0.2, **options}
        config = small_config(flowers, **settings)
        model = runs.train(config, tmp_path / f"run_{index}", verbose=0).model
        assert model.sampling_defaults.guidance == weight


@pytest.mark.slow
def test_runs_that_kept_no_guidance_go_on_without(tmp_path, flowers):
    """As those of before there was one."""
    config = small_config(flowers, labels=True, kid=None, split=0.2, steps=2)
    runs.train(config, tmp_path / "run", verbose=0)
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings.pop("guidance") == 2.0
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    longer = dataclasses.replace(config, steps=3)
    model = runs.train(longer, tmp_path / "run", verbose=0).model
    assert model.sampling_defaults.guidance is None


@pytest.mark.slow
def test_labels_that_are_not_used_are_told_of_once(tmp_path, flowers, photos):
    said = []
    config = small_config(flowers, steps=1, kid=None, split=0.2)
    for _ in range(2):
        runs.train(config, tmp_path / "run", tell=said.append, verbose=0)
    (line,) = [line for line in said if "have labels" in line]
    assert line.startswith("The images have labels, 2 classes (rose, tulip), which are not used")
    said.clear()
    config = small_config(photos, steps=1, kid=None)
    runs.train(config, tmp_path / "flat", tell=said.append, verbose=0)
    assert not [line for line in said if "have labels" in line]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 2.0}, "strengthens labels, and the run has none: give labels"),
        ({"guidance": "strong", "labels": True}, "guidance must be a number, such as 2.0, got"),
        ({"guidance": float("nan"), "labels": True}, "guidance must be a number"),
        ({"guidance": True, "labels": True}, "guidance must be a number"),
        ({"guidance": 2.0, "labels": True, "distill": {"model": "m"}}, "within distill"),
    ],
)
def test_guidance_that_a_run_cannot_keep_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**settings)


@pytest.mark.slow
def test_an_interrupted_run_by_label_ends_where_a_whole_one_does(tmp_path, flowers, monkeypatch):
    config = small_config(flowers, labels=True)
    runs.train(config, tmp_path / "whole", verbose=0)
    interrupt_and_go_on(config, tmp_path / "cut", 6, monkeypatch)
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_task_gives_the_model_something_to_make_images_from(tmp_path, flowers):
    options = {"split": 0.2, "kid": None, "samples": 3, "steps": 3, "validate_every": 3}
    config = small_config(flowers, task="super-resolution", factor=2, labels=True, **options)
    model = runs.train(config, tmp_path / "run", verbose=0).model
    assert model.condition_shape == (4, 4, 1) and model.num_classes == 2
    with PIL.Image.open(tmp_path / "run" / "samples" / "samples_0001.png") as picture:
        assert picture.size == (3 * (16 + 2), 2 * (16 + 2))  # what they are made from, and they
    config = small_config(flowers, task="colorization", channels=3, **options)
    assert runs.train(config, tmp_path / "colour", verbose=0).model.condition_shape == (8, 8, 1)


def test_an_unknown_task_or_a_factor_without_its_task_is_refused():
    with pytest.raises(ValueError, match="task must be one of"):
        RunConfig(task="painting")
    for task in (None, "colorization"):
        with pytest.raises(ValueError, match=f"factor=2 .* the task is {task!r}: give that task"):
            RunConfig(task=task, factor=2)


@pytest.mark.slow
def test_a_run_chooses_its_network_by_the_images_and_says_why(tmp_path, photos):
    config = small_config(photos, steps=2, model={"ema_decay": 0.5}, split=0.2)
    assert config.preset == "auto"
    said = []
    model = runs.train(config, tmp_path / "run", tell=said.append, verbose=0).model
    found = presets.recommend(8, 1, 17)
    assert model.widths == found.model["widths"] and model.ema_decay == 0.5
    assert set(found.reasons.values()) <= set(said)
    written = RunConfig.read(tmp_path / "run" / "config.yaml")
    assert written.preset == found.preset and written.model == {**found.model, "ema_decay": 0.5}
    assert runs.train(config, tmp_path / "run", verbose=0).finished  # the same command resumes
    assert runs.train(written, tmp_path / "run", verbose=0).finished
    other = dataclasses.replace(config, model={"widths": [4]})
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        runs.train(other, tmp_path / "run", verbose=0)


def test_a_network_of_the_users_own_levels_is_not_given_others(tmp_path, photos):
    config = small_config(photos, model={"widths": [4]}, minutes=60.0)
    chosen, reasons = config.recommended((32, 32), 3, 100)
    end = chosen.model.pop("schedule")["config"]["min_signal_rate"]
    assert end == 0.005 and chosen.model == {"widths": [4], "ema_decay": 0.999, "dropout": 0.1}
    assert [reason.split()[0] for reason in reasons] == ["Noise", "Dropout"]


@pytest.mark.parametrize(
    ("steps", "steps_per_pass", "every"),
    [(200, 5, 100), (3000, 5, 600), (50_000, 5, 1000), (50_000, 1875, 1875), (10, 3, 100)],
)
def test_a_new_run_validates_now_and_then(photos, steps, steps_per_pass, every):
    config = small_config(photos, steps=steps, validate_every=None)
    assert config.paced(steps_per_pass).validate_every == every
    assert small_config(photos, steps=steps).paced(steps_per_pass).validate_every == 5  # as it says


@pytest.mark.slow
def test_the_pace_of_validations_is_settled_at_the_start(tmp_path, photos):
    config = small_config(photos, steps=2, validate_every=None, kid=None)
    runs.train(config, tmp_path / "run", verbose=0)
    assert RunConfig.read(tmp_path / "run" / "config.yaml").validate_every == 100
    longer = dataclasses.replace(config, steps=3)
    assert runs.train(longer, tmp_path / "run", verbose=0).finished
    # A run of before goes on in its own passes.
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    (tmp_path / "run" / "config.yaml").write_text(
        yaml.safe_dump({**settings, "validate_every": None})
    )
    longer = dataclasses.replace(config, steps=4)
    assert runs.train(longer, tmp_path / "run", verbose=0).finished
    assert RunConfig.read(tmp_path / "run" / "config.yaml").validate_every is None


@pytest.mark.slow
def test_minutes_become_steps_once_and_the_run_is_as_one_of_so_many_steps(
    tmp_path, photos, monkeypatch
):
    monkeypatch.setattr(training, "steps_within", lambda minutes, model, data: int(minutes))
    config = small_config(photos, minutes=12.0, steps=1)
    said = []
    runs.train(config, tmp_path / "run", tell=said.append, verbose=0)
    assert "12 steps of 4 images fit into 12 minutes of training" in said
    assert RunConfig.read(tmp_path / "run" / "config.yaml").steps == 12
    killed_after(6, config, tmp_path / "cut", monkeypatch)
    monkeypatch.setattr(training, "steps_within", lambda *arguments: 1 / 0)
    runs.train(config, tmp_path / "cut", verbose=0)
    assert_equal_weights(tmp_path / "run", tmp_path / "cut")
    longer = dataclasses.replace(config, minutes=20.0)
    with pytest.raises(ValueError, match="was begun for 12.0 minutes, 12 steps: give --steps"):
        runs.train(longer, tmp_path / "run", verbose=0)
    longer = dataclasses.replace(config, minutes=None, steps=14)
    assert runs.train(longer, tmp_path / "run", verbose=0).step == 14


@pytest.mark.slow
def test_so_many_steps_are_tried_and_counted(photos):
    model = make_small_model()
    model.compile()
    images = ddim_keras.data.load_dataset(str(photos), 8, 4, split=0.0)[0]
    model.normalizer.adapt(images)
    start = time.perf_counter()
    steps = timing.steps_within(1.0, model, images.from_step(0))
    slowest = 60.0 / (time.perf_counter() - start) * 30
    assert int(model.optimizer.iterations) == 30
    assert steps > slowest, "the time of compiling is not a step's"


@pytest.mark.parametrize("step", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_where_a_whole_one_does(
    tmp_path, photos, whole_run, monkeypatch, step
):
    interrupt_and_go_on(small_config(photos), tmp_path / "cut", step, monkeypatch)
    assert_equal_weights(whole_run, tmp_path / "cut")


def interrupt_and_go_on(config, folder, step, monkeypatch):
    killed_after(step, config, folder, monkeypatch)
    said = []
    runs.train(config, folder, tell=said.append, verbose=0)
    assert any("Resuming from step" in line for line in said) == (step > 4)
    epochs = [line.split(",")[0] for line in (folder / "log.csv").read_text().split()[1:]]
    assert epochs == ["0", "1", "2"]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_where_a_whole_one_does(tmp_path, photos):
    """SIGKILL, thrice, whenever it strikes."""
    config = small_config(photos, steps=60, checkpoint_every=5, validate_every=20)
    config.write(tmp_path / "config.yaml")
    code = """
import sys
from ddim_keras import runs
runs.train(runs.RunConfig.read(sys.argv[1]), sys.argv[2], verbose=0)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(folder):
        arguments = [sys.executable, "-c", code, str(tmp_path / "config.yaml"), str(folder)]
        return subprocess.Popen(
            arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    assert start(tmp_path / "whole").wait(300) == 0
    for count in (1, 3, 6):
        process = start(tmp_path / "cut")
        while (
            len(list((tmp_path / "cut").glob("checkpoints/step_*.json"))) < min(count, 3)
            and process.poll() is None
        ):
            time.sleep(0.05)
        time.sleep(0.1 * count)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "cut").wait(300) == 0
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, photos, whole_run):
    config = small_config(photos)
    shutil.copytree(whole_run, tmp_path / "run")
    (tmp_path / "run" / "model.keras").unlink()
    newest = Checkpoints(tmp_path / "run" / "checkpoints", 3).paths()[0]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-100] + b"x" * 100)
    said = []
    with pytest.warns(
        UserWarning, match=r"step_000000012.weights.h5 is damaged: its checksum is wrong"
    ):
        runs.train(config, tmp_path / "run", tell=said.append, verbose=0)
    assert "Resuming from step 8 of 12" in said[0]
    assert_equal_weights(whole_run, tmp_path / "run")


NOTES = ["", "[]", "null", "[" * 100000, "{}", "\x00" * 100]
NOTES += [
    f'{{"sha256": "DIGEST", "step": {step}}}' for step in ("null", "Infinity", '"x"', "9", "true")
]


@pytest.mark.parametrize("note", NOTES, ids=range(len(NOTES)))
def test_a_checkpoint_with_a_damaged_note_gives_way_to_the_one_before(tmp_path, note):
    for step in (1, 2):
        path = tmp_path / f"step_{step:09d}.weights.h5"
        path.write_bytes(b"weights")
        digest = hashlib.sha256(b"weights").hexdigest()
        content = json.dumps({"step": step, "sha256": digest})
        (tmp_path / f"step_{step:09d}.json").write_text(content)
    assert Checkpoints(tmp_path, 3).newest_whole() == (path, 2)
    damaged = note.replace("DIGEST", digest)
    (tmp_path / "step_000000002.json").write_text(damaged)
    with pytest.warns(UserWarning, match="step_000000002.weights.h5 is damaged: .*one before"):
        found = Checkpoints(tmp_path, 3).newest_whole()
    assert found == (tmp_path / "step_000000001.weights.h5", 1)


def test_a_checkpoint_of_another_optimizer_does_not_let_it_begin_anew(tmp_path, photos):
    def made(optimizer):
        inputs = [keras.Input((8, 8, 1)), keras.Input((1, 1, 1))]
        outputs = keras.layers.Conv2D(1, 1)(inputs[0])
        model = make_small_model(network=keras.Model(inputs, outputs))
        model.compile(optimizer=optimizer)
        return model

    place = RunFolder(tmp_path)
    kept = Checkpoints(place.checkpoints, 1)
    path = kept.save(made("sgd"), 4)
    parts = {"folder": place, "model": made("adam"), "tell": print}
    parts |= dict.fromkeys(("recipe", "data", "validation"))
    resumed = training._Training(config=small_config(photos), **parts)
    with pytest.raises(ValueError, match=f"{path} holds the state of another .*'adam"):
        training._resume(resumed, kept)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, photos, whole_run):
    config = small_config(photos)
    said = []

    def tell(line):
        said.append(line)

    def interrupt(self, batch, logs=None, original=watching.KeepCheckpoints.on_train_batch_end):
        original(self, batch, logs)
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching.KeepCheckpoints, "on_train_batch_end", interrupt)
        result = runs.train(config, tmp_path / "run", tell=tell, verbose=0)
    assert (result.finished, result.step) == (False, 7)
    assert "the same command resumes" in said[-1]
    runs.train(config, tmp_path / "run", verbose=0)
    assert_equal_weights(whole_run, tmp_path / "run")


@pytest.mark.slow
def test_a_diverging_run_stops_and_names_the_last_good_checkpoint(tmp_path, photos, monkeypatch):
    original = watching.KeepCheckpoints.on_train_batch_end

    def spoil(self, batch, logs=None):
        original(self, batch, logs)
        if self.step == 5:
            self.model.network.trainable_variables[0].assign(
                np.full(self.model.network.trainable_variables[0].shape, np.nan)
            )

    monkeypatch.setattr(watching.KeepCheckpoints, "on_train_batch_end", spoil)
    with pytest.raises(DivergedError, match=r"last good checkpoint is .*step_000000004.weights.h5"):
        runs.train(small_config(photos), tmp_path / "run", verbose=0)
    assert Checkpoints(tmp_path / "run" / "checkpoints", 3).newest_whole()[1] == 4


def test_a_loss_that_is_not_finite_at_an_epochs_end_stops_before_images_are_made(tmp_path):
    keeper = watching.KeepCheckpoints(Checkpoints(tmp_path, 3), RunConfig(), 7, None)
    keeper.on_epoch_end(0, {"loss": 1.0, "n_loss": 1.0, "val_kid": np.nan})
    with pytest.raises(DivergedError, match="the loss is not finite at step 7. There is no checkp"):
        keeper.on_epoch_end(1, {"loss": np.nan, "n_loss": 1.0})


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, photos, monkeypatch):
    original = keras.Model.save_weights

    def fill_up(self, path, *arguments, **options):
        if "000000008" in str(path):
            pathlib.Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(self, path, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(keras.Model, "save_weights", fill_up)
        runs.train(small_config(photos), tmp_path / "run", verbose=0)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step_000000004.json",
        "step_000000004.weights.h5",
    ]
    assert runs.train(small_config(photos), tmp_path / "run", verbose=0).finished


def test_one_process_trains_in_a_folder_and_others_read_in_it(photos, whole_run):
    before = sorted(whole_run.rglob("*"))
    with only_one_in(whole_run, "trains"):
        with pytest.raises(FolderInUseError, match=rf"trains in {whole_run} already: wait until"):
            runs.train(small_config(photos), whole_run, verbose=0)
        assert finding.load(str(whole_run)).image_shape == (8, 8, 1)
    assert sorted(whole_run.rglob("*")) == before


@pytest.mark.slow
def test_the_model_of_a_finished_run_is_made_again_if_it_is_damaged(tmp_path, photos, whole_run):
    run = shutil.copytree(whole_run, tmp_path / "run")
    whole = (run / "model.keras").read_bytes()
    for damaged in (whole[:-50], whole[:9000] + b"damaged" + whole[9007:]):
        (run / "model.keras").write_bytes(damaged)
        told = []
        assert runs.train(small_config(photos), run, told.append, verbose=0).finished
        assert any("model.keras is " in line and "made again" in line for line in told), told
        assert_equal_weights(run, whole_run)
    runs.train(small_config(photos), run, told.append, verbose=0)
    assert "Nothing is left to do" in told[-1]


def test_other_configurations_and_other_folders_are_refused(tmp_path, photos, whole_run):
    with pytest.raises(ValueError, match="seed: 0 there, 2 now"):
        runs.train(small_config(photos, seed=2), whole_run, verbose=0)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="something other than a run"):
        runs.train(small_config(photos), tmp_path / "else", verbose=0)


@pytest.mark.slow
def test_a_longer_run_that_was_interrupted_ends_where_one_that_was_not_does(
    tmp_path, photos, whole_run, monkeypatch
):
    longer = small_config(photos, steps=17, training={"schedule": "cosine"})
    runs.train(small_config(photos, training={"schedule": "cosine"}), tmp_path / "whole", verbose=0)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shorter_model = (tmp_path / "cut" / "model.keras").read_bytes()
    said = []
    runs.train(longer, tmp_path / "whole", tell=said.append, verbose=0)
    assert (
        "The run is longer now: 17 steps instead of 12." in said[0]
        and "cosine schedule of 17 steps" in said[0]
    )
    killed_after(14, longer, tmp_path / "cut", monkeypatch)
    assert (tmp_path / "cut" / "model.keras").read_bytes() == shorter_model
    runs.train(longer, tmp_path / "cut", verbose=0)
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")
    with pytest.raises(ValueError, match="is trained for 17 steps already"):
        runs.train(
            small_config(photos, training={"schedule": "cosine"}), tmp_path / "cut", verbose=0
        )
    # Killed after the last checkpoint, before the model was written: what stands there is the
    # shorter run's.
    (tmp_path / "cut" / "model.keras").write_bytes(shorter_model)
    os.utime(tmp_path / "cut" / "model.keras", (0, 0))
    runs.train(longer, tmp_path / "cut", verbose=0)
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


def killed_after(step, config, folder, monkeypatch):
    count = watching.KeepCheckpoints.on_train_batch_end

    def count_and_fail(self, batch, logs=None):
        if self.step == step:
            raise KilledError
        count(self, batch, logs)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(watching.KeepCheckpoints, "on_train_batch_end", count_and_fail)
        runs.train(config, folder, verbose=0)


def test_moved_images_are_taken_where_they_are_the_same(tmp_path, photos, whole_run):
    shutil.copytree(whole_run, tmp_path / "run")
    shutil.copytree(photos, tmp_path / "moved")
    said = []
    place = RunFolder(tmp_path / "run")
    config = small_config(tmp_path / "moved")
    assert place.reconcile(config, said.append).data == str(tmp_path / "moved")
    assert said == [f"The images are at {tmp_path / 'moved'} now, where they were at {photos}"]
    shutil.copy(tmp_path / "moved" / "1.png", tmp_path / "moved" / "0.png")
    with pytest.raises(ValueError, match="holds other images"):
        place.reconcile(config, said.append)
    with pytest.raises(ValueError, match="choose another folder for another data set"):
        place.reconcile(small_config("embedded"), said.append)
    (tmp_path / "run" / "data.json").write_text("{")
    with pytest.raises(ValueError, match="data.json is damaged"):
        place.reconcile(config, said.append)


def prepare_tfds(data_dir, seed=0, release="first"):
    """Prepare a small data set of TFDS, `tiny_pictures`, in a folder."""
    import tensorflow_datasets as tfds

    class TinyPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        RELEASE_NOTES = {"1.0.0": release}

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {"image": tfds.features.Image(shape=(8, 8, 1))}
                ),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            draws = np.random.default_rng(seed)
            for index in range(20):
                yield index, {"image": draws.integers(0, 255, (8, 8, 1), dtype="uint8")}

    TinyPictures(data_dir=data_dir).download_and_prepare()
    return str(data_dir)


@pytest.mark.slow
def test_a_data_set_of_tfds_may_move_if_its_images_are_the_same(tmp_path):
    here, there = prepare_tfds(tmp_path / "here"), str(tmp_path / "there")
    config = small_config("tiny_pictures", data_dir=here, split=["train", None], steps=4)
    runs.train(config, tmp_path / "run", verbose=0)
    shutil.move(here, there)
    said = []
    moved = dataclasses.replace(config, data_dir=there, steps=5)
    runs.train(moved, tmp_path / "run", tell=said.append, verbose=0)
    assert f"at tiny_pictures in {there} now, where they were at tiny_pictures in {here}" in said[0]
    assert RunConfig.read(tmp_path / "run" / "config.yaml").data_dir == there

    place = RunFolder(tmp_path / "run")
    again = prepare_tfds(tmp_path / "again", release="other words")
    as_folder = dataclasses.replace(moved, data=f"{again}/tiny_pictures/1.0.0", data_dir=None)
    for same in (dataclasses.replace(moved, data_dir=again), as_folder):
        place.reconcile(same, said.append)
    others = dataclasses.replace(moved, data_dir=prepare_tfds(tmp_path / "others", seed=1))
    with pytest.raises(ValueError, match=r"tiny_pictures in .*others holds other images"):
        place.reconcile(others, said.append)
    # Nothing is there yet: what TFDS then prepares is compared.
    shutil.move(others.data_dir, tmp_path / "away")
    place.reconcile(others, said.append)
    shutil.move(tmp_path / "away", others.data_dir)
    with pytest.raises(ValueError, match=r"tiny_pictures in .*others holds other images"):
        place.write(others)
    assert RunConfig.read(place.config).data_dir == there


def test_images_of_tfds_that_changed_in_their_place_are_said_to_have(tmp_path):
    here = prepare_tfds(tmp_path / "here")
    config = small_config("tiny_pictures", data_dir=here, split=["train", None], steps=1)
    place = RunFolder(tmp_path / "run")
    place.write(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        place.reconcile(config, print)
        shutil.rmtree(here)  # loading says so
        place.reconcile(config, print)
    prepare_tfds(tmp_path / "here", seed=1)
    with pytest.warns(UserWarning, match="are not those that the run .* began with"):
        place.reconcile(config, print)


def test_a_log_begun_with_other_figures_keeps_every_figure_in_its_column(tmp_path):
    (tmp_path / "log.csv").write_text("epoch,i_loss,n_loss\n0,0.5,0.25\n1,0.4,0.2\n")
    log = watching.Log(tmp_path / "log.csv")
    log.forget_from(1)
    log.on_epoch_end(1, {"loss": 1.0, "n_loss": 0.125})
    rows = (tmp_path / "log.csv").read_text().split()
    assert rows == ["epoch,i_loss,loss,n_loss", "0,0.5,,0.25", "1,,1.0,0.125"]


@pytest.mark.parametrize("content", ["[" * 100000, "[]", "{}"], ids=["deep", "list", "empty"])
def test_damaged_files_of_a_run_are_refused_by_name(tmp_path, content):
    for name in ("data.json", "config.yaml"):
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"data.json is damaged \(.*\): remove it"):
        RunFolder(tmp_path)._known()
    if content != "{}":
        with pytest.raises(ValueError, match="config.yaml (is not YAML|must hold settings)"):
            RunConfig.read(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "damage", [b"epoch,n_loss\n0,\xb3.25\n", b"epoch\n" + b"9" * 200000, b"epoch\n" + b"9" * 5000]
)
def test_a_damaged_log_is_refused_by_name_and_stays(tmp_path, damage):
    path = tmp_path / "log.csv"
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"log.csv is damaged \(.*\): move it away"):
        watching.Log(path).forget_from(1)
    assert path.read_bytes() == damage


def test_a_line_of_a_log_whose_epoch_is_no_number_is_left_out(tmp_path):
    (tmp_path / "log.csv").write_text("epoch,n_loss\n\u00b2,0.5\n0,0.25\n", encoding="utf-8")
    watching.Log(tmp_path / "log.csv").forget_from(1)
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,n_loss", "0,0.25"]


@pytest.mark.slow
def test_what_cannot_work_leaves_no_configuration_behind(tmp_path, photos):
    odd = small_config(photos, image_size=9, model={**SMALL, "widths": [4, 8]})  # to be halved
    for wrong in (odd, small_config(tmp_path / "nowhere")):
        with pytest.raises(ValueError):
            runs.train(wrong, tmp_path / "run", verbose=0)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / ".0123abcd.config.yaml").write_text("half")  # of a process that was killed
    assert runs.train(small_config(photos, steps=1), tmp_path / "run", verbose=0).finished
    assert not (tmp_path / "run" / ".0123abcd.config.yaml").exists()


@pytest.mark.slow
def test_what_does_not_touch_the_weights_may_change(photos, tmp_path, whole_run):
    shutil.copytree(whole_run, tmp_path / "run")
    assert runs.train(
        small_config(photos, keep=1, checkpoint_every=2), tmp_path / "run", verbose=0
    ).finished


def test_a_checkpoint_is_never_removed_for_a_damaged_newer_one(tmp_path):
    model = make_trained_model()
    checkpoints = Checkpoints(tmp_path, keep=1)
    (tmp_path / "step_000000099.weights.h5").write_bytes(b"damaged")
    checkpoints.save(model, 13)
    assert [path.name for path in checkpoints.paths()] == ["step_000000013.weights.h5"]
    assert checkpoints.newest_whole()[1] == 13


@pytest.mark.slow
def test_what_a_kill_during_validation_lost_is_caught_up_with(tmp_path, photos):
    config = small_config(photos, split=0.2, samples=2, steps=5)
    runs.train(config, tmp_path / "run", verbose=0)
    for lost in ("best.keras", "best_score.json", "model.keras", "samples/samples_0001.png"):
        (tmp_path / "run" / lost).unlink()
    runs.train(config, tmp_path / "run", verbose=0)
    for found in ("best.keras", "model.keras", "samples/samples_0001.png"):
        assert (tmp_path / "run" / found).is_file()


# Ten of ten of ten, ...: written out, they would fill any memory.
ALIASES_OF_ALIASES = "\n".join(
    ["model: &x0 [a, a, a, a, a, a, a, a, a, a]"]
    + [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 0", "steps must be"),
        ("step: 5", r"unknown settings \['step'\]"),
        ("training: {rate: 1}", r"unknown training settings \['rate'\]"),
        ("preset: mnist", "unknown preset 'mnist'"),
        ("checkpoint_minutes: 0", "checkpoint_minutes must be a positive number"),
        ("kid: vgg", "kid must be one of"),
        ("validation_images: 0", "validation_images must be"),
        ("training: {learning_rate: 1e-4}", r"write 1.0e-4"),
        ("training: null", "training must hold settings by name"),
        ("minutes: 0", "^.*: minutes must be a positive number, got 0"),
        ("checkpoint_minutes: ten", "checkpoint_minutes must be a positive number"),
        ("data: 3", "data must be a name or a folder"),
        ("data: ''", "data must be a name or a folder, got ''"),
        ("[1, 2]", "must hold settings as NAME: VALUE"),
        ("a: b: c", "is not YAML"),
        ("steps: 5\nseed: 1\nsteps: 7", r"is not YAML: given more than once: steps\n"),
        ("training: {flip: true, flip: false}", "given more than once: flip"),
        ("model: &model {widths: *model}", "config.yaml: a setting holds itself"),
        (ALIASES_OF_ALIASES, r"is not YAML: .* 1234567909 values, more than 100000"),
        ("channels: true", "channels must be 1, 3 or 4, .* got True"),
        ("minutes: 1e1", "got '1e1' .*write 1.0e.1"),
    ],
)
def test_bad_configurations_are_refused(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        RunConfig.read(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"image_size": 8}}, "image_size is a setting of the run, .*give --image-size"),
        ({"model": {"channels": 1}}, "channels is a setting of the run, .*give --channels"),
        ({"precision": "float8"}, "unknown precision 'float8': expected auto, or .*float32"),
    ],
)
def test_settings_of_no_use_are_refused_before_anything_is_written(
    tmp_path, photos, settings, message
):
    with pytest.raises(ValueError, match=message):
        runs.train(small_config(photos, **settings), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_configuration_is_readable(tmp_path):
    RunConfig(image_size=[4, 6], split=["train", "test"]).write(tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["image_size"] == [4, 6]
    assert RunConfig.read(tmp_path / "config.yaml") == RunConfig(
        image_size=[4, 6], split=["train", "test"]
    )
    assert json.dumps(yaml.safe_load((tmp_path / "config.yaml").read_text()))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_configuration_says_its_encoding_and_not_the_system(tmp_path, encoding, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "read_text", None)  # which asks the system
    (tmp_path / "config.yaml").write_bytes("data: ./фото\n".encode(encoding))
    assert RunConfig.read(tmp_path / "config.yaml").data == "./фото"


def settings_of_0_1(**changes):
    written = yaml.safe_load((ROOT / "tests" / "version_0_1" / "run" / "config.yaml").read_text())
    return {**written, **changes}


@pytest.mark.parametrize(
    ("changes", "channels"),
    [
        ({}, 3),  # as it read every folder
        ({"channels": 1}, 1),
        ({"background": "white"}, None),  # written by a later version
        ({"data": "embedded"}, None),
        ({"data": "fashion_mnist"}, None),
    ],
)
def test_a_grey_folder_of_a_run_of_version_0_1_keeps_its_three_channels(
    tmp_path, photos, changes, channels
):
    values = settings_of_0_1(**{"data": str(photos), **changes})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert RunConfig.read(tmp_path / "config.yaml").channels == channels
    del values["keep"]  # not all of them: written by hand
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert RunConfig.read(tmp_path / "config.yaml").channels == changes.get("channels")


@pytest.mark.slow
def test_a_run_of_version_0_1_on_a_grey_folder_goes_on_with_three_channels(tmp_path, photos):
    values = settings_of_0_1(data=str(photos), steps=1, split=0.0, training={"batch_size": 4})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    config = RunConfig.read(tmp_path / "run" / "config.yaml")
    assert runs.train(config, tmp_path / "run", verbose=0).model.image_shape == (8, 8, 3)
    assert RunConfig.read(tmp_path / "run" / "config.yaml").channels == 3
