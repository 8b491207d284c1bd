"""Averages of a run's weights of any length, chosen after the training.

A run stores now and then two averages of its weights (`RunConfig.ema_snapshots`). An average of
another length is the combination of these whose profile over time is nearest to its own (Karras et
al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.2).

A length is sigma_rel, the standard deviation of the average over the training's length: 0.05
follows the last weights closely, 0.25 takes in nearly all of the training.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from ddim_keras import metrics
from ddim_keras.model import DiffusionModel, load_model
from ddim_keras.runs import snapshots, validating
from ddim_keras.runs.config import RunConfig
from ddim_keras.runs.folder import RunFolder
from ddim_keras.support import files
from ddim_keras.support.arguments import is_number
from ddim_keras.training import averages

LENGTHS = (0.03, 0.05, 0.08, 0.12, 0.18, 0.25)
_BEST = "best"
_LARGEST_ERROR = 0.1
_OF_EARLY = 0.1  # a length that every snapshot holds
_USUAL = (0.04, 0.2)  # lengths that a dozen snapshots make well


def reconstruct(
    run: str | os.PathLike,
    length: float | str,
    *,
    step: int | None = None,
    lengths: Sequence[float] = LENGTHS,
    tell: Callable[[str], None] = print,
) -> DiffusionModel:
    """Return a run's model with an average of its weights of another length.

    Args:
        run: the run's folder; it may still be training.
        length: sigma_rel, the standard deviation of the average over the training's length, in
            (0, 0.28]; or "best", for the one of `lengths` that the run's validation images like
            best: by the KID that the run validates with, or else by the image loss.
        step: the training's length, in steps: of a run of 10,000, 5000 is the average at half of
            it. None for all. The last snapshot up to there counts.
        lengths: what "best" chooses among.
        tell: called with a line for each length that "best" compares.

    Returns:
        The model, whose EMA network, and network, have this average. It is not compiled.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a length out of its range; the run stored no averages, has no model yet, or,
            for "best", has no validation images.

    Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
    section 3. Beyond it, the coefficients are made to add up to 1.

    Examples:

        model = ddim_keras.ema.reconstruct("runs/photos", 0.08)
        model.generate(16)
    """
    if isinstance(length, str) and length != _BEST:
        raise ValueError(f"length must be a number or {_BEST!r}, got {length!r}")
    if not np.iterable(lengths) or not len(lengths):
        raise ValueError(f"lengths must be a list of those to choose among, got {lengths!r}")
    place = RunFolder(files.expanded(run))
    config = RunConfig.read(place.config)
    candidates = [averages.length_of(each) for each in (lengths if length == _BEST else [length])]
    found = snapshots.stored(place.ema, step)
    if not found:
        raise ValueError(
            f"the run in {place.path} has stored no averages{_until(step)}: train it with "
            "--ema-snapshots, such as 12"
        )
    model = _model_of(place)
    chosen = candidates[0] if len(candidates) == 1 else None
    if chosen is None:
        figures = _compare(model, found, candidates, place, config, tell)
        chosen = min(figures, key=lambda each: figures[each])
        tell(f"The best length is {chosen:g}")
    _set(model, found, chosen)
    return model


def early(run: str | os.PathLike, share: float = 0.1) -> DiffusionModel:
    """Return a run's model as it was early in its training: the weaker one for `Autoguidance`.

    Args:
        run: the run's folder; it may still be training.
        share: of the training so far, in (0, 1): the stored average that is nearest to it is taken.
            Of twelve averages (`--ema-snapshots`), the first is that of a twelfth.

    Raises:
        FileNotFoundError, ValueError: as for `reconstruct`; or the average that is nearest is the
            last.

    Examples:

        model = ddim_keras.load_model("runs/photos/model.keras")
        weaker = ddim_keras.ema.early("runs/photos")
        model.generate(16, guidance=ddim_keras.Autoguidance(weaker, 2.0))
    """
    if not is_number(share) or not 0.0 < share < 1.0:
        raise ValueError(f"share must be a number in (0, 1), got {share!r}")
    place = RunFolder(files.expanded(run))
    found = snapshots.stored(place.ema)
    if not found:  # `reconstruct` says so
        return reconstruct(run, _OF_EARLY)
    steps = [each.step for each in found]
    nearest = min(steps, key=lambda step: abs(step - share * steps[-1]))
    if nearest == steps[-1]:
        raise ValueError(
            f"of {share:g} of its training the run in {place.path} has stored no average: the "
            f"nearest is its last, of step {nearest}. Train with more of them, such as "
            "--ema-snapshots 12, or take another weaker model"
        )
    return reconstruct(run, _OF_EARLY, step=nearest)


def _until(step: int | None) -> str:
    return "" if step is None else f" up to step {step}"


def _model_of(place: RunFolder) -> DiffusionModel:
    for path in (place.model, place.best):
        if path.is_file():
            return load_model(path, compile=False)
    raise ValueError(
        f"the run in {place.path} has no model yet: resume it with ddim-keras train --out "
        f"{place.path}"
    )


def _set(model: DiffusionModel, found: list[snapshots.Snapshot], length: float) -> None:
    """Give the model's networks the average of this length."""
    stored = [(each, snapshot.updates) for snapshot in found for each in snapshot.lengths]
    coefficients, error = averages.coefficients(stored, length, found[-1].updates)
    if error > _LARGEST_ERROR:
        is_usual = _USUAL[0] <= length <= _USUAL[1]
        another = "" if is_usual else "take a length between {} and {}, or ".format(*_USUAL)
        warnings.warn(
            f"an average of length {length:g} can only be made roughly of the {len(found)} "
            f"snapshots there are: its profile is {100 * error:.0f} % off; {another}store more of "
            "them (--ema-snapshots)",
            stacklevel=3,
        )
    flat, weights = snapshots.combined(found, coefficients), []
    shapes = [tuple(weight.shape) for weight in model.ema_network.weights]
    if len(flat) != sum(int(np.prod(shape)) for shape in shapes):
        raise ValueError(
            f"{found[-1].path} holds averages of {len(flat)} parameters, and the run's model has "
            "others: one of the two is of another run"
        )
    for shape, weight in zip(shapes, model.ema_network.weights):
        number = int(np.prod(shape))
        values, flat = flat[:number].reshape(shape), flat[number:]
        if weight.name.endswith("moving_variance"):  # which rounding must not make negative
            values = np.maximum(values, 0.0)
        weights.append(values.astype("float32"))
    for network in (model.ema_network, model.network):
        network.set_weights(weights)


def _compare(
    model: DiffusionModel,
    found: list[snapshots.Snapshot],
    lengths: Sequence[float],
    place: RunFolder,
    config: RunConfig,
    tell: Callable[[str], None],
) -> dict[float, float]:
    """Return what the run's validation makes of each length; less is better."""
    held_out = validating.held_out_images(model.image_shape, place.path, labels=config.labels)
    number = config.validation_images
    held_out = validating.spread_over(held_out, number, validating.BATCH_SIZE)
    own: list[keras.metrics.Metric] = []
    if config.kid:
        capacity = (number or 10_000) + validating.BATCH_SIZE
        own = [metrics.KID(config.kid, subsets=0, capacity=capacity)]
    model.compile(metrics=own, jit_compile=config.jit)
    name = "kid" if own else "i_loss"
    figures: dict[float, float] = {}
    for length in lengths:
        _set(model, found, length)
        logs: dict[str, Any] = model.evaluate(held_out, return_dict=True, verbose=0)
        figures[length] = float(logs[name])
        tell(f"length {length:g}: {name} {figures[length]:.5f}")
    return figures
