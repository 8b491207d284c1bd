"""Data sets to (train, validation) pipelines.

`loading` makes batches of what `tfds_source` or `folder` opens, brought to size by `resizing`. A
folder's files are found by `finding`, divided by `layout`, and decoded by `decoding`, whose rules
are in `depth` (bits), `colours` (transparency) and `deep_files` (what Pillow reads by half).
`pipelines` makes the batches, and `pairs` gives each image something to be made from.
TensorFlow and TFDS are imported when a data set is first loaded.
"""

from ddim_keras.data import pairs
from ddim_keras.data.finding import fingerprint
from ddim_keras.data.loading import load_dataset, read_images

__all__ = ["fingerprint", "load_dataset", "pairs", "read_images"]
