"""The DDPM network, and models that come from other libraries or go there. Files are made by NumPy
here; against the libraries themselves `tests/parity` compares.
"""

import fnmatch
import json
import shutil
import sys
import types
import warnings

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import random_images, slow_on_jax

import ddim_keras
from ddim_keras import DiffusionModel, networks, presets
from ddim_keras.cli import main
from ddim_keras.diffusion.parameterizations import NoiseParameterization
from ddim_keras.diffusion.schedules import CosineBetaSchedule, LinearBetaSchedule
from ddim_keras.diffusion.spacings import LeadingSpacing
from ddim_keras.networks import ddpm_layers
from ddim_keras.presets import (
    checkpoints,
    ddpm_names,
    diffusers,
    diffusers_configs,
    diffusers_schedulers,
    safetensors,
)
from ddim_keras.runs import finding
from ddim_keras.samplers import DDIM, DDPM, DPMSolverMultistep, FittedSampler, Heun, UniPC
from ddim_keras.sampling.clipping import ImageOnlyClipping, NoClipping, StaticClipping
from ddim_keras.sampling.defaults import SamplingDefaults

TINY = {"widths": [4, 8], "block_depth": 1, "attention_levels": [1], "groups": 4}
CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "downsample_padding": 0,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 100,
    "beta_end": 0.05,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": True,
    "clip_sample_range": 2.0,
}
NOISE = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")


def random_weights(network, seed=0):
    """Put random weights into a network, none at its initial value."""
    draw = np.random.default_rng(seed)
    network.set_weights([0.2 * draw.normal(size=part.shape) for part in network.get_weights()])
    return network


@pytest.fixture(scope="module")
def network():
    settings = diffusers_configs.network_settings(CONFIG)
    return random_weights(networks.ddpm_unet(**settings))


def write_folder(folder, arrays, unet=CONFIG, scheduler=SCHEDULER, flat=False):
    """A pipeline's folder as diffusers writes it; flat as its first versions did."""
    unet_folder, scheduler_folder = folder / "unet", folder / "scheduler"
    if flat:
        unet_folder = scheduler_folder = folder
    unet_folder.mkdir(parents=True, exist_ok=True)
    scheduler_folder.mkdir(exist_ok=True)
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (unet_folder / "config.json").write_text(json.dumps(unet))
    (scheduler_folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    safetensors.write(unet_folder / "diffusion_pytorch_model.safetensors", arrays)
    return folder


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    arrays = ddpm_names.arrays_of(network, ddpm_names.DIFFUSERS)
    return write_folder(tmp_path_factory.mktemp("folder"), arrays)


@pytest.fixture(scope="module")
def model(folder):
    return DiffusionModel.from_diffusers(folder, seed=1)


def changed(folder, target, **changes):
    """A copy of a folder with other arrays, or with none where they are None."""
    arrays = safetensors.read(folder / "unet" / "diffusion_pytorch_model.safetensors")
    arrays = {name: part for name, part in {**arrays, **changes}.items() if part is not None}
    return write_folder(target, arrays)


def weights_equal(one, other):
    pairs = zip(one.get_weights(), other.get_weights())
    return all(np.array_equal(mine, yours) for mine, yours in pairs)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 2, 4)])
def test_a_convolution_that_doubles_is_one_of_repeated_pixels(shape):
    doubling = ddpm_layers.Conv2D(6, 3, doubles=True, padding="same")
    plain = ddpm_layers.Conv2D(6, 3, padding="same")
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    repeated = images.repeat(2, axis=1).repeat(2, axis=2)
    expected = np.asarray(plain(repeated))
    assert doubling.compute_output_shape(shape) == expected.shape
    doubling.build(shape)
    doubling.set_weights([plain.get_weights()[0], np.arange(6.0)])
    np.testing.assert_allclose(doubling(images), expected + np.arange(6.0), atol=1e-5)
    with pytest.raises(ValueError, match="only a 3 x 3"):
        ddpm_layers.Conv2D(6, 1, doubles=True, padding="same")


def test_a_folder_gives_the_network_its_weights(model, network):
    assert weights_equal(model.network, network)
    assert weights_equal(model.ema_network, network)
    assert model.image_shape == (8, 8, 3)


@pytest.mark.slow
def test_its_configuration_becomes_the_models_own_defaults(model):
    assert model.schedule.get_config() == {"num_times": 100, "min_beta": 1e-4, "max_beta": 0.05}
    assert type(model.parameterization).__name__ == "VelocityParameterization"
    defaults = model.sampling_defaults
    assert (defaults.spacing.offset, defaults.clipping.limit) == (1, 2.0)
    own = model.generate(2, initial_noise=NOISE, verbose=0)
    said = {"sampler": "ddim", "spacing": defaults.spacing, "clipping": ImageOnlyClipping(2.0)}
    assert np.array_equal(own, model.generate(2, 50, initial_noise=NOISE, verbose=0, **said))
    other = model.generate(2, initial_noise=NOISE, clipping="none", spacing="trailing", verbose=0)
    assert np.abs(own - other).max() > 1e-3


