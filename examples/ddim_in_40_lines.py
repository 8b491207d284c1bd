"""DDIM (Song, Meng & Ermon 2021) on NumPy and one network, without a sampler."""

import keras
import numpy as np

from ddim_keras import data, networks, plotting

T, rng = 1000, np.random.default_rng(0)
ALPHA = np.cumprod(1.0 - np.linspace(1e-4, 0.02, T))  # of t = 1, ..., T


def train(network, dataset, steps):
    for images in dataset.repeat().take(steps).as_numpy_iterator():
        alpha = ALPHA[rng.integers(T, size=(len(images), 1, 1, 1))]
        noise = rng.normal(size=images.shape)
        x_t = np.sqrt(alpha) * (2 * images - 1) + np.sqrt(1 - alpha) * noise  # eq. 4
        network.train_on_batch([x_t, 1 - alpha], noise)  # eq. 5 with gamma = 1


def sample(network, x, steps, eta=0.0):
    tau = np.arange(steps, 0, -1) * T // steps  # linear steps, from T down
    for a, a_next in zip(ALPHA[tau - 1], [*ALPHA[tau[1:] - 1], 1.0]):
        noise = network.predict_on_batch([x, np.full((len(x), 1, 1, 1), 1 - a)])
        x_0 = (x - np.sqrt(1 - a) * noise) / np.sqrt(a)  # eq. 9
        sigma = eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))  # eq. 16
        x = np.sqrt(a_next) * x_0 + np.sqrt(1 - a_next - sigma**2) * noise  # eq. 12
        x = x + sigma * rng.normal(size=x.shape)
    return np.clip((x + 1) / 2, 0, 1)


def main(steps=3000, shape=(32, 32, 1), widths=(32, 64, 96), out="outputs/ddim.png"):
    model = networks.residual_unet(shape, widths, conditioning="every_block", patch_size=2)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.AdamW(rate, global_clipnorm=1.0), "mean_squared_error")
    train(model, data.load_dataset("embedded", shape[0], batch_size=32)[0], steps)
    plotting.save_images(out, sample(model, rng.normal(size=(16, *shape)), 20), scale=3)


if __name__ == "__main__":
    main()
