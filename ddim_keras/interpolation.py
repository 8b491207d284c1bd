"""Spherical interpolation between latents (the paper's section 5.3)."""

from __future__ import annotations

from typing import Any

import numpy as np

# Below this angle, or this close to half a turn, sin(phi) leaves no digits.
_SMALLEST_ANGLE = 1e-4
# Unlike any seed that a user may have drawn the latents from.
_SIDE_SEED = 0x51DE_5EED_0B57_A11E


def slerp(start: Any, end: Any, weights: Any) -> np.ndarray:
    """Interpolate along the great circle between two latents.

        z(w) = sin((1 - w) phi) / sin(phi) start + sin(w phi) / sin(phi) end,  phi the angle between them

    Noise stays noise that way: a straight line's middle would be too short for the network.

    Args:
        start, end: arrays of one shape, not all zeros. Equal directions are interpolated along the line between them. Opposite
            ones are joined by half a turn through a direction at right angles to both, always the same one.
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
        raise ValueError("the two ends must be finite and not all zeros: a latent of zeros has no direction")
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
        result = (np.sin((1.0 - weights) * angle) * start + np.sin(weights * angle) * end) / np.sin(angle)
    return result.astype("float32")


def slerp_grid(corners: Any, rows: int, cols: int) -> np.ndarray:
    """Interpolate between four latents: down the left and the right side, then across each row.

    Args:
        corners: (4, *shape): top left, top right, bottom left, bottom right.
        rows, cols: size of the grid, each at least 1.

    Returns:
        float32 array (rows, cols, *shape), whose corners are the given latents if rows and cols are at least 2.

    Raises:
        ValueError: not four corners.
    """
    if len(corners) != 4:
        raise ValueError(f"expected 4 corners (top left, top right, bottom left, bottom right), got {len(corners)}")
    top_left, top_right, bottom_left, bottom_right = corners
    left = slerp(top_left, bottom_left, np.linspace(0.0, 1.0, rows))
    right = slerp(top_right, bottom_right, np.linspace(0.0, 1.0, rows))
    return np.stack([slerp(*ends, np.linspace(0.0, 1.0, cols)) for ends in zip(left, right)])
