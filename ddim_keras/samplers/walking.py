"""The one loop that takes all walks, and the same written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from keras import ops

from ddim_keras.samplers.base import MEMORY
from ddim_keras.support.types import Images, Rates, Tensor


class Conditions(NamedTuple):
    """What a denoiser is told besides the noisy images and their rates.

    Attributes:
        noise_level: what the network is told of the noise: `Schedule.conditions` of the rates, a
            number or broadcasting against (batch, 1, 1, 1).
        evaluation: how many evaluations of the walk came before, an int32 scalar.
        labels: class numbers, int32 (batch,), the null class among them; None says nothing.
        condition: images or vectors to condition on, (batch, ...), scaled as the network takes
            them; None says nothing.
    """

    noise_level: Tensor
    evaluation: Tensor = 0
    labels: Tensor | None = None
    condition: Tensor | None = None


# (noisy images, noise rates, signal rates, conditions) -> (predicted noises, predicted images)
Denoiser: TypeAlias = Callable[[Images, Rates, Rates, Conditions], tuple[Images, Images]]


def walk(
    denoise: Denoiser,
    noisy_images: Images,
    memory: Tensor,
    table: Tensor,
    first: Tensor,
    last: Tensor,
    draw_noises: Callable[[Tensor], Images] | None,
) -> tuple[Images, Tensor, Images]:
    """Make the evaluations first, ..., last - 1 of a plan's table.

    Args:
        denoise: (noisy_images, noise_rate, signal_rate, `Conditions`) -> (pred_noises,
            pred_images); the rates are scalars.
        noisy_images: (batch, height, width, channels), the state at the first evaluation.
        memory: (MEMORY, batch, height, width, channels), earlier predictions, the latest first;
            zeros at the start.
        table: `Plan.table`, as a tensor.
        first, last: int32 scalars; their values are not compiled in.
        draw_noises: number -> standard normal noises shaped as `noisy_images`. Only called where
            noise is added, with the evaluation's number, counted from 1. None where it never is.

    Returns:
        (noisy images, memory, predicted images) after the last evaluation.
    """

    def evaluate(
        index: Tensor, noisy_images: Images, memory: Tensor, _: Images
    ) -> tuple[Tensor, ...]:
        row = ops.take(table, index, axis=0)
        return index + 1, *evaluation(denoise, noisy_images, memory, row, index, draw_noises)

    _, noisy_images, memory, pred_images = ops.while_loop(
        lambda index, *_: index < last,
        evaluate,
        (first, noisy_images, memory, ops.zeros_like(noisy_images)),
    )
    return noisy_images, memory, pred_images


def walk_written_out(
    denoise: Denoiser, noisy_images: Images, memory: Tensor, table: Tensor, steps: int
) -> Images:
    """Make the first evaluations of a table without a loop, so that what comes out can be
    differentiated by the table; no noise is added.

    Args:
        denoise, noisy_images, memory: as for `walk`.
        table: `Plan.table`, or as many rows of one as there are `steps`.
        steps: the number of evaluations; it is compiled in.

    Returns:
        The noisy images after the last.
    """
    for index in range(steps):
        noisy_images, memory, _ = evaluation(
            denoise, noisy_images, memory, table[index], index, None
        )
    return noisy_images


def evaluation(
    denoise: Denoiser,
    noisy_images: Images,
    memory: Tensor,
    row: Tensor,
    index: Tensor,
    draw_noises: Callable[[Tensor], Images] | None,
) -> tuple[Images, Tensor, Images]:
    """Make one evaluation of a walk: number `index`, from 0, whose row of the table is `row`. The
    rest is as for `walk`.
    """
    noise_level, noise_rate, signal_rate, image, noise, fresh, *others = ops.unstack(
        row, num=6 + MEMORY + 2
    )
    conditions = Conditions(noise_level, index)
    pred_noises, pred_images = denoise(noisy_images, noise_rate, signal_rate, conditions)
    noisy_images = image * pred_images + noise * pred_noises
    for weight, earlier in zip(others[:MEMORY], ops.unstack(memory, num=MEMORY)):
        noisy_images = noisy_images + weight * earlier
    if draw_noises is not None:
        without = noisy_images
        noisy_images = ops.cond(
            fresh > 0.0, lambda: without + fresh * draw_noises(index + 1), lambda: without
        )
    keep_image, keep_noise = others[MEMORY:]
    kept = keep_image * pred_images + keep_noise * pred_noises
    return noisy_images, ops.concatenate([kept[None], memory[:-1]]), pred_images
