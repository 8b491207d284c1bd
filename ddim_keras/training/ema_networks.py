"""A network, the average that follows its weights, and how both are trained and stored."""

from __future__ import annotations

import os
from typing import Any

import keras
from keras import ops

from ddim_keras.diffusion.schedules import Schedule
from ddim_keras.sampling.engine import Engine
from ddim_keras.support import backend, replicas
from ddim_keras.support.arguments import not_negative, positive_int
from ddim_keras.support.configurable import check_settings
from ddim_keras.support.keras_files import WholeFiles
from ddim_keras.support.types import Config, Data, Logs, Rates, Tensor, Times
from ddim_keras.training import freezing
from ddim_keras.training.averages import PowerAverages
from ddim_keras.training.overriding import refuse_another_part

_NEVER_TRAINED = ("ema_network", "power_averages", "teacher", "weaker")
# What steps that were compiled hold as it was, by the functions of Keras's that take them.
_READ_BY = {
    "condition_noise": ("train", "test"),
    "ema_decay": ("train",),
    "loss": ("train", "test"),
    "metric_diffusion_steps": ("test",),
    "seed": ("train", "test"),
}
_FROZEN = "frozen_layers"
_CHECKS = {"condition_noise": not_negative, "metric_diffusion_steps": positive_int}


