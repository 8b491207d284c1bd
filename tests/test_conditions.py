"""Models that are told labels, images or vectors: what `fit` takes, what the verbs do with it."""

import warnings

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from conftest import first_quick, make_oracle_model, make_small_model, random_images, slow_on_jax
from keras import ops

import ddim_keras
from ddim_keras import DiffusionModel, callbacks, exporting, networks
from ddim_keras.data import load_dataset, pairs
from ddim_keras.diffusion.schedules import GivenBetaSchedule
from ddim_keras.diffusion.spacings import FittedSpacing

NAMES = ["daisy", "rose", "tulip"]
IMAGES = random_images(24)
LABELS = np.arange(24) % 3
ONE_HOT = np.eye(3, dtype="float32")[LABELS]
WORDS = [NAMES[label] for label in LABELS]


def make_labelled(**changes):
    model = make_small_model(**{"class_names": NAMES, "parameterization": "velocity", **changes})
    model.compile(optimizer=keras.optimizers.AdamW(1e-2))
    model.normalizer.adapt(IMAGES)
    return model


def batches_of(*parts):
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(8)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        where = slice(8 * index, 8 * index + 8)
        return {"images": IMAGES[where], "labels": LABELS[where]}


def generator():
    return (Batches()[index] for index in range(3))


FORMS = {
    "integers": lambda: (IMAGES, LABELS),
    "a column": lambda: (IMAGES, LABELS[:, None]),
    "whole floats": lambda: (IMAGES, LABELS.astype("float32")),
    "one-hot": lambda: (IMAGES, ONE_HOT),
    "names": lambda: (IMAGES, WORDS),
    "a dictionary": lambda: ({"images": IMAGES, "labels": LABELS},),
    "tf.data": lambda: (batches_of(IMAGES, LABELS),),
    "tf.data, one-hot": lambda: (batches_of(IMAGES, ONE_HOT),),
    "tf.data, names": lambda: (batches_of(IMAGES, WORDS),),
    "as TFDS": lambda: (batches_of({"image": IMAGES, "label": LABELS}),),
    "a PyDataset": lambda: (Batches(),),
    "a generator": lambda: (generator(),),
    "a list of batches": lambda: ([(IMAGES[:8], LABELS[:8])] * 3,),
    "with weights": lambda: (IMAGES, LABELS, np.ones(24)),
}


@pytest.fixture(scope="module")
def labelled():
    model = make_labelled()
    model.fit(IMAGES, LABELS, batch_size=8, epochs=8, verbose=0)
    return model


@slow_on_jax
@pytest.mark.parametrize("form", first_quick(FORMS, 2))
def test_labels_come_in_every_form(labelled, form):
    """All forms say the same: the evaluation of an order of images is one figure."""
    expected = labelled.evaluate(IMAGES, LABELS, batch_size=8, verbose=0)
    x, *rest = FORMS[form]()
    arguments = dict(zip(("y", "sample_weight"), rest))
    if form == "a list of batches":
        expected = labelled.evaluate(*map(np.concatenate, zip(*x)), batch_size=8, verbose=0)
    if form == "a generator":
        arguments["steps"] = 3
    found = labelled.evaluate(x, verbose=0, **arguments)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other = labelled.evaluate(IMAGES, (LABELS + 1) % 3, batch_size=8, verbose=0)
    assert abs(np.subtract(other, expected)).max() > 1e-5, "labels make no difference"


@pytest.mark.parametrize("kind", ["residual", "ddpm"])
def test_labels_are_told_apart_from_the_start(kind):
    """Their vectors begin around 0, far apart in comparison with where they begin together."""
    network = (
        networks.ddpm_unet((8, 8, 1), (8, 8), num_classes=3, groups=4)
        if kind == "ddpm"
        else make_small_model(num_classes=3, conditioning="every_block").network
    )
    (vectors,) = (
        np.asarray(layer.embeddings)
        for layer in network.layers
        if isinstance(layer, keras.layers.Embedding)
    )
    assert vectors.std(axis=0).mean() > abs(vectors.mean(axis=0)).mean()


@slow_on_jax
@pytest.mark.parametrize("form", first_quick(["tf.data, names", "integers", "a generator"]))
def test_fit_takes_them_too(form):
    x, *rest = FORMS[form]()
    model = make_labelled()
    steps = {"steps_per_epoch": 3} if form == "a generator" else {}
    history = model.fit(x, *rest, verbose=0, **steps).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.slow
