"""Images by label: training with classes, asking for one, plainer with guidance."""

import os

import numpy as np

from ddim_keras import DiffusionModel, data, plotting, presets
from ddim_keras.guidance import ClassifierFreeGuidance


def main(size=32, epochs=3, steps=500, out="outputs/examples", **changes):
    # A folder with a subfolder for each class, or a TFDS data set, works as well.
    recipe = presets.training("fashion_mnist_32")
    train, val = data.load_dataset(
        "embedded", size, recipe.batch_size, fit="pad", labels=True
    )
    model = DiffusionModel.from_preset(
        "fashion_mnist_32",
        load_weights=False,
        image_size=size,
        class_names=train.class_names,  # its labels by name; num_classes=10 would do too
        **changes,
    )
    model.compile(**recipe.compile_arguments(epochs * steps))
    model.fit(train.repeat(), epochs=epochs, steps_per_epoch=steps, validation_data=val)

    shown = ["Trouser", "Dress", "Sneaker", "Bag"]
    labels = [name for name in shown for _ in range(8)]
    within = ClassifierFreeGuidance(2.0, interval=(0.5, 1.0))  # of noise rates
    for name, guidance in (("plain", None), ("guided", 2.0), ("within", within)):
        images = model.generate(len(labels), labels=labels, guidance=guidance, seed=0)
        rows = images.reshape(len(shown), 8, *model.image_shape)
        path = os.path.join(out, f"by_label_{name}.png")
        plotting.save_figure(path, plotting.plot_rows(rows, shown))
    model.save(os.path.join(out, "by_label.keras"))
    return np.asarray(rows), model


if __name__ == "__main__":
    main()
