"""The residual U-Net of the Keras DDIM example."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import keras
from keras import layers

from ddim_keras.networks import recomputing
from ddim_keras.networks.layers import (
    BatchNormalization,
    BilinearUpsampling2D,
    ConditionedConv2D,
    Dropout,
    GroupNormalization,
    SinusoidalEmbedding,
    Swish,
)
from ddim_keras.support import backend
from ddim_keras.support.arguments import is_number, positive_int
from ddim_keras.support.types import DType, Tensor

CONDITIONINGS = ("input", "every_block")
NORMALIZATIONS = ("batch", "group")
# What the inputs are called by which a network is told more than the noise level.
LABELS, CONDITION = "labels", "condition"


def residual_unet(
    image_shape: tuple[int, int, int],
    widths: Sequence[int] = (32, 64, 96, 128),
    block_depth: int | Sequence[int] = 2,
    embedding_dims: int = 32,
    embedding_max_frequency: float = 1000.0,
    max_condition: float = 1.0,
    conditioning: str = "input",
    normalization: str = "batch",
    attention_levels: Sequence[int] = (),
    patch_size: int = 1,
    dropout: float = 0.0,
    recompute: bool = False,
    num_classes: int | None = None,
    condition_shape: Sequence[int] | None = None,
    dtype: DType = None,
    name: str = "network",
) -> keras.Model:
    """Build a U-Net of pre-normalised residual blocks.

    Each level halves height and width by average pooling and doubles them back bilinearly; every
    residual block of the way down hands a skip connection to one of the way up. The noise variance
    enters as a sinusoidal embedding. The last convolution starts at zero, so the untrained network
    predicts 0. The defaults are the Keras DDIM example's network.

    Args:
        image_shape: (height, width, channels); both sizes divisible by patch_size * 2**(len(widths)
            - 1).
        widths: channels of each level, from the full resolution down.
        block_depth: residual blocks per level, each way; or of each level its own.
        embedding_dims: features of the noise variance's embedding, even.
        embedding_max_frequency: its highest frequency, in periods over the range of the noise
            variance.
        max_condition: the upper end of that range: 1, or T where the network is given times from 1
            to T instead.
        conditioning: "input" joins the embedding to every pixel of the first block's input;
            "every_block" adds it, by a projection of each block's own, between the two convolutions
            of all blocks (Ho et al. 2020).
        normalization: "batch", without gain and bias, or "group" (8 groups; Wu & He 2018).
        attention_levels: levels, counted from 0 at the full resolution, whose blocks are followed
            by self-attention over the pixels (Ho et al. 2020), in heads of 32 channels.
        patch_size: p: the network works on patches of p x p pixels, as p * p times the channels at
            1/p of the size.
        dropout: share, in [0, 1), of what enters each block's second convolution that training
            leaves out (Ho et al. 2020).
        recompute: whether training keeps only what goes into each block and works out the rest
            again for the gradients: less memory for a third more work. Not with batch
            normalisation, which would count each batch twice, or dropout, which would be drawn
            twice.
        num_classes: K: the network also takes labels from 0 to K, where K says nothing. Each has a
            vector, which is learned and joins the noise variance's embedding.
        condition_shape: the network also takes images (height, width, channels), which are resized
            bilinearly to the noisy images and joined to them as channels; or vectors (features,),
            which join the noise variance's embedding through a layer.
        dtype: Keras dtype policy of the layers. The embedding and the last convolution are float32
            in any case, and so are the weights of a 16-bit policy: "float16" computes as
            "mixed_float16" does.
        name: name of the model.

    Returns:
        A functional model of [noisy images (batch, height, width, channels), noise variances
        (batch, 1, 1, 1)], and perhaps labels (batch,) and conditions (batch, *condition_shape),
        which returns (batch, height, width, channels).

    Raises:
        ValueError: no widths, a width or a depth below 1, a size that cannot be halved often
            enough, an unknown conditioning, normalization or level, a dropout outside [0, 1), or
            `recompute` with batch normalisation or dropout.
    """
    depths = check_levels(image_shape[:2], widths, block_depth, patch_size)
    _check_choice("conditioning", conditioning, CONDITIONINGS)
    _check_choice("normalization", normalization, NORMALIZATIONS)
    _check_attention(attention_levels, len(widths))
    _check_training(dropout, recompute, normalization)
    noisy_images = keras.Input(image_shape, dtype="float32", name="noisy_images")
    noise_variances = keras.Input((1, 1, 1), dtype="float32", name="noise_variances")
    dtype = with_float32_weights(dtype)
    embed = SinusoidalEmbedding(embedding_dims, embedding_max_frequency, max_condition)
    embedding = embed(noise_variances)
    told = _Told(num_classes, condition_shape, dtype)
    if conditioning == "every_block":
        embedding = told.added_to(embedding, 4 * embedding_dims)
    else:
        embedding = told.joined_to(embedding)
    blocks = _Blocks(embedding, conditioning, normalization, dropout, dtype)

    def level_blocks(x: Tensor, level: int, skips: list | None = None) -> list:
        """The blocks of a level, each one's output; on the way up each takes a skip connection."""
        outputs = []
        for depth in range(depths[level]):
            if skips is None and level == depth == 0 and conditioning == "input":
                x = blocks.residual_with_embedding(x, widths[0])
            else:
                x = blocks.residual([x] if skips is None else [x, skips.pop()], widths[level])
            if level in attention_levels:
                x = blocks.attention(x)
            outputs.append(x)
        return outputs

    patches = _to_patches(noisy_images, patch_size)
    seen = _to_patches(told.joined_to_images(noisy_images), patch_size)
    x = first = blocks.convolution(seen, widths[0], 1)
    skips: list = []
    for level in range(len(widths) - 1):
        outputs = level_blocks(x, level)
        skips += outputs
        x = blocks.halved(outputs[-1])
    x = level_blocks(x, len(widths) - 1)[-1]
    for level in reversed(range(len(widths) - 1)):
        x = blocks.doubled(x)
        x = level_blocks(x, level, skips)[-1]
    outputs = blocks.predicted(x, patches.shape[-1], patch_size)
    network = keras.Model([noisy_images, noise_variances, *told.inputs], outputs, name=name)
    if recompute:
        recomputing.recompute(network, [first, embedding], blocks.steps)
    return network


