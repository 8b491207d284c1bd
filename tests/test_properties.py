"""Statements that hold for every input, with inputs chosen to break them."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim_keras import plotting
from ddim_keras.networks.unet import check_levels
from ddim_keras.samplers import DDIM, Levels
from ddim_keras.schedules import SCHEDULES, AngleSchedule
from ddim_keras.spacings import SPACINGS, diffusion_times

unit = st.floats(0.0, 1.0)


@given(time=unit, next_time=unit, eta=unit)
def test_every_step_keeps_the_variance_of_the_marginals(time, next_time, eta):
    """Eq. 7: whatever sigma is, direction and fresh noise together have the variance of the next
    noise rate.
    """
    start, end = AngleSchedule()(max(time, next_time)), AngleSchedule()(min(time, next_time))
    (step,) = DDIM(eta).step(0, Levels(*(np.array(rates) for rates in zip(start, end))))
    assert step.image == end[0]
    assert step.noise**2 + step.fresh**2 == pytest.approx(end[1] ** 2, abs=1e-12)
    assert step.fresh <= eta * end[1] + 1e-12


@given(
    steps=st.integers(1, 1000),
    spacing=st.sampled_from(sorted(SPACINGS)),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    start=st.floats(1e-3, 1.0),
)
@settings(deadline=None)
def test_every_spacing_gives_as_many_different_falling_times_as_asked(
    steps, spacing, schedule, start
):
    schedule = SCHEDULES[schedule]()
    if schedule.num_times:
        steps = min(steps, max(round(start * schedule.num_times), 1))
    times = diffusion_times(steps, spacing, schedule, start)
    assert len(times) == steps + 1 and times[0] <= max(start, 1e-3) + 1e-3 and times[-1] == 0.0
    assert (np.diff(times[:-1]) < 0).all() and times[-2] >= 0.0


@given(low=st.floats(1e-3, 0.998), high=st.floats(1e-3, 0.998), time=unit)
def test_rates_stay_within_the_schedules_limits(low, high, time):
    low, high = min(low, high), max(low, high) + 1e-3
    signal_rate, noise_rate = AngleSchedule(low, high)(time)
    assert low - 1e-9 <= signal_rate <= high + 1e-9
    assert signal_rate**2 + noise_rate**2 == pytest.approx(1.0)


@given(height=st.integers(1, 300), width=st.integers(1, 300), levels=st.integers(1, 6))
def test_the_sizes_that_a_refusal_suggests_are_accepted(height, width, levels):
    widths = [4] * levels
    try:
        check_levels((height, width), widths, 1)
        assert height % 2 ** (levels - 1) == width % 2 ** (levels - 1) == 0
    except ValueError as error:
        heights, columns = (
            [int(number) for number in re.findall(r"\d+", part)]
            for part in re.search(
                r"work: height ([\d or]+), width ([\d or]+);", str(error)
            ).groups()
        )
        for better in zip(heights, columns):
            check_levels(better, widths, 1)
        assert min(abs(height - near) for near in heights) <= 2 ** (levels - 1)


@given(
    number=st.integers(1, 30),
    columns=st.integers(1, 8),
    size=st.integers(1, 5),
    padding=st.integers(0, 2),
)
def test_a_grid_has_room_for_all_images_and_no_empty_row(number, columns, size, padding):
    grid = plotting.image_grid(np.zeros((number, size, size, 1)), columns, padding)
    cell = size + 2 * padding
    assert grid.shape == (-(-number // columns) * cell, columns * cell, 3)
    assert (grid == 0).sum() == number * size * size * 3
