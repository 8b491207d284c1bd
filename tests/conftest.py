"""What the tests share: small models, an exact denoiser, and the real data sets where they can be
had.
"""

from __future__ import annotations

import datetime
import gc
import gzip
import os
import pathlib
import subprocess
import sys
import time
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# Many tests compile the same: JAX keeps what it has compiled, for the next test and the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".pytest_cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import numpy as np
import pytest

import ddim_keras

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What hardly depends on the backend, or compiles long under JAX, is tested there by
# `make test-slow` alone.
slow_on_jax = (
    pytest.mark.slow if keras.backend.backend() == "jax" else pytest.mark.usefixtures("seeded")
)

# The same for a case of a test: `pytest.param(..., marks=SLOW_CASE_ON_JAX)`.
SLOW_CASE_ON_JAX = [pytest.mark.slow] if keras.backend.backend() == "jax" else []


def first_quick(cases, number: int = 1) -> list:
    """The cases of a parametrized test of which the first are quick and the others slow."""
    cases = list(cases)
    rest = (pytest.param(case, marks=pytest.mark.slow) for case in cases[number:])
    return [*cases[:number], *rest]


def crossed(ones, others) -> list:
    """Each of the ones with each of the others. Quick are the first of either with all of the
    other, and the rest is slow.
    """
    ones, others = list(ones), list(others)
    return [
        pytest.param(one, other, marks=[pytest.mark.slow] if number and place else [])
        for number, one in enumerate(ones)
        for place, other in enumerate(others)
    ]


def pytest_addoption(parser):
    parser.addoption(
        "--minutes",
        type=float,
        help="begin no test later than that; another file of tests comes first each day",
    )


def pytest_configure(config):
    config.started = time.monotonic()
    if "not slow" in config.option.markexpr:
        compile_without_optimizing()


def compile_without_optimizing():
    """TensorFlow rewrites a graph before its first run, and XLA's compiler optimizes under JAX:
    that pays after hundreds of runs, and the quick tests, which run what they compile a few times,
    do without. The slow ones and every new process have it as users do.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # "disable_meta_optimizer" would keep more memory of each graph.
        tf.config.optimizer.set_experimental_options({"min_graph_nodes": 10**6})
    elif keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", True)
        # Two fifths of what compiling still takes. A version without the flag ends the process.
        if jax.__version_info__[:2] == (0, 10):
            with pytest.MonkeyPatch.context() as patch:
                given = os.environ.get("XLA_FLAGS", "")
                patch.setenv("XLA_FLAGS", f"{given} --xla_cpu_use_fusion_emitters=false")
                jax.numpy.zeros(1)  # XLA reads them once, at its first compilation


def pytest_collection_modifyitems(config, items):
    if config.option.minutes is not None:
        day = datetime.date.today()
        items.sort(key=lambda item: zlib.crc32(f"{day} {item.path.name}".encode()))


def pytest_runtest_setup(item):
    minutes = item.config.option.minutes
    if minutes is not None and time.monotonic() - item.config.started > 60.0 * minutes:
        pytest.skip(f"{minutes:g} minutes were over")


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="session")
def what_is_imported_is_not_collected():
    """A collection of garbage looks at what the tests have left, and not at the libraries too."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def data_sets_that_do_not_tune_themselves(request):
    """A data set of TensorFlow's that tunes itself lets go of its threads seconds after it was
    dropped, and meanwhile nothing else in the process runs: two minutes of all quick tests.
    """
    if "not slow" not in request.config.option.markexpr:
        yield
        return
    import tensorflow as tf

    iterator, untuned = tf.data.Dataset.__iter__, tf.data.Options()
    untuned.autotune.enabled = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tf.data.Dataset, "__iter__", lambda data: iterator(data.with_options(untuned))
        )
        yield


def make_small_model(**changes) -> ddim_keras.DiffusionModel:
    arguments = {
        "image_size": 8,
        "widths": [4],
        "block_depth": 1,
        "channels": 1,
        "seed": 1,
        **changes,
    }
    return ddim_keras.DiffusionModel(**arguments)


def random_images(number: int = 24, image_shape=(8, 8, 1), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(number, *image_shape)).astype("float32")


def make_trained_model(**changes) -> ddim_keras.DiffusionModel:
    """A model after a few real training steps: no weight is at its initial value any more."""
    model = make_small_model(**changes)
    model.compile(optimizer=keras.optimizers.AdamW(1e-2), loss="mean_absolute_error")
    model.fit(random_images(), batch_size=8, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="session")
def trained_model():
    """Shared by tests that do not change it. Velocities keep its barely trained predictions in a
    sane range.
    """
    keras.utils.set_random_seed(0)
    return make_trained_model(parameterization="velocity", widths=[4, 8])


