"""One image file to pixels: upright, in 8 bits, on a background, in the wanted channels."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ddim_keras.data import colours, deep_files, depth
from ddim_keras.data.colours import WHITE, Colour
from ddim_keras.data.deep_files import File
from ddim_keras.data.depth import Depth

# An image of more pixels than the first is refused; of more than the second, shrunk while it is
# read to about the third, so that it need not be held as floats.
LARGEST_PIXELS = 500_000_000
SHRUNK_ABOVE_PIXELS = 178_956_970
_SHRUNK_TO_PIXELS = 45_000_000
# Formats that Pillow knows by name but does not draw, or draws only with other programs.
_NOT_DRAWN = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES = 0x0112, 258, 262, 284
_LARGEST_VALUES = (281, 341)  # TIFF's MaxSampleValue and SMaxSampleValue


class Picture(NamedTuple):
    """A decoded file, upright, as deep as it is stored.

    Attributes:
        values: (height, width) or (height, width, 3): uint8, deeper integers, or floats.
        alpha: uint8 (height, width), or None where all of it is opaque.
        depth: what is known of its depth.
        inverted: whether 0 is white.
    """

    values: np.ndarray
    alpha: np.ndarray | None
    depth: Depth
    inverted: bool = False


class Facts(NamedTuple):
    """What one pass over a data set learns of each file.

    Attributes:
        grey: whether the file is a grey one.
        transparent: whether a pixel of it is not opaque.
        depth: what is known of its depth.
    """

    grey: bool
    transparent: bool
    depth: Depth


def suffixes() -> frozenset[str]:
    """Return the suffixes of what the installed Pillow reads, such as ".png"."""
    import PIL.Image

    known = PIL.Image.registered_extensions()
    readable = (set(PIL.Image.OPEN) | {"MPO"}) - _NOT_DRAWN  # MPO is opened as a JPEG
    return frozenset(suffix for suffix, name in known.items() if name in readable)


def examine(path: File, bits: int | None = None) -> Facts:
    """Decode a file, to find out that it can be, and what is in it.

    Args:
        path: of the file, or the file in memory.
        bits: what the user says of images deeper than 8 bits.

    Raises:
        Exception: the file is damaged, is no image, or its values have no meaning as an image.
    """
    with _opened(path) as image:
        return _facts(_decoded(image, path), bits)


def read_image(path: File, channels: int, background: Colour = WHITE, bits: int = 16) -> np.ndarray:
    """Read an image upright, of an animation the first frame.

    Args:
        path: of the file.
        channels: 1 or 3, with what is transparent laid on the background; or 4, which keeps it.
        background: the colour under what is transparent.
        bits: 2**bits - 1 is white, if the image is deeper than 8 bits; 0 for floats in [0, 1].

    Returns:
        uint8 (height, width, channels).
    """
    with _opened(path) as image:
        factor = _shrink_factor(image.size)
        picture = _decoded(image, path)
        return _shrunk_pixels(picture, factor, channels, background, bits)


def read_images(
    paths: list[str], channels: int, background: Colour, bits: int | None, shaped: Any
) -> tuple[list, list[Facts]]:
    """Read images whose depth their largest value may have to tell.

    Args:
        paths: of the files.
        channels, background: as for `read_image`.
        bits: what the user says of images deeper than 8 bits.
        shaped: called with the pixels of each; its results are returned.

    Returns:
        The results, and the facts of each file.
    """
    results: list[Any] = [None] * len(paths)
    facts: list[Facts] = []
    for index, path in enumerate(paths):
        try:
            with _opened(path) as image:
                factor = _shrink_factor(image.size)
                picture = _decoded(image, path)
                facts.append(_facts(picture, bits))
                known = facts[-1].depth.bits
                if known is not None:
                    pixels = _shrunk_pixels(picture, factor, channels, background, known)
        except Exception as error:  # decoders raise whatever they like on damaged files
            raise ValueError(
                f"{path} cannot be read as an image ({type(error).__name__}: {error})"
            ) from error
        if known is not None:
            results[index] = shaped(pixels)
    names = [os.fspath(path) for path in paths]
    settled = depth.settle([fact.depth for fact in facts], names, "those given")
    for index, path in enumerate(paths):
        if facts[index].depth.bits is None:
            results[index] = shaped(read_image(path, channels, background, settled[index]))
    return results, facts


def upright_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return (width, height) of an image as it is seen, which a phone may have stored turned."""
    with _opened(path) as image:
        if image.format == "TIFF":  # Pillow turns these when they are loaded
            image.load()
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


