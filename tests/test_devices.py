"""Batches divided among virtual devices: the same losses, weights and images as on one."""

import json
import os

import keras
import numpy as np
import pytest
from conftest import ROOT, make_small_model, run_python

from ddim_keras.runs import RunConfig, train
from ddim_keras.support import devices

# What all programs begin with.
VIRTUAL_DEVICES = """
import sys
sys.path.insert(0, {tests!r})
if {backend!r} == "tensorflow":
    import tensorflow as tf
    device = tf.config.LogicalDeviceConfiguration()
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [device] * {number})
"""


# A model trained for an epoch or two of 22 images, on one, two and four devices.
EQUAL_ON_ALL = """
import contextlib, json, tempfile
import keras, numpy as np
from conftest import random_images
from ddim_keras import DiffusionModel, metrics
def scope(number):
    if number == 1:
        return contextlib.nullcontext()
    if {backend!r} == "tensorflow":
        names = [f"CPU:{{index}}" for index in range(number)]
        # TensorFlow's collectives take one number of devices in a process.
        together = tf.distribute.ReductionToOneDevice()
        return tf.distribute.MirroredStrategy(names, cross_device_ops=together).scope()
    names = keras.distribution.list_devices()[:number]
    return keras.distribution.DataParallel(devices=names).scope()
images, labels = random_images(22), np.arange(22) % 3
folder = tempfile.mkdtemp()
def train(*numbers, normalization):
    figures = []
    for epoch, number in enumerate(numbers):
        keras.utils.set_random_seed(0)
        with scope(number):
            model = DiffusionModel(
                8, [4, 4], 1, channels=1, seed=1, dropout=0.2, num_classes=3, label_dropout=0.3,
                normalization=normalization,
            )
            last = normalization == "group" and epoch == len(numbers) - 1
            compared = [metrics.KID("fashion_mnist", subsets=0)] if last else []
            model.compile(
                keras.optimizers.SGD(0.3, momentum=0.5, global_clipnorm=0.2), metrics=compared,
                gradient_norm=True, ema_lengths=(0.1,),
            )
            if epoch:
                model.load_weights(folder + "/before.weights.h5")
            # Batch normalisation sees the images that fill a batch up.
            number = 16 if normalization == "batch" else 22
            history = model.fit(
                images[:number], labels[:number], batch_size=8, verbose=0, shuffle=False,
                validation_data=(images, labels) if last else None,
            ).history
            figures.append({{name: value[0] for name, value in history.items()}})
            model.save_weights(folder + "/before.weights.h5")
            made = np.zeros(0)
            if last:
                made = model.generate(5, 3, seed=3, labels=[0, 1, 2, None, 1], guidance=2.0)
    weights = np.concatenate([weight.ravel() for weight in model.get_weights()])
    return figures, weights.tolist(), made.tolist()
group = [train(*numbers, normalization="group") for numbers in ((1, 1), (2, 4))]
batch = [train(*numbers, normalization="batch") for numbers in ((1,), (2,))]
print(json.dumps([group, batch]))
"""

# The weights of a network divided between two devices, the batch between two such pairs: by shape,
# and by a layout of one's own.
DIVIDED_WEIGHTS = """
import keras, numpy as np
from conftest import make_small_model, random_images
from ddim_keras.support.devices import WeightsDivided
def train():
    keras.utils.set_random_seed(0)
    model = make_small_model(normalization="group")
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(random_images(22), batch_size=8, verbose=0, shuffle=False)
    return model, model.generate(5, 3, seed=3)
one, expected = train()
mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "filters"])
layout = keras.distribution.LayoutMap(mesh)
layout[".*conv2d.*kernel"] = (None, None, None, "filters")
own = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
for distribution in (WeightsDivided(parts=2), own):
    keras.distribution.set_distribution(distribution)
    many, made = train()
    shards = [weight.value.sharding.shard_shape(weight.shape) for weight in many.network.weights]
    halves = [2 * shard[-1] == weight.shape[-1]
              for shard, weight in zip(shards, many.network.weights) if len(weight.shape) == 4]
    assert sum(halves) >= len(halves) - 1, shards  # but for the last, which makes one channel
    for weight, other in zip(one.get_weights(), many.get_weights()):
        np.testing.assert_allclose(weight, other, atol=1e-4)
    np.testing.assert_allclose(made, expected, atol=2e-3)
print("done")
"""