class GaussianOracle:
    """The perfect denoiser for data N(mean, deviation^2): E[x0 | x] is known in closed form.

    Mean and deviation are numbers or arrays that broadcast against the images.
    """

    def __init__(self, mean, deviation):
        self.mean, self.deviation = mean, deviation

    def __call__(self, noisy_images, noise_rate, signal_rate, condition=None):
        variance = signal_rate**2 * self.deviation**2 + noise_rate**2
        surprise = noisy_images - signal_rate * self.mean
        pred_images = self.mean + signal_rate * self.deviation**2 / variance * surprise
        return (noisy_images - signal_rate * pred_images) / noise_rate, pred_images

    def exact_ode(self, noisy_images, start, end):
        """Carry a noisy image from the (signal, noise) rates at the start to those at the end."""

        def scale(rates):
            return np.sqrt(rates[0] ** 2 * self.deviation**2 + rates[1] ** 2)

        return end[0] * self.mean + scale(end) * (noisy_images - start[0] * self.mean) / scale(
            start
        )


class MixtureOracle:
    """The perfect denoiser for data that are N(-centre, deviation^2) or N(centre, deviation^2),
    equally often.
    """

    def __init__(self, centre, deviation):
        self.centre, self.deviation = centre, deviation

    def __call__(self, noisy_images, noise_rate, signal_rate, condition=None):
        numeric = np if isinstance(noisy_images, np.ndarray) else keras.ops
        variance = signal_rate**2 * self.deviation**2 + noise_rate**2
        sign = numeric.tanh(signal_rate * self.centre * noisy_images / variance)
        pred_images = (
            sign * self.centre * noise_rate**2 + signal_rate * self.deviation**2 * noisy_images
        ) / variance
        return (noisy_images - signal_rate * pred_images) / noise_rate, pred_images


@keras.saving.register_keras_serializable("ddim_keras_tests")
class GaussianNoise(keras.layers.Layer):
    """The oracle as a layer: [noisy images, noise variances] -> noises."""

    def __init__(self, mean, deviation, **kwargs):
        super().__init__(**kwargs)
        self.oracle = GaussianOracle(mean, deviation)

    def call(self, inputs):
        noisy_images, variances = inputs
        return self.oracle(
            noisy_images, keras.ops.sqrt(variances), keras.ops.sqrt(1.0 - variances)
        )[0]

    def get_config(self):
        return {
            **super().get_config(),
            "mean": self.oracle.mean,
            "deviation": self.oracle.deviation,
        }


def make_oracle_model(mean=0.0, deviation=1.0, **changes) -> ddim_keras.DiffusionModel:
    """A model whose network is the perfect denoiser of its normalised data N(mean, deviation^2)."""
    noisy_images, variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    network = keras.Model(
        [noisy_images, variances], GaussianNoise(mean, deviation)([noisy_images, variances])
    )
    return make_small_model(network=network, **changes)


def run_python(
    code: str, backend: str | None = None, timeout: float = 300, **environment: str
) -> str:
    """Run code in a new process and return what it printed; fail with its errors."""
    variables = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    if backend:
        variables["KERAS_BACKEND"] = backend
    result = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="session")
def fashion_mnist_dir(tmp_path_factory):
    """A TFDS data folder in which the real `tfds.load("fashion_mnist")` needs no network: on
    Debian's copy, or a stand-in.
    """
    sys.path.insert(0, str(ROOT / "scripts"))
    import place_fashion_mnist

    source = place_fashion_mnist.DEBIAN_FOLDER
    if not source.is_dir():
        source = write_stand_in_for_fashion_mnist(tmp_path_factory.mktemp("originals"))
    folder = tmp_path_factory.mktemp("tfds")
    place_fashion_mnist.place_downloads(folder, source)
    return folder


def folder_of_cifar10() -> pathlib.Path:
    """Where TFDS has prepared CIFAR-10: TFDS_DATA_DIR, or shared/data beside the repository. The
    test is skipped where neither has it.
    """
    places = [os.environ.get("TFDS_DATA_DIR", ""), ROOT.parent / "shared" / "data" / "tfds"]
    for place in map(pathlib.Path, places):
        if (place / "cifar10").is_dir():
            return place
    pytest.skip("CIFAR-10 is not here: prepare it by TFDS and set TFDS_DATA_DIR")


def write_stand_in_for_fashion_mnist(folder: pathlib.Path) -> pathlib.Path:
    """Write four files of the originals' names, format and size, with even images that are brighter
    the higher their label.
    """
    for part, number in (("train", 60_000), ("t10k", 10_000)):
        labels = np.arange(number, dtype="uint8") % 10
        images = np.repeat(labels * 20, 28 * 28)
        for name, header, values in (
            (f"{part}-images-idx3-ubyte.gz", (2051, number, 28, 28), images),
            (f"{part}-labels-idx1-ubyte.gz", (2049, number), labels),
        ):
            content = np.array(header, ">i4").tobytes() + values.tobytes()
            (folder / name).write_bytes(gzip.compress(content, compresslevel=1))
    return folder
