"""Operators: what a measurement makes of an image. All are linear, and come with a pseudo-inverse.

    y = A x,  A A^+ A = A

A^+ y is an image that measures as y; x + A^+ (y - A x) is the nearest such image to x.
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Hashable, Sequence

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from ddim_keras.support.arguments import integer, is_number, positive
from ddim_keras.support.configurable import Configurable
from ddim_keras.support.types import Config, Images, ImageShape, Tensor

# By how much, of the largest measurement, a pair of the user's own may miss A A^+ A = A.
_PAIR_TOLERANCE = 1e-3


class Operator(Configurable, abc.ABC):
    """Base class. `operator(images)` measures images.

    Attributes:
        arrays: what `forward` and `pseudo_inverse` are given besides, so that other values of it do
            not compile anew.
        gain: the eigenvalue of A A^T, if it is a single one. Operators of several overwrite
            `regularized_inverse`.
        range: lowest and highest measurement of images in [0, 1], if they are known.
    """

    arrays: Sequence[np.ndarray] = ()
    gain: float = 1.0
    range: tuple[float, float] | None = None

    @abc.abstractmethod
    def forward(self, images: Images, *arrays: Tensor) -> Tensor:
        """Return A x of images (batch, height, width, channels)."""

    @abc.abstractmethod
    def pseudo_inverse(self, measurements: Tensor, *arrays: Tensor) -> Images:
        """Return A^+ y, images."""

    def regularized_inverse(self, measurements: Tensor, ridge: Tensor, *arrays: Tensor) -> Images:
        """Return (A^T A + ridge)^-1 A^T y, images; at a ridge of 0 A^+ y."""
        return self.gain / (self.gain + ridge) * self.pseudo_inverse(measurements, *arrays)

    @property
    def key(self) -> Hashable:
        """Operators of equal keys do the same with the same arrays."""
        return (type(self), repr(self))

    def built(self, image_shape: ImageShape) -> Operator:
        """Return the operator for images of one shape. Of an operator of the user's own its pair of
        functions is tried.

        Raises:
            ValueError: it cannot measure those, or the pair is none.
        """
        _check_pair(self, image_shape)
        return self

    @property
    def axes(self) -> Sequence[int]:
        """Of each array the axis of the images; -1 if all share it."""
        return (-1,) * len(self.arrays)

    def arrays_of(self, part: Callable[[np.ndarray], np.ndarray]) -> Sequence[np.ndarray]:
        """Return the arrays for a part of the images, given a function that takes it."""
        return self.arrays

    def check_number(self, number: int) -> None:
        """Raise ValueError if it cannot have measured so many images."""

    def check_gain(self, image_shape: ImageShape) -> None:
        """Warn if `gain` is not what the functions say: noise would be weighed wrongly. Call it on
        what `built` returned.
        """
        if type(self).regularized_inverse is not Operator.regularized_inverse:
            return  # which has no use for the gain
        image = np.random.default_rng(0).uniform(size=(1, *image_shape)).astype("float32")
        arrays = self.arrays_of(lambda array: array[:1])
        seen = ops.cast(self.forward(ops.convert_to_tensor(image), *arrays), "float32")
        back = ops.convert_to_numpy(self.pseudo_inverse(seen, *arrays))
        # x A^+ A x = |A x|^2 / gain, if A A^T = gain.
        energy, along = float(ops.sum(ops.square(seen))), float((back * image).sum())
        if not along > 0.0 or abs(energy - self.gain * along) <= 0.01 * energy:
            return
        found = energy / along
        warnings.warn(
            f"gain={self.gain:.4g}, but by the functions of {self!r} it is {found:.4g} for an "
            f"image of noise, so that measured noise is weighed wrongly: give gain={found:.4g}, "
            "or, if A A^T has several eigenvalues, write an Operator with a regularized_inverse",
            stacklevel=2,
        )

    def __call__(self, images: Images) -> np.ndarray:
        """Measure images (batch, height, width, channels), in [0, 1] or uint8; returns NumPy's
        float32, of images in [0, 1].

        Raises:
            ValueError: images of another rank, or that it cannot measure.
        """
        images = np.asarray(ops.convert_to_numpy(images))
        if images.ndim != 4:
            raise ValueError(
                "an operator measures images (batch, height, width, channels), got shape "
                f"{images.shape}: a single image becomes a batch of one with images[None]"
            )
        scale = 255.0 if images.dtype == np.uint8 else 1.0
        images = images.astype("float32") / np.float32(scale)
        built = self.built(images.shape[1:])
        return ops.convert_to_numpy(built.forward(ops.convert_to_tensor(images), *built.arrays))


@keras.saving.register_keras_serializable("ddim_keras")
class SuperResolution(Operator):
    """Means of factor x factor pixels: small images are made large.

    Args:
        factor: at least 2; must divide the image's height and width.

    Examples:

    >>> SuperResolution(4)(np.ones((1, 8, 8, 3))).shape
    (1, 2, 2, 3)
    """

    def __init__(self, factor: int):
        self.factor = integer("factor", factor, minimum=2)
        self.range = (0.0, 1.0)
        self.gain = 1.0 / self.factor**2

    def forward(self, images, *arrays):
        height, width, channels = images.shape[1:]
        rows, columns = height // self.factor, width // self.factor
        blocks = (-1, rows, self.factor, columns, self.factor, channels)
        return ops.mean(ops.reshape(images, blocks), axis=(2, 4))

    def pseudo_inverse(self, measurements, *arrays):
        rows = ops.repeat(measurements, self.factor, axis=1)
        return ops.repeat(rows, self.factor, axis=2)

    def built(self, image_shape):
        if image_shape[0] % self.factor or image_shape[1] % self.factor:
            raise ValueError(
                f"factor {self.factor} does not divide images of {image_shape[0]} x "
                f"{image_shape[1]} pixels: take one that does"
            )
        return self

    def get_config(self) -> Config:
        return {"factor": self.factor}


@keras.saving.register_keras_serializable("ddim_keras")
class Colorize(Operator):
    """The mean of the channels: grey images are coloured.

    Examples:

    >>> Colorize()(np.ones((1, 8, 8, 3))).shape
    (1, 8, 8, 1)
    """

    def __init__(self) -> None:
        self.channels = 0
        self.range = (0.0, 1.0)

    def forward(self, images, *arrays):
        return ops.mean(images, axis=-1, keepdims=True)

    def pseudo_inverse(self, measurements, *arrays):
        return ops.repeat(measurements, self.channels, axis=-1)

    @property
    def key(self):
        return (Colorize, self.channels)

    def built(self, image_shape):
        if image_shape[-1] < 2:
            raise ValueError("the images have one channel: there is nothing to colour")
        built = Colorize()
        built.channels, built.gain = image_shape[-1], 1.0 / image_shape[-1]
        return built


@keras.saving.register_keras_serializable("ddim_keras")
class Mask(Operator):
    """The known pixels, and zeros elsewhere: the rest is painted.

    Args:
        mask: 1 (or True) where the image is known, 0 elsewhere: (height, width), or (batch, height,
            width), with or without a last axis of 1 or of the channels.

    Examples:

    >>> float(Mask(np.eye(8))(np.ones((1, 8, 8, 3))).sum())
    24.0
    """

    def __init__(self, mask: npt.ArrayLike):
        self.mask = np.asarray(mask, "float32")
        self.range = (0.0, 1.0)

    def forward(self, images, *arrays):
        return images * arrays[0]

    def pseudo_inverse(self, measurements, *arrays):
        return measurements * arrays[0]

    @property
    def key(self):
        return (Mask,)

    def built(self, image_shape):
        height, width, _ = image_shape
        of_one = self.mask.shape in ((height, width), (height, width, 1), tuple(image_shape))
        number = 1 if of_one or self.mask.ndim < 3 else len(self.mask)
        built = Mask(self.mask)
        built.arrays = (checked_masks(self.mask, (number, *image_shape)),)
        return built

    @property
    def axes(self):
        return (0 if len(self.arrays[0]) > 1 else -1,)

    def arrays_of(self, part):
        (mask,) = self.arrays
        return (mask if len(mask) == 1 else part(mask),)

    def check_number(self, number):
        if len(self.arrays[0]) not in (1, number):
            raise ValueError(
                f"there are {len(self.arrays[0])} masks for {number} images: give one for each, or "
                "one for all"
            )

    def get_config(self) -> Config:
        return {"mask": self.mask.tolist()}

    def __repr__(self) -> str:
        return f"Mask(of shape {self.mask.shape})"


@keras.saving.register_keras_serializable("ddim_keras")
class Blur(Operator):
    """Circular convolution with a kernel: what leaves one edge comes in at the other.

    Args:
        kernel: (height, width), odd sizes, not above the image's; `Blur.gaussian(2.0)` makes one.
        threshold: frequencies that the kernel leaves less than this share of count as lost.

    Raises:
        ValueError: a kernel of another shape, or one that holds NaN or infinity.

    Examples:

    >>> Blur.gaussian(1.0)(np.ones((1, 8, 8, 1))).round(3).min().item()
    1.0
    """

    def __init__(self, kernel: npt.ArrayLike, threshold: float = 0.02):
        self.kernel = np.asarray(kernel, "float64")
        if self.kernel.ndim != 2 or not all(size % 2 for size in self.kernel.shape):
            raise ValueError(
                "kernel must be (height, width), both odd so that it has a middle, got shape "
                f"{self.kernel.shape}"
            )
        if not np.isfinite(self.kernel).all():
            raise ValueError("kernel must be finite, got NaN or infinity")
        self.threshold = positive("threshold", threshold)
        parts = (np.minimum(self.kernel, 0.0).sum(), np.maximum(self.kernel, 0.0).sum())
        self.range = (float(parts[0]), float(parts[1]))

    @classmethod
    def gaussian(cls, width: float, threshold: float = 0.02) -> Blur:
        """Return a blur of a standard deviation in pixels."""
        width = positive("width", width)
        reach = int(np.ceil(3.0 * width))
        line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
        return cls(np.outer(line, line) / line.sum() ** 2, threshold)

    def forward(self, images, *arrays):
        return _filtered(images, arrays[0], arrays[1])

    def pseudo_inverse(self, measurements, *arrays):
        return self.regularized_inverse(measurements, 0.0, *arrays)

    def regularized_inverse(self, measurements, ridge, *arrays):
        real, imaginary = arrays
        power = real**2 + imaginary**2
        inverse = ops.where(power > 0.0, 1.0 / (ops.maximum(power, 1e-12) + ridge), 0.0)
        return _filtered(measurements, real * inverse, -imaginary * inverse)

    @property
    def key(self):
        return (Blur,)

    def built(self, image_shape):
        rows, columns = self.kernel.shape
        if rows > image_shape[0] or columns > image_shape[1]:
            raise ValueError(
                f"the kernel, {rows} x {columns}, is larger than images of {image_shape[0]} x "
                f"{image_shape[1]} pixels: cut it off"
            )
        whole = np.zeros(image_shape[:2])
        whole[:rows, :columns] = self.kernel
        response = np.fft.fft2(np.roll(whole, (-(rows // 2), -(columns // 2)), axis=(0, 1)))
        response[np.abs(response) < self.threshold] = 0.0
        built = Blur(self.kernel, self.threshold)
        built.arrays = (response.real.astype("float32"), response.imag.astype("float32"))
        return built

    def get_config(self) -> Config:
        return {"kernel": self.kernel.tolist(), "threshold": self.threshold}

    def __repr__(self) -> str:
        return f"Blur(kernel of shape {self.kernel.shape}, threshold={self.threshold})"


@keras.saving.register_keras_serializable("ddim_keras")
class Compressed(Operator):
    """A share of the coefficients of the images, pixels' signs shuffled: compressed sensing.

    Pixels change their sign at random, an orthonormal cosine transform mixes all of them, and some
    of its coefficients, chosen at random, are kept.

    Args:
        ratio: the share that is kept, in (0, 1].
        seed: of signs and choice.

    Raises:
        ValueError: a ratio outside (0, 1].

    Examples:

    >>> Compressed(0.25)(np.ones((1, 8, 8, 3))).shape
    (1, 16, 3)
    """

    def __init__(self, ratio: float, seed: int = 0):
        if not is_number(ratio) or not 0.0 < ratio <= 1.0:
            raise ValueError(f"ratio must lie in (0, 1], got {ratio!r}")
        self.ratio, self.seed = float(ratio), integer("seed", seed, minimum=0)

    def forward(self, images, *arrays):
        signs, rows, columns, kept, _ = arrays
        mixed = ops.einsum("ih,jw,bhwc->bijc", rows, columns, images * signs[..., None])
        flat = ops.reshape(mixed, (-1, rows.shape[0] * columns.shape[0], images.shape[-1]))
        return ops.take(flat, kept, axis=1)

    def pseudo_inverse(self, measurements, *arrays):
        signs, rows, columns, _, places = arrays
        padded = ops.pad(measurements, ((0, 0), (0, 1), (0, 0)))
        shape = (-1, rows.shape[0], columns.shape[0], measurements.shape[-1])
        mixed = ops.reshape(ops.take(padded, places, axis=1), shape)
        return ops.einsum("ih,jw,bijc->bhwc", rows, columns, mixed) * signs[..., None]

    def built(self, image_shape):
        height, width, _ = image_shape
        random = np.random.default_rng(self.seed)
        signs = random.choice([-1.0, 1.0], (height, width)).astype("float32")
        number = max(round(self.ratio * height * width), 1)
        kept = np.sort(random.permutation(height * width)[:number]).astype("int32")
        places = np.full(height * width, number, "int32")
        places[kept] = np.arange(number)
        built = Compressed(self.ratio, self.seed)
        built.arrays = (signs, _cosines(height), _cosines(width), kept, places)
        return built

    def get_config(self) -> Config:
        return {"ratio": self.ratio, "seed": self.seed}


class LinearOperator(Operator):
    """Two functions of your own, of tensors, written in `keras.ops`.

    Both are tried with images of noise before they are used.

    Args:
        forward: images (batch, height, width, channels) -> measurements; linear.
        pseudo_inverse: measurements -> images, such that A A^+ A = A.
        gain: the eigenvalue of A A^T where noise is to be taken into account; of a mean over n
            pixels 1 / n.

    Raises:
        ValueError: what is no function, or a gain that is not positive; when images are measured or
            restored, functions that are not linear, or no pair.

    Examples:

    >>> flipped = LinearOperator(lambda images: images[:, ::-1], lambda seen: seen[:, ::-1])
    >>> flipped(np.eye(2).reshape(1, 2, 2, 1))[0, :, :, 0].tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    def __init__(
        self,
        forward: Callable[[Images], Tensor],
        pseudo_inverse: Callable[[Tensor], Images],
        gain: float = 1.0,
    ):
        for name, function in (("forward", forward), ("pseudo_inverse", pseudo_inverse)):
            if not callable(function):
                raise ValueError(f"{name} must be a function of tensors, got {function!r}")
        self._forward, self._pseudo_inverse = forward, pseudo_inverse
        self.gain = positive("gain", gain)

    def forward(self, images, *arrays):
        return self._forward(images)

    def pseudo_inverse(self, measurements, *arrays):
        return self._pseudo_inverse(measurements)

    @property
    def key(self):
        return (LinearOperator, self._forward, self._pseudo_inverse, self.gain)

    def get_config(self) -> Config:
        return {
            "forward": self._forward,
            "pseudo_inverse": self._pseudo_inverse,
            "gain": self.gain,
        }


