"""A model used by several threads at once."""

import concurrent.futures
import threading

import numpy as np
import pytest
from conftest import make_trained_model, random_images


def test_unseeded_images_of_many_threads_all_differ(trained_model):
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        images = list(pool.map(lambda _: trained_model.generate(1, 2).tobytes(), range(60)))
    assert len(set(images)) == 60


@pytest.mark.slow
def test_images_are_made_while_another_thread_trains():
    model = make_trained_model(parameterization="velocity")
    model.generate(2, 3, seed=0)
    model.encode(random_images(2), 2)  # compiled before, so that both threads have something to do
    failures, made, stop = [], [], threading.Event()

    def generate():
        while not stop.is_set():
            try:
                made.append(model.generate(2, 3, seed=0))
                model.encode(random_images(2), 2)
            except Exception as error:
                failures.append(error)
                return

    thread = threading.Thread(target=generate)
    thread.start()
    model.fit(
        random_images(64), batch_size=4, epochs=6, validation_data=random_images(16), verbose=0
    )
    stop.set()
    thread.join()
    assert not failures and len(made) > 1
    assert all(np.isfinite(images).all() for images in made)
