"""Two real processes that train one model over the loopback: killed, resumed, and as one."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import ROOT

import ddim_keras
from ddim_keras.support.devices import Workers

STEPS = 40
SETTINGS = (
    f"--data embedded --image-size 16 --batch-size 16 --steps {STEPS} --preset fashion_mnist_32 "
    "--precision float32 --optimizer adamw --learning-rate 1e-3 --checkpoint-every 10 --kid none "
    "--samples 0 --no-tensorboard --ema-snapshots 0 --memorization 0 --validation-images 32 "
    "--validate-every 20"
).split()
NETWORK = ["--set", "widths=(8, 8)", "--set", "block_depth=1", "--set", "patch_size=1"]


def start(folder: pathlib.Path, log: pathlib.Path, *more: str) -> subprocess.Popen:
    code = "from ddim_keras.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "--out", str(folder), *SETTINGS, *NETWORK]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": keras.backend.backend()}
    return subprocess.Popen(
        [*command, *more], env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT
    )


def start_two(folder: pathlib.Path, logs: pathlib.Path) -> list[subprocess.Popen]:
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    return [
        start(folder, logs / f"{index}.log", "--workers", addresses, "--worker", str(index))
        for index in range(2)
    ]


def wait_for(condition, what: str, seconds: float = 1500.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.mark.slow
def test_two_processes_train_as_one_though_one_is_killed(tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    processes = start_two(together, tmp_path)
    checkpoints = together / "checkpoints"
    try:
        wait_for(
            lambda: (checkpoints / "step_000000010.json").is_file() or processes[0].poll(),
            "no checkpoint was written",
        )
        assert processes[0].poll() is None, (tmp_path / "0.log").read_text()[-3000:]
        processes[1].kill()
        wait_for(lambda: processes[0].poll() is not None, "the first process did not end")
        said = (tmp_path / "0.log").read_text()
        assert processes[0].returncode == 1, said[-3000:]
        assert "another process of the training was lost" in said
        assert "the same command in all processes resumes from step" in said
        processes = start_two(together, tmp_path)
        for process in processes:
            assert process.wait(1500) == 0, (tmp_path / "0.log").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    said = (tmp_path / "0.log").read_text()
    assert "Resuming from step" in said and "On 2 devices, 8 images on each" in said
    assert start(alone, tmp_path / "alone.log").wait(1500) == 0
    ours, theirs = (
        ddim_keras.load_model(place / "model.keras", compile=False).get_weights()
        for place in (together, alone)
    )
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, atol=2e-3)
    assert (together / "log.csv").read_text().count("\n") == STEPS // 20 + 1


def test_workers_are_at_least_two_addresses_of_which_this_is_one():
    found = Workers.parse("a:9000, b:9001", 1)
    assert found == (["a:9000", "b:9001"], 1)
    for wrong in ("a:9000", "a,b:9000", "a:9000,a:9000", ""):
        with pytest.raises(ValueError, match="at least two different HOST:PORT"):
            Workers.parse(wrong, 0)
    for number in (None, 2, -1):
        with pytest.raises(ValueError, match="a number from 0 to 1"):
            Workers.parse("a:9000,b:9001", number)
