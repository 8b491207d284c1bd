"""Files that version 0.1.0 wrote still load, and give the same images."""

import shutil
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import ddim_keras
from ddim_keras import DiffusionModel, SamplingDefaults

sys.path.insert(0, str(ROOT / "tests" / "version_0_1"))
import reference


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(reference.FOLDER / "run", run)
    return reference.numbers(reference.FOLDER, run)


@pytest.fixture(scope="module")
def expected():
    with np.load(reference.FOLDER / f"{reference.backend()}.npz") as stored:
        return dict(stored)


def test_models_of_version_0_1_keep_their_walks_of_few_steps_and_new_ones_take_better(tmp_path):
    def walk(model):
        return model.generate(2, 3, seed=1, return_trajectory=True)[1].diffusion_times.tolist()

    old = keras.models.load_model(reference.FOLDER / "noise.keras")
    old.save(tmp_path / "again.keras")
    preset = DiffusionModel.from_preset(reference.FOLDER / "preset")
    for model in (old, ddim_keras.load_model(tmp_path / "again.keras"), preset):
        assert model.sampling_defaults.version == "0.1"
        times = model.generate(2, 3, seed=1, spacing="karras", return_trajectory=True)[1]
        assert walk(model) == times.diffusion_times.tolist()
    untrained = DiffusionModel.from_preset(reference.FOLDER / "preset", load_weights=False)
    new = DiffusionModel(**reference.MODELS["noise"])
    old.sampling_defaults = SamplingDefaults()
    for model in (untrained, new, DiffusionModel.from_config(new.get_config()), old):
        assert model.sampling_defaults.version is None
    expected = old.generate(
        2, 3, seed=1, spacing="log_snr", sampler="unipc", return_trajectory=True
    )
    assert walk(old) == expected[1].diffusion_times.tolist() != walk(preset)
    with pytest.raises(ValueError, match="version must be None or '0.1'"):
        SamplingDefaults(version="0.3")


@pytest.mark.slow
def test_models_presets_and_runs_of_version_0_1_give_the_same_numbers(found, expected):
    made_here = str(expected.pop("processor")) == reference.processor()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if made_here and (name.endswith("/fit") or name == "run/weights"):
            # A step rounds otherwise whenever something in it has become quicker.
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
        elif made_here:
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=2e-3, err_msg=name)