@pytest.mark.slow
def test_defaults_are_saved_with_the_model_and_in_a_preset(model, tmp_path):
    images = model.generate(2, 4, initial_noise=NOISE, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset", half=False)
    for again in (
        ddim_keras.load_model(tmp_path / "model.keras"),
        DiffusionModel.from_preset(tmp_path / "preset"),
    ):
        assert repr(again.sampling_defaults) == repr(model.sampling_defaults)
        found = again.generate(2, 4, initial_noise=NOISE, verbose=0)
        np.testing.assert_allclose(found, images, atol=1e-6)


@pytest.mark.slow
def test_decoding_does_not_clip_what_encoding_did_not(model):
    assert model.sampling_defaults.clipping is not None
    images = model.decode(NOISE, 4, verbose=0)
    plain = model.generate(
        2, 4, sampler="ddim", spacing="linear", clipping="none", initial_noise=NOISE, verbose=0
    )
    assert np.array_equal(images, plain)


def test_out_and_back_is_exact(model, folder, tmp_path):
    model.save_to_diffusers(tmp_path / "out")
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = safetensors.read(folder / name), safetensors.read(tmp_path / "out" / name)
    assert set(before) == set(after)
    assert all(np.array_equal(before[part], after[part]) for part in before)
    written = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert {key: written[key] for key in CONFIG} == CONFIG
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert {key: scheduler[key] for key in SCHEDULER} == SCHEDULER


def test_a_flat_folder_with_old_names_is_read(network, tmp_path):
    arrays = ddpm_names.arrays_of(network, ddpm_names.OLD_DIFFUSERS)
    assert "mid_block.attentions.0.proj_attn.weight" in arrays
    write_folder(tmp_path, arrays, flat=True)
    assert weights_equal(DiffusionModel.from_diffusers(tmp_path).network, network)


def test_weights_in_several_files_are_read_and_a_missing_one_is_named(folder, network, tmp_path):
    arrays = safetensors.read(folder / "unet" / "diffusion_pytorch_model.safetensors")
    write_folder(tmp_path, arrays)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    places = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(arrays)}
    for part in set(places.values()):
        held = {name: arrays[name] for name in arrays if places[name] == part}
        safetensors.write(tmp_path / "unet" / part, held)
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert weights_equal(DiffusionModel.from_diffusers(tmp_path).network, network)
    (tmp_path / "unet" / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names part-1\.safetensors, which is not beside it"):
        DiffusionModel.from_diffusers(tmp_path)


def test_missing_unknown_and_misshapen_weights_are_named(folder, tmp_path):
    changes = {
        "conv_in.bias": None,
        "conv_in.odd": np.zeros(3, "float32"),
        "conv_out.bias": np.zeros(5, "float32"),
    }
    with pytest.raises(ValueError) as error:
        DiffusionModel.from_diffusers(changed(folder, tmp_path, **changes))
    message = str(error.value)
    assert "1 missing: conv_in.bias" in message
    assert "1 not known: conv_in.odd" in message
    assert "1 of another shape: conv_out.bias (5,) instead of (3,)" in message


def test_nothing_is_loaded_half(network, folder, tmp_path):
    copy = random_weights(networks.ddpm_unet(**diffusers_configs.network_settings(CONFIG)), seed=1)
    before = copy.get_weights()
    arrays = ddpm_names.arrays_of(network, ddpm_names.DIFFUSERS)
    del arrays["conv_out.weight"]
    with pytest.raises(ValueError, match="Nothing was loaded"):
        ddpm_names.assign(copy, arrays, ddpm_names.DIFFUSERS, "here")
    assert all(np.array_equal(*pair) for pair in zip(before, copy.get_weights()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, "a block 'KDownBlock2D'"),
        ({"act_fn": "mish"}, "act_fn is 'mish'"),
        ({"out_channels": 6}, "takes 3 channels but returns 6"),
        ({"cross_attention_dim": 8}, r"not known here: \['cross_attention_dim'\]"),
        ({"sample_size": None}, "no sample_size: give image_size"),
        ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel"),
        ({"block_out_channels": [4, 8, 8]}, "the same number, got 3, 2 and 2"),
        ({"block_out_channels": 8}, "block_out_channels must be a list, got 8"),
        ({"block_out_channels": [4, "8"]}, "block_out_channels must be an integer"),
        ({"layers_per_block": [1, 2]}, r"layers_per_block must be an integer, .*: got \[1, 2\]"),
        ({"norm_num_groups": None}, "norm_num_groups must be an integer, .*: got None"),
        ({"norm_eps": "small"}, "norm_eps must be a number, got 'small'"),
        ({"mid_block_scale_factor": float("inf")}, "scale_factor must be a number, got inf"),
        ({"num_class_embeds": 0}, "num_class_embeds must be an integer, .*: got 0"),
        ({"flip_sin_to_cos": "false"}, "flip_sin_to_cos must be True or False, got 'false'"),
    ],
)
def test_networks_that_cannot_be_read_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        diffusers_configs.network_settings({**CONFIG, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace'"),
        ({"timestep_spacing": "random"}, "timestep_spacing is 'random'"),
        ({"variance_type": "learned_range"}, "predicts variances"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is a FlowMatch.* are of betas"),
        ({"_class_name": "EDMEulerScheduler"}, "is a EDMEulerScheduler: only those"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"beta_end": "0.02"}, "beta_end must be a number, got '0.02'"),
        ({"num_train_timesteps": 1000.5}, "num_train_timesteps must be an integer"),
        ({"clip_sample": "false"}, "clip_sample must be True or False, got 'false'"),
        ({"prediction_type": ["epsilon"]}, r"prediction_type is \['epsilon'\]: expected"),
        ({"clip_sample_range": float("nan")}, "clip_sample_range must be a number, got nan"),
        ({"trained_betas": [0.1, "0.2"]}, "trained_betas must be a list of numbers"),
        ({"trained_betas": 0.1}, "trained_betas must be a list of numbers"),
        ({"trained_betas": [0.1, 0.2]}, "2 trained_betas, but num_train_timesteps is 100"),
    ],
)
def test_schedulers_that_cannot_be_read_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        diffusers_schedulers.scheduler_settings({**SCHEDULER, **changes})


def settings_of(**changes):
    return diffusers_schedulers.scheduler_settings({"num_train_timesteps": 100, **changes})


def defaults_of(kind, **changes):
    return settings_of(_class_name=kind, **changes)["sampling_defaults"]


@pytest.mark.parametrize(
    "kind", ["PNDMScheduler", "EulerDiscreteScheduler", "DDIMInverseScheduler"]
)
def test_other_schedulers_are_sampled_as_their_ddim_pipeline_does(kind):
    """It takes what both have, and else what its own scheduler has where nothing is said."""
    own = defaults_of(kind, set_alpha_to_one=False)
    assert (own.sampler.last_noise_rate, own.clipping.limit) == (pytest.approx(0.01), 1.0)
    assert repr(own.spacing) == "LeadingSpacing()"
    assert isinstance(defaults_of(kind, clip_sample=False).clipping, NoClipping)


def test_a_scheduler_that_only_the_pipeline_names_is_that_one(folder, tmp_path):
    copy = changed(folder, tmp_path)
    anonymous = {name: value for name, value in SCHEDULER.items() if name != "_class_name"}
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(anonymous))
    index = json.loads((copy / "model_index.json").read_text())

    def named(kind):
        told = {**index, "scheduler": ["diffusers", kind]}
        (copy / "model_index.json").write_text(json.dumps(told))
        return diffusers.read(copy).config["sampling_defaults"].sampler

    assert isinstance(named("UniPCMultistepScheduler"), UniPC)
    assert isinstance(named(None), DDIM)
    with pytest.raises(ValueError, match="the scheduler is a KarrasVeScheduler: only those"):
        named("KarrasVeScheduler")


def test_what_is_null_in_a_scheduler_is_not_said():
    nulls = dict.fromkeys(["clip_sample_range", "trained_betas", "beta_end", "variance_type"])
    assert repr(defaults_of("DDIMScheduler", **nulls)) == repr(defaults_of("DDIMScheduler"))


def test_no_more_steps_than_there_are_times_are_a_default():
    assert defaults_of("DDIMScheduler", num_train_timesteps=20).diffusion_steps == 20


def test_the_first_versions_word_for_predicted_images_is_understood():
    parameterization = settings_of(predict_epsilon=False)["parameterization"]
    assert type(parameterization).__name__ == "ImageParameterization"


def test_the_first_versions_names_of_settings_are_understood():
    former = settings_of(num_train_timesteps=None, timesteps=50, clip_predicted_image=False)
    assert former["schedule"].num_times == 50
    assert isinstance(former["sampling_defaults"].clipping, NoClipping)
    assert settings_of(timesteps=50)["schedule"].num_times == 100