# 17 images in batches of 8, and a single one, on two devices.
ON_TWO_DEVICES = """
import contextlib
import keras, numpy as np
from conftest import make_small_model, random_images
from ddim_keras import metrics
if {backend!r} == "tensorflow":
    scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()
else:
    scope = contextlib.nullcontext()
    keras.distribution.set_distribution(keras.distribution.DataParallel())
images, weights = random_images(17), np.linspace(0.0, 3.0, 17)
with scope:
    model = make_small_model(widths=[4], parameterization="image")
    fid = metrics.FID("fashion_mnist")
    model.compile(keras.optimizers.SGD(0.0), metrics=[fid], gradient_norm=True)
model.normalizer.adapt(images)
# An untrained network predicts images of 0: the loss is the images' own size, whatever the noises.
sizes = np.abs(np.asarray(model.normalizer(images))).mean(axis=(1, 2, 3))
class Batches(keras.utils.PyDataset):
    num_batches = 3
    def __getitem__(self, index):
        return tuple(part[8 * index : 8 * index + 8] for part in (images, np.zeros(17), weights))
whole = dict(x=images, sample_weight=weights, batch_size=8)
history = model.fit(**whole, validation_data=(images, None, weights), verbose=0).history
losses = [history["loss"], history["val_loss"]]
np.testing.assert_allclose(losses, (weights * sizes).mean(), rtol=1e-4)
np.testing.assert_allclose(history["i_loss"], (weights * sizes).sum() / weights.sum(), rtol=1e-4)
model.compile(keras.optimizers.SGD(0.0))
history = model.fit(Batches(), validation_data=images[:1], verbose=0).history
np.testing.assert_allclose(history["loss"], (weights * sizes).mean(), rtol=1e-4)
np.testing.assert_allclose(history["val_loss"], sizes[0], rtol=1e-4)
np.testing.assert_allclose(model.fit(images[:1], verbose=0).history["loss"], sizes[0], rtol=1e-4)
if {backend!r} == "tensorflow":
    data = tf.data.Dataset.from_tensor_slices(images).batch(8)
    np.testing.assert_allclose(model.fit(data, verbose=0).history["loss"], sizes.mean(), rtol=1e-4)
assert all(np.isfinite(weight).all() for weight in model.get_weights())
print("done")
"""

# A run that is interrupted on two devices and resumed on one, beside one that stays on one.
RESUMED_ON_ONE = """
import os, pathlib, signal, tempfile
import numpy as np
from PIL import Image
from test_runs import SMALL
from ddim_keras import load_model, runs
from ddim_keras.runs import watching
folder = pathlib.Path(tempfile.mkdtemp())
draws = np.random.default_rng(0)
(folder / "photos").mkdir()
for index in range(22):
    pixels = draws.integers(0, 255, (8, 8), dtype="uint8")
    Image.fromarray(pixels).save(folder / "photos" / (str(index) + ".png"))
config = runs.RunConfig(
    data=str(folder / "photos"), split=0.0, image_size=8, channels=1, steps=10, model=SMALL,
    training=dict(batch_size=4), precision="float32", samples=0, tensorboard=False,
    memorization=0, ema_snapshots=0,
)
runs.train(config, folder / "one", verbose=0)
def interrupt(self, batch, logs=None, original=watching.KeepCheckpoints.on_train_batch_end):
    original(self, batch, logs)
    if self.step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
watching.KeepCheckpoints.on_train_batch_end, before = interrupt, (
    watching.KeepCheckpoints.on_train_batch_end
)
stopped = runs.train(config, folder / "two", verbose=0, devices=2)
assert not stopped.finished and 0 < stopped.step < 10, stopped
watching.KeepCheckpoints.on_train_batch_end = before
assert runs.train(config, folder / "two", verbose=0).finished
one, two = (load_model(folder / name / "model.keras") for name in ("one", "two"))
for weight, other in zip(one.get_weights(), two.get_weights()):
    np.testing.assert_allclose(weight, other, atol=2e-3)
print("done")
"""

