"""Train, save and reload a small model with the package that is installed: what a released wheel
must do.

python scripts/smoke.py [FOLDER]
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pathlib
import sys
import tempfile

import numpy as np

import ddim_keras


def main(folder: pathlib.Path) -> None:
    print(f"ddim_keras {ddim_keras.__version__} from {pathlib.Path(ddim_keras.__file__).parent}")
    train, validation = ddim_keras.data.load_dataset("embedded", image_size=16, batch_size=32)
    model = ddim_keras.DiffusionModel(image_size=16, widths=[8, 16], block_depth=1, channels=1)
    model.compile("adamw", loss="mean_squared_error")
    model.fit(
        train,
        validation_data=validation,
        epochs=1,
        steps_per_epoch=20,
        validation_steps=2,
        verbose=2,
    )
    images = model.generate(4, 5, seed=1)
    model.save(folder / "model.keras")
    again = ddim_keras.load_model(folder / "model.keras").generate(4, 5, seed=1)
    np.testing.assert_allclose(again, images, atol=1e-5)

    clothes = ddim_keras.DiffusionModel.from_preset("fashion_mnist_32").generate(4, 5, seed=1)
    assert clothes.shape == (4, 32, 32, 1) and clothes.std() > 0.1
    score = ddim_keras.metrics.fid(clothes, clothes, extractor="fashion_mnist")
    assert abs(score) < 1e-2, score
    print("trained, saved, reloaded; the preset and the features that ship are there")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(pathlib.Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(pathlib.Path(temporary))
