"""Training recipes. Keras is imported when one is used, not before."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ddim_keras.support.arguments import integer, positive_int

OPTIMIZERS = ("adamw", "muon", "adam")
LEARNING_RATE_SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class Training:
    """A recipe: everything about a training but its length.

    Attributes:
        batch_size: images per step.
        learning_rate: of the optimizer, at its highest.
        schedule: of the learning rate: constant, or cosine, with which it rises from a twentieth
            over the first `warmup` of the steps, and then falls along a cosine to a hundredth.
        warmup: share of the steps in which the learning rate rises, with cosine.
        warmup_steps: with a constant learning rate, batches in which it rises evenly from nothing.
        weight_decay: of the optimizer.
        clip_norm: largest norm of a step's gradient, over all weights together; without it nothing
            is clipped.
        loss: a Keras loss by name.
        flip: whether images are mirrored at random.
        accumulate: batches whose gradients make one step of the optimizer.
        optimizer: adamw, adam, or muon for `ddim_keras.optimizers.Muon`.
    """

    batch_size: int = 64
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: float = 0.05
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    loss: str = "mean_absolute_error"
    flip: bool = False
    accumulate: int = 1
    optimizer: str = "adamw"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {list(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.schedule not in LEARNING_RATE_SCHEDULES:
            raise ValueError(
                f"schedule must be one of {list(LEARNING_RATE_SCHEDULES)}, got {self.schedule!r}"
            )
        if not isinstance(self.warmup, (int, float)) or not 0.0 <= self.warmup < 1.0:
            raise ValueError(
                f"warmup must lie in [0, 1), the share of the steps, got {self.warmup}"
            )
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            if name == "clip_norm" and value is None:
                continue
            is_number = isinstance(value, (int, float)) and math.isfinite(value)
            if not is_number or value < 0.0 or (value == 0.0 and name != "weight_decay"):
                raise ValueError(
                    f"{name} must be a positive number, got {value!r} (in YAML 1e-4 is a word: "
                    "write 1.0e-4)"
                )
        if self.loss != type(self).loss:
            import keras

            keras.losses.get(self.loss)
        positive_int("batch_size", self.batch_size)
        positive_int("accumulate", self.accumulate)
        integer("warmup_steps", self.warmup_steps, minimum=0)

    def compile_arguments(self, steps: int) -> dict[str, Any]:
        """Return optimizer and loss for a training of that many batches:
        `model.compile(**training.compile_arguments(5000))`.
        """
        import keras

        from ddim_keras import optimizers

        steps = positive_int(
            "steps", steps
        )  # a schedule counts batches, even where several make one step
        rate: Any = self.learning_rate
        if self.schedule == "cosine":
            warmup = max(1, int(self.warmup * steps))
            rate = keras.optimizers.schedules.CosineDecay(
                rate / 20,
                max(1, steps - warmup),
                alpha=0.01,
                warmup_target=rate,
                warmup_steps=warmup,
            )
        elif self.warmup_steps:
            rate = keras.optimizers.schedules.PolynomialDecay(0.0, self.warmup_steps, rate)
        kinds = {"muon": optimizers.Muon, "adam": keras.optimizers.Adam}
        optimizer = kinds.get(self.optimizer, keras.optimizers.AdamW)(
            rate,
            weight_decay=self.weight_decay or (None if self.optimizer == "adam" else 0.0),
            global_clipnorm=self.clip_norm,
            gradient_accumulation_steps=self.accumulate if self.accumulate > 1 else None,
        )
        return {"optimizer": optimizer, "loss": self.loss}


DISTILLING = Training(
    batch_size=32,
    learning_rate=2e-3,
    schedule="cosine",
    clip_norm=1.0,
    optimizer="muon",
)
"""What `ddim_keras.distill` and `ddim-keras distill` train by, where nothing else is said."""
