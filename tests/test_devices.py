"""Batches divided among devices: 17 images in batches of 8, and a single one, on two virtual
devices.
"""

import keras
import pytest
from conftest import ROOT, run_python

ON_TWO_DEVICES = """
import contextlib, os, sys
sys.path.insert(0, {tests!r})
if {backend!r} == "tensorflow":
    import tensorflow as tf
    device = tf.config.LogicalDeviceConfiguration()
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [device] * 2)
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


@pytest.mark.slow
@pytest.mark.parametrize("backend", [keras.backend.backend()])
def test_batches_that_devices_cannot_share_evenly_count_as_on_one(backend):
    printed = run_python(
        ON_TWO_DEVICES.format(tests=str(ROOT / "tests"), backend=backend),
        backend,
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
        TF_CPP_MIN_LOG_LEVEL="3",
    )
    assert printed.endswith("done\n")
