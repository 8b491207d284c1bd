"""Weights of images, and data in every structure, in every form that `fit` and `evaluate` take."""

import keras
import numpy as np
import pytest
from conftest import crossed, first_quick, random_images
from keras import ops

import ddim_keras

IMAGES = random_images(8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.5, 3.0, 0.25], "float32")


class Step:
    """One step of plain gradient descent, each time from the same weights and with the same
    noises.
    """

    def __init__(self):
        keras.utils.set_random_seed(0)
        # Batch normalisation would let an image without weight change the others' statistics.
        self.model = ddim_keras.DiffusionModel(
            8, [8], 1, channels=1, seed=1, normalization="group", parameterization="velocity"
        )
        self.model.compile(keras.optimizers.SGD(0.1))
        self.model.normalizer.adapt(random_images(24))
        self.model.fit(random_images(16, seed=2), batch_size=8, epochs=2, verbose=0)
        self._start = [ops.convert_to_numpy(variable) for variable in self._variables]

    @property
    def _variables(self):
        return [
            *self.model.variables,
            *self.model.optimizer.variables,
            self.model.seed_generator.state,
        ]

    def restored(self):
        for variable, value in zip(self._variables, self._start, strict=True):
            variable.assign(value)
        return self.model

    def fit(self, *arguments, **options):
        """Return by how much the weights moved, as one vector, and the logged figures."""
        model = self.restored()
        before = flat(model.network)
        options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
        logs = model.fit(*arguments, **options).history
        return flat(model.network) - before, {name: values[0] for name, values in logs.items()}

    def evaluate(self, *arguments, **options):
        options = {"batch_size": 8, "verbose": 0, "return_dict": True, **options}
        return self.restored().evaluate(*arguments, **options)


def flat(network):
    return np.concatenate([ops.convert_to_numpy(weight).ravel() for weight in network.weights])


@pytest.fixture(scope="module")
def step():
    return Step()


@pytest.fixture(scope="module")
def alone(step):
    """What each image would do alone: (moves (8, weights), losses (8,)), each a 1/8 of the batch's
    mean.
    """
    found = [step.fit(IMAGES, sample_weight=one) for one in np.eye(8, dtype="float32")]
    return np.stack([moved for moved, _ in found]), np.array([logs["loss"] for _, logs in found])


