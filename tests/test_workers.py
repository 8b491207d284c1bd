"""Two real processes that train one model over the loopback: killed, resumed, and as one."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, make_small_model, random_images

import ddim_keras
from ddim_keras.cli import main
from ddim_keras.runs.checkpoints import Checkpoints
from ddim_keras.runs.workers import WorkerLostError, lost_workers_told, only_training_in
from ddim_keras.support import backend
from ddim_keras.support.devices import Workers
from ddim_keras.support.folder_locks import FolderInUseError, only_one_in

# So many that they are not over before a process is stopped, on a quick machine either.
STEPS = 200
SETTINGS = (
    f"--data embedded --image-size 16 --batch-size 16 --steps {STEPS} --preset fashion_mnist_32 "
    "--precision float32 --optimizer adamw --learning-rate 1e-3 --checkpoint-every 10 --kid none "
    "--samples 2 --no-tensorboard --ema-snapshots 2 --memorization 0 --validation-images 24 "
    "--validate-every 100"
).split()
NETWORK = ["--set", "widths=(8, 8)", "--set", "block_depth=1", "--set", "patch_size=1"]
LOST = "another process of the training was lost"


def start(folder: pathlib.Path, log: pathlib.Path, *more: str) -> subprocess.Popen:
    code = "from ddim_keras.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "--out", str(folder), *SETTINGS, *NETWORK]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": keras.backend.backend()}
    return subprocess.Popen(
        [*command, *more], env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT
    )


@pytest.fixture
def start_two():
    """Starts two processes, and ends them with the test."""
    started = []

    def start_both(folder: pathlib.Path, logs: pathlib.Path) -> list[subprocess.Popen]:
        addresses = ",".join(free_addresses(2))
        both = [
            start(folder, logs / f"{index}.log", "--workers", addresses, "--worker", str(index))
            for index in range(2)
        ]
        started.extend(both)
        return both

    yield start_both
    for process in started:
        process.kill()
        process.wait()


def free_addresses(number: int) -> list[str]:
    ports = []
    for _ in range(number):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    return [f"127.0.0.1:{port}" for port in ports]


def wait_for(condition, process: subprocess.Popen, log: pathlib.Path):
    """Wait until something is so, which a process works at."""
    end = time.monotonic() + 900.0
    while not condition():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)


def newest_step(checkpoints: pathlib.Path) -> int:
    """Of the checkpoints in a folder, 0 where there is none."""
    return max((int(path.stem[5:]) for path in checkpoints.glob("step_*.json")), default=0)


def ended(process: subprocess.Popen, log: pathlib.Path) -> str:
    """Wait for a process to end, and return what it said."""
    process.wait(900)
    return log.read_text()


@pytest.mark.slow
def test_two_processes_train_as_one_though_killed_and_interrupted(tmp_path, start_two):
    together, alone = tmp_path / "together", tmp_path / "alone"
    first, second = tmp_path / "0.log", tmp_path / "1.log"
    checkpoints = together / "checkpoints"

    processes = start_two(together, tmp_path)
    wait_for(lambda: newest_step(checkpoints) > 0, processes[0], first)
    processes[1].kill()
    said = ended(processes[0], first)
    assert processes[0].returncode == 1, said[-3000:]
    assert LOST in said and "the same command in all processes resumes from step" in said

    before = newest_step(checkpoints)
    processes = start_two(together, tmp_path)
    wait_for(lambda: newest_step(checkpoints) > before, processes[0], first)
    processes[1].send_signal(signal.SIGTERM)
    for process, log in zip(processes, (first, second)):
        said = ended(process, log)
        assert process.returncode == 130, said[-3000:]
        assert "the same command resumes" in said
    assert "Resuming from step" in said and "On 2 devices, 8 images on each" in said

    for process, log in zip(start_two(together, tmp_path), (first, second)):
        said = ended(process, log)
        assert process.returncode == 0, said[-3000:]
    assert "Resuming from step" in said

    one = start(alone, tmp_path / "alone.log")
    assert "Trained for" in ended(one, tmp_path / "alone.log")
    weights = [
        ddim_keras.load_model(place / "model.keras", compile=False).get_weights()
        for place in (together, alone)
    ]
    for ours, theirs in zip(*weights):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
    names = ["n_loss", "val_n_loss", "val_i_loss", "learning_rate"]
    figures = []
    for place in (together, alone):
        with open(place / "log.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]  # of an epoch that nothing interrupted
        figures.append([float(last[name]) for name in names])
    np.testing.assert_allclose(*figures, rtol=5e-3)
    of_one = {path.name for path in alone.iterdir()}
    assert {path.name for path in together.iterdir()} == of_one


# A program of one's own, in the scope that the backend has for it.
OWN_PROGRAM = """
import contextlib, json, os, sys
number, addresses, folder = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
backend = os.environ["KERAS_BACKEND"]
task = {"type": "worker", "index": number}
os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
if backend == "jax":
    import jax
    jax.distributed.initialize(addresses[0], 2, number)
import keras, numpy as np, tensorflow as tf
if backend == "jax":
    scope = contextlib.nullcontext()
    both = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(both)
else:
    scope = tf.distribute.MultiWorkerMirroredStrategy().scope()
