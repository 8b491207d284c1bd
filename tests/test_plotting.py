import numpy as np
import PIL.Image
import pytest

from ddim_keras import plotting
from ddim_keras.schedules import AngleSchedule, LinearBetaSchedule, ZeroTerminalSNRSchedule


def test_a_grid_holds_each_image_in_its_place():
    images = np.linspace(0, 1, 5).reshape(5, 1, 1, 1) * np.ones((5, 4, 6, 1))
    grid = plotting.image_grid(images, columns=3, padding=1)
    assert grid.shape == (2 * 6, 3 * 8, 3) and grid.dtype == np.uint8
    assert (grid[1:5, 9:15] == 64).all()  # the second image, 0.25
    assert (grid[7:11, 9:15] == 255).all() and (grid[0] == 255).all()


@pytest.mark.parametrize("channels", [2, 5, 6])
def test_of_images_of_other_channels_the_first_is_drawn(channels):
    images = np.random.default_rng(0).uniform(size=(3, 4, 4, channels))
    np.testing.assert_array_equal(plotting.image_grid(images), plotting.image_grid(images[..., :1]))
    assert plotting.image_grid(images[..., :4]).shape[-1] == (4 if channels > 2 else 3)


def test_pngs_are_written_pixel_for_pixel(tmp_path):
    images = np.random.default_rng(0).uniform(size=(4, 5, 5, 3))
    plotting.save_images(tmp_path / "sub" / "grid.png", images, columns=2, scale=2)
    np.testing.assert_array_equal(
        np.asarray(PIL.Image.open(tmp_path / "sub" / "grid.png")),
        plotting.image_grid(images, columns=2, scale=2),
    )


def test_grids_refuse_what_is_no_batch_of_images():
    with pytest.raises(ValueError, match=r"expected at least one image, .*got shape \(4, 4, 1\)"):
        plotting.image_grid(np.zeros((4, 4, 1)))


def test_trajectories_show_noise_above_prediction(trained_model):
    images, trajectory = trained_model.generate(2, 9, return_trajectory=True, seed=0)
    rows = plotting.trajectory_images(trained_model, trajectory, columns=4)
    assert rows.shape == (2 * 2, 4, 8, 8, 1)
    np.testing.assert_allclose(rows[1, -1], images[0], atol=1e-6)
    np.testing.assert_allclose(rows[3, -1], images[1], atol=1e-6)
    few = plotting.trajectory_images(
        trained_model, trained_model.generate(2, 3, return_trajectory=True)[1]
    )
    assert few.shape == (2 * 2, 3, 8, 8, 1)


def test_bytes_are_drawn_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3)).astype("uint8")
    np.testing.assert_array_equal(plotting.image_grid(images[:1], padding=0), images[0])


def test_rows_of_images_are_laid_out_as_they_are():
    images = np.random.default_rng(0).uniform(size=(2, 3, 4, 4, 1))
    np.testing.assert_array_equal(
        plotting.image_grid(images), plotting.image_grid(images.reshape(6, 4, 4, 1), columns=3)
    )


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_hold_every_frame(trained_model, tmp_path, suffix):
    _, trajectory = trained_model.generate(4, 6, return_trajectory=True, seed=0)
    frames = plotting.trajectory_frames(trained_model, trajectory)
    assert len(frames) == 7
    plotting.save_animation(tmp_path / f"walk{suffix}", frames, milliseconds=50, hold=400, scale=2)
    animation = PIL.Image.open(tmp_path / f"walk{suffix}")
    assert animation.n_frames == 7 and animation.size == (
        frames[0].shape[1] * 2,
        frames[0].shape[0] * 2,
    )
    animation.seek(3)
    shown = np.asarray(animation.convert("RGB")).astype(int)
    expected = frames[3].repeat(2, axis=0).repeat(2, axis=1).astype(int)
    assert np.abs(shown - expected).max() <= (
        0 if suffix == ".webp" else 8
    )  # a GIF has 256 colours
    assert [path.name for path in tmp_path.iterdir()] == [f"walk{suffix}"]


def test_animations_refuse_other_formats_and_no_frames(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .gif or .webp, got '.*walk.mp4'"):
        plotting.save_animation(tmp_path / "walk.mp4", [np.zeros((2, 2, 3), "uint8")])
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 2, 1\) and \(2, 3, 1\)"):
        plotting.save_animation(
            tmp_path / "walk.gif", [np.zeros((2, 2, 1), "uint8"), np.zeros((2, 3, 1))]
        )
    with pytest.raises(ValueError, match="at least one frame"):
        plotting.save_animation(tmp_path / "walk.gif", [])


def test_a_consistency_sheet_has_a_row_for_each_number_of_steps(trained_model):
    figure = plotting.plot_consistency(trained_model, steps=(2, 5), num_images=3, seed=1)
    assert [axes.get_ylabel() for axes in figure.axes] == ["S = 2", "S = 5"]
    shown = figure.axes[1].images[0].get_array()
    images = trained_model.generate(3, 5, sampler="ddim", seed=1)
    np.testing.assert_array_equal(shown, plotting.image_grid(images, columns=3))
    with pytest.raises(ValueError, match="a label for each of 1 rows, got 2"):
        plotting.plot_rows(images[None], ["one", "two"])


@pytest.mark.parametrize("schedule", [LinearBetaSchedule(), ZeroTerminalSNRSchedule()])
def test_discrete_schedules_are_drawn_where_they_are_finite(schedule):
    rates, ratio = plotting.plot_schedule(schedule).axes
    assert np.isfinite(ratio.lines[0].get_ydata()).all() and len(rates.lines) == 2


def test_charts_draw_what_they_are_given(tmp_path):
    history = {"n_loss": [0.5, 0.4], "i_loss": [0.7, 0.6], "val_n_loss": [0.6, 0.5]}
    figure = plotting.plot_history(history)
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[0.5, 0.4], [0.6, 0.5]]
    plotting.save_figure(tmp_path / "losses.png", figure)
    assert PIL.Image.open(tmp_path / "losses.png").size[0] > 500
    with pytest.raises(ValueError, match="no losses to draw"):
        plotting.plot_history({"accuracy": [1.0]})
    schedule = AngleSchedule()
    lines = plotting.plot_schedule(schedule, 50).axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), schedule(np.linspace(0, 1, 50))[0])


def test_plot_images_shows_one_figure_and_closes_it(trained_model, monkeypatch):
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf().axes[0].get_title()))
    trained_model.plot_images(epoch=2, num_rows=1, num_cols=2)
    assert shown == ["epoch 3"] and not plt.get_fignums()
