"""What `compile` takes, what can be set after it, and what it refuses."""

import keras
import numpy as np
import pytest
from conftest import make_small_model, random_images
from keras import ops

import ddim_keras


def small(**changes):
    """A model of a single convolution, with an adapted normalizer."""
    images, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    outputs = keras.layers.Conv2D(1, 3, padding="same")(images) * variances
    model = make_small_model(network=keras.Model([images, variances], outputs), **changes)
    model.normalizer.adapt(random_images(8))
    return model


def compiled(model, **arguments):
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), **arguments})
    return model


def one_number(true, predicted):
    return ops.mean(ops.abs(true - predicted))


@pytest.mark.parametrize(
    ("sample_weight", "loss_weighting"), [(np.arange(8.0), "uniform"), (None, "min_snr")]
)
def test_weights_count_for_a_loss_of_one_number_for_a_batch_too(sample_weight, loss_weighting):
    model = compiled(small(loss_weighting=loss_weighting), loss=one_number)
    found = model.test_on_batch(random_images(8), sample_weight=sample_weight)
    model.loss = "mean_absolute_error"
    expected = model.test_on_batch(random_images(8), sample_weight=sample_weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[-1] != pytest.approx(found[0], rel=0.01)  # weighted, and not


@pytest.mark.slow
def test_a_loss_of_one_number_trains_as_the_mean_over_images_does():
    def trained(loss):
        keras.utils.set_random_seed(0)
        model = compiled(small(), loss=loss)
        model.fit(random_images(8), batch_size=8, verbose=0, sample_weight=np.arange(8.0))
        weights = [ops.convert_to_numpy(weight).ravel() for weight in model.network.weights]
        return np.concatenate(weights)

    np.testing.assert_allclose(trained(one_number), trained("mean_absolute_error"), atol=1e-6)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="under JAX a gradient is always traced"
)
def test_a_loss_of_one_number_may_look_at_values_when_it_runs_eagerly():
    def looking(true, predicted):
        return one_number(true, predicted) * float(np.isfinite(predicted.numpy()).all())

    model = compiled(small(), loss=looking, run_eagerly=True)
    assert np.isfinite(model.train_on_batch(random_images(2))).all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda true, predicted: None, "gives a NoneType: a loss is a function"),
        (lambda true, predicted: 1.0, "gives a float: a loss is a function"),
        (lambda true, predicted: (true, predicted), "gives a tuple: a loss is a function"),
        (lambda true, predicted: ops.cast(true - predicted, "int32"), "gives int32, which has no"),
        (lambda true, predicted: ops.mean(true - predicted, axis=0), r"the shape \(8, 8, 1\) for"),
        (lambda true, predicted: ops.mean(true - predicted, axis=(0, 1)), r"the shape \(8, 1\) fo"),
        (lambda true, predicted: ops.mean(true - predicted, keepdims=True), r"shape \(1, 1, 1, 1"),
    ],
)
@pytest.mark.parametrize(
    "number",
    [4, 8, pytest.param(None, marks=pytest.mark.slow)],  # images have eight rows, too
)
def test_a_loss_that_gives_something_else_is_refused(loss, message, number):
    model = compiled(small(), loss=loss)
    with pytest.raises(ValueError, match=message):
        if number is None:
            model.train_on_batch(random_images(4))
        else:
            model.training_loss(random_images(number))


@pytest.mark.parametrize(
    "loss",
    [
        lambda true, predicted: ops.mean(ops.abs(true - predicted), axis=(1, 2, 3)),
        lambda true, predicted: ops.reshape(ops.abs(true - predicted), (-1,)),
        lambda true, predicted: ops.cast(ops.abs(true - predicted), "float16"),
    ],
)
def test_a_loss_may_give_any_number_of_values_for_each_image(loss):
    model = compiled(small(), loss=loss)
    true, predicted = random_images(4), random_images(4, seed=1)
    expected = np.abs(true - predicted).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(model.objective.of_images(true, predicted), expected, rtol=2e-3)


@pytest.mark.slow
def test_what_is_set_after_compile_counts_from_then_on(tmp_path):
    images = random_images(8)
    model = compiled(small(), metrics=[keras.metrics.MeanSquaredError(name="distance")])

    def figures(given):
        return given.evaluate(images, verbose=0, return_dict=True)

    before = figures(model)
    model.loss = "mse"
    assert figures(model)["loss"] > 1.05 * before["loss"]
    assert figures(model)["distance"] == before["distance"]
    model.metric_diffusion_steps = 1
    assert figures(model)["distance"] != before["distance"]
    model.save(tmp_path / "model.keras")
    assert figures(ddim_keras.load_model(tmp_path / "model.keras")) == figures(model)


def test_a_loss_set_in_a_training_counts_from_then_on():
    model = compiled(small())

    class Quadruple(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.loss = lambda true, predicted: 4.0 * one_number(true, predicted)

    losses = model.fit(random_images(8), epochs=2, verbose=0, callbacks=[Quadruple()]).history
    assert losses["loss"][1] > 2.0 * losses["loss"][0]
    assert model.get_compile_config()["loss"] != "mean_absolute_error"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": None}, "needs an optimizer, such as 'adamw', got None"),
        ({"loss_weights": [2.0]}, "loss_weights would change nothing.*there is one loss"),
        ({"weighted_metrics": ["mae"]}, "weighted_metrics would change nothing.*give metrics="),
        ({"metrics": "mae"}, "metrics must be a list.*got 'mae'"),
        ({"metrics": keras.metrics.MeanSquaredError()}, "metrics must be a list"),
        ({"metrics": [keras.metrics.MeanSquaredError]}, "make one of the class first"),
        ({"metrics": ["mae"]}, "names of metrics are for model.score"),
        ({"ema_lengths": 0.05}, r"ema_lengths must be a list, such as \[0.05, 0.1\], got 0.05"),
    ],
)
def test_what_compile_cannot_use_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compiled(small(), **arguments)


def test_no_loss_is_said_when_one_is_needed():
    model = compiled(small(), loss=None)
    with pytest.raises(ValueError, match="no loss to minimise.*loss=None"):
        model.train_on_batch(random_images(2))


def test_what_is_set_after_compile_is_checked_and_only_what_reads_it_is_made_anew():
    model = make_small_model()
    model.compile("adam")
    images = random_images(4)
    model.fit(images, batch_size=4, validation_data=images, verbose=0)
    train, test = model.train_function, model.test_function
    model.ema_decay = 0.5
    assert model.train_function is not train and model.test_function is test
    train = model.train_function
    model.metric_diffusion_steps = 3
    assert model.train_function is train and model.test_function is not test
    for name, wrong in (("metric_diffusion_steps", 0), ("condition_noise", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(model, name, wrong)
    with pytest.raises(ValueError, match="what training minimises.*needs another name"):
        model.loss = keras.metrics.Mean(name="loss")
    model.dtype_policy = model.dtype_policy
    make_small_model().compile("adam", ema_lengths=np.array([0.05, 0.1]))


def test_a_policy_set_on_a_finished_model_is_refused():
    model = small()
    with pytest.raises(
        ValueError, match="dtype_policy cannot be replaced.*with dtype=.*set_weights"
    ):
        model.dtype_policy = "mixed_bfloat16"
    assert model.compute_dtype == "float32"
