import keras
import numpy as np
import pytest
from conftest import crossed, first_quick, make_small_model, random_images, slow_on_jax

import ddim_keras
from ddim_keras.data import inputs
from ddim_keras.metrics import nearest_training_images


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


RANGE = (
    r"images are out of range: got values from .* to .*, expected floats in \[0, 1\] or uint8: "
    r"divide by 255"
)
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


@pytest.fixture(scope="module")
def grey_model():
    """Shared by tests whose data are refused before they reach it."""
    keras.utils.set_random_seed(0)
    model = make_small_model(widths=[4])
    model.compile("adamw")
    model.normalizer.adapt(random_images())
    return model


@slow_on_jax
@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize(
    ("form", "adapted"),
    # Without an adapted normalizer a generator is refused before its values are seen.
    [
        (form, adapted)
        for form in FORMS
        for adapted in (True, False)
        if adapted or form != "generator"
    ],
)
def test_wrong_values_are_refused_wherever_they_come_from(kind, form, adapted, grey_model):
    model = grey_model
    if not adapted:
        model = make_small_model(widths=[4])
        model.compile("adamw")
    with pytest.raises(ValueError, match=MESSAGES[kind]):
        model.fit(FORMS[form](wrong(kind)), verbose=0)


@pytest.mark.parametrize("kind", MESSAGES)
def test_wrong_values_are_refused_by_adapt(kind):
    with pytest.raises(ValueError, match=MESSAGES[kind]):
        make_small_model().normalizer.adapt(wrong(kind))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (24, 8, 8),
            r"wrong rank: got shape \(\w+, 8, 8\), expected .*\(batch, 8, 8, 1\): add the channel "
            r"axis",
        ),
        ((24, 8, 1), r"wrong rank: got shape"),
        ((24, 8, 8, 3), r"images have 3 channels: .*build the model with channels=3"),
        (
            (24, 8, 12, 1),
            r"wrong size: got shape \(\w+, 8, 12, 1\), .*build the model with image_size=\(8, 12\)",
        ),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_wrong_shapes_are_refused_wherever_they_come_from(form, shape, message, grey_model):
    with pytest.raises(ValueError, match=message):
        grey_model.fit(FORMS[form](np.zeros(shape, "float32")), verbose=0)


@pytest.fixture(scope="module")
def model():
    """Shared by tests whose data are refused, or that do not care for its weights."""
    keras.utils.set_random_seed(0)
    images, variances = keras.Input((8, 8, 3)), keras.Input((1, 1, 1))
    # Steps are traced anew for every form of data, which takes long with more layers.
    network = keras.Model([images, variances], keras.layers.Conv2D(3, 1)(images) * variances)
    model = ddim_keras.DiffusionModel(8, channels=3, seed=1, network=network)
    model.compile("sgd")
    model.normalizer.adapt(random_images(8, (8, 8, 3)))
    return model


class OneBatch(keras.utils.PyDataset):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


WHOLE = {**FORMS, "generator": lambda batch: iter([batch]), "PyDataset": OneBatch}
COUNTS = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3))
BYTES = r"their values run from 0 to 255: convert them with .astype\('uint8'\)"
UNSEEN = (
    r"convert them with .astype\('uint8'\) if the values run from 0 to 255; otherwise scale to "
    r"floats"
)
OTHER_TYPES = {
    "uint16": (
        (COUNTS * 257).astype("uint16"),
        r"uint16, .*: divide by 65535.0 .*would keep the low bits alone",
    ),
    "int32": (COUNTS.astype("int32"), BYTES),
    "int64": (COUNTS, BYTES),
    "wide int64": (
        COUNTS - 1000,
        "from -1000 to -745, which .astype\\('uint8'\\) would wrap around: scale them to floats",
    ),
    "zeros and ones": (COUNTS % 2, "they hold 0 and 1 alone: .astype\\('float32'\\)"),
    "bool": (COUNTS > 99, r"dtype bool, .*: .astype\('float32'\) makes them 0.0 and 1.0"),
    "complex": (
        COUNTS.astype("complex64"),
        r"dtype complex64, .*numpy.abs\(images\) or images.real",
    ),
    "str": (np.array(["a.png"] * 8), r"names of files\? ddim_keras.data.load_dataset\(folder"),
    "object": (
        COUNTS.astype(object),
        "dtype object, .*images of different sizes, or things that are no images",
    ),
}


