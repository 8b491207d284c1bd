"""Of a trained model another one: `distill`, which draws in one, two or four steps, and
`distill_guidance`, which draws guided images without guidance.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ddim_keras.data import inputs
from ddim_keras.model import DiffusionModel
from ddim_keras.networks.ddpm_unet import DDPMUNet
from ddim_keras.presets import DISTILLING, Training
from ddim_keras.samplers import DDIM, FittedSampler
from ddim_keras.sampling.choices import chooser
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.sampling.guidance import Autoguidance, calls_in_a_step, guidances
from ddim_keras.support.arguments import integer, positive_int
from ddim_keras.support.types import Config, Data, GuidanceLike
from ddim_keras.training.distilling import Distillation
from ddim_keras.training.guiding import GuidanceDistillation, KeptAutoguidance
from ddim_keras.training.objective import Teaching

_MOST_FEW_STEPS = 4
# Of a teacher's sampling defaults, what a new network does not take over.
_ITS_OWN = ("guidance", "samplers", "version")
# Of a model's configuration, what makes another network, or another meaning of what it says.
_OF_THE_NETWORK = (
    *("widths", "block_depth", "embedding_dims", "embedding_max_frequency", "conditioning"),
    *("normalization", "attention_levels", "patch_size", "parameterization"),
)


def distill(
    model: DiffusionModel,
    data: Data,
    steps: int = 2,
    method: str = "progressive",
    *,
    guidance: GuidanceLike = None,
    teacher_steps: int | None = None,
    own: FittedSampler | bool | None = None,
    epochs: int = 5,
    training: Training = DISTILLING,
    seed: int | None = 0,
    compile_options: dict[str, Any] | None = None,
    **options: Any,
) -> DiffusionModel:
    """Train a model that draws in a few steps what a trained one draws in many.

    The model that comes out is a `DiffusionModel` of the same network, which starts from the
    teacher's weights: `generate` takes `steps` steps of DDIM by default, or of `own`, and all
    other verbs are there. It is compiled, holds its teacher, and goes on training by `fit`, also
    after it was saved and loaded; `save_to_preset` leaves the teacher out. Distill it again for
    fewer steps: it is then the teacher, by its own steps.

    Args:
        model: the trained model, which stays as it is.
        data: as for `fit`, with the labels or conditions that the model takes. With "progressive"
            images are little more than a number of walks and the labels to walk with.
        steps: network evaluations for each image: 1, 2, 4 or any other number.
        method: "progressive" compares whole walks with the teacher's from the same noises, and is
            what docs/few_steps.md measures; "consistency" learns, at all noise levels, where the
            teacher's paths lead.
        guidance: of the teacher, as for `generate`: a number, or `ClassifierFreeGuidance`; None
            takes the teacher's own. It becomes a part of what is learned, and costs nothing
            afterwards.
        teacher_steps: of the teacher's walk, 6 by default, or of all parts of the way together, 24
            by default.
        own: the sampler that the new model walks by, in place of DDIM: what `fit_sampler(...,
            images=...)` found for the teacher in as many steps, or True for the one that the
            teacher keeps. It begins with what that draws, and below the noise.
        epochs: how often the data are gone through; 0 for a model that is ready for `fit`.
        training: optimizer, learning rate and batch size.
        seed: of the random numbers of the new model.
        compile_options: further arguments of `compile`, such as metrics.
        **options: of `fit`, such as validation_data, steps_per_epoch, callbacks or verbose.

    Returns:
        The model of few steps.

    Raises:
        ValueError: the model was not trained, or an argument is out of its range.

    Source: see `Distillation`.

    Examples:

    >>> model = DiffusionModel(image_size=8, widths=[8], block_depth=1, channels=1, seed=0)
    >>> model.normalizer.adapt(np.random.rand(8, 8, 8, 1), verbose=0)
    >>> few = distill(model, np.random.rand(8, 8, 8, 1), steps=1, epochs=1, verbose=0)
    >>> few.generate(2, verbose=0).shape
    (2, 8, 8, 1)
    """
    few = student(model, steps, method, guidance, teacher_steps, seed, own=own)
    own_options = {"metric_diffusion_steps": steps, **(compile_options or {})}
    return _taught(few, data, epochs, training, own_options, options)


def distill_guidance(
    model: DiffusionModel,
    data: Data,
    guidance: GuidanceLike = None,
    *,
    epochs: int = 1,
    training: Training = DISTILLING,
    seed: int | None = 0,
    compile_options: dict[str, Any] | None = None,
    **options: Any,
) -> DiffusionModel:
    """Train a model that draws by itself what a trained one draws with guidance, at one network
    evaluation a step instead of two or more.

    The model that comes out is a `DiffusionModel` of the same network, which starts from the
    teacher's weights, for any sampler and any number of steps. It is compiled, holds its teachers,
    and goes on training by `fit`, also after it was saved and loaded; `save_to_preset` leaves the
    teachers out. It can be distilled once more, for few steps.

    Args:
        model: the trained model, which stays as it is.
        data: as for `fit`, with the labels or conditions that the model takes.
        guidance: of the teacher, as for `generate`: a weight, by label; `Autoguidance(weaker, 2.0)`
            by a weaker model of the same network, which works without labels and makes most of
            them better (docs/labels.md); or a list, each around the one before. None takes the
            model's own.
        epochs: how often the data are gone through; 0 for a model that is ready for `fit`.
        training: optimizer, learning rate and batch size.
        seed: of the random numbers of the new model.
        compile_options: further arguments of `compile`, such as metrics.
        **options: of `fit`, such as validation_data, steps_per_epoch, callbacks or verbose. About
            a thousand steps of 32 images are enough.

    Returns:
        The model, whose `generate` is not guided by itself.

    Raises:
        ValueError: the model was not trained, was taught to draw in few steps, has no guidance of
            its own where none is given, or cannot be guided so; a weaker model of another network,
            or with the model's own weights; guidance by label, and data without labels; a
            `GuidanceFunction`, which no file can hold.

    Source: Meng et al. 2023, "On distillation of guided diffusion models"; Karras et al. 2024,
        "Guiding a diffusion model with a bad version of itself".

    Examples:

    >>> weaker, model = (DiffusionModel(image_size=8, widths=[8], block_depth=1, channels=1, seed=s)
    ...     for s in (0, 1))
    >>> for each in (weaker, model):
    ...     each.normalizer.adapt(np.random.default_rng(0).random((8, 8, 8, 1)), verbose=0)
    >>> autoguidance = Autoguidance(weaker, 2.0)
    >>> guided = distill_guidance(model, np.random.rand(8, 8, 8, 1), autoguidance, verbose=0)
    >>> guided.generate(2, verbose=0).shape
    (2, 8, 8, 1)
    """
    guided = guided_student(model, guidance, seed)
    return _taught(guided, data, epochs, training, compile_options or {}, options)


def _taught(
    few: DiffusionModel,
    data: Data,
    epochs: int,
    training: Training,
    compile_options: dict[str, Any],
    options: dict[str, Any],
) -> DiffusionModel:
    """Compile a model that is ready to be taught, and train it."""
    epochs = integer("epochs", epochs, minimum=0)
    in_epoch = options.get("steps_per_epoch")
    if in_epoch is None and epochs:
        in_epoch = _batches(data, training.batch_size)
    steps = max(1, (in_epoch or 1) * epochs)
    few.compile(**training.compile_arguments(steps), **compile_options)
    if epochs:
        if inputs.is_one_piece(data):
            options = {"batch_size": training.batch_size, **options}
        x, y, sample_weight = inputs.parts_of(data)
        few.fit(x, y, epochs=epochs, sample_weight=sample_weight, **options)
    return few


def student(
    model: DiffusionModel,
    steps: int = 2,
    method: str = "progressive",
    guidance: GuidanceLike = None,
    teacher_steps: int | None = None,
    seed: int | None = 0,
    own: FittedSampler | bool | None = None,
    **changes: Any,
) -> DiffusionModel:
    """Return a model that is ready to be taught by another, whose weights it starts from.

    Args:
        model, steps, method, guidance, teacher_steps, seed, own: as for `distill`.
        **changes: further arguments of `DiffusionModel`, such as `dtype` or `ema_decay`.

    Raises:
        ValueError: as `distill`.
    """
    _check_teacher(model)
    steps, taught = positive_int("steps", steps), steps_taught(model)
    defaults = model.sampling_defaults
    if teacher_steps is None and taught is not None:
        if steps >= taught:
            raise ValueError(
                f"the model was itself taught to draw in {taught} steps, and can teach one of "
                f"fewer, got steps={steps}: distill the model that taught it"
            )
        teacher_steps = taught
    guidance = defaults.guidance if guidance is None else guidance
    own = _kept(model, steps, guidance) if own is True else own or None
    distillation = Distillation(steps, method, teacher_steps, guidance=guidance, own=own)
    for part in distillation.guidance:
        part.wrapper(model.engine)  # refuses what the model was not trained for
    if taught is not None or defaults.sampler is not None:
        sampler, spacing = chooser(None, None, None, None, defaults)(distillation.teacher_steps)
        distillation = Distillation(
            steps, method, distillation.teacher_steps, sampler, spacing, distillation.guidance, own
        )
    even = "linear" if own is None else None
    own_defaults = SamplingDefaults(steps, own or DDIM(), even, defaults.clipping)
    return _begun(model, distillation, own_defaults, {"seed": seed, **changes})


def guided_student(
    model: DiffusionModel, guidance: GuidanceLike = None, seed: int | None = 0, **changes: Any
) -> DiffusionModel:
    """Return a model that is ready to be taught the guidance of another, whose weights it starts
    from.

    Args:
        model, guidance, seed: as for `distill_guidance`.
        **changes: further arguments of `DiffusionModel`, such as `dtype` or `ema_decay`.

    Raises:
        ValueError: as `distill_guidance`.
    """
    _check_teacher(model)
    if (taught := steps_taught(model)) is not None:
        raise ValueError(
            f"the model was taught to draw in {taught} steps, and has forgotten what lies between "
            "them: teach guidance to the model that taught it, and distill that"
        )
    defaults = model.sampling_defaults
    learned, weaker = [], None
    for part in guidances(defaults.guidance if guidance is None else guidance):
        part.wrapper(model.engine)  # refuses what the model was not trained for
        if isinstance(part, Autoguidance):
            weaker = part.model
            part = KeptAutoguidance(part.weight, part.interval)
        learned.append(part)
    shares = {name: value for name, value in defaults.get_config().items() if name not in _ITS_OWN}
    own_defaults, config = SamplingDefaults(**shares), {"seed": seed, **changes}
    guided = _begun(model, GuidanceDistillation(learned), own_defaults, config)
    if weaker is not None:
        weaker.synchronize()
        _check_same_network(guided, weaker)
        guided.weaker.set_weights(weaker.ema_network.get_weights())  # type: ignore[union-attr]
    return guided


def _check_teacher(model: DiffusionModel) -> None:
    if not isinstance(model, DiffusionModel):
        raise ValueError(
            f"the teacher must be a DiffusionModel, got {type(model).__name__}: a file is loaded "
            "by keras.models.load_model, a preset by DiffusionModel.from_preset"
        )
    model.synchronize()
    if not model.normalizer.adapted:
        raise ValueError(
            "the model was never trained: fit it, or load its weights, before it teaches another"
        )


def _check_same_network(guided: DiffusionModel, weaker: DiffusionModel) -> None:
    """Raise ValueError unless a network can take a weaker model's place with its weights alone."""
    ours, theirs = (_described(each) for each in (guided, weaker))
    if ours != theirs:
        raise ValueError(
            "the weaker model's network is another one than the model's, so that their file could "
            "not hold it: give the same model after fewer steps of training, such as "
            "ddim_keras.ema.early(run)"
        )
    pairs = zip(guided.ema_network.get_weights(), weaker.ema_network.get_weights())
    if all(np.array_equal(*pair) for pair in pairs):
        raise ValueError(
            "the weaker model has the weights of the model itself, so that there is nothing to "
            "move away from: give it after fewer steps of training, such as "
            "ddim_keras.ema.early(run)"
        )


