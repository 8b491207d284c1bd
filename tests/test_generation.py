import keras
import numpy as np
import pytest
from conftest import make_small_model, make_trained_model, random_images, slow_on_jax
from keras import ops

from ddim_keras import SamplingDefaults
from ddim_keras.samplers import DDIM, SAMPLERS, Heun, UniPC


def test_images_are_float32_in_the_unit_range(trained_model):
    images = trained_model.generate(5, 4)
    assert (
        isinstance(images, np.ndarray)
        and images.dtype == np.float32
        and images.shape == (5, 8, 8, 1)
    )
    assert images.min() >= 0.0 and images.max() <= 1.0


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_an_image_depends_on_its_seed_and_place_alone(trained_model, eta):
    whole = trained_model.generate(7, 6, eta=eta, seed=3)
    np.testing.assert_allclose(
        trained_model.generate(7, 6, eta=eta, seed=3, batch_size=3, verbose=0), whole, atol=1e-5
    )
    np.testing.assert_allclose(trained_model.generate(2, 6, eta=eta, seed=3), whole[:2], atol=1e-5)
    assert np.abs(trained_model.generate(7, 6, eta=eta, seed=4) - whole).max() > 0.05
    assert np.abs(whole[0] - whole[1]).max() > 0.05


def test_the_same_seed_gives_the_same_bits(trained_model):
    np.testing.assert_array_equal(
        trained_model.generate(3, 5, seed=9), trained_model.generate(3, 5, seed=9)
    )


def test_unseeded_images_differ_from_call_to_call_but_not_from_run_to_run():
    def twice():
        model = make_small_model(seed=2)
        return model.generate(2, 2), model.generate(2, 2)

    first, second = twice(), twice()
    assert np.abs(first[0] - first[1]).max() > 0.05
    np.testing.assert_array_equal(first, second)


def test_the_default_is_what_measures_best_and_the_paper_is_one_word_away(trained_model):
    best = {
        1: {"sampler": "ddim"},  # as all are
        2: {"sampler": "ddim"},  # Karras's levels leap from one end to the other there
        3: {"sampler": "unipc", "spacing": "log_snr"},
        4: {"sampler": "unipc", "spacing": "log_snr"},
        5: {"sampler": UniPC(3), "spacing": "karras"},
        6: {"sampler": "unipc", "spacing": "karras"},
    }
    for number, options in best.items():
        default = trained_model.generate(2, number, seed=1)
        np.testing.assert_allclose(
            trained_model.generate(2, number, seed=1, **options), default, atol=1e-5
        )
        np.testing.assert_array_equal(
            trained_model.generate(2, network_evaluations=number, seed=1), default
        )
    for number, options in ((2, {"spacing": "karras"}), (6, {"sampler": "ddim"})):
        default, other = (trained_model.generate(2, number, seed=1, **o) for o in ({}, options))
        assert np.abs(default - other).max() > 1e-3
    ddim = trained_model.generate(2, 6, sampler="ddim", seed=1)
    np.testing.assert_array_equal(trained_model.generate(2, 6, eta=0.0, seed=1), ddim)
    np.testing.assert_array_equal(
        trained_model.generate(2, 6, sampler="ddim", spacing="linear", seed=1), ddim
    )


def test_eta_changes_the_images_of_one_seed(trained_model):
    deterministic, stochastic = (
        trained_model.generate(2, 10, eta=eta, seed=1) for eta in (0.0, 1.0)
    )
    assert np.abs(deterministic - stochastic).max() > 0.05


def test_other_steps_eta_and_seeds_do_not_compile_again():
    model = make_trained_model()
    traces = []
    original = model.engine.denoise
    model.engine.denoise = lambda *arguments: traces.append(1) or original(*arguments)
    model.generate(4, 3, seed=0)
    compiled_once = len(traces)
    assert compiled_once > 0
    model.generate(4, 50, seed=1)
    model.generate(4, 1000, eta=1.0, seed=2)
    model.generate(9, 5, eta=0.5, batch_size=4, verbose=0)
    for sampler in SAMPLERS:
        model.generate(4, 6, sampler=sampler, spacing="karras", seed=3)
    model.generate(4, schedule="linear_log_snr", network_evaluations=9)
    assert len(traces) == compiled_once


