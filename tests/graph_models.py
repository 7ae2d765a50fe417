"""Small models as their authors would write them, one a way that channels run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Flatten(nn.Module):
    """Convolutions, then a flattened map into dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Dense(12)(x.reshape((x.shape[0], -1))))
        return nn.Dense(5)(x)


class UNet(nn.Module):
    """A transposed convolution and a concatenated skip."""

    @nn.compact
    def __call__(self, x):
        a = nn.relu(nn.Conv(6, (3, 3))(x))
        b = nn.relu(nn.Conv(8, (3, 3), (2, 2))(a))
        up = nn.ConvTranspose(6, (2, 2), (2, 2))(b)
        x = nn.relu(nn.Conv(6, (3, 3))(jnp.concatenate([a, up], -1)))
        return nn.Conv(3, (1, 1))(x)


class SqueezeExcite(nn.Module):
    """Group norm, and a gate of every channel."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(8, (3, 3))(x)))
        gate = nn.relu(nn.Conv(4, (1, 1))(x.mean((1, 2), keepdims=True)))
        x = x * nn.sigmoid(nn.Conv(8, (1, 1))(gate))
        return nn.Dense(5)(nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2)))


class Encoder(nn.Module):
    """Attention and a perceptron, each added to the stream."""

    @nn.compact
    def __call__(self, x):
        y = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + y
        y = nn.Dense(12)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(y))


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4))(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param("token", nn.initializers.normal(1.0), (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, [x.shape[0], 1, 1]), x], 1)
        return nn.Dense(5)(nn.LayerNorm()(Encoder()(x))[:, 0])


class Fused(nn.Module):
    """Query, key and value from one kernel, taken apart by a reshape."""

    @nn.compact
    def __call__(self, x):
        n, h, w, c = x.shape
        qkv = nn.Dense(36)(x.reshape(n, h * w, c)).reshape(n, h * w, 3, 3, 4)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k)
        read = jnp.einsum("nhqk,nkhd->nqhd", nn.softmax(scores), v)
        return nn.Dense(5)(nn.Dense(6)(read.reshape(n, h * w, 12)).mean(1))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(6)(nn.relu(nn.Dense(10)(x))), None


class Scanned(nn.Module):
    """Rematerialised layers in a scan."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x.reshape(x.shape[0], -1))
        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return nn.Dense(5)(layers()(x, None)[0])


class DenseNet(nn.Module):
    """Every layer reads what all before it made."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        for _ in range(2):
            y = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            x = jnp.concatenate([x, nn.Conv(4, (3, 3))(y)], -1)
        return nn.Dense(5)(x.mean((1, 2)))


class MaskedLanguage(nn.Module):
    """Tokens in, the embedding tied to the output."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        return embed.attend(nn.LayerNorm()(Encoder()(embed(tokens))))


class Residual(nnx.Module):
    """An NNX network with a residual stream."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.grow = nnx.Conv(6, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.back = nnx.Conv(8, 6, (3, 3), rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        x = x + self.back(nnx.relu(self.norm(self.grow(x))))
        return self.head(x.mean((1, 2)))


class Trained(nn.Module):
    """Batch norm and dropout, for training steps."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), feature_group_count=1)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(6, (3, 3), feature_group_count=6)(x)
        x = nn.max_pool(nn.silu(x), (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(5)(x)


def images(count: int = 2, side: int = 8):
    return jax.random.normal(jax.random.key(1), (count, side, side, 3))


def variables(model, *inputs):
    """Its variables, every array random and none zero."""
    made = model.init(jax.random.key(0), *inputs)
    return jax.tree.map(
        lambda a: a + 0.2 * jnp.abs(jax.random.normal(jax.random.key(a.size), a.shape)),
        made,
    )
