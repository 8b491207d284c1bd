"""What a step of training or evaluation does with a batch of images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.networks.layers import ImageNormalization
from ddim_keras.samplers import DDIM, FittedSampler, Sampler
from ddim_keras.sampling.choices import EVEN_TIMES
from ddim_keras.sampling.conditioning import Told
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.guidance import guidances
from ddim_keras.support import backend, random, replicas
from ddim_keras.support.configurable import resolve
from ddim_keras.support.types import Config, Data, ImageShape, Logs, Tensor
from ddim_keras.support.version import FIRST_VERSION, is_of_first_version
from ddim_keras.training.ema_networks import EMANetworks
from ddim_keras.training.objective import Objective

_GOLDEN_RATIO = 0.6180339887498949
PIXELS = ("measured", "symmetric")


class EMASteps(EMANetworks):
    """What Keras's trainer asks of a model of images: the losses of a batch, and its metrics.

    Args:
        network: what is trained: a model of [noisy images, noise levels].
        ema_network: the same with the same weights, which will follow it.
        image_shape: (height, width, channels).
        objective: what is minimised.
        ema_decay: how much of the averaged weights each step keeps, at most.
        condition_noise: the largest standard deviation of the noise that is put on conditions in
            training; each image's is drawn between 0 and this.
        pixels: "measured" or "symmetric", how the normalizer scales images.
        sampling_defaults: what the verbs take where their caller does not say.
        seed: of the random numbers, or None.
        **kwargs: as for `keras.Model`.

    Attributes:
        engine: what uses the trained network.
        teacher: the network that it learns from, where the objective has one.
        weaker: the network that it learns to differ from, where the objective has one.
        normalizer: turns images in [0, 1] into zero mean and unit variance.
    """

    def __init__(
        self,
        network: keras.Model,
        ema_network: keras.Model,
        *,
        image_shape: ImageShape,
        objective: Objective,
        ema_decay: float,
        condition_noise: float,
        pixels: str,
        sampling_defaults: SamplingDefaults | Config | None,
        seed: int | None,
        **kwargs: Any,
    ):
        super().__init__(
            network,
            ema_network,
            schedule=objective.schedule,
            ema_decay=ema_decay,
            seed=seed,
            **kwargs,
        )
        self.image_shape = image_shape
        self.condition_noise = float(condition_noise)
        self.normalizer, self.pixels = _normalizer(image_shape, pixels), pixels
        self.objective, self.parameterization = objective, objective.parameterization
        self.loss_weighting = objective.loss_weighting
        self.loss_tracker = objective.losses
        self.image_metrics: list[keras.metrics.Metric] = []
        self.metric_diffusion_steps = 5
        self.engine = Engine(
            ema_network,
            image_shape=image_shape,
            schedule=objective.schedule,
            parameterization=objective.parameterization,
            spec=objective.spec,
            normalizer=self.normalizer,
            seeds=self.sampling_seed_generator,
            compute_dtype=self.compute_dtype,
            jit_compile=lambda: self.jit_compile,
            before_use=self.synchronize,
        )
        self.sampling_defaults = sampling_defaults  # type: ignore[assignment]
        objective.take_teachers(ema_network, self.engine)
        self.teacher, self.weaker = objective.teacher, objective.weaker
        self.built = True

    @classmethod
    def from_config(cls, config: Config, custom_objects: dict | None = None) -> EMASteps:
        model = super().from_config(config, custom_objects)
        if is_of_first_version(config):
            model.sampling_defaults = SamplingDefaults(version=FIRST_VERSION)
        return model

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """What `generate` takes where its caller does not say. Can be set."""
        return self.engine.defaults

    @sampling_defaults.setter
    def sampling_defaults(self, defaults: SamplingDefaults | Config | None) -> None:
        chosen = SamplingDefaults() if defaults is None else defaults
        chosen = resolve(chosen, SamplingDefaults, {})
        for part in guidances(chosen.guidance):
            part.wrapper(self.engine)  # refuses what the model was not trained for
        self.engine.defaults = chosen

    @property
    def samplers(self) -> list[FittedSampler]:
        """The fitted samplers that `generate` chooses for their numbers of steps, a part of
        `sampling_defaults`. Can be set.
        """
        return self.engine.defaults.samplers

    @samplers.setter
    def samplers(self, samplers: Sequence[FittedSampler]) -> None:
        if not isinstance(samplers, (list, tuple)):
            raise ValueError(
                f"samplers must be a list of FittedSampler objects, such as model.samplers + "
                f"[sampler], got {samplers!r}"
            )
        self.engine.defaults.samplers = [resolve(each, FittedSampler, {}) for each in samplers]

    @property
    def noise_loss_tracker(self) -> keras.metrics.Metric:
        """The running n_loss. Can be set, as the Keras example's `compile` does."""
        return self.objective.noise_losses

    @noise_loss_tracker.setter
    def noise_loss_tracker(self, tracker: keras.metrics.Metric) -> None:
        self.objective.noise_losses = tracker

    @property
    def image_loss_tracker(self) -> keras.metrics.Metric:
        """The running i_loss. Can be set, as the Keras example's `compile` does."""
        return self.objective.image_losses

    @image_loss_tracker.setter
    def image_loss_tracker(self, tracker: keras.metrics.Metric) -> None:
        self.objective.image_losses = tracker

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        gradient_norm = [] if self.gradient_norm_tracker is None else [self.gradient_norm_tracker]
        return [
            self.noise_loss_tracker,
            self.image_loss_tracker,
            *gradient_norm,
            *self.image_metrics,
            self.loss_tracker,
        ]

    @property
    def metrics_variables(self) -> list[keras.Variable]:
        variables = super().metrics_variables
        for tracker in self._left_out():
            variables.extend(tracker.variables)
        return variables

    def reset_metrics(self) -> None:
        super().reset_metrics()
        for tracker in self._left_out():
            tracker.reset_state()

    def _left_out(self) -> list[keras.metrics.Metric]:
        """The trackers that a subclass's `metrics` leaves out: they count all the same."""
        objective, named = self.objective, {*map(id, self.metrics)}
        trackers = objective.noise_losses, objective.image_losses, objective.losses
        return [tracker for tracker in trackers if id(tracker) not in named]

    def get_metrics_result(self) -> Logs:
        """Return the running losses. The image metrics, which may take seconds, `evaluate` adds
        once at its end.
        """
        return self.training_logs()

    def training_loss(self, data: Data) -> Tensor:
        """Return the scalar to minimise for a batch, and update the trackers of n_loss, i_loss and
        loss.

        It is the mean over the batch of each image's loss, times its sample weight if it has one.
        Where the batch is divided among replicas, it is this one's share of that mean.
        """
        batch = inputs.handed_by_keras(data)
        images = self.normalizer(batch.images)
        shape = (ops.shape(images)[0], *self.image_shape)
        noises = replicas.normal(shape, self.seed_generator)
        times = self.objective.schedule.training_times(
            self._stratified_uniform(shape[0], batch.sample_weight)
        )
        noise_rates, signal_rates = self.diffusion_schedule(times)
        losses, counted = self.objective.measure(
            self.network,
            images,
            noises,
            signal_rates,
            noise_rates,
            batch.sample_weight,
            training=True,
            told=self._told_in_training(batch),
        )
        if counted is None and backend.replica()[1] == 1:
            return ops.mean(losses)
        number = ops.sum(ops.ones_like(losses) if counted is None else counted)
        return ops.sum(losses) / ops.maximum(backend.sum_over_replicas(number), 1.0)

    def _told(self, batch: inputs.Batch) -> dict[str, Tensor]:
        """What the network is told of a batch besides the noise level, as it takes it."""
        told: dict[str, Tensor] = {}
        if batch.labels is not None and self.objective.spec.takes_labels:
            told["labels"] = ops.cast(batch.labels, "int32")
        if batch.condition is not None:
            told["condition"] = self.objective.spec.scaled(batch.condition)
        return told

    def _told_in_training(self, batch: inputs.Batch) -> dict[str, Tensor]:
        """As `_told`, now and then without, and with noise on the condition where asked for."""
        spec, told = self.objective.spec, self._told(batch)
        number = ops.shape(batch.images)[0]

        def without(share: float) -> Tensor:
            return replicas.uniform((number,), self.seed_generator) < share

        if "condition" in told and self.condition_noise:
            shape = (number, *told["condition"].shape[1:])
            levels = replicas.uniform((number, *(1,) * (len(shape) - 1)), self.seed_generator)
            noises = replicas.normal(shape, self.seed_generator)
            told["condition"] = told["condition"] + self.condition_noise * levels * noises
        if "labels" in told and spec.label_dropout:
            nothing = spec.null_labels(number)
            told["labels"] = ops.where(without(spec.label_dropout), nothing, told["labels"])
        if "condition" in told and spec.condition_dropout:
            keep = ops.logical_not(without(spec.condition_dropout))
            keep = ops.reshape(keep, (-1, *(1,) * (len(told["condition"].shape) - 1)))
            told["condition"] = told["condition"] * ops.cast(keep, "float32")
        return told

    def training_logs(self) -> Logs:
        """Return the running n_loss, i_loss and loss, and gradient_norm if it was compiled."""
        logs = self.evaluation_losses()
        if self.gradient_norm_tracker is not None:
            logs["gradient_norm"] = self.gradient_norm_tracker.result()
        return logs

    def evaluation_losses(self) -> Logs:
        """Return the running n_loss, i_loss and loss."""
        return self.objective.results()

    def evaluation_logs(self, data: Data) -> Logs:
        """Update and return all metrics for a batch, on the EMA network."""
        batch = inputs.handed_by_keras(data)
        unit_images = inputs.as_unit_range(batch.images)
        images = self.normalizer(unit_images)
        # Each image's place in the data set: the tracker has counted those before it.
        places = replicas.places(self.loss_tracker.images, ops.shape(images)[0])
        noises = random.normal(self._evaluation_seed, 0, places, self.image_shape)
        # Multiples of the golden ratio spread evenly over [0, 1), wherever they are cut off.
        uniform = ops.mod((ops.cast(places, "float32") + 0.5) * _GOLDEN_RATIO, 1.0)
        times = ops.reshape(self.objective.schedule.training_times(uniform), (-1, 1, 1, 1))
        noise_rates, signal_rates = self.diffusion_schedule(times)
        _, counted = self.objective.measure(
            self.ema_network,
            images,
            noises,
            signal_rates,
            noise_rates,
            batch.sample_weight,
            training=False,
            told=self._told(batch),
        )
        if self.image_metrics:
            noises = random.normal(self._evaluation_seed, 1, places, self.image_shape)
            steps, memory = self.metric_diffusion_steps, self.engine.no_memory(noises)
            sampler = self._sampler_of_metrics()
            _, planned = self.engine.plan(sampler, steps, sampler.spacing or EVEN_TIMES, None)
            noises = planned.started(noises)
            wrappers = [Told(self.engine, batch.labels, batch.condition)]
            numbers = (planned.table, 0, steps, self._evaluation_seed, places)
            generated, _, _ = self.engine.walk_on_device(
                wrappers, noises, memory, *numbers, [wrapper.arrays for wrapper in wrappers]
            )
            generated = self.normalizer.denormalize(generated)
            # Only filled batches say which images count: a metric of the user's need not take
            # weights otherwise.
            which = {"sample_weight": counted} if backend.devices_of_a_batch(self) > 1 else {}
            for metric in self.image_metrics:
                with _saying_what_it_lacks(metric, unit_images.shape[0]):
                    metric.update_state(unit_images, generated, **which)
        return self.evaluation_losses()

    def _sampler_of_metrics(self) -> Sampler:
        """DDIM; of a model that was taught to walk by a sampler of its own, that."""
        distillation = getattr(self.objective, "distillation", None)
        own: FittedSampler | None = getattr(distillation, "own", None)
        if own is not None and own.diffusion_steps == self.metric_diffusion_steps:
            return own
        return DDIM()


@contextlib.contextmanager
def _saying_what_it_lacks(metric: keras.metrics.Metric, number: int | None) -> Iterator[None]:
    """Within, errors of a metric say that a graph does not know the number of images in a batch,
    where the last one is smaller: metrics like the Keras example's calculate with it.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if number is not None:
            raise
        raise ValueError(
            f"the metric {metric.name!r} fails on batches of which the last may be smaller "
            f"({error}): if its code takes images.shape[0], which is None then, batch with "
            "drop_remainder=True, or let it take keras.ops.shape(images)[0]"
        ) from error


def _normalizer(image_shape: ImageShape, pixels: str) -> ImageNormalization:
    """Return what brings images to the network's range, adapted already if that is fixed."""
    if pixels not in PIXELS:
        raise ValueError(f"pixels must be one of {list(PIXELS)}, got {pixels!r}")
    normalizer = ImageNormalization(name="normalizer")
    normalizer.build((None, *image_shape))
    if pixels == "symmetric":
        normalizer.fix(mean=0.5, deviation=0.5)
    return normalizer
