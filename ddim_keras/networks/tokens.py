"""A network for sequences of categories: a transformer that is told the noise level."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers, ops

from ddim_keras.networks.layers import SinusoidalEmbedding
from ddim_keras.networks.unet import with_float32_weights
from ddim_keras.support import backend
from ddim_keras.support.types import DType

_FEATURES_OF_A_HEAD = 32


@keras.saving.register_keras_serializable("ddim_keras")
class PlacesEmbedding(layers.Layer):
    """Adds to each token a vector of its place, which is learned.

    Input and output: (batch, length, features).
    """

    def build(self, input_shape):
        self.places = self.add_weight(shape=input_shape[1:], initializer="zeros", name="places")

    def call(self, tokens):
        return tokens + ops.cast(self.places, tokens.dtype)


def sequence_transformer(
    length: int,
    categories: int,
    widths: Sequence[int] = (128, 128, 128, 128),
    embedding_dims: int = 32,
    embedding_max_frequency: float = 1000.0,
    max_condition: float = 1.0,
    dropout: float = 0.0,
    dtype: DType = None,
    name: str = "network",
) -> keras.Model:
    """Build a transformer of pre-normalised blocks, in which every token sees all others.

    The noise variance enters as a sinusoidal embedding that is added to every token. The last layer
    starts at zero, so the untrained network finds all categories equally likely.

    Args:
        length: tokens of a sequence.
        categories: K.
        widths: features of the blocks, one for each; all equal.
        embedding_dims, embedding_max_frequency, max_condition: as for `residual_unet`.
        dropout: share, in [0, 1), of what each block adds that training leaves out.
        dtype: Keras dtype policy of the layers; the embedding and the last layer are float32 in any
            case.
        name: name of the model.

    Returns:
        A functional model of [chances (batch, length, categories), noise variances (batch, 1, 1)],
        which returns logits (batch, length, categories).

    Raises:
        ValueError: no widths, or unequal ones.

    Source: Vaswani et al. 2017; the normalisation's place is that of Xiong et al. 2020.
    """
    if not len(widths) or len(set(widths)) > 1 or widths[0] < 1:
        raise ValueError(
            "widths of a sequence's network are one for each block, all equal, such as "
            f"(128, 128, 128, 128): got {tuple(widths)}"
        )
    dtype, width = with_float32_weights(dtype), int(widths[0])
    tokens = keras.Input((length, categories), dtype="float32", name="noisy_categories")
    noise_variances = keras.Input((1, 1), dtype="float32", name="noise_variances")
    embed = SinusoidalEmbedding(embedding_dims, embedding_max_frequency, max_condition)
    told = layers.Dense(width, "swish", dtype=dtype)(embed(noise_variances))
    x = PlacesEmbedding(dtype=dtype)(layers.Dense(width, dtype=dtype)(tokens))
    heads = max(1, width // _FEATURES_OF_A_HEAD)
    attends = backend.attention_policy(keras.dtype_policies.get(dtype))
    for _ in widths:
        x = layers.Add(dtype=dtype)([x, layers.Dense(width, dtype=dtype)(told)])
        seen = layers.LayerNormalization(dtype=dtype)(x)
        attention = layers.MultiHeadAttention(heads, max(1, width // heads), dtype=attends)
        seen = layers.Dropout(dropout, dtype=dtype)(attention(seen, seen))
        x = layers.Add(dtype=dtype)([x, seen])
        seen = layers.LayerNormalization(dtype=dtype)(x)
        seen = layers.Dense(4 * width, "gelu", dtype=dtype)(seen)
        seen = layers.Dropout(dropout, dtype=dtype)(layers.Dense(width, dtype=dtype)(seen))
        x = layers.Add(dtype=dtype)([x, seen])
    x = layers.LayerNormalization(dtype="float32")(x)
    logits = layers.Dense(categories, kernel_initializer="zeros", dtype="float32")(x)
    return keras.Model([tokens, noise_variances], logits, name=name)