def _check_pair(operator: Operator, image_shape: ImageShape) -> None:
    """Raise ValueError unless an operator is linear, and A A^+ A = A, of images of noise."""
    random = np.random.default_rng(0)
    first, second = random.uniform(size=(2, 1, *image_shape)).astype("float32")
    arrays = operator.arrays_of(lambda array: array[:1])

    def measured(images: np.ndarray) -> np.ndarray:
        made = operator.forward(ops.convert_to_tensor(images), *arrays)
        return np.asarray(ops.convert_to_numpy(made), "float64")

    seen, other, both = (measured(images) for images in (first, second, first + second))
    tolerance = _PAIR_TOLERANCE * max(np.abs(both).max(initial=0.0), 1e-6)
    if np.abs(both - seen - other).max(initial=0.0) > tolerance:
        raise ValueError(
            f"forward of {operator!r} is not linear: A (x + y) is not A x + A y. Restoration is of "
            "linear measurements alone; subtract what forward makes of an image of zeros, if that "
            "is all it adds"
        )
    found = operator.pseudo_inverse(ops.convert_to_tensor(seen.astype("float32")), *arrays)
    image = np.asarray(ops.convert_to_numpy(found), "float32")
    try:
        image = np.broadcast_to(image, np.broadcast_shapes(image.shape, first.shape))
    except ValueError:
        image = np.empty(0, "float32")
    if image.shape[1:] != tuple(image_shape):
        raise ValueError(
            f"pseudo_inverse of {operator!r} must make images (batch, "
            f"{', '.join(map(str, image_shape))}) of measurements {seen.shape}, got shape "
            f"{tuple(found.shape)}"
        )
    error = np.abs(measured(image) - seen).max(initial=0.0)
    if not error <= tolerance:
        raise ValueError(
            f"forward and pseudo_inverse of {operator!r} are no pair: A A^+ A = A must hold, but "
            f"measuring what pseudo_inverse makes of a measurement misses it by {error:.2g}"
        )


