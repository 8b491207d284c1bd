"""Whole walks from the same noise lead where diffusers' schedulers lead."""

import json

import numpy as np
import pytest
from parity_tools import NEEDED, SMALL, random_network, saved

torch = pytest.importorskip("torch", reason=NEEDED)
diffusers = pytest.importorskip("diffusers", reason=NEEDED)

from diffusers.schedulers import scheduling_ddpm  # noqa: E402

from ddim_keras import DiffusionModel  # noqa: E402
from ddim_keras.samplers import DDIM, plan  # noqa: E402
from ddim_keras.sampling.defaults import SamplingDefaults  # noqa: E402
from ddim_keras.support import random  # noqa: E402

pytestmark = pytest.mark.parity

STEPS, NUMBER, SEED = 8, 2, 5
# The largest beta leaves more of the image at the noise end than DDPM's, so that what a random
# network says is not magnified until all is cut off.
BETAS = {"beta_end": 0.008}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
NOISE = np.random.default_rng(1).normal(size=(NUMBER, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """For each prediction, a network of diffusers' and our model of its folder."""
    made = {}

    def pair(prediction):
        if prediction not in made:
            network = random_network(SMALL, scale=0.3, seed=3)
            folder = tmp_path_factory.mktemp(prediction)
            scheduler = diffusers.DDPMScheduler(prediction_type=prediction, **BETAS)
            made[prediction] = (
                network,
                DiffusionModel.from_diffusers(saved(network, folder, scheduler)),
            )
        return made[prediction]

    return pair


def drawn(evaluation):
    """The noise that our walk adds in that evaluation, as torch has it."""
    noise = random.normal(SEED, evaluation + 1, np.arange(NUMBER, dtype="int32"), (8, 8, 3))
    return torch.tensor(np.asarray(noise).transpose(0, 3, 1, 2))


def walked_by_theirs(network, scheduler, noise=NOISE, **options):
    scheduler.set_timesteps(STEPS)
    x = torch.tensor(noise.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for number, time in enumerate(scheduler.timesteps):
            given = {name: make(number) for name, make in options.items()}
            x = scheduler.step(network(x, time).sample, time, x, **given).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


def walked_by_ours(model, **options):
    """Where the walk ends, before it is cut off to [0, 1]."""
    chosen = {"diffusion_steps": STEPS, "seed": SEED, "verbose": 0, **options}
    _, walk = model.generate(NUMBER, initial_noise=NOISE, return_trajectory=True, **chosen)
    return walk.noisy_images[-1]


def agree(ours, theirs):
    """To 1e-3 of the range of images, which is 2 here."""
    assert np.abs(theirs).max() > 0.1
    assert np.std(theirs) > 0.05
    np.testing.assert_allclose(ours / 2, theirs / 2, rtol=0, atol=1e-3)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_leads_where_their_ddim_leads(pairs, prediction, spacing, clip):
    network, model = pairs(prediction)
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, timestep_spacing=spacing, clip_sample=clip, **BETAS
    )
    clipping = "image_only" if clip else "none"
    ours = walked_by_ours(model, sampler="ddim", spacing=spacing, clipping=clipping)
    agree(ours, walked_by_theirs(network, scheduler))


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_leads_where_theirs_leads_with_that_noise(pairs, eta):
    network, model = pairs("epsilon")
    scheduler = diffusers.DDIMScheduler(**BETAS)
    theirs = walked_by_theirs(network, scheduler, eta=lambda number: eta, variance_noise=drawn)
    agree(walked_by_ours(model, eta=eta), theirs)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_leads_where_their_ddpm_leads(pairs, variance, monkeypatch):
    network, model = pairs("epsilon")
    scheduler = diffusers.DDPMScheduler(variance_type=variance, **BETAS)
    numbers = iter(range(STEPS))
    monkeypatch.setattr(
        scheduling_ddpm, "randn_tensor", lambda *given, **options: drawn(next(numbers))
    )
    theirs = walked_by_theirs(network, scheduler)
    sampler = "ddpm" if variance == "fixed_small" else "ddpm_large"
    agree(walked_by_ours(model, sampler=sampler, clipping="static"), theirs)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_dpm_solver_leads_where_theirs_leads(pairs, prediction, spacing):
    network, model = pairs(prediction)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type=prediction, timestep_spacing=spacing, **BETAS
    )
    theirs = walked_by_theirs(network, scheduler)
    times = (scheduler.timesteps.numpy() + 1).tolist()
    given = walked_by_ours(model, sampler="dpm_solver_2m", diffusion_steps=times, clipping="none")
    agree(given, theirs)


def test_dpm_solver_under_leading_asks_at_their_times(pairs):
    from ddim_keras.presets import diffusers_schedulers

    network, model = pairs("epsilon")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        timestep_spacing="leading", steps_offset=1, **BETAS
    )
    theirs = walked_by_theirs(network, scheduler)
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    own = diffusers_schedulers.scheduler_settings(config)["sampling_defaults"]
    ours = walked_by_ours(model, sampler=own.sampler, spacing=own.spacing, clipping="none")
    agree(ours, theirs)


@pytest.mark.parametrize(
    "made",
    [
        lambda **own: diffusers.DPMSolverMultistepScheduler(thresholding=True, **own),
        lambda **own: diffusers.UniPCMultistepScheduler(solver_order=3, **own),
        lambda **own: diffusers.UniPCMultistepScheduler(thresholding=True, **own),
    ],
)
def test_a_solver_of_theirs_is_read_as_what_leads_where_it_leads(pairs, made):
    from ddim_keras.presets import diffusers_schedulers

    network, model = pairs("epsilon")
    scheduler = made(**BETAS)
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    own = diffusers_schedulers.scheduler_settings(config)["sampling_defaults"]
    told = {"spacing": own.spacing, "clipping": own.clipping}
    agree(walked_by_ours(model, sampler=own.sampler, **told), walked_by_theirs(network, scheduler))


