import sys
import warnings

import keras
import numpy as np
import pytest
from conftest import (
    SLOW_CASE_ON_JAX,
    crossed,
    first_quick,
    make_small_model,
    make_trained_model,
    random_images,
    slow_on_jax,
)
from keras import ops

import ddim_keras
from ddim_keras.parameterizations import PARAMETERIZATIONS
from ddim_keras.weightings import WEIGHTINGS


def compiled(model, **arguments):
    model.compile(
        **{"optimizer": keras.optimizers.AdamW(1e-2), "loss": "mean_absolute_error", **arguments}
    )
    return model


def weights_of(model):
    return [ops.convert_to_numpy(weight) for weight in model.network.weights]


def test_training_lowers_the_loss():
    """Smooth images can be told from noise: predicting 0, as the untrained network does, costs
    0.8.
    """
    grid = np.linspace(0, 1, 8, dtype="float32")
    images = np.stack([np.outer(grid**power, grid) for power in np.linspace(0.2, 3, 64)])[..., None]
    model = compiled(make_small_model())
    history = model.fit(images, batch_size=16, epochs=30, verbose=0).history
    assert history["n_loss"][0] > 0.7
    assert history["n_loss"][-1] < 0.5


@pytest.mark.parametrize(("parameterization", "weighting"), crossed(PARAMETERIZATIONS, WEIGHTINGS))
def test_the_loss_is_the_weighted_error_of_the_prediction(parameterization, weighting):
    """An untrained network predicts 0, so the loss is the weighted mean of the target's absolute
    value.
    """
    model = compiled(make_small_model(parameterization=parameterization, loss_weighting=weighting))
    images = random_images(400)
    model.normalizer.adapt(images)
    loss = float(model.training_loss(images))

    random = np.random.default_rng(0)
    normalized = ops.convert_to_numpy(model.normalizer(images))
    noises = random.normal(size=images.shape)
    rates = model.schedule((np.arange(400).reshape(-1, 1, 1, 1) + random.uniform()) / 400)
    target = model.parameterization.target(normalized, noises, *rates)
    weights = ops.convert_to_numpy(model.loss_weighting(*rates, model.parameterization))
    assert loss == pytest.approx((weights * np.abs(target)).mean(), rel=0.06)


def test_ema_after_k_steps_is_the_average_worked_out_by_hand():
    model = compiled(make_small_model(ema_decay=0.5))
    average = weights_of(model)
    np.testing.assert_array_equal(
        np.concatenate([w.ravel() for w in average]), flat(model.ema_network)
    )
    images = random_images(8)
    model.normalizer.adapt(images)
    for step in range(1, 13):  # the warm-up ends when (1 + n) / (10 + n) exceeds 0.5, at n = 8
        model.fit(images, batch_size=8, verbose=0)
        decay = min(0.5, (1 + step) / (10 + step))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights_of(model))]
    np.testing.assert_allclose(
        flat(model.ema_network), np.concatenate([w.ravel() for w in average]), rtol=2e-4, atol=1e-6
    )


def flat(network):
    return np.concatenate([ops.convert_to_numpy(weight).ravel() for weight in network.weights])


def test_ema_network_follows_the_normalisation_statistics(trained_model):
    statistics = [weight for weight in trained_model.ema_network.weights if "moving" in weight.path]
    assert statistics
    assert all(
        np.any(ops.convert_to_numpy(weight) != initial)
        for weight in statistics
        for initial in (0.0, 1.0)
    )


def test_ema_weights_are_not_trained(trained_model):
    assert {id(v) for v in trained_model.trainable_variables} == {
        id(v) for v in trained_model.network.trainable_variables
    }


def test_diffusion_times_are_stratified_over_the_batch():
    model = make_small_model()
    for _ in range(3):
        times = np.sort(ops.convert_to_numpy(model._stratified_uniform(10)).ravel())
        np.testing.assert_array_equal(np.floor(times * 10), np.arange(10))