class _Told:
    """The inputs by which the network is told more than the noise level, and where they enter."""

    def __init__(
        self, num_classes: int | None, condition_shape: Sequence[int] | None, dtype: DType
    ):
        self.dtype = dtype
        self.num_classes = num_classes
        self.labels = self.condition = None
        if num_classes is not None:
            self.labels = keras.Input((), dtype="int32", name=LABELS)
        if condition_shape is not None:
            self.condition = keras.Input(tuple(condition_shape), dtype="float32", name=CONDITION)
        self.inputs = [part for part in (self.labels, self.condition) if part is not None]

    def added_to(self, embedding: Tensor, features: int) -> Tensor:
        """Two layers of the embedding, with what labels and vectors say added between them."""
        embedding = _dense(features, "swish", self.dtype)(embedding)
        if parts := self._vectors(features):
            embedding = layers.Add(dtype=self.dtype)([embedding, *parts])
        return _dense(features, "swish", self.dtype)(embedding)

    def joined_to(self, embedding: Tensor) -> Tensor:
        """The embedding followed by what labels and vectors say, (batch, 1, 1, more features)."""
        parts = self._vectors(embedding.shape[-1])
        # The embedding is float32 whatever the policy, and stays so.
        return layers.Concatenate(dtype="float32")([embedding, *parts]) if parts else embedding

    def joined_to_images(self, images: Tensor) -> Tensor:
        """Images with the condition's channels after theirs."""
        if self.condition is None or len(self.condition.shape) != 4:
            return images
        height, width = images.shape[1:3]
        resized = self.condition
        if tuple(resized.shape[1:3]) != (height, width):
            resize = {"interpolation": "bilinear", "data_format": "channels_last"}
            resized = layers.Resizing(height, width, dtype="float32", **resize)(resized)
        return layers.Concatenate(dtype="float32")([images, resized])

    def _vectors(self, features: int) -> list[Tensor]:
        """What labels and vectors say, each (batch, 1, 1, features)."""
        parts = []
        if self.num_classes is not None:
            # The last of the vectors is the null class's.
            embed = layers.Embedding(
                self.num_classes + 1,
                features,
                keras.initializers.RandomNormal(stddev=0.5),
                dtype=self.dtype,
            )
            parts.append(layers.Reshape((1, 1, features), dtype=self.dtype)(embed(self.labels)))
        if self.condition is not None and len(self.condition.shape) == 2:
            vector = _dense(features, None, self.dtype)(self.condition)
            parts.append(layers.Reshape((1, 1, features), dtype=self.dtype)(vector))
        return parts


