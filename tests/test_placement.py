"""TensorFlow's workers have a core each while a model computes, and are free again afterwards."""

import os
import threading
import time

import keras
import pytest
from conftest import make_small_model, random_images

from ddim_keras.support import placement

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow"
    or not hasattr(os, "sched_setaffinity")
    or len(os.sched_getaffinity(0)) < 2,
    reason="it places TensorFlow's threads, on Linux, on two cores or more",
)
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def placed():
    """The cores that have a thread of their own."""
    found = []
    for name in os.listdir("/proc/self/task"):
        try:
            cores = os.sched_getaffinity(int(name))
        except OSError:  # ended meanwhile
            continue
        if len(cores) == 1:
            found += cores
    return sorted(found)


class Look(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(placed())

    def on_epoch_end(self, epoch, logs=None):
        self.model.generate(1, 2)
        self.seen.append(placed())


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A busy machine may have spoilt the search for the workers: search again."""
    monkeypatch.setattr(placement, "_PLACEMENT", placement._Placement())
    monkeypatch.setattr(placement, "_LEAST_SHARE", 0.002)
    monkeypatch.setattr(placement, "_PROBE_SECONDS", 0.2)


def train():
    look = Look()
    model = make_small_model()
    model.compile()
    model.fit(random_images(), batch_size=8, epochs=1, verbose=0, callbacks=[look])
    return look.seen


def test_each_worker_has_a_core_while_a_model_trains():
    assert train() == [sorted(CORES)] * 4
    assert placed() == []


@pytest.mark.slow
def test_the_switch_turns_it_off(monkeypatch):
    monkeypatch.setenv(placement.SWITCH, "0")
    assert train() == [[]] * 4


def test_what_fails_frees_the_workers_too():
    with pytest.raises(ZeroDivisionError), placement.workers_placed():
        assert placed() == sorted(CORES)
        raise ZeroDivisionError
    assert placed() == []


def test_the_last_of_several_threads_frees_them():
    barrier = threading.Barrier(2)
    seen = []

    def compute():
        with placement.workers_placed():
            barrier.wait(30)
            seen.append(placed())
            barrier.wait(30)

    with placement.workers_placed():
        other = threading.Thread(target=compute)
        other.start()
        barrier.wait(30)
        barrier.wait(30)
        other.join()
        assert placed() == sorted(CORES)
    assert seen == [sorted(CORES)] and placed() == []


def test_threads_that_a_worker_starts_are_freed(monkeypatch):
    monkeypatch.setattr(placement, "_FREEING_SECONDS", 0.05)
    ended = threading.Event()
    child = threading.Thread(target=ended.wait, args=(60,))
    with placement.workers_placed():
        child.start()
        os.sched_setaffinity(child.native_id, {min(CORES)})  # as if a placed thread had started it
        for _ in range(200):
            if os.sched_getaffinity(child.native_id) == CORES:
                break
            time.sleep(0.05)
        assert os.sched_getaffinity(child.native_id) == CORES
        assert placed() == sorted(CORES)
        os.sched_setaffinity(child.native_id, {min(CORES)})
    assert placed() == []
    ended.set()
    child.join()


def test_a_thread_that_had_a_core_of_its_own_keeps_it():
    ended = threading.Event()
    other = threading.Thread(target=ended.wait, args=(60,))
    other.start()
    os.sched_setaffinity(other.native_id, {max(CORES)})
    with placement.workers_placed():
        pass
    assert placed() == [max(CORES)]
    ended.set()
    other.join()


def test_where_it_is_not_allowed_all_stays_as_it_is(monkeypatch):
    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with placement.workers_placed():
        assert placed() == []


def test_threads_that_do_not_compute_are_not_taken_for_workers(monkeypatch):
    monkeypatch.setattr(placement.processor, "keep_workers_busy", lambda size: None)
    with placement.workers_placed():
        assert placed() == []
