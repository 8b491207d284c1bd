"""What the page to play with does, without the page."""

import numpy as np
import PIL.Image
import pytest
from conftest import make_small_model, slow_on_jax

from ddim_keras.serving import play
from ddim_keras.serving.limits import Limits
from ddim_keras.serving.play import DAMAGES, Playground, Settings, picture
from ddim_keras.serving.service import Asked

SETTINGS = Settings(steps=2)


@pytest.fixture(scope="module")
def model():
    return make_small_model(parameterization="velocity")


@pytest.fixture(scope="module")
def playground(model):
    made = Playground(["first", "second"], lambda source: model, Limits(steps=5), any_source=False)
    yield made
    made.stop()


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24)).astype("uint8")
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture(autouse=True)
def arrays(monkeypatch):
    """Pictures are the arrays that they are made of."""
    monkeypatch.setattr(play, "picture", np.asarray)


def test_a_picture_is_scaled_up_to_be_seen():
    assert picture(np.zeros((4, 8, 8, 1), "float32")).shape[0] > 400


def test_a_walk_is_watched_to_the_images_of_its_seed(playground, model):
    shown = list(playground.watch("first", Asked(num_images=4, steps=3, seed=5)))
    images, step, seed = shown[-1]
    assert (step, seed) == (3, 5)
    np.testing.assert_allclose(images, model.generate(4, 3, seed=5, verbose=0), atol=1e-6)
    steps = [step for _, step, seed in shown[:-1]]
    assert steps == sorted(steps)


def test_both_ends_of_the_way_between_two_latents_are_those_of_their_seeds(playground, model):
    for position, seed in ((0.0, 3), (1.0, 4)):
        shown = playground.between("first", (3, 4), position, SETTINGS)
        noise = np.random.default_rng(seed).normal(size=(1, *model.image_shape))
        np.testing.assert_allclose(shown, model.decode(noise, 2, verbose=0), atol=1e-5)


def test_an_image_is_shown_beside_its_reconstruction_and_before_its_variations(
    playground, model, photo
):
    image, again = playground.reconstruct("first", photo, SETTINGS)
    expected = model.reconstruct(image[None], 2, verbose=0)[0]
    np.testing.assert_allclose(again, expected, atol=1e-6)
    for each in playground.vary("first", photo, 0.0, 3, 0, SETTINGS):
        np.testing.assert_allclose(each, image, atol=1e-5)


@pytest.mark.parametrize("damage", ["few pixels", "noisy", "blurred"])
def test_an_image_is_restored_to_one_that_has_what_is_known_of_it(playground, model, photo, damage):
    known, made = playground.restore("first", photo, damage, 0, SETTINGS)
    image, _ = playground.reconstruct("first", photo, SETTINGS)
    operator, noise = DAMAGES[damage][0](model.image_shape), DAMAGES[damage][1]
    measured = image[None] if damage == "blurred" else operator(image[None])
    expected = model.restore(measured, operator, 2, noise_level=noise, seed=0, verbose=0)[0]
    np.testing.assert_allclose(made, expected, atol=1e-6)
    if damage == "blurred":  # what was dropped is blurred as it is
        np.testing.assert_allclose(known, image, atol=1e-6)
    if damage == "few pixels":
        assert known.std() > 0.0
        for each in (known, made):
            np.testing.assert_allclose(operator(each[None]), measured, atol=1e-4)


@slow_on_jax
def test_colours_come_back_where_a_model_has_them(playground, photo):
    with pytest.raises(ValueError, match="there is nothing to colour"):
        playground.restore("first", photo, "no colours", 0, SETTINGS)
    with pytest.raises(ValueError, match="damage must be one of .*'noisy'"):
        playground.restore("first", photo, "old", 0, SETTINGS)
    coloured = make_small_model(channels=3, parameterization="velocity")
    made = Playground(["a"], lambda source: coloured)
    grey, restored = made.restore("a", photo, "no colours", 0, SETTINGS)
    np.testing.assert_allclose(grey, grey[..., :1].repeat(3, axis=-1))
    np.testing.assert_allclose(restored.mean(axis=-1), grey[..., 0], atol=1e-4)
    made.stop()


def test_only_what_is_painted_over_is_filled_in(playground, photo):
    painted = np.zeros((16, 24), "uint8")
    painted[:, :12] = 255
    with PIL.Image.open(photo) as whole:
        before, after = playground.inpaint("first", whole, painted, 0, SETTINGS)
        with pytest.raises(ValueError, match="nothing is painted over"):
            playground.inpaint("first", whole, 0 * painted, 0, SETTINGS)
    np.testing.assert_array_equal(before[:, 4:], after[:, 4:])
    assert not before[:, :4].any()
    assert after[:, :4].any()


def test_what_is_asked_for_is_within_limits(playground, photo):
    with pytest.raises(ValueError, match="steps must be from 1 to 5 here"):
        playground.reconstruct("first", photo, Settings(steps=6))
    with pytest.raises(ValueError, match="drop one in"):
        playground.reconstruct("first", "", SETTINGS)


def test_others_choose_only_from_what_is_given(playground):
    with pytest.raises(ValueError, match="no model '/etc' here: choose one of"):
        playground.service("/etc")


def test_few_models_are_kept_and_those_last_used(model):
    read = []

    def load(source):
        read.append(source)
        return model

    made = Playground(["a"], load)
    for source in "abacda":
        made.service(source)
    assert read == ["a", "b", "c", "d"]
    made.service("b")
    assert read == ["a", "b", "c", "d", "b"]
    made.stop()