def _dense(features: int, activation: str | None, dtype: DType) -> layers.Dense:
    return layers.Dense(features, activation=activation, dtype=dtype)


class _Blocks:
    """What the network is made of. Each block returns a tensor of the height and width it is
    given.
    """

    def __init__(
        self,
        embedding: Tensor,
        conditioning: str,
        normalization: str,
        dropout: float,
        dtype: DType,
    ):
        self.embedding, self.conditioning = embedding, conditioning
        self.normalization, self.dropout = normalization, dropout
        self.dtype = dtype
        self.steps: list[recomputing.Step] = []

    def step(
        self, function: Callable[..., Tensor], *inputs: Tensor, recomputed: bool = False
    ) -> Tensor:
        """The output of layers for tensors, `function(*inputs)`, which is remembered as a step."""
        output = function(*inputs)
        self.steps.append(recomputing.Step(inputs, output, recomputed))
        return output

    def block(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return self.step(function, *inputs, recomputed=True)

    def halved(self, x: Tensor) -> Tensor:
        pool = layers.AveragePooling2D(2, data_format="channels_last", dtype=self.dtype)
        return self.step(pool, x)

    def doubled(self, x: Tensor) -> Tensor:
        return self.step(BilinearUpsampling2D(2, dtype=self.dtype), x)

    def predicted(self, x: Tensor, channels: int, patch_size: int) -> Tensor:
        options = {"kernel_initializer": "zeros", "dtype": "float32", "name": "prediction"}
        predict = layers.Conv2D(channels, 1, data_format="channels_last", **options)
        return self.step(lambda x: _from_patches(predict(x), patch_size), x)

    def convolution(self, x: Tensor, width: int, kernel_size: int) -> Tensor:
        # Whatever Keras's configuration says of data formats: images are channels-last here.
        return layers.Conv2D(
            width, kernel_size, padding="same", data_format="channels_last", dtype=self.dtype
        )(x)

    def normalize(self, x: Tensor) -> Tensor:
        if self.normalization == "batch":
            return BatchNormalization(dtype=self.dtype)(x)
        return GroupNormalization(math.gcd(8, x.shape[-1]), dtype=self.dtype)(x)

    def residual(self, parts: list[Tensor], width: int) -> Tensor:
        """A residual block of one tensor, or of two joined."""
        if self.conditioning == "every_block":
            return self.block(partial(self._residual, width), *parts, self.embedding)
        return self.block(lambda *parts: self._residual(width, *parts, None), *parts)

    def _residual(self, width: int, *inputs: Tensor) -> Tensor:
        *parts, embedding = inputs
        x = layers.Concatenate(dtype=self.dtype)(parts) if len(parts) > 1 else parts[0]
        skipped = x if x.shape[-1] == width else self.convolution(x, width, 1)
        x = self.convolution(self.normalize(x), width, 3)
        if embedding is not None:
            x = layers.Add(dtype=self.dtype)([x, layers.Dense(width, dtype=self.dtype)(embedding)])
        x = Swish(dtype=self.dtype)(x)
        x = self.convolution(self.thinned(x), width, 3)
        return layers.Add(dtype=self.dtype)([x, skipped])

    def thinned(self, x: Tensor) -> Tensor:
        return Dropout(self.dropout, dtype=self.dtype)(x) if self.dropout else x

    def residual_with_embedding(self, x: Tensor, width: int) -> Tensor:
        """A residual block of x joined with the embedding repeated over the image."""
        return self.block(partial(self._residual_with_embedding, width), x, self.embedding)

    def _residual_with_embedding(self, width: int, x: Tensor, embedding: Tensor) -> Tensor:
        skipped = ConditionedConv2D(width, kernel_size=1, dtype=self.dtype)([x, embedding])
        x, embedding = self.normalize(x), self.normalize(embedding)
        x = ConditionedConv2D(width, kernel_size=3, activation="swish", dtype=self.dtype)(
            [x, embedding]
        )
        x = self.convolution(self.thinned(x), width, 3)
        return layers.Add(dtype=self.dtype)([x, skipped])

    def attention(self, x: Tensor) -> Tensor:
        return self.block(self._attention, x)

    def _attention(self, x: Tensor) -> Tensor:
        height, width, channels = x.shape[1:]
        tokens = layers.Reshape((height * width, channels), dtype=self.dtype)(self.normalize(x))
        heads = max(1, channels // 32)
        policy = backend.attention_policy(keras.dtype_policies.get(self.dtype))
        tokens = layers.MultiHeadAttention(heads, channels // heads, dtype=policy)(tokens, tokens)
        tokens = layers.Reshape((height, width, channels), dtype=self.dtype)(tokens)
        return layers.Add(dtype=self.dtype)([x, tokens])


def with_float32_weights(dtype: DType) -> DType:
    """Return a policy that computes as `dtype` does, on weights of at least 32 bits.

    16 bits would round an optimizer's small steps away, and those of the weights' average.
    """
    policy = keras.dtype_policies.get(dtype)
    if policy.variable_dtype in ("float16", "bfloat16"):
        return keras.DTypePolicy(f"mixed_{policy.variable_dtype}")
    return dtype


def _to_patches(images: Tensor, size: int) -> Tensor:
    """(batch, height, width, channels) to (batch, height / size, width / size, size * size *
    channels).
    """
    if size == 1:
        return images
    height, width, channels = images.shape[1:]
    x = layers.Reshape((height // size, size, width // size, size, channels), dtype="float32")(
        images
    )
    x = layers.Permute((1, 3, 2, 4, 5), dtype="float32")(x)
    return layers.Reshape((height // size, width // size, size * size * channels), dtype="float32")(
        x
    )


def _from_patches(x: Tensor, size: int) -> Tensor:
    if size == 1:
        return x
    rows, columns, features = x.shape[1:]
    x = layers.Reshape((rows, columns, size, size, features // size**2), dtype="float32")(x)
    x = layers.Permute((1, 3, 2, 4, 5), dtype="float32")(x)
    return layers.Reshape((rows * size, columns * size, features // size**2), dtype="float32")(x)


def check_levels(
    image_size: Sequence[int],
    widths: Sequence[int],
    block_depth: int | Sequence[int],
    patch_size: int = 1,
) -> list[int]:
    """Return the number of residual blocks of each level.

    Raises:
        ValueError: naming the nearest sizes that work, unless every level can halve the image.
    """
    if not widths or any(not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(
            "widths must be one or more positive integers, the channels of each level, got "
            f"{widths!r}"
        )
    depths = [block_depth] * len(widths) if isinstance(block_depth, int) else list(block_depth)
    if len(depths) != len(widths) or any(not isinstance(part, int) or part < 1 for part in depths):
        raise ValueError(
            f"block_depth must be a positive integer, or one for each of the {len(widths)} widths, "
            f"got {block_depth!r}"
        )
    positive_int("patch_size", patch_size)
    factor = patch_size * 2 ** (len(widths) - 1)
    if all(size % factor == 0 for size in image_size):
        return depths
    patches = f"in patches of {patch_size} x {patch_size} pixels " if patch_size > 1 else ""
    needed = f"{len(widths) - 1} times, as {len(widths)} widths need"
    nearest = [
        sorted({max(size // factor, 1) * factor, -(-size // factor) * factor})
        for size in image_size
    ]
    raise ValueError(
        f"image_size {tuple(image_size)} {patches}cannot be halved {needed}: height and width must "
        f"be multiples of {factor}. "
        f"Nearest that work: height {_either(nearest[0])}, width {_either(nearest[1])}; or give "
        "fewer widths"
    )


def _check_attention(chosen: Sequence[int], number: int) -> None:
    if any(level not in range(number) for level in chosen):
        raise ValueError(
            f"attention_levels must lie in [0, {number}), the levels, got {list(chosen)}"
        )


def _check_training(dropout: float, recompute: bool, normalization: str) -> None:
    if not is_number(dropout) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be a share in [0, 1), got {dropout!r}")

    if recompute and dropout:
        raise ValueError(
            "recompute=True would draw other features to leave out when it works a block out "
            "again: give dropout=0, or recompute=False"
        )
    if recompute and normalization == "batch":
        raise ValueError(
            "recompute=True would count each batch twice in the averages of batch normalisation: "
            'give normalization="group", or recompute=False'
        )


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")


def _either(sizes: Sequence[int]) -> str:
    return " or ".join(map(str, sizes))