class EMANetworks(WholeFiles):
    """Base class of the models: a network, the moving average of its weights, their random numbers,
    and the steps that Keras's trainer takes.

    Subclasses say what is minimised, in `training_loss` and `evaluation_logs`, and make `engine`.

    Args:
        network: what is trained.
        ema_network: the same with the same weights, which will follow it.
        schedule: of the noise.
        ema_decay: how much of the averaged weights each step keeps, at most.
        seed: of the random numbers, or None.
        **kwargs: as for `keras.Model`.

    Attributes:
        engine: what uses the trained network.
        power_averages: averages whose length is chosen after the training; none until `compile`
            asks for some.
    """

    engine: Engine
    # What `compile` was given, by name; subclasses keep it there.
    _compile_arguments: dict[str, Any]
    # Of the layers, as the step of training was last compiled.
    _compiled_flags: bytes | None = None

    def __init__(
        self,
        network: keras.Model,
        ema_network: keras.Model,
        *,
        schedule: Schedule,
        ema_decay: float,
        seed: int | None,
        **kwargs: Any,
    ):
        # The data enter as they are: casting images to the policy's half precision would come
        # before normalisation.
        super().__init__(autocast=False, **kwargs)
        self.ema_decay = ema_decay
        self.seed = seed
        self.network = network
        self.ema_network = ema_network
        self.ema_network.trainable = False
        self.ema_updates = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            name="ema_updates",
            aggregation="mean",
        )
        self.power_averages = PowerAverages()
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.sampling_seed_generator = keras.random.SeedGenerator(seed)
        self.schedule = schedule
        self.gradient_norm_tracker: keras.metrics.Metric | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_another_part(self, name, value)
        if name in _CHECKS:
            value = _CHECKS[name](name, value)
        super().__setattr__(name, value)
        for kind in _READ_BY.get(name, ()):
            if getattr(self, f"{kind}_function", None) is not None:
                getattr(self, f"make_{kind}_function")(force=True)
        if name in _READ_BY and name in vars(self).get("_compile_arguments", ()):
            self._compile_arguments[name] = value

    def save(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any) -> None:
        self._refuse_quantized()
        super().save(filepath, overwrite, **kwargs)

    save.__doc__ = WholeFiles.save.__doc__

    @property
    def ema_decay(self) -> float:
        """How much of the averaged weights each step keeps, at most. Can be set, also in `fit`."""
        return self._ema_decay

    @ema_decay.setter
    def ema_decay(self, decay: float) -> None:
        if isinstance(decay, str) or not 0.0 <= decay < 1.0:
            raise ValueError(
                f"ema_decay must lie in [0, 1), got {decay!r}: 1 would never follow the network"
            )
        self._ema_decay = float(decay)

    def _refuse_quantized(self, whole_networks: bool = True) -> None:
        """Raise ValueError if `quantize` has changed a network that is not stored as it is, but
        made again from the model's arguments: a file of it could not be loaded.
        """
        trained, average = _quantization(self.network), _quantization(self.ema_network)
        stored = self.get_config().get("network")
        is_stored = isinstance(stored, dict) and stored.get("class_name") == "Functional"
        if (trained or average) and not (whole_networks and is_stored and trained == average):
            raise ValueError(
                f"the model was quantized ({', '.join(sorted({*trained, *average}))}), which its "
                "file could not say, so that it could not be loaded: save the model before, and "
                "call quantize after loading it"
            )

    @property
    def trainable(self) -> bool:
        """Whether the network is trained. Can be set; what follows the network, or teaches it,
        never is.
        """
        return bool(keras.Model.trainable.fget(self))

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.Model.trainable.fset(self, value)
        for name in _NEVER_TRAINED:
            part = getattr(self, name, None)
            if part is not None:
                part.trainable = False

    def make_train_function(self, force: bool = False) -> Any:
        """Keras's compiled step, anew where layers were frozen or released since."""
        flags = freezing.trainable_flags(self.network)
        changed, self._compiled_flags = flags != self._compiled_flags, flags
        return super().make_train_function(force=force or changed)

    def training_loss(self, data: Data) -> Tensor:
        """Return the scalar to minimise for a batch, and update the running losses."""
        raise NotImplementedError

    def training_logs(self) -> Logs:
        """Return the running figures of a training."""
        raise NotImplementedError

    def evaluation_logs(self, data: Data) -> Logs:
        """Update and return all metrics for a batch, on the EMA network."""
        raise NotImplementedError

    def train_step(self, *arguments: Any) -> Any:
        """One gradient step and one update of the EMA network; called by `fit`."""
        return backend.train_step(self, *arguments)

    def test_step(self, *arguments: Any) -> Any:
        """One evaluation step on the EMA network; called by `evaluate`."""
        return backend.test_step(self, *arguments)

    def track_gradients(self, gradients: list, scale: Tensor) -> None:
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
        self.power_averages.update(self.network.weights)

    def diffusion_schedule(self, diffusion_times: Times) -> tuple[Rates, Rates]:
        """Return (noise_rates, signal_rates), in this order, at diffusion times in [0, 1], shaped
        as they are.
        """
        signal_rates, noise_rates = self.schedule(
            ops.convert_to_tensor(diffusion_times, dtype="float32")
        )
        return noise_rates, signal_rates

    @classmethod
    def from_config(cls, config: Config, custom_objects: dict | None = None) -> EMANetworks:
        check_settings(config, cls.__name__, cls)
        with keras.saving.custom_object_scope(custom_objects or {}):
            dtype = config.get("dtype")
            if isinstance(dtype, dict):
                dtype = keras.saving.deserialize_keras_object(dtype)
            return cls(**{**config, "dtype": dtype})

    def get_compile_config(self) -> Config | None:
        if not self.compiled:
            return None
        config = {
            name: keras.saving.serialize_keras_object(value)
            for name, value in self._compile_arguments.items()
        }
        # The network is made again from the model's arguments, which do not say it.
        frozen = freezing.frozen_layers(self.network)
        return {**config, _FROZEN: frozen} if frozen else config

    def compile_from_config(self, config: Config) -> None:
        """Compile as a file says."""
        arguments = dict(config)
        freezing.freeze_layers(self.network, arguments.pop(_FROZEN, ()))
        self._compile_again(arguments)

    def _compile_again(self, config: Config) -> None:
        raise NotImplementedError

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        store["training_random_state"] = ops.convert_to_numpy(self.seed_generator.state)
        store["sampling_random_state"] = ops.convert_to_numpy(self.sampling_seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        self.seed_generator.state.assign(store["training_random_state"])
        self.sampling_seed_generator.state.assign(store["sampling_random_state"])
        super().load_own_variables(
            {key: store[key] for key in store.keys() if not key.endswith("_random_state")}
        )

    def _stratified_uniform(
        self, batch_size: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Draw numbers in [0, 1), shape (batch, 1, 1, 1): one in each of as many equal parts as the
        batch has images over all replicas, without those that fill it up (Kingma et al. 2021).
        """
        offset = keras.random.uniform((), dtype="float32", seed=self.seed_generator)
        number = ops.cast(batch_size * backend.replica()[1], "float32")
        if sample_weight is not None:
            counted = ops.cast(ops.cast(sample_weight, "float32") >= 0.0, "float32")
            number = ops.maximum(backend.sum_over_replicas(ops.sum(counted)), 1.0)
        places = ops.cast(replicas.places(0, batch_size), "float32") / number
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


def _quantization(network: keras.Model) -> list[str]:
    """The ways in which layers of a network were quantized."""
    modes = (getattr(layer, "quantization_mode", None) for layer in network._flatten_layers())
    return [mode for mode in modes if mode is not None]
