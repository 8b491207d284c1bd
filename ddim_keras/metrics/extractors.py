"""Feature extractors: images to the vectors that the metrics compare."""

from __future__ import annotations

import abc
import contextlib
import functools
import os
import pathlib
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras import ops

from ddim_keras.metrics.classifiers import CIFAR10, FASHION_MNIST, Classifier
from ddim_keras.support.arguments import positive_int
from ddim_keras.support.configurable import Configurable, resolve
from ddim_keras.support.cores import by_parts
from ddim_keras.support.downloads import reachable
from ddim_keras.support.types import Config, Features, Images, Tensor

# Where keras.applications downloads them from.
_INCEPTION_V3 = (
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
    "inception_v3_weights_tf_dim_ordering_tf_kernels.h5"
)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Extractor(Configurable, abc.ABC):
    """Base class: images (batch, height, width, channels) in [0, 1] to feature vectors.

    Attributes:
        feature_dims: numbers in a feature vector.
        num_classes: classes told apart, or None if `probabilities` does not exist.
        compiles: whether it can run inside a compiled step, as Keras metrics do in validation.
    """

    feature_dims: int
    num_classes: int | None = None
    compiles = True

    @abc.abstractmethod
    def features(self, images: Images) -> Features:
        """Return feature vectors, float32 (batch, feature_dims)."""

    def probabilities(self, images: Images) -> Features:
        """Return class probabilities, float32 (batch, num_classes), for the Inception Score and
        the agreement with labels.

        Raises:
            ValueError: this extractor classifies nothing.
        """
        raise ValueError(
            f"{self!r} gives no class probabilities, which the Inception Score and the agreement "
            "with labels need: use another extractor"
        )


