"""Data sets to (train, validation) pipelines. TensorFlow and TFDS are imported when a data set is first loaded."""

from ddim_keras.data.loading import load_dataset, read_images

__all__ = ["load_dataset", "read_images"]
