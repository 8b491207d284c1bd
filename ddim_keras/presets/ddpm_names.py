"""What the weights of `ddpm_unet` are called elsewhere, and how they lie there.

A layer's name says where it stands: `down_1_block_0_first_norm`. A `Naming` says what its parts are
called in another library; the rest is the same for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddim_keras.networks.ddpm_unet import DDPMUNet
from ddim_keras.support.types import Config, Variable

Arrays = Mapping[str, npt.NDArray[Any]]
_SHOWN = 6


class Naming(NamedTuple):
    """What another library calls the parts of the network.

    Attributes:
        whole: layers that stand once.
        block: layers of a residual block.
        queries, keys, values, attended, attention_norm: those of self-attention; the first three
            are one and the same where a single matrix makes all.
        place: (way, level, kind, number, levels) -> the prefix of a block, where way is "down",
            "middle" or "up", and kind "block" or "attention", or "convolution" or "resized" for
            what halves or doubles.
        matrix_axes: how many axes of length 1 the matrices of attention have besides, being
            convolutions.
        head_by_head: whether a single matrix makes queries, keys and values of one head after
            the other, instead of all queries first.
    """

    whole: Mapping[str, str]
    block: Mapping[str, str]
    queries: str
    keys: str
    values: str
    attended: str
    attention_norm: str
    place: Callable[[str, int, str, int, int], str]
    matrix_axes: int = 0
    head_by_head: bool = False


def _place_in_diffusers(way: str, level: int, kind: str, number: int, levels: int) -> str:
    number_of_block = levels - 1 - level if way == "up" else level
    where = {"down": "down_blocks", "up": "up_blocks"}.get(way)
    whole = "mid_block" if where is None else f"{where}.{number_of_block}"
    resizer = "downsamplers" if way == "down" else "upsamplers"
    parts = {
        "block": f"resnets.{number}",
        "attention": f"attentions.{number}",
        "convolution": f"{resizer}.0.conv",
        "resized": f"{resizer}.0",
    }
    return f"{whole}.{parts[kind]}"


def _place_of_authors(way: str, level: int, kind: str, number: int, levels: int) -> str:
    if way == "middle":
        return f"mid.{'block' if kind == 'block' else 'attn'}_{number + 1}"
    resizer = "downsample" if way == "down" else "upsample"
    parts = {
        "block": f"block.{number}",
        "attention": f"attn.{number}",
        "convolution": f"{resizer}.conv",
        "resized": resizer,
    }
    return f"{way}.{level}.{parts[kind]}"


_BLOCK = {
    "first_norm": "norm1",
    "first_convolution": "conv1",
    "time": "time_emb_proj",
    "second_norm": "norm2",
    "second_convolution": "conv2",
    "shortcut": "conv_shortcut",
}

DIFFUSERS = Naming(
    whole={
        "input_convolution": "conv_in",
        "time_first": "time_embedding.linear_1",
        "time_second": "time_embedding.linear_2",
        "label_embedding": "class_embedding",
        "output_norm": "conv_norm_out",
        "output_convolution": "conv_out",
    },
    block=_BLOCK,
    queries="to_q",
    keys="to_k",
    values="to_v",
    attended="to_out.0",
    attention_norm="group_norm",
    place=_place_in_diffusers,
)
# As the first versions of diffusers wrote them; the published DDPM weights are of these.
OLD_DIFFUSERS = DIFFUSERS._replace(
    queries="query", keys="key", values="value", attended="proj_attn"
)
AUTHORS = Naming(
    whole={
        "input_convolution": "conv_in",
        "time_first": "temb.dense.0",
        "time_second": "temb.dense.1",
        "output_norm": "norm_out",
        "output_convolution": "conv_out",
    },
    block={**_BLOCK, "time": "temb_proj", "shortcut": "nin_shortcut"},
    queries="q",
    keys="k",
    values="v",
    attended="proj_out",
    attention_norm="norm",
    place=_place_of_authors,
    matrix_axes=2,
)


def openai(settings: Config, head_by_head: bool) -> Naming:
    """Return what improved-diffusion and guided-diffusion call the weights of a network.

    Their blocks are numbered along the way down and along the way up; what halves has a number of
    its own, what doubles stands in the last block of a level.

    Args:
        settings: of the network, as arguments of `ddpm_unet`.
        head_by_head: as for `Naming`.
    """
    depth, up_levels = settings["block_depth"], settings["up_attention_levels"]
    attended = settings["attention_levels"] if up_levels is None else up_levels

    def place(way: str, level: int, kind: str, number: int, levels: int) -> str:
        if way == "middle":
            return f"middle_block.{2 * number if kind == 'block' else 1}"
        is_resizer = kind in ("convolution", "resized")
        if way == "down":
            block = 1 + level * (depth + 1) + (depth if is_resizer else number)
            part = {"attention": "1", "convolution": "0.op"}.get(kind, "0")
            return f"input_blocks.{block}.{part}"
        block = (levels - 1 - level) * (depth + 1) + (depth if is_resizer else number)
        last = 1 + (level in attended)
        parts = {"block": "0", "attention": "1", "convolution": f"{last}.conv"}
        return f"output_blocks.{block}.{parts.get(kind, last)}"

    return Naming(
        whole=_WHOLE_OF_OPENAI,
        block=_BLOCK_OF_OPENAI,
        queries="qkv",
        keys="qkv",
        values="qkv",
        attended="proj_out",
        attention_norm="norm",
        place=place,
        matrix_axes=1,
        head_by_head=head_by_head,
    )


_WHOLE_OF_OPENAI = {
    "input_convolution": "input_blocks.0.0",
    "time_first": "time_embed.0",
    "time_second": "time_embed.2",
    "label_embedding": "label_emb",
    "output_norm": "out.0",
    "output_convolution": "out.2",
}
_BLOCK_OF_OPENAI = {
    "first_norm": "in_layers.0",
    "first_convolution": "in_layers.2",
    "time": "emb_layers.1",
    "second_norm": "out_layers.0",
    "second_convolution": "out_layers.3",
    "shortcut": "skip_connection",
}

_IN_LEVEL = re.compile(r"(down|up)_(\d+)_(block|attention)_(\d+)_(.+)")
_IN_MIDDLE = re.compile(r"middle_(block|attention)_(\d+)_(.+)")
_RESIZED = re.compile(r"(down|up)_(\d+)_(?:halving|doubling)(?:_(.+))?")


class _Link(NamedTuple):
    """A variable of ours and the arrays elsewhere that it is made of.

    Attributes:
        variable: ours.
        names, shapes: theirs.
        ours, theirs: from their arrays to ours, and back.
    """

    variable: Variable
    names: list[str]
    shapes: list[tuple[int, ...]]
    ours: Callable[..., npt.NDArray[Any]]
    theirs: Callable[[npt.NDArray[Any]], list[npt.NDArray[Any]]]


def assign(network: DDPMUNet, arrays: Arrays, naming: Naming, source: Any) -> None:
    """Put weights by their names elsewhere into a network; all of them, or none.

    Args:
        network: takes them.
        arrays: by name.
        naming: whose names they are.
        source: where they come from, for the message.

    Raises:
        ValueError: weights are missing, too many, of another shape, or hold no numbers; names them.
    """
    links = _links(network, naming)
    expected = {name: shape for link in links for name, shape in zip(link.names, link.shapes)}
    wrong = {
        "missing": sorted(set(expected) - set(arrays)),
        "not known": sorted(set(arrays) - set(expected)),
        "of another shape": [
            f"{name} {arrays[name].shape} instead of {shape}"
            for name, shape in sorted(expected.items())
            if name in arrays and arrays[name].shape != shape
        ],
        "holding NaN or infinity": [
            name for name in sorted(set(expected) & set(arrays)) if not _is_finite(arrays[name])
        ],
        "of integers, as quantized ones are": [
            name
            for name in sorted(set(expected) & set(arrays))
            if not np.issubdtype(arrays[name].dtype, np.inexact)
        ],
        "holding complex numbers, or ones too large for float32": [
            name for name in sorted(set(expected) & set(arrays)) if not _fits(arrays[name])
        ],
    }
    if any(wrong.values()):
        said = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
            for kind, names in wrong.items()
            if names
        )
        raise ValueError(
            f"the weights of {source} do not fit the network of its configuration, of weights "
            f"{said}. Nothing was loaded"
        )
    values = [link.ours(*(arrays[name] for name in link.names)) for link in links]
    for link, value in zip(links, values):
        link.variable.assign(value.astype("float32"))


def _is_finite(array: npt.NDArray[Any]) -> bool:
    return bool(np.isfinite(array).all())


def _fits(array: npt.NDArray[Any]) -> bool:
    """Whether the finite numbers of an array are real, and finite in float32."""
    is_real = not np.iscomplexobj(array)
    largest = np.finfo("float32").max
    return is_real and not bool((np.isfinite(array) & (np.abs(array) > largest)).any())


def arrays_of(network: DDPMUNet, naming: Naming) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights of a network by their names elsewhere."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for link in _links(network, naming):
        value = np.asarray(link.variable.numpy(), "float32")
        arrays |= {
            name: np.ascontiguousarray(part) for name, part in zip(link.names, link.theirs(value))
        }
    return arrays


def _links(network: DDPMUNet, naming: Naming) -> list[_Link]:
    levels = len(network.settings["widths"])
    links: list[_Link] = []
    for layer in network.layers:
        if not layer.weights:
            continue
        prefix, part = _place(layer.name, naming, levels)
        kind = type(layer).__name__
        if kind == "SelfAttention2D":
            links += _attention(layer, prefix, naming)
        elif kind == "Conv2D":
            links += [_convolution(layer.kernel, f"{prefix}.weight")]
            links += [_same(layer.bias, f"{prefix}.bias")]
        elif kind == "Dense":
            links += [_matrix(layer.kernel, [f"{prefix}.weight"])]
            links += [_same(layer.bias, f"{prefix}.bias")]
        elif kind == "GroupNormalization":
            links += [_same(layer.gamma, f"{prefix}.weight"), _same(layer.beta, f"{prefix}.bias")]
        elif kind == "Embedding":
            links += [_same(layer.embeddings, f"{prefix}.weight")]
    return links


def _place(name: str, naming: Naming, levels: int) -> tuple[str, str]:
    """Return what stands before a layer's ".weight" elsewhere, and which part of a block it is."""
    if found := _IN_LEVEL.fullmatch(name):
        way, level, kind, number, part = found.groups()
    elif found := _IN_MIDDLE.fullmatch(name):
        (kind, number, part), way, level = found.groups(), "middle", "0"
    elif found := _RESIZED.fullmatch(name):
        (way, level, part), number = found.groups(), "0"
        kind = "convolution" if part is None else "resized"
    else:
        if name not in naming.whole:
            raise ValueError(f"the other format has no place for {name}")
        return naming.whole[name], name
    prefix = naming.place(way, int(level), kind, int(number), levels)
    if kind == "convolution":
        return prefix, ""
    if kind == "attention":
        return (prefix if part == "attend" else f"{prefix}.{naming.attention_norm}"), part
    return f"{prefix}.{naming.block[part]}", part