@pytest.mark.parametrize("kind", ["PNDMScheduler", "EulerDiscreteScheduler"])
def test_their_pipeline_and_ours_sample_other_schedulers_alike(pairs, kind, tmp_path):
    from ddim_keras.presets import diffusers_schedulers

    network, model = pairs("epsilon")
    # By a file, which tells all settings: DDIMPipeline chooses what a scheduler was not told.
    getattr(diffusers, kind)(timestep_spacing="leading", **BETAS).save_pretrained(tmp_path)
    scheduler = getattr(diffusers, kind).from_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    own = diffusers_schedulers.scheduler_settings(config)["sampling_defaults"]
    theirs = diffusers.DDIMPipeline(network, scheduler).scheduler
    told = {"spacing": own.spacing, "clipping": own.clipping}
    agree(walked_by_ours(model, sampler=own.sampler, **told), walked_by_theirs(network, theirs))


@pytest.mark.parametrize("offset", [0, 1])
def test_their_walk_without_set_alpha_to_one_is_ours_to_the_first_noise_level(pairs, offset):
    from ddim_keras.presets import diffusers_schedulers

    network, model = pairs("epsilon")
    scheduler = diffusers.DDIMScheduler(set_alpha_to_one=False, steps_offset=offset, **BETAS)
    theirs = walked_by_theirs(network, scheduler)
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    read = diffusers_schedulers.scheduler_settings(config)
    own = read["sampling_defaults"]
    told = {"spacing": own.spacing, "clipping": own.clipping}
    agree(walked_by_ours(model, sampler=own.sampler, **told), theirs)
    to_the_end = walked_by_ours(model, sampler="ddim", **told)
    assert np.abs(to_the_end - theirs).max() / 2 > 5e-3
    written = diffusers_schedulers.scheduler_config(read["schedule"], read["parameterization"], own)
    assert written["set_alpha_to_one"] is False


def test_the_inverse_walk_leads_where_theirs_leads(pairs):
    """Theirs tells the network the time at which a step ends, and begins with the image itself;
    ours tells it the time at which the step begins. With theirs handed in, both agree.
    """
    network, model = pairs("epsilon")
    images = 0.5 * NOISE
    scheduler = diffusers.DDIMInverseScheduler(clip_sample=False, **BETAS)
    theirs = walked_by_theirs(network, scheduler, images)
    engine, times = model.engine, scheduler.timesteps.numpy() + 1
    signal_rates, noise_rates = model.schedule(np.concatenate([[0], times]) / 1000)
    from ddim_keras.diffusion.levels import Levels

    planned = plan(DDIM(), Levels(signal_rates, noise_rates), model.schedule.conditions)
    planned.table[: len(times), 0] = times
    with engine.weights_held():
        ours = engine.walk(images, planned, 0, np.arange(NUMBER, dtype="int32"))
    agree(np.asarray(ours), theirs)


def drawn_by_their_pipeline(folder, kind="DDIMPipeline"):
    """Images that a pipeline of theirs draws from our folder, and the noise that it starts from."""
    pipeline = getattr(diffusers, kind).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((NUMBER, 3, 8, 8), generator=torch.Generator().manual_seed(0)).numpy()
    theirs = pipeline(NUMBER, generator, num_inference_steps=STEPS, output_type="np").images
    assert ((theirs > 0.01) & (theirs < 0.99)).mean() > 0.2
    return theirs, noise.transpose(0, 2, 3, 1)


def test_their_pipeline_draws_our_images_from_our_folder(pairs, tmp_path):
    _, model = pairs("epsilon")
    model.save_to_diffusers(tmp_path)
    theirs, noise = drawn_by_their_pipeline(tmp_path)
    ours = model.generate(NUMBER, STEPS, initial_noise=noise, verbose=0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


def test_their_pipelines_draw_by_ddim_or_the_solver_of_a_model_that_has_a_solver(pairs, tmp_path):
    """DDIMPipeline makes a DDIMScheduler of a solver; DDPMPipeline takes it as it is."""
    _, model = pairs("v_prediction")
    own = model.sampling_defaults
    try:
        model.sampling_defaults = SamplingDefaults(STEPS, "dpm_solver_2m", "trailing")
        model.save_to_diffusers(tmp_path)
        for kind, sampler in (("DDIMPipeline", "ddim"), ("DDPMPipeline", None)):
            theirs, noise = drawn_by_their_pipeline(tmp_path, kind)
            ours = model.generate(NUMBER, initial_noise=noise, sampler=sampler, verbose=0)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    finally:
        model.sampling_defaults = own


@pytest.mark.parametrize(
    "made",
    [
        lambda: diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2"),
        lambda: diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_end=0.012),
        lambda: diffusers.DDPMScheduler(beta_schedule="sigmoid"),
        lambda: diffusers.DDIMScheduler(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3),
        lambda: diffusers.DDIMScheduler(
            rescale_betas_zero_snr=True, prediction_type="v_prediction"
        ),
    ],
)
def test_their_betas_are_our_schedules(made, tmp_path):
    from ddim_keras.presets import diffusers_schedulers

    scheduler = made()
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    schedule = diffusers_schedulers.scheduler_settings(config)["schedule"]
    count = len(scheduler.betas)
    signal_rates, _ = schedule(np.arange(1, count + 1) / count)
    theirs = scheduler.alphas_cumprod.numpy()
    np.testing.assert_allclose(signal_rates**2, theirs, rtol=2e-4, atol=1e-7)
