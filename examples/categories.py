"""Images whose pixels are categories: label maps, levels, or as here black and white."""

import numpy as np

from ddim_keras import CategoricalDiffusionModel, data, plotting


def binarised(size):
    """Clothes in black and white: integers 0 and 1, (images, size, size)."""
    train, _ = data.load_dataset("embedded", image_size=size, batch_size=100)
    images = np.concatenate([np.asarray(batch) for batch in train])
    return (images[..., 0] > 0.5).astype("int32")


def main(size=28, widths=(32, 64, 96), epochs=10, out="outputs/examples/categories.png"):
    images = binarised(size)
    # K = 2 categories; for a segmentation map it is the number of classes.
    model = CategoricalDiffusionModel((size, size), categories=2, widths=widths, seed=0)
    model.compile(optimizer="adamw")
    model.fit(images, batch_size=64, epochs=epochs)
    # eta = 0 keeps of each state as much as can be, eta = 1 draws each state anew.
    rows = {
        f"S = {steps}, eta = {eta}": model.generate(8, steps, eta=eta, seed=3)
        for steps in (5, 20, 100)
        for eta in (0, 1)
    }
    pictures = np.stack(list(rows.values()))[..., None].astype("float32")
    plotting.save_figure(out, plotting.plot_rows(pictures, list(rows)))
    return model


if __name__ == "__main__":
    main()
