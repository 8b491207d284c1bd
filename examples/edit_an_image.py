"""Edit images with a trained model: vary, paint, mix, and find the noise behind."""

import numpy as np

from ddim_keras import DiffusionModel, data, plotting


def main(num_images=8, steps=20, out="outputs/examples/edited.png"):
    model = DiffusionModel.from_preset("fashion_mnist_32")  # or load_model("my.keras")
    _, held_out = data.load_dataset("embedded", image_size=32, fit="pad")
    images = next(iter(held_out)).numpy()[:num_images]

    # More like the first image: the strength says how much of it is forgotten.
    similar = model.variations(images[0], 0.7, num_images, steps, seed=1)

    # The left half is known (1), the right half is painted (0).
    masks = np.zeros((32, 32), "float32")
    masks[:, :16] = 1.0
    painted = model.inpaint(images, masks, steps, seed=1)

    # From the first image to the second, by way of the noises behind them.
    between = model.interpolate(images[0], images[1], num_images, steps, from_images=True)

    # The noises themselves, and the images back from them.
    latents = model.encode(images, steps)
    back = model.decode(latents, steps)
    print(f"mean error of a pixel, there and back: {np.abs(back - images).mean():.4f}")

    names = ["images", "like the first", "right half painted", "mixed", "there and back"]
    rows = np.stack([images, similar, painted, between, back])
    plotting.save_figure(out, plotting.plot_rows(rows, names))
    return rows


if __name__ == "__main__":
    main()
