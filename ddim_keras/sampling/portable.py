"""Sampling as Keras models of their own, which Keras's exporters write for other programs: the
whole walk, one evaluation of it, and the denoiser.

What `generate` reads anew at each call, steps, sampler, guidance and clipping, is fixed in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.diffusion.spacings import Spacing
from ddim_keras.networks.unet import CONDITION, LABELS
from ddim_keras.samplers import MEMORY, Conditions, Denoiser, Plan, Sampler, walk
from ddim_keras.samplers.walking import evaluation
from ddim_keras.sampling.clipping import Clipping, clipped
from ddim_keras.sampling.conditioning import Told
from ddim_keras.sampling.denoisers import network_denoiser
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.generate import plan_walk
from ddim_keras.sampling.guidance import Autoguidance, guidances
from ddim_keras.support.types import Config, GuidanceLike, Images, Tensor

# Of the models' inputs and outputs, beside the network's "labels" and "condition".
NOISE, IMAGES, NOISY_IMAGES = "initial_noise", "images", "noisy_images"
NOISE_RATES, SIGNAL_RATES = "noise_rates", "signal_rates"
PRED_NOISES, PRED_IMAGES = "pred_noises", "pred_images"
ROW = "row"

_HALVES = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


class Portable(NamedTuple):
    """What is fixed in an exported model.

    Attributes:
        engine: whose walks they are.
        denoise: its denoiser, with guidance and clipping around it.
        networks: all that `denoise` calls.
        planned: the walk; None for a denoiser alone.
    """

    engine: Engine
    denoise: Callable[[dict[str, Tensor]], Denoiser]
    networks: Sequence[keras.Model]
    planned: Plan | None

    @property
    def rows(self) -> np.ndarray:
        """The plan's table, float32 (evaluations, columns)."""
        assert self.planned is not None, "asked for where there is a walk"
        return self.planned.table[: self.planned.ends[-1]]


def portable_walk(
    engine: Engine,
    network: keras.Model,
    *,
    diffusion_steps: int | Sequence[float] | None = None,
    sampler: str | Sampler | None = None,
    eta: float | None = None,
    spacing: str | Spacing | None = None,
    schedule: str | Schedule | None = None,
    clipping: str | Clipping | None = None,
    guidance: GuidanceLike = None,
) -> Portable:
    """Fix a walk; the arguments are those of `generate`. `network` is the engine's, in float32.

    Raises:
        ValueError: as for `generate`, or a walk on which noise is added.
    """
    if guidance is None and (engine.spec.takes_labels or engine.spec.takes_condition):
        guidance = engine.defaults.guidance
    chosen = guidances(guidance)
    _, planned, *_ = plan_walk(
        engine,
        diffusion_steps,
        sampler=sampler,
        eta=eta,
        spacing=spacing,
        schedule=schedule,
        guidance=chosen,
    )
    if planned.table[:, 5].any():
        raise ValueError(
            "this sampler adds fresh noise at its steps, which an exported walk cannot draw: give "
            'a deterministic one, such as "unipc" or "ddim", or export signature="denoise" and '
            "take the steps in your program"
        )
    found = portable_denoiser(engine, network, clipping=clipping, guidance=chosen)
    return found._replace(planned=planned)


def portable_denoiser(
    engine: Engine,
    network: keras.Model,
    *,
    clipping: str | Clipping | None = None,
    guidance: GuidanceLike = None,
) -> Portable:
    """Fix guidance and clipping of a denoiser; the arguments are those of `generate`."""
    chosen = guidances(guidance)
    guides = [part.wrapper(engine) for part in chosen]
    around = clipped(engine.defaults.clipping_for(clipping), engine.normalizer)
    bare = network_denoiser(network, engine.parameterization, engine.spec)

    def denoise(given: dict[str, Tensor]) -> Denoiser:
        found = bare
        for guide in guides:
            found = guide.without_branch(found)
        told = Told(engine, *(given.get(name) for name in (LABELS, CONDITION)))
        for wrapper in (told, *around):
            found = wrapper.wrap(found, wrapper.arrays, _no_noises)
        return found

    others = [part.model.ema_network for part in chosen if isinstance(part, Autoguidance)]
    return Portable(engine, denoise, [network, *others], None)


def _no_noises(number: Tensor) -> Images:
    raise AssertionError("nothing that is exported draws noises")


def walk_model(portable: Portable) -> keras.Model:
    """Return a model from {"initial_noise", and "labels" and "condition" if the network takes them}
    to {"images"}, float32 in [0, 1].
    """
    engine, rows = portable.engine, portable.rows
    mean, deviation = engine.normalizer.scales()

    def generate(given: dict[str, Tensor]) -> dict[str, Images]:
        assert portable.planned is not None, "there are rows"
        noise = portable.planned.started(given[NOISE])
        first, last = (ops.convert_to_tensor(np.int32(number)) for number in (0, len(rows)))
        table = ops.convert_to_tensor(rows)
        memory = engine.no_memory(noise)
        images, _, _ = walk(portable.denoise(given), noise, memory, table, first, last, None)
        return {IMAGES: ops.clip(mean + images * deviation, 0.0, 1.0)}

    shape = engine.image_shape
    return _model(portable, {NOISE: shape}, {IMAGES: shape}, generate)