@pytest.mark.parametrize(
    ("spacing", "times", "is_said"),
    [
        ("linspace", 1000, True),
        ("linspace", 50, False),
        ("trailing", 1000, False),
        ("trailing", 120, True),
        ("leading", 120, False),
    ],
)
def test_where_their_ddim_does_not_step_to_the_next_time_is_said(spacing, times, is_said):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        settings_of(timestep_spacing=spacing, num_train_timesteps=times)
    assert ["does not step from one" in str(each.message) for each in said] == [True] * is_said


def test_the_first_versions_names_of_blocks_are_understood():
    former = {"down_block_types": [f"UNetRes{name}" for name in CONFIG["down_block_types"]]}
    read = diffusers_configs.network_settings
    assert read({**CONFIG, **former}) == read(CONFIG)


def test_solvers_cut_off_images_and_go_on_from_the_noisy_image_itself():
    own = defaults_of("DPMSolverMultistepScheduler", thresholding=True)
    assert isinstance(own.clipping, StaticClipping)


@pytest.mark.parametrize(
    "changes",
    [{"solver_order": 3}, {"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}],
)
def test_what_a_solver_here_has_not_is_said(changes):
    (name,) = changes
    with pytest.warns(UserWarning, match=f"has {name}=.* no counterpart here"):
        defaults_of("DPMSolverMultistepScheduler", **changes)


@pytest.mark.parametrize(
    ("sampler", "clipping"),
    [
        (UniPC(3), "none"),
        (DPMSolverMultistep(stochastic=True), "static"),
        (DPMSolverMultistep(), "none"),
        (DDIM(), "image_only"),
    ],
)
def test_a_sampler_goes_out_in_a_schedulers_configuration_and_comes_back(sampler, clipping):
    is_solver = not isinstance(sampler, DDIM)
    spacing = LeadingSpacing(1, with_first=not is_solver)
    defaults = SamplingDefaults(50, sampler, spacing, clipping)
    written = diffusers_schedulers.scheduler_config(
        LinearBetaSchedule(), NoiseParameterization(), defaults
    )
    again = diffusers_schedulers.scheduler_settings(json.loads(json.dumps(written)))
    assert repr(again["sampling_defaults"]) == repr(defaults)
    # DDIMPipeline makes a DDIMScheduler of a solver, which clips unless told.
    assert written["clip_sample"] is not is_solver


def test_the_large_variance_of_ancestral_sampling_goes_out():
    written = diffusers_schedulers.scheduler_config(
        LinearBetaSchedule(), NoiseParameterization(), SamplingDefaults(sampler="ddpm_large")
    )
    assert (written["_class_name"], written["variance_type"]) == ("DDPMScheduler", "fixed_large")


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        (("unipc", "linspace"), "no spacing like LinspaceSpacing"),
        (("ddim", "leading", "dynamic"), "no clipping like DynamicClipping.*: it is left out"),
        (("ddim", "leading", "static"), "no clipping like StaticClipping.* noises stay as they"),
        ((DDPM(), "leading", "image_only"), "no clipping like ImageOnly.* noises are made to fit"),
        (("unipc", "trailing", "image_only"), "no clipping like ImageOnly.* noises are made to fi"),
        ((UniPC(), "trailing", ImageOnlyClipping(2.0)), "no clipping like .*: it is left out"),
        ((Heun(), "leading"), r"no scheduler like Heun\(\): its place is taken by DDIM"),
        ((DDIM(0.5), "leading"), "keeps no eta: give DDIMPipeline eta=0.5"),
        ((DDIM(1.0, "large"), "leading"), "no scheduler like DDIM.*: its place is taken by DDIM"),
        (("ddim", "leading", None, [FittedSampler([1.0], [[1, 1]])]), "has no fitted samplers"),
    ],
)
def test_what_has_no_place_in_a_schedulers_configuration_is_said(defaults, message):
    with pytest.warns(UserWarning, match=message) as said:
        diffusers_schedulers.scheduler_config(
            LinearBetaSchedule(), NoiseParameterization(), SamplingDefaults(50, *defaults)
        )
    # Others, of what earlier tests left open, may come at any time.
    assert [each.category for each in said].count(UserWarning) == 1


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_the_trace_of_an_image_that_solvers_leave_at_the_noise_end_is_said(kind):
    with pytest.warns(UserWarning, match=f"{kind} leaves a trace of the image at the noise end"):
        defaults_of(kind, rescale_betas_zero_snr=True, prediction_type="v_prediction")


@slow_on_jax
def test_a_part_of_a_pipeline_is_told_from_a_whole_one(folder, network, tmp_path):
    copy = changed(folder, tmp_path / "copy")
    (copy / "model_index.json").unlink()
    assert weights_equal(DiffusionModel.from_diffusers(copy).network, network)
    (copy / "scheduler" / "scheduler_config.json").unlink()
    for part in (copy, copy / "unet"):
        with pytest.raises(ValueError, match="a network, but not the noise levels"):
            DiffusionModel.from_diffusers(part)
    with pytest.raises(ValueError, match="is a file: give the folder"):
        DiffusionModel.from_diffusers(copy / "unet" / "config.json")
    with pytest.raises(ValueError, match="is a folder: give a file"):
        DiffusionModel.from_checkpoint(copy)
    with pytest.raises(ValueError, match='found .*; of weights .* give variant="fp16"'):
        DiffusionModel.from_diffusers(folder, variant="ema")