def test_given_noise_is_where_the_walk_starts(trained_model):
    noise = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype("float32")
    images = trained_model.generate(5, 6, sampler="ddim", initial_noise=noise)
    np.testing.assert_array_equal(
        trained_model.generate(5, 6, sampler="ddim", initial_noise=noise, seed=8), images
    )
    parts = trained_model.generate(
        5, 6, sampler="ddim", initial_noise=noise, batch_size=2, verbose=0
    )
    np.testing.assert_allclose(parts, images, atol=1e-5)
    normalized = trained_model.reverse_diffusion(noise, 6)
    np.testing.assert_allclose(
        ops.convert_to_numpy(trained_model.denormalize(normalized)), images, atol=1e-6
    )


def test_denoise_takes_arrays_and_numbers_as_well_as_tensors(trained_model):
    noisy_images = np.random.default_rng(1).normal(size=(2, 8, 8, 1))
    rates = np.full((2, 1, 1, 1), 0.6), np.full((2, 1, 1, 1), 0.8)
    of_tensors = trained_model.denoise(
        *(ops.convert_to_tensor(part, "float32") for part in (noisy_images, *rates))
    )
    for others in (rates, (0.6, 0.8)):
        for expected, found in zip(of_tensors, trained_model.denoise(noisy_images, *others)):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_compiled_loop_is_the_loop_of_the_paper(trained_model):
    """Equation 12 with sigma 0, step by step through the public `denoise`."""
    noise = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype("float32")
    noisy_images, steps = ops.convert_to_tensor(noise), 7
    for step in range(steps):
        rates = [
            ops.reshape(r, (1, 1, 1, 1))
            for r in trained_model.diffusion_schedule(np.array([1 - step / steps]))
        ]
        pred_noises, pred_images = trained_model.denoise(noisy_images, *rates, training=False)
        next_noise_rate, next_signal_rate = trained_model.diffusion_schedule(
            np.array([1 - (step + 1) / steps])
        )
        noisy_images = next_signal_rate * pred_images + next_noise_rate * pred_noises
    expected = ops.convert_to_numpy(pred_images)
    np.testing.assert_allclose(
        ops.convert_to_numpy(trained_model.reverse_diffusion(noise, steps)), expected, atol=1e-4
    )


def test_a_trajectory_leads_from_the_noise_to_the_images(trained_model):
    noise = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")
    arguments = {"sampler": "ddim", "initial_noise": noise}
    images, trajectory = trained_model.generate(3, 6, **arguments, return_trajectory=True)
    np.testing.assert_allclose(images, trained_model.generate(3, 6, **arguments), atol=1e-5)
    np.testing.assert_array_equal(trajectory.noisy_images[0], noise)
    assert trajectory.noisy_images.shape == (7, 3, 8, 8, 1) and trajectory.pred_images.shape == (
        6,
        3,
        8,
        8,
        1,
    )
    np.testing.assert_allclose(trajectory.pred_images[-1], images, atol=1e-6)
    np.testing.assert_allclose(trajectory.diffusion_times, np.linspace(1, 0, 7))


@pytest.mark.parametrize("sampler", ["heun", "adams_bashforth", "unipc", "dpm_solver_2m_sde"])
def test_trajectories_of_every_kind_of_sampler_end_at_their_images(trained_model, sampler):
    """History and steps of several evaluations survive being walked step by step."""
    images, trajectory = trained_model.generate(
        2, 5, sampler=sampler, seed=2, return_trajectory=True
    )
    np.testing.assert_allclose(
        images, trained_model.generate(2, 5, sampler=sampler, seed=2), atol=1e-5
    )
    assert trajectory.noisy_images.shape == (6, 2, 8, 8, 1) and trajectory.pred_images.shape == (
        5,
        2,
        8,
        8,
        1,
    )
    rates = [
        ops.reshape(rate, (1, 1, 1, 1))
        for rate in trained_model.diffusion_schedule(np.array([0.6]))
    ]
    _, pred_images = trained_model.denoise(
        ops.convert_to_tensor(trajectory.noisy_images[2]), *rates
    )
    expected = ops.convert_to_numpy(trained_model.denormalize(pred_images))
    np.testing.assert_allclose(trajectory.pred_images[2], expected, atol=1e-5)


def test_a_budget_counts_network_evaluations(trained_model):
    budget = trained_model.generate(2, network_evaluations=9, sampler="heun", seed=0)
    np.testing.assert_array_equal(budget, trained_model.generate(2, 5, sampler=Heun(), seed=0))


