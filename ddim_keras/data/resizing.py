"""Images of any size to one size and number of channels, antialiased."""

from __future__ import annotations

from ddim_keras.data.colours import Colour
from ddim_keras.support.types import Tensor


def fit_image(
    image: Tensor, size: tuple[int, int], channels: int, fit: str, background: Colour
) -> Tensor:
    """Bring one uint8 image to the wanted size and channels.

    Colours with alpha are resized weighted by it, so that what is invisible does not bleed into
    what is not. A pixel that is wholly transparent afterwards is (0, 0, 0, 0).

    Args:
        image: uint8 (height, width, 1 to 4).
        size: (height, width) wanted.
        channels: 1, 3 or 4.
        fit: "crop" or "pad", as for `load_dataset`.
        background: the colour under what is transparent, where channels is not 4.

    Returns:
        uint8 (*size, channels).
    """
    import tensorflow as tf

    image = with_channels(image, channels, background)
    image = image if fit == "pad" else _cropped(image, size)
    if channels == 4:
        image = tf.cast(image, tf.float32)
        image = tf.concat([image[..., :3] * (image[..., 3:] / 255.0), image[..., 3:]], axis=-1)
    resized = _padded(image, size) if fit == "pad" else tf.image.resize(image, size, antialias=True)
    if channels == 4:
        # What rounds to no alpha has no colour either.
        alpha = tf.where(resized[..., 3:] < 0.5, 0.0, resized[..., 3:])
        resized = tf.concat(
            [tf.math.divide_no_nan(resized[..., :3] * 255.0, alpha), alpha], axis=-1
        )
    resized = tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)
    return tf.ensure_shape(resized, (*size, channels))


def with_channels(image: Tensor, channels: int, background: Colour) -> Tensor:
    """Return a uint8 image of 1 to 4 channels in `channels`, laid on the background if need be."""
    import tensorflow as tf

    given = image.shape[-1]
    if given == channels:
        return image
    colours = image[..., :3] if given >= 3 else tf.image.grayscale_to_rgb(image[..., :1])
    if channels == 4:
        opaque = tf.fill([*tf.unstack(tf.shape(image)[:2]), 1], tf.constant(255, tf.uint8))
        return tf.concat([colours, image[..., -1:] if given == 2 else opaque], axis=-1)
    if given in (2, 4):
        alpha = tf.cast(image[..., -1:], tf.int32)
        under = tf.constant(background, tf.int32) * (255 - alpha)
        colours = tf.cast((tf.cast(colours, tf.int32) * alpha + under + 127) // 255, tf.uint8)
    if channels == 3:
        return colours
    return image[..., :1] if given == 1 else tf.image.rgb_to_grayscale(colours)


def _cropped(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest centred part of the shape of `size`."""
    import tensorflow as tf

    height, width = tf.shape(image)[0], tf.shape(image)[1]
    crop_height = tf.maximum(
        tf.minimum(height, tf.cast(tf.round(width * size[0] / size[1]), tf.int32)), 1
    )
    crop_width = tf.maximum(
        tf.minimum(width, tf.cast(tf.round(height * size[1] / size[0]), tf.int32)), 1
    )
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return image[top : top + crop_height, left : left + crop_width]


def _padded(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The whole image in the middle of black of this size; with alpha, of what is transparent."""
    import tensorflow as tf

    lengths = tf.cast(tf.shape(image)[:2], tf.float32)
    shrunk = tf.minimum(1.0, tf.reduce_min(tf.constant(size, tf.float32) / lengths)) * lengths
    shrunk = tf.clip_by_value(tf.cast(tf.round(shrunk), tf.int32), 1, size)
    image = tf.image.resize(image, shrunk, antialias=True)
    return tf.image.resize_with_crop_or_pad(image, *size)
