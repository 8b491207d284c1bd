import contextlib

import keras
import numpy as np
import pytest
from conftest import (
    SLOW_CASE_ON_JAX,
    crossed,
    make_small_model,
    random_images,
    run_python,
    slow_on_jax,
)
from keras.src.backend.common.variables import AutocastScope

from ddim_keras.networks import (
    BatchNormalization,
    BilinearUpsampling2D,
    ConditionedConv2D,
    GroupNormalization,
    ImageNormalization,
    SinusoidalEmbedding,
    Swish,
    recomputing,
    residual_unet,
    unet,
)
from ddim_keras.support import backend


def parameters_of_the_example(widths, block_depth, channels, embedding_dims=32):
    """Count the example's parameters by hand, block by block."""

    def convolution(size, before, after):
        return size * size * before * after + after

    def block(before, width):
        projection = 0 if before == width else convolution(1, before, width)
        normalization = 2 * before  # the moving mean and variance
        return (
            projection
            + normalization
            + convolution(3, before, width)
            + convolution(3, width, width)
        )

    total = convolution(1, channels, widths[0])
    now, skips = widths[0] + embedding_dims, []
    for width in widths[:-1]:
        for _ in range(block_depth):
            total += block(now, width)
            now = width
            skips.append(now)
    for _ in range(block_depth):
        total += block(now, widths[-1])
        now = widths[-1]
    for width in reversed(widths[:-1]):
        for _ in range(block_depth):
            total += block(now + skips.pop(), width)
            now = width
    return total + convolution(1, now, channels)


@slow_on_jax
def test_the_examples_settings_have_exactly_the_examples_number_of_parameters():
    network = residual_unet((64, 64, 3), [32, 64, 96, 128], 2)
    assert network.count_params() == parameters_of_the_example([32, 64, 96, 128], 2, 3) == 1_953_507


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ((8, 8, 1), [4]),
        pytest.param((8, 16, 4), [4, 8, 12], marks=SLOW_CASE_ON_JAX),
        ((6, 4, 7), [4, 8]),
    ],
)
def test_output_has_the_shape_of_the_images(shape, widths):
    network = residual_unet(shape, widths, 1)
    assert network([np.ones((2, *shape), "float32"), np.ones((2, 1, 1, 1), "float32")]).shape == (
        2,
        *shape,
    )
    assert network.count_params() == parameters_of_the_example(widths, 1, shape[-1])


def test_each_level_may_have_a_depth_of_its_own():
    """A block more at the lowest level adds that block's weights and no others."""
    options = {"conditioning": "every_block", "normalization": "group"}
    plain, deeper, even = (
        residual_unet((8, 8, 1), [4, 8], depth, **options) for depth in (1, [1, 2], [1, 1])
    )
    gain_and_bias, kernel, embedding = 2 * 8, 9 * 8 * 8 + 8, (4 * 32 + 1) * 8
    block = gain_and_bias + 2 * kernel + embedding
    assert deeper.count_params() - plain.count_params() == block
    assert even.count_params() == plain.count_params()


def test_an_untrained_network_predicts_zero():
    network = residual_unet((8, 8, 1), [4, 8], 1)
    assert not np.any(network([np.ones((2, 8, 8, 1), "float32"), np.ones((2, 1, 1, 1), "float32")]))


