"""What the page to play with does, without the page: pictures of what a model makes."""

from __future__ import annotations

import collections
import pathlib
import queue
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddim_keras import plotting
from ddim_keras.data import read_images
from ddim_keras.model import DiffusionModel
from ddim_keras.sampling.interpolate import slerp
from ddim_keras.sampling.operators import Blur, Colorize, Mask, Operator, SuperResolution
from ddim_keras.serving.limits import Limits
from ddim_keras.serving.service import Asked, Service
from ddim_keras.serving.worker import Job, Worker
from ddim_keras.support.types import ImageArray, Images

# As many models are kept as these.
_KEPT = 3
# The side of a picture on the page, in about so many pixels.
_SHOWN = 480
_LOOKING_SECONDS = 0.1


# What an image may be restored from, as the page calls it: what measures such images, and the
# deviation of the noise in them, where images are in [0, 1].
DAMAGES: dict[str, tuple[Callable[[Sequence[int]], Operator], float]] = {
    "few pixels": (lambda shape: SuperResolution(_factor(shape)), 0.0),
    "no colours": (lambda shape: Colorize(), 0.0),
    "blurred": (lambda shape: Blur.gaussian(1.0), 0.02),
    "noisy": (lambda shape: Mask(np.ones(shape[:2])), 0.1),
}


class Settings(NamedTuple):
    """What most tabs of the page ask for; as for `DiffusionModel.generate`."""

    label: str | int | None = None
    guidance: float | None = None
    steps: int = 20