# TensorFlow has no tensors of objects.
TYPES_AND_FORMS = [
    (kind, form) for kind in OTHER_TYPES for form in WHOLE if (kind, form) != ("object", "dataset")
]


@pytest.mark.parametrize(("kind", "form"), TYPES_AND_FORMS)
def test_other_types_are_refused_with_advice_that_is_right(kind, form, model):
    images, message = OTHER_TYPES[kind]
    if form == "dataset" and images.dtype.kind == "i":
        message = UNSEEN  # a data set's values are not known when it is refused
    for method in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=message) as refused:
            method(WHOLE[form](images), verbose=0)
        if kind in ("uint16", "wide int64", "zeros and ones") and form != "dataset":
            assert "convert them with .astype('uint8')" not in str(refused.value)


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_types_are_refused_by_whatever_else_takes_images(kind, model):
    images, message = OTHER_TYPES[kind]
    for use in (
        model.normalizer.adapt,
        lambda images: model.encode(images, 2),
        lambda images: score(model, images),
    ):
        with pytest.raises(ValueError, match=message):
            use(images)
    with pytest.raises(ValueError, match=message):
        model.inpaint(images, np.ones((8, 8, 8, 1), "float32"), 2)


PICTURES = random_images(8, (8, 8, 3))


def score(model, data):
    """Score 8 images by features that are had without any file."""
    extractor = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
    return model.score(data, 8, 2, metrics=["fid"], extractor=extractor)["fid"]


def of_unknown_shape(images, shape=(None, None, None, 3)):
    import tensorflow as tf

    signature = None if shape is None else list(shape)
    return tf.data.Dataset.from_generator(
        lambda: iter([images]), output_signature=tf.TensorSpec(signature, images.dtype)
    )


def through_python(dataset, function, dtype="float32"):
    import tensorflow as tf

    return dataset.map(lambda images: tf.py_function(function, [images], dtype))


@slow_on_jax
@pytest.mark.parametrize(
    "shape", first_quick([None, (None, None, None, 3), (None, None, None, None)])
)
def test_shapes_that_are_not_known_before_are_checked_batch_by_batch(shape, model):
    known = model.evaluate(PICTURES, verbose=0)
    np.testing.assert_allclose(
        model.evaluate(of_unknown_shape(PICTURES, shape), verbose=0), known, rtol=1e-5
    )
    model.fit(of_unknown_shape(PICTURES, shape), verbose=0)
    wrong_size = (
        r"wrong size: got shape \(8, 8, 12, 3\), expected .*\(batch, 8, 8, 3\): resize them, or "
        r".*image_size=\(8, 12\)"
    )
    with pytest.raises(ValueError, match=wrong_size):
        model.fit(of_unknown_shape(random_images(8, (8, 12, 3)), shape), verbose=0)
    if shape is None:
        with pytest.raises(
            ValueError, match=r"wrong rank: got shape \(8, 8, 3\).*: this is one image"
        ):
            model.fit(of_unknown_shape(PICTURES[0], shape), verbose=0)


@slow_on_jax
def test_shapes_that_python_functions_lost_are_found_again(model):
    import tensorflow as tf

    dataset = as_dataset(PICTURES)
    model.fit(through_python(dataset, lambda images: images), verbose=0)
    with pytest.raises(ValueError, match=r"wrong size: got shape \(8, 4, 8, 3\)"):
        model.fit(through_python(dataset, lambda images: images[:, :4]), verbose=0)
    pairs = tf.data.Dataset.from_tensor_slices((PICTURES, np.arange(8))).batch(8)
    vague = pairs.map(lambda *pair: tf.py_function(lambda *same: same, pair, ["float32", "int64"]))
    assert np.isfinite(model.fit(vague, verbose=0).history["loss"][0])
    with pytest.raises(ValueError, match="class_weight needs labels of a known rank.*set_shape"):
        model.fit(vague, class_weight={0: 2.0}, verbose=0)


@slow_on_jax
@pytest.mark.parametrize(("dtype", "form"), crossed(["bfloat16", "float64", "float16"], WHOLE))
def test_every_floating_type_is_taken(dtype, form, model):
    images = (
        keras.ops.convert_to_numpy(keras.ops.cast(PICTURES, "bfloat16"))
        if dtype == "bfloat16"
        else PICTURES
    )
    images = images.astype(dtype)
    expected = model.evaluate(images.astype("float32"), verbose=0)
    np.testing.assert_allclose(model.evaluate(WHOLE[form](images), verbose=0), expected, rtol=1e-4)
    model.fit(WHOLE[form](images), verbose=0)
    with pytest.raises(ValueError, match=RANGE):
        model.fit(WHOLE[form](images * images.dtype.type(2)), verbose=0)


