"""The criteria that score every channel once, one small function each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ispasp_jax.selection.algorithm_1 import μ
from ispasp_jax.selection.criterion import criterion
from ispasp_jax.selection.problem import (
    Producer,
    Selection,
    Size,
    Unsuited,
    by_score,
    channels,
)

Hidden = Float[Array, "n *positions d"]
ByImage = Float[Array, "images d"]


@criterion
def random(key: Key[Array, ""], producer: Producer, size: Size) -> Selection:
    """Keeps channels drawn uniformly: the floor that a method has to leave behind."""
    return by_score(jax.random.uniform(key, (channels(producer),)), size)


@criterion
def activation(hidden: Hidden, size: Size) -> Selection:
    """The largest μ(H): i-SpaSP without its candidates, and the same from s >= d/2."""
    return by_score(μ(hidden.astype(jnp.float32)), size)


def filters(producer: Producer) -> Float[Array, "p d"]:
    """The filters that make the channels, one a column: the group's first kernel.

    Of several layers in a row (expansion and depthwise convolution) that is the one
    that mixes channels.
    """
    kernels = [array for array in producer.values() if array.ndim > 1]
    if not kernels:
        raise Unsuited(
            f"no kernel makes its channels ({', '.join(producer)}), and this criterion "
            "ranks them by its filters; choose another, ispasp for example."
        )
    kernel = kernels[0]
    return kernel.reshape(-1, kernel.shape[-1])


@criterion
def l1(producer: Producer, size: Size) -> Selection:
    """The L1 norm of the channel's filter (Li et al., arXiv 1608.08710)."""
    return by_score(jnp.abs(filters(producer)).sum(0), size)


@criterion
def l2(producer: Producer, size: Size) -> Selection:
    """The L2 norm of the channel's filter (soft filter pruning, arXiv 1808.06866)."""
    return by_score(jnp.sqrt(jnp.square(filters(producer)).sum(0)), size)


@criterion
def fpgm(producer: Producer, size: Size) -> Selection:
    """The filter's distance to all others of the group, summed: those nearest to the
    geometric median go, the others can stand in for them (He et al., arXiv 1811.00250).
    """
    W = filters(producer)

    def to_all(w):
        return jnp.sqrt(jnp.square(W - w[:, None]).sum(0)).sum()

    return by_score(jax.lax.map(to_all, W.T), size)


@criterion
def bn_scale(producer: Producer, size: Size) -> Selection:
    """|γ| of the batch norm that normalises the channels (Liu et al., network slimming,
    arXiv 1708.06519); of several, the last. Theirs are trained to be sparse first.
    """
    scales = [array for path, array in producer.items() if path.endswith("scale")]
    if not scales:
        raise Unsuited(
            f"no batch norm normalises its channels ({', '.join(producer)}), and "
            "bn_scale ranks them by its scale; choose another criterion, l1 for "
            "example."
        )
    return by_score(jnp.abs(scales[-1]), size)


@criterion
def taylor(gradient: ByImage, size: Size) -> Selection:
    """What removing the channel does to the loss, to first order: (∂L/∂z_c)², squared
    for each image and then averaged (Molchanov et al., arXiv 1906.10771, with gates,
    who square the average of a mini-batch). Needs labels; see walk/gates.py for the
    cost.
    """
    return by_score(jnp.square(gradient).mean(0), size)


@criterion
def sosp(gradient: ByImage, curvature: ByImage, size: Size) -> Selection:
    """After SOSP-H (Nonnenmacher et al., arXiv 2110.11395): first and second order of
    the loss, correlations included,

        |∂L/∂z_c| + ½ |(∂²L/∂z² · 1)_c|

    L averaged over the images. If the channels m go, the loss changes by
    −gᵀm + ½ mᵀHm; this is channel c's share, both terms in absolute values, were all
    channels to go: one product with the Hessian H. Needs labels; see walk/gates.py for
    the cost.

    Compared with the paper's abstract, not with its equations: the formula may be
    another one. This differs from the paper in:

    1. H holds the group's channels, there all structures of all layers.
    2. Every group keeps the size it is given, there all layers are ranked together.
    """
    first, second = gradient.mean(0), curvature.mean(0)
    return by_score(jnp.abs(first) + jnp.abs(second) / 2, size)
