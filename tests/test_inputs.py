import keras
import numpy as np
import pytest
from conftest import make_small_model, random_images, slow_on_jax

import ddim_keras


def wrong(kind):
    images = random_images()
    if kind == "nan":
        images[3, 2, 2, 0] = np.nan
    elif kind == "infinity":
        images[3, 2, 2, 0] = np.inf
    elif kind == "bytes as floats":
        images = images * 255
    elif kind == "minus one to one":
        images = images * 2 - 1
    return images


RANGE = r"images are out of range: got values from .* to .*, expected floats in \[0, 1\] or uint8: divide by 255"
MESSAGES = {
    "nan": "images contain NaN or infinity",
    "infinity": "images contain NaN or infinity",
    "bytes as floats": RANGE,
    "minus one to one": RANGE,
}


def as_dataset(images):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(images).batch(8)


class Batches(keras.utils.PyDataset):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return (self.images[index * 8 : index * 8 + 8],)


FORMS = {
    "array": lambda images: images,
    "dataset": as_dataset,
    "generator": lambda images: ((images[start : start + 8],) for start in (0, 8, 16)),
    "PyDataset": Batches,
}


@slow_on_jax
@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize(
    ("form", "adapted"),
    # Without an adapted normalizer a generator is refused before its values are seen.
    [(form, adapted) for form in FORMS for adapted in (True, False) if adapted or form != "generator"],
)
def test_wrong_values_are_refused_wherever_they_come_from(kind, form, adapted):
    model = make_small_model()
    model.compile("adamw")
    if adapted:
        model.normalizer.adapt(random_images())
    with pytest.raises(ValueError, match=MESSAGES[kind]):
        model.fit(FORMS[form](wrong(kind)), verbose=0)


@pytest.mark.parametrize("kind", MESSAGES)
def test_wrong_values_are_refused_by_adapt(kind):
    with pytest.raises(ValueError, match=MESSAGES[kind]):
        make_small_model().normalizer.adapt(wrong(kind))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((24, 8, 8), r"wrong rank: got shape \(\w+, 8, 8\), expected .*\(batch, 8, 8, 1\): add the channel axis"),
        ((24, 8, 8, 8), r"images have 8 channels: .*build the model with channels=8"),
        ((24, 1, 8, 8), r"channels first: .*images.transpose\(0, 2, 3, 1\)"),
        ((24, 3, 32, 32), r"channels first: .*images.transpose\(0, 2, 3, 1\)"),
        ((3, 24, 8, 8, 1), r"wrong rank: .*batches of batches"),
        ((24, 8, 8, 3), r"images have 3 channels: .*build the model with channels=3"),
        ((24, 8, 12, 1), r"wrong size: got shape \(\w+, 8, 12, 1\), .*build the model with image_size=\(8, 12\)"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_wrong_shapes_are_refused_wherever_they_come_from(form, shape, message):
    model = make_small_model()
    model.compile("adamw")
    model.normalizer.adapt(random_images())
    with pytest.raises(ValueError, match=message):
        model.fit(FORMS[form](np.zeros(shape, "float32")), verbose=0)


def test_integers_other_than_bytes_are_refused():
    model = make_small_model()
    model.compile("adamw")
    with pytest.raises(ValueError, match=r"images have dtype int64, expected uint8"):
        model.fit(np.zeros((8, 8, 8, 1), "int64"), verbose=0)


def test_dictionaries_without_a_known_name_of_images_are_refused_with_what_to_do():
    import tensorflow as tf

    model = make_small_model()
    model.compile("adamw")
    with pytest.raises(ValueError, match=r"got a dictionary with keys \['picture'\]: name them by one of \['image', "):
        model.fit(tf.data.Dataset.from_tensor_slices({"picture": random_images()}).batch(8), verbose=0)


def test_empty_data_are_refused():
    import tensorflow as tf

    model = make_small_model()
    model.compile("adamw")
    images = random_images()
    with pytest.raises(ValueError, match="the data set is empty: got an array of 0 images"):
        model.fit(images[:0], verbose=0)
    with pytest.raises(ValueError, match="the data set is empty: it has 0 batches"):
        model.fit(as_dataset(images).take(0), verbose=0)
    unknown_length = tf.data.Dataset.from_tensor_slices(images).filter(lambda image: False).batch(8)
    with pytest.raises(ValueError, match="the data set is empty"):
        model.fit(unknown_length, verbose=0)
    with pytest.raises(ValueError, match="the data set is empty"):
        model.normalizer.adapt(as_dataset(images).take(0))


def test_validation_data_are_checked_too():
    model = make_small_model()
    model.compile("adamw")
    with pytest.raises(ValueError, match=MESSAGES["nan"]):
        model.fit(random_images(), validation_data=as_dataset(wrong("nan")), verbose=0)
    with pytest.raises(ValueError, match=RANGE):
        model.evaluate(wrong("bytes as floats"), verbose=0)


def test_data_that_cannot_be_read_twice_are_not_used_up_by_adapting():
    model = make_small_model()
    model.compile("adamw")
    with pytest.raises(
        ValueError, match=r"would use up the images of a generator: adapt it first: model.normalizer.adapt"
    ):
        model.fit(FORMS["generator"](random_images()), verbose=0)
    with pytest.raises(ValueError, match=r"the data set never ends: adapt it first.*or give steps_per_epoch"):
        model.fit(as_dataset(random_images()).repeat(), verbose=0)
    model.fit(as_dataset(random_images()).repeat(), steps_per_epoch=2, verbose=0)
    assert float(model.normalizer.count) == 16 * 64


def test_evaluate_needs_an_adapted_normalizer():
    model = make_small_model()
    model.compile("adamw")
    with pytest.raises(ValueError, match="evaluate needs an adapted normalizer"):
        model.evaluate(random_images(), verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 9}, "image_size .9, 9. cannot be halved 1 times.*height 8 or 10"),
        ({"image_size": (8, 8, 8)}, r"image_size must be an int or \(height, width\)"),
        ({"image_size": 0}, "image_size must be an integer, at least 1: got 0"),
        ({"channels": 0}, "channels must be an integer, at least 1: got 0"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\), got 1.0"),
        ({"schedule": "linear-ish"}, "unknown schedule 'linear-ish': expected one of .*angle"),
        ({"parameterization": "score"}, "unknown parameterization 'score': expected one of .*velocity"),
        ({"loss_weighting": 3}, "expected a Weighting object or one of .*got 3 of type int"),
        ({"embedding_dims": 5}, "dims must be even"),
        ({"seed": -1}, "seed must be an integer, at least 0 and below 4294967296: got -1"),
    ],
)
def test_impossible_models_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_small_model(**arguments)


def test_a_network_of_the_wrong_shape_is_refused():
    images, variances = keras.Input((8, 8, 3)), keras.Input((1, 1, 1))
    with pytest.raises(ValueError, match=r"the network must map inputs of shapes \[\(None, 8, 8, 1\)"):
        make_small_model(network=keras.Model([images, variances], images * variances))


def test_an_unusable_metric_is_refused():
    with pytest.raises(ValueError, match=r"a metric must be a keras.metrics.Metric or a function"):
        make_small_model().compile("adamw", metrics=["kid"])


def test_the_package_knows_its_names():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ddim_keras.nothing  # noqa: B018
    assert {"DiffusionModel", "data", "schedules"} <= set(dir(ddim_keras))