LABELS = np.arange(8) % 3
DICTIONARIES = {
    "image and label": {"image": PICTURES, "label": LABELS},
    "images and labels": {"images": PICTURES, "labels": LABELS},
    "pixel values": {"pixel_values": PICTURES},
    "img": {"img": PICTURES, "label": LABELS, "id": np.arange(8)},
}


@pytest.mark.parametrize(("names", "form"), crossed(DICTIONARIES, WHOLE))
def test_dictionaries_are_taken_by_their_names(names, form, model):
    expected = model.evaluate(PICTURES, verbose=0)
    batch = DICTIONARIES[names]
    np.testing.assert_allclose(model.evaluate(WHOLE[form](batch), verbose=0), expected, rtol=1e-5)
    model.fit(WHOLE[form](batch), verbose=0)
    if "label" in batch:
        model.fit(WHOLE[form](batch), class_weight={0: 2.0}, verbose=0)  # which needs the labels


@pytest.mark.parametrize("form", WHOLE)
def test_dictionaries_of_other_names_are_refused_with_what_to_do(form, model):
    data = WHOLE[form]({"picture": PICTURES, "id": LABELS})
    with pytest.raises(
        ValueError,
        match=r"got a dictionary with keys \['id', 'picture'\]: name them by one of \['image', ",
    ):
        model.fit(data, verbose=0)
    with pytest.raises(
        ValueError, match="name its images once, got a dictionary with both 'image' and 'img'"
    ):
        model.fit(WHOLE[form]({"image": PICTURES, "img": PICTURES}), verbose=0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's pipeline")
def test_arrays_become_batches_of_all_images_in_a_new_order_each_time():
    images = np.arange(10, dtype="float64").reshape(10, 1, 1, 1)
    labels, weights = np.arange(10), np.linspace(0.0, 1.0, 10)
    dataset, y, sample_weight = inputs.in_batches(images, labels, weights, 4, shuffle=True)
    assert y is None and sample_weight is None
    assert inputs.number_of_batches(dataset) == 3
    passes = [[batch for batch in dataset.as_numpy_iterator()] for _ in range(2)]
    for batches in passes:
        assert [len(batch[0]) for batch in batches] == [4, 4, 2]
        found, own_labels, own_weights = (np.concatenate(part) for part in zip(*batches))
        assert found.dtype == own_weights.dtype == np.float32
        np.testing.assert_array_equal(found.ravel(), own_labels)
        np.testing.assert_allclose(own_weights, own_labels / 9.0, rtol=1e-6)
        assert sorted(own_labels) == list(range(10)) != list(own_labels)
    first, second = (np.concatenate([batch[1] for batch in batches]) for batches in passes)
    assert list(first) != list(second)
    # Nothing tunes itself: it is that which outlasts the last batch.
    assert dataset.options().autotune.enabled is False


def test_lists_of_images_are_taken(model):
    from PIL import Image

    bytes_ = (PICTURES * 255).astype("uint8")
    pictures = [Image.fromarray(image) for image in bytes_]
    expected = model.evaluate(bytes_, verbose=0)
    for data in (
        list(bytes_),
        pictures,
        [bytes_[:3], bytes_[3:]],
        (bytes_,),
        [{"image": image} for image in bytes_],
    ):
        np.testing.assert_allclose(model.evaluate(data, verbose=0), expected, rtol=1e-4)
        model.normalizer.adapt(data)
        np.testing.assert_allclose(model.normalizer.mean, PICTURES.mean((0, 1, 2)), atol=0.01)
    model.normalizer.adapt(PICTURES)
    with pytest.raises(
        ValueError,
        match=r"all be of one size to make a batch, got .*\(8, 8, 3\), \(9, 8, 3\).*: resize them",
    ):
        model.fit([*pictures, pictures[0].resize((8, 9))], verbose=0)
    with pytest.raises(
        ValueError, match="these are grayscale images, .*or build the model with channels=1"
    ):
        model.fit([picture.convert("L") for picture in pictures], verbose=0)


@pytest.mark.parametrize(
    "structure",
    [PICTURES, (PICTURES, LABELS), {"image": PICTURES}],
    ids=["images", "pair", "names"],
)
def test_data_sets_without_batches_are_refused(structure, model):
    import tensorflow as tf

    unbatched = tf.data.Dataset.from_tensor_slices(structure)
    for method in (
        model.fit,
        model.evaluate,
        model.normalizer.adapt,
        lambda data: score(model, data),
    ):
        with pytest.raises(
            ValueError,
            match=r"this is one image. A data set must hold batches: dataset.batch\(32\)",
        ):
            method(unbatched)
    with pytest.raises(ValueError, match="these are batches of batches"):
        model.fit(unbatched.batch(2).batch(2), verbose=0)


@pytest.mark.parametrize("form", WHOLE)
def test_axes_in_another_order_are_refused_with_their_order(form, model):
    channels_first = PICTURES.transpose(0, 3, 1, 2)
    message = (
        r"images have their channels first: .* put them last with images.transpose\(0, 2, 3, 1\)"
    )
    uses = [
        lambda data: model.fit(data, verbose=0),
        model.normalizer.adapt,
        lambda data: score(model, data),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=message):
            use(WHOLE[form](channels_first))
    wide = ddim_keras.DiffusionModel((8, 12), [4], 1, channels=3)
    wide.compile("sgd")
    wide.normalizer.adapt(random_images(2, (8, 12, 3)))
    with pytest.raises(
        ValueError, match=r"height and width have changed places: .*images.transpose\(0, 2, 1, 3\)"
    ):
        wide.fit(WHOLE[form](random_images(8, (12, 8, 3))), verbose=0)


@slow_on_jax
@pytest.mark.parametrize("structure", ["array", *DICTIONARIES])
def test_adapting_and_scoring_take_what_fit_takes(structure, model):
    data = DICTIONARIES.get(structure, PICTURES)
    figures = []
    for form in WHOLE:
        model.normalizer.adapt(WHOLE[form](data))
        np.testing.assert_allclose(model.normalizer.mean, PICTURES.mean((0, 1, 2)), rtol=1e-5)
        figures.append(score(model, WHOLE[form](data)))
    np.testing.assert_allclose(figures, figures[0], rtol=1e-4)


# What resizing overshoots


def overshot(form, low=-0.00002, high=1.0016):
    images = PICTURES.copy()
    images[0, 0, 0], images[1, 1, 1] = low, high
    return WHOLE[form](images), WHOLE[form](np.clip(images, 0.0, 1.0))


@pytest.mark.parametrize("form", WHOLE)
def test_a_slight_overshoot_is_cut_off(form, model):
    given, clipped = overshot(form)
    assert model.evaluate(given, verbose=0) == model.evaluate(clipped, verbose=0)
    given, clipped = overshot(form)
    model.normalizer.adapt(given)
    mean = keras.ops.convert_to_numpy(model.normalizer.mean)
    model.normalizer.adapt(clipped)
    np.testing.assert_allclose(mean, keras.ops.convert_to_numpy(model.normalizer.mean), rtol=1e-7)
    model.fit(overshot(form)[0], verbose=0)
    with pytest.raises(ValueError, match=RANGE):
        model.fit(overshot(form, high=1.03)[0], verbose=0)
    with pytest.raises(ValueError, match=RANGE):
        model.fit(overshot(form, low=-0.03)[0], verbose=0)


def test_a_slight_overshoot_is_cut_off_of_what_is_edited(model):
    given, clipped = overshot("array")
    np.testing.assert_array_equal(model.encode(given, 2), model.encode(clipped, 2))
    known = np.ones((8, 8, 8, 1), "float32")
    known[:, 4:] = 0.0
    made = model.inpaint(given, known, 2, seed=0)
    np.testing.assert_array_equal(made, model.inpaint(clipped, known, 2, seed=0))
    assert made.min() >= 0.0 and made.max() <= 1.0
    for wrong in (PICTURES * 2 - 1, PICTURES * 255):
        for use in (
            lambda images: model.encode(images, 2),
            lambda images: model.inpaint(images, known, 2),
        ):
            with pytest.raises(ValueError, match=RANGE):
                use(wrong)


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


@slow_on_jax
def test_validation_data_are_checked_too():
    model = make_small_model()
    model.compile("adamw")
    with pytest.raises(ValueError, match=MESSAGES["nan"]):
        model.fit(random_images(), validation_data=as_dataset(wrong("nan")), verbose=0)
    with pytest.raises(ValueError, match=RANGE):
        model.evaluate(wrong("bytes as floats"), verbose=0)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (-0.5, r"validation_split must lie in \(0, 1\).*got -0.5"),
        (1.5, r"validation_split must lie in \(0, 1\).*got 1.5"),
        ("a fifth", r"validation_split must lie in \(0, 1\).*got 'a fifth'"),
        (0.99, "1 images cannot be divided by validation_split=0.99: one side would be empty"),
    ],
)
def test_a_share_that_divides_nothing_is_refused(share, message):
    model = make_small_model()
    model.compile("adamw")
    with pytest.raises(ValueError, match=message):
        model.fit(random_images(1), validation_split=share, verbose=0)
    assert not model.normalizer.adapted


