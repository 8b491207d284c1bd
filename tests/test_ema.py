"""Averages of the weights whose length is chosen after the training."""

import dataclasses
import shutil

import keras
import numpy as np
import PIL.Image
import pytest
from conftest import make_small_model, random_images, slow_on_jax

import ddim_keras
from ddim_keras import ema, runs
from ddim_keras.runs import DivergedError, RunConfig, snapshots, watching
from ddim_keras.runs.folder import RunFolder
from ddim_keras.training import averages

STEPS = 24
LENGTHS = (0.04, 0.05, 0.08, 0.1, 0.15, 0.2)


def flat(weights):
    return np.concatenate(
        [np.asarray(keras.ops.convert_to_numpy(each)).ravel() for each in weights]
    )


class Trajectory(keras.callbacks.Callback):
    """Keeps the weights after each step."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.model.synchronize()
        self.weights.append(flat(self.model.network.weights))


@pytest.fixture(scope="module")
def followed():
    """A trained model with averages, and the weights after each of its steps, (steps, weights)."""
    keras.utils.set_random_seed(0)
    model = make_small_model()
    model.compile(optimizer=keras.optimizers.AdamW(1e-2), ema_lengths=(0.05, 0.1))
    trajectory = Trajectory()
    images = random_images()
    model.fit(images, batch_size=8, epochs=4, verbose=0, callbacks=[trajectory])
    return model, np.array(trajectory.weights)


def test_a_profile_has_the_standard_deviation_that_names_it():
    for length in LENGTHS:
        exponent = averages.exponent_of(length)
        times = (np.arange(100_000) + 0.5) / 100_000
        profile = (exponent + 1.0) * times**exponent
        mean = (times * profile).mean()
        assert np.sqrt(((times - mean) ** 2 * profile).mean()) == pytest.approx(length, rel=1e-4)


@pytest.mark.slow
def test_averages_kept_step_by_step_are_those_of_the_whole_trajectory(followed):
    model, trajectory = followed
    for length, weights in zip((0.05, 0.1), model.power_averages.averages):
        exact = averages.shares(length, len(trajectory)) @ trajectory
        np.testing.assert_allclose(flat(weights), exact, atol=2e-6)
        assert np.abs(exact - trajectory[-1]).max() > 1e-4


def test_the_rate_is_exact_after_a_million_steps():
    rate = averages._share_of_last(6.94, keras.ops.convert_to_tensor(1e6, "float32"))
    exact = 1.0 - (1.0 - 1e-6) ** 7.94
    assert float(rate) == pytest.approx(exact, rel=1e-6)


@slow_on_jax
def test_the_usual_average_is_the_same_with_others_beside_it(followed):
    keras.utils.set_random_seed(0)
    alone = make_small_model()
    alone.compile(optimizer=keras.optimizers.AdamW(1e-2))
    alone.fit(random_images(), batch_size=8, epochs=4, verbose=0)
    np.testing.assert_array_equal(
        flat(alone.ema_network.weights), flat(followed[0].ema_network.weights)
    )


def random_walk(steps):
    """Weights that drift and shake, (steps, weights), and the stored averages of them are exact."""
    draws = np.random.default_rng(0)
    return np.cumsum(draws.normal(size=(steps, 40)), axis=0) + 3.0 * draws.normal(size=(steps, 40))


def from_snapshots(trajectory, number, length):
    """The average of a length from `number` snapshots, its exact value, and the bound of the error
    by Cauchy and Schwarz.
    """
    steps = len(trajectory)
    times = [steps * (index + 1) // number for index in range(number)]
    stored = [(each, time) for time in times for each in averages.LENGTHS]
    found, error = averages.coefficients(stored, length, steps)
    rows = np.array(
        [np.pad(averages.shares(each, time), (0, steps - time)) for each, time in stored]
    )
    exact = averages.shares(length, steps)
    missed = np.linalg.norm(found @ rows - exact)
    spread = np.linalg.norm(trajectory - trajectory[-1], axis=0)
    return found @ rows @ trajectory, exact @ trajectory, missed * spread, error


@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_is_made_of_two_within_the_bound(length):
    trajectory = random_walk(1200)
    made, exact, bound, _ = from_snapshots(trajectory, 12, length)
    assert (np.abs(made - exact) <= bound + 1e-9).all()
    # Small beside how far the averages are from the last weights, and from each other.
    assert np.abs(made - exact).max() < 0.03 * np.abs(exact - trajectory[-1]).max()


def test_more_snapshots_leave_less_error():
    errors = [from_snapshots(random_walk(640), number, 0.15)[3] for number in (4, 8, 16, 32)]
    assert all(more < 0.6 * less for less, more in zip(errors, errors[1:]))


def test_stored_lengths_and_weights_that_rest_are_exact():
    stored = [(length, time) for time in (5, 10, 15) for length in averages.LENGTHS]
    for index, length in enumerate(averages.LENGTHS):
        found, error = averages.coefficients(stored, length, 15)
        np.testing.assert_allclose(found, np.eye(6)[4 + index], atol=1e-6)
        assert error < 1e-4
    for length in (0.01, 0.02, 0.07, 0.28):
        assert averages.coefficients(stored, length, 15)[0].sum() == pytest.approx(1.0)


def test_lengths_are_checked():
    for wrong in (0.0, 0.3, -0.1, "long", True, float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \(0, 0.28\]"):
            averages.length_of(wrong)


def test_files_carry_the_averages_and_those_without_leave_them_at_the_start(followed, tmp_path):
    model, _ = followed
    model.save(tmp_path / "whole.keras")
    again = ddim_keras.load_model(tmp_path / "whole.keras")
    assert again.power_averages.lengths == (0.05, 0.1)
    for one, other in zip(model.power_averages.weights, again.power_averages.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))
    uncompiled = ddim_keras.load_model(tmp_path / "whole.keras", compile=False)
    assert not uncompiled.power_averages.weights
    plain = make_small_model()
    plain.compile(optimizer=keras.optimizers.AdamW(1e-2))
    plain.save_weights(tmp_path / "plain.weights.h5")
    again.load_weights(tmp_path / "plain.weights.h5")
    assert float(again.power_averages.updates) == 0.0
    model.save_weights(tmp_path / "followed.weights.h5")
    plain.load_weights(tmp_path / "followed.weights.h5")
    with pytest.raises(ValueError, match=r"averages of the lengths \[0.05, 0.1\], not of \[0.07\]"):
        again.compile(ema_lengths=[0.07])


# Runs


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for index in range(22):
        image = PIL.Image.fromarray(draws.integers(0, 255, (8, 8), dtype="uint8"))
        image.save(folder / f"{index}.png")
    return folder


def small_config(photos, **changes):
    settings = {
        "data": str(photos),
        "split": 0.3,
        "image_size": 8,
        "channels": 1,
        "steps": STEPS,
        "model": {"widths": [4], "block_depth": 1, "patch_size": 1},
        "training": {"batch_size": 4, "learning_rate": 1e-2, "schedule": "constant"},
        "precision": "float32",
        "validate_every": 10,
        "checkpoint_every": 5,
        "samples": 0,
        "tensorboard": False,
        "kid": None,
        "memorization": 0,
    }
    return RunConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def whole_run(photos, tmp_path_factory):
    """A run that nothing interrupted, and its weights after each step."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    weights = []
    keep = watching.KeepCheckpoints.on_train_batch_end

    def record(self, batch, logs=None):
        keep(self, batch, logs)
        self.model.synchronize()
        weights.append(flat(self.model.network.weights))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching.KeepCheckpoints, "on_train_batch_end", record)
        runs.train(small_config(photos), folder, verbose=0)
    return folder, np.array(weights)


