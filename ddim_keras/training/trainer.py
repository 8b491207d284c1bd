"""Training by Keras's `fit`, with a moving average of the weights that is used for all
inference.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.networks.layers import ImageNormalization
from ddim_keras.samplers import DDIM
from ddim_keras.sampling.choices import EVEN_TIMES
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.threads import taking_turns
from ddim_keras.support import backend, random
from ddim_keras.support.arguments import positive_int, refuse_equal_names
from ddim_keras.support.keras_files import WholeFiles
from ddim_keras.support.types import ImageShape, Rates, Tensor, Times
from ddim_keras.training import preparing
from ddim_keras.training.monitoring import watching_what_exists
from ddim_keras.training.objective import Objective

_GOLDEN_RATIO = 0.6180339887498949


class EMATrainer(WholeFiles):
    """A denoising network, the moving average of its weights, and what Keras's trainer asks of a
    model.

    Args:
        network: what is trained: a model of [noisy images, noise levels].
        ema_network: the same with the same weights, which will follow it.
        image_shape: (height, width, channels).
        objective: what is minimised.
        ema_decay: how much of the averaged weights each step keeps, at most.
        seed: of the random numbers, or None.
        **kwargs: as for `keras.Model`.

    Attributes:
        engine: what uses the trained network.
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
        seed: int | None,
        **kwargs: Any,
    ):
        # The images enter as they are: casting them to the policy's half precision would come
        # before normalisation.
        super().__init__(autocast=False, **kwargs)
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(
                f"ema_decay must lie in [0, 1), got {ema_decay}: 1 would never follow the network"
            )
        self.image_shape = image_shape
        self.ema_decay = float(ema_decay)
        self.seed = seed
        self.network: Any = network
        self.ema_network: Any = ema_network
        self.ema_network.trainable = False
        self.ema_updates = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            name="ema_updates",
            aggregation="mean",
        )
        self.normalizer = ImageNormalization(name="normalizer")
        self.normalizer.build((None, *image_shape))
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.sampling_seed_generator = keras.random.SeedGenerator(seed)
        self.objective = objective
        self.noise_loss_tracker = objective.noise_losses
        self.image_loss_tracker = objective.image_losses
        self.loss_tracker = objective.losses
        self.gradient_norm_tracker: keras.metrics.Metric | None = None
        self.image_metrics: list[keras.metrics.Metric] = []
        self.metric_diffusion_steps = 5
        self.engine = Engine(
            ema_network,
            image_shape=image_shape,
            schedule=objective.schedule,
            parameterization=objective.parameterization,
            normalizer=self.normalizer,
            seeds=self.sampling_seed_generator,
            compute_dtype=self.compute_dtype,
            jit_compile=lambda: self.jit_compile,
            before_use=self.synchronize,
        )
        self.built = True

    def compile(
        self,
        optimizer: Any = "adamw",
        loss: Any = "mean_absolute_error",
        metrics: Sequence[Any] | None = None,
        *,
        metric_diffusion_steps: int = 5,
        gradient_norm: bool = False,
        jit_compile: bool | str = "auto",
        **kwargs: Any,
    ) -> None:
        """Configure the model for training.

        Args:
            optimizer: a Keras optimizer or its name.
            loss: a Keras loss, its name or a function (true, predicted) -> values, applied to what
                the network predicts.
            metrics: Keras metrics, or functions, that compare images: `update_state(real_images,
                generated_images)`, both (batch, height, width, channels) in [0, 1]. They are
                computed by `evaluate` and in `fit`'s validation, on as many generated images as
                real ones.
            metric_diffusion_steps: sampling steps of the images generated for `metrics`.
            gradient_norm: whether `fit` logs `gradient_norm`, the norm of a batch's gradients of
                all weights together, before any clipping: the epoch's mean.
            jit_compile: True compiles with XLA, False makes plain TensorFlow graphs, "auto" takes
                plain graphs on a CPU, where they measure faster, and XLA elsewhere. JAX always
                compiles unless False.
            **kwargs: `run_eagerly`, `steps_per_execution`, `auto_scale_loss`, as in
                `keras.Model.compile`.
        """
        # The loss compares what happens inside a step, not the model's output: Keras must not try
        # to build it on that.
        super().compile(
            optimizer=preparing.with_loss_scale(
                optimizer, self.dtype_policy, kwargs.get("auto_scale_loss", True)
            ),
            loss=None,
            jit_compile=jit_compile,
            **kwargs,
        )
        self.loss = self.objective.loss = keras.losses.get(loss)
        self.image_metrics = [
            preparing.as_metric(metric, bool(kwargs.get("run_eagerly"))) for metric in metrics or []
        ]
        self.gradient_norm_tracker = (
            keras.metrics.Mean(name="gradient_norm", dtype="float32") if gradient_norm else None
        )
        refuse_equal_names(self.metrics)
        self.metric_diffusion_steps = positive_int("metric_diffusion_steps", metric_diffusion_steps)
        self._compile_arguments = {
            "optimizer": optimizer,
            "loss": loss,
            "metrics": self.image_metrics,
            "metric_diffusion_steps": metric_diffusion_steps,
            "gradient_norm": gradient_norm,
            "jit_compile": jit_compile,
            **kwargs,
        }
        # Built here, its state can be loaded before the first step.
        self.optimizer.build(self.trainable_variables)

    def get_compile_config(self) -> dict[str, Any] | None:
        if not self.compiled:
            return None
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in self._compile_arguments.items()
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        arguments = {
            name: keras.saving.deserialize_keras_object(value)
            for name, value in config.items()
            if name != "metrics"
        }
        metrics = []
        for value in config.get("metrics", []):
            try:
                metrics.append(keras.saving.deserialize_keras_object(value))
            except (
                OSError,
                ImportError,
            ) as error:  # its extractor cannot be had here, but the model can
                warnings.warn(
                    f"the metric {value['config'].get('name')!r} was left out: {error}",
                    stacklevel=2,
                )
        self.compile(**arguments, metrics=metrics)

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

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train the model; as `keras.Model.fit`.

        A normalizer that was not adapted is first adapted to the data.

        Args:
            x: images: an array, a list of single images of one size, a `tf.data.Dataset` of
                batches, a generator, a `keras.utils.PyDataset`, or another iterable of a known
                number of batches, such as PyTorch's DataLoader. Batches are images, (images,
                labels), (images, labels, sample_weight), or dictionaries with "image" (or "images",
                "img", "pixel_values") and perhaps "label" (or "labels"). Images are float in [0, 1]
                or uint8, of the model's shape; what resizing overshot, by at most 0.02, is cut off.
                Labels serve `class_weight` alone.
            y: labels, if `x` is an array.
            batch_size, epochs, verbose, callbacks, validation_split, shuffle, initial_epoch,
                validation_batch_size: as in `keras.Model.fit`, and so are **kwargs. A callback of
                mode "auto" knows which way each logged figure is better.
            validation_data: like `x`, or (images, labels), or (images, labels, sample_weight).
            class_weight: how much images of a class count, {class: weight}; others count 1. Labels
                are integers or one-hot.
            sample_weight: (images,), how much each image counts, if `x` is an array: each image's
                loss is multiplied by it.
            steps_per_epoch, validation_steps: batches in an epoch and in its validation; needed for
                data that never end.

        Returns:
            The history, with n_loss, i_loss, loss (which training minimises) and their val_
            counterparts for each epoch.

        Raises:
            ValueError: the data are empty, not finite, out of range or of the wrong shape; they
                never end and no steps are given; weights do not fit; the validation has too few
                images for a compiled metric; or the normalizer would have to be adapted to a
                generator or an endless data set.
        """
        data = preparing.fit_data(
            x,
            y,
            sample_weight,
            self.image_shape,
            validation_data=validation_data,
            validation_split=validation_split,
            class_weight=class_weight,
            batch_size=batch_size,
            validation_batch_size=validation_batch_size,
            shuffle=shuffle,
            devices=backend.devices_of_a_batch(self),
        )
        if data.validation_data is not None:
            validated = data.validation_data[0]
            size = validation_batch_size or batch_size
            preparing.check_validation(
                validated,
                validation_steps,
                self.image_metrics,
                "validation_data",
                "validation_steps",
                size,
            )
        with preparing.input_errors():
            if not self.normalizer.adapted:
                preparing.adapt_normalizer(
                    self.normalizer, data.x, batch_size, steps_per_epoch, verbose
                )
            preparing.require_steps(data.x, steps_per_epoch, "x", "steps_per_epoch")
            watching = watching_what_exists(
                callbacks, self.image_metrics, data.validation_data is not None
            )
            with watching, taking_turns(self.engine, callbacks) as callbacks:
                return super().fit(
                    data.x,
                    data.y,
                    batch_size=batch_size,
                    epochs=epochs,
                    verbose=verbose,
                    callbacks=callbacks,
                    validation_data=data.validation_data,
                    # Keras would warn of its own default where the data bring their own order.
                    shuffle=shuffle and not inputs.brings_its_own_order(data.x),
                    sample_weight=data.sample_weight,
                    initial_epoch=initial_epoch,
                    steps_per_epoch=steps_per_epoch,
                    validation_steps=validation_steps,
                    validation_batch_size=validation_batch_size,
                    **kwargs,
                )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return n_loss and i_loss of the EMA network, `metrics`, and last the loss; as
        `keras.Model.evaluate`.

        Times and noises are fixed by the model's seed and by each image's place in `x`: the same
        weights and data give the same figures, whatever the batch size.

        Args:
            x, y, sample_weight: as for `fit`. Weights count for the losses, not for `metrics`.
            batch_size, verbose, steps, callbacks: as in `keras.Model.evaluate`.
            return_dict: whether to return the figures by name instead of a list.

        Returns:
            [n_loss, i_loss, figures of `metrics` ..., loss], or a dictionary of them.

        Raises:
            ValueError: as for `fit`, or the normalizer was not adapted.
        """
        preparing.require_adapted(self.normalizer, "evaluate")
        if x is not None and not kwargs.get(
            "_use_cached_eval_dataset"
        ):  # fit has checked its validation data already
            x, y, sample_weight = inputs.for_keras(
                x,
                y,
                sample_weight,
                self.image_shape,
                batch_size=batch_size,
                multiple=backend.devices_of_a_batch(self),
            )
            preparing.check_validation(x, steps, self.image_metrics, "x", "steps", batch_size)
        turns = taking_turns(self.engine, callbacks)
        with preparing.input_errors(), backend.keeping_state(self), turns as callbacks:
            found = super().evaluate(
                x,
                y,
                batch_size=batch_size,
                verbose=verbose,
                sample_weight=sample_weight,
                steps=steps,
                callbacks=callbacks,
                return_dict=True,
                **kwargs,
            )
        logs = {name: found[name] for name in ("n_loss", "i_loss")}
        for metric in self.image_metrics:
            result = metric.result()
            logs |= result if isinstance(result, dict) else {metric.name: float(result)}
        logs["loss"] = found["loss"]
        return logs if return_dict else list(logs.values())

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Take one gradient step on a batch of images, which are checked as by `fit`; as
        `keras.Model.train_on_batch`.
        """
        batch = inputs.for_keras(x, y, sample_weight, self.image_shape, class_weight=class_weight)
        return super().train_on_batch(*batch, return_dict=return_dict)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Evaluate one batch of images, which are checked as by `fit`; as
        `keras.Model.test_on_batch`.
        """
        batch = inputs.for_keras(x, y, sample_weight, self.image_shape)
        return super().test_on_batch(*batch, return_dict=return_dict)

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the running losses. The image metrics, which may take seconds, `evaluate` adds
        once at its end.
        """
        return self.training_logs()

    def train_step(self, *arguments: Any) -> Any:
        """One gradient step and one update of the EMA network; called by `fit`."""
        return backend.train_step(self, *arguments)

    def test_step(self, *arguments: Any) -> Any:
        """One evaluation step on the EMA network; called by `evaluate`."""
        return backend.test_step(self, *arguments)

    def training_loss(self, data: Any) -> Tensor:
        """Return the scalar to minimise for a batch, and update the trackers of n_loss, i_loss and
        loss.

        It is the mean over the batch of each image's loss, times its sample weight if it has one.
        Where the batch is divided among replicas, it is this one's share of that mean.
        """
        batch = inputs.taken_apart(data)
        images = self.normalizer(batch.images)
        noises = keras.random.normal(ops.shape(images), dtype="float32", seed=self.seed_generator)
        times = self.objective.schedule.training_times(
            self._stratified_uniform(ops.shape(images)[0])
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
        )
        if counted is None and backend.replica()[1] == 1:
            return ops.mean(losses)
        number = ops.sum(ops.ones_like(losses) if counted is None else counted)
        return ops.sum(losses) / ops.maximum(backend.sum_over_replicas(number), 1.0)

    def track_gradients(self, gradients: list, scale: Any) -> None:
        """Take gradients, which are `scale` times too large, into the running `gradient_norm`, if
        one was compiled.
        """
        if self.gradient_norm_tracker is None:
            return
        squares = [
            ops.sum(ops.square(ops.cast(part, "float32"))) for part in gradients if part is not None
        ]
        norm = ops.sqrt(sum(squares)) / scale
        # Half precision overflows now and then; the optimizer leaves such a step out.
        finite = ops.isfinite(norm)
        self.gradient_norm_tracker.update_state(
            ops.where(finite, norm, 0.0), sample_weight=ops.cast(finite, "float32")
        )

    def training_logs(self) -> dict[str, Any]:
        """Return the running n_loss, i_loss and loss, and gradient_norm if it was compiled."""
        logs = self.evaluation_losses()
        if self.gradient_norm_tracker is not None:
            logs["gradient_norm"] = self.gradient_norm_tracker.result()
        return logs

    def evaluation_losses(self) -> dict[str, Any]:
        """Return the running n_loss, i_loss and loss."""
        return self.objective.results()

    def evaluation_logs(self, data: Any) -> dict[str, Any]:
        """Update and return all metrics for a batch, on the EMA network."""
        batch = inputs.taken_apart(data)
        unit_images = inputs.as_unit_range(batch.images)
        images = self.normalizer(unit_images)
        # Each image's place in the data set: the tracker has counted those before it.
        first = ops.cast(self.loss_tracker.images, "int32")
        replica, replicas = backend.replica()  # each has counted its own images only
        places = (first + ops.arange(ops.shape(images)[0], dtype="int32")) * replicas + replica
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
        )
        if self.image_metrics:
            noises = random.normal(self._evaluation_seed, 1, places, self.image_shape)
            steps, memory = self.metric_diffusion_steps, self.engine.no_memory(noises)
            _, planned = self.engine.plan(DDIM(), steps, EVEN_TIMES, None)
            generated, _, _ = self.engine.walk_on_device(
                (), noises, memory, planned.table, 0, steps, self._evaluation_seed, places
            )
            generated = self.normalizer.denormalize(generated)
            # Only filled batches say which images count: a metric of the user's need not take
            # weights otherwise.
            which = {"sample_weight": counted} if backend.devices_of_a_batch(self) > 1 else {}
            for metric in self.image_metrics:
                metric.update_state(unit_images, generated, **which)
        return self.evaluation_losses()

    def synchronize(self) -> None:
        """On JAX, `fit` holds the weights outside the model: bring them back, as is needed in a
        callback.
        """
        if self.compiled and backend.BACKEND_HOLDS_WEIGHTS:
            with self.engine.lock:
                self.jax_state_sync()

    def update_ema(self) -> None:
        """Move the EMA network's weights, normalisation statistics included, towards the
        network's.
        """
        updates = self.ema_updates + 1.0
        decay = ops.minimum(self.ema_decay, (1.0 + updates) / (10.0 + updates))
        self.ema_updates.assign(updates)
        for average, weight in zip(self.ema_network.weights, self.network.weights):
            average.assign(average + (1.0 - ops.cast(decay, average.dtype)) * (weight - average))

    def diffusion_schedule(self, diffusion_times: Times) -> tuple[Rates, Rates]:
        """Return (noise_rates, signal_rates), in this order, at diffusion times in [0, 1], shaped
        as they are.
        """
        signal_rates, noise_rates = self.objective.schedule(
            ops.convert_to_tensor(diffusion_times, dtype="float32")
        )
        return noise_rates, signal_rates

    def _stratified_uniform(self, batch_size: Tensor) -> Tensor:
        """Draw numbers in [0, 1), shape (batch, 1, 1, 1): one in each of `batch_size` equal parts
        (Kingma et al. 2021).
        """
        offset = keras.random.uniform((), dtype="float32", seed=self.seed_generator)
        places = ops.cast(ops.arange(batch_size, dtype="int32"), "float32") / ops.cast(
            batch_size, "float32"
        )
        return ops.reshape(ops.mod(offset + places, 1.0), (-1, 1, 1, 1))

    @property
    def _evaluation_seed(self) -> int:
        return self.seed or 0

    def _get_jax_state(self, **parts: bool) -> Any:
        """Called by Keras's JAX trainer as it takes the state out of the model: keep it, for when
        the first step fails.
        """
        state = super()._get_jax_state(**parts)
        self._jax_state = backend.named_state(state, parts)
        return state
