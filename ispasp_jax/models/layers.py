"""Layers whose numbers are the plain convolution's and whose speed suits the backend.

XLA's CPU backend is two orders of magnitude slow at depthwise convolutions and at
kernels larger than their output map. There, both are sums of shifted products, one a
tap; every other backend runs the plain convolution (jax.lax.platform_dependent).

Every layer computes in its input's dtype, so images in bfloat16 make all activations
bfloat16; parameters and batch statistics stay in float32.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Bool, Float

Padding = Sequence[tuple[int, int]]


def as_input(x: Array, *parameters: Array | None, **options) -> list[Array | None]:
    """The input, and parameters cast to its dtype: for nn.Conv's and nn.Dense's hook
    promote_dtype, which would raise a half-precision input to the parameters' dtype.
    """
    if options.get("dtype") is None and jnp.issubdtype(x.dtype, jnp.floating):
        options["dtype"] = x.dtype
    return promote_dtype(x, *parameters, **options)


#: Flax says that the hook takes a tuple, and calls it with the arrays.
_PROMOTE: Any = as_input


def is_half(x: Array) -> bool:
    """Whether sums of it are taken in float32."""
    return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw i o"],
    strides: Sequence[int],
    padding: str | Padding,
    **options,
) -> Float[Array, "n hh ww o"]:
    """jax.lax.conv_general_dilated on NHWC and HWIO, for nn.Conv's hook of that
    name.
    """
    plain = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        **options,
    )
    taps = kernel.shape[:2]
    undilated = all(
        set(options.get(name) or (1,)) == {1}
        for name in ("lhs_dilation", "rhs_dilation")
    )
    if not undilated or taps == (1, 1):
        return plain(x, kernel)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], taps, strides, padding)
    depthwise = options.get("feature_group_count", 1) == x.shape[-1] > 1
    multiplied = kernel.shape[3] // kernel.shape[2] == x.shape[-1] == kernel.shape[3]
    out = [
        (size + sum(pad) - tap) // stride + 1
        for size, pad, tap, stride in zip(
            x.shape[1:3], padding, taps, strides, strict=True
        )
    ]
    if depthwise and multiplied:
        product = _scale_channels
    elif options.get("feature_group_count", 1) == 1 and min(out) < min(taps):
        product = functools.partial(_mix_channels, options.get("precision"))
    else:
        return plain(x, kernel)
    shifted = functools.partial(_shifted, product, tuple(strides), tuple(padding), out)
    return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=plain)


def _scale_channels(x: Float[Array, "n h w c"], tap: Float[Array, "1 c"]):
    return x * tap[0]


def _mix_channels(precision, x: Float[Array, "n h w c"], tap: Float[Array, "c o"]):
    return jnp.matmul(x, tap, precision=precision)


def _shifted(product, strides, padding, out, x, kernel):
    dtype = x.dtype
    if is_half(x):  # as the plain convolution adds up
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    total = None
    for place in itertools.product(*map(range, kernel.shape[:2])):
        ends = [
            p + s * (o - 1) + 1 for p, s, o in zip(place, strides, out, strict=True)
        ]
        reads_input = all(
            end > low and start < low + size
            for start, end, (low, _), size in zip(
                place, ends, padding, x.shape[1:3], strict=True
            )
        )
        if not reads_input:  # the tap sees padding alone
            continue
        (i, j), (i_end, j_end) = place, ends
        window = padded[:, i : i_end : strides[0], j : j_end : strides[1]]
        term = product(window, kernel[place])
        total = term if total is None else total + term
    assert total is not None, "every window sees a pixel"
    return total.astype(dtype)


def Conv(
    features: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    padding: str | int | None = None,
    depthwise: bool = False,
    use_bias: bool = False,
    **options,
) -> nn.Conv:
    """A square convolution, padded as torch pads it: k // 2 on every side.

    Args:
      features: output channels.
      kernel: side of the kernel in pixels.
      stride: step in pixels.
      padding: "SAME" for TensorFlow's, or pixels on every side.
      depthwise: one kernel a channel; features must equal the input's.
      use_bias: whether there is one.
      **options: of nn.Conv.
    """
    if padding is None:
        padding = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        stride,
        padding=padding if isinstance(padding, str) else [(padding, padding)] * 2,
        feature_group_count=features if depthwise else 1,
        use_bias=use_bias,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=convolve,
        promote_dtype=_PROMOTE,
        **options,
    )


def Dense(features: int, **options) -> nn.Dense:
    """nn.Dense that computes in its input's dtype."""
    return nn.Dense(features, promote_dtype=_PROMOTE, **options)


class BatchNorm(nn.BatchNorm):
    """Batch norm as torch's: eps 1e-5, a tenth of each batch into the running
    moments. Its arithmetic is float32's at least, its output of the input's dtype.
    """

    momentum: float = 0.9

    # A layer here is told whether it trains; Flax's asks for the running average.
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "n ... c"], train: bool = False
    ):
        raised = x.astype(jnp.float32) if is_half(x) else x
        return super().__call__(raised, use_running_average=not train).astype(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in float32 at least and gives its input's dtype."""

    def __call__(self, x: Float[Array, "n ... c"]):  # pyright: ignore[reportIncompatibleMethodOverride]
        raised = x.astype(jnp.float32) if is_half(x) else x
        return super().__call__(raised).astype(x.dtype)


class SelfAttention(nn.Module):
    """Heads that look at every place, up to the projection that reads them.

    Attributes:
      heads: how many.
      width: of a head's queries and keys, and of its values.
      dropout: share of the attention that is dropped in training.
    """

    heads: int
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n t c"],
        real: Bool[Array, "n t"] | None = None,
        train: bool = False,
    ):
        q, k, v = (
            nn.DenseGeneral((self.heads, self.width), name=name, promote_dtype=_PROMOTE)
            for name in ("query", "key", "value")
        )
        # The scale is the width's that the network was trained with, whatever is cut.
        products = jnp.einsum("nqhw,nkhw->nhqk", q(x) / self.width**0.5, k(x))
        if real is not None:
            least = jnp.finfo(products.dtype).min
            products = jnp.where(real[:, None, None, :], products, least)
        shares = nn.softmax(products)
        shares = nn.Dropout(self.dropout, deterministic=not train)(shares)
        return jnp.einsum("nhqk,nkhw->nqhw", shares, v(x))


def FromHeads(features: int, **options) -> nn.DenseGeneral:
    """The projection that reads all heads' values."""
    return nn.DenseGeneral(features, axis=(-2, -1), promote_dtype=_PROMOTE, **options)