@keras.saving.register_keras_serializable("ddim_keras")
class KerasExtractor(Extractor):
    """Any Keras model as an extractor.

    Args:
        model: maps images (batch, height, width, channels) in [0, 1] to features (batch, dims), or
            to a pair of those and class logits (batch, classes). Images of another size are resized
            to its input's, grey ones repeated and coloured ones turned grey as it wants them.

    Raises:
        ValueError: the model's inputs or outputs have other shapes.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        shape = tuple(model.input_shape) if not isinstance(model.input_shape, list) else ()
        outputs = [tuple(output.shape) for output in model.outputs]
        if (
            len(shape) != 4
            or len(outputs) > 2
            or any(len(output) != 2 or output[1] is None for output in outputs)
        ):
            raise ValueError(
                "an extractor must map images (batch, height, width, channels) to features (batch, "
                "dims), or to those and "
                f"logits (batch, classes); this model maps {model.input_shape} to {outputs}: add a "
                "global pooling?"
            )
        self.feature_dims = outputs[0][1]
        self.num_classes = outputs[1][1] if len(outputs) == 2 else None

    def features(self, images: Images) -> Features:
        return self._outputs(images)[0]

    def probabilities(self, images: Images) -> Features:
        if self.num_classes is None:
            return super().probabilities(images)
        return ops.softmax(self._outputs(images)[1], axis=-1)

    def prepare(self, images: Images) -> Images:
        """Return images of the size and channels that the model takes."""
        height, width, channels = self.model.input_shape[1:]
        images = with_channels(ops.convert_to_tensor(images, dtype="float32"), channels)
        if None not in (height, width) and tuple(images.shape[1:3]) != (height, width):
            images = resized(images, (height, width))
        return images

    def _outputs(self, images: Images) -> list:
        outputs = _outputs_of(self.model, self.prepare(images))
        return [
            ops.cast(output, "float32")
            for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])
        ]

    def get_config(self) -> Config:
        return {"model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: Config) -> KerasExtractor:
        return cls(keras.saving.deserialize_keras_object(config["model"]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.name!r})"


class _ShippedExtractor(KerasExtractor):
    """One of the small classifiers that ship with the package."""

    def __init__(self, classifier: Classifier):
        with _keras_defaults():
            super().__init__(classifier.load())

    def get_config(self) -> Config:
        return {}

    @classmethod
    def from_config(cls, config: Config) -> _ShippedExtractor:
        return cls(**config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@keras.saving.register_keras_serializable("ddim_keras")
class FashionMNISTExtractor(_ShippedExtractor):
    """The small classifier of clothes that ships with the package, for images like Fashion-MNIST's;
    needs no network.

    128 features. Images of 28 x 28 are padded to 32 x 32, others resized. Its figures compare with
    each other alone, not with those of papers.
    """

    def __init__(self) -> None:
        super().__init__(FASHION_MNIST)

    def prepare(self, images: Images) -> Images:
        images = with_channels(ops.convert_to_tensor(images, dtype="float32"), 1)
        if tuple(images.shape[1:3]) == (28, 28):
            return ops.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
        return super().prepare(images)


@keras.saving.register_keras_serializable("ddim_keras")
class CIFAR10Extractor(_ShippedExtractor):
    """The small classifier of CIFAR-10 that ships with the package, for colour photos; needs no
    network.

    192 features, of images resized to 32 x 32. Its figures compare with each other alone, not with
    those of papers.
    """

    def __init__(self) -> None:
        super().__init__(CIFAR10)


@keras.saving.register_keras_serializable("ddim_keras")
class InceptionV3Extractor(Extractor):
    """InceptionV3 of keras.applications, trained on ImageNet, as the Keras DDIM example uses it.

    2048 features. Its figures compare with the example's at the same `image_size`, not with those
    of papers: for these see `Inception2015Extractor`.

    Args:
        image_size: side to which the images are resized, in pixels, at least 75. The example's is
            75, the network's own 299.
        weights: "imagenet" takes Keras's cache, or downloads (96 MB); or the path of the weights
            file of the network with its top, inception_v3_weights_tf_dim_ordering_tf_kernels.h5, or
            of a `.weights.h5` of it.

    Raises:
        ConnectionError: the weights are not in the cache and cannot be downloaded.
        FileNotFoundError: there is no file of weights at the path given.
    """

    feature_dims = 2048
    num_classes = 1000

    def __init__(self, image_size: int = 75, weights: str = "imagenet"):
        self.image_size = positive_int("image_size", image_size)
        if image_size < 75:
            raise ValueError(
                "image_size must be at least 75, the smallest that InceptionV3 takes, got "
                f"{image_size}"
            )
        self.weights = os.path.expanduser(str(weights))
        if self.weights != "imagenet" and not pathlib.Path(self.weights).is_file():
            raise FileNotFoundError(f"no weights of InceptionV3 at {self.weights}")
        with _keras_defaults():
            whole = self._with_top()
            body = keras.applications.InceptionV3(
                include_top=False,
                input_shape=(image_size, image_size, 3),
                weights=None,
                pooling="avg",
            )
        body.set_weights(whole.get_weights()[:-2])
        logits = whole.layers[-1]
        logits.activation = keras.activations.linear
        self.model = keras.Model(body.input, [body.output, logits(body.output)])

    def features(self, images: Images) -> Features:
        return _outputs_of(self.model, self._prepare(images))[0]

    def probabilities(self, images: Images) -> Features:
        return ops.softmax(_outputs_of(self.model, self._prepare(images))[1], axis=-1)

    def get_config(self) -> Config:
        return {"image_size": self.image_size, "weights": self.weights}

    def _prepare(self, images: Images) -> Images:
        images = with_channels(ops.convert_to_tensor(images, dtype="float32"), 3)
        size = (self.image_size, self.image_size)
        return 2.0 * ops.image.resize(images, size, data_format="channels_last") - 1.0

    def _with_top(self) -> keras.Model:
        if self.weights != "imagenet":
            whole = keras.applications.InceptionV3(weights=None)
            whole.load_weights(self.weights)
            return whole
        # Keras goes to the second where it may not write to the first.
        caches = [
            pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser(),
            pathlib.Path(tempfile.gettempdir(), ".keras"),
        ]
        name = _INCEPTION_V3.rsplit("/", 1)[-1]
        try:
            if not any((cache / "models" / name).is_file() for cache in caches) and not reachable(
                _INCEPTION_V3
            ):
                raise ConnectionError(
                    f"{urllib.parse.urlsplit(_INCEPTION_V3).hostname} cannot be reached"
                )
            return keras.applications.InceptionV3()
        except Exception as error:  # Keras raises a bare Exception when a download fails
            raise ConnectionError(
                f"the weights of InceptionV3 are not in Keras's cache ({caches[0] / 'models'}) and "
                "cannot be downloaded "
                f"({error}): give InceptionV3Extractor(weights=path), or "
                "extractor='cifar10', or 'fashion_mnist' for clothes, which ship with the "
                "package, or any KerasExtractor(model)"
            ) from error


@keras.saving.register_keras_serializable("ddim_keras")
class Inception2015Extractor(Extractor):
    """The Inception network of 2015 that papers use, as torch-fidelity runs it: its figures compare
    with the literature.

    2048 features, images resized to 299 x 299 as the original graph does, in PyTorch: not within a
    compiled step. Needs `pip install 'ddim_keras[fidelity]'`, and its weights (91 MB), which
    torch-fidelity downloads once.

    Args:
        weights: path of torch-fidelity's weights file, or None for its cache or a download.

    Raises:
        ImportError: torch-fidelity is not installed.
        ConnectionError: the weights are not there and cannot be downloaded.
    """

    feature_dims = 2048
    num_classes = 1008
    compiles = False

    def __init__(self, weights: str | None = None):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (
            ImportError,
            RuntimeError,
        ) as error:  # a torchvision made for another torch raises the latter
            raise ImportError(
                "figures that compare with papers need torch-fidelity, which cannot be imported "
                f"({error}): pip install 'ddim_keras[fidelity]'"
            ) from error
        self.weights = weights = None if weights is None else os.path.expanduser(weights)
        if weights is not None and not pathlib.Path(weights).is_file():
            raise FileNotFoundError(f"no weights of the 2015 Inception network at {weights}")
        outputs = ["2048", "logits_unbiased"]
        try:
            self._network = FeatureExtractorInceptionV3(
                "inception-v3-compat", outputs, feature_extractor_weights_path=weights
            )
        except OSError as error:
            raise ConnectionError(
                "torch-fidelity could not download the weights of the 2015 Inception network "
                f"({error}): give "
                "Inception2015Extractor(weights=path)"
            ) from error

    def features(self, images: Images) -> Features:
        return self._outputs(images)[0]

    def probabilities(self, images: Images) -> Features:
        return ops.softmax(self._outputs(images)[1], axis=-1)

    def get_config(self) -> Config:
        return {"weights": self.weights}

    def _outputs(self, images: Images) -> list[np.ndarray]:
        import torch

        images = ops.convert_to_numpy(
            with_channels(ops.convert_to_tensor(images, dtype="float32"), 3)
        )
        bytes_ = np.rint(255.0 * np.clip(images, 0.0, 1.0)).astype("uint8")
        with torch.no_grad():
            outputs = self._network(
                torch.from_numpy(np.ascontiguousarray(bytes_.transpose(0, 3, 1, 2)))
            )
        return [output.numpy() for output in outputs]


def _outputs_of(model: keras.Model, images: Images) -> Tensor:
    return by_parts(lambda part: model(part[0], training=False), [images])


@contextlib.contextmanager
def _keras_defaults() -> Iterator[None]:
    """Let networks be built as their weights expect it, whatever the user configured."""
    config = keras.config
    before = config.image_data_format(), config.floatx(), config.dtype_policy()
    config.set_image_data_format("channels_last")
    config.set_floatx("float32")
    config.set_dtype_policy("float32")
    try:
        yield
    finally:
        config.set_image_data_format(before[0])
        config.set_floatx(before[1])
        config.set_dtype_policy(before[2])


EXTRACTORS: dict[str, Callable[[], Extractor]] = {
    "inception_v3": InceptionV3Extractor,
    "fashion_mnist": FashionMNISTExtractor,
    "cifar10": CIFAR10Extractor,
    "inception_2015": Inception2015Extractor,
}


@functools.cache
def _named(name: str) -> Extractor:
    return EXTRACTORS[name]()


def get_extractor(identifier: str | dict | Extractor | keras.Model) -> Extractor:
    """Return the extractor that a name, a config, a Keras model or an extractor stands for; one for
    each name.
    """
    if isinstance(identifier, keras.Model):
        return KerasExtractor(identifier)
    return resolve(
        identifier, Extractor, {name: functools.partial(_named, name) for name in EXTRACTORS}
    )


def resized(images: Images, size: tuple[int, int]) -> Images:
    """Return images resized with antialiasing, by products with constant matrices, which XLA
    compiles on every device.

    Args:
        images: (batch, height, width, channels), of known height and width.
        size: the new (height, width).
    """
    rows, columns = (_triangle_filter(old, new) for old, new in zip(images.shape[1:3], size))
    return ops.einsum("yh,bhwc,xw->byxc", rows, images, columns)


def _triangle_filter(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix of linear interpolation, widened by the scale where it shrinks."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old) - centres[:, None]) / max(scale, 1.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")


def with_channels(images: Images, channels: int) -> Images:
    """Return images of 1, 3 or 4 channels with as many as asked for: repeated, turned to luma, or
    without alpha.
    """
    given = images.shape[-1]
    if given == channels:
        return images
    if given in (3, 4) and channels == 1:
        return ops.sum(images[..., :3] * ops.convert_to_tensor(_LUMA), axis=-1, keepdims=True)
    if given == 4 and channels == 3:
        return images[..., :3]
    if given == 1 and channels == 3:
        return ops.repeat(images, 3, axis=-1)
    raise ValueError(
        f"the extractor takes images of {channels} channels, got {given}: convert them first"
    )
