"""A script written against the Keras DDIM example, with only its import changed, finds what it
expects.
"""

import warnings

import keras
import numpy as np
import pytest
from conftest import random_images, slow_on_jax
from keras import ops

from ddim_keras import DiffusionModel


class KID(keras.metrics.Metric):
    """Stands for the example's own metric, which its script defines: same name, same arguments."""

    def __init__(self, name="kid", **kwargs):
        super().__init__(name=name, **kwargs)
        self.mean = keras.metrics.Mean()

    def update_state(self, real_images, generated_images, sample_weight=None):
        self.mean.update_state(ops.square(ops.mean(real_images) - ops.mean(generated_images)))

    def result(self):
        return self.mean.result()

    def reset_state(self):
        self.mean.reset_state()


@pytest.fixture
def datasets():
    import tensorflow as tf

    images = random_images(32, (16, 16, 3))
    return [
        tf.data.Dataset.from_tensor_slices(images).batch(8, drop_remainder=True) for _ in range(2)
    ]


def run_script(model, datasets, checkpoint_path):
    train_dataset, val_dataset = datasets
    checkpoint_callback = keras.callbacks.ModelCheckpoint(
        filepath=checkpoint_path,
        save_weights_only=True,
        monitor="val_kid",
        mode="min",
        save_best_only=True,
    )
    model.normalizer.adapt(train_dataset)
    model.fit(
        train_dataset,
        epochs=2,
        validation_data=val_dataset,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=model.plot_images),
            checkpoint_callback,
        ],
        verbose=0,
    )
    model.load_weights(checkpoint_path)
    model.plot_images()


def make_model(**arguments):
    model = DiffusionModel(16, [8, 16], 1)
    model.compile(
        optimizer=keras.optimizers.AdamW(learning_rate=1e-3, weight_decay=1e-4),
        loss=keras.losses.mean_absolute_error,
        **arguments,
    )
    return model


@slow_on_jax
def test_the_script_runs_with_its_kid(datasets, tmp_path):
    model = make_model(metrics=[KID()])
    run_script(model, datasets, tmp_path / "diffusion_model.weights.h5")
    training, validation = (
        {"n_loss", "i_loss", "loss"},
        {"val_n_loss", "val_i_loss", "val_kid", "val_loss"},
    )
    assert set(model.history.history) == training | validation


@pytest.mark.slow
def test_the_script_runs_to_its_end_without_one_and_says_what_it_monitors(datasets, tmp_path):
    with pytest.warns(
        UserWarning,
        match=r"ModelCheckpoint monitors 'val_kid', but no metric named 'kid' was compiled",
    ):
        run_script(make_model(), datasets, tmp_path / "diffusion_model.weights.h5")


class OfBatches(KID):
    def update_state(self, real_images, generated_images, sample_weight=None):
        self.mean.update_state(ops.sum(generated_images) / float(real_images.shape[0]))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="its graphs take any size")
def test_a_metric_that_asks_for_the_size_of_a_smaller_last_batch_is_told_how_to():
    import tensorflow as tf

    model = DiffusionModel(8, [4], 1, pixels="symmetric")
    model.compile(optimizer="adam", loss="mae", metrics=[OfBatches()])
    batches = tf.data.Dataset.from_tensor_slices(random_images(3, (8, 8, 3))).batch(2)
    with pytest.raises(ValueError, match="the metric 'kid' fails .* drop_remainder=True, or let"):
        model.evaluate(batches, verbose=0)


