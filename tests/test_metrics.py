import keras
import numpy as np
import pytest
import scipy.linalg
from conftest import (
    first_quick,
    folder_of_cifar10,
    make_small_model,
    random_images,
    run_python,
    slow_on_jax,
)
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

import ddim_keras
from ddim_keras import metrics
from ddim_keras.metrics.extractors import resized
from ddim_keras.support import backend, random


def features_of(number, dims=6, seed=0, shift=0.0):
    """Correlated features that are not centred."""
    draws = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(dims, dims))
    return (draws.normal(size=(number, dims)) @ mixing + 2.0 + shift).astype("float32")


def small_extractor(seed=0, classes=None):
    """A Keras model with random weights: 8 x 8 x 1 images to 6 features, and class logits if asked
    for.
    """
    keras.utils.set_random_seed(seed)
    images = keras.Input((8, 8, 1))
    features = keras.layers.Dense(6, activation="relu")(keras.layers.Flatten()(images))
    outputs = features if classes is None else [features, keras.layers.Dense(classes)(features)]
    return keras.Model(images, outputs)


def two_sides(number=60):
    return random_images(number, seed=0), random_images(number, seed=1) ** 2


# The arithmetic, against independent implementations on the same features


def test_fid_is_that_of_a_general_matrix_square_root():
    real, generated = (
        features_of(200).astype("float64"),
        features_of(150, seed=2, shift=0.3).astype("float64"),
    )
    means = real.mean(0), generated.mean(0)
    covariances = np.cov(real.T), np.cov(generated.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(
        covariances[0] + covariances[1] - 2 * root
    )
    np.testing.assert_allclose(metrics.fid(real, generated), expected, rtol=1e-6)


def test_fid_of_singular_covariances_is_finite_and_warned_of():
    features = features_of(5)
    with pytest.warns(UserWarning, match="5 images with 6 features"):
        assert abs(metrics.fid(features, features)) < 1e-5


def test_fid_of_equal_features_is_zero_and_of_shifted_ones_the_squared_shift():
    features = features_of(100).astype("float64")
    np.testing.assert_allclose(metrics.fid(features, features), 0.0, atol=1e-8)
    np.testing.assert_allclose(metrics.fid(features, features + 0.5), 6 * 0.25, rtol=1e-9)


def test_kid_is_that_of_another_polynomial_kernel():
    real, generated = (
        features_of(80).astype("float64"),
        features_of(90, seed=2, shift=0.3).astype("float64"),
    )
    within = [polynomial_kernel(side, degree=3, coef0=1) for side in (real, generated)]
    between = polynomial_kernel(real, generated, degree=3, coef0=1)
    expected = sum(
        (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in within
    )
    expected -= 2 * between.mean()
    np.testing.assert_allclose(metrics.kid(real, generated, subsets=0).mean, expected, rtol=1e-6)


def test_kid_is_unbiased_where_fid_is_not():
    estimates = [
        (metrics.kid(a, b, subsets=0).mean, metrics.fid(a, b))
        for a, b in (
            (features_of(20, seed=2 * i), features_of(20, seed=2 * i + 1)) for i in range(200)
        )
    ]
    kids, fids = np.array(estimates).T
    assert abs(kids.mean()) < 3 * kids.std() / np.sqrt(len(kids))
    assert fids.mean() > 10 * fids.std() / np.sqrt(len(fids))


def test_kid_over_subsets_agrees_with_all_at_once_and_says_how_sure_it_is():
    real, generated = features_of(400), features_of(400, seed=2, shift=0.2)
    mean, deviation = metrics.kid(real, generated, subsets=200, subset_size=100)
    whole = metrics.kid(real, generated, subsets=0).mean
    assert abs(mean - whole) < 4 * deviation / np.sqrt(200)
    assert 0 < deviation
    assert metrics.kid(real, generated, subsets=200, subset_size=100) == (mean, deviation)


def test_kid_of_few_images_is_warned_of():
    with pytest.warns(UserWarning, match="KID of 30 images in subsets of 1000"):
        metrics.kid(features_of(30), features_of(40, seed=1))


def test_inception_score_by_hand():
    draws = np.random.default_rng(0)
    probabilities = draws.dirichlet(np.ones(4), size=60)
    scores = []
    for part in np.split(probabilities, 3):
        divergences = [np.sum(row * (np.log(row) - np.log(part.mean(0)))) for row in part]
        scores.append(np.exp(np.mean(divergences)))
    result = metrics.inception_score(probabilities, splits=3)
    np.testing.assert_allclose(result, (np.mean(scores), np.std(scores)), rtol=1e-9)


def test_inception_score_refuses_logits():
    with pytest.raises(ValueError, match="softmax"):
        metrics.inception_score(features_of(40), splits=2)


def balls(features, neighbours):
    tree = NearestNeighbors(n_neighbors=neighbours + 1, algorithm="brute").fit(features)
    return tree.kneighbors(features)[0][:, -1]


def within(points, centres, radii):
    return np.linalg.norm(points[:, None] - centres[None], axis=-1) <= radii


def test_precision_recall_density_and_coverage_are_those_of_another_neighbour_search():
    real, generated = (
        features_of(90).astype("float64"),
        features_of(70, seed=2, shift=0.5).astype("float64"),
    )
    expected = (
        within(generated, real, balls(real, 3)).any(1).mean(),
        within(real, generated, balls(generated, 3)).any(1).mean(),
    )
    np.testing.assert_allclose(metrics.precision_recall(real, generated), expected, rtol=1e-12)
    inside = within(generated, real, balls(real, 5))
    expected = inside.sum() / (5 * 70), inside.any(0).mean()
    np.testing.assert_allclose(metrics.density_coverage(real, generated), expected, rtol=1e-12)


def test_neighbours_do_not_depend_on_the_blocks(monkeypatch):
    real, generated = features_of(90), features_of(70, seed=2)
    whole = metrics.precision_recall(real, generated), metrics.density_coverage(real, generated)
    monkeypatch.setattr("ddim_keras.metrics.manifolds._BLOCK", 7)
    assert (
        metrics.precision_recall(real, generated),
        metrics.density_coverage(real, generated),
    ) == whole


def test_collapse_costs_recall_and_blur_costs_precision():
    real = features_of(300)
    collapsed = real[:3].repeat(100, axis=0) + 0.01 * features_of(300, seed=3)
    scattered = real + 20.0 * np.random.default_rng(0).normal(size=real.shape)
    assert metrics.precision_recall(real, collapsed).recall < 0.1
    assert metrics.precision_recall(real, scattered).precision < 0.1
    assert metrics.density_coverage(real, collapsed).coverage < 0.2


def test_figures_agree_with_torch_fidelity():
    """With what torch-fidelity 0.4.0 gave on the same features; in float64, as it averages in the
    features' own precision.
    """
    real, generated = (
        features_of(300).astype("float64"),
        features_of(300, seed=2, shift=0.3).astype("float64"),
    )
    np.testing.assert_allclose(metrics.fid(real, generated), 0.7985739163318968, rtol=1e-6)
    np.testing.assert_allclose(
        metrics.kid(real, generated, subsets=0).mean, 32.816024956398905, rtol=1e-6
    )
    probabilities = np.exp(real) / np.exp(real).sum(axis=1, keepdims=True)
    score = metrics.inception_score(probabilities, splits=5)
    np.testing.assert_allclose(score, (2.0026981112413047, 0.10021864861040204), rtol=1e-6)
    np.testing.assert_allclose(
        metrics.precision_recall(real, generated, neighbours=3), (0.90333331, 0.92666668), rtol=1e-6
    )


@pytest.mark.parametrize(
    "function", [metrics.fid, metrics.kid, metrics.precision_recall, metrics.density_coverage]
)
def test_bad_features_are_refused(function):
    good = features_of(20)
    with pytest.raises(
        ValueError, match=r"generated features must have shape \(images, 6\), got \(20, 5\)"
    ):
        function(good, good[:, :5])
    with pytest.raises(ValueError, match="generated features must be finite"):
        function(good, np.where(good > 3, np.nan, good))
    with pytest.raises(ValueError, match="at least"):
        function(good[:1], good)
    with pytest.raises(ValueError, match="features already"):
        function(good, good, comparable=True)
    with pytest.raises(ValueError, match="must be features"):
        function(good, np.zeros((3, 4, 5)))


# Streaming

METRICS = {
    "fid": lambda **options: metrics.FID(small_extractor(), **options),
    "kid": lambda **options: metrics.KID(small_extractor(), subsets=0, **options),
    "inception_score": lambda **options: metrics.InceptionScore(
        small_extractor(classes=4), splits=3, **options
    ),
    "precision_recall": lambda **options: metrics.PrecisionRecall(small_extractor(), **options),
    "density_coverage": lambda **options: metrics.DensityCoverage(small_extractor(), **options),
}


def flat(result):
    return list(result.values()) if isinstance(result, dict) else [result]


def fill(metric, real, generated, batch_size):
    for start in range(0, len(real), batch_size):
        metric.update_state(real[start : start + batch_size], generated[start : start + batch_size])
    return flat(metric.result())


@slow_on_jax
@pytest.mark.parametrize("name", first_quick(METRICS))
def test_metrics_do_not_depend_on_the_batches(name):
    real, generated = two_sides()
    expected = fill(METRICS[name](), real, generated, 60)
    for batch_size in (1, 7, 32):
        np.testing.assert_allclose(
            fill(METRICS[name](), real, generated, batch_size), expected, rtol=1e-5
        )


@slow_on_jax
@pytest.mark.parametrize("name", ["fid", "kid", "precision_recall", "density_coverage"])
def test_metrics_agree_with_their_functions(name):
    real, generated = two_sides()
    extractor = small_extractor()
    features = [keras.ops.convert_to_numpy(extractor(side)) for side in (real, generated)]
    options = {"subsets": 0} if name == "kid" else {}
    expected = getattr(metrics, name)(*features, **options)
    expected = [expected.mean] if name == "kid" else list(np.atleast_1d(expected))
    np.testing.assert_allclose(fill(METRICS[name](), real, generated, 16), expected, rtol=1e-5)
    from_images = getattr(metrics, name)(real, generated, extractor, **options)
    from_images = [from_images.mean] if name == "kid" else list(np.atleast_1d(from_images))
    np.testing.assert_allclose(from_images, expected, rtol=1e-5)


@slow_on_jax
@pytest.mark.parametrize("name", first_quick(METRICS, 2))
def test_states_merge(name):
    """Sums merge to the same figure, samples to all of the images."""
    real, generated = two_sides()
    one, other = METRICS[name](), METRICS[name]()
    fill(one, real[:30], generated[:30], 8)
    fill(other, real[30:], generated[30:], 8)
    one.merge_state([other])
    np.testing.assert_allclose(
        flat(one.result()), fill(METRICS[name](), real, generated, 60), rtol=1e-5
    )
    one.reset_state()
    with pytest.raises(ValueError, match="needs at least"):
        one.result()


def test_sums_keep_more_digits_than_float32():
    """100,000 images of nearly equal features: plain float32 sums would lose the covariance."""
    metric = metrics.FID(small_extractor())
    features = 100.0 + features_of(100_000)
    for start in range(0, len(features), 1000):
        batch = features[start : start + 1000]
        metric.update_features(batch, batch + 1.0)
    np.testing.assert_allclose(metric.result(), 6.0, rtol=1e-3)


@slow_on_jax
def test_a_sample_is_fair_and_the_same_whatever_the_batches():
    features = np.repeat(np.arange(4000.0)[:, None], 6, axis=1)
    kept = []
    for batch_size in (100, 333):
        metric = metrics.KID(small_extractor(), capacity=500)
        for start in range(0, len(features), batch_size):
            metric.update_features(real=features[start : start + batch_size])
        count, sample = metric._real.values()
        assert (count, len(sample)) == (4000, 500)
        kept.append(sample[:, 0])
    np.testing.assert_array_equal(*kept)
    assert len(set(kept[0])) == 500
    assert abs(kept[0].mean() - 1999.5) < 4 * 4000 / np.sqrt(12 * 500)


@pytest.mark.slow
@pytest.mark.skipif(
    backend.BACKEND != "tensorflow", reason="only TensorFlow copies the model to replicas"
)
def test_states_merge_across_replicas():
    printed = run_python(
        """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
devices = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
from ddim_keras import metrics
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
features = np.random.default_rng(0).normal(size=(400, 128)).astype("float32")
def values(make):
    with strategy.scope():
        metric = make()
    halves = strategy.experimental_distribute_values_from_function(
        lambda context: features[context.replica_id_in_sync_group::2])
    strategy.run(tf.function(lambda part: metric.update_features(part, part + 0.5)), args=(halves,))
    alone = make()
    alone.update_features(features, features + 0.5)
    return metric.result(), alone.result()
print(*values(lambda: metrics.FID("fashion_mnist")))
print(*values(lambda: metrics.KID("fashion_mnist", subsets=0, capacity=400)))
"""
    )
    for line in printed.strip().splitlines():
        several, alone = map(float, line.split())
        np.testing.assert_allclose(several, alone, rtol=1e-4)


@pytest.mark.parametrize("name", METRICS)
def test_bytes_score_as_floats_do(name):
    real, generated = ((255 * side).astype("uint8") for side in two_sides())
    as_floats = fill(METRICS[name](), real / np.float32(255), generated / np.float32(255), 60)
    np.testing.assert_allclose(fill(METRICS[name](), real, generated, 60), as_floats, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, 255.0, -1.0])
def test_images_out_of_range_or_not_finite_are_refused(bad):
    real, generated = two_sides(8)
    generated[3, 0, 0] = bad
    with pytest.raises(ValueError, match="generated images (are out of range|contain NaN)"):
        metrics.fid(real, generated, small_extractor())


@pytest.mark.parametrize(
    ("side", "advice"),
    [
        ("real", "real images contain NaN or infinity: remove or repair those images$"),
        ("generated", "generated images contain NaN or infinity: what made them has diverged"),
    ],
)
def test_what_is_not_finite_is_repaired_where_it_is_broken(side, advice):
    real, generated = two_sides(8)
    {"real": real, "generated": generated}[side][3] = np.inf
    with pytest.raises(ValueError, match=advice):
        metrics.fid(real, generated, small_extractor())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_model_is_not_scored(value):
    model = make_small_model()
    model.normalizer.adapt(random_images())
    kernel = model.ema_network.weights[0]
    kernel.assign(np.full(kernel.shape, value))
    with pytest.raises(FloatingPointError, match="hold NaN or infinity: the training has diverged"):
        model.score(iter([]), 4, 2, metrics=["kid"], extractor=small_extractor())


def test_a_diverged_model_logs_nan_instead_of_failing():
    for name in ("fid", "kid", "precision_recall", "density_coverage"):
        metric = METRICS[name]()
        real, generated = features_of(20), features_of(20, seed=1)
        metric.update_features(real, np.where(np.arange(20)[:, None] == 4, np.nan, generated))
        assert np.isnan(flat(metric.result())).all()


@slow_on_jax
def test_the_sample_does_not_depend_on_what_the_images_are_made_of():
    """Noises and samples of one seed come from one generator; their counters must never meet."""
    metric = metrics.KID(small_extractor(), capacity=200, seed=0)
    noises = np.asarray(random.normal(0, 0, np.arange(2000), (1, 1, 6))).reshape(2000, 6)
    metric.update_features(real=noises)
    kept = metric._real.values()[1]
    assert 0.7 < kept[:, 0].std() < 1.3


def test_kid_of_all_images_has_no_deviation_over_subsets():
    real, generated = features_of(100), features_of(100, seed=2)
    result = metrics.kid(real, generated, subset_size=100)
    assert result.mean == metrics.kid(real, generated, subsets=0).mean
    assert np.isnan(result.standard_deviation)


def test_metrics_of_one_name_are_refused():
    twice = [metrics.KID(small_extractor()), metrics.KID(small_extractor(), subsets=3)]
    with pytest.raises(ValueError, match="2 metrics are named 'kid'"):
        make_small_model().compile(metrics=twice)
    with pytest.raises(ValueError, match="2 metrics are named 'kid'"):
        make_small_model().score(random_images(8), 8, 2, metrics=twice)


def test_a_name_of_its_own_leads_the_figures():
    metric = metrics.PrecisionRecall(small_extractor(), name="strict", neighbours=1)
    metric.update_features(features_of(9), features_of(9, seed=1))
    assert list(metric.result()) == ["strict_precision", "strict_recall"]


@slow_on_jax
@pytest.mark.parametrize("name", METRICS)
def test_images_of_weight_zero_are_left_out_and_other_weights_are_refused(name):
    real, generated = two_sides(12)
    which = np.arange(12) % 3 > 0
    weighted, chosen = METRICS[name](), METRICS[name]()
    weighted.update_state(real, generated, sample_weight=which.astype("float32"))
    chosen.update_state(real[which], generated[which])
    found, expected = (
        figure if isinstance(figure, dict) else {name: figure}
        for figure in (weighted.result(), chosen.result())
    )
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for wrong in (np.full(12, 0.5), [2.0] * 12, np.full(12, -1.0)):
        with pytest.raises(
            ValueError, match="all images alike: sample_weight must be None, or hold 0 and 1 alone"
        ):
            METRICS[name]().update_state(real, generated, sample_weight=wrong)


# In training


@slow_on_jax
@pytest.mark.parametrize("name", first_quick(METRICS))
def test_validation_logs_the_metric(name):
    model = make_small_model()
    model.compile(metrics=[METRICS[name]()])
    images = random_images(16)
    history = model.fit(images, validation_data=images, batch_size=8, epochs=2, verbose=0).history
    named = {
        "precision_recall": ["precision", "recall"],
        "density_coverage": ["density", "coverage"],
    }.get(name, [name])
    for figure in named:
        assert len(history[f"val_{figure}"]) == 2
        assert np.isfinite(history[f"val_{figure}"]).all()
    evaluated = model.evaluate(images, batch_size=5, verbose=0, return_dict=True)
    for figure in named:
        np.testing.assert_allclose(evaluated[figure], history[f"val_{figure}"][-1], rtol=1e-3)


@keras.saving.register_keras_serializable("ddim_keras_tests")
class Seen(keras.metrics.Metric):
    """Adds up the images it is given."""

    def __init__(self, name="seen", **options):
        super().__init__(name=name, **options)
        self.sums = [
            self.add_variable((8, 8, 1), "zeros", name=side) for side in ("real", "generated")
        ]

    def update_state(self, real, generated, sample_weight=None):
        for total, images in zip(self.sums, (real, generated)):
            total.assign(total + keras.ops.sum(images, axis=0))

    def result(self):
        return keras.ops.sum(self.sums[1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16"])
def test_validation_compares_the_images_as_given_with_generated_ones(dtype):
    model = make_small_model(seed=3, dtype=dtype)
    metric = Seen()
    model.compile(metrics=[metric], metric_diffusion_steps=4)
    images = random_images(10)
    model.normalizer.adapt(images)
    model.evaluate((255 * images).astype("uint8"), batch_size=4, verbose=0)
    np.testing.assert_allclose(metric.sums[0], np.floor(255 * images).sum(0) / 255, rtol=1e-5)
    generated = np.asarray(metric.sums[1]) / 10
    assert generated.min() >= 0.0 and generated.max() <= 1.0
    assert generated.std() > 0.01


@pytest.mark.slow
def test_the_best_epoch_by_kid_is_kept(tmp_path):
    model = make_small_model()
    model.compile(metrics=[metrics.KID(small_extractor(), subsets=0)])
    images = random_images(16)
    path = str(tmp_path / "best.weights.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(
        path, monitor="val_kid", mode="min", save_best_only=True, save_weights_only=True
    )
    history = model.fit(
        images, validation_data=images, epochs=3, verbose=0, callbacks=[checkpoint]
    ).history
    model.load_weights(path)
    kid = model.evaluate(images, verbose=0, return_dict=True)["kid"]
    np.testing.assert_allclose(kid, min(history["val_kid"]), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_saved_model_keeps_its_metrics_and_their_extractor(tmp_path):
    model = make_small_model()
    model.compile(
        metrics=[metrics.FID(small_extractor(seed=3)), metrics.KID("fashion_mnist", subsets=5)]
    )
    images = random_images(16)
    model.fit(images, verbose=0)
    with pytest.warns(UserWarning):
        expected = model.evaluate(images, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    with pytest.warns(UserWarning):
        found = reloaded.evaluate(images, verbose=0, return_dict=True)
    assert list(found) == ["n_loss", "i_loss", "fid", "kid", "loss"]
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4, atol=1e-6)
    assert (tmp_path / "model.keras").stat().st_size < 2e6


@pytest.mark.slow
def test_weights_of_before_a_metric_was_compiled_still_load(tmp_path):
    model = make_small_model()
    model.save_weights(tmp_path / "before.weights.h5")
    model.compile(metrics=[metrics.FID(small_extractor())])
    model.load_weights(tmp_path / "before.weights.h5")


@slow_on_jax
def test_a_model_loads_where_its_metrics_extractor_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.InceptionV3Extractor, "__init__", lambda self: None)
    model = make_small_model()
    model.compile(
        metrics=[metrics.FID(metrics.InceptionV3Extractor()), metrics.KID("fashion_mnist")]
    )
    monkeypatch.setattr(metrics.InceptionV3Extractor, "get_config", lambda self: {})
    model.save(tmp_path / "model.keras")

    def fail(self):
        raise ConnectionError("no network")

    monkeypatch.setattr(metrics.InceptionV3Extractor, "__init__", fail)
    with pytest.warns(UserWarning, match="the metric 'fid' was left out: no network"):
        again = keras.models.load_model(tmp_path / "model.keras")
    assert [metric.name for metric in again.image_metrics] == ["kid"]


# Extractors


def test_images_of_other_sizes_are_resized_as_tensorflow_does_and_under_xla():
    images = random_images(3, (20, 12, 3))
    for size in ((8, 8), (30, 12)):
        found = backend.compile_function(lambda images, size=size: resized(images, size), [], True)(
            [], images
        )
        expected = keras.ops.image.resize(images, size, antialias=True, data_format="channels_last")
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_users_model_stays_trainable():
    model = small_extractor()
    metrics.FID(model)
    assert model.trainable_weights


@pytest.mark.slow
def test_the_fashion_mnist_extractor_tells_clothes_apart():
    """Over 92 % of all 10,000 test images at training; here of the 1,000 that ship, at both sizes
    they come in.
    """
    extractor = metrics.get_extractor("fashion_mnist")
    for size in (28, 32):
        _, validation = ddim_keras.data.load_dataset("embedded", size, 500, labels=True)
        right = [
            np.argmax(extractor.probabilities(images.numpy()), axis=1) == labels
            for images, labels in validation
        ]
        assert np.mean(right) > 0.91
    colours = np.repeat(random_images(2, seed=0), 3, axis=-1)
    assert extractor.features(colours).shape == (2, 128)


@pytest.mark.slow
def test_the_cifar10_extractor_tells_photos_apart():
    """90.2 % of all 10,000 test images; here of some of them, where they are."""
    _, test = ddim_keras.data.load_dataset(
        "cifar10", 32, 500, labels=True, data_dir=folder_of_cifar10(), download=False
    )
    extractor = metrics.get_extractor("cifar10")
    right = [
        np.argmax(extractor.probabilities(images.numpy()), axis=1) == labels
        for images, labels in test.take(4)
    ]
    assert np.mean(right) > 0.88
    assert extractor.features(random_images(2, seed=0)).shape == (2, 176)


def test_metrics_given_a_name_share_one_extractor():
    assert metrics.FID("fashion_mnist").extractor is metrics.KID("fashion_mnist").extractor


@pytest.mark.slow
def test_inception_from_a_file(tmp_path):
    keras.utils.set_random_seed(0)
    whole = keras.applications.InceptionV3(weights=None)
    whole.save_weights(tmp_path / "inception.weights.h5")
    extractor = metrics.InceptionV3Extractor(weights=str(tmp_path / "inception.weights.h5"))
    images = random_images(2, seed=0)
    assert extractor.features(images).shape == (2, 2048)
    np.testing.assert_allclose(np.sum(extractor.probabilities(images), axis=1), 1.0, rtol=1e-5)
    body = keras.Model(whole.input, whole.layers[-2].output)
    large = metrics.InceptionV3Extractor(299, extractor.weights)
    prepared = keras.ops.image.resize(np.repeat(images, 3, axis=-1), (299, 299)) * 2.0 - 1.0
    np.testing.assert_allclose(large.features(images), body(prepared), rtol=1e-3, atol=1e-5)


def test_inception_that_cannot_be_had_says_what_to_do(monkeypatch):
    def fail(*arguments, **options):
        raise Exception("URL fetch failure: no address")

    monkeypatch.setattr(keras.applications, "InceptionV3", fail)
    with pytest.raises(
        ConnectionError, match="extractor='cifar10', or 'fashion_mnist' for clothes"
    ):
        metrics.InceptionV3Extractor()
    with pytest.raises(FileNotFoundError, match="no weights of InceptionV3 at /nowhere"):
        metrics.InceptionV3Extractor(weights="/nowhere")
    with pytest.raises(ValueError, match="at least 75"):
        metrics.InceptionV3Extractor(image_size=32)


def test_the_extractor_of_papers_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"ddim_keras\[fidelity\]"):
        metrics.fid(*two_sides(4), comparable=True)
    with pytest.raises(ValueError, match="leave out 'fashion_mnist'"):
        metrics.fid(*two_sides(4), "fashion_mnist", comparable=True)


def test_an_extractor_without_pooling_is_refused():
    images = keras.Input((8, 8, 1))
    with pytest.raises(ValueError, match="pooling"):
        metrics.FID(keras.Model(images, keras.layers.Conv2D(2, 3)(images)))
    with pytest.raises(ValueError, match="class probabilities"):
        metrics.InceptionScore(small_extractor())
    with pytest.raises(ValueError, match="unknown extractor 'vgg'"):
        metrics.FID("vgg")


# score


@slow_on_jax
def test_score_reports_what_the_functions_do():
    model = make_small_model()
    real = random_images(40)
    model.normalizer.adapt(real)
    extractor = small_extractor()
    names = ["fid", "kid", "precision_recall", "density_coverage"]
    with pytest.warns(UserWarning, match="KID of 30"):
        scores = model.score(real, 30, 3, metrics=names, extractor=extractor, seed=5, batch_size=16)
    generated = model.generate(30, 3, seed=5)
    assert list(scores) == [
        "fid",
        "kid",
        "kid_standard_deviation",
        "precision",
        "recall",
        "density",
        "coverage",
    ]
    np.testing.assert_allclose(scores["fid"], metrics.fid(real, generated, extractor), rtol=1e-3)
    expected = metrics.precision_recall(real, generated, extractor)
    np.testing.assert_allclose((scores["precision"], scores["recall"]), expected, atol=0.06)


@slow_on_jax
def test_score_of_each_class():
    model = make_small_model()
    real = random_images(40)
    labels = np.arange(40) % 4
    real[labels == 3] = (
        1.0 - 0.01 * real[labels == 3]
    )  # a class that the untrained model cannot draw
    model.normalizer.adapt(real)
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((real, labels)).batch(16)
    dataset.class_names = ["shirt", "shoe", "bag", "white"]
    extractor = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    scores = model.score(dataset, 30, 3, metrics=[], extractor=extractor, per_class=True)[
        "per_class"
    ]
    assert list(scores) == ["shirt", "shoe", "bag", "white"]
    assert scores["white"]["coverage"] == 0.0
    assert scores["white"]["generated_share"] == 0.0
    np.testing.assert_allclose(sum(figures["generated_share"] for figures in scores.values()), 1.0)
    assert all(figures["real_share"] == 0.25 for figures in scores.values())
    of_arrays = model.score((real, labels), 30, 3, metrics=[], extractor=extractor, per_class=True)[
        "per_class"
    ]
    assert list(of_arrays) == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="per_class needs labels"):
        model.score(real, 30, 3, metrics=[], extractor=extractor, per_class=True)


def test_score_refuses_what_it_cannot_do():
    model = make_small_model()
    with pytest.raises(ValueError, match="unknown metric 'is'"):
        model.score(random_images(8), 8, 2, metrics=["is"], extractor=small_extractor())
    with pytest.raises(ValueError, match="never end"):
        import tensorflow as tf

        endless = tf.data.Dataset.from_tensor_slices(random_images(8)).batch(4).repeat()
        model.score(endless, 8, 2, extractor=small_extractor())
    with pytest.raises(ValueError, match="cannot take initial_noise"):
        model.score(random_images(8), 8, 2, initial_noise=np.zeros((8, 8, 8, 1)))


@pytest.mark.slow
def test_images_of_a_seed_go_on_where_others_stopped():
    model = make_small_model()
    model.normalizer.adapt(random_images(8))
    whole = model.generate(6, 3, seed=2, eta=1.0)
    parts = [model.generate(3, 3, seed=2, eta=1.0, first_image=start) for start in (0, 3)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    with pytest.raises(ValueError, match="first_image"):
        model.generate(1, 2, first_image=-1)