# A model made in the backend's own scope and fitted outside of it, with labels and validation from
# a tf.data.Dataset, two batches for each step of the optimizer; then evaluated, saved and exported,
# and a sampler is fitted to it.
OWN_SCOPE = """
import contextlib, tempfile
import keras, numpy as np, tensorflow as tf
from conftest import make_small_model, random_images
from ddim_keras import load_model
images, labels = random_images(22), np.arange(22) % 3
data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
folder = tempfile.mkdtemp()
def use():
    keras.utils.set_random_seed(0)
    model = make_small_model(num_classes=3, normalization="group", parameterization="velocity")
    optimizer = keras.optimizers.SGD(0.1, momentum=0.5, gradient_accumulation_steps=2)
    model.compile(optimizer, gradient_norm=True)
    return model
def results(model):
    history = model.fit(data, validation_data=data, verbose=0).history
    evaluated = model.evaluate(data, verbose=0, return_dict=True)
    figures = {{**{{name: values[-1] for name, values in history.items()}}, **evaluated}}
    made = model.generate(5, 3, seed=3, labels=[0, 1, 2, None, 1], verbose=0)
    with scope():
        model.fit_sampler(2, num_images=8, teacher_steps=3, batch_size=1, epochs=1, verbose=0)
    fitted = model.generate(2, 2, seed=3, labels=[0, 1], verbose=0)
    return figures, np.concatenate([part.ravel() for part in model.get_weights()]), made, fitted
scope = contextlib.nullcontext
one = results(use())
if {backend!r} == "tensorflow":
    scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope
else:
    keras.distribution.set_distribution(keras.distribution.DataParallel())
with scope():
    model = use()
assert model.engine.devices == 2
two = results(model)
assert one[0].keys() == two[0].keys() and {{"n_loss", "val_n_loss"}} <= one[0].keys(), two[0]
for name, value in one[0].items():
    np.testing.assert_allclose(two[0][name], value, rtol=1e-3, atol=1e-4, err_msg=name)
np.testing.assert_allclose(two[1], one[1], atol=1e-4)
for made, expected in zip(two[2:], one[2:]):
    np.testing.assert_allclose(made, expected, atol=2e-3)
model.save(folder + "/model.keras")
again = load_model(folder + "/model.keras")
for weight, other in zip(model.get_weights(), again.get_weights()):
    np.testing.assert_array_equal(weight, other)
model.export(folder + "/saved", "tf_saved_model", "generate", diffusion_steps=3)
noise = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
run = tf.saved_model.load(folder + "/saved").signatures["serving_default"]
told = tf.constant([0, 1, 2, 3], tf.int32)
exported = run(initial_noise=tf.constant(noise), labels=told)["images"].numpy()
made = model.generate(4, 3, initial_noise=noise, labels=[0, 1, 2, None], verbose=0)
np.testing.assert_allclose(exported, made, atol=1e-4)
print("done")
"""

# 8,000 images of 32 x 32 in colour, 98 MB as the model makes them, by the command line.
MANY_IMAGES = """
import json, pathlib, tempfile
import numpy as np
from click.testing import CliRunner
from conftest import make_small_model
from ddim_keras import load_model
from ddim_keras.cli import main
from ddim_keras.runs import exporting
folder = pathlib.Path(tempfile.mkdtemp())
make_small_model(image_size=32, widths=[4], channels=3, parameterization="velocity").save(
    folder / "model.keras"
)
def resident():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096 / 1e6
sizes, write = [], exporting.FORMATS["npz"].write
def remember(*arguments):
    sizes.append(resident())
    write(*arguments)
exporting.FORMATS["npz"] = exporting.FORMATS["npz"]._replace(write=remember)
def generate(out, *more):
    command = ["generate", "-m", folder / "model.keras", "-o", folder / out, "--steps", 1]
    command += ["--format", "npz", "--shard-size", 400, *more]
    result = CliRunner().invoke(main, list(map(str, command)))
    assert result.exit_code == 0, result.output
generate("all", "-n", 8_000, "--devices", "all", "--shard", "0/2")
generate("all", "-n", 8_000, "--devices", "all", "--shard", "1/2")
files = sorted((folder / "all").glob("*.npz"))
assert len(files) == len(sizes) == 20
for each in (sizes[:10], sizes[10:]):  # the second command brings a model of its own
    assert max(each[5:]) < each[4] + 30.0, sizes
model = load_model(folder / "model.keras")
assert model.engine.devices == 1
for index in (0, 13):
    with np.load(files[index]) as arrays:
        made = arrays["images"].astype(int)
    expected = model.generate(16, 1, first_image=400 * index, seed=0, verbose=0)
    np.testing.assert_allclose(made[:16], np.rint(255 * expected), atol=1)
    assert len(made) == 400
print("done")
"""