AVERAGE = {
    **{"decay": 0.9999, "min_decay": 0.0, "optimization_step": 500, "update_after_step": 0},
    **{"use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75},
}


@slow_on_jax
def test_a_checkpoint_of_the_training_script_has_averaged_weights_and_its_pipelines_levels(
    folder, network, tmp_path
):
    arrays = ddpm_names.arrays_of(network, ddpm_names.DIFFUSERS)
    whole = changed(folder, tmp_path / "whole")
    checkpoint = whole / "checkpoint-500"
    for part, config, factor in (("unet", CONFIG, 0.5), ("unet_ema", {**CONFIG, **AVERAGE}, 2.0)):
        (checkpoint / part).mkdir(parents=True)
        (checkpoint / part / "config.json").write_text(json.dumps(config))
        weights = {name: factor * array for name, array in arrays.items()}
        safetensors.write(checkpoint / part / "diffusion_pytorch_model.safetensors", weights)

    def factor_of(source):
        found = diffusers.read(source)
        assert found.config["schedule"].get_config()["max_beta"] == 0.05
        return float(np.median(found.arrays["conv_in.weight"] / arrays["conv_in.weight"]))

    assert factor_of(checkpoint) == 2.0
    assert factor_of(checkpoint / "unet_ema") == 2.0
    assert factor_of(checkpoint / "unet") == 0.5
    assert factor_of(whole / "unet") == factor_of(whole) == 1.0


def test_of_weights_in_one_file_and_in_several_those_are_taken_that_diffusers_takes(
    folder, tmp_path
):
    copy = changed(folder, tmp_path)
    single = copy / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = safetensors.read(single)
    halved = {name: 0.5 * array for name, array in arrays.items()}
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    safetensors.write(copy / "unet" / shard, halved)
    index = {"weight_map": dict.fromkeys(arrays, shard)}
    (copy / "unet" / f"{single.name}.index.json").write_text(json.dumps(index))
    assert np.array_equal(diffusers.read(copy).arrays["conv_in.bias"], halved["conv_in.bias"])
    (copy / "unet" / shard).rename(copy / "unet" / f"16-{shard}")
    for named in ("index.fp16", "fp16.index"):  # the second by earlier versions
        there = copy / "unet" / f"diffusion_pytorch_model.safetensors.{named}.json"
        there.write_text(json.dumps({"weight_map": dict.fromkeys(arrays, f"16-{shard}")}))
        found = diffusers.read(copy, variant="fp16").arrays["conv_in.bias"]
        assert np.array_equal(found, halved["conv_in.bias"])
        there.unlink()
    # Of an earlier saving, whose index stays.
    assert np.array_equal(diffusers.read(copy).arrays["conv_in.bias"], arrays["conv_in.bias"])


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100000, '{"weight_map": 1}'])
def test_of_a_damaged_index_it_is_said_what_is_read_without_it(folder, tmp_path, content):
    copy = changed(folder, tmp_path)
    single = copy / "unet" / "diffusion_pytorch_model.safetensors"
    index = single.with_name(f"{single.name}.index.json")
    index.write_text(content)
    message = (
        rf"{index} is no index of weights \(.*: copy it again, or remove it, and {single.name} "
    )
    with pytest.raises(ValueError, match=message):
        diffusers.read(copy)
    single.unlink()
    with pytest.raises(ValueError, match=rf"{index} is no index of weights \(.*\): copy it again$"):
        diffusers.read(copy)


def test_a_folder_of_the_hubs_cache_is_followed_to_its_version(folder, tmp_path):
    cache = tmp_path / "models--owner--name"
    for version, steps in (("a1", 100), ("b2", 200)):
        scheduler = {**SCHEDULER, "num_train_timesteps": steps}
        arrays = safetensors.read(folder / "unet" / "diffusion_pytorch_model.safetensors")
        write_folder(cache / "snapshots" / version, arrays, scheduler=scheduler)
        for path in list((cache / "snapshots" / version).rglob("*.*")):  # as links to the content
            blob = cache / "blobs" / f"{version}{path.name}"
            blob.parent.mkdir(exist_ok=True)
            path.rename(blob)
            path.symlink_to(blob)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("b2\n")
    assert diffusers.read(cache).config["schedule"].num_times == 200
    assert diffusers.read(cache, revision="a1").config["schedule"].num_times == 100
    assert finding.load(str(cache)).schedule.num_times == 200
    with pytest.raises(ValueError, match=r"without the revision c3: .* snapshots, \['a1', 'b2'\]"):
        diffusers.read(cache, revision="c3")