class Batches(keras.utils.PyDataset):
    """One batch, or those given, as a PyDataset."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def as_dataset(batch):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(batch).batch(8)


FORMS = {
    "array": lambda batch: batch,
    "dataset": as_dataset,
    "generator": lambda batch: (each for each in [batch]),
    "PyDataset": Batches,
    "list of batches": lambda batch: [batch],
}


# Weights of images


@pytest.mark.parametrize("form", first_quick(FORMS))
def test_training_follows_the_weighted_loss(form, step, alone):
    """The gradient is linear in the weights: it is the sum of what each image would do alone."""
    moves, losses = alone
    moved, logs = step.fit(
        FORMS[form]((IMAGES, LABELS, WEIGHTS)), batch_size=8 if form == "array" else None
    )
    np.testing.assert_allclose(moved, WEIGHTS @ moves, atol=2e-6)
    assert np.abs(moved).max() > 1e-3
    assert logs["loss"] == pytest.approx(WEIGHTS @ losses, rel=1e-5)


def test_weights_need_no_labels_and_may_be_whole_numbers_or_yes_and_no(step, alone):
    moves, _ = alone
    for weights in (
        WEIGHTS,
        WEIGHTS.astype("float64"),
        WEIGHTS.tolist(),
        WEIGHTS > 0.5,
        [0, 1, 2, 0, 1, 2, 0, 1],
    ):
        moved, _ = step.fit(IMAGES, sample_weight=weights)
        np.testing.assert_allclose(moved, np.asarray(weights, "float32") @ moves, atol=2e-6)
    moved, _ = step.fit({"image": IMAGES, "sample_weight": WEIGHTS})
    np.testing.assert_allclose(moved, WEIGHTS @ moves, atol=2e-6)


def test_weights_of_one_are_no_weights(step):
    (moved, logs), (unweighted, plain) = (
        step.fit(IMAGES, sample_weight=np.ones(8)),
        step.fit(IMAGES),
    )
    np.testing.assert_allclose(moved, unweighted, atol=1e-6)
    assert logs == pytest.approx(plain, rel=1e-5)


def without_the_weightless():
    return np.where(WEIGHTS[:, None, None, None] > 0, IMAGES, 1.0 - IMAGES)


@pytest.mark.parametrize("form", first_quick(FORMS, 2))
def test_images_of_weight_zero_change_nothing(form, step):
    options = {"batch_size": 8 if form == "array" else None}
    first, second = (
        step.fit(FORMS[form]((images, LABELS, WEIGHTS)), **options)
        for images in (IMAGES, without_the_weightless())
    )
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    first, second = (
        step.evaluate(FORMS[form]((images, LABELS, WEIGHTS)), **options)
        for images in (IMAGES, without_the_weightless())
    )
    assert first == second


@pytest.mark.parametrize("form", first_quick(FORMS, 2))
def test_evaluation_and_validation_take_weighted_means(form, step):
    ones = [step.evaluate(IMAGES, sample_weight=one) for one in np.eye(8)]
    data = FORMS[form]((IMAGES, LABELS, WEIGHTS))
    figures = step.evaluate(data, batch_size=8 if form == "array" else None)
    for name in (
        "n_loss",
        "i_loss",
    ):  # means over the images, each counted as often as its weight says
        expected = WEIGHTS @ [each[name] for each in ones] / WEIGHTS.sum()
        assert figures[name] == pytest.approx(expected, rel=1e-5)
    assert figures["loss"] == pytest.approx(WEIGHTS @ [each["loss"] for each in ones], rel=1e-5)
    # Validation on the same model: a step that moves nothing.
    _, logs = step.fit(
        IMAGES,
        sample_weight=np.zeros(8),
        validation_data=FORMS[form]((IMAGES, LABELS, WEIGHTS)),
        validation_steps=1 if form == "generator" else None,
    )
    step_free = step.evaluate(IMAGES, sample_weight=WEIGHTS)
    assert {name: logs[f"val_{name}"] for name in step_free} == pytest.approx(step_free, rel=1e-2)


def test_a_batch_without_any_weight_moves_nothing_and_is_no_nan(step):
    moved, logs = step.fit(IMAGES, sample_weight=np.zeros(8))
    assert not moved.any()
    assert logs == {"n_loss": 0.0, "i_loss": 0.0, "loss": 0.0}
    assert not any(step.evaluate(IMAGES, sample_weight=np.zeros(8)).values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            np.ones((8, 8, 8), "float32"),
            "one number for each image, shape .*images are weighted, not their pixels",
        ),
        (
            np.ones((8, 1), "float32"),
            "one number for each image, shape .*images are weighted, not their pixels",
        ),
        (np.full(8, -1.0, "float32"), "sample weights must be finite and at least 0"),
        (np.full(8, np.nan, "float32"), "sample weights must be finite and at least 0"),
    ],
)
def test_impossible_weights_are_refused(form, weights, message, step):
    for method in (step.fit, step.evaluate):
        with pytest.raises(ValueError, match=message):
            method(
                FORMS[form]((IMAGES, LABELS, weights)), batch_size=8 if form == "array" else None
            )


def test_weights_beside_a_data_set_are_refused(step):
    with pytest.raises(
        ValueError, match="sample_weight goes with arrays of images; a .* its own batches"
    ):
        step.fit(as_dataset(IMAGES), batch_size=None, sample_weight=WEIGHTS)
    with pytest.raises(
        ValueError,
        match=r"sample weights must be one number for each image, shape \(8,\), got shape \(7,\)",
    ):
        step.fit(IMAGES, sample_weight=WEIGHTS[:7])


CLASS_WEIGHT = {0: 2.0, 1: 0.0}
OF_CLASSES = np.array([2.0, 0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0], "float32")


LABELS_OF_EVERY_KIND = {
    "integers": LABELS,
    "column": LABELS[:, None],
    "floats": LABELS.astype("float32"),
    "one-hot": np.eye(3, dtype="float32")[LABELS],
}


@pytest.mark.parametrize(("kind", "form"), crossed(LABELS_OF_EVERY_KIND, FORMS))
def test_weights_of_classes_become_weights_of_images(kind, form, step, alone):
    moved, _ = step.fit(
        FORMS[form]((IMAGES, LABELS_OF_EVERY_KIND[kind])),
        class_weight=CLASS_WEIGHT,
        batch_size=8 if form == "array" else None,
    )
    np.testing.assert_allclose(moved, OF_CLASSES @ alone[0], atol=2e-6)


@pytest.mark.parametrize("form", first_quick(FORMS))
def test_weights_of_classes_that_cannot_be_used_are_refused(form, step):
    def fit(batch, class_weight=CLASS_WEIGHT):
        step.fit(
            FORMS[form](batch), class_weight=class_weight, batch_size=8 if form == "array" else None
        )

    with pytest.raises(
        ValueError, match="class_weight needs labels to look the weights up by: give batches of"
    ):
        fit((IMAGES,))
    with pytest.raises(ValueError, match="give class_weight or sample weights, not both"):
        fit((IMAGES, LABELS, WEIGHTS))
    with pytest.raises(
        ValueError, match=r"class_weight must be a dictionary \{class: weight\}, got \[1.0, 2.0\]"
    ):
        fit((IMAGES, LABELS), [1.0, 2.0])
    for wrong in ({0: -1.0}, {0: float("nan")}, {0.5: 1.0}):
        with pytest.raises(
            ValueError,
            match="class_weight must give integer classes finite weights of at least 0, got",
        ):
            fit((IMAGES, LABELS), wrong)
    with pytest.raises(
        ValueError,
        match="class_weight names class 7, but the one-hot labels have the classes 0 to 2",
    ):
        fit((IMAGES, np.eye(3, dtype="float32")[LABELS]), {0: 2.0, 7: 3.0})
    fit((IMAGES, LABELS), {0: 2.0, 7: 3.0})  # there may be images of class 7 elsewhere
