"""Whether a model copies its training images: nearest images, the score, the warning in runs."""

import warnings

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from conftest import make_small_model, random_images, slow_on_jax

from ddim_keras import metrics, plotting, runs
from ddim_keras.metrics import nearest_training_images
from ddim_keras.runs import RunConfig
from ddim_keras.runs.copying import Memorization

TRAINING = random_images(600, seed=1)
NEW = random_images(50, seed=2)


def test_copies_are_found_and_new_images_are_none():
    mixed = np.concatenate([NEW[:30], np.clip(TRAINING[300:310] + 0.02, 0.0, 1.0)])
    found = nearest_training_images(mixed, TRAINING)
    assert found.share == 0.25
    np.testing.assert_array_equal(found.numbers[30:], np.arange(300, 310))
    np.testing.assert_array_equal(found.nearest, TRAINING[found.numbers])
    assert not found.mirrored.any()


def test_distances_are_those_of_all_pairs():
    found = nearest_training_images(NEW, TRAINING)

    def of_pairs(left, right):
        return np.sqrt(np.square(left[:, None] - right[None]).sum(axis=(2, 3, 4), dtype="float64"))

    pairs = of_pairs(NEW, TRAINING)
    np.testing.assert_allclose(found.distances, pairs.min(axis=1), rtol=1e-5)
    among = of_pairs(TRAINING[found.numbers], TRAINING)
    among[np.arange(50), found.numbers] = np.inf
    np.testing.assert_allclose(found.to_next, among.min(axis=1), rtol=1e-5)
    assert found.share == (pairs.min(axis=1) < among.min(axis=1) / 2).mean() == 0.0


def test_half_of_all_new_images_would_count_without_the_half():
    """Which of two new images is nearer is chance: the reason for the definition."""
    found = nearest_training_images(NEW, TRAINING)
    assert 0.25 < (found.distances < found.to_next).mean() < 0.75


def test_batches_labels_and_bytes_make_no_difference():
    as_bytes = np.rint(255.0 * TRAINING).astype("uint8")
    batches = tf.data.Dataset.from_tensor_slices((as_bytes, np.zeros(600, "int32"))).batch(7)
    one, other = (nearest_training_images(NEW, data) for data in (as_bytes / 255.0, batches))
    np.testing.assert_array_equal(one.numbers, other.numbers)
    np.testing.assert_allclose(one.to_next, other.to_next, rtol=1e-4)


def test_a_training_image_that_is_there_twice_can_still_be_copied():
    doubled = np.concatenate([TRAINING, TRAINING[:5]])
    assert nearest_training_images(TRAINING[:5], doubled).share == 1.0
    all_alike = np.repeat(TRAINING[:1], 3, axis=0)
    assert nearest_training_images(TRAINING[:1], all_alike).share == 1.0


def test_mirrored_copies_are_found_where_asked_for():
    turned = TRAINING[:10, :, ::-1]
    assert nearest_training_images(turned, TRAINING).share == 0.0
    found = nearest_training_images(turned, TRAINING, mirrored=True)
    assert found.share == 1.0 and found.mirrored.all()
    np.testing.assert_array_equal(found.nearest, turned)
    np.testing.assert_array_equal(found.numbers, np.arange(10))


@pytest.mark.slow
def test_features_measure_too():
    found = nearest_training_images(TRAINING[:4], TRAINING[:20], extractor="fashion_mnist")
    np.testing.assert_array_equal(found.numbers, np.arange(4))
    assert found.share == 1.0 and found.distances.max() < 0.01 * found.to_next.min()


def test_a_model_generates_what_is_compared(trained_model):
    found = nearest_training_images(trained_model, TRAINING, 5, diffusion_steps=3, seed=4)
    np.testing.assert_allclose(
        found.images, trained_model.generate(5, 3, seed=4, verbose=0), atol=1e-6
    )


@slow_on_jax
def test_the_score_is_among_those_of_a_model(trained_model, monkeypatch):
    options = {"metrics": ["memorization", "precision_recall"], "extractor": "fashion_mnist"}
    with pytest.raises(ValueError, match="compares with what the model was trained on"):
        trained_model.score(NEW, 12, 3, **options)
    copied = trained_model.generate(12, 3, seed=0, verbose=0)[:6]
    training = np.concatenate([copied, TRAINING])
    scores = trained_model.score(NEW, 12, 3, training_images=training, **options)
    assert set(scores) == {"memorization", "precision", "recall"}
    assert scores["memorization"] >= 0.5
    alone = trained_model.score(
        NEW, 12, 3, metrics=["memorization"], training_images=TRAINING, extractor="fashion_mnist"
    )
    assert alone == {"memorization": 0.0}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"have shape \(4, 4, 1\), and the generated ones"):
        nearest_training_images(NEW, random_images(5, (4, 4, 1)))
    with pytest.raises(ValueError, match="are for a model that generates"):
        nearest_training_images(NEW, TRAINING, diffusion_steps=3)
    with pytest.raises(ValueError, match="expected a model or at least one image"):
        nearest_training_images(NEW[:0], TRAINING)


