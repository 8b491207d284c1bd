"""Python ends soon, and without an error, whatever tf.data's threads are at."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from ddim_keras.data import ending, load_dataset

SCRIPT = """
import sys
from ddim_keras.data import load_dataset

train, _ = load_dataset(sys.argv[1], 8, batch_size=4, flip=True, cache=False)
iterator = iter(train.from_step(0))
next(iterator)
"""


def make_folder(folder, number=40):
    draw = np.random.default_rng(0)
    for index in range(number):
        Image.fromarray(draw.integers(0, 255, (24, 24, 3), "uint8")).save(folder / f"{index}.png")


@pytest.mark.slow
def test_an_endless_training_set_runs_no_generator_in_python(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf, "numpy_function", None)
    monkeypatch.setattr(tf, "py_function", None)
    monkeypatch.setattr(tf.data.Dataset, "from_generator", None)
    train, _ = load_dataset("embedded", 8, batch_size=100)
    endless = train.from_step(1)
    assert endless.element_spec == train.element_spec
    assert next(iter(endless)).shape == (100, 8, 8, 1)


def test_a_closed_gate_refuses_calls_and_waits_for_those_inside():
    gate = ending._Gate()
    double = gate.guard(lambda number: 2 * number)
    assert double(3) == 6
    gate.close()
    assert not gate.inside
    with pytest.raises(RuntimeError, match="interpreter ends"):
        double(3)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["embedded", "folder"])
def test_a_script_ends_while_an_iterator_is_alive(tmp_path, source):
    if source == "folder":
        make_folder(tmp_path)
    data = str(tmp_path) if source == "folder" else source
    for _ in range(4):
        subprocess.run([sys.executable, "-c", SCRIPT, data], cwd=ROOT, check=True, timeout=120)
