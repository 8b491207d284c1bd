"""A network of your own: a keras.Model of [noisy images, noise variances]."""

import keras
from keras import layers

import ddim_keras
from ddim_keras import DiffusionModel, data, networks, plotting, presets


def make_network(image_shape, width=96, blocks=6):
    """Patches of 4 x 4 pixels, residual blocks of one size, and back to pixels."""
    noisy_images, variances = keras.Input(image_shape), keras.Input((1, 1, 1))
    level = networks.SinusoidalEmbedding(32, 1000.0)(variances)
    level = layers.Dense(width, activation="swish")(level)
    x = layers.Conv2D(width, kernel_size=4, strides=4)(noisy_images)
    for _ in range(blocks):
        y = layers.GroupNormalization(8)(x) + layers.Dense(width)(level)
        y = layers.DepthwiseConv2D(kernel_size=5, padding="same")(y)
        y = layers.Conv2D(4 * width, kernel_size=1, activation="swish")(y)
        x = x + layers.Conv2D(width, kernel_size=1)(y)
    x = layers.Conv2DTranspose(image_shape[-1], kernel_size=4, strides=4)(x)
    return keras.Model([noisy_images, variances], x)  # as many pixels as it was given


def main(size=32, width=96, epochs=5, steps=300, out="outputs/examples"):
    train, val = data.load_dataset("embedded", size, batch_size=32)
    network = make_network((size, size, 1), width)
    predicts = {"parameterization": "velocity", "loss_weighting": "min_snr"}
    model = DiffusionModel(size, channels=1, network=network, ema_decay=0.99, **predicts)
    recipe = presets.training("fashion_mnist_32")
    model.compile(**recipe.compile_arguments(steps=epochs * steps))
    model.fit(train.repeat(), validation_data=val, epochs=epochs, steps_per_epoch=steps)
    plotting.save_images(f"{out}/own_network.png", model.generate(16, seed=1), scale=3)
    model.save(f"{out}/own_network.keras")  # the network is in it
    return ddim_keras.load_model(f"{out}/own_network.keras")


if __name__ == "__main__":
    main()
