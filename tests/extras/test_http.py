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
LIMITS = Limits(images=4, steps=8, waiting=2, seconds=300.0, body=10_000, patience=1.0)


@contextlib.contextmanager
def running(service, token=None):
    """Yield the address of a server in another thread."""
    application = http.application(service, token)
    try:
        with running_application(application, service.limits.patience) as (address, _):
            yield address
    finally:
        service.stop()


@contextlib.contextmanager
def running_application(application, patience, **reading):
    """Yield the address of a server in another thread, and the server."""
    at = addresses.bound("127.0.0.1", 0)
    config = uvicorn.Config(
        application,
        http=http._protocol(patience, **reading),
        log_level="warning",
        limit_concurrency=64,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield at.getsockname(), server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def address():
    service = Service(small_model(num_classes=3), LIMITS)
    service.warm_up()
    with running(service) as found:
        yield found


@pytest.fixture
def client(address):
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=300) as found:
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
    "a number as a word": ({"steps": "3"}, "valid integer"),
    "a truth for a number": ({"num_images": True}, "valid integer"),
    "a truth for a label": ({"labels": [True]}, "valid integer"),
    "no labels": ({"steps": 3, "labels": []}, "labels"),
    "a negative label": ({"steps": 3, "labels": -1}, "labels"),
    "guidance beyond all numbers": ({"steps": 3, "labels": 1, "guidance": 1e300}, "infinity"),
}
# What JSON's text may hold, but JSON's values, or UTF-8, do not.
ODD = {
    "NaN": b'{"eta": NaN}',
    "NaN for a label": b'{"labels": NaN}',
    "infinity": b'{"guidance": Infinity}',
    "NaN under an unknown name": b'{"step": [NaN]}',
    "half a character": b'{"steps": 3, "sampler": "\\ud800"}',
    "half a character for a label": b'{"steps": 3, "labels": "\\ud800"}',
    "half a character for a name": b'{"\\ud800": 1}',
    "a list": b"[1]",
    "nothing": b"",
    "no JSON": b"{'steps': 3}",
    "bytes": b'{"sampler": "\xff"}',
    "too deep": b"[" * 4000 + b"]" * 4000,
    "too large": b'{"labels": 1' + b"0" * 5000 + b"}",
    "a long sampler": b'{"sampler": "' + b"z" * 9000 + b'"}',
    "a long name": b'{"' + b"z" * 9000 + b'": 1}',
    "a long label": b'{"steps": 3, "labels": "' + b"z" * 9000 + b'"}',
    "many labels": b'{"steps": 3, "labels": [' + b'"x", ' * 1500 + b"1]}",
    "many wrong labels": b'{"labels": [' + b"[], " * 2000 + b"[]]}",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_in_words(client, case):
    settings, message = WRONG[case]
    answer = client.post("/generate", json=settings)
    assert answer.status_code == 422
    assert message in answer.text


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_is_refused_in_few_words(client, case):
    answer = client.post("/generate", content=ODD[case], headers=JSON)
    assert answer.status_code in (400, 422)
    assert 0 < len(answer.json()["detail"])
    assert len(answer.content) < 8000
    assert client.post("/generate", json={"steps": 1}).status_code == 200


def test_where_a_text_ceases_to_be_json_is_said(client):
    answer = client.post("/generate", content=b'{"steps": 3,}', headers=JSON)
    assert "JSON decode error: " in answer.json()["detail"][0]["msg"]


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


def test_a_connection_whose_answer_is_not_read_is_closed():
    size = 200_000_000  # more than lies between the two

    async def much(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(size)})

    with running_application(much, patience=0.5, reading=2.0) as (address, server):
        with socket.create_connection(address, timeout=60) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert connection.recv(100)
            end = time.monotonic() + 120.0
            while server.server_state.connections and time.monotonic() < end:
                time.sleep(0.1)
            assert not server.server_state.connections
        assert len(httpx.get(f"http://{address[0]}:{address[1]}/", timeout=120).content) == size


def test_what_takes_too_long_before_its_first_step_is_given_up(monkeypatch):
    """As a compilation does, within which nothing is looked at."""
    go = threading.Event()
    limits = Limits(seconds=0.5)
    service = Service(small_model(), limits)
    monkeypatch.setattr(service.model.engine, "draw", lambda *arguments: go.wait(60))
    with running(service) as (host, port):
        try:
            answer = httpx.post(f"http://{host}:{port}/generate", json={"steps": 1}, timeout=60)
        finally:
            go.set()
        assert answer.status_code == 504
        assert "not done within 0.5 seconds" in answer.text


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
            for value, expected in (
                ("Bearer secre", 401),
                ("Bearer secret2", 401),
                ("Bearer", 401),
                ("secret", 401),
                ("Basic secret", 401),
                ("Bearer \xff".encode("latin-1"), 401),
                ("Bearer secret", 200),
                ("bearer secret", 200),
            ):
                headers = {"Authorization": value}
                answer = client.post("/generate", json=settings, headers=headers)
                assert answer.status_code == expected, value
            assert client.get("/model").status_code == 401


COUNTED = (200, 413, 422)  # right, too long, wrong


def resident_megabytes(process) -> float:
    with open(f"/proc/{process.pid}/status") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def open_files(process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def burden(base: str, address, seconds: float, most: float = 600.0) -> dict[int, int]:
    """Ask for a while, right, wrong, too much and slowly, and count the answers; on a busy machine
    until there are some of each.
    """
    start, counts = time.monotonic(), {}

    def goes_on():
        passed, few = time.monotonic() - start, min(counts.get(kind, 0) for kind in COUNTED) <= 5
        return passed < seconds or few and passed < most

    def ask(index):
        bodies = [
            b'{"num_images": 2, "steps": 2}',
            b'{"num_images": 4, "steps": 4, "format": "npz"}',
            b'{"num_images": 1000000}',
            b"{broken",
            b"x" * 2_000_000,
            b'{"steps": 2, "sampler": "euler"}',
            *ODD.values(),
        ]
        with httpx.Client(base_url=base, headers=JSON, timeout=60) as client:
            while goes_on():
                index += 1
                if index % 11 == 0:  # gone before the answer
                    with socket.create_connection(address) as connection:
                        connection.sendall(
                            b"POST /generate HTTP/1.1\r\nhost: localhost\r\n"
                            b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
                        )
                    continue
                if index % 7 == 0:
                    parameters = b'{"num_images": 2, "steps": 2}'
                    answer = client.post("/generate", content=parameters)
                    counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
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
        assert min(counts.get(kind, 0) for kind in COUNTED) > 5, counts
        assert set(counts) <= {200, 400, 408, 413, 422, 503}
        assert resident_megabytes(process) < before + 40.0
        assert open_files(process) <= files + 5
        assert httpx.get(f"{base}/health").json() == {"status": "ok", "unfinished": 0}
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
