"""The server, asked over the loopback by requests that are right, wrong, huge and slow."""

import concurrent.futures
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from extras_tools import NEEDED, ROOT, small_model

fastapi = pytest.importorskip("fastapi", reason=NEEDED)
httpx = pytest.importorskip("httpx", reason=NEEDED)
pytest.importorskip("uvicorn", reason=NEEDED)

import uvicorn  # noqa: E402

from ddim_keras.serving import addresses, http  # noqa: E402
from ddim_keras.serving.limits import Limits  # noqa: E402
from ddim_keras.serving.service import Service  # noqa: E402

pytestmark = pytest.mark.extras
JSON = {"content-type": "application/json"}
LIMITS = Limits(images=4, steps=8, waiting=2, seconds=20.0, body=10_000, patience=1.0)


@contextlib.contextmanager
def running(service, token=None):
    """Yield the address of a server in another thread."""
    at = addresses.bound("127.0.0.1", 0)
    config = uvicorn.Config(
        http.application(service, token),
        http=http._protocol(service.limits.patience),
        log_level="warning",
        limit_concurrency=64,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield at.getsockname()
    finally:
        server.should_exit = True
        thread.join(30)
        service.stop()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def address():
    service = Service(small_model(num_classes=3), LIMITS)
    service.warm_up()
    with running(service) as found:
        yield found


@pytest.fixture
def client(address):
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=60) as found:
        yield found


def test_a_png_of_the_images_comes_back_with_the_seed_that_makes_it_again(client):
    import PIL.Image

    made = client.post("/generate", json={"num_images": 4, "steps": 3})
    assert made.status_code == 200, made.text
    assert made.headers["content-type"] == "image/png"
    assert PIL.Image.open(io.BytesIO(made.content)).size == (20, 20)  # 2 x 2 of 8, and borders
    settings = {"num_images": 4, "steps": 3, "seed": int(made.headers["x-seed"])}
    assert client.post("/generate", json=settings).content == made.content


def test_arrays_come_back_equal_to_those_of_generate(client):
    settings = {"num_images": 2, "steps": 3, "labels": [0, None], "guidance": 2.0, "seed": 5}
    made = client.post("/generate", json={**settings, "format": "npz"})
    arrays = np.load(io.BytesIO(made.content))
    expected = small_model(num_classes=3).generate(
        2, 3, labels=[0, None], guidance=2.0, seed=5, verbose=0
    )
    np.testing.assert_allclose(arrays["images"], expected, atol=1e-5)
    assert int(arrays["seed"]) == 5


WRONG = {
    "too many images": ({"num_images": 5}, "images must be from 1 to 4 here"),
    "too many steps": ({"steps": 9}, "steps must be from 1 to 8 here"),
    "an unknown setting": ({"step": 3}, "Extra inputs are not permitted"),
    "an unknown sampler": ({"steps": 3, "sampler": "euler"}, "unknown sampler"),
    "an unknown label": ({"steps": 3, "labels": 7}, "labels"),
    "a seed out of range": ({"seed": -1}, "greater than or equal to 0"),
    "a word for a number": ({"steps": "many"}, "valid integer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_in_words(client, case):
    settings, message = WRONG[case]
    answer = client.post("/generate", json=settings)
    assert answer.status_code == 422
    assert message in answer.text


def test_health_and_description(client):
    assert client.get("/health").json() == {"status": "ok", "unfinished": 0}
    assert client.get("/model").json()["image_shape"] == [8, 8, 1]
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/health", "/model", "/generate"}
    assert "swagger" in client.get("/docs").text


def test_a_name_that_is_not_this_machines_is_turned_away(client):
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_a_body_that_is_too_long_is_refused(client):
    answer = client.post("/generate", content=b"x" * 20_000)
    assert answer.status_code == 413


def test_a_body_that_comes_too_slowly_is_refused(address):
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 50\r\n\r\n{"
        )
        assert b"408" in connection.recv(1000)


def test_a_connection_over_which_nothing_comes_is_closed(address):
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\n")
        assert connection.recv(1000) == b""


def test_a_full_queue_is_said_so_and_empties(client):
    def ask(index):
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            return own.post("/generate", json={"num_images": 4, "steps": 8}).status_code

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(12)))
    assert set(found) <= {200, 503}
    assert found.count(200) >= 3
    assert 503 in found
    assert client.post("/generate", json={"steps": 1}).status_code == 200


def test_a_token_is_asked_for_where_there_is_one():
    service = Service(small_model(), LIMITS)
    with running(service, token="secret") as (host, port):
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
            assert client.get("/health").status_code == 200
            settings = {"steps": 1}
            assert client.post("/generate", json=settings).status_code == 401
            wrong, right = ({"Authorization": f"Bearer {word}"} for word in ("secre", "secret"))
            assert client.post("/generate", json=settings, headers=wrong).status_code == 401
            assert client.post("/generate", json=settings, headers=right).status_code == 200


def resident_megabytes(process) -> float:
    with open(f"/proc/{process.pid}/status") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def open_files(process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def burden(base: str, address, seconds: float) -> dict[int, int]:
    """Ask for a while, right, wrong, too much and slowly, and count the answers."""
    end, counts = time.monotonic() + seconds, {}

    def ask(index):
        bodies = [
            b'{"num_images": 2, "steps": 2}',
            b'{"num_images": 4, "steps": 4, "format": "npz"}',
            b'{"num_images": 1000000}',
            b"{broken",
            b"x" * 2_000_000,
            b'{"steps": 2, "sampler": "euler"}',
        ]
        with httpx.Client(base_url=base, headers=JSON, timeout=60) as client:
            while time.monotonic() < end:
                index += 1
                if index % 11 == 0:  # gone before the answer
                    with socket.create_connection(address) as connection:
                        connection.sendall(
                            b"POST /generate HTTP/1.1\r\nhost: localhost\r\n"
                            b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
                        )
                    continue
                if index % 13 == 0:  # never sent whole
                    with socket.create_connection(address) as connection:
                        connection.sendall(b"POST /generate HTTP/1.1\r\n")
                        time.sleep(0.5)
                    continue
                try:
                    answer = client.post("/generate", content=bodies[index % len(bodies)])
                except httpx.TransportError:
                    continue  # a connection that was closed on what is too long
                counts[answer.status_code] = counts.get(answer.status_code, 0) + 1

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    return counts


@pytest.mark.slow
def test_it_stands_a_load_of_all_kinds_without_leaks_and_ends_cleanly(tmp_path):
    path = tmp_path / "small.keras"
    small_model().save(path)
    code = "from ddim_keras.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "-m", str(path), "--port", "0", "--queue", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving at http://127.0.0.1:"), line
        address = ("127.0.0.1", int(line.split(",")[0].rsplit(":", 1)[1]))
        base = f"http://127.0.0.1:{address[1]}"
        burden(base, address, 15.0)  # all shapes are compiled now
        before, files = resident_megabytes(process), open_files(process)
        counts = burden(base, address, 30.0)
        time.sleep(3.0)
        assert counts[200] > 5
        assert counts[422] > 5
        assert counts[413] > 5
        assert set(counts) <= {200, 408, 413, 422, 503}
        assert resident_megabytes(process) < before + 40.0
        assert open_files(process) <= files + 5
        assert httpx.get(f"{base}/health").json() == {"status": "ok", "unfinished": 0}
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