def test_what_a_training_leaves_besides_is_not_fetched_from_the_hub(folder, monkeypatch):
    def snapshot_download(name, revision, allow_patterns, ignore_patterns):
        def is_any(path, patterns):
            return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)

        assert (name, revision) == ("owner/name", "v2")
        there = [
            *("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"),
            *("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
            *("checkpoint-500/optimizer.bin", "checkpoint-500/unet/config.json"),
            *("checkpoint-500/unet/diffusion_pytorch_model.safetensors", "logs/events.bin"),
        ]
        wanted = [path for path in there if is_any(path, allow_patterns)]
        assert [path for path in wanted if not is_any(path, ignore_patterns)] == there[:5]
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert diffusers.read("owner/name", revision="v2").config["image_size"] == [8, 8]


def test_the_models_own_steps_go_out_and_come_back(model, tmp_path):
    own = model.sampling_defaults
    try:
        model.sampling_defaults = SamplingDefaults(7, own.sampler, own.spacing, own.clipping)
        model.save_to_diffusers(tmp_path / "out")
    finally:
        model.sampling_defaults = own
    again = diffusers.read(tmp_path / "out").config["sampling_defaults"]
    assert again.diffusion_steps == 7
    path = tmp_path / "out" / "ddim_keras.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "diffusion_steps": 0}))
    with pytest.raises(ValueError, match="diffusion_steps of .*ddim_keras.json must be"):
        diffusers.read(tmp_path / "out")


@slow_on_jax
def test_errors_name_the_configuration_that_they_are_in(folder, network, tmp_path):
    arrays = ddpm_names.arrays_of(network, ddpm_names.DIFFUSERS)
    write_folder(tmp_path, arrays, unet={**CONFIG, "sample_size": 8.5})
    with pytest.raises(
        ValueError, match=r"unet/config\.json cannot be read: .* Nothing was loaded"
    ):
        DiffusionModel.from_diffusers(tmp_path)
    write_folder(tmp_path, arrays, scheduler={**SCHEDULER, "steps_offset": "one"})
    with pytest.raises(ValueError, match=r"scheduler_config\.json cannot be read: .*offset"):
        DiffusionModel.from_diffusers(tmp_path)
    write_folder(tmp_path, arrays, unet={**CONFIG, "attention_head_dim": 3})
    with pytest.raises(ValueError, match="makes no network: head_channels must divide"):
        DiffusionModel.from_diffusers(tmp_path)
    bad = {**SCHEDULER, "prediction_type": "epsilon", "rescale_betas_zero_snr": True}
    write_folder(tmp_path, arrays, scheduler=bad)
    with pytest.raises(ValueError, match=f"{tmp_path} makes no model: .*nothing is left"):
        DiffusionModel.from_diffusers(tmp_path)


def test_what_a_pipeline_lacks_is_named(folder, tmp_path):
    arrays = safetensors.read(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for lost in ("unet/config.json", "scheduler/scheduler_config.json"):
        target = tmp_path / lost.split("/")[0]
        write_folder(target, arrays)
        shutil.rmtree((target / lost).parent)
        with pytest.raises(ValueError, match=f"{target / lost} is missing"):
            diffusers.read(target)
    write_folder(tmp_path / "link", arrays)
    weights = tmp_path / "link" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("../../blobs/0")
    with pytest.raises(ValueError, match=f"{weights} is a link to .*blobs/0, which is not there"):
        diffusers.read(tmp_path / "link")


@slow_on_jax
def test_weights_that_are_no_numbers_are_refused(folder, tmp_path):
    bad = np.array([0.0, np.nan, np.inf], "float32")
    with pytest.raises(ValueError, match="1 holding NaN or infinity: conv_out.bias. Nothing was"):
        DiffusionModel.from_diffusers(changed(folder, tmp_path, **{"conv_out.bias": bad}))


@pytest.mark.parametrize("bad", [np.full(3, 1e200), np.full(3, 1j, "complex64")])
def test_weights_that_float32_has_not_are_refused(network, bad):
    arrays = ddpm_names.arrays_of(network, ddpm_names.DIFFUSERS) | {"conv_out.bias": bad}
    with pytest.raises(ValueError, match=r"1 holding complex .* for float32: conv_out.bias. Noth"):
        ddpm_names.assign(network, arrays, ddpm_names.DIFFUSERS, "a folder")


@slow_on_jax
def test_what_git_keeps_in_place_of_a_large_file_is_told(folder, tmp_path):
    copy = changed(folder, tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match="run git lfs pull"):
        DiffusionModel.from_diffusers(copy)


@slow_on_jax
def test_a_null_class_is_refused_where_none_can_be(folder, openai_arrays, tmp_path):
    with pytest.raises(ValueError, match="takes no labels: leave null_class out"):
        DiffusionModel.from_diffusers(folder, null_class=True)
    with pytest.raises(ValueError, match="a single class, which cannot be the one"):
        DiffusionModel.from_diffusers(with_classes(folder, tmp_path / "one", 1), null_class=True)
    short = with_classes(folder, tmp_path / "short", 3)
    (short / "unet" / "config.json").write_text(json.dumps({**CONFIG, "num_class_embeds": 4}))
    with pytest.raises(ValueError, match=r"class_embedding.weight is \(3, 16\) for 4 classes"):
        DiffusionModel.from_diffusers(short)
    path = tmp_path / "model.safetensors"
    safetensors.write(path, without(openai_arrays[1], "label_emb"))
    with pytest.raises(ValueError, match="takes no labels: leave null_class out"):
        DiffusionModel.from_checkpoint(path, heads=2, null_class=True)


OF_TEXT = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
# The network is a UNet2DModel, but of what an autoencoder makes of images.
OF_LATENTS = {
    "_class_name": "LDMPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
    "vqvae": ["diffusers", "VQModel"],
}


def test_a_pipeline_of_latents_is_refused_though_its_network_is_known(folder, tmp_path):
    copy = changed(folder, tmp_path)
    (copy / "model_index.json").write_text(json.dumps(OF_LATENTS))
    with pytest.raises(ValueError, match="a LDMPipeline, which also has a vqvae: only"):
        DiffusionModel.from_diffusers(copy)
    lacking = {**OF_LATENTS, "vqvae": [None, None]}
    (copy / "model_index.json").write_text(json.dumps(lacking))
    assert diffusers.read(copy).config["image_size"] == [8, 8]


@slow_on_jax
@pytest.mark.parametrize("index", [OF_TEXT, OF_LATENTS], ids=["of text", "of latents"])
def test_a_pipeline_of_another_kind_is_not_overwritten(model, tmp_path, index):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a pipeline of another kind, which would be lost"):
        model.save_to_diffusers(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text()) == index


def test_damaged_files_are_refused_in_words(folder, tmp_path):
    whole = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    path = tmp_path / "weights.safetensors"
    deep = (100000).to_bytes(8, "little") + b"[" * 100000
    for damaged in (whole[:-7], whole + b"x", whole[:100], b"", b"\xff" * 40, whole[8:], deep):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"weights\.safetensors is no whole safetensors file"):
            safetensors.read(path)
    copy = changed(folder, tmp_path / "copy")
    (copy / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        DiffusionModel.from_diffusers(copy)
    (copy / "unet" / "config.json").write_text("[" * 100000)
    with pytest.raises(ValueError, match=r"config\.json is damaged .*recursion"):
        DiffusionModel.from_diffusers(copy)
    with pytest.raises(ValueError, match="no folder at"):
        DiffusionModel.from_diffusers(tmp_path / "nowhere")


def test_a_damaged_note_of_the_newest_version_is_refused_in_words(tmp_path):
    for name in ("refs", "snapshots/abc"):
        (tmp_path / name).mkdir(parents=True)
    for damaged in (b"\xff\xfe", b"a\x00b"):
        (tmp_path / "refs" / "main").write_bytes(damaged)
        with pytest.raises(ValueError, match="Hub's cache without the revision main"):
            DiffusionModel.from_diffusers(tmp_path)


def test_arrays_that_share_their_bytes_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"a": np.zeros(2, "float32"), "b": np.ones(2, "float32")})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"data_offsets":[8,16]', b'"data_offsets":[0,8] '))
    with pytest.raises(ValueError, match="x.safetensors is no whole .*several .*have byte 0"):
        safetensors.read(path)


def test_weights_of_integers_are_refused(folder, tmp_path):
    copy = changed(folder, tmp_path)
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = safetensors.read(path)
    arrays["conv_out.bias"] = arrays["conv_out.bias"].view("int32")
    safetensors.write(path, arrays)
    with pytest.raises(ValueError, match="1 of integers, as quantized ones are: conv_out.bias"):
        DiffusionModel.from_diffusers(copy)


def test_more_noise_levels_than_memory_holds_are_refused():
    with pytest.raises(ValueError, match="num_train_timesteps is 10000000000000: expected at most"):
        diffusers_schedulers.scheduler_settings({"num_train_timesteps": 10**13})


def test_safetensors_come_back_as_they_were(tmp_path):
    arrays = {
        "b": np.arange(6, dtype="float32").reshape(2, 3),
        "a": np.array(3, "int64"),
        "c": np.ones((0, 2), "float16"),
    }
    safetensors.write(tmp_path / "x.safetensors", arrays)
    found = safetensors.read(tmp_path / "x.safetensors")
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert all(found[name].dtype == arrays[name].dtype for name in arrays)


def with_classes(folder, target, classes):
    arrays = safetensors.read(folder / "unet" / "diffusion_pytorch_model.safetensors")
    table = np.random.default_rng(3).normal(size=(classes, 16)).astype("float32")
    arrays["class_embedding.weight"] = table
    return write_folder(target, arrays, {**CONFIG, "num_class_embeds": classes})