def test_samplers_converge_to_one_image(trained_model):
    """The ODE of a trained network has one solution; the walk to the last time alone, as the last
    step is a leap.
    """
    times = np.linspace(0, 1, 101)[1:]
    fine = trained_model.generate(2, times, sampler="heun", seed=0)
    for sampler in ("dpm_solver_2m", "dpm_solver_2s", "adams_bashforth", "unipc"):
        np.testing.assert_allclose(
            trained_model.generate(2, times, sampler=sampler, seed=0), fine, atol=5e-3
        )


def test_samplers_are_given_by_name_or_object_and_eta_is_ddims(trained_model):
    expected = trained_model.generate(2, 6, sampler="ddpm", seed=0)
    np.testing.assert_array_equal(trained_model.generate(2, 6, eta=1.0, seed=0), expected)
    np.testing.assert_array_equal(trained_model.generate(2, 6, sampler=DDIM(1.0), seed=0), expected)
    np.testing.assert_array_equal(
        trained_model.generate(2, 6, sampler="ddim", eta=1.0, seed=0), expected
    )


@slow_on_jax
@pytest.mark.parametrize("clipping", ["static", pytest.param("dynamic", marks=pytest.mark.slow)])
def test_clipping_keeps_predictions_within_the_range_of_images(clipping):
    model = make_trained_model()  # of noises, which are off by far at the noise end
    _, free = model.generate(2, 4, seed=0, return_trajectory=True)
    images, clipped = model.generate(2, 4, seed=0, clipping=clipping, return_trajectory=True)
    assert np.abs(clipped.noisy_images[1]).max() < np.abs(free.noisy_images[1]).max()
    np.testing.assert_allclose(images, model.generate(2, 4, seed=0, clipping=clipping), atol=1e-5)
    last = clipped.noisy_images[-1] * ops.convert_to_numpy(model.normalizer.standard_deviation())
    last = last + ops.convert_to_numpy(model.normalizer.mean)
    assert last.min() >= -1e-5 and last.max() <= 1 + 1e-5


def test_no_images_are_an_empty_array(trained_model):
    assert trained_model.generate(0).shape == (0, 8, 8, 1)


def test_one_step_is_the_prediction_from_pure_noise(trained_model):
    noise = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype("float32")
    rates = [
        ops.reshape(rate, (1, 1, 1, 1))
        for rate in trained_model.diffusion_schedule(np.array([1.0]))
    ]
    _, pred_images = trained_model.denoise(ops.convert_to_tensor(noise), *rates)
    np.testing.assert_allclose(trained_model.reverse_diffusion(noise, 1), pred_images, atol=1e-5)