OPTIONS = [
    {"conditioning": "every_block"},
    {"normalization": "group"},
    {"attention_levels": [1]},
    {"patch_size": 2},
    {
        "conditioning": "every_block",
        "normalization": "group",
        "attention_levels": [0, 1],
        "patch_size": 2,
        "block_depth": [1, 2],
        "dropout": 0.5,
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_saves_and_comes_back(options, tmp_path):
    model = make_small_model(widths=[4, 8], **options)
    images = random_images(8)
    model.compile(optimizer=keras.optimizers.Adam(0.1))
    model.fit(images, batch_size=4, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.generate(2, 3, seed=0), model.generate(2, 3, seed=0))
    assert {name: again.get_config()[name] for name in options} == options


@pytest.mark.parametrize("conditioning", ["input", "every_block"])
def test_the_network_listens_to_the_noise_level(conditioning):
    network = residual_unet((8, 8, 1), [4, 8], 1, conditioning=conditioning)
    network.get_layer("prediction").kernel.assign(np.ones((1, 1, 4, 1)))
    images = random_images(1)
    low, high = (
        network([images, np.full((1, 1, 1, 1), variance, "float32")]) for variance in (0.1, 0.9)
    )
    assert np.abs(np.subtract(low, high)).max() > 1e-3


def recomputing_model(recompute, **changes):
    settings = {"conditioning": "every_block", "normalization": "group", "attention_levels": [1]}
    settings["widths"] = [4, 8]
    return make_small_model(**settings, recompute=recompute, num_classes=3, **changes)


@pytest.mark.slow
def test_recomputing_changes_neither_weights_nor_their_training(tmp_path):
    plain, recomputing = recomputing_model(False), recomputing_model(True)
    weights = plain.network.get_weights()
    shapes = [part.shape for part in weights]
    assert [part.shape for part in recomputing.network.get_weights()] == shapes
    for network in (recomputing.network, recomputing.ema_network):
        network.set_weights(weights)
    for model in (plain, recomputing):
        model.compile(optimizer=keras.optimizers.SGD(0.1))
        model.normalizer.adapt(random_images())
        model.fit(random_images(), np.arange(24) % 3, batch_size=8, verbose=0, shuffle=False)
    for one, other in zip(plain.network.get_weights(), recomputing.network.get_weights()):
        np.testing.assert_allclose(one, other, atol=2e-6)
    recomputing.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config()["recompute"] is True
    options = {"labels": 1, "seed": 0, "verbose": 0}
    np.testing.assert_array_equal(
        loaded.generate(2, 3, **options), recomputing.generate(2, 3, **options)
    )


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="looks into a graph")
def test_recomputing_works_blocks_out_twice():
    """As many convolutions forward again as there are in blocks."""
    import tensorflow as tf

    def convolutions(recompute):
        model = recomputing_model(recompute)
        images, levels = tf.zeros((2, 8, 8, 1)), tf.zeros((2, 1, 1, 1))

        @tf.function(autograph=False)
        def gradients():
            with tf.GradientTape() as tape:
                outputs = recomputing.in_training(
                    model.network, [images, levels, tf.zeros(2, "int32")]
                )
            return tape.gradient(outputs, model.network.trainable_variables)

        graph = gradients.get_concrete_function().graph.as_graph_def()
        nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
        return sum(node.op == "Conv2D" for node in nodes)

    # All but the first and the last.
    number = convolutions(False)
    assert convolutions(True) >= 2 * number - 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, 'each batch twice .* batch normalisation: give normalization="group"'),
        ({"network": "own"}, "is for the residual U-Net"),
        ({"normalization": "group", "dropout": 0.1}, "other features to leave out"),
    ],
)
def test_recomputing_is_refused_where_it_cannot_be(changes, message):
    if "network" in changes:
        changes = {"network": make_small_model().network}
    with pytest.raises(ValueError, match=message):
        make_small_model(recompute=True, **changes)


@pytest.mark.parametrize("conditioning", ["input", "every_block"])
def test_dropout_leaves_features_out_in_training_alone(conditioning):
    model = make_small_model(dropout=0.5, conditioning=conditioning, normalization="group")
    network = model.network
    network.get_layer("prediction").kernel.assign(np.ones((1, 1, 4, 1)))
    inputs = [random_images(2), np.full((2, 1, 1, 1), 0.5, "float32")]

    def outputs(training):
        return np.asarray(network(inputs, training=training))

    assert np.abs(outputs(True) - outputs(True)).max() > 1e-3
    np.testing.assert_array_equal(outputs(False), outputs(False))
    names = [layer.name for layer in model.ema_network.layers]
    assert not any("dropout" in name for name in names), "the average is never trained"


