"""BERT (Devlin et al. 2019) and its miniatures (Turc et al. 2019), classifying, with
Hugging Face's names.

It takes tokens alone. Where they are padding, nobody looks; behind the first separator
the second text begins.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ispasp_jax.models.layers import Dense, FromHeads, LayerNorm, SelfAttention

#: Layers, width, heads.
SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
}
EPSILON = 1e-12


class Layer(nn.Module):
    """Attention and a perceptron, each added and normalised behind.

    Attributes:
      heads: of the attention.
      neurons: of the perceptron.
      dropout: share that is dropped in training.
    """

    heads: int
    neurons: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n t c"],
        real: Bool[Array, "n t"],
        train: bool = False,
    ):
        width, own = x.shape[-1], nn.Dropout(self.dropout, deterministic=not train)
        attend = SelfAttention(
            self.heads, width // self.heads, self.dropout, name="attention.self"
        )
        y = FromHeads(width, name="attention.output.dense")(attend(x, real, train))
        x = LayerNorm(EPSILON, name="attention.output.LayerNorm")(x + own(y))
        y = Dense(self.neurons, name="intermediate.dense")(x)
        y = Dense(width, name="output.dense")(nn.gelu(y, approximate=False))
        return LayerNorm(EPSILON, name="output.LayerNorm")(x + own(y))


class BERT(nn.Module):
    """BERT with a classifier on what its pooler makes of the first token.

    Attributes:
      num_classes: length of the logits.
      width: channels of a token.
      heads: of each attention; the width is a multiple of them.
      depth: layers.
      vocabulary: how many tokens there are.
      positions: the longest text, in tokens.
      padding: the token that is none.
      separator: the token behind each text.
      dropout: share that is dropped in training.
    """

    num_classes: int = 2
    width: int = 128
    heads: int = 2
    depth: int = 2
    vocabulary: int = 30522
    positions: int = 512
    padding: int = 0
    separator: int = 102
    dropout: float = 0.1

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"], train: bool = False):
        real, ends = tokens != self.padding, tokens == self.separator
        second = (jnp.cumsum(ends, 1) > ends.astype(jnp.int32)) & real
        places = jnp.arange(tokens.shape[1])
        x = jnp.zeros(())
        for name, size, read in (
            ("word", self.vocabulary, tokens),
            ("token_type", 2, second.astype(tokens.dtype)),
            ("position", self.positions, places),
        ):
            name = f"bert.embeddings.{name}_embeddings"
            x = x + nn.Embed(size, self.width, name=name)(read)
        x = LayerNorm(EPSILON, name="bert.embeddings.LayerNorm")(x)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = drop(x)
        for index in range(self.depth):
            name = f"bert.encoder.layer.{index}"
            layer = Layer(self.heads, 4 * self.width, self.dropout, name=name)
            x = layer(x, real, train)
        x = nn.tanh(Dense(self.width, name="bert.pooler.dense")(x[:, 0]))
        return Dense(self.num_classes, name="classifier")(drop(x))


def bare_names(network: BERT) -> dict[str, str]:
    """The names of layers in a file without a classifier: theirs -> ours."""
    layers = ["embeddings.LayerNorm", "pooler.dense"]
    layers += [f"embeddings.{t}_embeddings" for t in ("word", "position", "token_type")]
    inside = [f"attention.self.{part}" for part in ("query", "key", "value")]
    inside += [f"{part}.{leaf}" for part in ("attention.output", "output") for leaf in (
        "dense", "LayerNorm")]  # fmt: skip
    for index in range(network.depth):
        for name in (*inside, "intermediate.dense"):
            layers.append(f"encoder.layer.{index}.{name}")
    return {name: f"bert.{name}" for name in layers}


def variant(size: str):
    """BERT of that size, for a vocabulary and its separator."""
    depth, width, heads = SIZES[size]

    def create(
        num_classes: int,
        vocabulary: int = 30522,
        positions: int = 512,
        padding: int = 0,
        separator: int = 102,
    ) -> BERT:
        return BERT(
            num_classes, width, heads, depth, vocabulary, positions, padding, separator
        )

    return create


def known_options(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The options that arrays tell of, by their names and shapes."""
    tables = {"vocabulary": "word_embeddings", "positions": "position_embeddings"}
    return {
        option: shape[0]
        for option, table in tables.items()
        for name, shape in shapes.items()
        if name.endswith(f"embeddings.{table}.weight")
    }


MODELS = {f"bert_{size}": variant(size) for size in SIZES}
ALIASES = {BERT: bare_names}
KNOWN = dict.fromkeys(MODELS, known_options)
#: What files hold besides: the heads that a text model was trained with at first.
BESIDE = {BERT: ("cls.",)}
#: Learning rate of AdamW, and its weight decay.
ADAMW = dict.fromkeys(MODELS, 1e-3)
WEIGHT_DECAY = dict.fromkeys(MODELS, 0.01)
#: The widths of values (what a head carries), and what the classifier reads.
IGNORE = dict.fromkeys(MODELS, ("*.value.2", "*pooler*"))