class Playground:
    """Models by name, and the one thread that uses them.

    Args:
        sources: what there is to choose from, the first to begin with.
        load: makes a model of a source.
        limits: of each request.
        any_source: whether other sources may be named, too: paths on this machine.
    """

    def __init__(
        self,
        sources: Sequence[str],
        load: Callable[[str], DiffusionModel],
        limits: Limits | None = None,
        any_source: bool = True,
    ):
        self.sources, self.any_source = list(sources), any_source
        self.limits = limits or Limits()
        self.worker = Worker(self.limits.waiting)
        self._load, self._lock = load, threading.Lock()
        self._services: collections.OrderedDict[str, Service] = collections.OrderedDict()

    def service(self, source: str) -> Service:
        """Return a model by its source, read if need be.

        Raises:
            ValueError, OSError: there is none.
        """
        if source not in self.sources and not self.any_source:
            raise ValueError(f"no model {source!r} here: choose one of {self.sources}")
        with self._lock:
            if source not in self._services:
                model = self._load(source)
                if model.condition_shape is not None:
                    raise ValueError(
                        f"the model {source} makes images from images, for which there is no page"
                    )
                self._services[source] = Service(model, self.limits, self.worker)
            self._services.move_to_end(source)
            while len(self._services) > _KEPT:
                self._services.popitem(last=False)
            return self._services[source]

    def watch(
        self, source: str, asked: Asked
    ) -> Generator[tuple[np.ndarray, int, int], None, None]:
        """Yield (picture, step, seed) after each step of a walk, and at the end of the images
        themselves. Closed before that, the walk ends.
        """
        service = self.service(source)
        seen: queue.Queue[tuple[int, ImageArray]] = queue.Queue()
        job = service.submit(asked, lambda step, images: seen.put((step, images)))
        try:
            while not job.future.done():
                try:
                    step, images = seen.get(timeout=_LOOKING_SECONDS)
                except queue.Empty:
                    continue
                yield picture(images), step, -1
            made = job.future.result()
            steps = service.model.sampling_defaults.steps(asked.steps)
            yield picture(made.images), steps, made.seed
        finally:
            job.drop()

    def between(
        self, source: str, seeds: tuple[int, int], position: float, settings: Settings
    ) -> np.ndarray:
        """Return the picture at a place on the way from one latent to another, from 0 to 1."""
        model = self.service(source).model
        ends = [np.random.default_rng(seed).normal(size=model.image_shape) for seed in seeds]
        latents = slerp(ends[0], ends[1], np.array([position])).astype("float32")
        return self._made(
            1,
            settings,
            lambda job: model.decode(
                latents,
                settings.steps,
                labels=settings.label,
                guidance=settings.guidance,
                verbose=0,
                on_step=lambda step, images: job.check(),
            ),
        )

    def reconstruct(self, source: str, path: str, settings: Settings) -> np.ndarray:
        """Return an image as the model takes it, beside what it encodes and decodes it to."""
        model = self.service(source).model
        image = _read(model, path)

        def work(job: Job) -> Images:
            again = model.reconstruct(image, settings.steps, labels=settings.label, verbose=0)
            return np.concatenate([image, again])

        return self._made(1, settings, work)

    def vary(
        self, source: str, path: str, strength: float, number: int, seed: int, settings: Settings
    ) -> np.ndarray:
        """Return images like a given one, which is the first."""
        model = self.service(source).model
        image = _read(model, path)

        def work(job: Job) -> Images:
            others = model.variations(
                image[0],
                strength,
                number,
                settings.steps,
                labels=settings.label,
                guidance=settings.guidance,
                seed=seed,
                verbose=0,
            )
            return np.concatenate([image, others])

        return self._made(number, settings, work)

    def restore(
        self, source: str, path: str, damage: str, seed: int, settings: Settings
    ) -> np.ndarray:
        """Return what is known of a damaged image, beside an image that the model makes of it.

        Args:
            source: the model's.
            path: of the image.
            damage: one of `DAMAGES`.
            seed: fixes what is made up.
            settings: what else is asked for.
        """
        model = self.service(source).model
        if damage not in DAMAGES:
            raise ValueError(f"damage must be one of {list(DAMAGES)}, got {damage!r}")
        make, noise = DAMAGES[damage]
        operator = make(model.image_shape)
        operator.built(model.image_shape)  # refuses what does not fit
        image = _read(model, path)
        measured = operator(image)
        if measured.shape == image.shape:  # blurred or noisy already
            measured = image

        def work(job: Job) -> Images:
            made = model.restore(
                measured,
                operator,
                settings.steps,
                noise_level=noise,
                labels=settings.label,
                guidance=settings.guidance,
                seed=seed,
                verbose=0,
            )
            return np.concatenate([_as_large_as(measured, made), made])

        return self._made(1, settings, work)

    def inpaint(
        self, source: str, whole: Any, painted: np.ndarray, seed: int, settings: Settings
    ) -> np.ndarray:
        """Return an image, and the same with what was painted over filled in.

        Args:
            source: the model's.
            whole: a `PIL.Image`.
            painted: (height, width), as large as the image: above 0 where it was painted over.
            seed: fixes the filling.
            settings: what else is asked for.
        """
        model = self.service(source).model
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "whole.png")
            whole.save(path)
            image = _read(model, str(path))
        known = _cropped(painted, model.image_shape[:2]) == 0
        if known.all():
            raise ValueError("nothing is painted over: paint over what is to be filled in")

        def work(job: Job) -> Images:
            filled = model.inpaint(
                image,
                known,
                settings.steps,
                labels=settings.label,
                guidance=settings.guidance,
                seed=seed,
                verbose=0,
            )
            return np.concatenate([image * known[..., None], filled])

        return self._made(1, settings, work)

    def _made(self, number: int, settings: Settings, work: Callable[[Job], Images]) -> np.ndarray:
        self.limits.check(number, settings.steps)
        return picture(self.worker.submit(work, self.limits.seconds).future.result())

    def stop(self) -> None:
        """End, and drop what is asked for."""
        self.worker.stop()


def picture(images: Images) -> np.ndarray:
    """Lay images out, scaled up to be seen: uint8 (height, width, 3 or 4)."""
    across = int(np.ceil(np.sqrt(len(images)))) * images.shape[2]
    return plotting.image_grid(images, scale=max(1, _SHOWN // across))


def _read(model: DiffusionModel, path: str) -> ImageArray:
    if not path:
        raise ValueError("there is no image yet: drop one in")
    *size, channels = model.image_shape
    return np.asarray(read_images((pathlib.Path(path),), size, channels, fit="crop"))


def _factor(shape: Sequence[int]) -> int:
    return 4 if shape[0] % 4 == 0 and shape[1] % 4 == 0 else 2


def _as_large_as(measured: Images, images: Images) -> Images:
    """Measurements as images, to be seen beside others."""
    factor = images.shape[1] // measured.shape[1]
    shown = measured.repeat(factor, axis=1).repeat(factor, axis=2)
    return np.clip(np.broadcast_to(shown, images.shape), 0.0, 1.0)


def _cropped(painted: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A mask brought to a size as images are: its middle, what was touched in any of a pixel."""
    import PIL.Image
    import PIL.ImageOps

    whole = PIL.Image.fromarray(np.where(painted > 0, 255, 0).astype("uint8"))
    height, width = size
    return np.asarray(PIL.ImageOps.fit(whole, (width, height), PIL.Image.Resampling.BOX)) > 64