@pytest.mark.slow
def test_two_runs_with_the_same_seeds_are_identical():
    def run():
        keras.utils.set_random_seed(5)
        return flat(make_trained_model(seed=5).ema_network)

    np.testing.assert_array_equal(run(), run())


def batches_of(images, size):
    for start in range(0, len(images), size):
        yield images[start : start + size]


class Batches(keras.utils.PyDataset):
    def __init__(self, images, labels=False):
        super().__init__()
        self.images, self.labels = images, labels

    def __len__(self):
        return 3

    def __getitem__(self, index):
        images = self.images[index * 8 : index * 8 + 8]
        return (images, np.zeros(len(images))) if self.labels else images


def data_forms():
    import tensorflow as tf

    images = random_images(20)  # the last batch of 8 is smaller
    labels = np.arange(20)
    return {
        "array": images,
        "uint8": (images * 255).astype("uint8"),
        "dataset": tf.data.Dataset.from_tensor_slices(images).batch(8),
        "dataset with labels": tf.data.Dataset.from_tensor_slices((images, labels)).batch(8),
        "PyDataset": Batches(images),
        "PyDataset with labels": Batches(images, labels=True),
    }


@slow_on_jax
@pytest.mark.parametrize(
    "form",
    [
        "uint8",
        "dataset with labels",
        *(
            pytest.param(form, marks=pytest.mark.slow)
            for form in ("array", "dataset", "PyDataset", "PyDataset with labels")
        ),
    ],
)
def test_fit_takes_every_form_of_data_and_adapts_the_normalizer(form, capfd):
    model = compiled(make_small_model())
    history = model.fit(
        data_forms()[form], batch_size=8 if form in ("array", "uint8") else None, verbose=2
    )
    assert np.isfinite(history.history["n_loss"][0])
    assert int(model.ema_updates) == 3
    assert float(model.normalizer.count) == 20 * 64
    assert capfd.readouterr().out.count("Adapting the normalizer") == 1


def test_fit_takes_labels_beside_an_array_and_validation_data():
    images = random_images(16)
    model = compiled(make_small_model())
    history = model.fit(
        images, np.arange(16), batch_size=8, validation_data=(images[:5], np.arange(5)), verbose=0
    ).history
    assert set(history) == {"n_loss", "i_loss", "loss", "val_n_loss", "val_i_loss", "val_loss"}


def test_fit_takes_a_generator_once_the_normalizer_is_adapted():
    model = compiled(make_small_model())
    model.normalizer.adapt(random_images())
    model.fit(batches_of(random_images(), 8), verbose=0)
    assert int(model.ema_updates) == 3


def test_evaluate_gives_the_same_figures_again_and_for_any_batch_size(trained_model):
    images = random_images(21, seed=4)
    first = trained_model.evaluate(images, batch_size=21, verbose=0)
    trained_model.generate(1, 2)
    np.testing.assert_allclose(
        trained_model.evaluate(images, batch_size=4, verbose=0), first, rtol=1e-5
    )
    assert trained_model.metrics_names == ["n_loss", "i_loss", "loss"]


def test_evaluate_measures_the_ema_network():
    model = make_trained_model()
    before = model.evaluate(random_images(), verbose=0)
    model.network.set_weights([np.zeros_like(weight) for weight in model.network.get_weights()])
    np.testing.assert_array_equal(model.evaluate(random_images(), verbose=0), before)


def mean_difference(real_images, generated_images):
    return ops.mean(ops.abs(real_images - generated_images), axis=(1, 2, 3))


@pytest.mark.slow
def test_compiled_metrics_compare_real_and_generated_images():
    model = compiled(make_small_model(), metrics=[mean_difference], metric_diffusion_steps=3)
    images = random_images()
    history = model.fit(images, batch_size=8, validation_data=images[:12], verbose=0).history
    assert "mean_difference" not in history
    assert 0.0 < history["val_mean_difference"][0] < 1.0
    dictionary = model.evaluate(images, verbose=0, return_dict=True)
    assert list(dictionary) == ["n_loss", "i_loss", "mean_difference", "loss"]


