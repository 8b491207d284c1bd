"""Batches divided among the processor's cores give what whole ones give."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.samplers import Conditions
from ddim_keras.sampling import denoisers
from ddim_keras.support import cores

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or not 2 <= cores.available_cores() <= 8,
    reason="only TensorFlow divides its work among threads, and only among two to eight",
)
PROGRAM = """
import json, sys
import numpy as np, keras
import ddim_keras
from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.samplers import Conditions
from ddim_keras.sampling import denoisers
from ddim_keras.support import cores

if sys.argv[1] == "parts":
    print(ddim_keras.divide_batches_among_cores(), file=sys.stderr)
keras.utils.set_random_seed(0)
settings = {"normalization": sys.argv[2], "num_classes": 3, "widths": [16, 16], "seed": 1}
model = ddim_keras.DiffusionModel(8, block_depth=1, channels=1, **settings)
images = np.random.default_rng(0).uniform(size=(17, 8, 8, 1)).astype("float32")
model.compile("adam")
# The last batch has a single image.
history = model.fit(images, np.arange(17) % 3, batch_size=8, epochs=2, verbose=0, shuffle=False)
results = [history.history["loss"]]
results.append(model.evaluate(images, np.arange(17) % 3, batch_size=8, verbose=0))
results.append(model.generate(5, 3, seed=0, labels=[0, 1, 2, 0, 1], guidance=2.0, verbose=0))
results.append(model.encode(images[:1], 3, verbose=0))
print(json.dumps([np.asarray(result).tolist() for result in results]))
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["group", "batch"])
def test_parts_of_a_batch_give_what_the_whole_gives(normalization):
    divided, whole = run("parts", normalization), run("whole", normalization)
    assert divided.returncode == whole.returncode == 0, divided.stderr + whole.stderr
    assert str(cores.available_cores()) in divided.stderr.split()
    for part, all_of_it in zip(json.loads(divided.stdout), json.loads(whole.stdout)):
        np.testing.assert_allclose(part, all_of_it, rtol=2e-4, atol=2e-4)


def test_too_late_is_said():
    keras.ops.ones(1)
    with pytest.raises(RuntimeError, match="comes too late.*Call it at the start of the program"):
        cores.divide_batches_among_cores()


def test_a_last_part_that_is_too_short_is_filled_up(monkeypatch):
    """Three images among two cores: each part is seen to hold two, and three come back."""
    import tensorflow as tf

    monkeypatch.setattr(cores, "parts_of_a_batch", lambda: 2)
    seen = []

    def double(part):
        seen.append(part[0].shape[0])
        return [2.0 * part[0]]

    images = np.arange(3.0, dtype="float32")[:, None]
    whole = tf.function(lambda batch: cores.by_parts(double, [batch]), autograph=False)
    np.testing.assert_array_equal(whole(tf.constant(images))[0], 2.0 * images)
    assert seen == [2]


@pytest.mark.parametrize(
    ("layer", "batch", "training", "sizes"),
    [
        (keras.layers.GroupNormalization(1), None, True, [2]),
        (keras.layers.BatchNormalization(), None, False, [2]),
        (keras.layers.BatchNormalization(), None, True, [4]),
        (keras.layers.Dropout(0.5), None, True, [4]),
        (keras.layers.Activation("relu"), 4, False, [4]),  # of a fixed batch
    ],
)
def test_a_network_that_needs_its_whole_batch_gets_it(layer, batch, training, sizes, monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(cores, "parts_of_a_batch", lambda: 2)
    seen = []

    class Look(keras.layers.Layer):
        def call(self, inputs):
            seen.append(inputs.shape[0])
            return inputs

    images, levels = keras.Input((4, 4, 1), batch), keras.Input((1, 1, 1), batch)
    network = keras.Model([images, levels], Look()(layer(images)) + 0.0 * levels)
    seen.clear()
    denoise = tf.function(
        lambda noisy: denoisers.predict(
            network, noisy, Conditions(tf.ones((1, 1, 1, 1))), ConditionSpec(), training
        ),
        autograph=False,
    )
    assert denoise(tf.ones((4, 4, 4, 1))).shape == (4, 4, 4, 1)
    assert seen == sizes