@pytest.mark.slow
def test_a_run_stores_snapshots_evenly_and_the_last_at_its_end(whole_run):
    found = snapshots.stored(whole_run[0] / "ema")
    assert [each.step for each in found] == list(range(2, STEPS + 1, 2))
    assert [each.updates for each in found] == [each.step for each in found]
    many = snapshots.Snapshots(whole_run[0], 3, 10)
    assert [step for step in range(1, 11) if many.is_due(step)] == [4, 7, 10]


@pytest.mark.slow
@pytest.mark.parametrize("length", [0.12, 0.05, 0.07, 0.2])
def test_a_runs_average_of_any_length_is_that_of_its_weights(whole_run, length):
    folder, trajectory = whole_run
    model = ema.reconstruct(folder, length)
    exact = averages.shares(length, STEPS) @ trajectory
    scale = np.abs(exact - trajectory[-1]).max()
    # Half precision's 11 bits, and what few steps are coarser than a profile.
    assert np.abs(flat(model.ema_network.weights) - exact).max() < 0.05 * scale + 2**-11
    np.testing.assert_array_equal(flat(model.network.weights), flat(model.ema_network.weights))
    assert np.isfinite(model.generate(2, 3, seed=0)).all()


@slow_on_jax
def test_an_average_can_be_that_of_an_earlier_step(whole_run):
    folder, trajectory = whole_run
    found = flat(ema.reconstruct(folder, 0.05, step=13).ema_network.weights)
    exact = averages.shares(0.05, 12) @ trajectory[:12]
    np.testing.assert_allclose(found, exact, atol=2**-10 * np.abs(exact).max())