def test_many_batches_show_a_progress_bar(trained_model, capsys):
    trained_model.generate(5, 1, batch_size=2)
    assert "5 of 5 images" in capsys.readouterr().out  # in a terminal a bar
    trained_model.generate(5, 1, batch_size=2, verbose=0)
    trained_model.generate(5, 1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": -1}, "num_images must be an integer, at least 0 and below .*: got -1"),
        ({"num_images": 2.5}, "num_images must be an integer"),
        (
            {"num_images": 1, "diffusion_steps": 0},
            "diffusion_steps must be an integer, at least 1: got 0",
        ),
        ({"num_images": 1, "eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        ({"num_images": 1, "eta": -0.5}, r"eta must lie in \[0, 1\], got -0.5"),
        (
            {"num_images": 1, "eta": 0.5, "sampler": "heun"},
            "eta is DDIM's stochasticity, but the sampler is 'heun'",
        ),
        ({"num_images": 1, "sampler": "euler"}, "unknown sampler 'euler'"),
        (
            {"num_images": 1, "network_evaluations": 0},
            "network_evaluations must be an integer, at least 1: got 0",
        ),
        (
            {"num_images": 1, "diffusion_steps": [0.5], "network_evaluations": 3},
            "either network_evaluations or a list of times",
        ),
        ({"num_images": 1, "spacing": "even"}, "unknown spacing 'even'"),
        ({"num_images": 1, "schedule": "even"}, "unknown schedule 'even'"),
        ({"num_images": 1, "clipping": "hard"}, "unknown clipping 'hard'"),
        ({"num_images": 1, "batch_size": 0}, "batch_size must be an integer, at least 1: got 0"),
        (
            {"num_images": 1, "seed": -1},
            "seed must be an integer, at least 0 and below 4294967296: got -1",
        ),
        (
            {"num_images": 1, "initial_noise": np.zeros((2, 8, 8, 1))},
            "initial_noise holds 2 images but num_images is 1",
        ),
        (
            {"num_images": 1, "initial_noise": np.zeros((1, 8, 9, 1))},
            "initial_noise have the wrong size",
        ),
    ],
)
def test_bad_arguments_are_refused(trained_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained_model.generate(**arguments)


def test_reverse_diffusion_refuses_no_steps(trained_model):
    with pytest.raises(ValueError, match="diffusion_steps must be an integer, at least 1: got 0"):
        trained_model.reverse_diffusion(np.zeros((1, 8, 8, 1), "float32"), 0)


def test_few_images_are_made_in_a_few_sizes(trained_model, monkeypatch):
    traces = []
    original = trained_model.engine.denoise
    trained_model.generate(6, 2, seed=0)
    monkeypatch.setattr(
        trained_model.engine, "denoise", lambda *a: traces.append(1) or original(*a)
    )
    assert trained_model.generate(5, 2, seed=0).shape == (5, 8, 8, 1)
    assert not traces
    batches = [
        batch for number in range(1, 65) for batch in trained_model.engine.batches(number, None, 0)
    ]
    assert len({len(batch.indices) for batch in batches}) == 12
    assert all(batch.stop <= len(batch.indices) <= 64 for batch in batches)
    assert all(
        len(batch.indices) <= 7
        for number in range(1, 20)
        for batch in trained_model.engine.batches(number, 7, 0)
    )


@pytest.fixture(scope="module")
def broken_model():
    model = make_trained_model()
    weights = model.ema_network.get_weights()
    weights[0][:] = np.nan
    model.ema_network.set_weights(weights)
    return model


@pytest.mark.parametrize(
    "use",
    [
        lambda model, images: model.generate(2, 2),
        lambda model, images: model.generate(2, 2, return_trajectory=True),
        lambda model, images: model.reverse_diffusion(images, 2),
        lambda model, images: model.encode(images, 2),
        lambda model, images: model.decode(images, 2),
        lambda model, images: model.interpolate(images[0], images[1], 3, 2),
        lambda model, images: model.variations(images[0], 0.5, 2, 2),
        lambda model, images: model.inpaint(images, np.eye(8), 2),
        pytest.param(
            lambda model, images: model.score(
                images, 4, 2, metrics=["kid"], extractor="fashion_mnist"
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_weights_that_are_not_numbers_are_said_to_be(use, broken_model):
    with pytest.raises(
        FloatingPointError,
        match="the network's weights hold NaN or infinity: the training has diverged",
    ):
        use(broken_model, random_images(2))


def test_what_overflows_with_finite_weights_is_said_too(trained_model):
    noise = np.full((1, 8, 8, 1), 3e38, "float32")
    with pytest.raises(
        FloatingPointError, match="though the weights are finite: the network computes in float32"
    ):
        trained_model.generate(1, 2, initial_noise=noise)


def test_eta_leaves_where_the_models_own_walk_ends():
    """As a pipeline of diffusers does, whose scheduler was made with set_alpha_to_one=False."""
    model = make_small_model(sampling_defaults=SamplingDefaults(sampler=DDIM(last_noise_rate=0.3)))
    model.normalizer.adapt(random_images())
    own = model.generate(2, 3, seed=0)
    np.testing.assert_array_equal(model.generate(2, 3, eta=0.0, seed=0), own)
    assert abs(model.generate(2, 3, sampler="ddim", seed=0) - own).max() > 1e-4


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it calls tf.function")
def test_a_graph_takes_the_reverse_walk_and_refuses_arrays_in_words(trained_model):
    import tensorflow as tf

    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    inside = tf.function(lambda noises: trained_model.reverse_diffusion(noises, 3))
    expected = np.asarray(trained_model.reverse_diffusion(noise, 3))
    np.testing.assert_allclose(inside(tf.constant(noise)), expected, atol=1e-5)
    with pytest.raises(RuntimeError, match="as NumPy arrays.*reverse_diffusion"):
        tf.function(lambda: trained_model.generate(2, 3))()
