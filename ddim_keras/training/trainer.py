"""Training by Keras's `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from ddim_keras.data import inputs
from ddim_keras.sampling.threads import taking_turns
from ddim_keras.support import backend
from ddim_keras.support.arguments import positive_int, refuse_equal_names
from ddim_keras.support.configurable import check_settings
from ddim_keras.support.placement import workers_placed
from ddim_keras.support.types import Callbacks, Config, Data, Labels, Logs, SampleWeights
from ddim_keras.training import preparing
from ddim_keras.training.monitoring import watching_what_exists
from ddim_keras.training.steps import EMASteps


class EMATrainer(EMASteps):
    """Keras's trainer around `EMASteps`: `compile`, `fit`, `evaluate`; they check their data."""

    def compile(
        self,
        optimizer: Any = "adamw",
        loss: Any = "mean_absolute_error",
        metrics: Sequence[Any] | None = None,
        *,
        metric_diffusion_steps: int = 5,
        gradient_norm: bool = False,
        ema_lengths: Sequence[float] = (),
        jit_compile: bool | str = "auto",
        **kwargs: Any,
    ) -> None:
        """Configure the model for training.

        Args:
            optimizer: a Keras optimizer or its name.
            loss: a Keras loss, its name or a function (true, predicted) -> values, applied to what
                the network predicts: for each image one, or several, whose mean counts. A function
                that gives one number for a batch is applied to each image by itself. `model.loss`
                can also be set later. What regularizers of the network's weights say is added to
                it; what layers give to `add_loss`, or regularizers of activities, is not.
            metrics: Keras metrics, or functions, that compare images: `update_state(real_images,
                generated_images)`, both (batch, height, width, channels) in [0, 1]. They are
                computed by `evaluate` and in `fit`'s validation, on as many generated images as
                real ones.
            metric_diffusion_steps: sampling steps of the images generated for `metrics`.
            gradient_norm: whether `fit` logs `gradient_norm`, the norm of a batch's gradients of
                all weights together, before any clipping: the epoch's mean.
            ema_lengths: of power-function averages of the weights that training also keeps, in
                `power_averages`, beside `ema_network`: their standard deviations over the
                training's length, such as (0.05, 0.10). `ddim_keras.ema` makes others of them.
            jit_compile: True compiles with XLA, False makes plain TensorFlow graphs, "auto" takes
                plain graphs on a CPU, where they measure faster, and XLA elsewhere. JAX always
                compiles unless False.
            **kwargs: `run_eagerly`, `steps_per_execution`, `auto_scale_loss`, as in
                `keras.Model.compile`.
        """
        preparing.check_compile_arguments(optimizer, kwargs)
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
        self.objective.loss = preparing.as_loss(loss)
        self.image_metrics = preparing.as_metrics(metrics, bool(kwargs.get("run_eagerly")))
        self.gradient_norm_tracker = (
            keras.metrics.Mean(name="gradient_norm", dtype="float32") if gradient_norm else None
        )
        # Not `self.metrics`: a subclass's may name what its own `compile` has yet to make.
        refuse_equal_names(EMASteps.metrics.fget(self))  # type: ignore[attr-defined]
        self.metric_diffusion_steps = positive_int("metric_diffusion_steps", metric_diffusion_steps)
        self._compile_arguments = {
            "optimizer": optimizer,
            "loss": loss,
            "metrics": self.image_metrics,
            "metric_diffusion_steps": metric_diffusion_steps,
            "gradient_norm": gradient_norm,
            "ema_lengths": preparing.as_lengths(ema_lengths),
            "jit_compile": jit_compile,
            **kwargs,
        }
        self.power_averages.follow(self.network.weights, ema_lengths)
        # Built here, its state can be loaded before the first step.
        self.optimizer.build(self.trainable_variables)

    @property
    def loss(self) -> Any:
        """What training minimises, as `compile` has it. Can be set."""
        return self.objective.loss

    @loss.setter
    def loss(self, loss: Any) -> None:
        if "objective" in vars(self):  # Keras itself begins with None, before
            self.objective.loss = preparing.as_loss(loss)

    def _compile_again(self, config: Config) -> None:
        check_settings(
            config,
            "what the model was compiled with",
            self.compile,
            super().compile,  # the last, as its arguments are all there are
            advice=", or load the model with compile=False and compile it yourself",
        )
        arguments = {
            name: keras.saving.deserialize_keras_object(value)
            for name, value in config.items()
            if name not in ("metrics", *preparing.WITHOUT_EFFECT)  # which older files may have
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

    def fit(
        self,
        x: Data = None,
        y: Labels = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Callbacks = None,
        validation_split: float = 0.0,
        validation_data: Data = None,
        shuffle: bool = True,
        class_weight: dict[Any, float] | None = None,
        sample_weight: SampleWeights = None,
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
                "img", "pixel_values") and perhaps "label" (or "labels") and "condition". Images are
                float in [0, 1] or uint8, of the model's shape; what resizing overshot, by at most
                0.02, is cut off. Labels are integers, one-hot, or names in `class_names`; a model
                without classes ignores them, with a warning. A model with a `condition_shape` and
                no classes also takes pairs (images, condition).
            y: labels, if `x` is an array; or the condition; or {"labels": ..., "condition": ...}.
            batch_size, epochs, verbose, callbacks, validation_split, shuffle, initial_epoch,
                validation_batch_size: as in `keras.Model.fit`, and so are **kwargs. A callback of
                mode "auto" knows which way each logged figure is better.
            validation_data: like `x`, or (images, labels), or (images, labels, sample_weight).
            class_weight: how much images of a class count, {class: weight}, by number or name;
                others count 1. A model without classes needs labels that are integers or one-hot.
            sample_weight: (images,), how much each image counts, if `x` is an array: each image's
                loss is multiplied by it. Weights count for losses alone: with
                normalization="batch" images of weight 0, too, are among those whose mean and
                variance normalise a batch, and they are among those that the normalizer is adapted
                to. Leave out images that are to have no influence.
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
            spec=self.objective.spec,
            validation_data=validation_data,
            validation_split=validation_split,
            class_weight=class_weight,
            batch_size=batch_size,
            validation_batch_size=validation_batch_size,
            validation_steps=validation_steps,
            metrics=self.image_metrics,
            shuffle=shuffle,
            model=self,
        )
        with preparing.input_errors():
            preparing.adapt_normalizer(
                self.normalizer, data.x, batch_size, steps_per_epoch, verbose
            )
            preparing.require_steps(data.x, steps_per_epoch, "x", "steps_per_epoch")
            only_these = data.validation_data is not None and self._validates_as_made
            watching = watching_what_exists(callbacks, self.image_metrics, only_these)
            batched = data.in_batches(self, x, batch_size, validation_batch_size, shuffle)
            with watching, workers_placed(), taking_turns(self.engine, callbacks) as callbacks:
                return super().fit(
                    batched.x,
                    batched.y,
                    batch_size=batch_size,
                    epochs=epochs,
                    verbose=verbose,
                    callbacks=callbacks,
                    validation_data=batched.validation_data,
                    # Keras would warn of its own default where the data bring their own order.
                    shuffle=shuffle and not inputs.brings_its_own_order(batched.x),
                    sample_weight=batched.sample_weight,
                    initial_epoch=initial_epoch,
                    steps_per_epoch=steps_per_epoch,
                    validation_steps=validation_steps,
                    validation_batch_size=validation_batch_size,
                    **kwargs,
                )

    @property
    def _validates_as_made(self) -> bool:
        """Whether the figures of a validation are the losses and `image_metrics` alone."""
        return type(self).test_step is EMASteps.test_step

    def evaluate(
        self,
        x: Data = None,
        y: Labels = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: SampleWeights = None,
        steps: int | None = None,
        callbacks: Callbacks = None,
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
            [n_loss, i_loss, figures of `metrics` ..., loss], or a dictionary of them, before the
            loss with what a subclass's `test_step` adds, and without the losses that it does not
            measure. They are NaN, with a warning, if the weights are.

        Raises:
            ValueError: as for `fit`, or the normalizer was not adapted.
        """
        preparing.require_adapted(self.normalizer, "evaluate")
        preparing.check_counts(batch_size=batch_size, steps=steps)
        if x is None:
            raise ValueError("evaluate needs images: got None for x")
        from_fit = bool(kwargs.get("_use_cached_eval_dataset"))
        if not from_fit:  # fit has checked its validation data already
            x, y, sample_weight = self._for_keras(
                x,
                y,
                sample_weight,
                labels_needed=self.objective.spec.needs_labels,
                batch_size=batch_size,
                multiple=backend.devices_of_a_batch(self),
            )
            preparing.check_validation(x, steps, self.image_metrics, "x", "steps", batch_size)
        turns = taking_turns(self.engine, callbacks)
        kept = (preparing.input_errors(), backend.keeping_state(self), workers_placed())
        with kept[0], kept[1], kept[2], turns as callbacks:
            x, y, sample_weight = inputs.in_batches(x, y, sample_weight, batch_size)
            if not from_fit:
                x = preparing.own_part(self, x, False)
            figures = super().evaluate(
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
        # Not what the steps returned: that is a mean over replicas, which may have seen unequal
        # numbers of images.
        found = self.evaluation_losses()
        losses = {name: float(ops.convert_to_numpy(value)) for name, value in found.items()}
        broken = preparing.warn_of_broken_losses(losses, self.engine)
        logs: Logs = dict(losses)
        for metric in self.image_metrics:
            logs |= preparing.figures_of(metric, broken)
        # Of a `test_step` of a subclass's own, which need not measure the losses.
        logs |= {name: value for name, value in figures.items() if name not in found | logs}
        for tracker in (self.noise_loss_tracker, self.image_loss_tracker, self.loss_tracker):
            if tracker.name not in figures and preparing.has_seen_nothing(tracker):
                del logs[tracker.name]
        if self.loss_tracker.name in logs:
            logs[self.loss_tracker.name] = logs.pop(self.loss_tracker.name)
        return logs if return_dict else list(logs.values())

    def train_on_batch(
        self,
        x: Data,
        y: Labels = None,
        sample_weight: SampleWeights = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Take one gradient step on a batch of images, which are checked as by `fit`; as
        `keras.Model.train_on_batch`.
        """
        preparing.warn_if_not_adapted(self.normalizer)
        batch = self._for_keras(x, y, sample_weight, labels_needed=True, class_weight=class_weight)
        return super().train_on_batch(*batch, return_dict=return_dict)

    def test_on_batch(
        self,
        x: Data,
        y: Labels = None,
        sample_weight: SampleWeights = None,
        return_dict: bool = False,
    ) -> Any:
        """Evaluate one batch of images, which are checked as by `fit`; as
        `keras.Model.test_on_batch`.
        """
        needed = self.objective.spec.needs_labels
        batch = self._for_keras(x, y, sample_weight, labels_needed=needed)
        return super().test_on_batch(*batch, return_dict=return_dict)

    def _maybe_symbolic_build(self, *arguments: Any, **options: Any) -> None:
        """Keras's look at a first batch on TensorFlow's strategies. Keras 3 takes the batch's mean
        for it, which fails between processes; there all is built already.
        """
        if backend.process(self)[1] == 1:
            super()._maybe_symbolic_build(*arguments, **options)

    def _for_keras(self, x: Data, y: Labels, sample_weight: SampleWeights, **options: Any) -> tuple:
        """As `inputs.for_keras`, for this model's images and conditions."""
        spec = self.objective.spec
        return inputs.for_keras(x, y, sample_weight, self.image_shape, spec=spec, **options)