def test_a_model_learns_what_its_labels_mean():
    """Dark and bright images: asked for by label, they come dark and bright, further so with
    guidance, and both without a label.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(256) % 2
    levels = np.where(labels == 0, 0.25, 0.75)[:, None, None, None]
    images = (levels + 0.05 * rng.normal(size=(256, 8, 8, 1))).clip(0, 1).astype("float32")
    model = make_small_model(
        num_classes=2,
        parameterization="velocity",
        normalization="group",
        conditioning="every_block",
        ema_decay=0.9,
        label_dropout=0.3,  # of 256 images a tenth are too few to learn both kinds from
    )
    model.compile(optimizer=keras.optimizers.AdamW(1e-2), loss="mean_squared_error")
    model.fit(images, labels, batch_size=64, epochs=60, verbose=0)
    dark, bright = (
        model.generate(16, 10, labels=label, seed=0).mean((1, 2, 3)) for label in (0, 1)
    )
    assert (dark < 0.45).all() and (bright > 0.55).all()
    either = model.generate(48, 10, seed=0).mean((1, 2, 3))
    assert (either < 0.45).sum() > 5 and (either > 0.55).sum() > 5


def test_images_are_fixed_by_seed_number_and_label(labelled):
    labels = [0, 1, 2, None, 1, "rose", "tulip"]
    images = labelled.generate(7, 5, seed=3, labels=labels)
    few = labelled.generate(7, 5, seed=3, labels=labels, batch_size=2)
    np.testing.assert_allclose(few, images, atol=1e-5)
    part = labelled.generate(3, 5, seed=3, labels=labels[2:5], first_image=2)
    np.testing.assert_allclose(part, images[2:5], atol=1e-5)
    np.testing.assert_allclose(labelled.generate(7, 5, seed=3)[3], images[3], atol=1e-5)
    assert abs(labelled.generate(7, 5, seed=3, labels=0)[1] - images[1]).max() > 1e-4


def test_a_label_is_said_in_several_ways(labelled):
    wanted = labelled.generate(2, 3, seed=0, labels=1)
    for labels in ("rose", np.int64(1), [1, 1], ["rose", 1], np.array([1, 1]), np.eye(3)[[1, 1]]):
        np.testing.assert_array_equal(labelled.generate(2, 3, seed=0, labels=labels), wanted)


WRONG = {
    "too large": (3, "out of range.*'daisy', 'rose', 'tulip'"),
    "negative": (-1, "out of range"),
    "beyond 64 bits": (10**20, "the label 1000.* is out of range"),
    "beyond 64 bits beside a name": (["rose", 10**20], "the label 1000.* is out of range"),
    "a fraction": (0.5, "out of range"),
    "unknown": ("lily", "unknown label 'lily'.*'daisy'"),
    "one too many": ([0, 1, 2], "3 labels.*2 images"),
    "a truth": (True, "integers from 0 to 2"),
    "one-hot of four": (np.eye(4)[[0, 1]], "num_classes=4"),
    "two-hot": (np.ones((2, 3)), "single 1"),
    "NaN": ([0.0, float("nan")], "labels hold NaN"),
    "two names each": (np.array([["rose", "rose"]] * 2), "integers from 0 to 2 or names"),
    "rows of unequal length": ([[1, 0, 0], [0, 1]], "unequal length"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_labels_are_refused(labelled, name):
    labels, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        labelled.generate(2, labels=labels)


@slow_on_jax
@pytest.mark.parametrize("backed", first_quick(["tf.data", "array", "generator"]))
@pytest.mark.parametrize(
    "labels, message",
    [
        (np.arange(23, -1, -1) % 4, "the label 3 is out of range.*'daisy'"),
        (["lily"] + ["daisy"] * 23, "unknown label 'lily'.*'rose'"),
        (np.eye(4)[LABELS], "one-hot labels must have 3 classes, got 4"),
        (None, "no labels"),
    ],
    ids=["out of range", "unknown", "one-hot", "missing"],
)
def test_data_whose_labels_do_not_fit_are_refused(backed, labels, message):
    parts = (IMAGES,) if labels is None else (IMAGES, np.asarray(labels))
    model = make_labelled()
    if backed == "array":
        arguments = parts
    elif backed == "tf.data":
        arguments = (batches_of(*parts),)
    else:
        arguments = (iter([parts if labels is not None else parts[0]]),)
    with pytest.raises(ValueError, match=message):
        model.fit(*arguments, verbose=0, steps_per_epoch=1)


@pytest.mark.slow
def test_a_model_without_classes_says_once_that_it_ignores_labels():
    model = make_small_model()
    model.compile()
    with pytest.warns(UserWarning, match="labels, which this model ignores"):
        model.fit(IMAGES, WORDS, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(batches_of(IMAGES, LABELS), verbose=0)
    with pytest.raises(ValueError, match="no labels"):
        model.generate(1, labels=0)


@pytest.mark.slow
def test_class_weights_go_by_the_models_classes():
    model = make_labelled()
    only = model.fit(IMAGES, WORDS, class_weight={0: 1.0, 1: 0.0, 2: 0.0}, verbose=0, shuffle=False)
    assert 0.0 < only.history["loss"][0] < 0.6


@slow_on_jax
def test_without_dropout_a_label_is_needed():
    model = make_labelled(label_dropout=0.0)
    model.fit(IMAGES, LABELS, verbose=0)
    with pytest.raises(ValueError, match="label_dropout=0"):
        model.generate(1)
    with pytest.raises(ValueError, match="no labels"):
        model.evaluate(IMAGES, verbose=0)
    assert model.generate(1, 2, labels=0).shape == (1, 8, 8, 1)


@slow_on_jax
def test_a_recipe_kept_without_labels_leaves_them_out_when_it_is_used_with_them(tmp_path):
    model = make_small_model()
    model.normalizer.adapt(IMAGES)
    model.save_to_preset(tmp_path / "preset")
    again = DiffusionModel.from_preset(tmp_path / "preset", load_weights=False, num_classes=3)
    assert again.get_config()["label_dropout"] == 0.1


@pytest.mark.slow
def test_names_come_from_the_data_set_and_stay(tmp_path):
    for name in NAMES:
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for number in range(4):
            image = (255 * random_images(1, (8, 8, 3), seed=number)[0]).astype("uint8")
            PIL.Image.fromarray(image).save(tmp_path / "flowers" / name / f"{number}.png")
    train, _ = load_dataset(tmp_path / "flowers", 8, 4, labels=True)
    model = make_small_model(num_classes=3, channels=3)
    model.compile()
    model.fit(train, verbose=0)
    assert model.class_names == NAMES
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset", half=False)
    images = model.generate(2, 3, seed=0, labels="rose")
    for again in (
        keras.models.load_model(tmp_path / "model.keras"),
        DiffusionModel.from_preset(tmp_path / "preset"),
    ):
        assert again.class_names == NAMES
        np.testing.assert_array_equal(again.generate(2, 3, seed=0, labels="rose"), images)
    train.class_names = ["lily", "rose", "tulip"]
    with pytest.raises(ValueError, match="'lily'.*'daisy'"):
        model.fit(train, verbose=0)
    train.class_names = [*NAMES, "lily"]
    with pytest.raises(ValueError, match="num_classes=4"):
        model.fit(train, verbose=0)
    with pytest.raises(ValueError, match="num_classes=2"):
        model.class_names = ["a", "b"]


@pytest.mark.slow
def test_accents_may_be_apart_from_their_letters():
    together, apart = "ros\u00e9", "rose\u0301"
    model = make_small_model(class_names=["rose", apart], channels=3)
    assert model.class_names == ["rose", together]
    for name in (together, apart):
        assert model.objective.spec.class_numbers([name, "rose"]).tolist() == [1, 0]
    model.compile()
    words = np.array([together, apart, "rose"])
    model.fit(batches_of(random_images(3, (8, 8, 3)), words), verbose=0)


def test_names_of_an_array_are_words_and_one_class_may_be_one_hot():
    model = make_small_model(class_names=np.array(["rose"]), label_dropout=np.float32(0.2))
    assert model.class_names == ["rose"] and type(model.class_names[0]) is str
    numbers = model.objective.spec.class_numbers
    assert numbers(np.ones((2, 1))).tolist() == numbers(np.zeros((2, 1))).tolist() == [0, 0]


def test_every_verb_takes_labels(labelled):
    for make in (
        lambda **told: labelled.encode(IMAGES[:2], 5, **told),
        lambda **told: labelled.decode(np.ones((2, 8, 8, 1)), 5, **told),
        lambda **told: labelled.variations(IMAGES[0], 0.9, 2, 5, seed=0, **told),
        lambda **told: labelled.inpaint(IMAGES[:2], np.eye(8), 4, seed=0, **told),
        lambda **told: labelled.interpolate(IMAGES[0], IMAGES[1], 2, 5, **told),
        lambda **told: ops.convert_to_numpy(
            labelled.reverse_diffusion(np.ones((2, 8, 8, 1), "float32"), 4, **told)
        ),
        lambda **told: labelled.denoise(IMAGES[:2], 0.6, 0.8, **told)[1].__array__(),
    ):
        one, other = make(labels=0), make(labels=[1, 2])
        assert np.isfinite(one).all() and abs(one - other).max() > 1e-5


@slow_on_jax
def test_the_ends_of_an_interpolation_are_encoded_under_their_labels(labelled):
    labels = [0, None, 2]
    path = labelled.interpolate(IMAGES[0], IMAGES[1], 3, 30, from_images=True, labels=labels)
    for place, label in ((0, 0), (2, 2)):
        alone = labelled.reconstruct(IMAGES[place // 2][None], 30, labels=label)[0]
        np.testing.assert_allclose(path[place], alone, atol=2e-4)
    corners = labelled.interpolate_grid(
        IMAGES[:4], 2, 2, 30, from_images=True, labels=[0, 1, 2, None]
    )
    expected = labelled.reconstruct(IMAGES[:4], 30, labels=[0, 1, 2, None])
    np.testing.assert_allclose(corners.reshape(4, 8, 8, 1), expected, atol=2e-4)


@keras.saving.register_keras_serializable("ddim_keras_tests")
class MeanOfGenerated(keras.metrics.Mean):
    def update_state(self, real, generated, sample_weight=None):
        super().update_state(generated)


@pytest.mark.slow
def test_the_images_of_validation_metrics_bear_the_labels_of_the_real_ones(labelled):
    labelled.compile(metrics=[MeanOfGenerated(name="mean")])
    means = [
        labelled.evaluate(IMAGES, np.full(24, label), verbose=0, return_dict=True)["mean"]
        for label in (0, 1)
    ]
    assert abs(means[0] - means[1]) > 1e-6


@pytest.mark.slow
def test_scores_take_the_labels_of_the_data_set():
    images = random_images(20, (28, 28, 1))
    options = {"num_classes": 2, "normalization": "group", "parameterization": "velocity"}
    model = DiffusionModel(28, [8], 1, channels=1, seed=1, **options)
    model.normalizer.adapt(images)
    weights = model.ema_network.get_weights()
    rng = np.random.default_rng(0)
    model.ema_network.set_weights([rng.normal(scale=0.3, size=part.shape) for part in weights])
    options = {
        "metrics": ["precision_recall", "fid"],
        "extractor": "fashion_mnist",
        "diffusion_steps": 2,
    }
    labels = np.arange(20) % 2
    found = model.score((images, labels), 30, labels=True, **options)
    wanted = model.score((images, labels), 30, labels=[*labels, *labels[:10]], **options)
    assert found == wanted
    assert model.score((images, labels), 30, **options) != wanted
    with pytest.raises(ValueError, match="holds none"):
        model.score(images, 30, labels=True, **options)


@slow_on_jax
def test_agreement_is_how_often_a_classifier_sees_the_label_asked_for():
    images = random_images(10, (8, 8, 1))
    model = DiffusionModel(8, [8], 1, channels=1, class_names=["dark", "bright"], seed=1)
    model.normalizer.adapt(images)
    labels = [0, 1, None, 1, 1, 0]
    brightness = model.generate(6, 2, labels=labels, seed=3, verbose=0).mean(axis=(1, 2, 3))
    middle = np.sort(brightness)[2:4].mean()
    bright = brightness > middle

    class Brightness(ddim_keras.metrics.Extractor):
        feature_dims = 1

        def features(self, images):
            return keras.ops.mean(images, axis=(1, 2))

        def probabilities(self, images):
            return keras.ops.concatenate(
                [0.0 * self.features(images) + middle, self.features(images)], axis=1
            )

    told = {"metrics": ["agreement"], "diffusion_steps": 2, "seed": 3, "batch_size": 4}
    found = model.score(
        (images, np.arange(10) % 2), 6, labels=labels, extractor=Brightness(), **told
    )
    asked = [0, 1, 3, 4, 5]
    assert found == {"agreement": np.mean([bright[each] == labels[each] for each in asked])}
    with pytest.raises(ValueError, match="give labels, or True"):
        model.score(images, 6, extractor=Brightness(), **told)
    told["metrics"] = ["bits_per_dim", "agreement"]
    untouched = iter([])  # what is asked for in vain is refused before a pass over the images
    with pytest.raises(ValueError, match="give labels, or True"):
        model.score(untouched, 6, extractor=Brightness(), **told)
    told["metrics"] = ["kid", "agreement"]
    seen = []
    real = (seen.append(part) or part for part in np.split(images, 2))
    with pytest.raises(ValueError, match="tells 10 classes apart, and the model has 2"):
        model.score(real, 6, labels=0, extractor="fashion_mnist", **told)
    assert len(seen) < 2


@slow_on_jax
def test_samples_have_a_row_for_each_class(tmp_path, labelled):
    callback = callbacks.SampleImages(tmp_path, num_images=8, diffusion_steps=3, scale=1)
    callback.set_model(labelled)
    callback.on_epoch_end(0)
    picture = np.asarray(PIL.Image.open(tmp_path / "samples_0001.png"))
    assert picture.shape[:2] == (3 * 10, 2 * 10)  # 8 // 3 columns, with a border around each image
    rows = labelled.generate(6, 3, seed=0, labels=[0, 0, 1, 1, 2, 2])
    shown = picture[1:9, 11:19, 0] / 255.0
    np.testing.assert_allclose(shown, rows[1, ..., 0], atol=0.003)


def test_a_network_of_ones_own_gets_labels_and_conditions_by_name():
    condition = keras.Input((3,), name="condition")
    labels = keras.Input((1,), dtype="int32", name="labels")
    noisy, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    embedded = keras.layers.Embedding(4, 64)(labels)
    shift = keras.layers.Reshape((8, 8, 1))(embedded)
    shift = shift + keras.layers.Reshape((1, 1, 1))(keras.layers.Dense(1)(condition))
    outputs = noisy * keras.layers.Dense(1)(variances) + shift
    # In any order: the two without a name of these are images and variances.
    network = keras.Model([condition, noisy, labels, variances], outputs)
    options = {"num_classes": 3, "condition_shape": 3, "condition_dropout": 0.1}
    model = make_small_model(network=network, **options)
    model.compile()
    vectors = np.random.default_rng(0).normal(size=(24, 3))
    model.fit({"images": IMAGES, "labels": LABELS, "condition": vectors}, verbose=0)
    model.sampling_defaults = ddim_keras.SamplingDefaults(guidance=2.0)
    model.engine.spec.condition_dropout = 0.0
    # The model's own guidance acts on what may be left out alone, or it would be no guidance.
    assert model.generate(1, network_evaluations=1, condition=vectors[:1], seed=0).shape[0] == 1
    with pytest.raises(ValueError, match="must be at least 2 .*the model's own, got 1"):
        model.generate(1, network_evaluations=1, labels=0, condition=vectors[:1], seed=0)
    model.engine.spec.condition_dropout = 0.1
    images = model.generate(2, 2, labels=[0, 1], condition=vectors[:2], guidance=2.0, seed=0)
    assert abs(images[0] - images[1]).max() > 1e-5
    for wrong, message in (
        ({}, "so the model needs a num_classes"),
        ({"num_classes": 3}, "so the model needs a condition_shape"),
        ({"num_classes": 3, "condition_shape": 4}, "as condition_shape says"),
    ):
        with pytest.raises(ValueError, match=message):
            make_small_model(network=network, **wrong)
    plain = keras.Model([noisy, variances], noisy * keras.layers.Dense(1)(variances))
    with pytest.raises(ValueError, match="an input called 'labels'"):
        make_small_model(network=plain, num_classes=3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float16"])
def test_labels_in_half_precision(dtype):
    model = make_labelled(dtype=dtype)
    model.fit(IMAGES, LABELS, verbose=0)
    assert np.isfinite(model.generate(2, 3, labels=[0, 2], guidance=2.0)).all()


# Images and vectors to condition on


def make_upscaler(**changes):
    model = make_small_model(
        **{"condition_shape": (2, 2, 1), "parameterization": "velocity", **changes}
    )
    model.compile(optimizer=keras.optimizers.AdamW(1e-2))
    return model


PAIRS = pairs.super_resolution(IMAGES, 4)
PAIR_FORMS = {
    "a dictionary": lambda: (PAIRS,),
    "a pair": lambda: ((IMAGES, PAIRS["condition"]),),
    "two arguments": lambda: (IMAGES, PAIRS["condition"]),
    "bytes": lambda: (IMAGES, np.rint(255 * PAIRS["condition"]).astype("uint8")),
    "tf.data": lambda: (batches_of(PAIRS),),
    "tf.data of pairs": lambda: (batches_of(IMAGES, PAIRS["condition"]),),
    "made of tf.data": lambda: (pairs.super_resolution(batches_of(IMAGES, LABELS), 4),),
    "a list of batches": lambda: (
        [(IMAGES[i : i + 8], PAIRS["condition"][i : i + 8]) for i in (0, 8, 16)],
    ),
}


@pytest.fixture(scope="module")
def upscaler():
    model = make_upscaler()
    model.fit(PAIRS, batch_size=8, epochs=8, validation_split=0.25, verbose=0)
    return model


@slow_on_jax
@pytest.mark.filterwarnings("ignore:the data have labels")
@pytest.mark.parametrize("form", first_quick(PAIR_FORMS, 2))
def test_pairs_come_in_every_form(upscaler, form):
    expected = upscaler.evaluate(PAIRS, batch_size=8, verbose=0)
    arguments = PAIR_FORMS[form]()
    size = (
        {}
        if len(arguments) == 1 and not isinstance(arguments[0], (dict, tuple))
        else {"batch_size": 8}
    )
    found = upscaler.evaluate(*arguments, verbose=0, **size)
    np.testing.assert_allclose(found, expected, rtol=1e-3 if form == "bytes" else 1e-5)
    rolled = {"images": IMAGES, "condition": np.roll(PAIRS["condition"], 1, axis=0)}
    other = upscaler.evaluate(rolled, batch_size=8, verbose=0)
    assert abs(np.subtract(other, expected)).max() > 1e-5, "conditions make no difference"


@pytest.mark.slow
def test_generated_images_follow_their_condition(tmp_path):
    """Small images of two levels: the large ones come out at those levels."""
    rng = np.random.default_rng(0)
    levels = rng.uniform(0.2, 0.8, size=(256, 1, 1, 1))
    images = (levels + 0.05 * rng.normal(size=(256, 8, 8, 1))).clip(0, 1).astype("float32")
    model = make_upscaler(normalization="group", conditioning="every_block", ema_decay=0.9)
    model.fit(pairs.super_resolution(images, 4), batch_size=64, epochs=30, verbose=0)
    wanted = np.array([0.25, 0.5, 0.75])
    condition = np.broadcast_to(wanted[:, None, None, None], (3, 2, 2, 1))
    made = model.generate(3, 10, condition=condition, seed=0).mean((1, 2, 3))
    np.testing.assert_allclose(made, wanted, atol=0.12)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.generate(3, 10, condition=condition, seed=0).mean((1, 2, 3)), made, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("as_batches", [True, False])
def test_weights_count_beside_conditions(as_batches):
    model = make_upscaler(num_classes=3)
    data = {**PAIRS, "labels": LABELS}
    weights = (np.arange(24) < 8).astype("float32")

    def evaluated(data, weights):
        if as_batches:
            given = {**data, "sample_weight": weights}
            return model.evaluate(batches_of(given), verbose=0)
        return model.evaluate(data, sample_weight=weights, batch_size=8, verbose=0)

    model.fit(data, sample_weight=weights, batch_size=8, verbose=0)
    first = {name: part[:8] for name, part in data.items()}
    expected = model.evaluate(first, batch_size=8, verbose=0)
    found = evaluated(data, weights)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-5)
    assert abs(np.subtract(evaluated(data, np.ones(24)), found)).max() > 1e-4


@slow_on_jax
def test_one_condition_serves_all_images_and_bytes_are_images(upscaler):
    small = PAIRS["condition"][:1]
    images = upscaler.generate(3, 4, condition=np.repeat(small, 3, axis=0), seed=0)
    np.testing.assert_array_equal(upscaler.generate(3, 4, condition=small[0], seed=0), images)
    rounded = np.rint(255 * small[0]).astype("uint8")
    found = upscaler.generate(3, 4, condition=rounded, seed=0)
    np.testing.assert_allclose(found, images, atol=0.01)


WRONG_CONDITIONS = {
    "none": (None, "give condition="),
    "another size": (np.zeros((2, 4, 4, 1)), "shape.*expected"),
    "too few": (np.zeros((1, 2, 2, 1)), "each of 2 images"),
    "out of range": (np.full((2, 2, 2, 1), 9.0), "out of range"),
    "NaN": (np.full((2, 2, 2, 1), np.nan), "NaN"),
}


@pytest.mark.parametrize("name", WRONG_CONDITIONS)
def test_wrong_conditions_are_refused(upscaler, name):
    condition, message = WRONG_CONDITIONS[name]
    with pytest.raises(ValueError, match=message):
        upscaler.generate(2, condition=condition)
    if condition is not None:
        images = IMAGES[: len(condition)] if name != "too few" else IMAGES[:2]
        both = [(images, condition)]
        both += [(batches_of(images, condition),)] if len(images) == len(condition) else []
        for arguments in both:
            with pytest.raises(ValueError):
                upscaler.fit(*arguments, verbose=0)


def test_data_without_conditions_are_refused(upscaler):
    for data in (IMAGES, batches_of(IMAGES)):
        with pytest.raises(ValueError, match="the data hold none"):
            upscaler.fit(data, verbose=0)
    with pytest.raises(ValueError, match="takes no condition"):
        make_small_model().generate(1, condition=IMAGES[0])


@pytest.mark.slow
def test_noise_on_the_condition_and_its_dropout_act_in_training_alone():
    model = make_upscaler(condition_noise=0.5, condition_dropout=0.5, num_classes=3)
    model.normalizer.adapt(IMAGES)
    data = {**PAIRS, "labels": LABELS}
    model.fit(data, verbose=0)
    assert model.evaluate(data, verbose=0) == model.evaluate(data, verbose=0)
    batch = ddim_keras.data.inputs.Batch(
        ops.convert_to_tensor(IMAGES),
        ops.convert_to_tensor(LABELS),
        None,
        ops.convert_to_tensor(PAIRS["condition"]),
    )
    told = {
        name: ops.convert_to_numpy(part) for name, part in model._told_in_training(batch).items()
    }
    dropped = (told["condition"] == 0.0).all((1, 2, 3))
    assert 3 < dropped.sum() < 21
    clean = 2.0 * PAIRS["condition"] - 1.0
    assert abs(told["condition"] - clean)[~dropped].max() > 0.05
    np.testing.assert_allclose(
        ops.convert_to_numpy(model._told(batch)["condition"]), clean, atol=1e-6
    )


@pytest.mark.slow
def test_vectors_are_conditions_too():
    model = make_small_model(condition_shape=5, condition_dropout=0.2)
    model.compile()
    vectors = np.random.default_rng(0).normal(size=(24, 5))
    model.fit(IMAGES, vectors, verbose=0)
    images = model.generate(2, 3, condition=vectors[:2], guidance=2.0, seed=0)
    assert abs(model.generate(2, 3, seed=0) - images).max() > 1e-5
    with pytest.raises(ValueError, match="NaN"):
        model.fit(IMAGES, np.full((24, 5), np.nan), verbose=0)


# Pairs


@slow_on_jax
def test_small_images_are_means_of_blocks_whatever_holds_them():
    images = random_images(4, (8, 12, 3))
    expected = images.reshape(4, 2, 4, 3, 4, 3).mean((2, 4))
    found = pairs.super_resolution((images, [0, 1, 2, 0]), 4)
    np.testing.assert_allclose(found["condition"], expected, atol=1e-6)
    assert list(found["labels"]) == [0, 1, 2, 0]
    data = pairs.super_resolution(batches_of((255 * images).astype("uint8")), 4)
    (batch,) = data.as_numpy_iterator()
    np.testing.assert_allclose(batch["condition"], expected, atol=0.005)
    with pytest.raises(ValueError, match="multiples"):
        pairs.super_resolution(images, 5)
    with pytest.raises(ValueError, match="arrays or of a tf.data.Dataset"):
        pairs.super_resolution(iter([images]), 4)


@slow_on_jax
def test_colour_images_are_paired_with_grey_ones():
    images = np.zeros((3, 2, 2, 3), "float32")
    images[range(3), ..., range(3)] = 1.0
    grey = pairs.colorization(images)["condition"]
    np.testing.assert_allclose(grey[:, 0, 0, 0], [0.299, 0.587, 0.114], atol=1e-6)
    (batch,) = pairs.colorization(batches_of(images)).as_numpy_iterator()
    np.testing.assert_allclose(batch["condition"], grey, atol=1e-6)
    with pytest.raises(ValueError, match="3 channels"):
        pairs.colorization(IMAGES)


@pytest.mark.slow
def test_pairs_resume_at_any_step_like_their_images():
    train, _ = load_dataset("embedded", 16, 8, labels=True)
    made = pairs.super_resolution(train, 2)
    assert made.class_names == train.class_names
    first, second = (next(iter(made.from_step(5))) for _ in range(2))
    np.testing.assert_array_equal(first["condition"], second["condition"])
    plain = next(iter(train.from_step(5)))
    np.testing.assert_array_equal(first["images"], plain[0])


def write_pairs(folder, number=10, suffix=".png"):
    for kind in ("photos", "sketches"):
        (folder / kind).mkdir(parents=True)
    for index in range(number):
        level = 20 * index + 30
        photo = np.full((8, 8, 3), level, "uint8")
        photo[:, :4] = 0
        PIL.Image.fromarray(photo).save(folder / "photos" / f"{index:02d}.png")
        sketch = np.full((4, 4), level, "uint8")
        sketch[:, :2] = 0
        PIL.Image.fromarray(sketch).save(folder / "sketches" / f"{index:02d}{suffix}")
    return folder / "photos", folder / "sketches"


@slow_on_jax
@pytest.mark.parametrize("flip", [False, True])
def test_two_folders_are_paired_by_name(tmp_path, flip):
    folders = write_pairs(tmp_path, suffix=".bmp")
    train, held_out = pairs.load_folders(*folders, 8, 4, 4, flip=flip, seed=3)
    seen = []
    for batch in [*train.repeat(3).as_numpy_iterator(), *held_out.as_numpy_iterator()]:
        assert batch["images"].shape[1:] == (8, 8, 3) and batch["condition"].shape[1:] == (4, 4, 1)
        for image, sketch in zip(batch["images"], batch["condition"]):
            np.testing.assert_allclose(image[0, [0, -1], 0], sketch[0, [0, -1], 0], atol=0.01)
            seen.append(image[0, 0, 0] == 0.0)
    assert all(seen) != flip
    assert sum(len(batch["images"]) for batch in held_out.as_numpy_iterator()) == 2


@slow_on_jax
def test_folders_that_do_not_pair_are_refused(tmp_path):
    photos, sketches = write_pairs(tmp_path)
    (sketches / "03.png").unlink()
    with pytest.raises(ValueError, match="sketches lacks 1 .*03"):
        pairs.load_folders(photos, sketches, 8)
    PIL.Image.new("L", (4, 4)).save(sketches / "03.png")
    PIL.Image.new("L", (4, 4)).save(sketches / "03.bmp")
    with pytest.raises(ValueError, match="several images of one name.*03"):
        pairs.load_folders(photos, sketches, 8)
    with pytest.raises(ValueError, match="no such folder"):
        pairs.load_folders(photos, tmp_path / "nowhere", 8)


# Arguments


@slow_on_jax
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2, "class_names": NAMES}, "num_classes=3"),
        ({"class_names": ["a", "a"]}, "differ"),
        ({"class_names": "abc"}, "list of one or more words"),
        ({"class_names": 3}, "list of one or more words"),
        ({"class_names": []}, "list of one or more words"),
        ({"condition_shape": 5.0}, "condition_shape"),
        ({"num_classes": 2, "label_dropout": 1.0}, "label_dropout"),
        ({"condition_shape": (8, 8)}, "condition_shape"),
        ({"condition_shape": (8, 8, 0)}, "condition_shape"),
        ({"condition_shape": 3, "condition_dropout": -0.1}, "condition_dropout"),
        ({"condition_shape": 3, "condition_noise": float("nan")}, "condition_noise"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_small_model(**arguments)


@pytest.mark.parametrize("labels", [np.full((8, 3), 1 / 3, "float32"), np.zeros((8, 3), "float32")])
def test_rows_that_are_not_one_hot_are_refused_in_data_sets_too(labels):
    model = make_small_model(num_classes=3)
    model.compile("sgd")
    for data in (
        (random_images(8), labels),
        (tf.data.Dataset.from_tensor_slices((random_images(8), labels)).batch(4),),
    ):
        with pytest.raises(ValueError, match="a single 1 in each row"):
            model.fit(*data, verbose=0)


def test_labels_that_are_true_or_false_are_refused_in_words():
    model = make_small_model(num_classes=2)
    model.compile("sgd")
    data = tf.data.Dataset.from_tensor_slices((random_images(8), np.ones(8, bool))).batch(4)
    with pytest.raises(ValueError, match="got a data set of bool labels"):
        model.fit(data, verbose=0)


def traced(function, *shapes):
    """A function compiled by the backend's own means; on TensorFlow for any size of the batch."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    signature = [tf.TensorSpec((None, *shape), dtype) for shape, dtype in shapes]
    return tf.function(function, input_signature=signature)