@slow_on_jax
def test_a_model_early_in_its_training_is_the_average_nearest_to_there(whole_run, tmp_path):
    folder, trajectory = whole_run
    for share, step in ((0.1, 2), (0.3, 8)):
        exact = averages.shares(0.1, step) @ trajectory[:step]
        found = flat(ema.early(folder, share).ema_network.weights)
        np.testing.assert_allclose(found, exact, atol=2**-10 * np.abs(exact).max())
    with pytest.raises(ValueError, match=r"share must be a number in \(0, 1\), got 1.0"):
        ema.early(folder, 1.0)
    with pytest.raises(FileNotFoundError, match="no configuration at"):
        ema.early(tmp_path)
    shutil.copytree(folder, tmp_path / "run")
    *others, last = sorted((tmp_path / "run" / "ema").iterdir())
    for path in others:
        path.unlink()
    with pytest.raises(ValueError, match=f"no average: the nearest is its last, of step {STEPS}"):
        ema.early(tmp_path / "run")
    last.unlink()
    with pytest.raises(ValueError, match="has stored no averages: train it with"):
        ema.early(tmp_path / "run")


def files_of(folder):
    return {path.name: np.load(path)["averages"] for path in (folder / "ema").iterdir()}


class KilledError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("step", [16, 3])
def test_a_killed_run_ends_with_the_same_snapshots(whole_run, photos, tmp_path, monkeypatch, step):
    config = small_config(photos)
    keep = watching.KeepCheckpoints.on_train_batch_end

    def strike(self, batch, logs=None):
        keep(self, batch, logs)
        if self.step == step:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(watching.KeepCheckpoints, "on_train_batch_end", strike)
        with pytest.raises(KilledError):
            runs.train(config, tmp_path / "cut", verbose=0)
    runs.train(config, tmp_path / "cut", verbose=0)
    whole, cut = files_of(whole_run[0]), files_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, found in cut.items():
        np.testing.assert_array_equal(found, whole[name])


@pytest.mark.slow
def test_a_snapshot_is_written_before_the_checkpoint_of_its_step(photos, tmp_path, monkeypatch):
    """Killed between the two, a run that resumed from the checkpoint would never make it."""
    written = []
    monkeypatch.setattr(
        snapshots.Snapshots, "save", lambda self, model, step: written.append(("snapshot", step))
    )
    save = runs.Checkpoints.save
    monkeypatch.setattr(
        runs.Checkpoints,
        "save",
        lambda self, model, step: (written.append(("checkpoint", step)), save(self, model, step)),
    )
    config = small_config(photos, steps=4, ema_snapshots=2, checkpoint_every=2, split=0.0)
    runs.train(config, tmp_path / "run", verbose=0)
    assert written == [(kind, step) for step in (2, 4) for kind in ("snapshot", "checkpoint")]


@pytest.mark.slow
def test_averages_turned_on_in_the_middle_are_those_of_the_rest(photos, tmp_path):
    config = small_config(photos, steps=6, ema_snapshots=0, split=0.0)
    runs.train(config, tmp_path / "run", verbose=0)
    assert not (tmp_path / "run" / "ema").exists()
    with pytest.raises(ValueError, match="has stored no averages: train it with --ema-snapshots"):
        ema.reconstruct(tmp_path / "run", 0.1)
    runs.train(dataclasses.replace(config, steps=12, ema_snapshots=4), tmp_path / "run", verbose=0)
    found = snapshots.stored(tmp_path / "run" / "ema")
    assert [(each.step, each.updates) for each in found] == [(9, 3), (12, 6)]


@pytest.mark.slow
def test_the_best_length_is_that_of_the_lowest_validation_figure(whole_run):
    said = []
    model = ema.reconstruct(whole_run[0], "best", lengths=(0.05, 0.25), tell=said.append)
    figures = {line.split(":")[0]: float(line.split()[-1]) for line in said[:2]}
    assert list(figures) == ["length 0.05", "length 0.25"] and "i_loss" in said[0]
    best = min(figures, key=figures.get).split()[1]
    assert said[2] == f"The best length is {best}"
    expected = ema.reconstruct(whole_run[0], float(best))
    np.testing.assert_array_equal(
        flat(model.ema_network.weights), flat(expected.ema_network.weights)
    )


