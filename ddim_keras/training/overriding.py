"""What a subclass or an assignment would change in vain: said, or refused."""

from __future__ import annotations

import warnings
from typing import Any

# Methods of the Keras example's that its `generate` calls, and what does the same here.
_INSTEAD = {
    "diffusion_schedule": "only training calls it: give the model a Schedule, as schedule=",
    "denoise": "change predictions by guidance=GuidanceFunction(...), or give a network=",
    "predict_components": "as of denoise: guidance=GuidanceFunction(...), or network=",
    "reverse_diffusion": "make it a Sampler, and give it as sampler=",
    "denormalize": 'pixels="symmetric" takes images from -1 to 1; change what generate returns',
}
# Parts that the engine and the objective hold as well, and how another one is had.
_ANEW = "make a new model, with {0}=..."
_PARTS = {
    "schedule": _ANEW.format("schedule"),
    "parameterization": _ANEW.format("parameterization"),
    "loss_weighting": _ANEW.format("loss_weighting"),
    "pixels": _ANEW.format("pixels"),
    "image_shape": _ANEW.format("image_size"),
    "network": _ANEW.format("network") + ", or give this one weights, network.set_weights(...)",
    "ema_network": "give this one weights, ema_network.set_weights(...)",
    "dtype_policy": _ANEW.format("dtype") + ", and give it this one's weights by set_weights",
    "normalizer": _ANEW.format("pixels") + ", or call normalizer.adapt",
}


def warn_of_methods_in_vain(subclass: type, base: type) -> None:
    """Warn if a subclass overrides methods that neither training nor the base's `generate` calls.

    Args:
        subclass: of `base`. One with a `generate` of its own calls what it likes.
        base: a model whose verbs are functions of its engine.
    """

    def is_own(name: str) -> bool:
        return getattr(subclass, name) is not getattr(base, name)

    if is_own("compute_loss") and not is_own("train_step"):
        warnings.warn(
            f"{subclass.__name__}.compute_loss changes nothing: training does not call it. Give "
            "compile another loss=, or override train_step",
            stacklevel=3,
        )
    if is_own("generate"):
        return
    for name in filter(is_own, _INSTEAD):
        warnings.warn(
            f"{subclass.__name__}.{name} changes nothing that generate, encode and the other verbs "
            f"make, which do not call it: {_INSTEAD[name]}. Or override generate as well",
            stacklevel=3,
        )


def refuse_another_part(model: Any, name: str, value: Any) -> None:
    """Raise ValueError if a part of a finished model is to be replaced, which training or sampling
    would not notice.
    """
    held = vars(model)
    if name in _PARTS and "engine" in held and getattr(model, name) is not value:
        raise ValueError(
            f"model.{name} cannot be replaced: training or generate would go on with the one that "
            f"the model was made with. Instead, {_PARTS[name]}"
        )
