"""Whether a run's network begins to copy what it is trained on."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from ddim_keras.data.batches import taken_apart
from ddim_keras.metrics.memorization import nearest_training_images
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.types import Dataset, Images, Logs

LARGEST = 64 * 2**20  # numbers in all training images together, which are held as bytes
_BATCH = 64
_WORTH_A_WARNING = 0.1


class Memorization(keras.callbacks.Callback):
    """Add `val_memorization` to each epoch's logs: the share of generated images that are copies of
    training images, by their pixels (`metrics.nearest_training_images`). Warn when it reaches a
    tenth, and whenever it has doubled since.

    Put it before the callbacks that are to see it.

    Args:
        training: batches of images, with or without labels, of a data set that ends.
        num_images: how many images are generated, always from the same noises.
        mirrored: whether mirrored training images count, as after training with flips.
        diffusion_steps: S, as for `DiffusionModel.generate`; None for the model's default.
        seed: fixes the noises.

    Raises:
        ValueError: `num_images` is not a positive integer.
    """

    def __init__(
        self,
        training: Dataset,
        num_images: int = 64,
        mirrored: bool = False,
        diffusion_steps: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.training, self.mirrored = training, mirrored
        self.num_images = positive_int("num_images", num_images)
        self.sampling = {"diffusion_steps": diffusion_steps, "seed": seed, "verbose": 0}
        self._images: np.ndarray | None = None
        self._warned = 0.0

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        share = self.share()
        if logs is not None:
            logs["val_memorization"] = share
        if share >= max(_WORTH_A_WARNING, 2.0 * self._warned):
            self._warned = share
            warnings.warn(
                f"{100 * share:.0f} % of {self.num_images} generated images are copies of training "
                f"images, after epoch {epoch + 1}: the network learns them by heart. Use more "
                "images, mirror them (flip), make the network smaller, or stop earlier",
                stacklevel=2,
            )

    def share(self) -> float:
        """Return the share of copies as the model is now."""
        if self._images is None:
            self._images = np.concatenate(
                [_as_bytes(taken_apart(batch).images) for batch in self.training]
            )
        told: dict[str, Any] = {}
        if self.model.num_classes is not None:
            told["labels"] = np.arange(self.num_images) % self.model.num_classes
        generated = self.model.generate(
            self.num_images, batch_size=min(_BATCH, self.num_images), **self.sampling, **told
        )
        return nearest_training_images(generated, self._images, mirrored=self.mirrored).share


def _as_bytes(images: Images) -> np.ndarray:
    images = np.asarray(images)
    return images if images.dtype == np.uint8 else np.rint(255.0 * images).astype("uint8")