@slow_on_jax
def test_a_damaged_snapshot_is_left_out_with_a_warning(whole_run, tmp_path):
    shutil.copytree(whole_run[0], tmp_path / "run")
    path = sorted((tmp_path / "run" / "ema").iterdir())[-2]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.warns(UserWarning, match="is damaged .*: it is left out"):
        found = snapshots.stored(tmp_path / "run" / "ema")
    assert len(found) == 11


@pytest.mark.parametrize("damage", ["flipped", "empty", "array", "shape", "steps"])
def test_every_kind_of_damage_of_a_snapshot_is_found_before_it_counts(tmp_path, damage):
    def write(number, **changes):
        parts = {
            "averages": np.ones((2, 500), "float16"),
            "step": number,
            "updates": number,
            "lengths": np.array([0.05, 0.1]),
        }
        path = tmp_path / f"step_{number:09d}.npz"
        np.savez(path, **{**parts, **changes})
        return path

    whole, path = write(2), write(4)
    if damage == "flipped":
        contents = bytearray(path.read_bytes())
        contents[contents.index(b"averages.npy") + 400] ^= 1
        path.write_bytes(contents)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "array":
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
    elif damage == "shape":
        write(4, averages=np.ones((3, 500), "float16"))
    else:
        write(4, step=np.array([4, 5]))
    with pytest.warns(UserWarning, match=r"step_000000004.npz is damaged \(.*: it is left out"):
        found = snapshots.stored(tmp_path)
    assert [each.path for each in found] == [whole]


@slow_on_jax
def test_what_cannot_be_reconstructed_says_why(whole_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration at"):
        ema.reconstruct(tmp_path, 0.1)
    with pytest.raises(ValueError, match="length must be a number or 'best', got 'longest'"):
        ema.reconstruct(whole_run[0], "longest")
    with pytest.raises(ValueError, match="no averages up to step 1:"):
        ema.reconstruct(whole_run[0], 0.1, step=1)
    with pytest.warns(UserWarning, match="can only be made roughly of the 12 snapshots"):
        ema.reconstruct(whole_run[0], 0.01)
    shutil.copytree(whole_run[0], tmp_path / "run")
    for path in (RunFolder(tmp_path / "run").model, RunFolder(tmp_path / "run").best):
        path.unlink()
    with pytest.raises(ValueError, match="has no model yet: resume it with"):
        ema.reconstruct(tmp_path / "run", 0.1)


def test_averages_that_are_not_finite_are_not_written(followed, tmp_path):
    model = make_small_model()
    model.compile(ema_lengths=[0.1])
    first = model.power_averages.averages[0][0]
    first.assign(np.full(first.shape, np.inf))
    with pytest.raises(DivergedError, match="hold NaN or infinity at step 7"):
        snapshots.Snapshots(tmp_path, 1, 7).save(model, 7)
    assert not list(tmp_path.iterdir())


@slow_on_jax
def test_a_preset_of_a_run_keeps_its_recipe(whole_run, tmp_path):
    from click.testing import CliRunner

    from ddim_keras import presets
    from ddim_keras.cli import main

    run, out = whole_run[0], tmp_path / "preset"
    expected = RunConfig.read(run / "config.yaml").recipe()
    assert expected != presets.Training()
    for source, into in ((run, out), (out, tmp_path / "again")):
        result = CliRunner().invoke(main, ["export", "-m", str(source), str(into)])
        assert result.exit_code == 0, result.output
        assert presets.training(into) == expected


@pytest.mark.slow
def test_the_command_line_exports_an_average_of_a_length(whole_run, tmp_path):
    from click.testing import CliRunner

    from ddim_keras.cli import main

    run, out = str(whole_run[0]), str(tmp_path / "average.keras")
    result = CliRunner().invoke(main, ["export", "-m", run, "--ema-length", "0.08", out])
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(
        flat(ddim_keras.load_model(out).ema_network.weights),
        flat(ema.reconstruct(run, 0.08).ema_network.weights),
    )
    result = CliRunner().invoke(
        main, ["export", "-m", "fashion_mnist_32", "--ema-length", "best", out]
    )
    assert "needs the folder of a run" in result.output


@pytest.mark.parametrize("lengths", [(), 0.05])
def test_the_best_is_one_of_some_lengths(tmp_path, lengths):
    with pytest.raises(ValueError, match="lengths must be a list of those to choose among"):
        ema.reconstruct(tmp_path, "best", lengths=lengths)