def test_impossible_dropouts_are_refused():
    with pytest.raises(ValueError, match=r"dropout must be a share in \[0, 1\), got 1.0"):
        make_small_model(dropout=1.0)
    with pytest.raises(ValueError, match="dropout is for the residual U-Net"):
        make_small_model(dropout=0.1, network=make_small_model().network)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_upsampling_and_swish_are_kerass(dtype):
    images = keras.ops.cast(random_images(2, (4, 6, 3)) * 8.0 - 4.0, dtype)
    pairs = [
        (BilinearUpsampling2D(dtype=dtype), keras.layers.UpSampling2D(interpolation="bilinear")),
        (Swish(dtype=dtype), keras.layers.Activation("swish")),
    ]
    for ours, keras_own in pairs:
        keras_own.dtype_policy = keras.DTypePolicy(dtype)
        one, other = (
            keras.ops.convert_to_numpy(keras.ops.cast(layer(images), "float32"))
            for layer in (ours, keras_own)
        )
        np.testing.assert_allclose(one, other, rtol=1e-6 if dtype == "float32" else 0.01)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a gradient of TensorFlow's")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_the_gradient_of_swish(dtype, tolerance):
    import tensorflow as tf

    x = tf.cast(tf.linspace(-9.0, 9.0, 181), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = Swish(dtype=dtype)(x)
    sigmoid = 1.0 / (1.0 + np.exp(-x.numpy().astype("float64")))
    expected = sigmoid * (1.0 + x.numpy().astype("float64") * (1.0 - sigmoid))
    found = tape.gradient(outputs, x).numpy().astype("float64")
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_patches_cut_the_image_and_put_it_together_again():
    """Each output pixel comes from its own patch: with 1 x 1 convolutions alone nothing crosses the
    patches' borders.
    """
    images = keras.Input((4, 6, 2))
    identity = keras.Model(images, unet._from_patches(unet._to_patches(images, 2), 2))
    pixels = random_images(3, (4, 6, 2))
    np.testing.assert_array_equal(identity(pixels), pixels)
    patches = keras.Model(images, unet._to_patches(images, 2))(pixels)
    np.testing.assert_array_equal(np.ravel(patches[0, 1, 2]), np.ravel(pixels[0, 2:4, 4:6]))


def test_group_normalization_is_kerass():
    images = 3.0 + random_images(2, (6, 4, 16))
    ours, theirs = GroupNormalization(8), keras.layers.GroupNormalization(8)
    for layer in (ours, theirs):
        layer.build(images.shape)
        layer.gamma.assign(np.linspace(-1, 1, 16))
        layer.beta.assign(np.linspace(0, 2, 16))
    np.testing.assert_allclose(ours(images), theirs(images), atol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_group_normalization_of_images_and_vectors_is_that_of_their_sum(offset):
    images, vectors = random_images(2, (6, 4, 16)), random_images(2, (1, 1, 16)) + offset
    ours, keras_own = GroupNormalization(8), keras.layers.GroupNormalization(8)
    ours.build([images.shape, vectors.shape])
    keras_own.build(images.shape)
    for layer in (ours, keras_own):
        layer.gamma.assign(np.linspace(-1, 1, 16))
        layer.beta.assign(np.linspace(0, 2, 16))
    expected = keras_own(images + vectors)
    np.testing.assert_allclose(ours([images, vectors]), expected, atol=1e-4)
    assert np.abs(np.subtract(expected, ours(images))).max() > 0.1


def test_attention_follows_every_block_of_its_level():
    for conditioning in ("input", "every_block"):
        network = residual_unet(
            (8, 8, 1), [32, 32], 2, attention_levels=[0], conditioning=conditioning
        )
        assert (
            sum(isinstance(layer, keras.layers.MultiHeadAttention) for layer in network.layers) == 4
        )


def test_attention_mixes_distant_pixels():
    network = residual_unet((8, 8, 1), [32], 1, attention_levels=[0])
    network.get_layer("prediction").kernel.assign(np.ones((1, 1, 32, 1)))
    images, variances = np.zeros((1, 8, 8, 1), "float32"), np.full((1, 1, 1, 1), 0.5, "float32")
    touched = images.copy()
    touched[0, 0, 0, 0] = 1.0
    assert (
        np.abs(np.subtract(network([images, variances]), network([touched, variances])))[0, 7, 7, 0]
        > 0.0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditioning": "film"}, "conditioning must be one of"),
        ({"normalization": "layer"}, "normalization must be one of"),
        ({"attention_levels": [2]}, r"attention_levels must lie in \[0, 2\)"),
        ({"patch_size": 0}, "patch_size must be"),
        ({"patch_size": 3}, "in patches of 3 x 3 pixels cannot be halved 1 times.*height 6 or 12"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        residual_unet((8, 8, 1), [4, 8], 1, **options)


def test_a_size_that_cannot_be_halved_is_refused_with_the_nearest_that_can():
    message = (
        r"image_size \(30, 64\) cannot be halved 3 times.*multiples of 8.*height 24 or 32, width 64"
    )
    with pytest.raises(ValueError, match=message):
        residual_unet((30, 64, 3), [4, 4, 4, 4], 1)
    with pytest.raises(ValueError, match="height 8, width 8"):
        residual_unet((3, 5, 3), [4, 4, 4, 4], 1)


@pytest.mark.parametrize(
    ("widths", "depth", "message"),
    [
        ([], 1, "widths"),
        ([4, 0], 1, "widths"),
        ([4], 0, "block_depth"),
        ([4, 8], [1], "block_depth"),
        ([4, 8], [1, 0], "block_depth"),
    ],
)
def test_impossible_levels_are_refused(widths, depth, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        residual_unet((8, 8, 1), widths, depth)


def test_embedding_is_sines_and_cosines_of_geometric_frequencies():
    value = 0.3
    embedding = keras.ops.convert_to_numpy(
        SinusoidalEmbedding(6, 100.0)(np.full((1, 1, 1, 1), value, "float32"))
    )
    angles = 2 * np.pi * np.array([1.0, 10.0, 100.0]) * value
    np.testing.assert_allclose(embedding.ravel(), [*np.sin(angles), *np.cos(angles)], atol=1e-4)


def test_embedding_is_float32_under_mixed_precision():
    network = residual_unet((8, 8, 1), [4, 8], 1, dtype="mixed_bfloat16")
    embedding = next(layer for layer in network.layers if isinstance(layer, SinusoidalEmbedding))
    assert embedding.compute_dtype == "float32"
    assert network.outputs[0].dtype == "float32"


@pytest.mark.parametrize(
    ("dims", "frequency", "message"), [(3, 10.0, "even"), (4, 0.5, "at least 1")]
)
def test_impossible_embeddings_are_refused(dims, frequency, message):
    with pytest.raises(ValueError, match=message):
        SinusoidalEmbedding(dims, frequency)


@pytest.mark.parametrize(("size", "kernel_size"), crossed([(7, 5), (3, 4), (2, 3), (1, 8)], [3, 1]))
def test_conditioned_convolution_is_that_of_the_repeated_vector(size, kernel_size):
    random = np.random.default_rng(0)
    images, vectors = (
        random.normal(size=(2, *size, 3)).astype("float32"),
        random.normal(size=(2, 1, 1, 5)).astype("float32"),
    )
    ours = ConditionedConv2D(4, kernel_size, activation="swish", bias_initializer="normal")
    outputs = ours([images, vectors])
    theirs = keras.layers.Conv2D(4, kernel_size, padding="same", activation="swish")
    joined = np.concatenate([images, np.broadcast_to(vectors, (2, *size, 5))], axis=-1)
    theirs.build(joined.shape)
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(
        *map(keras.ops.convert_to_numpy, (outputs, theirs(joined))), atol=1e-5
    )


def test_conditioned_convolution_refuses_other_kernels():
    with pytest.raises(ValueError, match="kernel_size must be 1 or 3, got 5"):
        ConditionedConv2D(4, 5)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_is_kerass(training):
    """The fused kernel gives the outputs, the moving statistics and the gradients' inputs of
    Keras's own layer.
    """
    images = np.random.default_rng(0).normal(2.0, 3.0, size=(6, 5, 5, 4)).astype("float32")
    ours, theirs = BatchNormalization(), keras.layers.BatchNormalization(center=False, scale=False)
    for _ in range(3):
        outputs = [layer(images, training=training) for layer in (ours, theirs)]
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, outputs), atol=1e-4)
    for mine, other in zip(ours.weights, theirs.weights):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(other), rtol=1e-4
        )


class TestImageNormalization:
    def test_adapts_to_the_exact_mean_and_variance_of_each_channel(self):
        images = (
            np.random.default_rng(0)
            .uniform([0, 0.2, 0.4], [1, 0.3, 0.9], size=(50, 6, 5, 3))
            .astype("float32")
        )
        layer = ImageNormalization()
        layer.adapt(images, batch_size=7)
        np.testing.assert_allclose(layer.mean, images.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(layer.variance, images.var((0, 1, 2)), rtol=1e-5)
        outputs = keras.ops.convert_to_numpy(layer(images))
        np.testing.assert_allclose(outputs.std((0, 1, 2)), 1.0, rtol=1e-4)
        np.testing.assert_allclose(layer.denormalize(outputs), images, atol=1e-6)

    def test_uint8_and_float_images_are_one(self):
        images = np.random.default_rng(0).integers(0, 256, size=(20, 4, 4, 1)).astype("uint8")
        layers = ImageNormalization(), ImageNormalization()
        layers[0].adapt(images)
        layers[1].adapt(images / np.float32(255))
        np.testing.assert_allclose(layers[0].variance, layers[1].variance, rtol=1e-6)
        np.testing.assert_allclose(
            layers[0](images), layers[1](images / np.float32(255)), atol=1e-6
        )

    def test_adapting_again_forgets(self):
        layer = ImageNormalization()
        layer.adapt(np.zeros((4, 2, 2, 1), "float32"))
        layer.adapt(np.full((4, 2, 2, 1), 0.5, "float32"))
        assert float(layer.mean[0]) == 0.5

    def test_a_channel_that_never_varies_is_only_centred(self):
        images = np.random.default_rng(0).uniform(size=(9, 4, 4, 4)).astype("float32")
        images[..., 3] = 1.0
        layer = ImageNormalization()
        layer.adapt(images)
        outputs = keras.ops.convert_to_numpy(layer(images))
        np.testing.assert_allclose(outputs[..., 3], 0.0, atol=1e-6)
        np.testing.assert_allclose(layer.denormalize(outputs), images, atol=1e-6)


CHANNELS_FIRST = """
import keras, numpy as np
keras.config.set_image_data_format("channels_first")
import ddim_keras
images = np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype("float32")
for options in ({}, {"normalization": "group", "attention_levels": [1], "patch_size": 2}):
    model = ddim_keras.DiffusionModel(8, [4, 8], 1, channels=1, **options)
    model.compile("sgd")
    assert np.isfinite(model.fit(images, verbose=0).history["loss"][0])
    assert model.generate(2, 2).shape == (2, 8, 8, 1)
preset = ddim_keras.DiffusionModel.from_preset("fashion_mnist_32")
kid = ddim_keras.metrics.KID("fashion_mnist")
made = preset.generate(2, 2, seed=0)
kid.update_state(made, made)
print(float(made.mean()), float(kid.result()))
"""


@pytest.mark.slow
def test_images_are_channels_last_whatever_keras_is_told():
    backend = keras.backend.backend()
    usual = run_python(CHANNELS_FIRST.replace("channels_first", "channels_last"), backend)
    first = run_python(CHANNELS_FIRST, backend)
    np.testing.assert_allclose(
        *[[float(part) for part in text.split()] for text in (first, usual)], atol=1e-4
    )


@pytest.mark.slow
@slow_on_jax
@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("bfloat16", {**OPTIONS[-1], "attention_levels": [0], "block_depth": 1}),
        pytest.param("bfloat16", {**OPTIONS[-1], "widths": [4, 8]}, marks=pytest.mark.slow),
        pytest.param("float16", {"widths": [4, 8]}, marks=pytest.mark.slow),
    ],
)
def test_half_precision_policies_train_and_come_back(policy, options, tmp_path):
    model = make_small_model(dtype=policy, **options)
    model.compile("adamw")
    images = random_images(8)
    assert np.isfinite(model.fit(images, validation_data=images, verbose=0).history["val_loss"][0])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    made = model.generate(2, 2, seed=0)
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(again.generate(2, 2, seed=0), made)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="XLA takes casts out of loops by itself"
)
def test_a_walk_in_half_precision_casts_its_weights_once():
    found = []

    class Spy(keras.layers.Dense):
        def call(self, inputs):
            value = self.kernel.value
            found.append((value.dtype.name, value is self.kernel.value))
            return super().call(inputs)

    images, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    hidden = Spy(4, dtype="mixed_bfloat16")(images)
    hidden = GroupNormalization(2, dtype="mixed_bfloat16")(hidden)
    outputs = Spy(1, dtype="float32")(hidden) + variances
    model = make_small_model(network=keras.Model([images, variances], outputs))
    model.normalizer.adapt(random_images(8))
    found.clear()
    made = model.generate(2, 2, seed=0)
    assert set(found) == {("bfloat16", True), ("float32", True)}  # none is a cast of its own
    # What the weights become counts for the next walk.
    for weight in model.ema_network.weights:
        weight.assign(weight + 0.5)
    assert np.abs(model.generate(2, 2, seed=0) - made).max() > 0.01


