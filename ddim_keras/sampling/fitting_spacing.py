"""Choosing the noise levels of few steps for a model, along walks that it takes itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddim_keras.diffusion.levels import Levels
from ddim_keras.diffusion.spacings import FittedSpacing, diffusion_times, levels_of
from ddim_keras.samplers import DDIM
from ddim_keras.sampling.conditioning import conditioning
from ddim_keras.sampling.engine import Engine
from ddim_keras.support.arguments import integer, positive_int
from ddim_keras.support.types import Array, Condition, GuidanceLike, Labels


def fit_spacing(
    engine: Engine,
    most_steps: int = 10,
    *,
    labels: Labels = None,
    condition: Condition = None,
    guidance: GuidanceLike = None,
    num_images: int = 64,
    fine_steps: int = 60,
    seed: int = 0,
    verbose: str | int = "auto",
) -> FittedSpacing:
    """Choose the noise levels of walks of 1 to `most_steps` steps for this model, by dynamic
    programming over the levels of a fine walk. Under a minute on two cores.

    A walk costs what each of its steps, taken by DDIM from where the fine walk is, is off from
    where the fine walk leads. The walk of the least cost is found for each number of steps.

    Args:
        most_steps: the levels of how many steps are chosen at most.
        labels, condition, guidance: of the walks, as for `generate`; without labels all classes in
            turn, and without guidance the model's own.
        num_images: fine walks, over which the costs are averaged.
        fine_steps: of the fine walks: DDIM's, in even times.
        seed: fixes their noises.
        verbose: as for `generate`.

    Returns:
        A spacing to give to `generate`, with any sampler of one evaluation a step.

    Raises:
        ValueError: an argument out of its range, or more steps than the fine walks have.

    Source: Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling"
        ("GITS").

    Examples:

    >>> model = DiffusionModel(image_size=8, widths=[8], block_depth=1, channels=1, seed=0)
    >>> spacing = model.fit_spacing(3, num_images=4, fine_steps=10, verbose=0)
    >>> model.generate(2, 3, sampler="ddim", spacing=spacing, seed=0).shape
    (2, 8, 8, 1)
    """
    most_steps = positive_int("most_steps", most_steps)
    fine_steps = integer("fine_steps", fine_steps, minimum=most_steps + 1)
    num_images = positive_int("num_images", num_images)
    if labels is None and engine.spec.num_classes is not None:
        labels = [index % engine.spec.num_classes for index in range(num_images)]
    told = conditioning(engine, num_images, labels, condition, guidance, engine.defaults.guidance)
    times = diffusion_times(fine_steps, "linear", engine.schedule)
    if engine.schedule.num_times is None:  # the lowest level that was trained at, too
        times = np.insert(times, len(times) - 1, engine.schedule.first_time)
    levels = levels_of(engine.schedule, times)
    _, planned = engine.plan(DDIM(), times[:-1].tolist(), "linear", None)
    costs = np.zeros((len(times), len(times)))
    for batch in engine.batches(num_images, None, verbose):
        noisy = engine.draw(engine.seed(seed), batch.indices)
        states = [np.asarray(noisy)]
        memory = engine.no_memory(noisy)
        for index in range(len(times) - 1):
            noisy, memory, _ = engine.walk_part(
                noisy, memory, planned, index, index + 1, seed, batch.indices, told.of(batch)
            )
            states.append(np.asarray(noisy))
        number = batch.stop - batch.start
        costs += number * costs_along([state[:number] for state in states], levels)
    angles = np.arctan2(levels.noise_rates, levels.signal_rates)
    return FittedSpacing([angles[path[:-1]].tolist() for path in cheapest(costs, most_steps)])


def costs_along(states: Sequence[np.ndarray], levels: Levels) -> Array:
    """Return how far DDIM's steps from each state of a walk lead from each later one: root mean
    squares, (states, states); infinite backwards.

    Args:
        states: noisy images, (batch, ...), at each level of a walk in DDIM's steps.
        levels: those levels, the last of them the clean image.
    """
    number = len(states)
    costs = np.full((number, number), np.inf)
    for first in range(number - 1):
        (signal, following), (noise, less) = (rates[first : first + 2] for rates in levels)
        # x = a image + b noise here, and a' image + b' noise at the next level.
        determinant = signal * less - following * noise
        images = (less * states[first] - noise * states[first + 1]) / determinant
        noises = (signal * states[first + 1] - following * states[first]) / determinant
        for last in range(first + 1, number):
            led = levels.signal_rates[last] * images + levels.noise_rates[last] * noises
            costs[first, last] = np.sqrt(np.square(led - states[last]).mean())
    return costs


def cheapest(costs: Array, most_steps: int) -> list[list[int]]:
    """Return the cheapest ways from the first place to the last in 1, 2, ..., `most_steps` steps,
    each as the numbers of the places on it, by dynamic programming.

    Args:
        costs: (places, places), of a step from one place to another; infinite where there is none.

    Examples:

    >>> away = np.inf
    >>> cheapest(np.array([[away, 1.0, 9.0], [away, away, 2.0], [away, away, away]]), 2)
    [[0, 2], [0, 1, 2]]
    """
    number = len(costs)
    least = np.full(number, np.inf)
    least[0] = 0.0
    before: list[Array] = []
    ways = []
    for _ in range(most_steps):
        sums = least[:, None] + costs
        before.append(sums.argmin(axis=0))
        least = sums.min(axis=0)
        way = [number - 1]
        for predecessors in before[::-1]:
            way.append(int(predecessors[way[-1]]))
        ways.append(way[::-1])
    return ways
