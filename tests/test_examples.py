"""The files in examples/ run, and are short enough to be copied."""

import importlib.util

import numpy as np
import pytest
from conftest import ROOT, GaussianOracle
from PIL import Image

from ddim_keras import samplers
from ddim_keras.diffusion.schedules import LinearBetaSchedule
from ddim_keras.diffusion.spacings import diffusion_times, levels_of

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def load(name: str):
    specification = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def colours_in(path) -> int:
    return len(Image.open(path).convert("RGB").getcolors(maxcolors=1 << 24))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_20_to_40_lines_that_fit_a_page(path):
    lines = path.read_text().splitlines()
    assert 20 <= len(lines) <= 40
    assert max(map(len, lines)) <= 92  # what the docs' column holds


def test_every_example_is_named_in_the_docs():
    page = (ROOT / "docs" / "examples.md").read_text()
    assert not [path.name for path in EXAMPLES if path.name not in page]


@pytest.mark.slow
def test_train_on_a_folder(tmp_path, monkeypatch):
    example = load("train_on_a_folder")
    monkeypatch.setattr(example, "DiffusionModel", TinyPreset)
    folder = example.write_clothes(tmp_path / "photos", 40)
    example.main(folder, tmp_path, size=8, epochs=1, steps=1)
    assert (tmp_path / "model.keras").is_file() and (tmp_path / "best.keras").is_file()
    assert (tmp_path / "samples" / "samples_0001.png").is_file()
    assert colours_in(tmp_path / "generated.png") > 2 < colours_in(tmp_path / "training_images.png")


class TinyPreset:
    """Makes the preset's model with a tiny network."""

    @staticmethod
    def from_preset(name, **options):
        import ddim_keras

        return ddim_keras.DiffusionModel.from_preset(name, widths=[8], block_depth=1, **options)


@pytest.mark.slow
def test_your_own_network(tmp_path):
    model = load("your_own_network").main(8, width=8, epochs=1, steps=2, out=str(tmp_path))
    assert model.generate(2, 2).shape == (2, 8, 8, 1)
    assert (tmp_path / "own_network.png").is_file()


@pytest.mark.slow
def test_your_own_sampler(tmp_path):
    example = load("your_own_sampler")
    ddim, own, ddpm = example.main(2, 3, tmp_path / "sampler.png")
    assert all(np.abs(rows - own).max() > 0.01 for rows in (ddim, ddpm))
    assert colours_in(tmp_path / "sampler.png") > 2
    assert example.FadingNoise(2.0).get_config() == {"power": 2.0}


def test_your_own_sampler_is_ddpm_at_power_zero():
    levels = levels_of(LinearBetaSchedule(), diffusion_times(5, "linear", LinearBetaSchedule()))
    own = load("your_own_sampler").FadingNoise(0.0)
    for index in range(5):
        (expected,), (found,) = samplers.DDPM().step(index, levels), own.step(index, levels)
        np.testing.assert_allclose(found[:4] + found[5:], expected[:4] + expected[5:], atol=1e-12)


@pytest.mark.slow
def test_edit_an_image(tmp_path):
    rows = load("edit_an_image").main(2, 2, tmp_path / "edited.png")
    assert rows.shape == (5, 2, 32, 32, 1)
    np.testing.assert_allclose(rows[2][:, :, :16], rows[0][:, :, :16], atol=1e-5)  # the known half
    assert np.abs(rows[2][:, :, 16:] - rows[0][:, :, 16:]).max() > 0.1
    assert colours_in(tmp_path / "edited.png") > 2


@pytest.mark.slow
def test_by_label(tmp_path):
    small = {"widths": [8], "block_depth": 1}
    rows, model = load("by_label").main(8, epochs=1, steps=2, out=str(tmp_path), **small)
    assert rows.shape == (4, 8, 8, 8, 1) and model.class_names[1] == "Trouser"
    for name in ("plain", "guided", "within"):
        assert (tmp_path / f"by_label_{name}.png").is_file()
    assert model.generate(1, 2, labels="Bag").shape == (1, 8, 8, 1)


@pytest.mark.slow
def test_few_steps(tmp_path):
    rows = load("few_steps").main(2, (2, 3), tmp_path / "few.png")
    assert list(rows)[:2] == ["the default, 2", "the default, 3"] and len(rows) == 6
    assert colours_in(tmp_path / "few.png") > 2


@pytest.mark.slow
def test_categories(tmp_path):
    model = load("categories").main(8, (8,), epochs=1, out=tmp_path / "categories.png")
    assert model.generate(1, 2).shape == (1, 8, 8)
    assert colours_in(tmp_path / "categories.png") > 1


@pytest.mark.slow
def test_ddim_in_40_lines(tmp_path):
    load("ddim_in_40_lines").main(2, (8, 8, 1), (4, 8), tmp_path / "ddim.png")
    assert colours_in(tmp_path / "ddim.png") > 2


class OracleNetwork:
    """Stands for the network: the noises that the perfect denoiser of N(0.3, 0.5^2) sees."""

    def predict_on_batch(self, inputs):
        noisy_images, variances = inputs
        return GaussianOracle(0.3, 0.5)(noisy_images, np.sqrt(variances), np.sqrt(1 - variances))[0]


def test_ddim_in_40_lines_takes_the_walk_of_the_package():
    import keras

    noise = 0.2 * np.random.default_rng(1).normal(size=(4, 8, 8, 1))
    found = load("ddim_in_40_lines").sample(OracleNetwork(), noise, 10)

    schedule, oracle = LinearBetaSchedule(), GaussianOracle(0.3, 0.5)
    levels = levels_of(schedule, diffusion_times(10, "linear", schedule))
    planned = samplers.plan(samplers.DDIM(), levels, schedule.conditions)
    start = keras.ops.convert_to_tensor(noise.astype("float32"))
    memory = keras.ops.zeros((samplers.MEMORY, *noise.shape))
    table, no_noise = (
        keras.ops.convert_to_tensor(planned.table),
        lambda _: keras.ops.zeros_like(start),
    )
    images, _, _ = samplers.walk(oracle, start, memory, table, 0, planned.ends[-1], no_noise)
    expected = np.clip((keras.ops.convert_to_numpy(images) + 1) / 2, 0, 1)
    assert 0.02 < expected.std() and 0.0 < expected.min() and expected.max() < 1.0
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ddim_in_40_lines_imports_no_sampler():
    text = (ROOT / "examples" / "ddim_in_40_lines.py").read_text()
    assert "from ddim_keras import data, networks, plotting" in text
    assert text.count("ddim_keras") == 1