def run_on_virtual_devices(program: str, number: int) -> str:
    backend = keras.backend.backend()
    return run_python(
        (VIRTUAL_DEVICES + program).format(
            tests=str(ROOT / "tests"), backend=backend, number=number
        ),
        backend,
        timeout=3600,
        XLA_FLAGS=f"--xla_force_host_platform_device_count={number}",
        TF_CPP_MIN_LOG_LEVEL="3",
    )


@pytest.mark.slow
def test_losses_weights_and_images_are_those_of_one_device_on_two_and_four():
    for one, *others in json.loads(run_on_virtual_devices(EQUAL_ON_ALL, 4)):
        for many in others:
            for expected, found in zip(one[0], many[0]):  # of each epoch
                assert expected.keys() == found.keys()
                for name, value in expected.items():
                    assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
            np.testing.assert_allclose(many[1], one[1], atol=1e-4)
            np.testing.assert_allclose(many[2], one[2], atol=2e-3)


@pytest.mark.slow
def test_batches_that_devices_cannot_share_evenly_count_as_on_one():
    printed = run_on_virtual_devices(ON_TWO_DEVICES, 2)
    assert printed.endswith("done\n")


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone divides weights")
def test_a_network_whose_weights_are_divided_trains_as_on_one_device():
    assert run_on_virtual_devices(DIVIDED_WEIGHTS, 4).endswith("done\n")


@pytest.mark.slow
def test_a_model_made_in_a_scope_of_ones_own_is_fitted_evaluated_saved_and_exported_as_on_one():
    assert run_on_virtual_devices(OWN_SCOPE, 2).endswith("done\n")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads memory as Linux tells it")
def test_many_images_are_spread_over_devices_and_machines_in_memory_that_does_not_grow():
    assert run_on_virtual_devices(MANY_IMAGES, 2).endswith("done\n")


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_devices():
    assert run_on_virtual_devices(RESUMED_ON_ONE, 2).endswith("done\n")


def test_weights_that_cannot_be_divided_are_refused():
    if keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match=r"devices cannot be divided into groups of 1000"):
            devices.WeightsDivided(1000)
    else:
        with pytest.raises(ValueError, match="on JAX alone.* KERAS_BACKEND=jax"):
            devices.WeightsDivided(2)


def test_more_devices_than_there_are_are_refused_and_named(tmp_path):
    there = len(devices.available())
    with pytest.raises(ValueError, match=rf"{there + 1} devices .* there are {there} .* 'all'"):
        train(RunConfig(), tmp_path / "run", devices=there + 1)
    assert not (tmp_path / "run").exists()
    for wrong in (0, "two", True, -1, 1.5):
        with pytest.raises(ValueError, match="positive number"):
            devices.check(wrong)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX finds TPUs by itself")
def test_tpus_of_tensorflow_are_initialised_before_they_are_counted(monkeypatch):
    import tensorflow as tf

    initialised = []
    tpus = [tf.config.LogicalDevice(f"/device:TPU:{index}", "TPU") for index in range(4)]
    there = {"TPU": ["one"]}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: there.get(kind, []))
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind: tpus if "local" in initialised else []
    )
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver
    monkeypatch.setattr(resolver, "connect", initialised.append)
    assert devices.available() == [each.name for each in tpus]
    assert devices.available() and initialised == ["local"]


def test_batches_that_devices_cannot_share_are_refused():
    devices.check_batch(64, 4)
    with pytest.raises(ValueError, match="batch of 10 .* 4 devices: give batch_size=8 or 12"):
        devices.check_batch(10, 4)
    with pytest.raises(ValueError, match="give batch_size=4, or"):
        devices.check_batch(3, 4)


def test_all_devices_of_one_are_one():
    with devices.used("1") as number:
        assert number == 1
        assert make_small_model().engine.devices == 1