def test_pairs_are_drawn_with_the_most_suspicious_first():
    found = nearest_training_images(np.concatenate([NEW[:3], TRAINING[:1]]), TRAINING)
    figure = plotting.plot_pairs(found, number=3)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(figure.axes) == 6 and titles[0] == "0.00"
    assert titles == sorted(titles)


class Copier:
    """Generates a share of training images, and otherwise new ones."""

    num_classes = None

    def __init__(self):
        self.copied = 0

    def generate(self, number, **options):
        return np.concatenate([TRAINING[: self.copied], NEW[: number - self.copied]])


def test_the_warning_comes_at_a_tenth_and_at_each_doubling():
    watcher = Memorization(tf.data.Dataset.from_tensor_slices(TRAINING).batch(50), 40)
    model = Copier()
    watcher.set_model(model)
    said = {}
    for copied in (0, 3, 4, 6, 8, 9, 40):
        model.copied, logs = copied, {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watcher.on_epoch_end(0, logs)
        said[copied] = [str(each.message) for each in caught if "copies" in str(each.message)]
        assert logs == {"val_memorization": copied / 40}
    assert [copied for copied in said if said[copied]] == [4, 8, 40]
    assert "10 % of 40 generated images are copies of training images" in said[4][0]


def config_of(data, **changes):
    settings = {
        "data": str(data),
        "image_size": 8,
        "channels": 1,
        "model": {"widths": [16, 32], "block_depth": 1, "patch_size": 1, "ema_decay": 0.98},
        "training": {"batch_size": 16},
        "precision": "float32",
        "samples": 0,
        "tensorboard": False,
        "kid": None,
        "ema_snapshots": 0,
        "memorization": 32,
    }
    return RunConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    draws = np.random.default_rng(0)
    for index in range(6):
        image = draws.integers(0, 2, (4, 4)).repeat(2, axis=0).repeat(2, axis=1)
        PIL.Image.fromarray((200 * image + 20).astype("uint8")).save(folder / f"{index}.png")
    return folder


def logged(folder):
    header, *rows = [line.split(",") for line in (folder / "log.csv").read_text().split()]
    return [float(row[header.index("val_memorization")]) for row in rows]


@pytest.mark.slow
def test_a_run_that_learns_a_tiny_set_by_heart_is_warned_of(few_images, tmp_path):
    config = config_of(few_images, split=0.0, steps=600, validate_every=300)
    with pytest.warns(UserWarning, match="copies of training images, after epoch"):
        runs.train(config, tmp_path / "run", verbose=0)
    assert logged(tmp_path / "run")[-1] > 0.5


@pytest.mark.slow
def test_a_healthy_run_is_not_warned_of(tmp_path):
    config = config_of("embedded", steps=300, validate_every=150)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*copies of training images.*")
        runs.train(config, tmp_path / "run", verbose=0)
    assert max(logged(tmp_path / "run")) < 0.1


@pytest.mark.slow
def test_no_copies_are_looked_for_where_it_is_costly_or_not_asked_for(few_images, monkeypatch):
    from ddim_keras.runs import training

    class Large:
        def cardinality(self):
            return 10_000_000

    config, model = config_of(few_images), make_small_model()
    recipe = config.recipe()
    few = tf.data.Dataset.from_tensor_slices(TRAINING).batch(16)

    def asked(config, data):
        return training._copies_are_looked_for(
            training._Training(config, recipe, None, model, data, None, print)
        )

    assert asked(config, few)
    assert not asked(config, Large())
    assert not asked(config_of(few_images, memorization=0), few)
    assert not asked(config_of(few_images, task="colorization", channels=3), few)


@pytest.mark.slow
def test_the_command_line_says_the_score_and_draws_the_pairs(few_images, tmp_path):
    from click.testing import CliRunner

    from ddim_keras.cli import main

    config = config_of(few_images, split=0.4, steps=2, memorization=2)
    runs.train(config, tmp_path / "run", verbose=0)
    pairs = tmp_path / "pairs.png"
    arguments = ["evaluate", "-m", str(tmp_path / "run"), "-n", "4", "--steps", "2"]
    chosen = ["--metric", "memorization", "--features", "fashion_mnist", "--pairs", str(pairs)]
    result = CliRunner().invoke(main, arguments + chosen)
    assert result.exit_code == 0, result.output
    assert "memorization: " in result.output and pairs.read_bytes().startswith(b"\x89PNG")


def test_the_metric_is_public():
    assert metrics.nearest_training_images is nearest_training_images