def test_class_embeddings_become_labels_and_no_label_adds_nothing(folder, tmp_path):
    model = DiffusionModel.from_diffusers(with_classes(folder, tmp_path / "in", 3))
    assert model.num_classes == 3
    table = model.network.get_layer("label_embedding").get_weights()[0]
    assert table.shape == (4, 16)
    assert not table[3].any()
    model.save_to_diffusers(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert config["num_class_embeds"] == 3


@pytest.mark.slow
def test_a_learned_null_class_goes_out_and_comes_back(folder, tmp_path):
    source = with_classes(folder, tmp_path / "in", 3)
    model = DiffusionModel.from_diffusers(source, null_class=True, class_names=["cat", "dog"])
    assert model.num_classes == 2
    model.save_to_diffusers(tmp_path / "out")
    again = DiffusionModel.from_diffusers(tmp_path / "out")
    assert again.class_names == ["cat", "dog"]
    assert weights_equal(again.network, model.network)


@slow_on_jax
def test_a_checkpoint_of_the_authors_says_how_large_its_network_is(tmp_path):
    settings = {**TINY, "groups": 32, "widths": [32, 64], "attention_levels": [0]}
    network = random_weights(networks.ddpm_unet((16, 16, 1), **settings))
    arrays = ddpm_names.arrays_of(network, ddpm_names.AUTHORS)
    assert arrays["down.0.attn.0.q.weight"].shape == (32, 32, 1, 1)
    path = tmp_path / "model.safetensors"
    safetensors.write(path, {f"module.{name}": part for name, part in arrays.items()})
    model = DiffusionModel.from_checkpoint(path)
    assert model.image_shape == (16, 16, 1)
    assert weights_equal(model.network, network)
    del arrays["conv_in.weight"]
    safetensors.write(path, arrays)
    with pytest.raises(ValueError, match="another network than the DDIM paper's"):
        DiffusionModel.from_checkpoint(path)


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_what_parallel_training_and_compiling_put_before_names_is_left_out(before, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.write(path, {f"{before}down.0.module.a": np.ones(2, "float32")})
    assert list(checkpoints.averaged_weights(path)) == ["down.0.module.a"]


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("model.downs.0.0.block1.proj.weight", "denoising-diffusion-pytorch"),
        ("ema_model.model.init_conv.weight", "denoising-diffusion-pytorch"),
        ("downblocks.0.block1.0.weight", "pytorch-ddpm"),
        ("net.all_modules.0.weight", "score_sde"),
        ("model.diffusion_model.input_blocks.0.0.weight", "latent diffusion"),
    ],
)
def test_networks_of_other_libraries_are_refused_by_name(name, whose, tmp_path):
    safetensors.write(tmp_path / "model.safetensors", {name: np.zeros((4, 4), "float32")})
    with pytest.raises(ValueError, match=f"holds a network of {whose}, which has"):
        DiffusionModel.from_checkpoint(tmp_path / "model.safetensors")


# Those of the weights of the DDIM paper's network that say how large it is.
OF_THE_AUTHORS = {
    "conv_in.weight": np.zeros((32, 1, 3, 3), "float32"),
    "temb.dense.0.weight": np.zeros((128, 32), "float32"),
    "down.0.block.0.conv1.weight": np.zeros((32, 32, 3, 3), "float32"),
    "down.0.attn.0.q.weight": np.zeros((32, 32, 1, 1), "float32"),
}


def read_checkpoint(path, *parts):
    """What is read of a file with networks, each given as what its names begin with and a factor,
    and with arrays besides.
    """
    arrays = {}
    for part in parts:
        if isinstance(part, dict):
            arrays |= part
        else:
            before, number = part
            arrays |= {before + name: each + number for name, each in OF_THE_AUTHORS.items()}
    safetensors.write(path, arrays)
    return checkpoints.read(path, checkpoints.Told())


@pytest.mark.parametrize(
    "before", ["model.", "net.module.", "model._orig_mod.", "diffusion_model.", "ema_model."]
)
def test_a_network_within_a_larger_model_is_read_by_its_own_names(before, tmp_path):
    constants = {"betas": np.ones(9, "float32"), "n_averaged": np.array(3)}
    found = read_checkpoint(tmp_path / "model.safetensors", (before, 2), constants)
    assert set(found.arrays) == set(OF_THE_AUTHORS)
    assert found.config["image_size"] == [16, 16]


@pytest.mark.parametrize(
    ("trained", "average"),
    [
        ("model.", "ema_model."),
        ("model.", "model_ema."),
        ("", "ema."),
        ("online_model.", "ema_model."),
        ("ema.online_model.", "ema.ema_model."),
    ],
)
def test_of_a_network_and_its_average_the_average_is_taken(trained, average, tmp_path):
    found = read_checkpoint(tmp_path / "model.safetensors", (trained, 1), (average, 2))
    assert all((part == 2).all() for part in found.arrays.values())
    assert set(found.arrays) == set(OF_THE_AUTHORS)


def test_of_several_networks_none_is_guessed(tmp_path):
    with pytest.raises(ValueError, match=r"several networks, .* \['student.', 'teacher.'\]: which"):
        read_checkpoint(tmp_path / "model.safetensors", ("teacher.", 1), ("student.", 2))


def test_what_is_left_out_beside_a_network_is_said(tmp_path):
    others = {"loss.vgg.weight": np.ones((2, 2), "float32")}
    with pytest.warns(UserWarning, match=r"begin with 'model.': 1 others are left out, loss.vgg"):
        read_checkpoint(tmp_path / "model.safetensors", ("model.", 1), others)


OPENAI = {
    **{
        "image_shape": [16, 16, 3],
        "widths": [32, 64],
        "block_depth": 1,
        "attention_levels": [0, 1],
    },
    **{"heads": 2, "conditioning": "scale_shift", "padding": "around", "epsilon": 1e-5},
    **{"residual_halvings": [0], "residual_doublings": [1], "time_features": 32},
    **{"cosines_first": True, "frequency_shift": 0.0, "num_classes": 3},
}


@pytest.fixture(scope="module")
def openai_arrays():
    """Weights under the names of guided-diffusion, as a training with learned variances and four
    labels has them, and the network.
    """
    network = random_weights(networks.ddpm_unet(**OPENAI))
    arrays = ddpm_names.arrays_of(network, ddpm_names.openai(network.settings, head_by_head=True))
    for name in ("out.2.weight", "out.2.bias"):
        arrays[name] = np.concatenate([arrays[name], np.ones_like(arrays[name])])
    return network, arrays


@pytest.mark.slow
def test_a_checkpoint_of_guided_diffusion_says_what_network_it_is(openai_arrays, tmp_path):
    network, arrays = openai_arrays
    path = tmp_path / "model.safetensors"
    safetensors.write(path, arrays)
    schedule = CosineBetaSchedule(50)
    told = {"heads": 2, "null_class": True, "rescaled_times": False, "schedule": schedule}
    model = DiffusionModel.from_checkpoint(path, image_size=(8, 16), **told)
    assert {**model.network.settings, "image_shape": [16, 16, 3]} == {
        **network.settings,
        "up_attention_levels": [0, 1],
        "embedding_features": 128,
    }
    assert weights_equal(model.network, network)
    assert model.num_classes == 3
    assert model.schedule.get_config() == schedule.get_config()
    model = DiffusionModel.from_checkpoint(path, heads=2)
    assert model.image_shape == (16, 16, 3)
    table = model.network.get_layer("label_embedding").get_weights()[0]
    assert np.array_equal(table[:4], arrays["label_emb.weight"])
    assert not table[4].any()


def without(arrays, *beginnings):
    return {name: part for name, part in arrays.items() if not name.startswith(beginnings)}


