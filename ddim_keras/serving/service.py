"""What is served: a model, asked for images within limits."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ddim_keras.model import DiffusionModel
from ddim_keras.sampling.guidance import guidances
from ddim_keras.serving.limits import Limits
from ddim_keras.serving.worker import Job, Worker
from ddim_keras.support.types import ImageArray


class Asked(NamedTuple):
    """What a request for images says; all but the first as for `DiffusionModel.generate`, and None
    for its default.
    """

    num_images: int = 1
    steps: int | None = None
    sampler: str | None = None
    eta: float | None = None
    spacing: str | None = None
    clipping: str | None = None
    guidance: float | None = None
    labels: str | int | Sequence[str | int | None] | None = None
    seed: int | None = None


class Made(NamedTuple):
    """Images, float32 (number, height, width, channels) in [0, 1], and the seed that fixes them."""

    images: ImageArray
    seed: int


class Service:
    """A model and the thread that uses it.

    Args:
        model: which makes the images.
        limits: of each request.
        worker: the thread, if it is shared with others; None for one of its own.
    """

    def __init__(
        self, model: DiffusionModel, limits: Limits | None = None, worker: Worker | None = None
    ):
        self.model, self.limits = model, limits or Limits()
        self.worker = worker or Worker(self.limits.waiting)

    def warm_up(self) -> None:
        """Make an image, and one by label where there are labels, so that the first requests do not
        wait for the compiler.
        """
        spec = self.model.engine.spec
        told = [*([] if spec.needs_labels else [None]), *([0] if spec.takes_labels else [])]
        for labels in told:
            self.submit(Asked(steps=1, labels=labels)).future.result()

    def submit(self, asked: Asked, on_step: Callable[[int, ImageArray], None] | None = None) -> Job:
        """Take a request; its future gets a `Made`.

        Args:
            asked: what is wanted.
            on_step: as for `generate`, called in the worker's thread.

        Raises:
            ValueError: it asks for too much, or for what the model does not have; as far as can be
                said before the work.
            Busy, Stopped: as for `Worker.submit`.
        """
        steps = self.model.sampling_defaults.steps(asked.steps)
        self.limits.check(asked.num_images, steps)
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        options = asked._asdict()
        number, labels = options.pop("num_images"), options.pop("labels")
        options |= {"diffusion_steps": options.pop("steps"), "seed": seed, "verbose": 0}
        # Refuses what cannot work before anybody waits for it.
        self.model.generate(0, **{**options, "guidance": None})
        guidances(asked.guidance)
        if self.model.condition_shape is not None:
            raise ValueError("the model makes images from images, which cannot be sent here")

        def work(job: Job) -> Made:
            def after_step(step: int, images: ImageArray) -> None:
                job.check()
                if on_step is not None:
                    on_step(step, images)

            made = self.model.generate(number, labels=labels, on_step=after_step, **options)
            return Made(made, seed)

        return self.worker.submit(work, self.limits.seconds)

    def describe(self) -> dict[str, Any]:
        """Say what the model makes and what a request may ask for."""
        model, limits = self.model, self.limits
        return {
            "image_shape": list(model.image_shape),
            "num_classes": model.num_classes,
            "class_names": model.class_names,
            "default_steps": model.sampling_defaults.steps(None),
            "default_guidance": model.sampling_defaults.guidance,
            "most_images": limits.images,
            "most_steps": limits.steps,
            "seconds": limits.seconds,
        }

    def stop(self) -> None:
        """End, and drop what is asked for."""
        self.worker.stop()
