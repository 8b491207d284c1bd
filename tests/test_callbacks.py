import json

import keras
import numpy as np
import PIL.Image
import pytest
from conftest import make_small_model, random_images, slow_on_jax

import ddim_keras
from ddim_keras.callbacks import KeepBest, SampleImages, Throughput

pytestmark = slow_on_jax


def fit(model, callbacks, epochs=2, **options):
    if not model.compiled:
        model.compile()
    return model.fit(
        random_images(), batch_size=8, epochs=epochs, verbose=0, callbacks=callbacks, **options
    ).history


def test_throughput_counts_images_of_training(tmp_path):
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    history = fit(make_small_model(widths=[4]), [Throughput(8), log])
    assert len(history["images_per_second"]) == 2
    assert all(figure > 0 for figure in history["images_per_second"])
    assert "images_per_second" in (tmp_path / "log.csv").read_text()


@slow_on_jax
def test_sampled_images_are_those_of_the_epoch(tmp_path):
    model = make_small_model(widths=[4])
    fit(
        model,
        [SampleImages(tmp_path, every=2, num_images=6, diffusion_steps=3, seed=4, scale=1)],
        epochs=4,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "samples_0002.png",
        "samples_0004.png",
        "trajectory_0002.png",
        "trajectory_0004.png",
    ]
    expected = ddim_keras.plotting.image_grid(model.generate(6, 3, seed=4))
    with PIL.Image.open(tmp_path / "samples_0004.png") as picture:
        np.testing.assert_allclose(np.asarray(picture).astype(int), expected.astype(int), atol=1)


@pytest.mark.slow
def test_sampled_images_reach_tensorboard(tmp_path):
    sample = SampleImages(
        tmp_path / "pictures", trajectory=False, diffusion_steps=2, tensorboard=tmp_path / "log"
    )
    fit(make_small_model(widths=[4]), [sample])
    (events,) = (tmp_path / "log").iterdir()
    assert events.stat().st_size > 500


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 5])
def test_of_other_channels_the_first_is_shown(tmp_path, channels):
    model = make_small_model(channels=channels)
    model.compile()
    sample = SampleImages(
        tmp_path / "pictures",
        num_images=4,
        diffusion_steps=2,
        scale=1,
        tensorboard=tmp_path / "log",
    )
    images = random_images(8, (8, 8, channels))
    model.fit(images, batch_size=8, verbose=0, callbacks=[sample])
    first = model.generate(4, 2, seed=0)[..., :1]
    with PIL.Image.open(tmp_path / "pictures" / "samples_0001.png") as picture:
        np.testing.assert_allclose(
            np.asarray(picture).astype(int),
            ddim_keras.plotting.image_grid(first).astype(int),
            atol=1,
        )
    with PIL.Image.open(tmp_path / "pictures" / "trajectory_0001.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize("place", ["file", "file/below/it", "link"])
def test_a_file_in_the_way_is_named_before_the_first_step(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    way = {"link": "link is a link to nothing"}.get(place, "file is a file, not a folder")
    steps = []
    count = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda *_: steps.append(1))
    for callback in (
        SampleImages(tmp_path / place),
        KeepBest(tmp_path / place / "best.keras", "n_loss"),
    ):
        with pytest.raises(NotADirectoryError, match=f"cannot write to .*{place}: .*{way}") as said:
            fit(make_small_model(), [callback, count])
        assert "Give another folder" in str(said.value) and not steps


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # not so for an administrator
    with pytest.raises(
        PermissionError, match=f"cannot write to {tmp_path}/new: {tmp_path} may not"
    ):
        fit(make_small_model(), [SampleImages(tmp_path / "new")])
    with pytest.raises(PermissionError, match="change who may write there"):
        ddim_keras.plotting.save_images(tmp_path / "a.png", np.zeros((1, 2, 2, 1)))
    assert not list(tmp_path.iterdir())


class Figures(keras.callbacks.Callback):
    """Gives each epoch the next of the figures."""

    def __init__(self, figures):
        super().__init__()
        self.figures = list(figures)

    def on_epoch_end(self, epoch, logs=None):
        logs["figure"] = self.figures[epoch]


@pytest.mark.parametrize(
    ("mode", "figures", "best"),
    [
        ("min", [3, 1, np.nan, 2], 2),
        pytest.param("max", [3, 1, np.nan, 2], 1, marks=pytest.mark.slow),
    ],
)
def test_the_best_epoch_is_kept(tmp_path, mode, figures, best):
    kept = tmp_path / "best.keras"
    model = make_small_model(widths=[4])
    snapshots = []
    snapshot = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: snapshots.append(model.generate(1, 2, seed=0))
    )
    fit(model, [Figures(figures), snapshot, KeepBest(kept, "figure", mode)], epochs=4)
    np.testing.assert_array_equal(
        ddim_keras.load_model(kept).generate(1, 2, seed=0), snapshots[best - 1]
    )
    assert json.loads((tmp_path / "best_score.json").read_text())["epoch"] == best


@pytest.mark.slow
def test_a_resumed_training_does_not_replace_a_better_model(tmp_path):
    kept = tmp_path / "best.keras"
    fit(make_small_model(widths=[4]), [Figures([1.0]), KeepBest(kept, "figure")], epochs=1)
    before = kept.read_bytes()
    (tmp_path / "best_score.json").rename(tmp_path / "best.best.json")  # as version 0.1 called it
    fit(make_small_model(widths=[4]), [Figures([2.0]), KeepBest(kept, "figure")], epochs=1)
    assert kept.read_bytes() == before


def test_a_model_of_nan_is_never_the_best(tmp_path):
    model = make_small_model(widths=[4])
    keep = KeepBest(tmp_path / "best.keras", "figure")
    keep.set_model(model)
    keep.on_train_begin()
    weight = model.ema_network.weights[0]
    weight.assign(np.full(weight.shape, np.nan))
    keep.on_epoch_end(0, {"figure": 1.0})
    assert not list(tmp_path.iterdir())


def test_callbacks_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="must end in .keras"):
        KeepBest("best.h5")
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', got 'auto'"):
        KeepBest("best.keras", mode="auto")
    with pytest.raises(ValueError, match="no 'val_kid' among this epoch's figures"):
        fit(make_small_model(widths=[4]), [KeepBest("best.keras")])
    with pytest.raises(ValueError, match="every must be"):
        SampleImages("folder", every=0)
    with pytest.raises(ValueError, match="batch_size must be"):
        Throughput(0)
