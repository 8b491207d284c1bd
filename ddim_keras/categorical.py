"""`CategoricalDiffusionModel`: diffusion of images of levels, label maps and sequences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from ddim_keras.data.categories import checked_categories, checked_data
from ddim_keras.diffusion.schedules import SCHEDULES, AngleSchedule, Schedule
from ddim_keras.networks.tokens import sequence_transformer
from ddim_keras.networks.unet import residual_unet
from ddim_keras.sampling.categorical import CategoricalEngine, generate_categories, logits_of
from ddim_keras.sampling.threads import taking_turns
from ddim_keras.sampling.verbs import verb
from ddim_keras.support import backend, random
from ddim_keras.support.arguments import (
    integer,
    integer_or_integers,
    integers,
    not_negative,
    positive_int,
    unit_number,
)
from ddim_keras.support.configurable import resolve
from ddim_keras.support.keras_files import load_model_file
from ddim_keras.support.placement import workers_placed
from ddim_keras.support.types import (
    Callbacks,
    Config,
    Data,
    DType,
    Logs,
    Numbers,
    SampleWeights,
    Tensor,
)
from ddim_keras.training import preparing
from ddim_keras.training.ema_networks import EMANetworks
from ddim_keras.training.objective import LossTracker

_GOLDEN_RATIO = 0.6180339887498949
_IMAGE_WIDTHS, _SEQUENCE_WIDTHS = (32, 64, 96, 128), (128, 128, 128, 128)
_NOT_A_FUNCTION = (
    "a CategoricalDiffusionModel cannot be called: model.generate(num_images) makes images, and "
    "model.ema_network([one_hot, noise_variances]) is the network alone"
)


@keras.saving.register_keras_serializable("ddim_keras")
class CategoricalDiffusionModel(EMANetworks):
    """A denoising diffusion implicit model of categories (Song, Meng & Ermon 2021, appendix A).

    Each pixel, or token, becomes any of K categories by and by; the network is trained by
    cross-entropy to say which it was.

    Args:
        shape: of one image or label map, (height, width) or (height, width, channels), whose sizes
            must be divisible by patch_size * 2**(len(widths) - 1); or of one sequence, (length,).
        categories: K, at least 2: levels, classes or words.
        widths: of images, channels of the U-Net's levels, None for (32, 64, 96, 128); of sequences
            features of the transformer's blocks, all equal, None for (128, 128, 128, 128).
        block_depth: of images, residual blocks per level, each way.
        schedule: a `Schedule` or its name, as for `DiffusionModel`; the chance that a category is
            still what it was is the signal rate squared. None is an `AngleSchedule` from nearly all
            to next to nothing.
        embedding_dims, embedding_max_frequency, dropout: as for `DiffusionModel`.
        normalization, attention_levels, patch_size: likewise, of images.
        ema_decay, seed, dtype, name: likewise.
        network: a `keras.Model` of your own, of [one-hot categories, noise variances], which
            returns logits shaped as the first: (batch, height, width, channels * K), channels
            before categories, or (batch, length, K). Noise variances are (batch, 1, 1, 1) or
            (batch, 1, 1); with a schedule of T times they are the times.

    Attributes:
        network: the trained network.
        ema_network: the moving average of its weights, used for all inference.

    Raises:
        ValueError: an argument out of its range, or sizes that the levels cannot halve.

    Examples:

    >>> model = CategoricalDiffusionModel((8, 8), categories=2, widths=[8, 16], block_depth=1)
    >>> model.compile(optimizer="adamw")
    >>> images = np.random.default_rng(0).integers(0, 2, (16, 8, 8))
    >>> _ = model.fit(images, batch_size=8, epochs=1, verbose=0)
    >>> model.generate(2, diffusion_steps=5, seed=0).shape
    (2, 8, 8)
    """

    def __init__(
        self,
        shape: Sequence[int],
        categories: int,
        widths: Sequence[int] | None = None,
        block_depth: int | Sequence[int] = 2,
        *,
        schedule: str | Schedule | Config | None = None,
        embedding_dims: int = 32,
        embedding_max_frequency: float = 1000.0,
        normalization: str = "group",
        attention_levels: Sequence[int] = (),
        patch_size: int = 1,
        dropout: float = 0.0,
        ema_decay: float = 0.999,
        seed: int | None = None,
        network: keras.Model | Config | None = None,
        dtype: DType = None,
        name: str | None = None,
    ):
        sizes, categories = _checked_shape(shape), integer("categories", categories, minimum=2)
        if schedule is None:
            schedule = AngleSchedule(min_signal_rate=0.01, max_signal_rate=0.9999)
        schedule = resolve(schedule, Schedule, SCHEDULES)
        if widths is None:
            widths = _IMAGE_WIDTHS if len(sizes) > 1 else _SEQUENCE_WIDTHS
        options = {
            "widths": integers("widths", widths),
            "block_depth": integer_or_integers("block_depth", block_depth),
            "embedding_dims": embedding_dims,
            "embedding_max_frequency": not_negative(
                "embedding_max_frequency", embedding_max_frequency
            ),
            "normalization": normalization,
            "attention_levels": integers("attention_levels", attention_levels),
            "patch_size": patch_size,
            "dropout": not_negative("dropout", dropout),
        }
        super().__init__(
            *_networks(network, sizes, categories, schedule, dtype, options),
            schedule=schedule,
            ema_decay=ema_decay,
            seed=None if seed is None else integer("seed", seed, minimum=0, below=2**32),
            dtype=dtype,
            name=name,
        )
        self.shape, self.categories = sizes, categories
        self._options, self._custom_network = options, network is not None
        self.loss_tracker = LossTracker(name="loss", dtype="float32")
        self.accuracy_tracker = keras.metrics.Mean(name="accuracy", dtype="float32")
        self.engine = CategoricalEngine(
            self.ema_network,
            shape=sizes,
            categories=categories,
            schedule=schedule,
            seeds=self.sampling_seed_generator,
            compute_dtype=self.compute_dtype,
            jit_compile=lambda: self.jit_compile,
            before_use=self.synchronize,
        )
        self.built = True

    generate = verb(generate_categories)

    def compile(
        self,
        optimizer: Any = "adamw",
        *,
        gradient_norm: bool = False,
        jit_compile: bool | str = "auto",
        **kwargs: Any,
    ) -> None:
        """Configure the model for training by cross-entropy.

        Args:
            optimizer: a Keras optimizer or its name.
            gradient_norm: whether `fit` logs the norm of the gradients.
            jit_compile: as for `DiffusionModel.compile`.
            **kwargs: `run_eagerly`, `steps_per_execution`, `auto_scale_loss`, as in
                `keras.Model.compile`.

        Raises:
            ValueError: a loss or metrics are given: both are fixed.
        """
        for what in ("loss", "metrics"):
            if kwargs.pop(what, None) is not None:
                raise ValueError(
                    f"leave out {what}: a CategoricalDiffusionModel minimises the cross-entropy of "
                    "what the categories were, and reports loss and accuracy"
                )
        preparing.check_compile_arguments(optimizer, kwargs)
        self._compile_arguments = {
            "optimizer": optimizer,
            "gradient_norm": gradient_norm,
            "jit_compile": jit_compile,
            **kwargs,
        }
        scaled = kwargs.get("auto_scale_loss", True)
        optimizer = preparing.with_loss_scale(optimizer, self.dtype_policy, scaled)
        super().compile(optimizer=optimizer, loss=None, jit_compile=jit_compile, **kwargs)
        self.gradient_norm_tracker = (
            keras.metrics.Mean(name="gradient_norm", dtype="float32") if gradient_norm else None
        )
        self.optimizer.build(self.trainable_variables)

    def _compile_again(self, config: Config) -> None:
        self.compile(
            **{
                name: keras.saving.deserialize_keras_object(value)
                for name, value in config.items()
                if name not in preparing.WITHOUT_EFFECT  # which older files may have
            }
        )

    def fit(
        self,
        x: Data = None,
        *,
        validation_data: Data = None,
        callbacks: Callbacks = None,
        sample_weight: SampleWeights = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train the model; as `keras.Model.fit`.

        Args:
            x: integers from 0 to K - 1, (images, *shape): an array, or batches of such, in a
                `tf.data.Dataset`, a `keras.utils.PyDataset` or another iterable of a known number
                of batches. Of pairs the first is taken.
            validation_data: like `x`.
            callbacks: as in `keras.Model.fit`, and so are **kwargs: batch_size, epochs, verbose,
                validation_split, ...
            sample_weight: (images,), how much each image counts, if `x` is an array.

        Returns:
            The history, with loss, the cross-entropy in nats a pixel, accuracy, the share of pixels
            whose category is found, and their val_ counterparts for each epoch.

        Raises:
            ValueError: data that are no categories, or of a wrong shape, or none.
        """
        x = checked_data(x, self.shape, self.categories)
        if validation_data is not None:
            what = "validation_data"
            validation_data = checked_data(validation_data, self.shape, self.categories, what)
            if not isinstance(validation_data, keras.utils.PyDataset):
                validation_data = (validation_data, None)  # Keras takes an array apart
        turns = taking_turns(self.engine, callbacks)
        with preparing.input_errors(), workers_placed(), turns as callbacks:
            return super().fit(
                x,
                validation_data=validation_data,
                callbacks=callbacks,
                sample_weight=sample_weight,
                **kwargs,
            )

    def evaluate(self, x: Data = None, *, callbacks: Callbacks = None, **kwargs: Any) -> Any:
        """Return the cross-entropy and the accuracy of the EMA network, as `keras.Model.evaluate`.

        Times and chances are fixed by the model's seed and each image's place in `x`.

        Args:
            x: as for `fit`.
            callbacks: as in `keras.Model.evaluate`, and so are **kwargs.

        Raises:
            ValueError: as for `fit`.
        """
        if not kwargs.get("_use_cached_eval_dataset"):  # fit has checked its validation data
            x = checked_data(x, self.shape, self.categories)
        turns = taking_turns(self.engine, callbacks)
        kept = (preparing.input_errors(), backend.keeping_state(self))
        with kept[0], kept[1], workers_placed(), turns as callbacks:
            return super().evaluate(x, callbacks=callbacks, **kwargs)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        gradient_norm = [] if self.gradient_norm_tracker is None else [self.gradient_norm_tracker]
        return [self.loss_tracker, self.accuracy_tracker, *gradient_norm]

    def training_loss(self, data: Data) -> Tensor:
        categories, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        number, seed = ops.shape(categories)[0], self.seed_generator
        times = ops.reshape(self._stratified_uniform(number), (-1,))
        fresh, kept = (
            keras.random.uniform(ops.shape(categories), dtype="float32", seed=seed)
            for _ in range(2)
        )
        losses = self._cross_entropies(
            self.network, categories, times, fresh, kept, sample_weight, True
        )
        return ops.mean(losses)

    def evaluation_logs(self, data: Data) -> Logs:
        categories, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        # Each image's place in the data set: the tracker has counted those before it.
        first = ops.cast(self.loss_tracker.images, "int32")
        places = first + ops.arange(ops.shape(categories)[0], dtype="int32")
        times = ops.mod((ops.cast(places, "float32") + 0.5) * _GOLDEN_RATIO, 1.0)
        fresh, kept = (
            random.uniform(self._evaluation_seed, number, places, self.shape) for number in range(2)
        )
        self._cross_entropies(
            self.ema_network, categories, times, fresh, kept, sample_weight, False
        )
        trackers = (self.loss_tracker, self.accuracy_tracker)
        return {tracker.name: tracker.result() for tracker in trackers}

    def training_logs(self) -> Logs:
        return {metric.name: metric.result() for metric in self.metrics}

    def _cross_entropies(
        self,
        network: keras.Model,
        categories: Tensor,
        times: Tensor,
        fresh: Tensor,
        kept: Tensor,
        sample_weight: Tensor | None,
        training: bool,
    ) -> Tensor:
        """Return each image's cross-entropy, (batch,), and take it into the running figures.

        `fresh` and `kept` are numbers in [0, 1), shaped as the categories: which category a pixel
        has where it is drawn anew, and whether it is.
        """
        categories = ops.cast(categories, "int32")
        signal_rates, noise_rates = self.schedule(self.schedule.training_times(times))
        ones = (1,) * len(self.shape)
        stays = kept < ops.reshape(signal_rates**2, (-1, *ones))
        drawn = ops.minimum(ops.cast(fresh * self.categories, "int32"), self.categories - 1)
        states = ops.where(stays, categories, drawn)
        told = self.schedule.conditions(signal_rates, noise_rates)
        logits = logits_of(network, states, told, self.categories, training)
        entropies = keras.losses.sparse_categorical_crossentropy(
            categories, logits, from_logits=True
        )
        axes = tuple(range(1, 1 + len(self.shape)))
        losses = ops.mean(ops.reshape(entropies, ops.shape(categories)), axis=axes)
        right = ops.cast(ops.argmax(logits, axis=-1), "int32") == categories
        accuracies = ops.mean(ops.cast(right, "float32"), axis=axes)
        if sample_weight is not None:
            losses = losses * ops.cast(sample_weight, "float32")
        self.loss_tracker.update_state(losses)
        self.accuracy_tracker.update_state(accuracies)
        return losses

    def corrupt(self, categories: Data, diffusion_time: float, seed: int = 0) -> Numbers:
        """Return x_t of categories x_0 at one time, int32 (batch, *shape): to look at.

        Args:
            categories: (batch, *shape), from 0 to K - 1.
            diffusion_time: t in [0, 1].
            seed: of what is drawn.

        Raises:
            ValueError: as for `fit`, or a time out of its range.
        """
        diffusion_time = unit_number("diffusion_time", diffusion_time)
        categories = checked_categories(categories, self.shape, self.categories)
        places = ops.arange(len(categories), dtype="int32")
        fresh, kept = (
            ops.convert_to_numpy(random.uniform(seed, number, places, self.shape))
            for number in range(2)
        )
        signal_rate = float(self.diffusion_schedule(diffusion_time)[1])
        drawn = (fresh * self.categories).astype("int32").clip(max=self.categories - 1)
        states = categories.copy()
        states[kept >= signal_rate**2] = drawn[kept >= signal_rate**2]
        return states

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Not there for categories: `save` and `keras.models.load_model` are."""
        raise NotImplementedError(
            "no programs for other runtimes are written of a CategoricalDiffusionModel: save it as "
            "a .keras file, or export model.ema_network, of one-hot categories and noise variances"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if type(self).call is CategoricalDiffusionModel.call:
            raise TypeError(_NOT_A_FUNCTION)
        return super().__call__(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(_NOT_A_FUNCTION)

    def get_config(self) -> Config:
        serialize = keras.saving.serialize_keras_object
        return {
            "shape": list(self.shape),
            "categories": self.categories,
            **{
                option: list(value) if isinstance(value, (list, tuple)) else value
                for option, value in self._options.items()
            },
            "schedule": serialize(self.schedule),
            "ema_decay": self.ema_decay,
            "seed": self.seed,
            "network": serialize(self.network) if self._custom_network else None,
            "dtype": serialize(self.dtype_policy),
            "name": self.name,
        }


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if not 1 <= len(sizes) <= 3:
        raise ValueError(
            "shape must be (height, width) or (height, width, channels) of images, or (length,) of "
            f"sequences: got {shape!r}"
        )
    return tuple(positive_int("shape", size) for size in sizes)


def _networks(
    network: keras.Model | Config | None,
    shape: tuple[int, ...],
    categories: int,
    schedule: Schedule,
    dtype: DType,
    options: Config,
) -> tuple[keras.Model, keras.Model]:
    """Return the network that is trained, and the one that will be its average, with the same
    weights.
    """
    seen = (*shape, categories)
    if len(shape) > 1:
        height, width, channels = (*shape, 1)[:3]
        seen = (height, width, channels * categories)
    if network is not None:
        is_config = isinstance(network, dict)
        trained: keras.Model = (
            keras.saving.deserialize_keras_object(network) if is_config else network
        )
        _check_network(trained, seen)
        average = keras.models.clone_model(trained)
    else:
        policy = keras.dtype_policies.get(dtype)
        options = {**options, "max_condition": schedule.max_condition, "dtype": policy}

        def build(name: str, **changes: Any) -> keras.Model:
            given = {**options, **changes, "name": name}
            if len(seen) == 3:
                return residual_unet(seen, conditioning="every_block", **given)
            for unused in ("block_depth", "normalization", "attention_levels", "patch_size"):
                given.pop(unused)
            return sequence_transformer(seen[0], seen[1], **given)

        trained, average = build("network"), build("ema_network", dropout=0.0)
    average.set_weights(trained.get_weights())
    return trained, average


def load_model(filepath: str | os.PathLike, **kwargs: Any) -> CategoricalDiffusionModel:
    """Read a model that `CategoricalDiffusionModel.save` wrote; as `keras.models.load_model`, with
    clearer errors.

    Args:
        filepath: a `.keras` file.
        **kwargs: `compile`, `custom_objects` and `safe_mode`, as in `keras.models.load_model`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds something other than a `CategoricalDiffusionModel`,
            or has settings that are not known; names the file.
    """
    return load_model_file(filepath, "ddim_keras>CategoricalDiffusionModel", **kwargs)


def _check_network(network: keras.Model, seen: tuple[int, ...]) -> None:
    shapes = [tuple(tensor.shape) for tensor in network.inputs]
    expected = [(None, *seen), (None, *(1,) * len(seen))]
    if shapes != expected or tuple(network.output_shape) != expected[0]:
        raise ValueError(
            f"the network must map inputs of shapes {expected}, one-hot categories and noise "
            f"variances, to logits of shape {expected[0]}, got inputs {shapes} and outputs "
            f"{network.output_shape}"
        )