def test_data_that_cannot_be_read_twice_are_not_used_up_by_adapting():
    model = make_small_model()
    model.compile("adamw")
    with pytest.raises(
        ValueError,
        match=r"would use up the images of a generator: adapt it first: model.normalizer.adapt",
    ):
        model.fit(FORMS["generator"](random_images()), verbose=0)
    with pytest.raises(
        ValueError, match=r"the data set never ends: adapt it first.*or give steps_per_epoch"
    ):
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
        (
            {"image_size": 9, "widths": [4, 8]},
            "image_size .9, 9. cannot be halved 1 times.*height 8 or 10",
        ),
        ({"image_size": (8, 8, 8)}, r"image_size must be an int or \(height, width\)"),
        ({"image_size": 0}, "image_size must be an integer, at least 1: got 0"),
        ({"image_size": 8.0}, "image_size must be an integer, at least 1: got 8.0"),
        ({"widths": 8}, r"widths must be a list of integers, such as \[1, 2\], got 8"),
        ({"widths": "84"}, "widths must be a list of integers, .*got '84'"),
        ({"widths": [8.5, 16]}, r"widths must be a list of integers, .*got \[8.5, 16\]"),
        ({"block_depth": 1.5}, "block_depth must be an integer, at least 1: got 1.5"),
        ({"attention_levels": 1}, "attention_levels must be a list of integers, .*got 1"),
        ({"dropout": "0.1"}, "dropout must be a number of at least 0, got '0.1'"),
        ({"channels": 0}, "channels must be an integer, at least 1: got 0"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\), got 1.0"),
        ({"schedule": "linear-ish"}, "unknown schedule 'linear-ish': expected one of .*angle"),
        (
            {"parameterization": "score"},
            "unknown parameterization 'score': expected one of .*velocity",
        ),
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
    with pytest.raises(
        ValueError, match=r"the network must map inputs of shapes \[\(None, 8, 8, 1\)"
    ):
        make_small_model(network=keras.Model([images, variances], images * variances))


