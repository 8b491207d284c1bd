"""Score a model as papers do: FID of 50,000 images, by the 2015 Inception network, against all the
images that it was trained on.

    python scripts/literature_fid.py --model cifar10_32 --data cifar10 [--data-dir TFDS_DATA_DIR]
        [--steps 100] [--eta 0] [--table1] [--weights FILE] [--out outputs/literature_fid]

Needs `pip install 'ddim_keras[fidelity]'`, and that network's weights (91 MB), which torch-fidelity
downloads once, or FILE. One figure takes 50,000 walks: hours on a CPU, minutes on a GPU. What was
done is kept in --out, 1,000 images at a time: the same command resumes, and the last line is the
figure. --table1 gives the protocol of table 1 of Song, Meng & Ermon (2021) instead: S = 10, 20, 50,
100 and 1000, by eta = 0, 0.2, 0.5 and 1 and by sigma-hat, over the spacing that the paper takes for
CIFAR-10, quadratic.

A model with classes draws as many images of each. Another --features makes a rehearsal: cifar10,
say, which ships.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

import ddim_keras
from ddim_keras import metrics
from ddim_keras.support import files

PART = 1000  # images between two savings
TABLE_1_STEPS = (10, 20, 50, 100, 1000)
TABLE_1_SAMPLERS: dict[str, dict[str, Any]] = {
    "eta 0": {"eta": 0.0},
    "eta 0.2": {"eta": 0.2},
    "eta 0.5": {"eta": 0.5},
    "eta 1": {"eta": 1.0},
    "sigma-hat": {"sampler": "ddpm_large"},
}


class Moments:
    """Mean and covariance of features, kept in a file as they come.

    Args:
        path: of the file.
        identity: what the features are of; a file of something else is not taken up.
    """

    def __init__(self, path: pathlib.Path, identity: str):
        self.path, self.identity = path, identity
        self.count, self.total, self.products = 0, np.zeros(()), np.zeros(())
        if path.is_file():
            with np.load(path) as stored:
                if str(stored["identity"]) != identity:
                    raise SystemExit(f"{path} is of something else: give another --out")
                self.count = int(stored["count"])
                self.total, self.products = stored["total"], stored["products"]

    def add(self, features: np.ndarray) -> None:
        """Take in features (images, dims), and save."""
        features = features.astype("float64")
        self.count += len(features)
        self.total = self.total + features.sum(axis=0)
        self.products = self.products + features.T @ features
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.written_beside(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                identity=self.identity,
                count=self.count,
                total=self.total,
                products=self.products,
            )

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self.total / self.count
        scatter = self.products - self.count * np.outer(mean, mean)
        return mean, scatter / (self.count - 1)


def in_parts(extractor: metrics.Extractor, images: np.ndarray) -> np.ndarray:
    parts = [images[start : start + 100] for start in range(0, len(images), 100)]
    return np.concatenate([np.asarray(extractor.features(part)) for part in parts])


def of_the_data(arguments: argparse.Namespace, model: Any, extractor: Any, key: str) -> Moments:
    """Moments of all the training images, in their order."""
    identity = json.dumps([arguments.data, model.image_shape, key])
    moments = Moments(arguments.out / f"real_{_short(identity)}.npz", identity)
    train, _ = ddim_keras.data.load_dataset(
        arguments.data,
        model.image_shape[:2],
        PART,
        channels=model.image_shape[-1],
        data_dir=arguments.data_dir,
        drop_remainder=False,
        seed=0,
    )
    done = moments.count // PART
    for number, images in enumerate(train.from_step(done).take(len(train) - done)):
        moments.add(in_parts(extractor, images.numpy()))
        print(f"real images: {(done + number + 1) * PART}", flush=True)
    return moments


def fid_of(
    arguments: argparse.Namespace,
    model: Any,
    of_features: Callable[[np.ndarray], np.ndarray],
    real: Moments,
    sampling: dict[str, Any],
    key: str,
) -> float:
    """FID of the model's images by one way to sample."""
    weights = b"".join(np.ascontiguousarray(part) for part in model.ema_network.get_weights())
    identity = json.dumps([_short(weights), arguments.seed, sampling, key])
    moments = Moments(arguments.out / f"generated_{_short(identity)}.npz", identity)
    classes = model.num_classes
    while moments.count < arguments.num_images:
        number = min(PART, arguments.num_images - moments.count)
        places = moments.count + np.arange(number)
        images = model.generate(
            number,
            labels=None if classes is None else (places % classes).tolist(),
            seed=arguments.seed,
            first_image=moments.count,
            verbose=0,
            **sampling,
        )
        moments.add(of_features(images))
        print(f"{sampling}: {moments.count} of {arguments.num_images} images", flush=True)
    return metrics.frechet_distance(*real.mean_and_covariance(), *moments.mean_and_covariance())


def _short(identity: str | bytes) -> str:
    content = identity.encode() if isinstance(identity, str) else identity
    return hashlib.sha256(content).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a .keras file, or a preset")
    parser.add_argument("--data", required=True, help="a TFDS data set, or a folder of images")
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument("--steps", type=int, default=100, help="S, the number of sampling steps")
    parser.add_argument("--eta", type=float, default=0.0, help="0 is DDIM, 1 is DDPM")
    parser.add_argument("--spacing", default="quadratic", help="of the steps")
    parser.add_argument("--table1", action="store_true", help="all of the paper's table 1")
    parser.add_argument("--num-images", type=int, default=50_000, help="generated for each figure")
    parser.add_argument("--seed", type=int, default=0, help="of the images")
    parser.add_argument("--features", default="inception_2015", help="an extractor's name")
    parser.add_argument("--weights", help="of the 2015 Inception network, as torch-fidelity's file")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/literature_fid"))
    arguments = parser.parse_args()
    ddim_keras.divide_batches_among_cores()

    if arguments.weights:
        extractor: metrics.Extractor = metrics.Inception2015Extractor(arguments.weights)
    else:
        extractor = metrics.get_extractor(arguments.features)
    if pathlib.Path(arguments.model).suffix == ".keras":
        import keras

        model = keras.models.load_model(arguments.model)
    else:
        model = ddim_keras.DiffusionModel.from_preset(arguments.model)
    real = of_the_data(arguments, model, extractor, arguments.features)
    ways = {f"eta {arguments.eta:g}": {"eta": arguments.eta}}
    for steps in TABLE_1_STEPS if arguments.table1 else (arguments.steps,):
        for name, way in (TABLE_1_SAMPLERS if arguments.table1 else ways).items():
            sampling = {"diffusion_steps": steps, "spacing": arguments.spacing, **way}
            figure = fid_of(
                arguments,
                model,
                lambda images: in_parts(extractor, images),
                real,
                sampling,
                arguments.features,
            )
            print(f"S = {steps}, {name}: FID {figure:.3f} of {arguments.num_images} images")


if __name__ == "__main__":
    main()