def _same(variable: Variable, name: str) -> _Link:
    return _Link(variable, [name], [tuple(variable.shape)], lambda array: array, lambda own: [own])


def _convolution(variable: Variable, name: str) -> _Link:
    rows, columns, given, made = variable.shape
    return _Link(
        variable,
        [name],
        [(made, given, rows, columns)],
        lambda array: array.transpose(2, 3, 1, 0),
        lambda own: [own.transpose(3, 2, 0, 1)],
    )


def _matrix(variable: Variable, names: Sequence[str], axes: int = 0) -> _Link:
    """A matrix, or several beside each other; elsewhere each is transposed, and has more axes of
    length 1.
    """
    given, made = variable.shape[0], variable.shape[1] // len(names)
    shape = (made, given, *[1] * axes)

    def ours(*arrays: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([array.reshape(made, given).T for array in arrays], axis=1)

    def theirs(own: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        return [part.T.reshape(shape) for part in np.split(own, len(names), axis=1)]

    return _Link(variable, list(names), [shape] * len(names), ours, theirs)


def _attention(layer: Any, prefix: str, naming: Naming) -> list[_Link]:
    axes, last = naming.matrix_axes, f"{prefix}.{naming.attended}"
    own = [_matrix(layer.last.kernel, [f"{last}.weight"], axes)]
    own += [_same(layer.last.bias, f"{last}.bias")]
    if naming.queries == naming.keys:
        return [*_joint(layer, f"{prefix}.{naming.queries}", naming), *own]
    three = [f"{prefix}.{name}" for name in (naming.queries, naming.keys, naming.values)]
    biases = _Link(
        layer.joint.bias,
        [f"{name}.bias" for name in three],
        [(layer.joint.bias.shape[0] // 3,)] * 3,
        lambda *arrays: np.concatenate(arrays),
        lambda own: list(np.split(own, 3)),
    )
    return [_matrix(layer.joint.kernel, [f"{name}.weight" for name in three], axes), biases, *own]


def _joint(layer: Any, name: str, naming: Naming) -> list[_Link]:
    """Queries, keys and values that one matrix makes elsewhere, too."""
    given, made = layer.joint.kernel.shape
    axes, heads = [1] * naming.matrix_axes, layer.heads if naming.head_by_head else 1

    def ours(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        parts = array.reshape(heads, 3, made // (3 * heads), -1)
        return parts.transpose(1, 0, 2, 3).reshape(made, -1).T

    def theirs(own: npt.NDArray[Any]) -> npt.NDArray[Any]:
        parts = own.T.reshape(3, heads, made // (3 * heads), -1)
        return parts.transpose(1, 0, 2, 3).reshape(made, -1)

    return [
        _Link(
            layer.joint.kernel,
            [f"{name}.weight"],
            [(made, given, *axes)],
            ours,
            lambda own: [theirs(own).reshape(made, given, *axes)],
        ),
        _Link(
            layer.joint.bias,
            [f"{name}.bias"],
            [(made,)],
            lambda array: ours(array).reshape(made),
            lambda own: [theirs(own.reshape(1, made)).reshape(made)],
        ),
    ]
