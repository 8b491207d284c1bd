"""The plan of a walk: a table with a row for each evaluation of the network, worked out before the
walk begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddim_keras.diffusion.levels import Levels
from ddim_keras.samplers.base import MEMORY, Evaluation, Sampler
from ddim_keras.samplers.starts import GaussianStart
from ddim_keras.support.types import Array, Images

# Tables are padded to this many rows: a compiled loop sees one shape, whatever the number of steps.
_TABLE_ROWS = 4096


class Plan(NamedTuple):
    """A walk, worked out: what `walk` is given.

    Attributes:
        table: float32 (rows, columns), one row an evaluation, padded with zeros: the condition, the
            noise and the signal rate that the network is given, `Evaluation`'s weights, and which
            prediction is remembered.
        ends: (steps,), the number of evaluations done when each step has ended.
        start: what the noise is carried by before, or None.
    """

    table: npt.NDArray[np.float32]
    ends: npt.NDArray[np.int_]
    start: GaussianStart | None = None

    def started(self, noise: Images) -> Images:
        """Return what the walk's first evaluation is given."""
        return noise if self.start is None else self.start(noise)


def plan(
    sampler: Sampler,
    levels: Levels,
    conditions: Callable[[Array, Array], Array],
    clean_rates: tuple[float, float] | None = None,
) -> Plan:
    """Work out all evaluations of a walk.

    Args:
        sampler: the update rule.
        levels: the noise levels in the order they are visited.
        conditions: (signal_rates, noise_rates) -> what the network is told of the noise level.
        clean_rates: for a walk from the clean image to noise, the (signal rate, noise rate) at
            which the network is asked about the image, instead of (1, 0). The walk starts from the
            images times this signal rate.
    """
    evaluations: list[Evaluation] = []
    ends = []
    for index in range(len(levels.signal_rates) - 1):
        evaluations += sampler.step(index, levels)
        ends.append(len(evaluations))
    if clean_rates is not None:
        signal, noise = clean_rates
        first = evaluations[0]
        # The clean image itself is pred_image + (noise / signal) pred_noise.
        noise_weight = first.noise + first.image * noise / signal
        evaluations[0] = first._replace(signal_rate=signal, noise_rate=noise, noise=noise_weight)
    table = table_of(evaluations, conditions, sampler.remembers)
    return Plan(table, np.array(ends), sampler.start)


def table_of(
    evaluations: Sequence[Evaluation],
    conditions: Callable[[Array, Array], Array],
    remembers: str = "images",
) -> npt.NDArray[np.float32]:
    """Write evaluations as the table that `walk` reads; see `Plan`. `remembers` is the
    sampler's.
    """
    rows = np.zeros((len(evaluations), 6 + MEMORY + 2))
    for row, evaluation in zip(rows, evaluations):
        row[1:6] = (
            evaluation.noise_rate,
            evaluation.signal_rate,
            evaluation.image,
            evaluation.noise,
            evaluation.fresh,
        )
        row[6 : 6 + len(evaluation.remembered)] = evaluation.remembered
    rows[:, 0] = conditions(rows[:, 2], rows[:, 1])
    rows[:, -2:] = (1.0, 0.0) if remembers == "images" else (0.0, 1.0)
    table = np.zeros(
        (max(_TABLE_ROWS, 1 << (len(rows) - 1).bit_length()), rows.shape[1]), "float32"
    )
    table[: len(rows)] = rows
    return table
