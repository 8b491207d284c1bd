"""What is served, without the libraries that serve it: limits, the queue, the thread that works."""

import threading

import numpy as np
import pytest
from conftest import make_small_model

from ddim_keras.serving import addresses
from ddim_keras.serving.limits import Busy, Limits, OutOfTime, Stopped
from ddim_keras.serving.service import Asked, Service
from ddim_keras.serving.worker import Worker

SECONDS = 30.0


@pytest.fixture
def held():
    """(a worker with one place in its queue, which is held up; what lets it go)."""
    worker, begun, go = Worker(waiting=1), threading.Event(), threading.Event()

    def hold(job):
        begun.set()
        assert go.wait(SECONDS)
        job.check()
        return "held"

    first = worker.submit(hold, SECONDS)
    assert begun.wait(SECONDS)
    yield worker, first, go
    go.set()
    worker.stop()


def test_jobs_are_done_one_after_another_in_their_order(held):
    worker, first, go = held
    second = worker.submit(lambda job: first.future.done(), SECONDS)
    go.set()
    assert first.future.result(SECONDS) == "held"
    assert second.future.result(SECONDS) is True


def test_who_finds_the_queue_full_is_turned_away_and_may_come_back(held):
    worker, _, go = held
    waiting = worker.submit(lambda job: None, SECONDS)
    with pytest.raises(Busy, match="1 requests are waiting"):
        worker.submit(lambda job: None, SECONDS)
    go.set()
    waiting.future.result(SECONDS)
    assert worker.submit(lambda job: "done", SECONDS).future.result(SECONDS) == "done"


def test_what_waited_too_long_is_not_begun(held):
    worker, _, go = held
    late = worker.submit(lambda job: pytest.fail("begun"), 0.0)
    go.set()
    with pytest.raises(OutOfTime, match="not done within 0 seconds"):
        late.future.result(SECONDS)


def test_an_error_is_told_to_who_asked_and_the_next_job_is_done(held):
    worker, _, go = held
    go.set()

    def fail(job):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        worker.submit(fail, SECONDS).future.result(SECONDS)
    assert worker.submit(lambda job: 1, SECONDS).future.result(SECONDS) == 1


def test_a_worker_that_ends_drops_what_it_works_on_and_what_waits(held):
    worker, first, go = held
    waiting = worker.submit(lambda job: pytest.fail("begun"), SECONDS)
    threading.Timer(0.1, go.set).start()
    worker.stop()
    for job in (first, waiting):
        with pytest.raises(Stopped):
            job.future.result(0)
    with pytest.raises(Stopped):
        worker.submit(lambda job: None, SECONDS)
    assert worker.unfinished == 0


@pytest.fixture(scope="module")
def service():
    served = Service(make_small_model(num_classes=2), Limits(images=4, steps=5))
    yield served
    served.stop()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, [None]),
        ({"num_classes": 3}, [None, 0]),
        ({"num_classes": 3, "label_dropout": 0.0}, [0]),  # which knows no image without one
    ],
)
def test_what_the_first_requests_will_need_is_compiled(model, expected, monkeypatch):
    service, asked = Service(make_small_model(**model)), []
    submit = service.submit
    monkeypatch.setattr(service, "submit", lambda one: asked.append(one.labels) or submit(one))
    service.warm_up()
    service.stop()
    assert asked == expected


def test_the_images_are_those_of_generate(service):
    asked = Asked(num_images=2, steps=3, labels=[0, None], guidance=2.0, seed=7)
    seen = []
    made = service.submit(asked, lambda step, images: seen.append((step, len(images))))
    images, seed = made.future.result(SECONDS)
    expected = service.model.generate(2, 3, labels=[0, None], guidance=2.0, seed=7, verbose=0)
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert seed == 7
    assert seen == [(1, 2), (2, 2), (3, 2)]


def test_a_seed_is_drawn_and_told(service):
    first, second = (service.submit(Asked(steps=1)).future.result(SECONDS) for _ in range(2))
    assert first.seed != second.seed
    again = service.submit(Asked(steps=1, seed=first.seed)).future.result(SECONDS)
    np.testing.assert_array_equal(again.images, first.images)


@pytest.mark.parametrize(
    "asked, message",
    [
        (Asked(num_images=5), "images must be from 1 to 4 here, got 5"),
        (Asked(steps=6), "steps must be from 1 to 5 here, got 6"),
        (Asked(steps=2, sampler="euler"), "unknown sampler 'euler'"),
        (Asked(steps=2, eta=0.5, sampler="heun"), "give one of the two"),
        (Asked(steps=2, seed=-1), "seed must be"),
    ],
)
def test_what_asks_for_too_much_is_refused_before_it_waits(service, asked, message):
    with pytest.raises(ValueError, match=message):
        service.submit(asked)


def test_a_wrong_label_is_told_to_who_asked(service):
    with pytest.raises(ValueError, match="the label 'zebra' is a name"):
        service.submit(Asked(steps=1, labels="zebra")).future.result(SECONDS)


def test_a_walk_out_of_time_ends_after_its_step(service):
    steps, ends = [], threading.Event()

    def slow(step, images):
        steps.append(step)
        assert ends.wait(SECONDS)

    job = service.submit(Asked(steps=5), slow)
    job._end = 0.0
    ends.set()
    with pytest.raises(OutOfTime):
        job.future.result(SECONDS)
    assert len(steps) < 5


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="seconds must be positive"):
        Limits(seconds=0.0)
    with pytest.raises(ValueError, match="images"):
        Limits(images=0)


def test_other_addresses_than_this_machines_own_need_a_token():
    with pytest.raises(ValueError, match="give a token"):
        addresses.check_host("0.0.0.0", None)
    addresses.check_host("0.0.0.0", "secret")
    addresses.check_host("::1", None)


def test_a_server_of_this_machine_alone_goes_by_its_names_and_its_address():
    assert addresses.names_at("127.0.0.2") == (*addresses.OWN_NAMES, "127.0.0.2")
    assert addresses.names_at("0:0:0:0:0:0:0:1")[-1] == "[0:0:0:0:0:0:0:1]"
    assert addresses.names_at("0.0.0.0") is None


def test_an_address_that_is_taken_is_said_so():
    with addresses.bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"at 127.0.0.1, port {port}: .* another port, or 0"):
            addresses.bound("127.0.0.1", port)