class _PillowsLimit:
    """Lifts Pillow's limit on the size of images while any thread reads one; ours replaces it."""

    def __init__(self) -> None:
        self._lock, self._readers, self._limit = threading.Lock(), 0, None
        self.large = threading.Lock()  # for one very large image at a time

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        import PIL.Image

        with self._lock:
            if not self._readers:
                self._limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None  # type: ignore
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    PIL.Image.MAX_IMAGE_PIXELS = self._limit  # type: ignore


_LIMIT = _PillowsLimit()


@contextlib.contextmanager
def _opened(path: File) -> Iterator[Any]:
    """Open an image of at most LARGEST_PIXELS; very large ones one at a time."""
    import PIL.Image

    with _LIMIT.lifted(), PIL.Image.open(path) as image:
        width, height = image.size
        if width * height > LARGEST_PIXELS:
            raise ValueError(
                f"it is {width} x {height} pixels, {width * height / 1e6:.0f} megapixels: more "
                "than "
                f"the {LARGEST_PIXELS // 1_000_000} that are read. Shrink it, or cut it into parts"
            )
        factor = _shrink_factor(image.size)
        if factor == 1:
            yield image
            return
        with _LIMIT.large:
            yield image


def _shrink_factor(size: tuple[int, int]) -> int:
    pixels = size[0] * size[1]
    return 1 if pixels <= SHRUNK_ABOVE_PIXELS else math.ceil(math.sqrt(pixels / _SHRUNK_TO_PIXELS))


