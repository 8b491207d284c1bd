"""Real processes that make parts of the same images, without knowing of each other."""

import json
import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import ROOT, make_trained_model

from ddim_keras.runs import exporting
from ddim_keras.runs.exporting import export_images
from ddim_keras.support import files
from ddim_keras.support.folder_locks import FolderInUseError

# So many shards that a process is not through before it is killed.
IMAGES, IN_A_SHARD = 3000, 20
SHARDS = IMAGES // IN_A_SHARD


@pytest.fixture
def start(tmp_path):
    """Starts a process that makes its part of the images, and ends it with the test."""
    started = []

    def start_one(part: str) -> subprocess.Popen:
        code = "from ddim_keras.cli import main; main()"
        command = [sys.executable, "-c", code, "generate", "-m", str(tmp_path / "model.keras")]
        command += f"-n {IMAGES} --shard-size {IN_A_SHARD} --steps 3 --format npz".split()
        command += ["-o", str(tmp_path / "images"), "--shard", part]
        backend = keras.backend.backend()
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def wait_for(path: pathlib.Path, process: subprocess.Popen):
    end = time.monotonic() + 900.0
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0][-3000:]
        time.sleep(0.02)


def said(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=900)[0]
    assert process.returncode == 0, text[-3000:]
    return text


@pytest.mark.slow
def test_two_processes_make_the_images_of_one_though_one_of_them_is_killed(tmp_path, start):
    model = make_trained_model(parameterization="velocity")
    model.save(tmp_path / "model.keras")
    folder = tmp_path / "images"
    first, second = start("0/2"), start("1/2")
    wait_for(folder / "shard_00002.npz", first)
    first.kill()
    first.wait()
    assert f"{SHARDS // 2} shards made" in said(second)
    assert all((folder / f"shard_{index:05d}.npz").exists() for index in range(1, SHARDS, 2))
    missing = SHARDS - len(list(folder.glob("shard_*.npz")))
    assert missing > 0
    assert f"{missing} shards made" in said(start("0/2"))
    assert "Nothing was left to do" in said(start("1/2"))

    names = [f"shard_{index:05d}.npz" for index in range(SHARDS)]
    others = ["contact_sheet.png", "metadata.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names + others)
    parts = []
    for name in names:
        with np.load(folder / name) as arrays:
            parts.append(arrays["images"].astype(int))
    expected = model.generate(IMAGES, 3, seed=0, verbose=0)
    assert expected.std() > 0.01
    np.testing.assert_allclose(np.concatenate(parts), np.rint(255 * expected), atol=1)
    assert json.loads((folder / "metadata.json").read_text())["num_images"] == IMAGES


@pytest.mark.parametrize(
    "shard, message",
    [
        ((0, 0), "number of machines must be"),
        ((2, 2), "below 2"),
        ((-1, 2), "machine's number"),
        ((0.5, 2), "machine's number"),
        ((3, 4), "there are only 3 shards of 2 images for 4 machines: lower the shard size"),
    ],
)
def test_parts_that_there_are_not_are_refused_before_anything_is_written(
    trained_model, tmp_path, shard, message
):
    with pytest.raises(ValueError, match=message):
        export_images(trained_model, tmp_path / "images", 6, shard_size=2, shard=shard)
    assert not (tmp_path / "images").exists()


def test_a_part_is_made_by_one_process_at_a_time(trained_model, tmp_path):
    options = {"shard_size": 2, "diffusion_steps": 1, "format": "npz", "tell": lambda line: None}
    leftover = tmp_path / ".0123abcd.shard_00001.npz"  # of a killed process, or of one that works
    leftover.touch()
    held = []

    def telling(line):
        for part in ((0, 2), (1, 2)):
            try:
                export_images(trained_model, tmp_path, 4, shard=part, **options)
            except FolderInUseError as error:
                held.append((part, str(error), leftover.exists()))

    export_images(trained_model, tmp_path, 4, shard=(0, 2), **{**options, "tell": telling})
    ((part, message, was_there),) = held
    assert part == (0, 2) and f"makes part 0/2 of the images in {tmp_path} already: wait" in message
    names = ["contact_sheet.png", "metadata.json", "shard_00000.npz", "shard_00001.npz"]
    assert was_there and sorted(path.name for path in tmp_path.iterdir()) == names


def test_machines_whose_parts_overlap_leave_each_others_files(tmp_path):
    path, images = tmp_path / "shard_00000.npz", np.zeros((1, 4, 4, 1))
    with files.written_beside(path) as temporary:  # by 0/1, as 0/2 makes the same shard
        temporary.write_bytes(b"half")
        exporting._write_shard(path, "npz", images, 0)
        assert temporary.exists()


def test_of_two_machines_that_begin_at_once_with_other_settings_one_is_refused(
    tmp_path, monkeypatch
):
    """Each had seen an empty folder, and the second replaced what the first had said."""
    dumps = json.dumps

    def first(description, **options):
        monkeypatch.setattr(json, "dumps", dumps)
        exporting._describe(tmp_path, {"seed": 1})
        return dumps(description, **options)

    monkeypatch.setattr(json, "dumps", first)
    with pytest.raises(ValueError, match="made otherwise .seed: 1 there, 0 now"):
        exporting._describe(tmp_path, {"seed": 0})
    assert json.loads((tmp_path / "metadata.json").read_text()) == {"seed": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_part_is_not_added_to_images_that_are_divided_otherwise(trained_model, tmp_path):
    options = {"shard_size": 2, "diffusion_steps": 1, "format": "npz", "tell": lambda line: None}
    export_images(trained_model, tmp_path, 6, shard=(0, 2), **options)
    with pytest.raises(ValueError, match="shard_size: 2 there, 3 now"):
        export_images(trained_model, tmp_path, 6, shard=(1, 2), **{**options, "shard_size": 3})
    with pytest.raises(ValueError, match="num_images: 6 there, 8 now"):
        export_images(trained_model, tmp_path, 8, shard=(1, 2), **options)
