"""A sampler of your own: its step says what the next noisy image is made of."""

import keras
import numpy as np

from ddim_keras import DiffusionModel, plotting
from ddim_keras.samplers import Evaluation, Sampler


@keras.saving.register_keras_serializable("my_package")
class FadingNoise(Sampler):
    """DDIM whose eta is a power of the noise rate: less random near the image."""

    is_stochastic = True

    def __init__(self, power=1.0):
        self.power = power

    def step(self, index, levels):
        a, next_a = levels.signal_rates[index : index + 2]
        b, next_b = levels.noise_rates[index : index + 2]
        sigma = b**self.power * next_b / b * np.sqrt(1 - (a / next_a) ** 2)  # eq. 16
        direction = np.sqrt(next_b**2 - sigma**2)
        return [Evaluation(a, b, image=next_a, noise=direction, fresh=sigma)]  # eq. 12

    def get_config(self):
        return {"power": self.power}


def main(num_images=8, steps=20, out="outputs/examples/own_sampler.png"):
    model = DiffusionModel.from_preset("fashion_mnist_32")
    samplers = {"DDIM": "ddim", "power 4": FadingNoise(4.0), "DDPM": "ddpm"}
    options = {"diffusion_steps": steps, "seed": 3}
    rows = [model.generate(num_images, sampler=s, **options) for s in samplers.values()]
    plotting.save_figure(out, plotting.plot_rows(np.stack(rows), list(samplers)))
    return rows


if __name__ == "__main__":
    main()
