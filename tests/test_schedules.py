import math

import keras
import numpy as np
import pytest

from ddim_keras.schedules import AngleSchedule


def test_angle_schedule_follows_its_formula():
    times = np.linspace(0, 1, 11)
    signal_rates, noise_rates = AngleSchedule(0.02, 0.95)(times)
    angles = math.acos(0.95) + times * (math.acos(0.02) - math.acos(0.95))
    np.testing.assert_allclose(signal_rates, np.cos(angles), rtol=1e-14)
    np.testing.assert_allclose(noise_rates, np.sin(angles), rtol=1e-14)
    np.testing.assert_allclose([signal_rates[0], signal_rates[-1]], [0.95, 0.02], rtol=1e-12)


def test_rates_keep_unit_variance_and_signal_falls():
    signal_rates, noise_rates = AngleSchedule(0.1, 0.8)(np.linspace(0, 1, 101))
    np.testing.assert_allclose(signal_rates**2 + noise_rates**2, 1.0, rtol=1e-14)
    assert (np.diff(signal_rates) < 0).all()


def test_arrays_stay_float64_and_tensors_agree_with_them():
    times = np.linspace(0, 1, 7)
    exact = AngleSchedule()(times)
    assert exact[0].dtype == np.float64
    tensors = AngleSchedule()(keras.ops.convert_to_tensor(times, "float32"))
    for tensor, array in zip(tensors, exact):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(tensor), array, atol=1e-6)


@pytest.mark.parametrize("rates", [(0.0, 0.9), (0.02, 1.0), (-0.1, 0.9), (0.02, 1.5), (float("nan"), 0.9)])
def test_rates_outside_the_open_unit_interval_are_refused(rates):
    with pytest.raises(ValueError, match=r"_signal_rate must lie strictly between 0 and 1, got"):
        AngleSchedule(*rates)


def test_minimum_above_maximum_is_refused():
    with pytest.raises(ValueError, match=r"min_signal_rate must be below max_signal_rate, got 0.9 and 0.1"):
        AngleSchedule(0.9, 0.1)


def test_config_round_trip():
    schedule = AngleSchedule(0.03, 0.9)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(again) is AngleSchedule and again.get_config() == schedule.get_config()
