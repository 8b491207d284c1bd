"""Interpolating between latents, along the sphere (the paper's section 5.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.sampling.conditioning import conditioning
from ddim_keras.sampling.encode import encode
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.generate import decode
from ddim_keras.sampling.pairs import PairLatents
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.types import ImageArray, Latents

_DEFAULT_STEPS = 50
# Below this angle, or this close to half a turn, sin(phi) leaves no digits.
_SMALLEST_ANGLE = 1e-4
# Unlike any seed that a user may have drawn the latents from.
_SIDE_SEED = 0x51DE_5EED_0B57_A11E


def slerp(start: npt.ArrayLike, end: npt.ArrayLike, weights: npt.ArrayLike) -> np.ndarray:
    """Interpolate along the great circle between two latents.

        z(w) = sin((1 - w) phi) / sin(phi) start + sin(w phi) / sin(phi) end,  phi the angle between
        them

    Noise stays noise that way: a straight line's middle would be too short for the network.

    Args:
        start, end: arrays of one shape, not all zeros. Equal directions are interpolated along the
            line between them. Opposite ones are joined by half a turn through a direction at right
            angles to both, always the same one.
        weights: (number,), 0 for `start` to 1 for `end`.

    Returns:
        float32 array (number, *shape).

    Raises:
        ValueError: different shapes, or zeros.

    Source: Shoemake 1985; Song, Meng & Ermon 2021, eq. 67.

    Examples:

    >>> slerp([1.0, 0.0], [0.0, 1.0], [0.5]).round(3).tolist()
    [[0.7070000171661377, 0.7070000171661377]]
    """
    start, end = np.asarray(start, "float64"), np.asarray(end, "float64")
    if start.shape != end.shape:
        raise ValueError(f"the two ends must have one shape, got {start.shape} and {end.shape}")
    lengths = np.linalg.norm(start), np.linalg.norm(end)
    if not (lengths[0] > 0.0 and lengths[1] > 0.0 and np.isfinite(lengths).all()):
        raise ValueError(
            "the two ends must be finite and not all zeros: a latent of zeros has no direction"
        )
    weights = np.asarray(weights, "float64").reshape(-1, *(1,) * start.ndim)
    first, second = start / lengths[0], end / lengths[1]
    # Not the arc cosine of the product, which is blind near 0 and pi.
    angle = 2.0 * np.arctan2(np.linalg.norm(first - second), np.linalg.norm(first + second))
    if angle < _SMALLEST_ANGLE:
        result = (1.0 - weights) * start + weights * end
    elif np.pi - angle < _SMALLEST_ANGLE:
        side = np.random.default_rng(_SIDE_SEED).standard_normal(start.shape)
        side -= np.vdot(side, first) * first
        side /= np.linalg.norm(side)
        length = (1.0 - weights) * lengths[0] + weights * lengths[1]
        result = length * (np.cos(weights * np.pi) * first + np.sin(weights * np.pi) * side)
        result[weights.ravel() == 1.0] = end
    else:
        result = (np.sin((1.0 - weights) * angle) * start + np.sin(weights * angle) * end) / np.sin(
            angle
        )
    return result.astype("float32")


def slerp_grid(corners: Latents, rows: int, cols: int) -> np.ndarray:
    """Interpolate between four latents: down the left and the right side, then across each row.

    Args:
        corners: (4, *shape): top left, top right, bottom left, bottom right.
        rows, cols: size of the grid, each at least 1.

    Returns:
        float32 array (rows, cols, *shape), whose corners are the given latents if rows and cols are
        at least 2.

    Raises:
        ValueError: not four corners.
    """
    _check_corners(corners)
    top_left, top_right, bottom_left, bottom_right = corners
    left = slerp(top_left, bottom_left, np.linspace(0.0, 1.0, rows))
    right = slerp(top_right, bottom_right, np.linspace(0.0, 1.0, rows))
    return np.stack([slerp(*ends, np.linspace(0.0, 1.0, cols)) for ends in zip(left, right)])


def interpolate(
    engine: Engine,
    start: Latents | PairLatents,
    end: Latents | PairLatents,
    num_images: int = 9,
    diffusion_steps: int | Sequence[float] | None = None,
    *,
    from_images: bool = False,
    **options: Any,
) -> ImageArray:
    """Make images on the way from one latent to another, along the sphere (section 5.3).

    Args:
        start, end: latents of shape (height, width, channels), or one each of `PairLatents`; or
            images, with `from_images`.
        num_images: how many, both ends included.
        diffusion_steps: S, or the times to walk over, as for `generate`. None is 50, or a pair's
            own.
        from_images: `start` and `end` are images, in [0, 1] or uint8, that are encoded first, by as
            many steps.
        **options: as for `decode`, and of images `exact="algebra"` as for `encode`, whose path
            begins and ends with the images themselves. Of a list of labels or conditions the first
            and the last are those of the ends.

    Returns:
        float32 array (num_images, height, width, channels) in [0, 1].

    Source: Song, Meng & Ermon (2021), appendix D.5.
    """
    num_images = positive_int("num_images", num_images)
    places = [0, num_images - 1]
    ends = _latents_of([start, end], engine, from_images, diffusion_steps, options, places)
    weights = np.linspace(0.0, 1.0, num_images)
    path = _mixed(ends, lambda states: slerp(states[0], states[1], weights))
    return decode(engine, path, _steps_of(ends, diffusion_steps), **options)


def interpolate_grid(
    engine: Engine,
    corners: Latents | PairLatents,
    rows: int = 5,
    cols: int = 5,
    diffusion_steps: int | Sequence[float] | None = None,
    *,
    from_images: bool = False,
    **options: Any,
) -> np.ndarray:
    """Make a grid of images between four latents (the paper's figure 6).

    Args:
        corners: (4, height, width, channels) latents, or four `PairLatents`, top left, top right,
            bottom left and bottom right; or images, with `from_images`.
        rows, cols: size of the grid, at least 1.
        diffusion_steps: S, or the times to walk over, as for `generate`. None is 50, or a pair's
            own.
        from_images: the corners are images that are encoded first.
        **options: as for `interpolate`. Labels and conditions of all images, if they differ, come
            row by row; those at the corners are the corners'.

    Returns:
        float32 array (rows, cols, height, width, channels) in [0, 1].
    """
    rows, cols = positive_int("rows", rows), positive_int("cols", cols)
    _check_corners(corners)
    places = [0, cols - 1, (rows - 1) * cols, rows * cols - 1]
    each = [corners[index] for index in range(4)]
    ends = _latents_of(each, engine, from_images, diffusion_steps, options, places)
    grid = _mixed(
        ends, lambda states: slerp_grid(states, rows, cols).reshape(-1, *engine.image_shape)
    )
    images = decode(engine, grid, _steps_of(ends, diffusion_steps), **options)
    return images.reshape(rows, cols, *engine.image_shape)


def _latents_of(
    ends: list[Any],
    engine: Engine,
    from_images: bool,
    diffusion_steps: int | Sequence[float] | None,
    options: dict[str, Any],
    places: Sequence[int],
) -> ImageArray | PairLatents:
    """Return the latents to interpolate between, encoded by as many steps as they will be decoded
    if they are images; `places` are theirs among the images to be made.
    """
    if options.get("return_trajectory"):
        raise ValueError(
            "no trajectory is returned here: decode(latents, return_trajectory=True) does"
        )
    if any(isinstance(end, PairLatents) for end in ends):
        return _pairs_of(ends, engine, from_images, options)
    for end in ends:
        if np.shape(end) != engine.image_shape:
            raise ValueError(
                f"each end must be one image or latent, {engine.image_shape}, got shape "
                f"{np.shape(end)}"
            )
    exact = options.pop("exact", False)
    if exact is True or (exact and not from_images):
        raise ValueError(
            'exact="algebra" is for images, with from_images=True; for exact=True encode them first'
        )
    if not from_images:
        return engine.latents(np.stack(ends), "latents")
    if options.get("network_evaluations") is not None:
        raise ValueError("network_evaluations does not say how to encode: give diffusion_steps")
    names = ("sampler", "spacing", "schedule", "guidance", "batch_size", "verbose")
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    number = places[-1] + 1
    told = conditioning(engine, number, options.get("labels"), options.get("condition"))
    chosen |= told.arguments(places)
    images = [ops.convert_to_numpy(inputs.as_unit_range(inputs.as_array(end))) for end in ends]
    if exact:
        options.pop("sampler", None)
    steps = _DEFAULT_STEPS if diffusion_steps is None else diffusion_steps
    return encode(engine, np.stack(images), steps, exact=exact, **chosen)


def _pairs_of(
    ends: list[Any], engine: Engine, from_images: bool, options: dict[str, Any]
) -> PairLatents:
    """Return pairs of states, each of one image, as those of several."""
    if from_images or options.get("exact"):
        raise ValueError("these ends are latents: leave from_images and exact out")
    first = ends[0]
    for end in ends:
        if not isinstance(end, PairLatents) or end.noisier.shape != engine.image_shape:
            raise ValueError(
                "each end must be one pair of states, such as latents[0] of what encode returned, "
                f"with states of shape {engine.image_shape}"
            )
        if end.rule != first.rule or not np.array_equal(end.noise_rates, first.noise_rates):
            raise ValueError("the ends were encoded by different walks: encode them together")
    return first.replaced(*(np.stack(states) for states in zip(*map(PairLatents.states, ends))))


def _mixed(
    ends: ImageArray | PairLatents, mix: Callable[[ImageArray], np.ndarray]
) -> ImageArray | PairLatents:
    """Return what `mix` makes of latents, of both states of pairs by itself."""
    if isinstance(ends, PairLatents):
        return ends.replaced(*(mix(states) for states in ends.states()))
    return mix(ends)


def _steps_of(
    ends: ImageArray | PairLatents, diffusion_steps: int | Sequence[float] | None
) -> int | Sequence[float] | None:
    if diffusion_steps is None and not isinstance(ends, PairLatents):
        return _DEFAULT_STEPS
    return diffusion_steps


def _check_corners(corners: Latents | PairLatents) -> None:
    if len(corners) != 4:
        raise ValueError(
            "expected 4 corners (top left, top right, bottom left, bottom right), got "
            f"{len(corners)}"
        )
