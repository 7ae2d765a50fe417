"""Vision transformers (Dosovitskiy et al. 2021, DeiT: Touvron et al. 2021) with timm's
names; timm's fused queries, keys and values are three layers here.
"""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ispasp_jax.models.layers import (
    Conv,
    Dense,
    FromHeads,
    LayerNorm,
    SelfAttention,
)

#: Width and heads.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}

#: Pixels of a patch's side where the image is small.
SMALL = 4


class Perceptron(nn.Module):
    """timm's Mlp.

    Attributes:
      neurons: how many.
    """

    neurons: int

    @nn.compact
    def __call__(self, x: Float[Array, "n t c"]):
        y = nn.gelu(Dense(self.neurons, name="fc1")(x), approximate=False)
        return Dense(x.shape[-1], name="fc2")(y)


class Block(nn.Module):
    """Attention and a perceptron, each normalised before and added."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n t c"]):
        width = x.shape[-1]
        y = LayerNorm(1e-6, name="norm1")(x)
        y = SelfAttention(self.heads, width // self.heads, name="attn")(y)
        x = x + FromHeads(width, name="attn.proj")(y)
        y = LayerNorm(1e-6, name="norm2")(x)
        return x + Perceptron(4 * width, name="mlp")(y)


class ViT(nn.Module):
    """A vision transformer.

    Attributes:
      num_classes: length of the logits.
      patch: pixels of a patch's side.
      width: channels of a patch.
      heads: of each attention; the width is a multiple of them.
      depth: blocks.
      pooling: what is classified: a "token" of its own, or the "mean" of the patches.
    """

    num_classes: int = 1000
    patch: int = 16
    width: int = 192
    heads: int = 3
    depth: int = 12
    pooling: str = "token"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        n, side = len(x), self.patch
        embed = Conv(
            self.width, side, side, padding=0, use_bias=True, name="patch_embed.proj"
        )
        x = embed(x).reshape(n, -1, self.width)
        small = nn.initializers.normal(0.02)
        token = self.param("cls_token", small, (1, 1, self.width))
        token = jnp.broadcast_to(token.astype(x.dtype), (n, 1, self.width))
        x = jnp.concatenate([token, x], 1)
        places = self.param("pos_embed", small, (1, x.shape[1], self.width))
        x = x + places.astype(x.dtype)
        for index in range(self.depth):
            x = Block(self.heads, name=f"blocks.{index}")(x)
        if self.pooling == "mean":
            x = LayerNorm(1e-6, name="fc_norm")(x[:, 1:].mean(1))
        else:
            x = LayerNorm(1e-6, name="norm")(x)[:, 0]
        return Dense(self.num_classes, name="head")(x)


def transformers_names(network: ViT) -> dict[str, str]:
    """Hugging Face's name of every layer and array -> ours."""
    names = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "vit.layernorm": "norm",
        "classifier": "head",
    }
    layer = {
        "layernorm_before": "norm1",
        "attention.attention.query": "attn.query",
        "attention.attention.key": "attn.key",
        "attention.attention.value": "attn.value",
        "attention.output.dense": "attn.proj",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    for index in range(network.depth):
        for theirs, ours in layer.items():
            names[f"vit.encoder.layer.{index}.{theirs}"] = f"blocks.{index}.{ours}"
    return names


def variant(size: str, patch: int):
    """A vision transformer of that size: stem "imagenet", or "small" with patches for
    small images; pooling "token" or "mean".
    """
    width, heads = SIZES[size]

    def create(
        num_classes: int,
        stem: Literal["imagenet", "small"] = "imagenet",
        pooling: Literal["token", "mean"] = "token",
    ) -> ViT:
        side = SMALL if stem == "small" else patch
        return ViT(num_classes, side, width, heads, pooling=pooling)

    return create


def known_options(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The options that arrays tell of, by their names and shapes."""
    return {"pooling": "mean"} if "fc_norm.weight" in shapes else {}


_DEIT = {f"deit_{size}_patch16_224": variant(size, 16) for size in SIZES}
_VIT = {
    f"vit_{size}_patch{patch}_224": variant(size, patch)
    for size in SIZES
    for patch in (16, 32)
}
MODELS = {**_VIT, **_DEIT}

#: What timm's weights of them were trained on.
PREPROCESSING = {name: {"mean": (0.5,) * 3, "std": (0.5,) * 3} for name in _VIT}
ALIASES = {ViT: transformers_names}
KNOWN = dict.fromkeys(MODELS, known_options)
#: Learning rate of AdamW, and its weight decay.
ADAMW = dict.fromkeys(MODELS, 1e-3)
WEIGHT_DECAY = dict.fromkeys(MODELS, 0.05)
#: The widths of values: what a head carries.
IGNORE = dict.fromkeys(MODELS, ("*.value.2",))
