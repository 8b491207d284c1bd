"""Whatever a scheduler's configuration says, our walk leads where theirs leads, or a warning says
why not: random ones, walked in NumPy with a made-up network.
"""

import inspect
import json
import random
import warnings

import numpy as np
import pytest
from parity_tools import NEEDED

torch = pytest.importorskip("torch", reason=NEEDED)
diffusers = pytest.importorskip("diffusers", reason=NEEDED)

from ddim_keras.diffusion.spacings import diffusion_times, levels_of  # noqa: E402
from ddim_keras.presets import diffusers_schedulers  # noqa: E402
from ddim_keras.samplers import plan  # noqa: E402
from ddim_keras.samplers.base import MEMORY  # noqa: E402

pytestmark = pytest.mark.parity

SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
KINDS = (
    *SOLVERS,
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "DPMSolverSinglestepScheduler", "DDIMInverseScheduler"),
)
# Values of the settings, each as often as it is drawn; what a scheduler does not take is left out.
SETTINGS = {
    "num_train_timesteps": [1000, 1000, 100, 4000],
    "beta_start": [1e-4, 1e-3],
    "beta_end": [0.02, 0.008],
    "beta_schedule": ["linear", "linear", "scaled_linear", "squaredcos_cap_v2"],
    "prediction_type": ["epsilon", "sample", "v_prediction"],
    "timestep_spacing": ["leading", "trailing", "linspace"],
    "steps_offset": [0, 1],
    "rescale_betas_zero_snr": [False, False, False, True],
    "thresholding": [False, False, True],
    "sample_max_value": [1.0, 1.0, 1.5],
    "clip_sample": [True, False],
    "clip_sample_range": [1.0, 0.5],
    "set_alpha_to_one": [True, False],
    "use_karras_sigmas": [False, False, False, False, True],
    "final_sigmas_type": ["zero", "zero", "zero", "sigma_min"],
    "solver_order": [1, 2, 2, 3],
    "lower_order_final": [True, True, False],
    "euler_at_final": [False, True],
    "predict_x0": [True, True, True, False],
    "disable_corrector": [[], [], [0]],
}
STEPS = (2, 4, 5, 10, 20)  # each divides all T
MIXED = np.random.default_rng(0).normal(size=(12, 12)) / 3.5
NOISE = np.random.default_rng(1).normal(size=(2, 12)).astype("float32")


def said_by_the_network(x, time):
    return 0.8 * np.tanh(x @ MIXED + 0.3 * np.sin(time / 150.0)) + 0.1 * x


def drawn(seed, folder):
    """A scheduler that diffusers takes, as DDIMPipeline samples by it, and its configuration."""
    draw = random.Random(seed)
    kind = getattr(diffusers, draw.choice(KINDS))
    known = inspect.signature(kind.__init__).parameters
    told = {
        name: draw.choice(values)
        for name, values in SETTINGS.items()
        if name in known and draw.random() < 0.7
    }
    kind(**told).save_pretrained(folder)
    scheduler = kind.from_pretrained(folder)
    if kind.__name__ not in SOLVERS:
        scheduler = diffusers.DDIMScheduler.from_config(scheduler.config)
    config = json.loads((folder / "scheduler_config.json").read_text())
    return scheduler, config, draw.choice(STEPS)


def walked_by_theirs(scheduler, steps):
    scheduler.set_timesteps(steps)
    x = torch.tensor(NOISE).reshape(2, 3, 2, 2)
    for time in scheduler.timesteps:
        said = said_by_the_network(x.reshape(2, 12).numpy().astype("float64"), float(time))
        said = torch.tensor(said.astype("float32")).reshape(x.shape)
        x = scheduler.step(said, time, x).prev_sample
    return x.reshape(2, 12).numpy()


def walked_by_ours(read, steps):
    own, schedule = read["sampling_defaults"], read["schedule"]
    times = diffusion_times(steps, own.spacing, schedule)
    planned = plan(own.sampler, levels_of(schedule, times), schedule.conditions)
    x, memory = NOISE.astype("float64"), [np.zeros(NOISE.shape)] * MEMORY
    for row in planned.table[: planned.ends[-1]].astype("float64"):
        time, noise_rate, signal_rate, image, noise, _, *others = row
        said = said_by_the_network(x, time - 1.0)
        noises, images = read["parameterization"].components(said, x, signal_rate, noise_rate)
        images = np.asarray(own.clipping(images.reshape(2, 2, 2, 3))).reshape(x.shape)
        if own.clipping.fits_noises:
            noises = (x - signal_rate * images) / noise_rate
        earlier = sum(weight * part for weight, part in zip(others, memory))
        x = image * images + noise * noises + earlier
        memory = [images, *memory[:-1]]
    return x


def is_told_otherwise(config):
    """What docs/published.md says of all: nothing is left to predict noise from at the end of
    `rescale_betas_zero_snr`.
    """
    return config.get("rescale_betas_zero_snr") and config.get("prediction_type") == "epsilon"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_whatever_a_scheduler_is_told_the_walks_agree_or_a_warning_says_why_not(tmp_path):
    compared = 0
    for seed in range(80):
        scheduler, config, steps = drawn(seed, tmp_path / str(seed))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            read = diffusers_schedulers.scheduler_settings(config)
        if said or is_told_otherwise(config):
            continue
        theirs, ours = walked_by_theirs(scheduler, steps), walked_by_ours(read, steps)
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert difference < 1e-3, (type(scheduler).__name__, steps, config, difference)
        compared += 1
    assert compared > 30
