"""A network of your own: a keras.Model of [noisy images, noise variances]."""

import keras
from keras import layers

import ddim_keras
from ddim_keras import DiffusionModel, data, networks, plotting


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


def main(size=32, width=96, out="outputs/examples", **lengths):
    train, val = data.load_dataset("embedded", size, batch_size=32)
    network = make_network((size, size, 1), width)
    model = DiffusionModel(size, channels=1, network=network, parameterization="velocity")
    optimizer = keras.optimizers.AdamW(2e-3, global_clipnorm=1.0)
    model.compile(optimizer, loss="mean_squared_error")
    lengths = lengths or {"epochs": 5, "steps_per_epoch": 200}
    model.fit(train.repeat(), validation_data=val, **lengths)
    plotting.save_images(f"{out}/own_network.png", model.generate(16, seed=1), scale=3)
    model.save(f"{out}/own_network.keras")  # the network is in it
    return ddim_keras.load_model(f"{out}/own_network.keras")


if __name__ == "__main__":
    main()
