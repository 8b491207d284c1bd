"""The recipe of the Keras DDIM example as published, written afresh: what the benchmarks compare
with.

The same network, losses and updates, in the example's own way: Keras's stock layers, an EMA network
cloned with fresh weights, a Python loop of eager calls to sample, and whatever compilation Keras
chooses to train. TensorFlow only, as the example is.

`mended` repairs what keeps its short trainings from drawing anything: the EMA network starts equal
to the network, and its decay warms up.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf
from keras import layers, ops

MIN_SIGNAL_RATE, MAX_SIGNAL_RATE = 0.02, 0.95
EMA = 0.999


@keras.saving.register_keras_serializable("benchmarks")
class NoiseEmbedding(layers.Layer):
    def call(self, variances):
        speeds = ops.exp(ops.linspace(0.0, math.log(1000.0), 16)) * (2.0 * math.pi)
        return ops.concatenate([ops.sin(variances * speeds), ops.cos(variances * speeds)], axis=3)


def build_network(
    image_size: int, channels: int, widths=(32, 64, 96, 128), depth: int = 2
) -> keras.Model:
    def block(x, width):
        shortcut = x if x.shape[3] == width else layers.Conv2D(width, 1)(x)
        x = layers.BatchNormalization(center=False, scale=False)(x)
        x = layers.Conv2D(width, 3, padding="same", activation="swish")(x)
        return layers.Conv2D(width, 3, padding="same")(x) + shortcut

    images, variances = keras.Input((image_size, image_size, channels)), keras.Input((1, 1, 1))
    embedding = layers.UpSampling2D(image_size, interpolation="nearest")(
        NoiseEmbedding()(variances)
    )
    x = layers.Concatenate()([layers.Conv2D(widths[0], 1)(images), embedding])
    skips = []
    for width in widths[:-1]:
        for _ in range(depth):
            x = block(x, width)
            skips.append(x)
        x = layers.AveragePooling2D(2)(x)
    for _ in range(depth):
        x = block(x, widths[-1])
    for width in widths[-2::-1]:
        x = layers.UpSampling2D(2, interpolation="bilinear")(x)
        for _ in range(depth):
            x = block(layers.Concatenate()([x, skips.pop()]), width)
    return keras.Model(
        [images, variances], layers.Conv2D(channels, 1, kernel_initializer="zeros")(x)
    )


class KerasExample(keras.Model):
    def __init__(self, image_size: int, channels: int, mended: bool = False):
        super().__init__()
        self.mended = mended
        self.normalizer = layers.Normalization()
        self.network = build_network(image_size, channels)
        self.ema_network = keras.models.clone_model(self.network)
        if mended:
            self.ema_network.set_weights(self.network.get_weights())
        self.image_shape = (image_size, image_size, channels)
        self.n_loss, self.i_loss = keras.metrics.Mean("n_loss"), keras.metrics.Mean("i_loss")

    @property
    def metrics(self):
        return [self.n_loss, self.i_loss]

    def rates(self, times):
        start, end = math.acos(MAX_SIGNAL_RATE), math.acos(MIN_SIGNAL_RATE)
        angles = start + times * (end - start)
        return ops.sin(angles), ops.cos(angles)

    def denoise(self, noisy, noise_rates, signal_rates, training):
        network = self.network if training else self.ema_network
        noises = network([noisy, noise_rates**2], training=training)
        return noises, (noisy - noise_rates * noises) / signal_rates

    def train_step(self, images):
        images = self.normalizer(images, training=True)
        noises = keras.random.normal(ops.shape(images))
        noise_rates, signal_rates = self.rates(
            keras.random.uniform((ops.shape(images)[0], 1, 1, 1))
        )
        noisy = signal_rates * images + noise_rates * noises
        with tf.GradientTape() as tape:
            pred_noises, pred_images = self.denoise(noisy, noise_rates, signal_rates, training=True)
            noise_loss = self.loss(noises, pred_noises)
            image_loss = self.loss(images, pred_images)
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(noise_loss, weights), weights))
        self.n_loss.update_state(noise_loss)
        self.i_loss.update_state(image_loss)
        decay = EMA
        if self.mended:
            updates = ops.cast(self.optimizer.iterations, "float32")
            decay = ops.minimum(EMA, (1 + updates) / (10 + updates))
        for weight, average in zip(self.network.weights, self.ema_network.weights):
            average.assign(decay * average + (1 - decay) * weight)
        return {metric.name: metric.result() for metric in self.metrics}

    def generate(self, num_images: int, diffusion_steps: int):
        noisy = keras.random.normal((num_images, *self.image_shape))
        for step in range(diffusion_steps):
            times = ops.ones((num_images, 1, 1, 1)) - step / diffusion_steps
            pred_noises, pred_images = self.denoise(noisy, *self.rates(times), training=False)
            next_noise_rates, next_signal_rates = self.rates(times - 1 / diffusion_steps)
            noisy = next_signal_rates * pred_images + next_noise_rates * pred_noises
        return ops.clip(
            self.normalizer.mean + pred_images * self.normalizer.variance**0.5, 0.0, 1.0
        )


def make_example(images, jit_compile="auto", mended: bool = False) -> KerasExample:
    """Return the example, compiled and adapted to images: an array or a data set of batches."""
    shape = images.element_spec.shape if isinstance(images, tf.data.Dataset) else images.shape
    model = KerasExample(shape[1], shape[-1], mended)
    model.normalizer.adapt(images)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3, weight_decay=1e-4),
        loss=keras.losses.mean_absolute_error,
        jit_compile=jit_compile,
    )
    return model