def _decoded(image: Any, path: File) -> Picture:
    """Decode an opened file. The largest JPEGs come out smaller, as their format allows."""
    factor = _shrink_factor(image.size)
    if factor > 1 and image.format in ("JPEG", "MPO"):
        image.draft(None, (image.width // factor, image.height // factor))
    layout = _layout(image)
    tags = dict(image.tag_v2) if image.format == "TIFF" else {}
    image.load()
    orientation = image.getexif().get(_ORIENTATION, 1)
    known, inverted = Depth(8), False
    if image.format == "PNG" and layout.endswith(";16B") and image.mode in ("LA", "RGB", "RGBA"):
        values, alpha = deep_files.read_png(path, image.info.get("transparency"))
        known = Depth(None, deep_files.significant_bits(path))
    elif image.mode == "F":
        values, alpha, known = np.asarray(image), None, Depth(0)
    elif image.mode == "I" or image.mode.startswith("I;"):
        values = np.asarray(image).astype("int32" if image.mode == "I" else "uint16")
        alpha = deep_files.keyed(values, image.info.get("transparency"))
        known = _stored_depth(image, path, tags)
        inverted = tags.get(_PHOTOMETRIC) == 0
    elif image.format == "TIFF" and ";16" in layout:
        known = _stored_depth(image, path, tags)
        values, alpha = _eight_bit_values(image, layout)
        if layout.startswith(("RGB;", "RGBA;", "RGBX;")) and tags.get(_PLANES, 1) == 1:
            values, alpha = deep_files.read_tiff(image, path, layout)
        else:
            largest = max(high for _, high in image.getextrema())
            known = known._replace(upper_byte=True, largest=largest << 8)
    else:
        values, alpha = _eight_bit_values(image, layout)
    if alpha is not None and alpha.min(initial=255) == 255:
        alpha = None
    return Picture(
        _upright(values, orientation),
        None if alpha is None else _upright(alpha, orientation),
        known,
        inverted,
    )


def _layout(image: Any) -> str:
    """How the file stores a pixel, in Pillow's words, such as "RGB;16B"; empty if unknown."""
    arguments = image.tile[0][3] if image.tile else None
    if isinstance(arguments, tuple) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def _stored_depth(image: Any, path: File, tags: dict[int, Any]) -> Depth:
    """What a file deeper than 8 bits says of its depth."""
    if image.format in ("PPM", "JPEG2000"):  # Pillow has scaled them by what they say
        return Depth(16)
    if image.format == "PNG":
        return Depth(None, deep_files.significant_bits(path))
    for tag in (_BITS_PER_SAMPLE, *_LARGEST_VALUES):
        value = tags.get(tag)
        value = value[0] if isinstance(value, tuple) and value else value
        if tag == _BITS_PER_SAMPLE and isinstance(value, int) and 8 < value < 16:
            return Depth(value)
        if tag in _LARGEST_VALUES and isinstance(value, int) and value > 1:
            return Depth(depth.holding(value))
    return Depth(None)


def _eight_bit_values(image: Any, layout: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (height, width[, 3]) of an image that Pillow holds in 8 bits, and its alpha."""
    key = image.info.get("transparency")
    if image.mode in ("P", "PA"):
        grey = _has_grey_palette(image)
        image = image.convert("RGBA" if image.mode == "PA" or key is not None else "RGB")
        values = np.asarray(image)
        shown = values[..., 0] if grey else values[..., :3]
        return shown, values[..., 3] if values.shape[-1] == 4 else None
    if image.mode in ("1", "L"):
        values = np.asarray(image.convert("L"))
        # Of less than 8 bits Pillow scales the pixels, but not the colour that is transparent.
        if isinstance(key, int):
            if image.mode == "1":
                key = 255 if key else 0
            key *= {"L;2": 85, "L;4": 17}.get(layout, 1)
        return values, deep_files.keyed(values, key)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "RGBA"):
        values = np.asarray(image)
        return (values[..., 0] if image.mode == "LA" else values[..., :3]), values[..., -1]
    if image.mode == "LAB":
        image = _lab_to_rgb(image)
    values = np.asarray(image.convert("RGB"))
    return values, deep_files.keyed(values, key if image.mode == "RGB" else None)


def _has_grey_palette(image: Any) -> bool:
    """Whether the colours that a palette image uses are all grey."""
    if image.mode != "P" or image.palette is None:
        return False
    used = np.flatnonzero(image.histogram()[:256])
    palette = np.asarray(image.getpalette("RGB") or [], "uint8").reshape(-1, 3)
    palette = palette[used[used < len(palette)]]
    return bool(len(palette)) and bool((palette == palette[:, :1]).all())


def _lab_to_rgb(image: Any) -> Any:
    import PIL.ImageCms

    lab, rgb = PIL.ImageCms.createProfile("LAB"), PIL.ImageCms.createProfile("sRGB")
    return PIL.ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn what was stored in one of EXIF's eight orientations."""
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _facts(picture: Picture, bits: int | None) -> Facts:
    values, known = picture.values, picture.depth
    if values.dtype.kind == "f":
        smallest, largest = (
            (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        )
        known = Depth(depth.check_floats(smallest, largest, bits))
    elif known.upper_byte:
        bits = known.bits if bits is None else bits
        if bits is not None and bits != 16:
            raise ValueError(
                f"it has {bits} bits a colour stored in 16, of which only the upper 8 can be "
                "read from such a file: save it as PNG, or with 8 bits"
            )
        known = known._replace(bits=bits)
    elif values.dtype != np.uint8:
        largest = int(values.max(initial=0))
        depth.check_integers(int(values.min(initial=0)), largest, bits)
        if known.bits is not None and largest >= 2**known.bits:  # the file says less than it holds
            known = Depth(None)
        known = known._replace(bits=known.bits if bits is None else int(bits), largest=largest)
    return Facts(values.ndim == 2, picture.alpha is not None, known)


def _in_channels(picture: Picture, channels: int, background: Colour, bits: int) -> np.ndarray:
    """uint8 (height, width, channels) of a decoded picture."""
    values = depth.to_eight_bits(picture.values, bits, picture.inverted)
    return colours.with_channels(values, picture.alpha, channels, background)


def _shrunk_pixels(
    picture: Picture, factor: int, channels: int, background: Colour, bits: int
) -> np.ndarray:
    """As `_in_channels`; the largest images shrunk by a whole factor, strip by strip to save
    memory.
    """
    height, width = picture.values.shape[:2]
    if factor == 1 or height * width <= SHRUNK_ABOVE_PIXELS:
        return _in_channels(picture, channels, background, bits)
    strips = []
    for top in range(0, height, 16 * factor):
        rows = slice(top, top + 16 * factor)
        alpha = None if picture.alpha is None else picture.alpha[rows]
        part = picture._replace(values=picture.values[rows], alpha=alpha)
        strips.append(colours.averaged(_in_channels(part, channels, background, bits), factor))
    return np.concatenate(strips)
