import keras
import numpy as np
import pytest
from keras import ops

from ddim_keras.support import random


def uint32(value):
    return ops.convert_to_tensor(value, dtype="uint32")


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [  # the known answers that the generator's authors publish
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers(key, counter, expected):
    words = random.threefry2x32(tuple(map(uint32, key)), tuple(map(uint32, counter)))
    assert tuple(int(word) for word in words) == expected


def draw(seed=0, step=0, indices=range(64), shape=(16, 16, 3)):
    return ops.convert_to_numpy(random.normal(seed, step, np.array(indices, "int32"), shape))


def test_numbers_are_standard_normal():
    numbers = draw(indices=range(200)).ravel()
    assert abs(numbers.mean()) < 4 / np.sqrt(numbers.size)
    assert abs(numbers.std() - 1) < 4 / np.sqrt(2 * numbers.size)
    # Kurtosis 3, and as many beyond two deviations as there should be (0.0455).
    assert abs((numbers**4).mean() - 3) < 0.1
    assert abs((np.abs(numbers) > 2).mean() - 0.0455) < 0.003


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}, {"indices": range(64, 128)}])
def test_other_seeds_steps_and_images_are_uncorrelated(other):
    first, second = draw().ravel(), draw(**other).ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(first.size)


def test_an_image_does_not_depend_on_its_batch():
    np.testing.assert_array_equal(draw(indices=[5, 40])[1], draw(indices=range(64))[40])


def test_odd_sizes_and_one_channel():
    assert draw(indices=[0], shape=(3, 3, 1)).shape == (1, 3, 3, 1)


def test_numbers_are_float32_whatever_the_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert draw().dtype == np.float32
    finally:
        keras.config.set_dtype_policy("float32")