def _described(model: DiffusionModel) -> list[Any]:
    """What a network needs to have in common with another so that both say the same with the same
    weights.
    """
    config, network = model.get_config(), model.ema_network
    told = [config.get(name) for name in _OF_THE_NETWORK]
    if isinstance(network, DDPMUNet):
        told.append({**network.settings, "dtype": None, "dropout": None, "recompute": None})
    if model.schedule.num_times is not None:  # by which the network is told of noise levels
        told.append(config.get("schedule"))
    return told + [(tuple(weight.shape), weight.name) for weight in network.weights]


def _begun(
    model: DiffusionModel, distillation: Teaching, defaults: SamplingDefaults, changes: Config
) -> DiffusionModel:
    """Return a model with the weights of another, which is its teacher."""
    config = {
        **model.get_config(),
        "sampling_defaults": defaults,
        "distillation": keras.saving.serialize_keras_object(distillation),
        "name": None,
        **changes,
    }
    made: DiffusionModel = type(model).from_config(config)
    made.normalizer.set_weights(model.normalizer.get_weights())  # copies: JAX would share them
    weights = model.ema_network.get_weights()
    for network in (made.network, made.ema_network, made.teacher):
        network.set_weights(weights)  # type: ignore[union-attr]
    return made


def _kept(model: DiffusionModel, steps: int, guidance: GuidanceLike) -> FittedSampler:
    """Return the fitted sampler that a model keeps for so many steps."""
    chosen = guidances(guidance)
    found = model.sampling_defaults.fitted(steps, chosen)
    found = found or model.sampling_defaults.fitted(steps, ())
    if found is None:
        evaluations = steps * calls_in_a_step(chosen)
        raise ValueError(
            f"the teacher keeps no fitted sampler of {steps} steps: fit one first, by "
            f"model.fit_sampler({evaluations}, images=...) or ddim-keras fit-sampler "
            f"--evaluations {evaluations}, or leave own out"
        )
    return found


def steps_taught(model: DiffusionModel) -> int | None:
    """In how many steps a model was taught to draw; None for others. A preset does not say it but
    by its own few steps of DDIM or of a sampler that was fitted, in which no other model is good.
    """
    if isinstance(model.distillation, Distillation):
        return model.distillation.steps
    own = model.sampling_defaults
    is_few = own.diffusion_steps is not None and own.diffusion_steps <= _MOST_FEW_STEPS
    return (
        own.diffusion_steps if is_few and isinstance(own.sampler, (DDIM, FittedSampler)) else None
    )


def _batches(data: Data, batch_size: int) -> int:
    """How many batches an epoch has, for the learning rate's schedule."""
    _, number = inputs.iterate_batches(data, batch_size)
    if not number:
        raise ValueError(
            "the data do not say how many batches they have: give steps_per_epoch, by which the "
            "learning rate falls"
        )
    return number
