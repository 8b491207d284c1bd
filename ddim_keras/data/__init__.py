"""Data sets to (train, validation) pipelines. TensorFlow and TFDS are imported when a data set is first loaded."""

from ddim_keras.data.loading import load_dataset

__all__ = ["load_dataset"]
