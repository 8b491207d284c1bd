"""Training on a folder of many small files: how fast, and in how much memory.

    python benchmarks/large_data.py                       # 200,000 files, about 300 MB on disk
    python benchmarks/large_data.py --images 20000 --steps 100

Makes the files, and trains the same network on batches that are in memory already, which is the
network's own speed, and on the folder: with the originals read anew, and with resized images in
files. Each in a process of its own, which prints its largest memory, and how long all cores
together worked for an image: that says how much reading costs, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
_VARIANTS = 256  # different images, which take turns
_IN_A_FOLDER = 1000


def make_files(folder: pathlib.Path, number: int, side: int) -> None:
    """Write JPEGs of blurred noise, a thousand in each subfolder."""
    import numpy as np
    import PIL.Image
    import PIL.ImageFilter

    rng = np.random.default_rng(0)
    contents = []
    for _ in range(_VARIANTS):
        noise = rng.integers(0, 256, (side, side, 3)).astype("uint8")
        image = PIL.Image.fromarray(noise).filter(PIL.ImageFilter.GaussianBlur(2))
        buffer = io.BytesIO()
        image.save(buffer, "jpeg", quality=90)
        contents.append(buffer.getvalue())
    for index in range(number):
        place = folder / f"{index // _IN_A_FOLDER:04d}"
        if index % _IN_A_FOLDER == 0:
            place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:07d}.jpg").write_bytes(contents[index % _VARIANTS])


def measure(mode: str, folder: pathlib.Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Train for some steps, and return what it took."""
    import resource

    import keras
    import numpy as np

    from ddim_keras import DiffusionModel, data, presets

    size, batch_size = arguments.image_size, arguments.batch_size
    start = time.perf_counter()
    cache = {"memory": False, "anew": False, "files": folder.parent / "cache"}[mode]
    if mode == "memory":
        import tensorflow as tf

        images = np.random.default_rng(0).uniform(size=(4 * batch_size, size, size, 3))
        images = images.astype("float32")
        batches = tf.data.Dataset.from_tensor_slices(images).batch(batch_size).cache().repeat()
    else:
        train, _ = data.load_dataset(folder, size, batch_size, split=0.01, cache=cache)
        batches = train.from_step(0)
    opened = time.perf_counter() - start
    model = DiffusionModel(size, widths=[32, 64, 96], block_depth=2, normalization="group")
    model.normalizer.adapt(batches.take(4))
    recipe = presets.training("fashion_mnist_32")
    model.compile(**recipe.compile_arguments(steps=arguments.steps))

    class Times(keras.callbacks.Callback):
        ends: list[float] = []
        worked: list[float] = []

        def on_train_batch_end(self, batch, logs=None):
            self.ends.append(time.perf_counter())
            self.worked.append(time.process_time())

    times = Times()
    options = {"epochs": 1, "steps_per_epoch": arguments.steps, "verbose": 0}
    model.fit(batches, callbacks=[times], **options)
    skipped = min(5, arguments.steps // 2)
    images = batch_size * (len(times.ends) - 1 - skipped)
    return {
        "opening_seconds": opened,
        "images_per_second": images / (times.ends[-1] - times.ends[skipped]),
        "work_milliseconds": 1e3 * (times.worked[-1] - times.worked[skipped]) / images,
        "largest_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--side", type=int, default=48, help="of the files")
    parser.add_argument("--image-size", type=int, default=32, help="of what is trained on")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=pathlib.Path, help="where; kept if it is given")
    parser.add_argument("--mode", choices=["memory", "anew", "files"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(measure(arguments.mode, arguments.folder, arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or pathlib.Path(temporary)) / "images"
        if not folder.exists():
            start = time.perf_counter()
            make_files(folder, arguments.images, arguments.side)
            print(f"{arguments.images:,} files made in {time.perf_counter() - start:.0f} s")
        print(
            f"{'images':24s}{'opened in':>12s}{'images/s':>12s}{'work/image':>14s}{'memory':>12s}"
        )
        names = {"memory": "in memory already", "anew": "read anew", "files": "resized, in files"}
        for mode, name in names.items():
            passed = [sys.executable, __file__, "--mode", mode, "--folder", str(folder)]
            for option in ("images", "side", "image_size", "batch_size", "steps"):
                passed += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
            printed = subprocess.run(passed, stdout=subprocess.PIPE, text=True, check=True).stdout
            found = json.loads(printed.splitlines()[-1])
            print(
                f"{name:24s}{found['opening_seconds']:10.1f} s{found['images_per_second']:12.0f}"
                f"{found['work_milliseconds']:11.2f} ms"
                f"{found['largest_memory_megabytes']:9.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