OF_IMAGES, OF_NUMBERS, OF_FEATURES = ((8, 8, 1), "float32"), ((), "int32"), ((3,), "float32")


@pytest.fixture(scope="module")
def told_model():
    model = make_small_model(num_classes=2, condition_shape=(3,), parameterization="velocity")
    draws = np.random.default_rng(0)
    for weight in model.ema_network.weights:
        if len(weight.shape) > 1:
            weight.assign(0.3 * draws.normal(size=weight.shape))
    return model


def noise_and_told():
    """Noise, labels, of which 2 says nothing, and conditions."""
    draws = np.random.default_rng(0)
    noise = draws.normal(size=(4, 8, 8, 1)).astype("float32")
    return noise, np.array([0, 1, 2, 0], "int32"), draws.normal(size=(4, 3)).astype("float32")


@pytest.mark.slow
def test_labels_and_conditions_may_be_tensors_of_a_function_that_is_compiled(told_model):
    noise, labels, condition = noise_and_told()

    def denoised(noise, labels, condition):
        return told_model.denoise(noise, 0.6, 0.8, labels=labels, condition=condition)

    found = traced(denoised, OF_IMAGES, OF_NUMBERS, OF_FEATURES)(noise, labels, condition)
    expected = denoised(noise, [0, 1, None, 0], condition)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)

    def of_four(noise):  # how many they are is known of the condition alone
        return told_model.denoise(noise, 0.6, 0.8, labels=0, condition=condition)

    for one, other in zip(traced(of_four, OF_IMAGES)(noise), of_four(noise), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    one_hot, wide = np.eye(2, dtype="float32")[[0, 1, 1, 0]], np.zeros((4, 5), "float32")
    with pytest.raises(
        ValueError, match=r"must be class numbers, integers of shape \(batch,\), go"
    ):
        traced(denoised, OF_IMAGES, ((2,), "float32"), OF_FEATURES)(noise, one_hot, condition)
    with pytest.raises(ValueError, match="condition has shape .*one for each image, of the model"):
        traced(denoised, OF_IMAGES, OF_NUMBERS, ((5,), "float32"))(noise, labels, wide)


@pytest.mark.slow
def test_a_walk_may_be_told_tensors_of_a_function_that_is_compiled(told_model):
    noise, labels, condition = noise_and_told()

    def walked(noise, labels):
        return told_model.reverse_diffusion(noise, 2, labels=labels, condition=condition[0])

    found = traced(walked, OF_IMAGES, OF_NUMBERS)(noise, labels)
    np.testing.assert_allclose(found, walked(noise, [0, 1, None, 0]), atol=1e-5)


def test_images_of_other_conditions_are_told_apart_also_where_they_are_long_tensors(
    monkeypatch, tmp_path
):
    model = make_small_model(condition_shape=600)  # two are more numbers than a tensor prints
    monkeypatch.setattr(model, "generate", lambda number, **_: np.zeros((number, 8, 8, 1)))
    ones, others = np.ones((2, 600), "float32"), np.ones((2, 600), "float32")
    others[:, 300] = 0.0

    def export(condition, steps):
        options = {"condition": condition, "diffusion_steps": steps, "tell": lambda line: None}
        return exporting.export_images(model, tmp_path, 2, format="npz", **options)

    assert export(ops.convert_to_tensor(ones), 1) == 1
    assert export(ones, np.int64(1)) == 0
    with pytest.raises(ValueError, match="were made otherwise .*'condition': 'sha256 "):
        export(ops.convert_to_tensor(others), 1)


@pytest.mark.parametrize(
    ("option", "kind", "one", "other"),
    [
        ("spacing", FittedSpacing, [[1.5, 0.6]], [[1.5, 0.7]]),
        ("schedule", GivenBetaSchedule, [0.1, 0.2, 0.3], [0.1, 0.25, 0.3]),
    ],
)
def test_images_of_other_listed_levels_are_told_apart(
    monkeypatch, tmp_path, option, kind, one, other
):
    model = make_oracle_model()
    monkeypatch.setattr(model, "generate", lambda number, **_: np.zeros((number, 8, 8, 1)))

    def export(numbers):
        options = {option: kind(numbers), "diffusion_steps": 2, "tell": lambda line: None}
        return exporting.export_images(model, tmp_path, 2, format="npz", sampler="ddim", **options)

    assert (export(one), export(one)) == (1, 0)
    with pytest.raises(
        ValueError, match="were made otherwise .*(steps|3 from 0.1 to 0.3).*, sha256 "
    ):
        export(other)
