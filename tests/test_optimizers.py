import keras
import numpy as np
import pytest
from conftest import make_small_model, random_images, run_python

import ddim_keras
from ddim_keras import presets
from ddim_keras.optimizers import Muon, nearly_orthogonal
from ddim_keras.support import backend


def steps_of(optimizer, start, gradients):
    """Where an optimizer takes a variable."""
    variable = keras.Variable(start)
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return keras.ops.convert_to_numpy(variable)


@pytest.mark.parametrize("shape", [(32, 300), (300, 32), (64, 128)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype("float32") * 1e-3
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    values = np.diag(
        left.T
        @ keras.ops.convert_to_numpy(nearly_orthogonal(keras.ops.convert_to_tensor(matrix)))
        @ right.T
    )
    assert 0.6 < values.min() and values.max() < 1.3


@pytest.mark.parametrize("on_accelerator", [False, True])
@pytest.mark.parametrize("shape", [(40, 200), (200, 40)])
def test_small_singular_values_do_not_break_loose(shape, on_accelerator, monkeypatch):
    """From 1 down to a ten thousandth: none may come out larger than the rest."""
    monkeypatch.setattr(backend, "on_accelerator", lambda: on_accelerator)
    random = np.random.default_rng(0)
    left, _, right = np.linalg.svd(random.normal(size=shape), full_matrices=False)
    matrix = (left * np.logspace(0, -4, 40)) @ right
    found = nearly_orthogonal(keras.ops.convert_to_tensor(matrix.astype("float32")))
    values = np.linalg.svd(keras.ops.convert_to_numpy(found), compute_uv=False)
    assert values.max() < 1.3 and 0.6 < values[20]


@pytest.mark.skipif(
    keras.__version__ < "3.13", reason="Keras's Muon could not be applied to variables alone"
)
def test_a_kernel_moves_as_a_matrix_does_under_keras_own_muon():
    random = np.random.default_rng(1)
    gradients = random.normal(size=(3, 3, 3, 20, 24)).astype("float32")
    start = np.zeros((3, 3, 20, 24), "float32")
    ours = steps_of(Muon(0.1, weight_decay=0.0), start, gradients).reshape(180, 24)
    matrices = [gradient.reshape(180, 24) for gradient in gradients]
    same = keras.optimizers.Muon(0.1, weight_decay=0.0, momentum=0.95, ns_steps=5)
    theirs = steps_of(same, start.reshape(180, 24), matrices)
    # Versions of Keras differ in the size of a step, not in its direction.
    similarity = np.sum(ours * theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs))
    assert similarity > (0.999 if backend.on_accelerator() else 0.999999)


@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (1, 1, 256, 32), (1, 1, 32, 256)])
def test_a_step_has_the_same_size_whatever_the_shape(shape):
    gradient = np.random.default_rng(1).normal(size=shape).astype("float32")
    moved = steps_of(Muon(0.1, weight_decay=0.0), np.zeros(shape, "float32"), [gradient])
    assert np.sqrt(np.mean(moved**2)) == pytest.approx(0.2 * 0.1, rel=0.3)


@pytest.mark.parametrize("shape", [(24,), (40, 24), (3, 3, 1, 24), (3, 3, 24, 4)])
def test_all_else_moves_as_under_adamw(shape):
    random = np.random.default_rng(2)
    start, gradients = (
        random.normal(size=shape).astype("float32"),
        random.normal(size=(3, *shape)).astype("float32"),
    )
    options = {"learning_rate": 0.1, "weight_decay": 0.01, "beta_2": 0.9}
    np.testing.assert_array_equal(
        steps_of(Muon(**options), start, gradients),
        steps_of(keras.optimizers.AdamW(**options), start, gradients),
    )


def test_kernels_decay_by_the_schedules_learning_rate_of_the_step():
    start = np.ones((3, 3, 16, 16), "float32")
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [0.5, 0.2, 0.1])
    decayed = steps_of(Muon(schedule, weight_decay=0.1), start, [np.zeros_like(start)] * 3)
    np.testing.assert_allclose(decayed, start * (1 - 0.05) * (1 - 0.02) * (1 - 0.01), rtol=1e-6)


def test_what_is_excluded_from_decay_keeps_its_weights():
    start = np.ones((3, 3, 16, 16), "float32")
    optimizer = Muon(0.1, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["variable"])
    np.testing.assert_array_equal(steps_of(optimizer, start, [np.zeros_like(start)]), start)


def test_a_kernel_without_a_gradient_stays():
    start = np.ones((3, 3, 16, 16), "float32")
    np.testing.assert_array_equal(
        steps_of(Muon(0.1, weight_decay=0.0), start, [np.zeros_like(start)]), start
    )


@pytest.mark.slow
def test_a_training_goes_on_from_its_file_in_a_new_process(tmp_path):
    images = random_images()
    model = make_small_model(widths=[16, 24])
    model.compile(Muon(1e-2, momentum=0.9), "mean_squared_error")
    model.fit(images, batch_size=8, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    run_python(
        f"""
import keras, numpy as np, ddim_keras
model = keras.models.load_model({str(tmp_path / "model.keras")!r})
assert model.optimizer.momentum == 0.9 and int(model.optimizer.iterations) > 0
model.fit(np.load({str(tmp_path / "images.npy")!r}), batch_size=8, shuffle=False, verbose=0)
np.save({str(tmp_path / "generated.npy")!r}, model.generate(2, 3, seed=0))
"""
    )
    model.fit(images, batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        np.load(tmp_path / "generated.npy"), model.generate(2, 3, seed=0), atol=1e-3
    )


def a_kernel(model):
    """Values of the first convolution between features."""
    kernel = next(
        one
        for one in model.network.trainable_weights
        if len(one.shape) == 4 and min(one.shape[2:]) >= 16
    )
    return keras.ops.convert_to_numpy(kernel).copy()


@pytest.mark.slow
def test_kernels_learn_in_half_precision():
    model = make_small_model(widths=[16, 24], dtype="mixed_float16")
    before = a_kernel(model)
    model.compile(Muon(1e-2, weight_decay=0.0), "mean_squared_error")
    model.fit(random_images(), batch_size=8, epochs=2, verbose=0)
    assert np.isfinite(a_kernel(model)).all() and np.abs(a_kernel(model) - before).max() > 1e-3


@pytest.mark.slow
def test_kernels_learn_of_several_batches():
    model = make_small_model(widths=[16, 24])
    model.compile(Muon(1e-2, weight_decay=0.0, gradient_accumulation_steps=2), "mean_squared_error")
    model.normalizer.adapt(random_images()[:8])
    kernels = []
    for _ in range(6):
        model.train_on_batch(random_images()[:8])
        kernels.append(a_kernel(model))
    moved = [float(np.abs(after - before).max()) for before, after in zip(kernels, kernels[1:])]
    # The first step is that of the last layer, which starts at zero.
    assert moved[1] == moved[3] == 0.0 and min(moved[2], moved[4]) > 1e-4


def test_recipes_name_their_optimizer():
    assert isinstance(presets.training("fashion_mnist_32").compile_arguments(10)["optimizer"], Muon)
    with pytest.raises(ValueError, match="optimizer must be one of.*'sgd'"):
        presets.Training(optimizer="sgd")
    assert not isinstance(ddim_keras.presets.Training().compile_arguments(10)["optimizer"], Muon)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "momentum must lie in"),
        ({"newton_schulz_iterations": 0}, "at least 1: got 0"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Muon(**arguments)
