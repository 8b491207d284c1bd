"""Make the data set that ships in `ddim_keras/data/fashion_mnist_subset`: 1,100 images of each
Fashion-MNIST class.

The first 1,000 training images of each class become the training split, the first 100 test images
of each class the validation split, both in their original order. Needs Fashion-MNIST through TFDS
(see place_fashion_mnist.py where there is no network) and `pip install zopfli`, whose PNGs are 5 %
smaller than zlib's. Takes a quarter of an hour.

    python scripts/make_embedded_dataset.py [TFDS_DATA_DIR]
"""

from __future__ import annotations

import collections
import io
import pathlib
import shutil
import sys
import tempfile

import PIL.Image
import tensorflow_datasets as tfds
import zopfli.png
from etils import epath

TARGET = (
    pathlib.Path(__file__).resolve().parent.parent / "ddim_keras" / "data" / "fashion_mnist_subset"
)
IMAGES_PER_CLASS = {"train": ("train", 1000), "validation": ("test", 100)}
LICENCE = """Fashion-MNIST, of which these images are a part, comes under the MIT licence:

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
CITATION = """@article{xiao2017,
  title={Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author={Xiao, Han and Rasul, Kashif and Vollgraf, Roland}, journal={arXiv:1708.07747}, year={2017}}"""


def smallest_png(image) -> io.BytesIO:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, format="PNG")
    return io.BytesIO(zopfli.png.optimize(file.getvalue(), num_iterations=5))


class FashionMnistSubset(tfds.core.GeneratorBasedBuilder):
    """A class-balanced subset of Fashion-MNIST (Zalando SE, MIT licence)."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(__file__).parent  # TFDS would look for it beside a package's __init__
    source_dir: str | None = None

    def _info(self):
        names = tfds.builder("fashion_mnist", data_dir=self.source_dir).info.features["label"].names
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=names),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            citation=CITATION,
            license=LICENCE,
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(*source) for split, source in IMAGES_PER_CLASS.items()
        }

    def _generate_examples(self, split, per_class):
        seen = collections.Counter()
        source = tfds.load("fashion_mnist", split=split, data_dir=self.source_dir)
        for index, example in enumerate(tfds.as_numpy(source)):
            label = int(example["label"])
            seen[label] += 1
            if seen[label] <= per_class:
                yield index, {"image": smallest_png(example["image"][..., 0]), "label": label}


def main(data_dir: str | None = None) -> None:
    FashionMnistSubset.source_dir = data_dir
    with tempfile.TemporaryDirectory() as folder:
        builder = FashionMnistSubset(data_dir=folder)
        builder.download_and_prepare()
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(builder.data_dir, TARGET)
    size = sum(path.stat().st_size for path in TARGET.iterdir())
    print(f"{TARGET}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:2])
