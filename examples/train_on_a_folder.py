"""Train on a folder of images: python examples/train_on_a_folder.py path/to/photos"""

import pathlib
import sys

from ddim_keras import DiffusionModel, callbacks, data, plotting, presets


def write_clothes(folder, number=500):
    """Stands for a folder of yours: PNGs of the images that ship with the package."""
    images, _ = data.load_dataset("embedded", image_size=32, batch_size=1)
    for index, image in enumerate(images.take(number).as_numpy_iterator()):
        plotting.save_images(folder / f"{index:05}.png", image, columns=1)
    return folder


def main(folder=None, out="outputs/examples/photos", size=32, epochs=5, steps=200):
    out = pathlib.Path(out)
    folder = folder or write_clothes(out / "clothes")
    recipe = presets.training("fashion_mnist_32")  # the recommended one
    train, val = data.load_dataset(folder, size, recipe.batch_size, split=0.1, channels=3)
    plotting.save_images(out / "training_images.png", next(iter(train)), scale=2)

    new = {"load_weights": False, "image_size": size, "channels": 3}
    model = DiffusionModel.from_preset("fashion_mnist_32", **new)
    model.compile(**recipe.compile_arguments(steps=epochs * steps))
    samples = callbacks.SampleImages(out / "samples")
    best = callbacks.KeepBest(out / "best.keras", monitor="val_i_loss")
    lengths = {"epochs": epochs, "steps_per_epoch": steps, "validation_data": val}
    model.fit(train.repeat(), callbacks=[samples, best], **lengths)
    model.save(out / "model.keras")  # `ddim_keras.load_model` reads it
    plotting.save_images(out / "generated.png", model.generate(16, seed=1), scale=2)


if __name__ == "__main__":
    main(*sys.argv[1:2])
