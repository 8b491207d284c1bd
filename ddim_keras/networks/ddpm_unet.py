"""The network of DDPM (Ho, Jain & Abbeel 2020, appendix B) and of the DDIM paper, in the forms in
which trained weights of it are published.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from ddim_keras.networks import recomputing
from ddim_keras.networks.ddpm_layers import (
    Conv2D,
    Modulation,
    Scaling,
    SelfAttention2D,
    TimeEmbedding,
)
from ddim_keras.networks.layers import Dropout, GroupNormalization, Swish
from ddim_keras.networks.unet import LABELS, check_levels, with_float32_weights
from ddim_keras.support.arguments import positive_int, truth
from ddim_keras.support.types import Config, DType, Tensor

PADDINGS = ("after", "around")
CONDITIONINGS = ("add", "scale_shift")
# Arguments by what they are in a configuration.
_LISTS = (
    *("image_shape", "widths", "attention_levels", "up_attention_levels"),
    *("residual_halvings", "residual_doublings"),
)
_NUMBERS = ("middle_scale", "dropout", "epsilon", "frequency_shift", "time_scale")
_SWITCHES = ("middle", "middle_attention", "cosines_first", "centre_input", "recompute")


@keras.saving.register_keras_serializable("ddim_keras")
class DDPMUNet(keras.Model):
    """What `ddpm_unet` returns: a functional model that is saved as the arguments it was made of.

    Attributes:
        settings: those arguments.
    """

    def __init__(
        self, inputs: Sequence[Tensor], outputs: Tensor, settings: Config, name: str | None = None
    ):
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.settings = settings

    def get_config(self) -> Config:
        return {**self.settings, "name": self.name}

    def untrained_copy(self) -> DDPMUNet:
        """Return the same network with other random weights, for inference."""
        return ddpm_unet(**{**self.get_config(), "recompute": False})

    @classmethod
    def from_config(cls, config: Config, custom_objects: dict | None = None) -> DDPMUNet:
        return ddpm_unet(**config)


class _Options(NamedTuple):
    """What all blocks of a network share."""

    conditioning: str
    groups: int
    epsilon: float
    dropout: float
    head_channels: int | None
    heads: int | None
    padding: str
    dtype: DType


def ddpm_unet(
    image_shape: Sequence[int],
    widths: Sequence[int] = (128, 256, 256, 256),
    block_depth: int = 2,
    *,
    attention_levels: Sequence[int] = (1,),
    up_attention_levels: Sequence[int] | None = None,
    middle: bool = True,
    middle_attention: bool = True,
    middle_groups: int | None = None,
    middle_scale: float = 1.0,
    head_channels: int | None = None,
    heads: int | None = None,
    dropout: float = 0.0,
    padding: str = "after",
    residual_halvings: Sequence[int] = (),
    residual_doublings: Sequence[int] = (),
    conditioning: str = "add",
    groups: int = 32,
    epsilon: float = 1e-6,
    embedding_features: int | None = None,
    cosines_first: bool = False,
    frequency_shift: float = 1.0,
    time_features: int | None = None,
    time_scale: float = 1.0,
    centre_input: bool = False,
    num_classes: int | None = None,
    recompute: bool = False,
    dtype: DType = None,
    name: str = "network",
) -> DDPMUNet:
    """Build the U-Net of Ho et al. 2020.

    The defaults are the paper's network for CIFAR-10, of 35.7 million parameters (with
    `image_shape=(32, 32, 3)`; the paper trains it with `dropout=0.1`). For 256 x 256 pixels the
    paper has `widths=(128, 128, 256, 256, 512, 512)` and `attention_levels=(4,)`.

    Args:
        image_shape: (height, width, channels); both sizes divisible by 2**(len(widths) - 1).
        widths: channels of each level, from the full resolution down, multiples of `groups`.
        block_depth: residual blocks of each level on the way down; one more on the way up.
        attention_levels: levels, counted from 0 at the full resolution, whose blocks are followed
            by self-attention.
        up_attention_levels: the same for the way up, where they differ.
        middle: whether two residual blocks follow the lowest level.
        middle_attention: whether self-attention stands between those two.
        middle_groups: of its group normalisation; None for `groups`, 0 for no normalisation.
        middle_scale: what the outputs of the middle blocks are divided by.
        head_channels: channels of each head of the attention; None for a single head.
        heads: number of heads of the attention at all levels, instead of their channels.
        dropout: share of features that training leaves out in each residual block, in [0, 1).
        padding: of the convolutions that halve the size: "after" puts a row and a column of zeros
            below and to the right, as the paper's network does, "around" on all sides, as PyTorch's
            convolutions do.
        residual_halvings: levels whose size is halved after them by a residual block that takes
            means of 2 x 2 pixels, instead of a convolution.
        residual_doublings: levels whose size is doubled after them by a residual block, likewise.
        conditioning: "add" adds the time's embedding between the two convolutions of each block;
            "scale_shift" scales and shifts the normalised features by it (Nichol & Dhariwal 2021).
        groups: of the group normalisation.
        epsilon: of the group normalisation.
        embedding_features: of the time's embedding after its two layers; None for 4 * widths[0].
        cosines_first, frequency_shift: as for `TimeEmbedding`.
        time_features: number of its sines and cosines; None for widths[0].
        time_scale: what times count more than as integers from 0: 1000 / T where the network was
            trained on T times as if they were 1000.
        centre_input: whether noisy images x enter as 2 x - 1.
        num_classes: K: the network also takes labels from 0 to K, where K says nothing. Each has a
            vector, which is learned and added to the time's embedding.
        recompute: whether training keeps only what goes into each block and works out the rest
            again for the gradients. Not with dropout, which would be drawn twice.
        dtype: Keras dtype policy of the layers. The embedding and the last convolution are float32
            in any case, and so are the weights of a 16-bit policy.
        name: name of the model.

    Returns:
        A functional model of [noisy images (batch, height, width, channels), times (batch, 1, 1,
        1), from 1 to T], and perhaps labels (batch,), which returns (batch, height, width,
        channels).

    Raises:
        ValueError: an argument out of its range, or which does not fit the others.

    Examples:

    >>> ddpm_unet((32, 32, 3)).count_params()
    35746307
    """
    given = dict(locals())
    settings = _plain(given)
    _check(settings)
    policy = keras.dtype_policies.get(with_float32_weights(dtype)).name
    inputs, outputs, first, steps = _built(settings, policy)
    network = DDPMUNet(inputs, outputs, {**settings, "dtype": policy}, name=name)
    if recompute:
        recomputing.recompute(network, first, steps)
    return network


def _plain(arguments: Config) -> Config:
    """The arguments of `ddpm_unet` but its dtype and name, as a configuration has them."""
    kinds: dict[str, Callable[[Any], Any]] = dict.fromkeys(_NUMBERS, float)
    kinds |= {name: functools.partial(truth, name) for name in _SWITCHES}
    kinds |= dict.fromkeys(_LISTS, lambda values: [int(value) for value in values])
    return {
        name: kinds[name](value) if name in kinds and value is not None else value
        for name, value in arguments.items()
        if name not in ("dtype", "name")
    }


def _built(
    settings: Config, dtype: DType
) -> tuple[list[Tensor], Tensor, list[Tensor], list[recomputing.Step]]:
    """Return inputs, output, the tensors before the first block, and the blocks."""
    image_shape, widths = tuple(settings["image_shape"]), settings["widths"]
    noisy_images = keras.Input(image_shape, dtype="float32", name="noisy_images")
    times = keras.Input((1, 1, 1), dtype="float32", name="times")
    labels = None
    if settings["num_classes"] is not None:
        labels = keras.Input((), dtype="int32", name=LABELS)
    embedding = _embedding(settings, times, labels, dtype)
    shared = {name: settings[name] for name in _Options._fields if name != "dtype"}
    blocks = _Blocks(embedding, _Options(**shared, dtype=dtype))
    x = noisy_images
    if settings["centre_input"]:
        x = Scaling(2.0, -1.0, dtype="float32", name="centred")(x)
    x = first = blocks.convolution(x, widths[0], "input_convolution")
    skips, last = [x], len(widths) - 1

    def level(way: str, number: int, depth: int, attended: Sequence[int]) -> None:
        nonlocal x
        for index in range(depth):
            given = [x] if way == "down" else [x, skips.pop()]
            x = blocks.residual(given, widths[number], f"{way}_{number}_block_{index}")
            if number in attended:
                x = blocks.attention(x, f"{way}_{number}_attention_{index}")
            if way == "down":
                skips.append(x)

    for number in range(last + 1):
        level("down", number, settings["block_depth"], settings["attention_levels"])
        if number < last:
            residual = number in settings["residual_halvings"]
            x = blocks.halved(x, residual, f"down_{number}_halving")
            skips.append(x)
    if settings["middle"]:
        x = _middle(blocks, x, settings)
    attended = settings["up_attention_levels"]
    attended = settings["attention_levels"] if attended is None else attended
    for number in reversed(range(last + 1)):
        level("up", number, settings["block_depth"] + 1, attended)
        if number > 0:
            residual = number in settings["residual_doublings"]
            x = blocks.doubled(x, residual, f"up_{number}_doubling")
    outputs = blocks.predicted(x, image_shape[-1])
    inputs = [noisy_images, times] if labels is None else [noisy_images, times, labels]
    return inputs, outputs, [first, embedding], blocks.steps


def _embedding(settings: Config, times: Tensor, labels: Tensor | None, dtype: DType) -> Tensor:
    """What all blocks are told, (batch, 1, 1, features)."""
    width = settings["widths"][0]
    features = settings["embedding_features"] or 4 * width
    embedding = TimeEmbedding(
        settings["time_features"] or width,
        settings["cosines_first"],
        settings["frequency_shift"],
        scale=settings["time_scale"],
        name="time_embedding",
    )(times)
    embedding = layers.Dense(features, dtype=dtype, name="time_first")(embedding)
    embedding = Swish(dtype=dtype, name="time_swish")(embedding)
    embedding = layers.Dense(features, dtype=dtype, name="time_second")(embedding)
    if labels is not None:
        # The last of the vectors is the null class's.
        number, spread = settings["num_classes"] + 1, keras.initializers.RandomNormal(stddev=0.5)
        embed = layers.Embedding(number, features, spread, dtype=dtype, name="label_embedding")
        vectors = layers.Reshape((1, 1, features), dtype=dtype, name="label_vectors")(embed(labels))
        embedding = layers.Add(dtype=dtype, name="time_and_label")([embedding, vectors])
    # Each block takes it through the nonlinearity: once is enough.
    return Swish(dtype=dtype, name="embedding_swish")(embedding)


def _middle(blocks: _Blocks, x: Tensor, settings: Config) -> Tensor:
    width, scale = settings["widths"][-1], settings["middle_scale"]
    x = blocks.residual([x], width, "middle_block_0", scale)
    if settings["middle_attention"]:
        groups = settings["middle_groups"]
        groups = settings["groups"] if groups is None else groups
        x = blocks.attention(x, "middle_attention_0", groups, scale)
    return blocks.residual([x], width, "middle_block_1", scale)


class _Blocks:
    """What the network is made of. Each remembers its step, for recomputation."""

    def __init__(self, embedding: Tensor, options: _Options):
        self.embedding, self.options = embedding, options
        self.steps: list[recomputing.Step] = []

    def step(
        self, function: Callable[..., Tensor], *inputs: Tensor, recomputed: bool = True
    ) -> Tensor:
        output = function(*inputs)
        self.steps.append(recomputing.Step(inputs, output, recomputed))
        return output

    def convolution(
        self, x: Tensor, width: int, name: str, size: int = 3, **options: Any
    ) -> Tensor:
        options = {"padding": "same", "dtype": self.options.dtype, **options}
        return Conv2D(width, size, name=name, **options)(x)

    def normalized(self, x: Tensor | list[Tensor], name: str, groups: int | None = None) -> Tensor:
        groups = groups or self.options.groups
        options = {"epsilon": self.options.epsilon, "dtype": self.options.dtype}
        return GroupNormalization(groups, name=name, **options)(x)

    def swish(self, x: Tensor, name: str) -> Tensor:
        return Swish(dtype=self.options.dtype, name=name)(x)

    def residual(
        self, parts: list[Tensor], width: int, name: str, scale: float = 1.0, resized: str = ""
    ) -> Tensor:
        def block(*inputs: Tensor) -> Tensor:
            return self._residual(width, name, scale, resized, *inputs)

        return self.step(block, *parts, self.embedding)

    def _residual(
        self, width: int, name: str, scale: float, resized: str, *inputs: Tensor
    ) -> Tensor:
        *parts, embedding = inputs
        dtype, added = self.options.dtype, self.options.conditioning == "add"
        x = parts[0]
        if len(parts) > 1:
            x = layers.Concatenate(dtype=dtype, name=f"{name}_joined")(parts)
        skipped = x
        x = self.swish(self.normalized(x, f"{name}_first_norm"), f"{name}_first_swish")
        if resized:
            x = self._resized(x, resized, f"{name}_resized")
            skipped = self._resized(skipped, resized, f"{name}_skipped")
        x = self.convolution(x, width, f"{name}_first_convolution")
        told = layers.Dense(width if added else 2 * width, dtype=dtype, name=f"{name}_time")
        if added:
            x = self.normalized([x, told(embedding)], f"{name}_second_norm")
        else:
            x = self.normalized(x, f"{name}_second_norm")
            x = Modulation(dtype=dtype, name=f"{name}_timed")([x, told(embedding)])
        x = self.swish(x, f"{name}_second_swish")
        if self.options.dropout:
            x = Dropout(self.options.dropout, dtype=dtype, name=f"{name}_dropout")(x)
        x = self.convolution(x, width, f"{name}_second_convolution", kernel_initializer="zeros")
        if skipped.shape[-1] != width:
            skipped = self.convolution(skipped, width, f"{name}_shortcut", size=1)
        return self._sum(x, skipped, scale, name)

    def _sum(self, x: Tensor, skipped: Tensor, scale: float, name: str) -> Tensor:
        dtype = self.options.dtype
        x = layers.Add(dtype=dtype, name=f"{name}_sum")([x, skipped])
        return x if scale == 1.0 else Scaling(1.0 / scale, dtype=dtype, name=f"{name}_scaled")(x)

    def _resized(self, x: Tensor, how: str, name: str) -> Tensor:
        options = {"data_format": "channels_last", "dtype": self.options.dtype, "name": name}
        if how == "halved":
            return layers.AveragePooling2D(2, **options)(x)
        return layers.UpSampling2D(2, interpolation="nearest", **options)(x)

    def attention(
        self, x: Tensor, name: str, groups: int | None = None, scale: float = 1.0
    ) -> Tensor:
        def block(x: Tensor) -> Tensor:
            seen = x if groups == 0 else self.normalized(x, f"{name}_norm", groups)
            size, heads = self.options.head_channels, self.options.heads
            attend = SelfAttention2D(
                x.shape[-1] // heads if heads else size,
                dtype=self.options.dtype,
                name=f"{name}_attend",
            )
            return self._sum(attend(seen), x, scale, name)

        return self.step(block, x)

    def halved(self, x: Tensor, residual: bool, name: str) -> Tensor:
        width = x.shape[-1]
        if residual:
            return self.residual([x], width, name, resized="halved")
        if self.options.padding == "after":  # what "same" means for even sizes
            return self.step(lambda x: self.convolution(x, width, name, strides=2), x)

        def block(x: Tensor) -> Tensor:
            around = {"data_format": "channels_last", "dtype": self.options.dtype}
            x = layers.ZeroPadding2D(1, name=f"{name}_padded", **around)(x)
            return self.convolution(x, width, name, strides=2, padding="valid")

        return self.step(block, x)

    def doubled(self, x: Tensor, residual: bool, name: str) -> Tensor:
        width = x.shape[-1]
        if residual:
            return self.residual([x], width, name, resized="doubled")

        return self.step(lambda x: self.convolution(x, width, name, doubles=True), x)

    def predicted(self, x: Tensor, channels: int) -> Tensor:
        def block(x: Tensor) -> Tensor:
            x = self.swish(self.normalized(x, "output_norm"), "output_swish")
            options: Config = {"kernel_initializer": "zeros", "dtype": "float32"}
            return self.convolution(x, channels, "output_convolution", **options)

        return self.step(block, x)


def _check(settings: Config) -> None:
    """Raise ValueError for settings that make no network."""
    widths, groups = settings["widths"], settings["groups"]
    if len(settings["image_shape"]) != 3:
        raise ValueError(
            f"image_shape must be (height, width, channels), got {settings['image_shape']}"
        )
    check_levels(settings["image_shape"][:2], widths, settings["block_depth"])
    if any(width % positive_int("groups", groups) for width in widths):
        raise ValueError(f"widths must be multiples of groups, {groups}, got {widths}")
    for name in ("attention_levels", "up_attention_levels"):
        _check_levels_named(name, settings[name] or [], range(len(widths)))
    _check_levels_named("residual_halvings", settings["residual_halvings"], range(len(widths) - 1))
    _check_levels_named("residual_doublings", settings["residual_doublings"], range(1, len(widths)))
    for name, choices in (("padding", PADDINGS), ("conditioning", CONDITIONINGS)):
        if settings[name] not in choices:
            raise ValueError(f"{name} must be one of {list(choices)}, got {settings[name]!r}")
    if not 0.0 <= settings["dropout"] < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {settings['dropout']}")
    if settings["recompute"] and settings["dropout"]:
        raise ValueError(
            "recompute=True would draw dropout anew when the blocks are worked out again: give "
            "dropout=0, or recompute=False"
        )
    for name in ("middle_scale", "epsilon", "time_scale"):
        if not settings[name] > 0.0:
            raise ValueError(f"{name} must be positive, got {settings[name]}")
    for name in ("num_classes", "head_channels", "heads", "embedding_features", "time_features"):
        if settings[name] is not None:
            positive_int(name, settings[name])
    _check_heads(settings)


def attended_widths(settings: Config) -> list[int]:
    """Return the widths that self-attention works on, rising."""
    levels = {*settings["attention_levels"], *(settings["up_attention_levels"] or [])}
    if settings["middle"] and settings["middle_attention"]:
        levels.add(len(settings["widths"]) - 1)
    return sorted({settings["widths"][level] for level in levels})


def _check_heads(settings: Config) -> None:
    heads = settings["heads"]
    if heads is None:
        return
    if settings["head_channels"] is not None:
        raise ValueError(
            f"give heads or head_channels, got both: {heads} and {settings['head_channels']}"
        )
    if any(width % heads for width in attended_widths(settings)):
        raise ValueError(
            f"heads must divide the widths with attention, {attended_widths(settings)}, got {heads}"
        )


def _check_levels_named(name: str, chosen: Sequence[int], allowed: range) -> None:
    if any(level not in allowed for level in chosen):
        raise ValueError(
            f"{name} must lie in [{allowed.start}, {allowed.stop}), counted from 0 at the full "
            f"resolution, got {list(chosen)}"
        )