@slow_on_jax
def test_the_examples_names_do_what_they_did():
    model = make_model()
    model.normalizer.adapt(random_images(8, (16, 16, 3)))
    noise_rates, signal_rates = model.diffusion_schedule(ops.ones((2, 1, 1, 1)))
    assert float(noise_rates[0, 0, 0, 0]) > 0.99 and float(
        signal_rates[0, 0, 0, 0]
    ) == pytest.approx(0.02, rel=1e-4)
    noise = keras.random.normal((2, 16, 16, 3))
    for training in (True, False):
        pred_noises, pred_images = model.denoise(
            noise, noise_rates, signal_rates, training=training
        )
        assert pred_noises.shape == pred_images.shape == (2, 16, 16, 3)
    generated = model.denormalize(model.reverse_diffusion(noise, 3))
    assert (
        generated.shape == (2, 16, 16, 3)
        and 0.0 <= float(ops.min(generated)) <= float(ops.max(generated)) <= 1.0
    )
    assert (
        model.network([noise, noise_rates**2]).shape
        == model.ema_network([noise, noise_rates**2]).shape
    )
    assert model.generate(num_images=2, diffusion_steps=3).shape == (2, 16, 16, 3)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="on JAX a step takes and returns the state, as in Keras",
)
def test_steps_can_be_called_directly():
    model = make_model()
    images = random_images(8, (16, 16, 3))
    model.normalizer.adapt(images)
    for logs in (model.train_step(images), model.test_step(images)):
        assert set(logs) == {"n_loss", "i_loss", "loss"} and np.isfinite(float(logs["n_loss"]))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="steps of TensorFlow's trainer")
def test_a_subclass_may_bring_the_examples_train_step(datasets):
    import tensorflow as tf

    class Own(DiffusionModel):
        def train_step(self, images):
            images = self.normalizer(images, training=True)
            noises = keras.random.normal((8, 16, 16, 3), seed=self.seed_generator)
            times = keras.random.uniform((8, 1, 1, 1), seed=self.seed_generator)
            noise_rates, signal_rates = self.diffusion_schedule(times)
            noisy_images = signal_rates * images + noise_rates * noises
            with tf.GradientTape() as tape:
                pred_noises, pred_images = self.denoise(
                    noisy_images, noise_rates, signal_rates, training=True
                )
                noise_loss = self.loss(noises, pred_noises)
            weights = self.network.trainable_weights
            gradients = tape.gradient(noise_loss, weights)
            self.optimizer.apply_gradients(zip(gradients, weights))
            self.noise_loss_tracker.update_state(noise_loss)
            self.image_loss_tracker.update_state(self.loss(images, pred_images))
            for weight, ema_weight in zip(self.network.weights, self.ema_network.weights):
                ema_weight.assign(0.9 * ema_weight + 0.1 * weight)
            return {metric.name: metric.result() for metric in self.metrics[:-1]}

    model = Own(16, [8, 16], 1)
    model.compile("adam", loss=keras.losses.mean_absolute_error)
    model.normalizer.adapt(datasets[0])
    before = model.ema_network.get_weights()
    for data in (datasets[0], random_images(8, (16, 16, 3))):
        logs = model.fit(data, batch_size=8, verbose=0).history
        assert set(logs) == {"n_loss", "i_loss"} and np.isfinite(logs["n_loss"]).all()
    assert any((old != new).any() for old, new in zip(before, model.ema_network.get_weights()))


def test_methods_that_generate_does_not_call_are_told():
    with pytest.warns(
        UserWarning, match=r"Clearer\.diffusion_schedule changes .*give .* a Schedule"
    ):

        class Clearer(DiffusionModel):
            def diffusion_schedule(self, diffusion_times):
                return super().diffusion_schedule(diffusion_times**2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Whole(DiffusionModel):
            def denormalize(self, images):
                return 2.0 * super().denormalize(images) - 1.0

            def generate(self, num_images, diffusion_steps):
                noises = keras.random.normal((num_images, 16, 16, 3))
                return self.denormalize(self.reverse_diffusion(noises, diffusion_steps))


def test_a_part_that_another_would_not_replace_cannot_be_set():
    model = DiffusionModel(8, [4], 1)
    model.schedule = model.schedule  # as it is
    for name, advice in (
        ("schedule", "make a new model, with schedule="),
        ("network", "make a new model, with network="),
        ("ema_network", r"ema_network\.set_weights"),
        ("normalizer", "with pixels="),
    ):
        with pytest.raises(ValueError, match=f"model.{name} cannot be replaced: .*{advice}"):
            setattr(model, name, DiffusionModel(8, [4], 1).schedule)


@pytest.mark.slow
@slow_on_jax
def test_trackers_set_anew_by_compile_count_and_start_anew_each_epoch():
    """The Keras example's `compile` makes its own, and its `metrics` names those two."""

    class Example(DiffusionModel):
        def compile(self, **options):
            super().compile(**options)
            self.noise_loss_tracker = keras.metrics.Mean(name="n_loss")
            self.image_loss_tracker = keras.metrics.Mean(name="i_loss")
            self.own = keras.metrics.Mean(name="own")

        @property
        def metrics(self):
            return [self.noise_loss_tracker, self.image_loss_tracker, self.own]

    histories, scores = [], []
    for kind in (Example, DiffusionModel):
        model = kind(8, [4], 1, channels=1, seed=1)
        model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mae")
        fitted = model.fit(random_images(), batch_size=24, epochs=3, verbose=0)
        histories.append([fitted.history[name] for name in ("n_loss", "i_loss", "loss")])
        scores.append([model.evaluate(random_images(), verbose=0) for _ in range(2)])
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-6)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)


