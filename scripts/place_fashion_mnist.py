"""Put a local copy of Fashion-MNIST where TFDS looks for its downloads, so that `tfds.load` needs
no network.

Debian's package dataset-fashion-mnist installs the four original files. A machine with internet
does not need this: TFDS downloads them by itself.

    python scripts/place_fashion_mnist.py DATA_DIR [SOURCE]
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys

DEBIAN_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")


def place_downloads(
    data_dir: str | pathlib.Path, source: str | pathlib.Path = DEBIAN_FOLDER
) -> None:
    """Copy the four files of `source` to `data_dir`/downloads under the names that TFDS gives
    them.
    """
    import tensorflow_datasets as tfds

    downloads = pathlib.Path(data_dir) / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for url, info in tfds.core.download.checksums.get_all_url_infos().items():
        if "fashion-mnist" not in url or not url.endswith("-ubyte.gz"):
            continue
        original = pathlib.Path(source) / url.rsplit("/", 1)[-1]
        target = downloads / tfds.core.download.resource.get_dl_fname(url, info.checksum)
        shutil.copyfile(original, target)
        description = {
            "dataset_names": ["fashion_mnist"],
            "original_fname": original.name,
            "urls": [url],
        }
        target.with_name(target.name + ".INFO").write_text(json.dumps(description))


if __name__ == "__main__":
    place_downloads(*sys.argv[1:3])