def test_an_unusable_metric_is_refused():
    with pytest.raises(ValueError, match=r"a metric must be .* or a function .* model.score"):
        make_small_model().compile("adamw", metrics=["kid"])


def test_the_package_knows_its_names():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ddim_keras.nothing  # noqa: B018
    assert {"DiffusionModel", "data", "schedules"} <= set(dir(ddim_keras))


class Tensor:
    """Refuses what a tensor of PyTorch refuses NumPy: gradients, a GPU, bfloat16."""

    def __init__(self, values, dtype="torch.float32", troubles=()):
        self.values, self.dtype, self.troubles = values, dtype, set(troubles)
        self.shape = values.shape

    def __array__(self, dtype=None, copy=None):
        if self.troubles or self.dtype == "torch.bfloat16":
            raise TypeError(f"no NumPy array of {self.troubles} {self.dtype}")
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, where):
        return Tensor(self.values[where], self.dtype, self.troubles)

    def _without(self, trouble):
        return Tensor(self.values, self.dtype, self.troubles - {trouble})

    def detach(self):
        return self._without("gradient")

    def cpu(self):
        return self._without("gpu")

    def float(self):
        return Tensor(self.values, "torch.float32", self.troubles)


class Loader:
    """Batches, as PyTorch's DataLoader gives them; of an iterable it knows no length."""

    def __init__(self, batches, length=None):
        self.batches, self.length = batches, length

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        if self.length is None:
            raise TypeError("object of type 'Iterable' has no len()")
        return self.length