class SumOfPixels(keras.metrics.Mean):
    """Gives a figure to any images."""

    def update_state(self, real_images, generated_images, sample_weight=None):
        super().update_state(ops.where(ops.isnan(generated_images), 0.0, generated_images))


def diverged(value=np.nan, **changes):
    model = make_small_model(**changes)
    model.normalizer.adapt(random_images())
    for network in (model.network, model.ema_network):
        kernel = network.weights[-1]
        kernel.assign(np.full(kernel.shape, value))
    return model


@pytest.mark.parametrize("value", first_quick([np.nan, np.inf]))
def test_an_evaluation_of_diverged_weights_warns_and_gives_nan(value):
    model = compiled(diverged(value), metrics=[SumOfPixels("pixels")])
    with pytest.warns(UserWarning, match="the training has diverged. Load the best") as said:
        figures = model.evaluate(random_images(), verbose=0, return_dict=True)
    assert len([warning for warning in said if "diverged" in str(warning.message)]) == 1
    assert list(figures) == ["n_loss", "i_loss", "pixels", "loss"]
    assert not any(np.isfinite(figure) for figure in figures.values())
    assert np.isnan(figures["pixels"])


def test_a_validation_of_diverged_weights_warns_once():
    model = compiled(diverged())
    images = random_images()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        history = model.fit(images, epochs=3, validation_data=images, verbose=0).history
    assert np.isnan(history["val_loss"]).all() and len(history["val_loss"]) == 3
    texts = [str(warning.message) for warning in said]
    assert len([text for text in texts if "the training has diverged" in text]) == 1


@pytest.mark.slow
def test_losses_that_are_not_finite_though_the_weights_are_have_another_reason(shared):
    model = compiled(make_small_model(), loss=lambda true, predicted: ops.log(-ops.abs(predicted)))
    model.normalizer.adapt(random_images())
    with pytest.warns(UserWarning, match="weights and the images are finite: .* in float32"):
        model.evaluate(random_images(), verbose=0)
    model.normalizer.variance.assign([np.nan])
    with pytest.warns(UserWarning, match="the normalizer's mean or variance is NaN"):
        model.evaluate(random_images(), verbose=0)


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param("mse", marks=pytest.mark.slow),
        pytest.param(keras.losses.mean_absolute_error, marks=pytest.mark.slow),
        pytest.param(keras.losses.Huber(), marks=pytest.mark.slow),
        lambda true, predicted: ops.mean(true - predicted),
    ],
)
def test_any_keras_loss_will_do(loss):
    model = compiled(make_small_model(widths=[4]), loss=loss)
    assert np.isfinite(model.fit(random_images(), batch_size=8, verbose=0).history["n_loss"][0])


def test_steps_per_execution_takes_as_many_steps():
    model = compiled(make_small_model(widths=[4]), steps_per_execution=2)
    model.fit(random_images(32), batch_size=8, verbose=0)
    assert int(model.ema_updates) == int(model.optimizer.iterations) == 4


@slow_on_jax
def test_running_eagerly_takes_the_same_step():
    images = random_images(8)
    results = []
    for eager in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(make_small_model(), run_eagerly=eager)
        model.fit(images, batch_size=8, verbose=0)
        results.append(flat(model.network))
    np.testing.assert_allclose(*results, atol=2e-4)