from test_workers import trained
with scope:
    model, figures, weights = trained()
    made = model.generate(3, 3, seed=3) if number == 0 else np.zeros(0)
    try:
        model.fit(np.zeros((4, 8, 8, 1)), verbose=0)
    except ValueError as error:
        refused = str(error)
    if number == 0:
        model.export(folder, "tf_saved_model", "generate", diffusion_steps=2)
    from ddim_keras.support import backend
    backend.largest_of_processes([0.0])  # neither leaves before the other
result = {"figures": figures, "weights": weights, "made": made.tolist(), "refused": refused}
print("RESULT", json.dumps(result), flush=True)
"""


def trained():
    """A model trained for two epochs of 22 images, two batches for each step of the optimizer; its
    losses and its weights.
    """
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(random_images(22)).batch(8)
    keras.utils.set_random_seed(0)
    model = make_small_model(normalization="group", parameterization="velocity")
    # Not Adam, which makes steps of what rounding leaves of gradients that are 0.
    optimizer = keras.optimizers.SGD(0.1, momentum=0.5, gradient_accumulation_steps=2)
    model.compile(optimizer, gradient_norm=True)
    history = model.fit(batches, epochs=2, verbose=0, validation_data=batches).history
    evaluated = model.evaluate(batches, verbose=0)
    figures = [*(values[-1] for values in history.values()), *evaluated]
    weights = np.concatenate([part.ravel() for part in model.get_weights()])
    return model, figures, weights.tolist()


@pytest.mark.slow
def test_a_program_of_ones_own_trains_in_two_processes(tmp_path):
    addresses = json.dumps(free_addresses(2))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": keras.backend.backend()}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OWN_PROGRAM, str(number), addresses, str(tmp_path / "saved")],
            env=environment,
            stdout=(tmp_path / f"{number}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for number in range(2)
    ]
    model, figures, weights = trained()
    for number, process in enumerate(processes):
        said = ended(process, tmp_path / f"{number}.log")
        assert process.returncode == 0, said[-3000:]
        found = json.loads(said.split("RESULT ")[1].splitlines()[0])
        np.testing.assert_allclose(found["figures"], figures, rtol=1e-4)
        np.testing.assert_allclose(found["weights"], weights, atol=1e-3)
        assert "each reads its part of a tf.data.Dataset" in found["refused"]
        if number == 0:
            np.testing.assert_allclose(found["made"], model.generate(3, 3, seed=3), atol=2e-3)
    assert (tmp_path / "saved" / "saved_model.pb").is_file()


def test_workers_are_at_least_two_addresses_of_which_this_is_one():
    found = Workers.parse("a:9000, b:9001", 1)
    assert found == (["a:9000", "b:9001"], 1)
    for wrong in ("a:9000", "a,b:9000", "a:9000,a:9000", ""):
        with pytest.raises(ValueError, match="at least two different HOST:PORT"):
            Workers.parse(wrong, 0)
    for number in (None, 2, -1):
        with pytest.raises(ValueError, match="a number from 0 to 1"):
            Workers.parse("a:9000,b:9001", number)


def test_a_lost_process_is_told_with_what_is_kept_and_other_errors_are_left_alone(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(backend, "process", lambda model=None: (0, 2))
    if keras.backend.backend() == "jax":
        import jax

        lost = [
            jax.errors.JaxRuntimeError("UNAVAILABLE: Connection reset"),
            ValueError("UNKNOWN: Gloo AllGather failed: Connection reset"),
        ]
    else:
        import tensorflow as tf

        text = "Graph execution error:\n\nCollective ops is aborted by: Connection reset\nDetails"
        lost = [tf.errors.UnavailableError(None, None, text)]
    for error in lost:
        message = f"{LOST} .*Connection reset\\); there is no checkpoint yet.*starts anew"
        with pytest.raises(WorkerLostError, match=message):
            with lost_workers_told(Checkpoints(tmp_path, keep=2)):
                raise error
    with pytest.raises(ValueError, match="^images are missing$"):
        with lost_workers_told(Checkpoints(tmp_path, keep=2)):
            raise ValueError("images are missing")


def test_the_first_of_several_processes_keeps_other_trainings_out_for_all(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(backend, "largest_of_processes", lambda own: heard.append(own) or [had])
    for index in (0, 1):
        monkeypatch.setattr(backend, "process", lambda model=None, index=index: (index, 2))
        had = 0.0
        with only_training_in(tmp_path):
            assert (tmp_path / ".lock").exists() == (index == 0)
        assert heard.pop() == [0.0]
        had = 1.0
        with only_one_in(tmp_path, "trains"):
            with pytest.raises(FolderInUseError, match=str(tmp_path)):
                with only_training_in(tmp_path):
                    pytest.fail("two train in it")
        assert heard.pop() == [float(index == 0)]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--worker", "1"], "give both"),
        (["--workers", "a:1,b:2", "--worker", "0", "--devices", "2"], "leave it out"),
        (["--workers", "a:1,b:2"], "a number from 0 to 1"),
    ],
)
def test_workers_that_do_not_fit_are_refused_before_anything_starts(tmp_path, arguments, message):
    command = ["train", "--data", "embedded", "--out", str(tmp_path / "run"), *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code != 0 and message in result.output
    assert not (tmp_path / "run").exists()
