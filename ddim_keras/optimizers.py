"""Muon, for networks made of convolutions; the other optimizers are Keras's own."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ddim_keras.support import backend
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.types import Config, LearningRate, Tensor, Variable

# Odd polynomial whose iteration takes every singular value of a matrix of norm 1 to the
# neighbourhood of 1 (Jordan et al. 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Usual root mean square of AdamW's updates; with it both optimizers take the same learning rate
# (Liu et al. 2025, section 2.2).
_UPDATE_SIZE = 0.2
_FEWEST_CHANNELS = 16


@keras.saving.register_keras_serializable("ddim_keras")
class Muon(keras.optimizers.AdamW):
    """AdamW whose steps of convolution kernels are made orthogonal: all directions of a kernel
    learn at one pace.

    A kernel counts as the matrix of all its inputs by its outputs, (height * width * channels,
    filters). With its gradient G,

        M <- momentum M + G
        kernel <- kernel - learning_rate * 0.2 sqrt(max(rows, columns)) * U V^T,    U S V^T = G +
        momentum M

    where the singular values are brought near 1 by a few matrix products (Newton-Schulz) instead of
    a decomposition. Biases, scales, dense layers, and kernels of fewer than 16 rows or columns, as
    those at grey or RGB images, are trained as by AdamW. `keras.optimizers.Muon`, which Keras takes
    for the name "muon", leaves all kernels of convolutions to AdamW, and those are nearly all of a
    U-Net's weights.

    Args:
        learning_rate: float or a `keras.optimizers.schedules.LearningRateSchedule`; what suits
            AdamW suits Muon.
        weight_decay: share of a weight that is taken off, times the learning rate, at each step.
        momentum: of the kernels' gradients, in [0, 1).
        newton_schulz_iterations: matrix iterations a step, at least 1.
        **options: of `keras.optimizers.AdamW`: `beta_1`, `beta_2`, `epsilon`, `global_clipnorm` and
            so on.

    Raises:
        ValueError: a momentum outside [0, 1), or no iterations.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et
    al. 2025, "Muon is Scalable for LLM Training" (the size of the update).

    Examples:

    >>> optimizer = Muon(4e-3, weight_decay=1e-4, global_clipnorm=1.0)
    >>> optimizer.get_config()["momentum"]
    0.95
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        weight_decay: float = 1e-4,
        momentum: float = 0.95,
        newton_schulz_iterations: int = 5,
        name: str = "muon",
        **options: Any,
    ):
        if not isinstance(momentum, (int, float)) or not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}: 0.95 is usual")
        super().__init__(
            learning_rate=learning_rate, weight_decay=weight_decay, name=name, **options
        )
        self.momentum = float(momentum)
        self.newton_schulz_iterations = positive_int(
            "newton_schulz_iterations", newton_schulz_iterations
        )

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """Change one variable by one step; Keras calls it for each."""
        if self.weight_decay is not None and self._use_weight_decay(variable):
            rate = ops.cast(learning_rate, variable.dtype)
            self.assign_sub(variable, variable * self.weight_decay * rate)
        rows, columns = _as_matrix(variable.shape)
        if min(rows, columns) < _FEWEST_CHANNELS:
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = ops.cast(gradient, variable.dtype)
        average = self._momentums[self._get_variable_index(variable)]
        self.assign(average, self.momentum * average + gradient)
        direction = ops.reshape(gradient + self.momentum * average, (rows, columns))
        direction = nearly_orthogonal(direction, self.newton_schulz_iterations)
        size = _UPDATE_SIZE * max(rows, columns) ** 0.5 * ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, size * ops.reshape(direction, variable.shape))

    def _apply_weight_decay(self, variables: list[Variable]) -> None:
        # Keras would look up the learning rate anew for every variable, and a schedule is a branch
        # in the graph each time. `update_step`, which is given it, decays instead.
        del variables

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "newton_schulz_iterations": self.newton_schulz_iterations,
        }


def nearly_orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return U V^T of a matrix U S V^T, nearly: with singular values of about 0.7 to 1.2 instead of
    1.

    The smallest, below a six hundredth of the root of the squares' sum, come less near to 1, and
    zeros stay zeros. On an accelerator this computes in bfloat16, as that much error does not
    matter. A processor does a fifth of the work in float32 instead: the iterations only ever
    multiply the matrix by polynomials of X X^T, which is small, so that the matrix itself is
    needed at the beginning and the end alone.

    Args:
        matrix: float32 (rows, columns).
        iterations: of Newton and Schulz's method; five are enough for a gradient.

    Returns:
        float32 (rows, columns).
    """
    if backend.on_accelerator():
        return _by_iterating_on_the_matrix(matrix, iterations)
    return _by_iterating_on_its_products(matrix, iterations)


def _by_iterating_on_the_matrix(matrix: Tensor, iterations: int) -> Tensor:
    rows, columns = matrix.shape
    wide = matrix if rows <= columns else ops.transpose(matrix)
    wide = ops.cast(wide / (ops.norm(wide) + 1e-7), "bfloat16")
    linear, cubic, quintic = _COEFFICIENTS
    for _ in range(iterations):
        squares = ops.matmul(wide, ops.transpose(wide))
        wide = linear * wide + ops.matmul(
            cubic * squares + quintic * ops.matmul(squares, squares), wide
        )
    wide = ops.cast(wide, matrix.dtype)
    return wide if rows <= columns else ops.transpose(wide)


def _by_iterating_on_its_products(matrix: Tensor, iterations: int) -> Tensor:
    # Every product here is of symmetric matrices that commute. In half precision the small singular
    # values, squared, would be lost, and what stands in their place would grow without bound.
    rows, columns = matrix.shape
    transposed = ops.transpose(matrix)
    small = ops.matmul(matrix, transposed) if rows <= columns else ops.matmul(transposed, matrix)
    squared_norm = ops.trace(small) + 1e-14
    small = small / squared_norm
    linear, cubic, quintic = _COEFFICIENTS
    identity = ops.eye(min(rows, columns), dtype=matrix.dtype)
    factor = identity / ops.sqrt(squared_norm)
    for remaining in reversed(range(iterations)):
        polynomial = linear * identity + cubic * small + quintic * ops.matmul(small, small)
        factor = ops.matmul(polynomial, factor)
        if remaining:
            small = ops.matmul(ops.matmul(polynomial, small), polynomial)
    return ops.matmul(factor, matrix) if rows <= columns else ops.matmul(matrix, factor)


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a convolution's kernel; none of other variables."""
    if len(shape) != 4:
        return 0, 0
    height, width, channels, filters = shape
    return height * width * channels, filters
