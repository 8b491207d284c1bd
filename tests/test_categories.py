"""Diffusion of categories: the process by enumeration, the model on data whose answer is known."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import ddim_keras
from ddim_keras import CategoricalDiffusionModel, categorical
from ddim_keras.diffusion.categorical import marginal, posterior, stay_chances, step_weights
from ddim_keras.schedules import AngleSchedule

FINE = AngleSchedule(min_signal_rate=0.01, max_signal_rate=0.9999)
ETAS = (0.0, 0.4, 1.0)


# The process


@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("eta", ETAS)
def test_steps_back_leave_the_marginals_as_they_are(number, eta):
    """The sum over x_t of q(x_t | x_0) q(x_s | x_t, x_0) is q(x_s | x_0), for each x_0."""
    every = np.eye(number)
    for alpha, next_alpha in ((0.0, 0.3), (0.2, 0.25), (0.5, 1.0)):
        for first in every:
            forward = marginal(first, alpha)
            back = np.stack([posterior(noisy, first, alpha, next_alpha, eta) for noisy in every])
            assert (back >= 0.0).all()
            np.testing.assert_allclose(back.sum(axis=1), 1.0)
            np.testing.assert_allclose(forward @ back, marginal(first, next_alpha), atol=1e-12)


def test_at_eta_0_a_state_is_what_it_was_or_the_prediction_and_at_eta_1_it_is_drawn_anew():
    noisy, first = np.eye(4)[0], np.eye(4)[2]
    chances = posterior(noisy, first, 0.2, 0.6, eta=0.0)
    assert chances[0] > 0.0 and chances[2] > 0.0 and not chances[[1, 3]].any()
    np.testing.assert_allclose(posterior(noisy, first, 0.2, 0.6, eta=1.0), marginal(first, 0.6))


def test_step_weights_follow_from_any_sigma_between():
    alpha, next_alpha = 0.3, 0.7
    for eta in ETAS:
        sigma, predicted, uniform = step_weights(alpha, next_alpha, eta)
        assert sigma == pytest.approx((1.0 - eta) * 0.3 / 0.7)
        assert predicted == pytest.approx(next_alpha - sigma * alpha)
        assert uniform == pytest.approx((1.0 - next_alpha) - (1.0 - alpha) * sigma)


def chain_of(joint, steps, eta):
    """The distribution that perfect predictions lead to, by enumeration of all states of all sites.

    `joint` are the chances of x_0, (K,) * sites; each site is drawn by itself, given x_t.
    """
    number, sites = joint.shape[0], joint.ndim
    states = list(itertools.product(range(number), repeat=sites))
    data, every = joint.reshape(-1), np.eye(number)
    alphas = np.append(stay_chances(FINE, np.linspace(1.0, 0.0, steps + 1)[:-1]), 1.0)
    now = np.full(len(states), 1.0 / len(states))
    for alpha, next_alpha in itertools.pairwise(alphas):
        after = np.zeros_like(now)
        for chance, noisy in zip(now, states):
            likely = data * [
                np.prod([marginal(every[clean], alpha)[seen] for clean, seen in zip(first, noisy)])
                for first in states
            ]
            likely = (likely / likely.sum()).reshape(joint.shape)
            rows = []
            for site, seen in enumerate(noisy):
                others = tuple(axis for axis in range(sites) if axis != site)
                predicted = likely.sum(axis=others)
                rows.append(posterior(every[seen], predicted, alpha, next_alpha, eta))
            each = rows[0]
            for row in rows[1:]:
                each = np.multiply.outer(each, row)
            after += chance * each.reshape(-1)
        now = after
    return now.reshape(joint.shape)


@pytest.mark.parametrize("eta", ETAS)
def test_perfect_predictions_of_one_site_lead_to_the_data_in_any_number_of_steps(eta):
    data = np.array([0.7, 0.1, 0.2])
    for steps in (1, 2, 7):
        # All but what is left of the data at the noise end, a ten-thousandth.
        np.testing.assert_allclose(chain_of(data, steps, eta), data, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_drawing_sites_apart_misses_fades_with_the_steps(eta):
    """Two sites that always agree: in one step they do not know of each other."""
    data = np.diag([0.6, 0.4])
    errors = [np.abs(chain_of(data, steps, eta) - data).sum() for steps in (1, 4, 16)]
    assert errors[0] > 0.9 and errors[1] < 0.8 * errors[0] and errors[2] < 0.5 * errors[1], errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.2, 0.6, 1.5), r"eta must lie in \[0, 1\]"),
        ((0.6, 0.2, 0.0), "expected 0 <= alpha < next_alpha <= 1, got 0.6 and 0.2"),
    ],
)
def test_steps_that_lead_nowhere_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        step_weights(*arguments)


# The model


@keras.saving.register_keras_serializable("tests")
class KnownCategories(keras.layers.Layer):
    """The perfect prediction where all pixels are drawn by themselves from the same chances."""

    def __init__(self, chances, **kwargs):
        super().__init__(**kwargs)
        self.chances = list(chances)

    def call(self, seen, noise_variances):
        staying = (1.0 - noise_variances) * seen + noise_variances / len(self.chances)
        return ops.log(ops.convert_to_tensor(self.chances, "float32")) + ops.log(staying + 1e-9)

    def get_config(self):
        return {**super().get_config(), "chances": self.chances}


def make_oracle(chances, shape=(4, 4), **changes):
    seen = keras.Input((*shape, len(chances)))
    told = keras.Input((1,) * (len(shape) + 1))
    network = keras.Model([seen, told], KnownCategories(chances)(seen, told))
    return CategoricalDiffusionModel(shape, len(chances), network=network, seed=0, **changes)


def make_small(shape=(8, 8), categories=3, **changes):
    widths = [4, 8] if len(shape) > 1 else [16, 16]
    options = {"widths": widths, "block_depth": 1, "seed": 0, **changes}
    return CategoricalDiffusionModel(shape, categories, **options)


def random_categories(shape=(8, 8), categories=3, number=12):
    return np.random.default_rng(0).integers(0, categories, (number, *shape))


@pytest.mark.parametrize("shape", [(4, 4), pytest.param((16,), marks=pytest.mark.slow)])
def test_a_perfect_network_draws_the_categories_as_often_as_the_data_do(shape):
    chances = np.array([0.55, 0.05, 0.4])
    model = make_oracle(chances, shape)
    for steps, eta in ((1, 0.0), (6, 0.0), (6, 1.0)):
        images = model.generate(400, steps, eta=eta, seed=3, batch_size=400)
        assert images.shape == (400, *shape) and images.dtype == np.int32
        shares = np.bincount(images.reshape(-1), minlength=3) / images.size
        assert np.abs(shares - chances).max() < 4.0 * np.sqrt(0.25 / images.size), shares


def test_an_image_is_fixed_by_its_seed_and_number():
    model = make_oracle([0.5, 0.2, 0.3])
    images = model.generate(7, 5, seed=1)
    np.testing.assert_array_equal(model.generate(7, 5, seed=1, batch_size=3, verbose=0), images)
    np.testing.assert_array_equal(model.generate(2, 5, seed=1, first_image=5), images[5:])
    assert (model.generate(7, 5, seed=2) != images).any()
    assert (model.generate(7, 5) != model.generate(7, 5)).any()


def test_at_eta_0_more_of_the_start_stays_than_at_eta_1():
    model = make_oracle([0.5, 0.5])
    start = np.random.default_rng(0).integers(0, 2, (50, 4, 4))
    same = [
        (model.generate(50, 20, eta=eta, initial=start, seed=0) == start).mean()
        for eta in (0.0, 1.0)
    ]
    # A pixel is drawn from the prediction once, on average, and half of these draws change it.
    assert same[0] == pytest.approx(0.5 * (1.0 + np.exp(-1.0)), abs=0.06), same
    assert same[1] == pytest.approx(0.5, abs=0.06), same


@pytest.mark.slow
def test_training_learns_images_of_categories_and_is_evaluated_the_same_each_time():
    """Images that are all of one category: a pixel is known from the others."""
    random = np.random.default_rng(0)
    images = np.repeat(random.choice(3, (64, 1), p=[0.6, 0.3, 0.1]), 16, axis=1).reshape(-1, 4, 4)
    model = CategoricalDiffusionModel((4, 4), 3, widths=[16], block_depth=1, seed=0)
    model.compile(keras.optimizers.Adam(1e-2), gradient_norm=True)
    history = model.fit(images, epochs=30, batch_size=32, verbose=0, validation_data=images[:10])
    losses = history.history["loss"]
    assert losses[0] > 0.9 and losses[-1] < 0.5 * losses[0]
    assert {"accuracy", "val_loss", "val_accuracy", "gradient_norm"} < set(history.history)
    first = model.evaluate(images, batch_size=64, verbose=0, return_dict=True)
    again = model.evaluate(images, batch_size=16, verbose=0, return_dict=True)
    assert first == pytest.approx(again, rel=1e-4) and first["accuracy"] > 0.7


@pytest.mark.slow
def test_a_model_is_saved_with_its_average_and_its_training(tmp_path):
    model = make_small(shape=(8, 8, 2))
    model.compile("adam")
    images = random_categories((8, 8, 2))
    model.fit(images, batch_size=6, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert isinstance(again, CategoricalDiffusionModel) and again.get_config() == model.get_config()
    np.testing.assert_array_equal(
        again.generate(3, 4, seed=0, verbose=0), model.generate(3, 4, seed=0, verbose=0)
    )
    assert int(again.optimizer.iterations) == 2 and float(again.ema_updates) == 2.0
    with pytest.raises(ValueError, match="load it with ddim_keras.categorical.load_model"):
        ddim_keras.load_model(tmp_path / "model.keras")


def test_a_model_with_a_network_of_ones_own_is_saved(tmp_path):
    model = make_oracle([0.5, 0.2, 0.3])
    model.save(tmp_path / "model.keras")
    again = categorical.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.generate(2, 3, seed=0), model.generate(2, 3, seed=0))
    whole = (tmp_path / "model.keras").read_bytes()
    for damaged in (whole[:-30], whole[:2000] + b"damaged" + whole[2007:], b"["):
        (tmp_path / "cut.keras").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cut.keras is .*restore it from a backup"):
            categorical.load_model(tmp_path / "cut.keras")


@pytest.mark.slow
def test_sequences_are_trained_on_from_batches():
    model = make_small((12,), 5, schedule="cosine_beta")
    model.compile("adam")
    batches = [(random_categories((12,), 5, 4), "labels")] * 2
    history = model.fit(batches, epochs=1, verbose=0, validation_data=batches)
    # Nothing learnt yet: all categories are equally likely.
    assert history.history["loss"][0] == pytest.approx(np.log(5.0), rel=0.2)
    assert model.generate(2, 4, seed=0).shape == (2, 12)


def test_corrupted_images_are_what_they_were_with_the_schedules_chance():
    model = make_oracle([0.5, 0.5])
    images = np.zeros((200, 4, 4), "int32")
    for time in (0.0, 0.5, 1.0):
        alpha = float(stay_chances(model.schedule, time))
        share = model.corrupt(images, time).mean()
        assert abs(share - (1.0 - alpha) / 2.0) < 4.0 * np.sqrt(0.25 / images.size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.fit(np.zeros((2, 8, 8), "float32")), "must be integers from 0 to 2, got fl"),
        (lambda m: m.fit(np.full((2, 8, 8), 3)), "from 0 to 2, got 3 to 3: give the model more"),
        (lambda m: m.fit(np.zeros((2, 7, 8), int)), r"must have shape \(batch, 8, 8\), got \(2, 7"),
        (lambda m: m.fit(np.zeros((0, 8, 8), int)), "x are empty"),
        (lambda m: m.fit([[np.full((2, 8, 8), -1)]] * 2), "from 0 to 2, got -1 to -1"),
        (lambda m: m.fit(iter([])), "batches whose number is known and not 0"),
        (lambda m: m.fit(None), "x must be categories, got None"),
        (lambda m: m.compile("adam", loss="mse"), "leave out loss: a CategoricalDiffusionModel"),
        (lambda m: m.generate(0), "num_images must be an integer, at least 1"),
        (lambda m: m.generate(2, 0), "diffusion_steps must be an integer, at least 1"),
        (lambda m: m.generate(2, eta=-1.0), r"eta must lie in \[0, 1\]"),
        (lambda m: m.generate(2, initial=np.zeros((3, 8, 8), int)), "initial must hold 2 images"),
        (lambda m: m.corrupt(np.zeros((1, 8, 8), int), 2.0), "diffusion_time must lie in"),
        (lambda m: make_small(categories=1), "categories must be an integer, at least 2"),
        (lambda m: make_small(shape=(2, 2, 2, 2)), r"shape must be \(height, width\) or"),
        (lambda m: make_small(shape=(6,), widths=[8, 16]), "one for each block, all equal"),
        (lambda m: make_small(network=m.network, categories=4), "the network must map inputs of"),
    ],
)
def test_what_is_no_category_is_refused(small_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(small_model)


@pytest.fixture(scope="module")
def small_model():
    model = make_small()
    model.compile("adam")
    return model


def test_a_model_of_categories_says_what_it_does_instead_of_being_called(small_model):
    with pytest.raises(TypeError, match=r"model.generate\(num_images\) makes images"):
        small_model(np.zeros((1, 8, 8)))
    with pytest.raises(NotImplementedError, match="save it as a .keras file"):
        small_model.export("folder")