@pytest.mark.parametrize(
    ("changed", "told", "message"),
    [
        (lambda arrays: arrays, {}, "how many heads .* give heads"),
        (lambda arrays: arrays, {"heads": 2, "head_channels": 8}, "got heads=2 and head_ch"),
        (lambda arrays: arrays, {"heads": 5}, r"heads must divide the widths .* \[32, 64\], got 5"),
        (lambda arrays: arrays, {"heads": 2, "schedule": "angle"}, "a schedule of T times"),
        (lambda arrays: without(arrays, "output_blocks"), {"heads": 2}, "half of a U-Net"),
        (lambda arrays: without(arrays, "input_blocks.2"), {"heads": 2}, r"input_blocks \[2\]"),
        (lambda arrays: without(arrays, "out.2.bias"), {"heads": 2}, "lacks out.2.bias"),
        (
            lambda arrays: {**arrays, "input_blocks.0.0.weight": np.zeros(3, "f")},
            {"heads": 2},
            "not for images",
        ),
        (
            lambda arrays: {**arrays, "label_emb.weight": np.array(3.0, "f")},
            {"heads": 2},
            "label_emb.weight .* is a single number",
        ),
        (
            lambda arrays: {"down.0.block.0.conv1.weight": np.array(3.0, "f")},
            {},
            "another network than the DDIM paper's",
        ),
        (lambda arrays: without(arrays, "time_embed.0"), {"heads": 2}, "lacks time_embed.0.weight"),
        (
            lambda arrays: without(arrays, "middle_block.1.qkv.weight"),
            {"heads": 2},
            "1 missing: middle_block.1.qkv.weight",
        ),
        (
            lambda arrays: {**arrays, "input_blocks.1.0.odd": np.zeros(2, "float32")},
            {"heads": 2},
            "1 not known: input_blocks.1.0.odd",
        ),
        (
            lambda arrays: {**arrays, "low_res.weight": np.zeros(2, "float32")},
            {"heads": 2},
            "parts that are not known: low_res.weight",
        ),
        (
            lambda arrays: {**arrays, "middle_block.1.qkv.bias": np.zeros(5, "float32")},
            {"heads": 2},
            r"of another shape: middle_block.1.qkv.bias \(5,\) instead of \(192,\)",
        ),
        (
            lambda arrays: {**arrays, "input_blocks.0.0.weight": np.zeros((32, 6, 3, 3), "f")},
            {"heads": 2},
            "takes 6 channels and returns 6, as one that enlarges",
        ),
        (
            lambda arrays: {**arrays, "middle_block.1.qkv.weight": np.zeros((192, 64, 1, 1), "f")},
            {"heads": 2},
            "as consistency_models' are .* other noise levels than betas give",
        ),
        (
            lambda arrays: {"unet.down_blocks.0.resnets.0.conv1.bias": np.zeros(2, "f")},
            {},
            "of a network of diffusers', without its configuration: give the folder",
        ),
        (
            lambda arrays: {"model.map_layer0.weight": np.zeros(2, "f")},
            {},
            "of EDM, which has other noise levels",
        ),
        (
            lambda arrays: {"down_blocks.0.resnets.0.conv1.bias": np.zeros(2, "f")},
            {},
            "of a network of diffusers', without its configuration: give the folder",
        ),
        (lambda arrays: {"all_modules.0.weight": np.zeros(2, "f")}, {}, "of score_sde, which has"),
        (
            lambda arrays: {"down.0.block.0.conv1.weight": np.zeros(2, "f")},
            {"heads": 2},
            "no choice of heads",
        ),
    ],
)
def test_what_a_checkpoint_lacks_or_has_too_much_is_named(
    openai_arrays, changed, told, message, tmp_path
):
    safetensors.write(tmp_path / "model.safetensors", changed(openai_arrays[1]))
    with pytest.raises(ValueError, match=message):
        DiffusionModel.from_checkpoint(tmp_path / "model.safetensors", **told)


@pytest.mark.slow
def test_heads_of_one_size_go_out_to_diffusers_and_of_several_do_not(tmp_path):
    settings = {**OPENAI, "time_features": None, "num_classes": None, "attention_levels": [1]}
    written = diffusers_configs.network_config(networks.ddpm_unet(**settings).settings, True)
    assert written["attention_head_dim"] == 32
    for changes, message in (
        ({"attention_levels": [0, 1]}, r"2 heads of levels \[32, 64\] wide are of several"),
        ({"time_scale": 0.25}, "not time_scale=0.25"),
        ({"time_features": 64}, "time_features=64"),
    ):
        network = networks.ddpm_unet(**{**settings, **changes})
        with pytest.raises(ValueError, match=message):
            diffusers_configs.network_config(network.settings, True)