class Half(keras.layers.Layer):
    """Reads a weight in its own precision and, as some do, in float32."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(4, 4), name="kernel")

    def call(self, inputs):
        with AutocastScope(None):
            whole = self.kernel.value + 0.0
        return keras.ops.matmul(inputs, self.kernel) + keras.ops.cast(
            keras.ops.matmul(keras.ops.cast(inputs, "float32"), whole), inputs.dtype
        )


class Odd(keras.layers.Layer):
    """Layers of two precisions with one weight, counts and random numbers, all in one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.half, self.seeds = Half(dtype="mixed_bfloat16"), keras.random.SeedGenerator(0)

    def build(self, input_shape):
        self.half.build(input_shape)
        self.kernel = self.half.kernel  # read in float32 here
        self.count = self.add_weight(shape=(), trainable=False, initializer="zeros", name="count")

    def call(self, inputs):
        self.count.assign_add(1.0)
        noises = keras.random.normal((4,), seed=self.seeds) + keras.random.normal((4,))
        own = keras.ops.matmul(inputs, keras.ops.transpose(self.kernel))
        return own * self.count + keras.ops.cast(self.half(inputs), inputs.dtype) + noises


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="there is no such scope")
def test_layers_read_and_assign_as_they_like_while_weights_are_cast_once():
    import tensorflow as tf

    images, variances = keras.Input((2, 2, 1)), keras.Input((1, 1, 1))
    hidden = Odd(dtype="float32")(keras.layers.Dense(4, dtype="mixed_bfloat16")(images))
    outputs = keras.layers.Dense(1, dtype="float32")(hidden) + variances
    network = keras.Model([images, variances], outputs)
    odd = next(layer for layer in network.layers if isinstance(layer, Odd))

    def walk(scope):
        def loop(noisy):
            with scope(network):

                def step(_, state):
                    return network([state, tf.zeros((2, 1, 1, 1))])

                return keras.ops.fori_loop(0, 3, step, noisy)

        keras.utils.set_random_seed(0)  # and so without a generator
        odd.seeds.state.assign([0, 0])
        odd.count.assign(0.0)
        return tf.function(loop)(random_images(2, (2, 2, 1))), odd.count.numpy()

    as_it_is, cast_once = walk(contextlib.nullcontext), walk(backend.weights_cast_once)
    np.testing.assert_array_equal(cast_once[0], as_it_is[0])
    assert cast_once[1] == as_it_is[1] == 3.0