@pytest.fixture
def keras_configuration():
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    yield keras.config
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize(
    ("floatx", "dtype"),
    [
        pytest.param("float16", None, marks=pytest.mark.slow),
        pytest.param("bfloat16", None, marks=pytest.mark.slow),
        pytest.param("float64", None, marks=pytest.mark.slow),
        pytest.param("float32", "float16", marks=pytest.mark.slow),
        pytest.param("float32", "bfloat16", marks=pytest.mark.slow),
        pytest.param("float32", "mixed_float16", marks=pytest.mark.slow),
        pytest.param("float32", "mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("float32", "float64", marks=pytest.mark.slow),
        pytest.param("float16", "mixed_float16", marks=pytest.mark.slow),
        pytest.param("bfloat16", "float32", marks=pytest.mark.slow),
    ],
)
def test_every_precision_trains_generates_and_loads(floatx, dtype, keras_configuration, tmp_path):
    keras_configuration.set_floatx(floatx)
    keras_configuration.set_dtype_policy(floatx)
    options = {"dtype": dtype, "attention_levels": [0], "parameterization": "velocity"}
    model = compiled(make_small_model(**options))
    assert model.compute_dtype == (dtype or floatx).removeprefix("mixed_")
    images = random_images(8)
    history = model.fit(images, batch_size=8, validation_data=images, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    made = model.generate(2, 2, seed=0)
    assert np.isfinite(made).all() and made.dtype == np.float32
    assert np.isfinite(model.encode(images[:2], 2)).all()
    model.save(tmp_path / "model.keras")
    again = ddim_keras.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.generate(2, 2, seed=0), made)
    model.save_weights(tmp_path / "model.weights.h5")
    again = compiled(make_small_model(**options))
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(again.generate(2, 2, seed=0), made)
    assert np.isfinite(again.fit(images, batch_size=8, verbose=0).history["loss"]).all()


def convolution_dtypes(model):
    return {
        layer.compute_dtype
        for layer in model.network.layers
        if isinstance(layer, keras.layers.Conv2D)
    }


@slow_on_jax
@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_mixed_precision_trains_with_float32_arithmetic_around_the_network(policy):
    model = compiled(make_small_model(dtype=policy))
    history = model.fit(random_images(), batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["n_loss"]).all()
    assert convolution_dtypes(model) == {
        policy.removeprefix("mixed_"),
        "float32",
    }  # the last one is float32
    assert all("float32" in str(weight.dtype) for weight in model.network.weights)
    assert (type(model.optimizer).__name__ == "LossScaleOptimizer") == (policy == "mixed_float16")
    noises, images = model.denoise(
        ops.zeros((1, 8, 8, 1)), ops.ones((1, 1, 1, 1)) * 0.6, ops.ones((1, 1, 1, 1)) * 0.8
    )
    assert "float32" in str(noises.dtype) and "float32" in str(images.dtype)
    assert model.generate(2, 3, seed=0).dtype == np.float32


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_the_logged_gradient_norm_is_that_of_the_step(policy, tmp_path):
    """Plain gradient descent at a rate of one moves the weights by the gradient; half precision
    scales the loss meanwhile.
    """
    model = compiled(
        make_small_model(dtype=policy), optimizer=keras.optimizers.SGD(1.0), gradient_norm=True
    )
    before = weights_of(model)
    history = model.fit(random_images(8), batch_size=8, verbose=0).history
    trained = {weight.path for weight in model.network.trainable_weights}
    moved = [
        np.sum((new - old) ** 2)
        for new, old, weight in zip(weights_of(model), before, model.network.weights)
        if weight.path in trained
    ]
    assert np.sqrt(sum(moved)) > 0.01
    assert history["gradient_norm"] == [pytest.approx(np.sqrt(sum(moved)), rel=1e-3)]
    assert set(model.evaluate(random_images(8), verbose=0, return_dict=True)) == {
        "n_loss",
        "i_loss",
        "loss",
    }
    model.save_weights(tmp_path / "a.weights.h5")
    other = compiled(make_small_model(dtype=policy), optimizer=keras.optimizers.SGD(1.0))
    other.load_weights(tmp_path / "a.weights.h5")
    other.save_weights(tmp_path / "b.weights.h5")
    model.load_weights(tmp_path / "b.weights.h5")


def test_global_policy_is_followed():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make_small_model()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.dtype_policy.name == "mixed_bfloat16" and "bfloat16" in convolution_dtypes(model)


@pytest.mark.parametrize(
    ("size", "channels"),
    [
        pytest.param((8, 12), 1, marks=pytest.mark.slow),
        pytest.param(8, 4, marks=pytest.mark.slow),
        pytest.param((4, 8), 6, marks=SLOW_CASE_ON_JAX),
    ],
)
def test_any_size_and_channel_count_trains_and_samples(size, channels):
    model = compiled(make_small_model(image_size=size, channels=channels))
    model.fit(random_images(8, model.image_shape), batch_size=8, verbose=0)
    assert model.generate(2, 2).shape == (2, *model.image_shape)


def test_a_network_of_ones_own():
    images, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    outputs = keras.layers.Conv2D(1, 3, padding="same")(images) * variances
    model = compiled(make_small_model(network=keras.Model([images, variances], outputs)))
    model.fit(random_images(), batch_size=8, verbose=0)
    assert model.count_params() < 60
    assert model.generate(2, 2).shape == (2, 8, 8, 1)


class Stop(keras.callbacks.Callback):
    """Ends a training after an epoch, as early stopping does."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def shown_progress(capsys, *others):
    model = compiled(make_small_model())
    callbacks = [ddim_keras.callbacks.TrainingProgress(), *others]
    model.fit(random_images(), batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
    return capsys.readouterr().out


def test_progress_bar_covers_the_whole_training(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    text = shown_progress(capsys)
    assert "6/6" in text and "n_loss" in text
    assert text.count("\n") == 1


@pytest.mark.slow
def test_progress_in_a_file_is_a_line_at_the_end_and_now_and_then(capsys, monkeypatch):
    text = shown_progress(capsys)
    assert text.startswith("6 of 6 steps, i_loss ") and text.count("\n") == 1
    assert "\b" not in text and "\r" not in text and "\x1b" not in text
    monkeypatch.setattr("ddim_keras.support.progress.SECONDS_BETWEEN_LINES", 0.0)
    lines = shown_progress(capsys).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{n} of 6 steps" for n in range(1, 7)]


@pytest.mark.slow
def test_progress_of_a_training_that_ends_early_says_how_far_it_came(capsys):
    assert shown_progress(capsys, Stop()).startswith("3 of 6 steps, ")


@slow_on_jax
def test_images_can_be_made_in_every_callback():
    """On JAX the weights are outside the model while it trains."""
    model = make_small_model(parameterization="velocity")
    model.compile(optimizer="adam", loss="mse")
    made = []

    def use(*_, **__):
        made.append(model.generate(1, 2))
        model.reverse_diffusion(np.zeros((1, 8, 8, 1), "float32"), 2)
        made.append(model.reconstruct(random_images(1), 2))

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=use, on_epoch_end=use)
    model.fit(random_images(16), batch_size=8, epochs=1, verbose=0, callbacks=[callback])
    assert len(made) == 6 and np.isfinite(made).all()


@pytest.fixture(scope="module")
def shared():
    """A compiled model for tests that only need one."""
    keras.utils.set_random_seed(0)
    model = compiled(make_small_model(widths=[4]))
    model.fit(random_images(16), batch_size=8, verbose=0)
    return model


# Callbacks


def test_callbacks_work_with_their_defaults_and_are_afterwards_as_they_were(shared, tmp_path):
    path = tmp_path / "best.keras"
    callbacks = [
        keras.callbacks.EarlyStopping(),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.ModelCheckpoint(path, save_best_only=True),
    ]
    before = [(callback.monitor, getattr(callback, "mode", None)) for callback in callbacks]
    images = random_images(16)
    history = shared.fit(
        images, validation_data=images, batch_size=8, verbose=0, callbacks=callbacks
    ).history
    assert {"val_loss", "val_n_loss", "val_i_loss", "learning_rate"} <= set(history)
    assert [(callback.monitor, getattr(callback, "mode", None)) for callback in callbacks] == before
    assert callbacks[0].best == callbacks[2].best == history["val_loss"][0]
    assert ddim_keras.load_model(path).normalizer.adapted


@pytest.mark.parametrize("figure", ["n_loss", "val_n_loss", "val_i_loss", "val_loss"])
def test_the_smaller_loss_is_the_better_without_being_told(figure, shared, tmp_path):
    stopping = keras.callbacks.EarlyStopping(monitor=figure, patience=5)
    images = random_images(16)
    history = shared.fit(
        images, validation_data=images, batch_size=8, epochs=2, verbose=0, callbacks=[stopping]
    ).history
    assert stopping.best == min(history[figure])
    assert (stopping.monitor, stopping.mode) == (figure, "auto")


# What else Keras's models do


def test_a_model_is_no_function_of_images(shared):
    for method in (shared, shared.call, shared.predict, shared.predict_on_batch):
        with pytest.raises(
            TypeError,
            match="model.generate.*makes images.*model.ema_network.* is the network alone",
        ):
            method(random_images(2))
    assert shared.compute_output_shape((4, 8, 8, 1)) == (4, 8, 8, 1)
    assert shared.compute_output_shape([(4, 8, 8, 1), (4, 1, 1, 1)]) == (None, 8, 8, 1)


def test_summary_lists_both_networks(shared):
    lines = []
    shared.summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert "network" in text and "ema_network" in text and "normalizer" in text


@pytest.mark.slow
def test_single_batches_are_trained_on_and_evaluated(shared):
    images, labels = random_images(8), np.arange(8) % 2
    steps = int(shared.ema_updates)
    figures = shared.train_on_batch(images, return_dict=True)
    assert (
        set(figures) == {"n_loss", "i_loss", "loss"} and np.isfinite(list(figures.values())).all()
    )
    shared.train_on_batch((images * 255).astype("uint8"), labels, class_weight={0: 2.0})
    shared.train_on_batch({"image": images}, sample_weight=np.ones(8))
    assert int(shared.ema_updates) == steps + 3
    expected = shared.evaluate(images, verbose=0)
    np.testing.assert_allclose(shared.test_on_batch(images), expected, rtol=1e-5)
    np.testing.assert_allclose(
        shared.test_on_batch(images, sample_weight=np.ones(8)), expected, rtol=1e-5
    )
    for method in (shared.train_on_batch, shared.test_on_batch):
        with pytest.raises(ValueError, match="images are out of range"):
            method(images * 255)
        with pytest.raises(ValueError, match="images have the wrong rank"):
            method(images[..., 0])
    assert int(shared.ema_updates) == steps + 3


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exporting from JAX needs jax2tf"
)
def test_the_exported_function_is_the_ema_network(shared, tmp_path):
    import tensorflow as tf

    shared.export(tmp_path / "exported", verbose=False)
    images, variances = (
        random_images(3),
        np.linspace(0.1, 0.9, 3, dtype="float32").reshape(3, 1, 1, 1),
    )
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    expected = ops.convert_to_numpy(shared.ema_network([images, variances]))
    np.testing.assert_allclose(exported.serve([images, variances]), expected, atol=1e-5)
    assert np.abs(expected - ops.convert_to_numpy(shared.network([images, variances]))).max() > 1e-3


# Data that never end, and too few


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return (random_images(8),)


def endless_forms():
    import tensorflow as tf

    return [tf.data.Dataset.from_tensor_slices(random_images(16)).batch(8).repeat(), Endless()]


@slow_on_jax
def test_data_that_never_end_are_refused_before_training(shared):
    images, steps = random_images(16), int(shared.ema_updates)
    for endless in endless_forms():
        with pytest.raises(
            ValueError, match="x never ends: give steps_per_epoch, or a data set without repeat"
        ):
            shared.fit(endless, verbose=0)
        with pytest.raises(
            ValueError, match="x never ends: give steps, or a data set without repeat"
        ):
            shared.evaluate(endless, verbose=0)
        for given in (endless, (endless,)):
            with pytest.raises(
                ValueError, match="validation_data never ends: give validation_steps, or a data set"
            ):
                shared.fit(images, batch_size=8, validation_data=given, verbose=0)
        assert int(shared.ema_updates) == steps
        assert np.isfinite(shared.evaluate(endless, steps=2, verbose=0)).all()
        shared.fit(images, batch_size=16, validation_data=endless, validation_steps=1, verbose=0)
        steps += 1
        assert int(shared.ema_updates) == steps


class OneImage(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return random_images(1)


def test_a_metric_that_needs_more_images_is_refused_before_the_first_step():
    import tensorflow as tf

    extractor = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.GlobalAveragePooling2D()])
    model = compiled(make_small_model(widths=[4]), metrics=[ddim_keras.metrics.KID(extractor)])
    model.normalizer.adapt(random_images(8))
    one = random_images(1)
    for data in (one, tf.data.Dataset.from_tensors(one), OneImage(), [(one,)], {"image": one}):
        with pytest.raises(
            ValueError,
            match="metric 'kid' needs at least 2 images of each side, but validation_data",
        ):
            model.fit(random_images(8), validation_data=data, verbose=0)
        with pytest.raises(
            ValueError, match="metric 'kid' needs at least 2 images of each side, but x holds fewer"
        ):
            model.evaluate(data, verbose=0)
    with pytest.raises(ValueError, match="metric 'kid' needs at least 2 images"):
        model.fit(
            random_images(8),
            validation_data=random_images(8),
            validation_batch_size=1,
            validation_steps=1,
        )
    assert int(model.ema_updates) == 0


# Interrupted


def broken_batches():
    yield random_images(8)
    yield random_images(8)
    raise KeyError("the disk is gone")


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", first_quick(["callback", "bad image", "data", "evaluation"]))
def test_an_interrupted_training_leaves_weights_that_can_be_saved(where, shared, tmp_path):
    """On JAX the weights are outside the model meanwhile, in memory that each step gives away."""
    images = random_images(16)
    before = weights_of(shared)
    if where == "callback":
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
        with pytest.raises(KeyboardInterrupt):
            shared.fit(images, batch_size=8, callbacks=[callback], verbose=0)
    elif where == "data":
        with pytest.raises(Exception, match="the disk is gone"):
            shared.fit(broken_batches(), verbose=0)
    elif where == "bad image":
        with pytest.raises(ValueError, match="images contain NaN"):
            shared.fit(iter([images[:8], images[8:] * np.nan]), verbose=0)
    else:
        callback = keras.callbacks.LambdaCallback(on_test_batch_end=interrupt)
        with pytest.raises(KeyboardInterrupt):
            shared.evaluate(images, batch_size=8, callbacks=[callback], verbose=0)
    after = weights_of(shared)
    assert all(np.isfinite(weight).all() for weight in after)
    if where in ("callback", "data"):  # a step was taken
        assert any((new != old).any() for new, old in zip(after, before))
    shared.save(tmp_path / "model.keras")
    again = ddim_keras.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(flat(again.network), flat(shared.network))
    assert np.isfinite(again.generate(1, 2)).all()
    shared.fit(images, batch_size=8, verbose=0)


def test_what_is_frozen_is_said_and_the_average_is_never_trained():
    model = make_small_model()
    model.compile()
    model.normalizer.adapt(random_images(8))
    number = len(model.trainable_variables)
    model.network.trainable = False
    with pytest.raises(ValueError, match="nothing is left to train.*network.trainable = True"):
        model.fit(random_images(8), verbose=0)
    with pytest.raises(ValueError, match="nothing is left to train"):
        model.train_on_batch(random_images(8))
    model.trainable = False
    model.trainable = True
    assert model.trainable and model.network.trainable and not model.ema_network.trainable
    assert len(model.trainable_variables) == number
    assert np.isfinite(model.fit(random_images(8), verbose=0).history["loss"][0])
    few = make_small_model()
    few.normalizer.adapt(random_images(8))
    few.network.layers[-1].trainable = False
    few.compile()
    few.network.layers[-1].trainable = True
    with pytest.raises(ValueError, match="compile it again after changing what is trainable"):
        few.train_on_batch(random_images(8))


def test_layers_frozen_after_a_fit_stay_as_they_are_and_a_file_says_so(tmp_path):
    model = make_small_model()
    model.compile("sgd")
    images = random_images(8)
    model.fit(images, verbose=0)
    normalizing = [layer for layer in model.network.layers if "normalization" in layer.name]
    for layer in normalizing:  # nothing of them is trained by gradients
        layer.trainable = False
    before = [layer.get_weights() for layer in normalizing]
    model.fit(images, verbose=0)
    for old, layer in zip(before, normalizing):
        assert layer.weights and all(map(np.array_equal, old, layer.get_weights()))
    frozen = [layer for layer in model.network.layers if layer.weights][:-1]
    for layer in frozen:
        layer.trainable = False
    model.compile("adam")
    model.save(tmp_path / "frozen.keras")
    again = ddim_keras.load_model(tmp_path / "frozen.keras")
    names = [weight.path.split("/")[-1] for weight in again.trainable_variables]
    assert names == ["kernel", "bias"] and len(again.optimizer.variables) == 2 + 2 * 2
    flags = [layer.trainable for layer in model.network.layers]
    assert [layer.trainable for layer in again.network.layers] == flags


def test_frozen_layers_that_a_network_does_not_have_are_refused():
    model = make_small_model()
    model.compile(optimizer="adamw", loss="mse")
    config = {**model.get_compile_config(), "frozen_layers": [0, 999]}
    with pytest.raises(ValueError, match=r"the layers \[999\] are said to be frozen, but"):
        model.compile_from_config(config)
    assert all(layer.trainable for layer in model.network.layers)


@pytest.mark.slow
def test_weights_of_classes_go_by_name_too():
    images, labels = random_images(8), np.array(["cat", "dog"] * 4)
    told = {"verbose": 0, "shuffle": False}

    def loss(weights):
        model = make_small_model(class_names=["cat", "dog"])
        model.compile()
        model.normalizer.adapt(images)
        return model.fit(images, labels, class_weight=weights, **told).history["loss"]

    assert loss({"dog": 3.0}) == loss({1: 3.0})
    for weights, message in (
        ({"bird": 1.0}, "unknown label 'bird': expected one of 'cat', 'dog'"),
        ({"dog": 1.0, 1: 2.0}, "a class two weights, by name and by number"),
        ({None: 1.0}, "must give integer classes finite weights"),
        ({0: "much"}, "must give integer classes finite weights"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(weights)


def test_regularizers_of_a_networks_weights_count():
    images, levels = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    layer = keras.layers.Conv2D(
        1, 3, padding="same", kernel_regularizer="l2", kernel_initializer="ones"
    )
    layer.kernel_regularizer.l2 = 100.0
    network = keras.Model([images, levels], layer(images))
    penalty = 100.0 * 9
    model = make_small_model(network=network, loss_weighting="uniform")
    model.compile(keras.optimizers.SGD(1e-4), loss="mae")
    model.normalizer.adapt(random_images())
    before = np.abs(network.get_weights()[0]).sum()
    first = model.evaluate(random_images(), batch_size=8, verbose=0, return_dict=True)
    assert penalty < first["loss"] < penalty + 20 and first["n_loss"] < 20
    logs = model.fit(random_images(), batch_size=24, verbose=0).history
    assert penalty < logs["loss"][0] < penalty + 20
    # The gradient of 100 w^2 at 1 is 200: a step of 1e-4 takes 2 % off, less what the data say.
    assert np.abs(network.get_weights()[0]).sum() / before == pytest.approx(0.98, abs=0.003)


def test_the_average_follows_a_decay_that_is_set_between_trainings():
    model = make_trained_model()
    model.ema_decay = 0.0
    model.fit(random_images(), batch_size=8, verbose=0)
    for average, weight in zip(model.ema_network.get_weights(), model.network.get_weights()):
        np.testing.assert_allclose(average, weight, atol=1e-7)
    with pytest.raises(ValueError, match="ema_decay must lie in"):
        model.ema_decay = 1.0