def memory_names() -> list[str]:
    """What the inputs of `evaluation_model` are called that it remembers."""
    return [f"memory_{number}" for number in range(MEMORY)]


def following(name: str) -> str:
    """What the output of `evaluation_model` is called that its input `name` is to get next."""
    return f"next_{name}"


def evaluation_model(portable: Portable) -> keras.Model:
    """Return a model of one evaluation, for formats into which a loop of Keras's cannot be brought:
    from {"noisy_images", "memory_0", ..., "row" (1, columns), "labels", "condition"} to
    {"next_noisy_images", "next_memory_0", ...}.
    """
    shape, names = portable.engine.image_shape, memory_names()

    def evaluate(given: dict[str, Tensor]) -> dict[str, Images]:
        memory = ops.stack([given[name] for name in names])
        noisy_images, memory, _ = evaluation(
            portable.denoise(given), given[NOISY_IMAGES], memory, given[ROW][0], 0, None
        )
        kept = dict(zip(names, ops.unstack(memory, num=MEMORY)))
        return {
            following(name): part for name, part in ({NOISY_IMAGES: noisy_images} | kept).items()
        }

    parts = dict.fromkeys([NOISY_IMAGES, *names], shape)
    outputs = {following(name): shape for name in parts}
    return _model(portable, {**parts, ROW: (portable.rows.shape[1],)}, outputs, evaluate)


def denoiser_model(portable: Portable) -> keras.Model:
    """Return a model from {"noisy_images", "noise_rates" and "signal_rates" (batch, 1, 1, 1),
    "labels", "condition"} to {"pred_noises", "pred_images"}, both of zero mean and unit variance.
    """
    engine = portable.engine

    def denoise(given: dict[str, Tensor]) -> dict[str, Images]:
        rates = (given[NOISE_RATES], given[SIGNAL_RATES])
        conditions = Conditions(engine.schedule.conditions(rates[1], rates[0]))
        noises, images = portable.denoise(given)(given[NOISY_IMAGES], *rates, conditions)
        return {PRED_NOISES: noises, PRED_IMAGES: images}

    shape, number = engine.image_shape, (1, 1, 1)
    inputs = {NOISY_IMAGES: shape, NOISE_RATES: number, SIGNAL_RATES: number}
    return _model(portable, inputs, {PRED_NOISES: shape, PRED_IMAGES: shape}, denoise)


def _model(
    portable: Portable,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
    function: Callable[[dict[str, Tensor]], dict[str, Images]],
) -> keras.Model:
    """Return a model of a function whose arguments and results go by their names."""
    spec = portable.engine.spec
    given = {name: keras.Input(shape, dtype="float32", name=name) for name, shape in inputs.items()}
    if spec.takes_labels:
        given[LABELS] = keras.Input((), dtype="int32", name=LABELS)
    if spec.takes_condition:
        shape = tuple(spec.condition_shape or ())
        given[CONDITION] = keras.Input(shape, dtype="float32", name=CONDITION)
    engine = portable.engine
    program = _Program(function, outputs, [*portable.networks, engine.normalizer])
    return keras.Model(given, program(given), name="sampling")


class _Program(keras.layers.Layer):
    """A function as a layer, which holds what the function reads."""

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], dict[str, Images]],
        outputs: Mapping[str, tuple[int, ...]],
        parts: Sequence[keras.layers.Layer],
    ):
        super().__init__(dtype="float32", autocast=False, name="program")
        self.function, self.parts = function, list(parts)
        self.outputs = {name: (None, *shape) for name, shape in outputs.items()}

    def call(self, given):
        return self.function(given)

    def compute_output_spec(self, given):
        return {name: keras.KerasTensor(shape, "float32") for name, shape in self.outputs.items()}


def in_float32(network: keras.Model) -> keras.Model:
    """Return the same network computing in float32: itself, if it does."""
    if all(policy.compute_dtype == "float32" for policy in _policies(network)):
        return network
    config = _with_float32(keras.saving.serialize_keras_object(network))
    copied = keras.saving.deserialize_keras_object(config)
    copied.set_weights(network.get_weights())
    copied.trainable = False
    return copied


def _policies(network: keras.Model) -> list[keras.DTypePolicy]:
    return [part.dtype_policy for part in (network, *network._flatten_layers(include_self=False))]


def _with_float32(part: Any) -> Any:
    """A serialized object with every half precision in it replaced."""
    if isinstance(part, dict):
        config: Config = part.get("config") or {}
        if isinstance(config, dict) and config.get("name") in _HALVES:
            return {**part, "config": {**config, "name": "float32"}}
        return {
            name: "float32" if name == "dtype" and value in _HALVES else _with_float32(value)
            for name, value in part.items()
        }
    if isinstance(part, (list, tuple)):
        return type(part)(_with_float32(each) for each in part)
    return part