@pytest.mark.slow
def test_a_checkpoint_is_converted_by_the_command_line(openai_arrays, tmp_path):
    safetensors.write(tmp_path / "model.safetensors", openai_arrays[1])
    arguments = ["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "model.keras")]
    told = ["--heads", "2", "--null-class", "--noise-schedule", "linear", "--times", "4000"]
    result = CliRunner().invoke(main, [*arguments, *told], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    model = ddim_keras.load_model(tmp_path / "model.keras")
    assert weights_equal(model.network, openai_arrays[0])
    assert model.network.settings["time_scale"] == 0.25
    assert model.schedule.get_config() == {
        "num_times": 4000,
        "min_beta": 2.5e-5,
        "max_beta": 0.005,
    }


def test_what_diffusers_has_no_place_for_is_refused_before_anything_is_written(tmp_path):
    network = networks.ddpm_unet((8, 8, 3), **TINY)
    measured = DiffusionModel(8, network=network, schedule="linear_beta")
    with pytest.raises(ValueError, match='pixels="symmetric"'):
        measured.save_to_diffusers(tmp_path / "out")
    continuous = DiffusionModel(8, network=network, pixels="symmetric")
    with pytest.raises(ValueError, match="diffusers has no betas for AngleSchedule"):
        continuous.save_to_diffusers(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cat.png").write_bytes(b"cat")
    with pytest.raises(ValueError, match="exists and is no folder of diffusers'"):
        DiffusionModel(
            8, network=network, pixels="symmetric", schedule="linear_beta"
        ).save_to_diffusers(tmp_path / "mine")
    assert (tmp_path / "mine" / "cat.png").read_bytes() == b"cat"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_empty_folder_is_filled_and_what_stands_beside_is_kept(model, tmp_path):
    model.save_to_diffusers(tmp_path)
    (tmp_path / "README.md").write_text("my card")
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"older weights")
    model.save_to_diffusers(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my card"
    assert not (tmp_path / "unet" / "diffusion_pytorch_model.bin").exists()
    DiffusionModel.from_diffusers(tmp_path)


@pytest.mark.slow
def test_the_command_line_converts_in_and_out(folder, network, tmp_path):
    for source, out, more in (
        (folder, tmp_path / "model.keras", []),
        (tmp_path / "model.keras", tmp_path / "again", ["--to", "diffusers"]),
    ):
        result = CliRunner().invoke(main, ["convert", str(source), str(out), *more])
        assert result.exit_code == 0, result.output
    assert weights_equal(DiffusionModel.from_diffusers(tmp_path / "again").network, network)
    for wrong, message in (
        ([str(folder), "x.bin"], "must end in .keras"),
        ([str(folder), "x.keras", "--heads", "4"], "--heads says nothing of what diffusers wrote"),
        (
            [str(tmp_path / "model.keras"), "x", "--null-class"],
            "--null-class says nothing of a model",
        ),
        (["weights/none.ckpt", str(tmp_path / "x")], "no file at weights/none.ckpt"),
    ):
        result = CliRunner().invoke(main, ["convert", *wrong])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


@pytest.mark.parametrize("arguments", [["convert"], ["convert", "--to", "keras"], ["export", "-m"]])
def test_a_recipe_without_weights_is_not_written_as_if_it_were_trained(arguments, tmp_path):
    out = tmp_path / "model.keras"
    result = CliRunner().invoke(main, [*arguments, "ddpm_cifar10", str(out)])
    assert result.exit_code == 1
    assert "the preset ddpm_cifar10 is a recipe without weights: train it first" in result.output
    assert not out.exists()


@pytest.mark.slow
def test_an_untrained_model_of_images_from_minus_one_to_one_is_not_said_to_be_trained(tmp_path):
    network = networks.ddpm_unet((8, 8, 3), **TINY)
    published = DiffusionModel(8, network=network, pixels="symmetric", schedule="linear_beta")
    in_patches = DiffusionModel(8, widths=[4], block_depth=1, patch_size=2, pixels="symmetric")
    for model in (published, in_patches):
        model.save(tmp_path / "model.keras")
        result = CliRunner().invoke(main, ["info", "-m", str(tmp_path / "model.keras")])
        assert "trained:    no" in result.output


def test_symmetric_pixels_run_from_minus_one_to_one(model):
    images = random_images(3, (8, 8, 3))
    model.normalizer.adapt(images)  # has nothing to measure
    np.testing.assert_allclose(np.asarray(model.normalizer(images)), 2 * images - 1, atol=1e-6)


def test_image_only_clipping_leaves_the_noises(model):
    noise, signal = np.float32(0.8), np.float32(0.6)
    from ddim_keras.sampling.clipping import clipped

    wrapper = clipped(ImageOnlyClipping(0.1), model.normalizer)[0]

    def denoise(noisy_images, *_):
        return 3.0 * noisy_images, noisy_images

    x = keras.ops.convert_to_tensor(NOISE)
    noises, images = wrapper.wrap(denoise, (), None)(x, noise, signal, None)
    np.testing.assert_allclose(np.asarray(noises), 3.0 * NOISE)
    np.testing.assert_allclose(np.asarray(images), np.clip(NOISE, -0.1, 0.1), atol=1e-6)


@pytest.mark.slow
def test_the_network_trains_on_labels_with_dropout():
    settings = {**TINY, "num_classes": 2, "dropout": 0.2, "conditioning": "scale_shift"}
    network = networks.ddpm_unet((8, 8, 1), **settings)
    model = DiffusionModel(
        8, channels=1, network=network, num_classes=2, schedule="linear_beta", seed=0
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    before = model.network.get_weights()
    history = model.fit(random_images(16), np.arange(16) % 2, batch_size=8, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    changes = [np.abs(new - old).max() for new, old in zip(model.network.get_weights(), before)]
    assert np.mean(np.array(changes) > 0) > 0.9


@pytest.mark.slow
def test_recomputing_changes_no_prediction_and_refuses_dropout():
    plain = random_weights(networks.ddpm_unet((8, 8, 1), **TINY))
    again = networks.ddpm_unet((8, 8, 1), **TINY, recompute=True)
    again.set_weights(plain.get_weights())
    from ddim_keras.networks.recomputing import in_training

    inputs = [NOISE[..., :1], np.full((2, 1, 1, 1), 7.0, "float32")]
    inputs = [keras.ops.convert_to_tensor(part) for part in inputs]
    expected, found = in_training(plain, inputs), in_training(again, inputs)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5)
    with pytest.raises(ValueError, match="draw dropout anew"):
        networks.ddpm_unet((8, 8, 1), **TINY, dropout=0.1, recompute=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [6, 8]}, "multiples of groups"),
        ({"padding": "none"}, "padding must be one of"),
        ({"attention_levels": [2]}, r"attention_levels must lie in \[0, 2\)"),
        ({"residual_doublings": [0]}, r"residual_doublings must lie in \[1, 2\)"),
        ({"head_channels": 3}, "head_channels must divide the channels"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        networks.ddpm_unet((8, 8, 3), **{**TINY, **changes})


def test_the_first_time_is_zero_to_the_embedding():
    layer = networks.TimeEmbedding(8)
    found = np.asarray(layer(np.ones((1, 1), "float32")))
    assert found.tolist() == [[0.0] * 4 + [1.0] * 4]
    turned = networks.TimeEmbedding(8, cosines_first=True)(np.ones((1, 1), "float32"))
    assert np.asarray(turned).tolist() == [[1.0] * 4 + [0.0] * 4]
    # 10000**(-k / (4 - 1)), and the last is 1 / 10000.
    angles = np.arcsin(np.asarray(layer(np.full((1, 1), 2.0, "float32")))[0, :4])
    np.testing.assert_allclose(angles, 10000.0 ** (-np.arange(4) / 3), rtol=1e-4)


def test_the_papers_recipe_is_the_papers():
    recipe = presets.training("ddpm_cifar10")
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size) == ("adam", 2e-4, 128)
    assert (recipe.flip, recipe.clip_norm, recipe.loss) == (True, 1.0, "mean_squared_error")
    optimizer = recipe.compile_arguments(steps=800_000)["optimizer"]
    assert type(optimizer) is keras.optimizers.Adam
    rates = [float(optimizer._learning_rate(step)) for step in (0, 2500, 5000, 700_000)]
    np.testing.assert_allclose(rates, [0.0, 1e-4, 2e-4, 2e-4], rtol=1e-6)
    config = presets.read("ddpm_cifar10").config
    assert (config["ema_decay"], config["schedule"]) == (0.9999, "linear_beta")
    assert config["network"]["config"]["dropout"] == 0.1


@pytest.mark.slow
def test_the_papers_network_has_its_parameters():
    model = DiffusionModel.from_preset("ddpm_cifar10", dtype="mixed_bfloat16", seed=0)
    assert model.network.count_params() == 35_746_307
    assert model.network.settings["dtype"] == "mixed_bfloat16"
    smaller = DiffusionModel.from_preset("ddpm_cifar10", image_size=16, num_classes=4)
    assert smaller.network.settings["image_shape"] == [16, 16, 3]
    assert smaller.num_classes == 4
