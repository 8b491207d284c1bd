"""`DiffusionModel`: the one object a user holds."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ddim_keras import plotting, presets, sampling
from ddim_keras.data.conditions import ConditionSpec
from ddim_keras.diffusion.parameterizations import PARAMETERIZATIONS, Parameterization
from ddim_keras.diffusion.schedules import SCHEDULES, Schedule
from ddim_keras.diffusion.weightings import WEIGHTINGS, Weighting
from ddim_keras.metrics import scoring
from ddim_keras.networks.copying import copied
from ddim_keras.networks.ddpm_unet import DDPMUNet, ddpm_unet
from ddim_keras.networks.unet import CONDITION, LABELS, residual_unet
from ddim_keras.presets import checkpoints, ddpm_names, diffusers, folders, programs
from ddim_keras.samplers import Conditions
from ddim_keras.sampling.choices import check_noise_end
from ddim_keras.sampling.defaults import SamplingDefaults
from ddim_keras.sampling.denoisers import network_denoiser
from ddim_keras.sampling.verbs import verb
from ddim_keras.support.arguments import (
    height_and_width,
    integer,
    integer_or_integers,
    integers,
    not_negative,
    positive_int,
    truth,
)
from ddim_keras.support.configurable import resolve
from ddim_keras.support.keras_files import load_model_file
from ddim_keras.support.types import (
    Condition,
    Config,
    DType,
    Images,
    Labels,
    Rates,
    Tensor,
    Variable,
)
from ddim_keras.training.objective import Objective, Teaching
from ddim_keras.training.overriding import warn_of_methods_in_vain
from ddim_keras.training.trainer import EMATrainer

_LARGEST_SIGNAL_AT_NOISE_END = 0.25
_NOT_A_FUNCTION = (
    "a DiffusionModel {what}: model.generate(num_images) makes images, model.denoise(noisy_images, "
    "noise_rates, signal_rates) "
    "splits noisy ones into noises and images, and model.ema_network([noisy_images, "
    "noise_variances]) is the network alone"
)


@keras.saving.register_keras_serializable("ddim_keras")
class DiffusionModel(EMATrainer):
    """A denoising diffusion implicit model (Song, Meng & Ermon, ICLR 2021).

    The defaults are the values of the Keras DDIM example.

    Args:
        image_size: side of the square images in pixels, or (height, width). Each must be divisible
            by 2**(len(widths) - 1).
        widths: channels of the U-Net's levels, from the full resolution down.
        block_depth: residual blocks per level, on the way down and on the way up; or of each level
            its own, such as (1, 2, 2).
        channels: channels of the images: 1 for grayscale, 3 for RGB, 4 for RGBA, or any other
            count.
        schedule: a `Schedule` or its name: continuous "angle", "linear_noise_power",
            "linear_log_snr" or "variance_exploding"; of T = 1000 times "linear_beta" (DDPM's),
            "scaled_linear_beta", "cosine_beta" or "zero_terminal_snr".
        parameterization: what the network predicts: "noise", "image", "velocity" or a
            `Parameterization`.
        loss_weighting: "uniform", "min_snr", "sigmoid" or a `Weighting`.
        embedding_dims: features of the sinusoidal embedding of the noise variance (or, with T
            times, of the time), even.
        embedding_max_frequency: highest frequency of that embedding, in periods over the whole
            range.
        conditioning: "input" joins the embedding to every pixel of the network's input;
            "every_block" adds it within every residual block.
        normalization: "batch" or "group".
        attention_levels: levels, counted from 0 at the full resolution, with self-attention over
            the pixels.
        patch_size: p: the network works on patches of p x p pixels, at 1/p of the size and so p * p
            times as fast. `image_size` must then be divisible by p times as much.
        dropout: share, in [0, 1), of the features within each block that training leaves out.
        recompute: whether training keeps only what goes into each of the network's blocks and works
            out the rest again for the gradients: less memory, for a third more work. Needs group
            normalisation, and changes neither weights nor files.
        ema_decay: how much of the averaged weights each training step keeps, in [0, 1). It warms
            up: step n uses min(ema_decay, (1 + n) / (10 + n)), so that short trainings sample from
            good weights too.
        seed: integer in [0, 2**32) that fixes the random numbers of training, evaluation and
            unseeded `generate`; None draws one. Two runs are identical on one machine after
            `keras.utils.set_random_seed`, which fixes the initial weights.
        num_classes: K, for a model that generates by label: `fit` then takes (images, labels). None
            ignores labels.
        class_names: of the K classes, in the order of their numbers; None takes those that the data
            set of the first `fit` has, if it has any.
        label_dropout: share of images, in [0, 1), whose label is left out in training, so that the
            model also makes images without one, which guidance needs.
        condition_shape: for a model that is conditioned on images, (height, width, channels) in
            [0, 1] or uint8, or on vectors, (features,); `fit` then takes (images, condition) or
            dictionaries with both.
        condition_dropout: share of images whose condition is left out in training.
        condition_noise: the largest standard deviation of the noise that is put on conditions in
            training, where images run from -1 to 1: makes a model of small images take generated
            ones (Ho et al. 2022, "Cascaded diffusion models", section 4.2).
        network: a `keras.Model` of [noisy images, noise variances (batch, 1, 1, 1)] to use instead
            of the residual U-Net; with a schedule of T times, of [noisy images, times], which are
            the integers 1 to T. Its output has the shape of the noisy images. Inputs called
            "labels", integers (batch,) from 0 to K, where K says nothing, and "condition", (batch,
            *condition_shape), from -1 to 1 if it is an image and zeros where it says nothing, get
            those. `widths` and what else describes the residual U-Net are then unused.
        pixels: how images enter the network: "measured", with zero mean and unit variance as
            measured by `normalizer`, or "symmetric", from -1 to 1, as Ho et al. 2020 do.
        sampling_defaults: a `SamplingDefaults`, what `generate` takes where its caller does not
            say: steps, sampler, spacing, clipping, guidance. None for those of its documentation.
        distillation: a `Distillation`, for a model that learns from a `teacher` to draw in a few
            steps, or a `GuidanceDistillation`, for one that learns guidance; `ddim_keras.distill`
            and `distill_guidance` make such models.
        dtype: Keras dtype policy of the network, such as "mixed_bfloat16". Rates, losses and the
            samplers' arithmetic are float32 whatever it is.
        name: name of the model.

    Attributes:
        normalizer: turns images in [0, 1] into zero mean and unit variance;
            `normalizer.adapt(dataset)` measures both.
        network: the trained network.
        ema_network: the moving average of its weights, used for all inference.
        teacher: of a model with a `distillation`, the network that it learns from; else None.
        weaker: of one that learns autoguidance, the network that guides by being weaker; else None.

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
        block_depth: int | Sequence[int] = 2,
        *,
        channels: int = 3,
        schedule: str | Schedule | Config = "angle",
        parameterization: str | Parameterization | Config = "noise",
        loss_weighting: str | Weighting | Config = "uniform",
        embedding_dims: int = 32,
        embedding_max_frequency: float = 1000.0,
        conditioning: str = "input",
        normalization: str = "batch",
        attention_levels: Sequence[int] = (),
        patch_size: int = 1,
        dropout: float = 0.0,
        recompute: bool = False,
        ema_decay: float = 0.999,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        label_dropout: float = 0.1,
        condition_shape: int | Sequence[int] | None = None,
        condition_dropout: float = 0.0,
        condition_noise: float = 0.0,
        seed: int | None = None,
        network: keras.Model | Config | None = None,
        pixels: str = "measured",
        sampling_defaults: SamplingDefaults | Config | None = None,
        distillation: Teaching | Config | None = None,
        dtype: DType = None,
        name: str | None = None,
    ):
        image_shape = (*height_and_width(image_size), positive_int("channels", channels))
        told = (num_classes, class_names, condition_shape, label_dropout, condition_dropout)
        objective = _objective(schedule, parameterization, loss_weighting, told, distillation)
        levels = (widths, block_depth, attention_levels, patch_size)
        noise = (embedding_dims, embedding_max_frequency, conditioning)
        self_made = _residual_settings(*levels, *noise, normalization, dropout, recompute)
        super().__init__(
            *_networks(network, image_shape, objective, dtype, **self_made),
            image_shape=image_shape,
            objective=objective,
            ema_decay=ema_decay,
            condition_noise=not_negative("condition_noise", condition_noise),
            pixels=pixels,
            sampling_defaults=sampling_defaults,
            seed=None if seed is None else integer("seed", seed, minimum=0, below=2**32),
            dtype=dtype,
            name=name,
        )
        self._custom_network = network is not None
        for option, value in self_made.items():
            setattr(self, option, value)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        warn_of_methods_in_vain(cls, DiffusionModel)

    @property
    def distillation(self) -> Teaching | None:
        """How the model learns from its `teacher`, or None."""
        return getattr(self.objective, "distillation", None)

    @property
    def num_classes(self) -> int | None:
        """K, or None for a model without labels."""
        return self.objective.spec.num_classes

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Of the images or vectors that the model is conditioned on, or None."""
        return self.objective.spec.condition_shape

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, in the order of their numbers, or None. Can be set."""
        names = self.objective.spec.class_names
        return None if names is None else list(names)

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self.objective.spec.set_names(names)

    generate = verb(sampling.generate)
    encode = verb(sampling.encode)
    decode = verb(sampling.decode)
    reconstruct = verb(sampling.reconstruct)
    interpolate = verb(sampling.interpolate)
    interpolate_grid = verb(sampling.interpolate_grid)
    variations = verb(sampling.variations)
    inpaint = verb(sampling.inpaint)
    restore = verb(sampling.restore)
    log_likelihood = verb(sampling.log_likelihood)
    variational_bound = verb(sampling.variational_bound)
    score = verb(scoring.score_generated)
    reverse_diffusion = verb(sampling.reverse_diffusion)
    fit_sampler = verb(sampling.fit_sampler)
    fit_spacing = verb(sampling.fit_spacing)
    gaussian_start = verb(sampling.gaussian_start)

    def denoise(
        self,
        noisy_images: Images,
        noise_rates: Rates,
        signal_rates: Rates,
        training: bool = False,
        labels: Labels = None,
        condition: Condition = None,
    ) -> tuple[Images, Images]:
        """Split noisy images into the two components the network sees in them (eq. 9).

        Args:
            noisy_images: (batch, height, width, channels), of unit variance.
            noise_rates, signal_rates: broadcast against (batch, 1, 1, 1).
            training: True uses the network, in training mode; False the EMA network.
            labels, condition: as for `generate`.

        Returns:
            (pred_noises, pred_images), each shaped as `noisy_images`.
        """
        noisy_images, noise_rates, signal_rates = (
            ops.convert_to_tensor(part, dtype="float32")
            for part in (noisy_images, noise_rates, signal_rates)
        )
        conditions = self.schedule.conditions(signal_rates, noise_rates)
        return self.predict_components(
            noisy_images,
            noise_rates,
            signal_rates,
            conditions,
            training=training,
            labels=labels,
            condition=condition,
        )

    def predict_components(
        self,
        noisy_images: Images,
        noise_rates: Rates,
        signal_rates: Rates,
        conditions: Tensor,
        training: bool = False,
        labels: Labels = None,
        condition: Condition = None,
    ) -> tuple[Images, Images]:
        """As `denoise`, for who knows what the network is told: `conditions`, from
        `schedule.conditions`.
        """
        spec = self.objective.spec
        told: dict[str, Any] = {}
        if labels is not None or condition is not None:
            told = sampling.conditioning_of(self.engine, noisy_images, labels, condition).scaled()
        denoise = (
            network_denoiser(self.network, self.parameterization, spec, True)
            if training
            else self.engine.denoise
        )
        return denoise(noisy_images, noise_rates, signal_rates, Conditions(conditions, **told))

    def denormalize(self, images: Images) -> Images:
        """Return images of zero mean and unit variance to [0, 1], clipped."""
        return self.normalizer.denormalize(images)

    def plot_images(
        self,
        epoch: int | None = None,
        logs: dict | None = None,
        num_rows: int = 3,
        num_cols: int = 6,
    ) -> None:
        """Show generated images in a grid. Fits
        `keras.callbacks.LambdaCallback(on_epoch_end=model.plot_images)`.

        Args:
            epoch, logs: what Keras gives to a callback; the epoch becomes the title.
            num_rows, num_cols: shape of the grid.
        """
        plotting.show_images(
            self.generate(num_rows * num_cols, verbose=0),
            columns=num_cols,
            title=None if epoch is None else f"epoch {epoch + 1}",
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _require_a_call(self, "cannot be called")
        return super().__call__(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(_NOT_A_FUNCTION.format(what="cannot be called"))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        _require_a_call(self, "has no predict")
        return super().predict(*args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        _require_a_call(self, "has no predict_on_batch")
        return super().predict_on_batch(*args, **kwargs)

    def compute_output_shape(self, input_shape: Any = None) -> tuple[int | None, ...]:
        """Return the shape of the images it generates, (batch, height, width, channels)."""
        shape = tuple(input_shape or ())
        return (
            shape[0] if shape and not isinstance(shape[0], (tuple, list)) else None,
            *self.image_shape,
        )

    def export(
        self,
        filepath: str | os.PathLike,
        format: str = "tf_saved_model",
        signature: str | None = None,
        **options: Any,
    ) -> None:
        """Write what the model does for other programs to run: whole walks, the denoiser, or the
        EMA network alone, as `keras.Model.export` does.

        Programs of walks and denoisers are float32, take any batch, and need nothing of this
        library. Their arguments and results go by names.

        - "generate": from `initial_noise` (batch, height, width, channels), standard normal, to
          `images`, float32 in [0, 1]: what `generate(initial_noise=...)` makes.
        - "denoise": from `noisy_images`, of unit variance, with `noise_rates` and `signal_rates`
          (batch, 1, 1, 1), to `pred_noises` and `pred_images`, as `denoise`.

        Both also take `labels`, int32 (batch,), class numbers or K for none, and `condition`, in
        [0, 1] if it is an image, if the model does.

        Args:
            filepath: where to: a folder for "tf_saved_model", else a file ending in .onnx, .tflite
                or .xml, beside which OpenVINO's weights are (.bin).
            format: "tf_saved_model", "onnx", "openvino" or "litert"; for the network alone, what
                Keras knows. All but the first are written under TensorFlow.
            signature: "generate", "denoise", or None for the network: of [noisy images; noise
                variances (batch, 1, 1, 1), or times] to what it predicts.
            **options: of "generate": diffusion_steps, sampler, eta, spacing, schedule, clipping and
                guidance, as for `generate`, which are then fixed; of "denoise": clipping and
                guidance. `overwrite=True` replaces what stands there. Else as in
                `keras.Model.export`.

        Raises:
            ValueError: an unknown format or signature, a wrong suffix, something that stands there,
                another backend than the format needs, or a sampler that adds noise on its way.
                Nothing is written then.
            ImportError: what writes the format is not installed; says what to install.
        """
        self.synchronize()
        programs.write(self.engine, self.ema_network, filepath, format, signature, **options)

    @classmethod
    def from_preset(
        cls, preset: str | os.PathLike, *, load_weights: bool = True, **changes: Any
    ) -> DiffusionModel:
        """Make a model that is described by a preset, with its trained weights if it has any.

        Args:
            preset: a name in `ddim_keras.presets.names()`, such as "fashion_mnist_32" (trained
                weights) or "keras_example" (the settings of the Keras DDIM example), or a folder
                that `save_to_preset` wrote.
            load_weights: False leaves the weights untrained, to train the model on other images.
            **changes: arguments of `DiffusionModel` to use instead of the preset's: `seed`,
                `dtype`, `ema_decay`; without its weights any of them.

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
                f"the preset {os.fspath(preset)} has unknown model settings {unknown}: expected "
                f"some of {sorted(known)}"
            )
        with folders.naming(preset, changes):
            model = cls(**found.config)
        if found.arrays is not None:
            presets.assign(model._preset_weights(), found.arrays, preset)
            model.network.set_weights(model.ema_network.get_weights())
        return model

    @classmethod
    def from_diffusers(
        cls,
        source: str | os.PathLike,
        *,
        image_size: int | tuple[int, int] | None = None,
        null_class: bool | None = None,
        variant: str | None = None,
        revision: str | None = None,
        **changes: Any,
    ) -> DiffusionModel:
        """Make a model of weights that diffusers wrote, of a pipeline with a `UNet2DModel`.

        Schedule, prediction, clipping, spacing and size come from its configuration; they become
        the model's `sampling_defaults`, so that `generate` draws what `DDIMPipeline` does.

        Args:
            source: a folder with model_index.json, or a name on the Hub, such as
                "google/ddpm-cifar10-32", which needs huggingface_hub. Weights are read from
                .safetensors, or from .bin where PyTorch is installed; never by unpickling.
            image_size: instead of the configuration's.
            null_class: whether the last of the class embeddings says nothing; None for what the
                folder says if `save_to_diffusers` wrote it, and else False: then zeros say nothing.
            variant: which of several weights, such as "fp16".
            revision: which version, on the Hub.
            **changes: arguments of `DiffusionModel`: `seed`, `dtype`, `ema_decay`, `recompute`,
                `sampling_defaults`, ...

        Raises:
            ValueError: no such folder, a damaged file, or weights or settings that are missing, too
                many, of another shape or unknown; names them.
            ImportError: the Hub or a .bin file is asked for without what reads it.
        """
        found = diffusers.read(
            source, image_size=image_size, null_class=null_class, variant=variant, revision=revision
        )
        return _published(cls, found, changes)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        *,
        image_size: int | tuple[int, int] | None = None,
        schedule: str | Schedule | Config = "linear_beta",
        heads: int | None = None,
        head_channels: int | None = None,
        new_attention_order: bool = False,
        rescaled_times: bool = True,
        null_class: bool = False,
        **changes: Any,
    ) -> DiffusionModel:
        """Make a model of a checkpoint of the DDIM paper's code, of Ho et al.'s networks as
        converted for it, or of improved-diffusion or guided-diffusion, of whose networks with
        learned variances only the noises are taken.

        Args:
            path: a .ckpt, .pth or .pt file, which needs PyTorch but is not unpickled, or the same
                weights as .safetensors. The averaged weights are taken where it has some.
            image_size: None for the size at which the attention is at 16 x 16 pixels, or reaches
                from there to 8 x 8.
            schedule: of the training, of T times; the file does not say it. For the others' flags
                noise_schedule cosine and diffusion_steps 4000 give `CosineBetaSchedule(4000)`.
            heads, head_channels: of the last two's attention, one of them: their flags num_heads
                (4 where not given) or num_head_channels.
            new_attention_order: their flag use_new_attention_order.
            rescaled_times: their flag rescale_timesteps, which matters where T is not 1000.
            null_class: whether the last of the labels says nothing; else zeros do.
            **changes: as for `from_diffusers`.

        Raises:
            ValueError, ImportError: as for `from_diffusers`.
        """
        heads_told = (heads, head_channels, new_attention_order)
        told = checkpoints.Told(image_size, *heads_told, rescaled_times, null_class)
        return _published(cls, checkpoints.read(path, told, schedule), changes)

    def save_to_diffusers(self, folder: str | os.PathLike) -> None:
        """Write a folder that diffusers' `DDIMPipeline.from_pretrained` loads, with the EMA
        network's weights as safetensors.

        Raises:
            ValueError: the network is no `ddpm_unet`, images do not enter it from -1 to 1, or the
                model has what diffusers has no place for; says what. Or something else stands at
                `folder`. Nothing is written then.
        """
        self.synchronize()
        self._refuse_quantized(whole_networks=False)
        network = self.ema_network
        if not isinstance(network, DDPMUNet):
            raise ValueError(
                "diffusers knows the network of Ho et al. alone: make the model with "
                "network=ddim_keras.networks.ddpm_unet(...)"
            )
        if not np.allclose(self.normalizer.scales(), 0.5, atol=1e-6):
            raise ValueError(
                "diffusers' pipelines make images from -1 to 1, but this model's enter with the "
                'mean and variance that were measured: train it with pixels="symmetric"'
            )
        told: Config = {"class_names": self.class_names}
        told |= {"sampling_defaults": self.sampling_defaults}
        told |= {"schedule": self.schedule, "parameterization": self.parameterization}
        diffusers.write(folder, network, told, has_null=True)

    def save_to_preset(
        self, folder: str | os.PathLike, *, half: bool = True, training: Any = None
    ) -> None:
        """Write the model to a folder that `from_preset` takes: what generates images, without what
        only training needs.

        The folder holds `preset.json` and `weights.npz`, the EMA network's weights and the
        normalizer. It is written beside and renamed; a folder that stands there is replaced if it
        is a preset.

        Args:
            folder: where to.
            half: store the weights in float16, at half the size; they are rounded to 11 bits.
            training: a `ddim_keras.presets.Training` to keep as this model's recipe.

        Raises:
            ValueError: the model was never trained, it holds a network of your own, or something
                else stands at `folder`.
        """
        self.synchronize()
        self._refuse_quantized(whole_networks=False)
        config = self.get_config()
        if not self.normalizer.adapted:
            raise ValueError(
                "the model was never trained: fit it, or load its weights, before it is saved as a "
                "preset"
            )
        if config["network"] is None:
            del config["network"]
        elif not isinstance(self.network, DDPMUNet):
            raise ValueError(
                "a preset describes the residual U-Net or the DDPM U-Net, not a network of your "
                "own: use model.save"
            )
        for name in ("name", "dtype", "seed", "distillation"):  # a preset has no teacher
            config.pop(name, None)
        arrays = [
            ops.convert_to_numpy(weight).astype("float32") for weight in self._preset_weights()
        ]
        presets.write(presets.Preset(config, arrays, training or presets.Training()), folder, half)

    def _preset_weights(self) -> list[Variable]:
        normalizer = self.normalizer
        return [normalizer.mean, normalizer.variance, normalizer.count, *self.ema_network.weights]

    def get_config(self) -> Config:
        serialize = keras.saving.serialize_keras_object
        spec, distillation = self.objective.spec, self.distillation
        condition_shape = None if spec.condition_shape is None else list(spec.condition_shape)
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
            "dropout": self.dropout,
            "recompute": self.recompute,
            "ema_decay": self.ema_decay,
            "num_classes": spec.num_classes,
            "class_names": self.class_names,
            "label_dropout": spec.label_dropout,
            "condition_shape": condition_shape,
            "condition_dropout": spec.condition_dropout,
            "condition_noise": self.condition_noise,
            "seed": self.seed,
            "network": serialize(self.network) if self._custom_network else None,
            "pixels": self.pixels,
            "sampling_defaults": serialize(self.sampling_defaults),
            "dtype": serialize(self.dtype_policy),
            "name": self.name,
            **({} if distillation is None else {"distillation": serialize(distillation)}),
        }


def _require_a_call(model: DiffusionModel, what: str) -> None:
    if type(model).call is DiffusionModel.call:
        raise TypeError(_NOT_A_FUNCTION.format(what=what))


def _published(
    cls: type[DiffusionModel], found: diffusers.Published, changes: Config
) -> DiffusionModel:
    """Return a model of what another library wrote."""
    if unfit := sorted(set(changes) - presets.FIT_ANY_WEIGHTS):
        raise ValueError(
            f"the weights of {found.source} do not fit a model with another {', '.join(unfit)}: "
            "leave that out"
        )
    recompute = truth("recompute", changes.pop("recompute", False))
    settings = {**found.config["network"], "dtype": changes.get("dtype"), "recompute": recompute}
    try:
        network = ddpm_unet(**settings)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"the configuration of {found.source} makes no network: {error}. Nothing was loaded"
        ) from error
    ddpm_names.assign(network, found.arrays, found.naming, found.source)
    try:
        return cls(**{**found.config, "network": network, **changes})
    except (ValueError, TypeError, OverflowError) as error:
        if changes:  # which may be what is wrong
            raise
        raise ValueError(
            f"the configuration of {found.source} makes no model: {error}. Nothing was loaded"
        ) from error


def load_model(filepath: str | os.PathLike, **kwargs: Any) -> DiffusionModel:
    """Read a model that `DiffusionModel.save` wrote; as `keras.models.load_model`, with clearer
    errors.

    Args:
        filepath: a `.keras` file.
        **kwargs: `compile`, `custom_objects` and `safe_mode`, as in `keras.models.load_model`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds something other than a `DiffusionModel`, or was
            written by a later version with settings that this one does not know; names the file.
            What is missing among the settings has its default.
    """
    return load_model_file(filepath, "ddim_keras>DiffusionModel", **kwargs)


def _objective(
    schedule: Any,
    parameterization: Any,
    loss_weighting: Any,
    told: tuple,
    distillation: Teaching | Config | None,
) -> Objective:
    """Return the objective that a user's arguments stand for, `told` being those of a
    `ConditionSpec`, with a warning where noise ends too soon.
    """
    parts = (
        resolve(schedule, Schedule, SCHEDULES),
        resolve(parameterization, Parameterization, PARAMETERIZATIONS),
        resolve(loss_weighting, Weighting, WEIGHTINGS),
        ConditionSpec(*told),
    )
    if distillation is None:
        objective = Objective(*parts)
    else:
        objective = resolve(distillation, Teaching, {}).objective(*parts)
    check_noise_end(objective.schedule, objective.parameterization)
    if (left := float(objective.schedule(np.array([1.0]))[0][0])) > _LARGEST_SIGNAL_AT_NOISE_END:
        warnings.warn(
            f"{objective.schedule!r} ends with a signal rate of {left:.2g}, but sampling starts "
            "from noise alone: let it end "
            "nearer to 0 (a lower min_signal_rate, or larger betas for fewer times)",
            stacklevel=3,
        )
    return objective


def _residual_settings(
    widths: Sequence[int],
    block_depth: int | Sequence[int],
    attention_levels: Sequence[int],
    patch_size: int,
    embedding_dims: int,
    embedding_max_frequency: float,
    conditioning: str,
    normalization: str,
    dropout: float,
    recompute: bool,
) -> Config:
    """Return what describes the residual U-Net, as `residual_unet` calls it."""
    return {
        "widths": integers("widths", widths),
        "block_depth": integer_or_integers("block_depth", block_depth),
        "embedding_dims": embedding_dims,
        "embedding_max_frequency": not_negative("embedding_max_frequency", embedding_max_frequency),
        "conditioning": conditioning,
        "normalization": normalization,
        "attention_levels": integers("attention_levels", attention_levels),
        "patch_size": patch_size,
        "dropout": not_negative("dropout", dropout),
        "recompute": truth("recompute", recompute),
    }


def _networks(
    network: keras.Model | Config | None,
    image_shape: tuple[int, int, int],
    objective: Objective,
    dtype: DType,
    **options: Any,
) -> tuple[keras.Model, keras.Model]:
    """Return the network that is trained, and the one that will be its average, with the same
    weights.
    """
    spec = objective.spec
    if network is None:
        policy = keras.dtype_policies.get(dtype)
        options["max_condition"] = objective.schedule.max_condition
        options |= {"num_classes": spec.num_classes, "condition_shape": spec.condition_shape}
        trained = residual_unet(image_shape, dtype=policy, name="network", **options)
        options |= {"recompute": False, "dropout": 0.0}  # it is never trained
        average = residual_unet(image_shape, dtype=policy, name="ema_network", **options)
    else:
        if options["recompute"]:
            raise ValueError(
                "recompute=True is for the residual U-Net, whose blocks are known: give a network "
                "of your own recomputation by itself (keras.RematScope while it is built)"
            )
        if options["dropout"]:
            raise ValueError(
                "dropout is for the residual U-Net: give a network of your own Dropout layers"
            )
        is_config = isinstance(network, dict)
        trained = keras.saving.deserialize_keras_object(network) if is_config else network
        _check_network(trained, image_shape, spec)
        average = copied(trained)
    # Made anew, it has fresh random weights, which the average would drag along for thousands of
    # steps.
    average.set_weights(trained.get_weights())
    return trained, average


def _check_network(
    network: keras.Model, image_shape: tuple[int, int, int], spec: ConditionSpec
) -> None:
    taken = {
        LABELS: (spec.takes_labels, "num_classes"),
        CONDITION: (spec.takes_condition, "condition_shape"),
    }
    named = {tensor.name: tensor for tensor in network.inputs if tensor.name in taken}
    for name, (is_taken, argument) in taken.items():
        if is_taken and name not in named:
            raise ValueError(
                f"the model has a {argument}, so its network needs an input called {name!r}: "
                f"keras.Input(..., name={name!r}); it has {[each.name for each in network.inputs]}"
            )
        if name in named and not is_taken:
            raise ValueError(
                f"the network has an input called {name!r}, so the model needs a {argument}"
            )
    if CONDITION in named and tuple(named[CONDITION].shape[1:]) != spec.condition_shape:
        raise ValueError(
            f"the network's input 'condition' has shape {tuple(named[CONDITION].shape)}, expected "
            f"(None, {', '.join(map(str, spec.condition_shape or ()))}), as condition_shape says"
        )
    if LABELS in named and tuple(named[LABELS].shape) not in ((None,), (None, 1)):
        raise ValueError(
            f"the network's input 'labels' has shape {tuple(named[LABELS].shape)}, expected "
            "(None,) or (None, 1): integers, where num_classes says nothing"
        )
    shapes = [tuple(tensor.shape) for tensor in network.inputs if tensor.name not in taken]
    expected = [(None, *image_shape), (None, 1, 1, 1)]
    if shapes != expected or tuple(network.output_shape) != expected[0]:
        raise ValueError(
            f"the network must map inputs of shapes {expected} to outputs of shape {expected[0]}, "
            f"got inputs {shapes} and "
            f"outputs {network.output_shape}"
        )