@pytest.mark.slow
@slow_on_jax
def test_what_an_overridden_test_step_adds_is_reported():
    class Example(DiffusionModel):
        def test_step(self, *arguments):
            if keras.backend.backend() == "tensorflow":
                return {**super().test_step(*arguments), "seven": keras.ops.convert_to_tensor(7.0)}
            logs, state = super().test_step(*arguments)
            return {**logs, "seven": keras.ops.convert_to_tensor(7.0)}, state

    model = Example(8, [4], 1, channels=1, seed=1)
    model.compile(optimizer="sgd", loss="mae")
    images = random_images(8)
    history = model.fit(images, validation_data=images, verbose=0).history
    assert history["val_seven"] == [7.0]
    assert list(model.evaluate(images, verbose=0, return_dict=True)) == [
        *("n_loss", "i_loss", "seven", "loss")
    ]


def test_an_overridden_loss_that_is_never_called_is_said():
    with pytest.warns(UserWarning, match="Example.compute_loss changes nothing"):

        class Example(DiffusionModel):
            def compute_loss(self, *arguments, **options):
                return 0.0

    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Whole(Example):
            def train_step(self, *arguments):
                return super().train_step(*arguments)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="steps of TensorFlow's trainer")
def test_figures_of_an_own_test_step_are_watched_and_losses_it_does_not_measure_left_out(tmp_path):
    class Example(DiffusionModel):
        def compile(self, **options):
            super().compile(**options)
            self.kid = KID(name="kid")

        @property
        def metrics(self):
            return [self.noise_loss_tracker, self.image_loss_tracker, self.kid]

        def test_step(self, images):
            images = self.normalizer(images)
            noises = keras.random.normal(ops.shape(images))
            pred_noises, _ = self.denoise(noises, 1.0, 0.02, training=False)
            self.noise_loss_tracker.update_state(self.loss(noises, pred_noises))
            self.kid.update_state(images, self.reverse_diffusion(noises, 2))
            return {metric.name: metric.result() for metric in (self.noise_loss_tracker, self.kid)}

    model = Example(8, [4], 1, channels=1, seed=1)
    model.compile(optimizer="sgd", loss="mae")
    images, path = random_images(8), tmp_path / "best.weights.h5"
    saving = keras.callbacks.ModelCheckpoint(
        path, monitor="val_kid", mode="min", save_best_only=True, save_weights_only=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = model.fit(images, validation_data=images, callbacks=[saving], verbose=0).history
    assert {name for name in history if name.startswith("val_")} == {"val_n_loss", "val_kid"}
    assert saving.best == history["val_kid"][0] and path.is_file()


@slow_on_jax
def test_a_model_whose_subclass_says_how_it_is_called_can_be_called():
    class Denoising(DiffusionModel):
        def call(self, noisy_images, training=False):
            return self.denoise(noisy_images, 0.6, 0.8)[1]

    model = Denoising(8, [4], 1, channels=1)
    images = random_images(4)
    expected = ops.convert_to_numpy(model.denoise(images, 0.6, 0.8)[1])
    for found in (model(images), model.predict(images, verbose=0), model.predict_on_batch(images)):
        np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)
    for method in ("__call__", "call", "predict", "predict_on_batch"):
        with pytest.raises(TypeError, match="a DiffusionModel .*model.generate"):
            getattr(DiffusionModel(8, [4], 1, channels=1), method)(images)