def checked_masks(masks: Images, shape: tuple[int, ...]) -> np.ndarray:
    """Return masks as float32 of the images' shape.

    Raises:
        ValueError: a shape that does not fit, or values other than 0 and 1.
    """
    masks = np.asarray(masks, "float32")
    expected = (
        "(height, width) or (batch, height, width), perhaps with channels, for images of shape "
        f"{shape}"
    )
    if masks.ndim == 2 or (masks.ndim == 3 and masks.shape == shape[:3]):
        masks = masks[..., None]
    try:
        result = np.broadcast_to(masks, shape)
    except ValueError:
        raise ValueError(f"masks must be {expected}, got shape {masks.shape}") from None
    if not np.isin(result, (0.0, 1.0)).all():
        raise ValueError(
            "masks must hold 1 where the image is known and 0 where it is to be painted, got other "
            "values"
        )
    return np.ascontiguousarray(result)


def _filtered(images: Images, real: Tensor, imaginary: Tensor) -> Images:
    """Multiply the frequencies of each channel."""
    planes = ops.transpose(images, (0, 3, 1, 2))
    found, other = ops.fft2((planes, ops.zeros_like(planes)))
    product = (found * real - other * imaginary, found * imaginary + other * real)
    # The inverse transform of a real image, by the forward one: conj(F(conj(z))) / size.
    back, _ = ops.fft2((product[0], -product[1]))
    size = planes.shape[-1] * planes.shape[-2]
    return ops.transpose(back / size, (0, 2, 3, 1))


def _cosines(size: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II), (size, size)."""
    places = np.arange(size)
    matrix = np.sqrt(2.0 / size) * np.cos(np.pi * (places + 0.5) * places[:, None] / size)
    matrix[0] /= np.sqrt(2.0)
    return matrix.astype("float32")
