"""`DiffusionModel`: the one object a user holds."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras import presets, sampling
from ddim_keras.data import inputs
from ddim_keras.diffusion.parameterizations import PARAMETERIZATIONS, Parameterization
from ddim_keras.diffusion.schedules import SCHEDULES, Schedule
from ddim_keras.diffusion.weightings import WEIGHTINGS, Weighting
from ddim_keras.metrics import scoring
from ddim_keras.networks.layers import ImageNormalization
from ddim_keras.networks.unet import residual_unet
from ddim_keras.samplers import DDIM, Conditions
from ddim_keras.sampling.choices import EVEN_TIMES, check_noise_end
from ddim_keras.sampling.denoisers import network_denoiser, predict
from ddim_keras.sampling.engine import Engine
from ddim_keras.sampling.threads import taking_turns
from ddim_keras.sampling.verbs import verb
from ddim_keras.support import backend, files, random
from ddim_keras.support.arguments import height_and_width, integer, positive_int, refuse_equal_names
from ddim_keras.support.configurable import resolve

_GOLDEN_RATIO = 0.6180339887498949
_LARGEST_SIGNAL_AT_NOISE_END = 0.25
_NOT_A_FUNCTION = (
    "a DiffusionModel {what}: model.generate(num_images) makes images, model.denoise(noisy_images, noise_rates, signal_rates) "
    "splits noisy ones into noises and images, and model.ema_network([noisy_images, noise_variances]) is the network alone"
)


@keras.saving.register_keras_serializable("ddim_keras")
class DiffusionModel(keras.Model):
    """A denoising diffusion implicit model (Song, Meng & Ermon, ICLR 2021).

    The defaults are the values of the Keras DDIM example.

    Args:
        image_size: side of the square images in pixels, or (height, width). Each must be divisible by
            2**(len(widths) - 1).
        widths: channels of the U-Net's levels, from the full resolution down.
        block_depth: residual blocks per level, on the way down and on the way up.
        channels: channels of the images: 1 for grayscale, 3 for RGB, 4 for RGBA, or any other count.
        schedule: a `Schedule` or its name: continuous "angle", "linear_noise_power" or "linear_log_snr"; of T = 1000 times
            "linear_beta" (DDPM's), "scaled_linear_beta", "cosine_beta" or "zero_terminal_snr".
        parameterization: what the network predicts: "noise", "image", "velocity" or a `Parameterization`.
        loss_weighting: "uniform", "min_snr", "sigmoid" or a `Weighting`.
        embedding_dims: features of the sinusoidal embedding of the noise variance (or, with T times, of the time), even.
        embedding_max_frequency: highest frequency of that embedding, in periods over the whole range.
        conditioning: "input" joins the embedding to every pixel of the network's input; "every_block" adds it within every
            residual block.
        normalization: "batch" or "group".
        attention_levels: levels, counted from 0 at the full resolution, with self-attention over the pixels.
        patch_size: p: the network works on patches of p x p pixels, at 1/p of the size and so p * p times as fast.
            `image_size` must then be divisible by p times as much.
        ema_decay: how much of the averaged weights each training step keeps, in [0, 1). It warms up: step n uses
            min(ema_decay, (1 + n) / (10 + n)), so that short trainings sample from good weights too.
        seed: integer in [0, 2**32) that fixes the random numbers of training, evaluation and unseeded `generate`; None draws one.
            Two runs are identical on one machine after `keras.utils.set_random_seed`, which fixes the initial weights.
        network: a `keras.Model` of [noisy images, noise variances (batch, 1, 1, 1)] to use instead of the residual
            U-Net; with a schedule of T times, of [noisy images, times], which are the integers 1 to T. Its output has the
            shape of the noisy images. `widths` and what else describes the residual U-Net are then unused.
        dtype: Keras dtype policy of the network, such as "mixed_bfloat16". Rates, losses and the samplers' arithmetic are
            float32 whatever it is.
        name: name of the model.

    Attributes:
        normalizer: turns images in [0, 1] into zero mean and unit variance; `normalizer.adapt(dataset)` measures both.
        network: the trained network.
        ema_network: the moving average of its weights, used for all inference.

    Raises:
        ValueError: an argument out of its range, or a size that the levels cannot halve.

    Examples:

    >>> model = DiffusionModel(image_size=8, widths=[8, 16], block_depth=1)
    >>> model.generate(num_images=2, diffusion_steps=3, seed=0).shape
    (2, 8, 8, 3)
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        widths: Sequence[int] = (32, 64, 96, 128),
        block_depth: int = 2,
        *,
        channels: int = 3,
        schedule: str | Schedule | dict = "angle",
        parameterization: str | Parameterization | dict = "noise",
        loss_weighting: str | Weighting | dict = "uniform",
        embedding_dims: int = 32,
        embedding_max_frequency: float = 1000.0,
        conditioning: str = "input",
        normalization: str = "batch",
        attention_levels: Sequence[int] = (),
        patch_size: int = 1,
        ema_decay: float = 0.999,
        seed: int | None = None,
        network: Any = None,
        dtype: Any = None,
        name: str | None = None,
    ):
        # The images enter as they are: casting them to the policy's half precision would come before normalisation.
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.image_shape = (*height_and_width(image_size), positive_int("channels", channels))
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}: 1 would never follow the network")
        self.widths = [int(width) for width in widths]
        self.block_depth = block_depth
        self.embedding_dims = embedding_dims
        self.embedding_max_frequency = float(embedding_max_frequency)
        self.conditioning = conditioning
        self.normalization = normalization
        self.attention_levels = [int(level) for level in attention_levels]
        self.patch_size = patch_size
        self.ema_decay = float(ema_decay)
        self.seed = None if seed is None else integer("seed", seed, minimum=0, below=2**32)
        self.schedule = resolve(schedule, Schedule, SCHEDULES)
        self.parameterization = resolve(parameterization, Parameterization, PARAMETERIZATIONS)
        self.loss_weighting = resolve(loss_weighting, Weighting, WEIGHTINGS)

        check_noise_end(self.schedule, self.parameterization)
        if (left := float(self.schedule(np.array([1.0]))[0][0])) > _LARGEST_SIGNAL_AT_NOISE_END:
            warnings.warn(
                f"{self.schedule!r} ends with a signal rate of {left:.2g}, but sampling starts from noise alone: let it end "
                "nearer to 0 (a lower min_signal_rate, or larger betas for fewer times)",
                stacklevel=2,
            )

        self._custom_network = network is not None
        if isinstance(network, dict):
            network = keras.saving.deserialize_keras_object(network)
        self.network: Any = network or self._make_network("network")
        _check_network(self.network, self.image_shape)
        # Made anew or cloned, it has fresh random weights, which the average would drag along for thousands of steps.
        self.ema_network: Any = keras.models.clone_model(network) if network else self._make_network("ema_network")
        self.ema_network.set_weights(self.network.get_weights())
        self.ema_network.trainable = False
        self.ema_updates = self.add_weight(
            shape=(), initializer="zeros", dtype="float32", trainable=False, name="ema_updates", aggregation="mean"
        )

        self.normalizer = ImageNormalization(name="normalizer")
        self.normalizer.build((None, *self.image_shape))
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.sampling_seed_generator = keras.random.SeedGenerator(seed)
        # Whatever Keras's floatx is: 16 bits could not count the images.
        self.noise_loss_tracker = keras.metrics.Mean(name="n_loss", dtype="float32")
        self.image_loss_tracker = keras.metrics.Mean(name="i_loss", dtype="float32")
        self.loss_tracker = LossTracker(name="loss", dtype="float32")
        self.gradient_norm_tracker: keras.metrics.Metric | None = None
        self.image_metrics: list[keras.metrics.Metric] = []
        self.metric_diffusion_steps = 5
        self.engine = Engine(
            self.ema_network,
            image_shape=self.image_shape,
            schedule=self.schedule,
            parameterization=self.parameterization,
            normalizer=self.normalizer,
            seeds=self.sampling_seed_generator,
            compute_dtype=self.compute_dtype,
            jit_compile=lambda: self.jit_compile,
            before_use=self.synchronize,
        )
        self.built = True

    generate = verb(sampling.generate)
    encode = verb(sampling.encode)
    decode = verb(sampling.decode)
    reconstruct = verb(sampling.reconstruct)
    interpolate = verb(sampling.interpolate)
    interpolate_grid = verb(sampling.interpolate_grid)
    variations = verb(sampling.variations)
    inpaint = verb(sampling.inpaint)
    score = verb(scoring.score_generated)
    reverse_diffusion = verb(sampling.reverse_diffusion)

    # Training

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
            loss: a Keras loss, its name or a function (true, predicted) -> values, applied to what the network predicts.
            metrics: Keras metrics, or functions, that compare images: `update_state(real_images, generated_images)`, both
                (batch, height, width, channels) in [0, 1]. They are computed by `evaluate` and in `fit`'s validation, on
                as many generated images as real ones.
            metric_diffusion_steps: sampling steps of the images generated for `metrics`.
            gradient_norm: whether `fit` logs `gradient_norm`, the norm of a batch's gradients of all weights together, before any
                clipping: the epoch's mean.
            jit_compile: True compiles with XLA, False makes plain TensorFlow graphs, "auto" takes plain graphs on a CPU,
                where they measure faster, and XLA elsewhere. JAX always compiles unless False.
            **kwargs: `run_eagerly`, `steps_per_execution`, `auto_scale_loss`, as in `keras.Model.compile`.
        """
        # The loss compares what happens inside a step, not the model's output: Keras must not try to build it on that.
        super().compile(
            optimizer=_with_loss_scale(optimizer, self.dtype_policy, kwargs.get("auto_scale_loss", True)),
            loss=None,
            jit_compile=jit_compile,
            **kwargs,
        )
        self.loss = keras.losses.get(loss)
        self.image_metrics = [_as_metric(metric, bool(kwargs.get("run_eagerly"))) for metric in metrics or []]
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
        return {name: keras.saving.serialize_keras_object(value) for name, value in self._compile_arguments.items()}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        importlib.import_module("ddim_keras.optimizers")  # Keras knows only what was imported
        arguments = {
            name: keras.saving.deserialize_keras_object(value) for name, value in config.items() if name != "metrics"
        }
        metrics = []
        if config.get("metrics"):
            importlib.import_module("ddim_keras.metrics")
        for value in config.get("metrics", []):
            try:
                metrics.append(keras.saving.deserialize_keras_object(value))
            except (OSError, ImportError) as error:  # its extractor cannot be had here, but the model can
                warnings.warn(f"the metric {value['config'].get('name')!r} was left out: {error}", stacklevel=2)
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
            x: images: an array, a list of single images of one size, a `tf.data.Dataset` of batches, a generator, a
                `keras.utils.PyDataset`, or another iterable of a known number of batches, such as PyTorch's DataLoader. Batches
                are images, (images, labels), (images, labels, sample_weight), or dictionaries with "image" (or "images", "img",
                "pixel_values") and perhaps "label" (or "labels"). Images are float in [0, 1] or uint8, of the model's
                shape; what resizing overshot, by at most 0.02, is cut off. Labels serve `class_weight` alone.
            y: labels, if `x` is an array.
            batch_size, epochs, verbose, callbacks, validation_split, shuffle, initial_epoch, validation_batch_size: as in
                `keras.Model.fit`, and so are **kwargs. A callback of mode "auto" knows which way each logged figure is better.
            validation_data: like `x`, or (images, labels), or (images, labels, sample_weight).
            class_weight: how much images of a class count, {class: weight}; others count 1. Labels are integers or one-hot.
            sample_weight: (images,), how much each image counts, if `x` is an array: each image's loss is multiplied by it.
            steps_per_epoch, validation_steps: batches in an epoch and in its validation; needed for data that never end.

        Returns:
            The history, with n_loss, i_loss, loss (which training minimises) and their val_ counterparts for each epoch.

        Raises:
            ValueError: the data are empty, not finite, out of range or of the wrong shape; they never end and no steps are
                given; weights do not fit; the validation has too few images for a compiled metric; or the normalizer would
                have to be adapted to a generator or an endless data set.
        """
        if x is None:
            raise ValueError("fit needs images: got None for x")
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = inputs.split(x, y, sample_weight, validation_split)
        devices = backend.devices_of_a_batch(self)
        x, y, sample_weight = inputs.for_keras(
            x,
            y,
            sample_weight,
            self.image_shape,
            class_weight=class_weight,
            batch_size=batch_size,
            shuffle=shuffle,
            multiple=devices,
        )
        if validation_data is not None:
            images, labels, weights = inputs.parts_of(validation_data)
            validation_data = inputs.for_keras(
                images,
                labels,
                weights,
                self.image_shape,
                batch_size=validation_batch_size or batch_size,
                multiple=devices,
            )
            self._check_validation(validation_data[0], validation_steps, "validation_data", "validation_steps")
        with _input_errors():
            if not self.normalizer.adapted:
                self._adapt_normalizer(x, batch_size, steps_per_epoch, verbose)
            _require_steps(x, steps_per_epoch, "x", "steps_per_epoch")
            watched = self._monitoring_what_exists(callbacks, validation_data is not None)
            with watched, taking_turns(self.engine, callbacks) as callbacks:
                return super().fit(
                    x,
                    y,
                    batch_size=batch_size,
                    epochs=epochs,
                    verbose=verbose,
                    callbacks=callbacks,
                    validation_data=validation_data,
                    # Keras would warn of its own default where the data bring their own order.
                    shuffle=shuffle and not inputs.brings_its_own_order(x),
                    sample_weight=sample_weight,
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
        """Return n_loss and i_loss of the EMA network, `metrics`, and last the loss; as `keras.Model.evaluate`.

        Times and noises are fixed by the model's seed and by each image's place in `x`: the same weights and data give
        the same figures, whatever the batch size.

        Args:
            x, y, sample_weight: as for `fit`. Weights count for the losses, not for `metrics`.
            batch_size, verbose, steps, callbacks: as in `keras.Model.evaluate`.
            return_dict: whether to return the figures by name instead of a list.

        Returns:
            [n_loss, i_loss, figures of `metrics` ..., loss], or a dictionary of them.

        Raises:
            ValueError: as for `fit`, or the normalizer was not adapted.
        """
        self._require_adapted("evaluate")
        if x is not None and not kwargs.get("_use_cached_eval_dataset"):  # fit has checked its validation data already
            x, y, sample_weight = inputs.for_keras(
                x,
                y,
                sample_weight,
                self.image_shape,
                batch_size=batch_size,
                multiple=backend.devices_of_a_batch(self),
            )
            self._check_validation(x, steps, "x", "steps")
        turns = taking_turns(self.engine, callbacks)
        with _input_errors(), backend.keeping_state(self), turns as callbacks:
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

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the running losses. The image metrics, which may take seconds, `evaluate` adds once at its end."""
        return self.training_logs()

    def train_step(self, *arguments: Any) -> Any:
        """One gradient step and one update of the EMA network; called by `fit`."""
        return backend.train_step(self, *arguments)

    def test_step(self, *arguments: Any) -> Any:
        """One evaluation step on the EMA network; called by `evaluate`."""
        return backend.test_step(self, *arguments)

    def training_loss(self, data: Any) -> Any:
        """Return the scalar to minimise for a batch, and update the trackers of n_loss, i_loss and loss.

        It is the mean over the batch of each image's loss, times its sample weight if it has one. Where the batch is
        divided among replicas, it is this one's share of that mean.
        """
        batch = inputs.taken_apart(data)
        images = self.normalizer(batch.images)
        noises = keras.random.normal(ops.shape(images), dtype="float32", seed=self.seed_generator)
        diffusion_times = self.schedule.training_times(self._stratified_uniform(ops.shape(images)[0]))
        losses, counted = self._track_losses(images, noises, diffusion_times, batch.sample_weight, training=True)
        if counted is None and backend.replica()[1] == 1:
            return ops.mean(losses)
        number = ops.sum(ops.ones_like(losses) if counted is None else counted)
        return ops.sum(losses) / ops.maximum(backend.sum_over_replicas(number), 1.0)

    def track_gradients(self, gradients: list, scale: Any) -> None:
        """Take gradients, which are `scale` times too large, into the running `gradient_norm`, if one was compiled."""
        if self.gradient_norm_tracker is None:
            return
        squares = [ops.sum(ops.square(ops.cast(part, "float32"))) for part in gradients if part is not None]
        norm = ops.sqrt(sum(squares)) / scale
        # Half precision overflows now and then; the optimizer leaves such a step out.
        finite = ops.isfinite(norm)
        self.gradient_norm_tracker.update_state(ops.where(finite, norm, 0.0), sample_weight=ops.cast(finite, "float32"))

    def training_logs(self) -> dict[str, Any]:
        """Return the running n_loss, i_loss and loss, and gradient_norm if it was compiled."""
        logs = self.evaluation_losses()
        if self.gradient_norm_tracker is not None:
            logs["gradient_norm"] = self.gradient_norm_tracker.result()
        return logs

    def evaluation_losses(self) -> dict[str, Any]:
        """Return the running n_loss, i_loss and loss."""
        trackers = (self.noise_loss_tracker, self.image_loss_tracker, self.loss_tracker)
        return {tracker.name: tracker.result() for tracker in trackers}

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
        diffusion_times = ops.reshape(self.schedule.training_times(uniform), (-1, 1, 1, 1))
        _, counted = self._track_losses(images, noises, diffusion_times, batch.sample_weight, training=False)
        if self.image_metrics:
            noises = random.normal(self._evaluation_seed, 1, places, self.image_shape)
            steps, memory = self.metric_diffusion_steps, self.engine.no_memory(noises)
            _, planned = self.engine.plan(DDIM(), steps, EVEN_TIMES, None)
            generated, _, _ = self.engine.walk_on_device(
                (), noises, memory, planned.table, 0, steps, self._evaluation_seed, places
            )
            generated = self.denormalize(generated)
            # Only filled batches say which images count: a metric of the user's need not take weights otherwise.
            which = {"sample_weight": counted} if backend.devices_of_a_batch(self) > 1 else {}
            for metric in self.image_metrics:
                metric.update_state(unit_images, generated, **which)
        return self.evaluation_losses()

    def synchronize(self) -> None:
        """On JAX, `fit` holds the weights outside the model: bring them back, as is needed in a callback."""
        if self.compiled and backend.BACKEND_HOLDS_WEIGHTS:
            with self.engine.lock:
                self.jax_state_sync()

    def update_ema(self) -> None:
        """Move the EMA network's weights, normalisation statistics included, towards the network's."""
        updates = self.ema_updates + 1.0
        decay = ops.minimum(self.ema_decay, (1.0 + updates) / (10.0 + updates))
        self.ema_updates.assign(updates)
        for average, weight in zip(self.ema_network.weights, self.network.weights):
            average.assign(average + (1.0 - ops.cast(decay, average.dtype)) * (weight - average))

    # Diffusion

    def diffusion_schedule(self, diffusion_times: Any) -> tuple[Any, Any]:
        """Return (noise_rates, signal_rates), in this order, at diffusion times in [0, 1], shaped as they are."""
        signal_rates, noise_rates = self.schedule(ops.convert_to_tensor(diffusion_times, dtype="float32"))
        return noise_rates, signal_rates

    def denoise(
        self, noisy_images: Any, noise_rates: Any, signal_rates: Any, training: bool = False
    ) -> tuple[Any, Any]:
        """Split noisy images into the two components the network sees in them (eq. 9).

        Args:
            noisy_images: (batch, height, width, channels), of unit variance.
            noise_rates, signal_rates: broadcast against (batch, 1, 1, 1).
            training: True uses the network, in training mode; False the EMA network.

        Returns:
            (pred_noises, pred_images), each shaped as `noisy_images`.
        """
        noisy_images, noise_rates, signal_rates = (
            ops.convert_to_tensor(part, dtype="float32") for part in (noisy_images, noise_rates, signal_rates)
        )
        conditions = self.schedule.conditions(signal_rates, noise_rates)
        return self.predict_components(noisy_images, noise_rates, signal_rates, conditions, training=training)

    def predict_components(
        self, noisy_images: Any, noise_rates: Any, signal_rates: Any, conditions: Any, training: bool = False
    ) -> tuple[Any, Any]:
        """As `denoise`, for who knows what the network is told: `conditions`, from `schedule.conditions`."""
        denoise = network_denoiser(self.network, self.parameterization, True) if training else self.engine.denoise
        return denoise(noisy_images, noise_rates, signal_rates, Conditions(conditions))

    def denormalize(self, images: Any) -> Any:
        """Return images of zero mean and unit variance to [0, 1], clipped."""
        return self.normalizer.denormalize(images)

    def plot_images(
        self, epoch: int | None = None, logs: dict | None = None, num_rows: int = 3, num_cols: int = 6
    ) -> None:
        """Show generated images in a grid. Fits `keras.callbacks.LambdaCallback(on_epoch_end=model.plot_images)`.

        Args:
            epoch, logs: what Keras gives to a callback; the epoch becomes the title.
            num_rows, num_cols: shape of the grid.
        """
        from ddim_keras import plotting

        plotting.show_images(
            self.generate(num_rows * num_cols, diffusion_steps=20, verbose=0),
            columns=num_cols,
            title=None if epoch is None else f"epoch {epoch + 1}",
        )

    # What Keras offers for models that map inputs to outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(_NOT_A_FUNCTION.format(what="cannot be called"))

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(_NOT_A_FUNCTION.format(what="cannot be called"))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(_NOT_A_FUNCTION.format(what="has no predict"))

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(_NOT_A_FUNCTION.format(what="has no predict_on_batch"))

    def compute_output_shape(self, input_shape: Any = None) -> tuple[int | None, ...]:
        """Return the shape of the images it generates, (batch, height, width, channels)."""
        shape = tuple(input_shape or ())
        return (shape[0] if shape and not isinstance(shape[0], (tuple, list)) else None, *self.image_shape)

    def export(self, filepath: str | os.PathLike, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """Write the EMA network for other programs to run; as `keras.Model.export`. Sampling is theirs to do.

        Args:
            filepath: where to.
            format: "tf_saved_model", "onnx", ... The exported function takes [noisy images (batch, height, width, channels), of
                zero mean and unit variance; noise variances (batch, 1, 1, 1), or times] and returns what the network
                predicts: noises, images or velocities.
            **kwargs: as in `keras.Model.export`.
        """
        self.ema_network.export(os.fspath(filepath), format=format, **kwargs)

    # Presets

    @classmethod
    def from_preset(cls, preset: str | os.PathLike, *, load_weights: bool = True, **changes: Any) -> DiffusionModel:
        """Make a model that is described by a preset, with its trained weights if it has any.

        Args:
            preset: a name in `ddim_keras.presets.names()`, such as "fashion_mnist_32" (trained weights) or "keras_example" (the
                settings of the Keras DDIM example), or a folder that `save_to_preset` wrote.
            load_weights: False leaves the weights untrained, to train the model on other images.
            **changes: arguments of `DiffusionModel` to use instead of the preset's: `seed`, `dtype`, `ema_decay`; without its
                weights any of them.

        Raises:
            ValueError: no such preset, a damaged one, or changes that its weights do not fit.

        Examples:

        >>> DiffusionModel.from_preset("keras_example", image_size=32).network.count_params()
        1953507
        """
        found = presets.read(preset, load_weights, changes)
        known = set(inspect.signature(cls).parameters)
        if unknown := sorted(set(found.config) - known):
            raise ValueError(
                f"the preset {os.fspath(preset)} has unknown model settings {unknown}: expected some of {sorted(known)}"
            )
        model = cls(**found.config)
        if found.arrays is not None:
            weights = model._preset_weights()
            if [array.shape for array in found.arrays] != [tuple(weight.shape) for weight in weights]:
                raise ValueError(
                    f"the weights of the preset {os.fspath(preset)} are damaged: their shapes are not those of the model in its "
                    "preset.json"
                )
            for weight, array in zip(weights, found.arrays):
                weight.assign(array)
            model.network.set_weights(model.ema_network.get_weights())
        return model

    def save_to_preset(self, folder: str | os.PathLike, *, half: bool = True, training: Any = None) -> None:
        """Write the model to a folder that `from_preset` takes: what generates images, without what only training needs.

        The folder holds `preset.json` and `weights.npz`, the EMA network's weights and the normalizer. It is written beside and
        renamed; a folder that stands there is replaced if it is a preset.

        Args:
            folder: where to.
            half: store the weights in float16, at half the size; they are rounded to 11 bits.
            training: a `ddim_keras.presets.Training` to keep as this model's recipe.

        Raises:
            ValueError: the model was never trained, it holds a network of your own, or something else stands at `folder`.
        """
        self.synchronize()
        config = self.get_config()
        if not self.normalizer.adapted:
            raise ValueError("the model was never trained: fit it, or load its weights, before it is saved as a preset")
        if config.pop("network") is not None:
            raise ValueError("a preset describes the residual U-Net, not a network of your own: use model.save")
        del config["name"], config["dtype"], config["seed"]
        arrays = [ops.convert_to_numpy(weight).astype("float32") for weight in self._preset_weights()]
        presets.write(presets.Preset(config, arrays, training or presets.Training()), folder, half)

    def _preset_weights(self) -> list[Any]:
        normalizer = self.normalizer
        return [normalizer.mean, normalizer.variance, normalizer.count, *self.ema_network.weights]

    # Saving

    def save(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any) -> None:
        """Write the whole model, optimizer included, to one `.keras` file; as `keras.Model.save`.

        The file is written beside and renamed: an interrupted save leaves the old one whole.
        """
        if kwargs.get("zipped", True) is not False:  # a folder may have any name
            _refuse_other_suffixes(filepath, [".keras"], "the whole model")
        _save_whole(super().save, filepath, overwrite, **kwargs)

    def save_weights(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any) -> None:
        """Write all weights (EMA, optimizer and random state included) to a `.weights.h5` file, whole or not at all."""
        _refuse_other_suffixes(
            filepath, [".weights.json" if kwargs.get("max_shard_size") else ".weights.h5"], "weights"
        )
        _save_whole(super().save_weights, filepath, overwrite, **kwargs)

    def load_weights(self, filepath: str | os.PathLike, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Read the weights that `save_weights` wrote, or those of a `.keras` file; as `keras.Model.load_weights`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or its weights are another model's. The model stays as it was.
        """
        if "://" not in str(filepath):
            if not pathlib.Path(filepath).exists():
                raise FileNotFoundError(f"no weights at {filepath}: expected a file that save_weights wrote")
            _refuse_other_suffixes(filepath, [".weights.h5", ".weights.json", ".keras"], "weights")
        variables = [*self.variables, *(self.optimizer.variables if self.compiled else [])]
        before = [ops.convert_to_numpy(variable) for variable in variables]
        try:
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        except Exception as error:
            for variable, value in zip(variables, before):
                variable.assign(value)
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{filepath} holds no weights that fit this model ({reason}): it is damaged, or was written by a model of "
                "other arguments; make the model with the same ones, or load a whole .keras file with "
                "ddim_keras.load_model"
            ) from error

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        store["training_random_state"] = ops.convert_to_numpy(self.seed_generator.state)
        store["sampling_random_state"] = ops.convert_to_numpy(self.sampling_seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        self.seed_generator.state.assign(store["training_random_state"])
        self.sampling_seed_generator.state.assign(store["sampling_random_state"])
        super().load_own_variables({key: store[key] for key in store.keys() if not key.endswith("_random_state")})

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            "image_size": list(self.image_shape[:2]),
            "widths": list(self.widths),
            "block_depth": self.block_depth,
            "channels": self.image_shape[-1],
            "schedule": serialize(self.schedule),
            "parameterization": serialize(self.parameterization),
            "loss_weighting": serialize(self.loss_weighting),
            "embedding_dims": self.embedding_dims,
            "embedding_max_frequency": self.embedding_max_frequency,
            "conditioning": self.conditioning,
            "normalization": self.normalization,
            "attention_levels": list(self.attention_levels),
            "patch_size": self.patch_size,
            "ema_decay": self.ema_decay,
            "seed": self.seed,
            "network": serialize(self.network) if self._custom_network else None,
            "dtype": serialize(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> DiffusionModel:
        with keras.saving.custom_object_scope(custom_objects or {}):
            dtype = config.get("dtype")
            if isinstance(dtype, dict):
                dtype = keras.saving.deserialize_keras_object(dtype)
            return cls(**{**config, "dtype": dtype})

    # Inside

    def _make_network(self, name: str) -> keras.Model:
        return residual_unet(
            self.image_shape,
            self.widths,
            self.block_depth,
            self.embedding_dims,
            self.embedding_max_frequency,
            self.schedule.max_condition,
            self.conditioning,
            self.normalization,
            self.attention_levels,
            self.patch_size,
            self.dtype_policy,
            name,
        )

    def _stratified_uniform(self, batch_size: Any) -> Any:
        """Draw numbers in [0, 1), shape (batch, 1, 1, 1): one in each of `batch_size` equal parts (Kingma et al. 2021)."""
        offset = keras.random.uniform((), dtype="float32", seed=self.seed_generator)
        places = ops.cast(ops.arange(batch_size, dtype="int32"), "float32") / ops.cast(batch_size, "float32")
        return ops.reshape(ops.mod(offset + places, 1.0), (-1, 1, 1, 1))

    def _image_losses(self, true: Any, predicted: Any) -> Any:
        """The compiled loss for each image, shape (batch,)."""
        function = self.loss
        values = (
            function.call(true, predicted) if isinstance(function, keras.losses.Loss) else function(true, predicted)
        )
        batch_size = ops.shape(true)[0]
        if len(values.shape) == 0:  # a function that averages over the batch by itself
            return ops.broadcast_to(values, (batch_size,))
        return ops.mean(ops.reshape(values, (batch_size, -1)), axis=1)

    def _track_losses(
        self, images: Any, noises: Any, diffusion_times: Any, sample_weight: Any, training: bool
    ) -> tuple[Any, Any]:
        """Ask the network for the images and noises of a batch, and update the trackers of the losses.

        Returns:
            (each image's loss, weighted (batch,); 1 where the image counts and 0 where it only fills the batch up (batch,),
            or None if all count).
        """
        noise_rates, signal_rates = self.diffusion_schedule(diffusion_times)
        noisy_images = signal_rates * images + noise_rates * noises
        noise_levels = self.schedule.conditions(signal_rates, noise_rates)
        network = self.network if training else self.ema_network
        prediction = predict(network, noisy_images, noise_levels, training)
        pred_noises, pred_images = self.parameterization.components(prediction, noisy_images, signal_rates, noise_rates)
        target = self.parameterization.target(images, noises, signal_rates, noise_rates)
        weights = self.loss_weighting(signal_rates, noise_rates, self.parameterization)
        losses = ops.reshape(weights, (-1,)) * self._image_losses(target, prediction)
        sample_weight, counted = _weights_and_counted(sample_weight)
        if sample_weight is not None:
            losses = losses * sample_weight
        noise_losses, image_losses = self._image_losses(noises, pred_noises), self._image_losses(images, pred_images)
        self.noise_loss_tracker.update_state(noise_losses, sample_weight=sample_weight)
        self.image_loss_tracker.update_state(image_losses, sample_weight=sample_weight)
        self.loss_tracker.update_state(losses, sample_weight=counted)
        return losses, counted

    @property
    def _evaluation_seed(self) -> int:
        return self.seed or 0

    def _adapt_normalizer(self, data: Any, batch_size: int | None, steps: int | None, verbose: Any) -> None:
        advice = "adapt it first: model.normalizer.adapt(images), on an array or a data set that ends"
        if not inputs.can_be_read_again(data):
            raise ValueError(
                f"the normalizer was not adapted, and adapting it would use up the images of a {type(data).__name__}: {advice}"
            )
        if not inputs.is_one_piece(data) and inputs.number_of_batches(data) == -1 and steps is None:
            raise ValueError(
                f"the normalizer was not adapted, and the data set never ends: {advice}; or give steps_per_epoch"
            )
        if verbose:
            print("Adapting the normalizer to the data, as model.normalizer.adapt was not called:")
        self.normalizer.adapt(data, batch_size or 32, steps, verbose=1 if verbose else 0)

    def _require_adapted(self, method: str) -> None:
        if not self.normalizer.adapted:
            raise ValueError(
                f"{method} needs an adapted normalizer: call model.normalizer.adapt(images) or model.fit first"
            )

    def _check_validation(self, data: Any, steps: int | None, what: str, argument: str) -> None:
        """Find out before training starts, not after its first epoch, what validation could not do."""
        _require_steps(data, steps, what, argument)
        for metric in self.image_metrics:
            minimum = getattr(metric, "minimum_images", 1)
            with _input_errors():
                enough = minimum == 1 or inputs.has_at_least(data, minimum, steps)
            if not enough:
                raise ValueError(
                    f"the metric {metric.name!r} needs at least {minimum} images of each side, but {what} holds fewer: "
                    "give more, or compile without it"
                )

    def _get_jax_state(self, **parts: bool) -> Any:
        """Called by Keras's JAX trainer as it takes the state out of the model: keep it, for when the first step fails."""
        state = super()._get_jax_state(**parts)
        self._jax_state = backend.named_state(state, parts)
        return state

    @contextlib.contextmanager
    def _monitoring_what_exists(self, callbacks: Any, has_validation: bool) -> Any:
        """Tell callbacks which way their figure is better, and let those that wait for a KID have another.

        The Keras example always computes its KID; here it is a metric like others. Keras would only warn, never save, and
        the script would fail on the missing checkpoint after the whole training.
        """
        computed = {metric.name for metric in self.image_metrics}
        changed = []
        callbacks = getattr(callbacks, "callbacks", callbacks)  # of a CallbackList
        for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
            monitor = getattr(callback, "monitor", None)
            if monitor == "val_kid" and "kid" not in computed and has_validation:
                warnings.warn(
                    f"{type(callback).__name__} monitors 'val_kid', but no metric named 'kid' was compiled: it will monitor "
                    "'val_i_loss' instead. To have a KID, give one to compile(metrics=[...])",
                    stacklevel=4,
                )
                changed.append((callback, "monitor", monitor))
                callback.monitor = "val_i_loss"
            # Keras infers the direction of its own compiled metrics alone.
            if getattr(callback, "mode", None) == "auto" and isinstance(monitor, str):
                direction = self._direction_of(callback.monitor.removeprefix("val_"))
                if direction is not None:
                    changed.append((callback, "mode", "auto"))
                    callback.mode = direction
        try:
            yield
        finally:
            for callback, name, value in changed:
                setattr(callback, name, value)

    def _direction_of(self, figure: str) -> str | None:
        """Return whether a logged figure is better when it is "min" or "max"; None if nobody knows."""
        if figure in ("n_loss", "i_loss", "loss", "gradient_norm"):
            return "min"
        for metric in self.image_metrics:
            if figure in getattr(metric, "result_names", [metric.name]):
                return {"up": "max", "down": "min"}.get(getattr(metric, "_direction", None) or "")
        return None


class LossTracker(keras.metrics.Mean):
    """The mean of the losses, which also counts the images it has seen, whatever their weights."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.images = self.add_variable((), "zeros", name="images")

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        super().update_state(values, sample_weight=sample_weight)
        self.images.assign(self.images + ops.cast(ops.shape(values)[0], "float32"))

    def reset_state(self) -> None:
        super().reset_state()
        self.images.assign(0.0)


def load_model(filepath: str | os.PathLike, **kwargs: Any) -> DiffusionModel:
    """Read a model that `DiffusionModel.save` wrote; as `keras.models.load_model`, with clearer errors.

    Args:
        filepath: a `.keras` file.
        **kwargs: `compile`, `custom_objects` and `safe_mode`, as in `keras.models.load_model`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something other than a `DiffusionModel`.
    """
    path = pathlib.Path(filepath)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}: expected a .keras file written by DiffusionModel.save")
    advice = "restore it from a backup or save the model again"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            names = set(archive.namelist())
            config = json.loads(archive.read("config.json")) if "config.json" in names else None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole .keras file ({error}): it was cut short, or never was one; {advice}"
        ) from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: its part {damaged} fails its checksum; {advice}")
    if config is None or not names >= {"metadata.json", "model.weights.h5"}:
        raise ValueError(f"{path} is a zip file but not a .keras model: it holds {sorted(names)[:5]}")
    if config.get("registered_name") != "ddim_keras>DiffusionModel":
        found = config.get("registered_name") or config.get("class_name")
        raise ValueError(
            f"{path} holds a {found}, not a ddim_keras DiffusionModel: load it with keras.models.load_model"
        )
    return keras.models.load_model(path, **kwargs)


def _refuse_other_suffixes(filepath: str | os.PathLike, suffixes: Sequence[str], what: str) -> None:
    if not str(filepath).endswith(tuple(suffixes)):
        raise ValueError(
            f"the file for {what} must end in {' or '.join(map(repr, suffixes))}, got {os.fspath(filepath)!r}: with another "
            "name it could not be loaded again"
        )


def _save_whole(save: Callable, filepath: str | os.PathLike, overwrite: bool, **kwargs: Any) -> None:
    if "://" in str(filepath) or not overwrite:
        save(filepath, overwrite=overwrite, **kwargs)
        return
    with files.written_beside(filepath) as temporary:
        save(str(temporary), overwrite=True, **kwargs)


def _require_steps(data: Any, steps: int | None, what: str, argument: str) -> None:
    """Raise ValueError for data that never end, unless the number of steps is given."""
    if steps is None and not inputs.is_one_piece(data) and inputs.can_be_read_again(data):
        if inputs.number_of_batches(data) == -1:
            raise ValueError(f"{what} never ends: give {argument}, or a data set without repeat()")


def _weights_and_counted(sample_weight: Any) -> tuple[Any, Any]:
    """Return weights of images, and 1 for those that count and 0 for those that only fill the batch up; or (None, None)."""
    if sample_weight is None:
        return None, None
    sample_weight = ops.cast(sample_weight, "float32")
    if len(sample_weight.shape) != 1:
        raise ValueError(
            f"sample weights must be one number for each image, shape (batch,), got shape {tuple(sample_weight.shape)}: "
            "images are weighted, not their pixels"
        )
    return ops.maximum(sample_weight, 0.0), ops.cast(sample_weight >= 0.0, "float32")


def _with_loss_scale(optimizer: Any, policy: Any, wanted: bool) -> Any:
    """Return an optimizer that scales the loss where gradients are float16; Keras does so for "mixed_float16" alone."""
    if not wanted or policy.name != "float16":
        return optimizer
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def _as_metric(metric: Any, run_eagerly: bool) -> keras.metrics.Metric:
    extractor = getattr(metric, "extractor", None)
    if not getattr(extractor, "compiles", True) and not run_eagerly:
        raise ValueError(
            f"{extractor!r} cannot run within a compiled step: compile with run_eagerly=True, or score the trained model with "
            "model.score"
        )
    if isinstance(metric, keras.metrics.Metric):
        return metric
    if callable(metric):
        return keras.metrics.MeanMetricWrapper(metric, name=getattr(metric, "__name__", "metric"), dtype="float32")
    raise ValueError(
        f"a metric must be a keras.metrics.Metric or a function (real_images, generated_images), got {metric!r}"
    )


@contextlib.contextmanager
def _input_errors() -> Any:
    """Show what is wrong with the data, not TensorFlow's account of the pipeline that found it."""
    try:
        yield
    except Exception as error:
        found = inputs.input_error(error)
        if found is None:
            raise
        raise found from None


def _check_network(network: keras.Model, image_shape: tuple[int, int, int]) -> None:
    shapes = [tuple(tensor.shape) for tensor in network.inputs]
    expected = [(None, *image_shape), (None, 1, 1, 1)]
    if shapes != expected or tuple(network.output_shape) != expected[0]:
        raise ValueError(
            f"the network must map inputs of shapes {expected} to outputs of shape {expected[0]}, got inputs {shapes} and "
            f"outputs {network.output_shape}"
        )