@pytest.mark.parametrize(
    ("trouble", "form"),
    crossed(
        ["gradient", "gpu", "bfloat16"], ["loader", "labels", "dictionaries", "singles", "whole"]
    ),
)
def test_tensors_that_numpy_does_not_take_are_taken(form, trouble, model):
    dtype = "torch.bfloat16" if trouble == "bfloat16" else "torch.float32"
    images = Tensor(random_images(8, (8, 8, 3)), dtype, {trouble} - {"bfloat16"})
    halves = [images[:4], images[4:]]
    labels = Tensor(np.arange(4), "torch.int64")
    data = {
        "loader": Loader(halves, 2),
        "labels": Loader([[half, labels] for half in halves], 2),
        "dictionaries": Loader([{"image": half, "label": labels} for half in halves], 2),
        "singles": Loader([[half[index] for index in range(4)] for half in halves], 2),
        "whole": images,
    }[form]
    model.normalizer.adapt(data)
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()
    assert np.isfinite(model.evaluate(data, verbose=0)).all()
    if form == "whole":
        assert model.encode(images[:2], 2).shape == (2, 8, 8, 3)
        assert model.inpaint(images[:2], np.eye(8), 2).shape == (2, 8, 8, 3)


def test_a_loader_of_unknown_length_says_what_to_do(model):
    loader = Loader([random_images(4, (8, 8, 3))] * 2)
    with pytest.raises(ValueError, match=r"Loader does not say how many .*iter\(...\) of it with"):
        model.fit(loader, verbose=0)
    model.normalizer.adapt(loader)
    model.fit(iter(loader), steps_per_epoch=2, verbose=0)


def test_what_has_no_batches_yet_is_told_of_the_loader(model):
    class Pictures:
        def __getitem__(self, index):
            return np.zeros((8, 8, 3), "float32")

    with pytest.raises(ValueError, match=r"got .*Pictures.* with PyTorch by DataLoader\(dataset"):
        model.fit(Pictures(), verbose=0)


def test_a_loader_of_pytorch_itself_is_taken(model):
    torch = pytest.importorskip("torch")
    images = torch.as_tensor(random_images(8, (8, 8, 3))).requires_grad_()
    pairs = torch.utils.data.TensorDataset(images, torch.arange(8) % 2)
    loader = torch.utils.data.DataLoader(pairs, batch_size=4, shuffle=True)
    history = model.fit(loader, class_weight={1: 2.0}, validation_data=loader, verbose=0).history
    assert np.isfinite(list(history.values())).all()


def test_what_is_no_array_of_images_is_named_with_what_to_give():
    model, images = make_small_model(), random_images(4)
    model.normalizer.adapt(images)
    labels = np.arange(4)
    for given, message in (
        (as_dataset(images), r"expected an array, got a _BatchDataset: .*next\(iter\(...\)\)"),
        (iter([images]), "expected an array, got a list_iterator"),
        ({"image": images}, "expected an array, got a dict"),
        (None, "expected an array, got a NoneType"),
        ((images, labels), "got images with labels.*give them apart"),
        ([(images, labels)], "expected an array, got a list of batches of parts"),
    ):
        with pytest.raises(ValueError, match=message):
            model.log_likelihood(given, 2)
        with pytest.raises(ValueError, match=message):
            nearest_training_images(given, images)
    for given, message in (
        ((batch for batch in [images]), "gone through twice, which a generator cannot be"),
        (None, "images must be an array, a data set of batches or a generator, got None"),
        (lambda: [images], "of type function: call it, if it makes a generator"),
    ):
        with pytest.raises(ValueError, match=message):
            nearest_training_images(images, given)
    with pytest.raises(ValueError, match="generated images hold NaN or infinity"):
        nearest_training_images(np.where(images > 0.5, np.nan, images), images)


def test_numbers_of_batches_are_positive_or_left_out():
    model, images = make_small_model(), random_images(4)
    model.compile()
    with pytest.raises(ValueError, match="steps_per_execution must be an integer"):
        model.compile(steps_per_execution="auto")
    for name in ("batch_size", "steps_per_epoch", "validation_steps", "validation_batch_size"):
        for number in (0, -1, 1.5):
            with pytest.raises(ValueError, match=f"{name} must be an integer, at least 1"):
                model.fit(images, verbose=0, **{name: number})
    assert not model.normalizer.adapted
    with pytest.warns(UserWarning, match="the normalizer was not adapted, as a single batch"):
        model.train_on_batch(images)
    model.normalizer.adapt(images)
    for name in ("batch_size", "steps"):
        with pytest.raises(ValueError, match=f"{name} must be an integer, at least 1"):
            model.evaluate(images, verbose=0, **{name: 0})
    with pytest.raises(ValueError, match="evaluate needs images: got None"):
        model.evaluate(None)
