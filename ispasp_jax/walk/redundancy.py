"""How redundant every group is, before anything is cut: the singular values of its
hidden channels and, with labels, of the loss's gradient by them.

    H    hidden channels of all examples and positions, centred, since a refitted shift
         gives their means back                                     (n · positions, d)
    G    gradient of each example's loss by a gate on every channel  (n, d)
    σ    singular values of either, the largest first
    τ    tolerance

    rank(τ) = min{r : Σ_{i>r} σ_i² <= τ² Σ σ_i²}

so that the best matrix of that rank misses at most the share τ of H's norm. Channels
beyond it are, but for that share, sums of others, and what reads the group can do
without them once it is refitted. No r channels span as much as the r largest singular
vectors, so the rank is a bound from below: how far a group can go at most.

The rank of G counts in how many directions the channels move the loss; few are a sign
of redundancy, too, after the analysis of the gradient matrix by Zhou et al. (arXiv
2206.03596). This differs from the paper, of which an abstract and a summary were at
hand and no equations, in:

1. Gates on channels stand for the filters' weights.
2. The share of the norm says what is small.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group, Traced
from ispasp_jax.walk import flat, forms, gates, inputs, layouts, places, sites, streams
from ispasp_jax.walk.batches import Images, share
from ispasp_jax.walk.pieces import compiled
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream

#: The share of the norm that a rank leaves out, where nothing else is said.
TOLERANCE = 0.1


class Redundancy(NamedTuple):
    """What a group's channels hold.

    Attributes:
      hidden: singular values of H over the root of its rows, the largest first.
      gradient: of G, so too; None without labels.
    """

    hidden: Float[np.ndarray, " d"]
    gradient: Float[np.ndarray, " d"] | None = None

    @property
    def width(self) -> int:
        """How many channels the group has."""
        return len(self.hidden)

    def rank(self, tolerance: float = TOLERANCE) -> int:
        """Of H."""
        return rank(self.hidden, tolerance)

    def gradient_rank(self, tolerance: float = TOLERANCE) -> int | None:
        """Of G; None without labels."""
        return None if self.gradient is None else rank(self.gradient, tolerance)


def rank(values: Float[np.ndarray, " d"], tolerance: float = TOLERANCE) -> int:
    """The numerical rank.

    Args:
      values: singular values, the largest first.
      tolerance: τ.

    Returns:
      rank(τ) as above, 1 at least.

    Raises:
      InputError: the tolerance is none of [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise InputError(
            f"a rank's tolerance is a share of the norm, from 0 to below 1; got "
            f"{tolerance!r}."
        )
    squares = np.square(np.asarray(values, np.float64))
    missing = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # missing[r] = Σ_{i>r}
    return max(1, int((missing > tolerance**2 * missing[0]).sum()))


def redundancy(
    traced: Traced,
    variables: Any,
    images: Images,
    groups: Iterable[Group] | None = None,
    *,
    labels: gates.Labels | None = None,
    mesh: Mesh | None = None,
    memory: int | None = None,
    real: places.Real | None = None,
) -> dict[str, Redundancy]:
    """The redundancy of every group, from one pass over the dense network.

    Args:
      traced: the dense model.
      variables: its variables.
      images: calibration batches, preprocessed.
      groups: of the model, those to measure; all if None.
      labels: the images' classes, for the gradient; it costs one program and a backward
        pass for all groups together.
      mesh: devices to spread the images over.
      memory: bytes of the images' activations that each device may keep.
      real: which places of the inputs are no padding; see places.py.

    Returns:
      By group; one that no consumer reads in a known form is left out, and so are those
      of scanned layers. Of several consumers the first is asked for H.

    Raises:
      FloatingPointError: NaN or infinity in weights, images or activations.
      InputError: the images are no batches that the model takes, or the labels are not
        theirs.
    """
    inputs.check_variables(variables)
    traced, batches = inputs.opened(traced, images, mesh)
    program = flat.flatten(traced)
    weights = flat.arrays(program, jax.device_put(variables))
    memory = share(memory, mesh, 1)
    here = streams.start(program, weights, batches, mesh, memory)
    here = places.start(here, real, mesh)
    names = {group.name for group in (traced.groups if groups is None else groups)}
    readers = _readers(traced, sites.suited(program), names)
    gradient = {}
    if labels is not None:
        pairs = [(traced[name], reads) for name, reads in readers.items()]
        gradient = gates.gradients(pairs, here, gates.aligned(labels, here, mesh))
    hidden = {}
    first = {name: min(reads, key=lambda s: s.place) for name, reads in readers.items()}
    for site in sorted({*first.values()}, key=lambda site: site.place):
        here = here.named(site.name).hidden(site.place)
        for name in [name for name, own in first.items() if own == site]:
            variances = np.linalg.eigvalsh(_covariance(here, site, traced[name]))
            hidden[name] = np.sqrt(np.maximum(variances[::-1], 0))
    return {
        name: Redundancy(hidden[name], _singular(gradient.get(name)))
        for name in readers
    }


def _readers(traced: Traced, every: list[Site], names: set[str]):
    """The consumers of every group whose form is known, by group."""
    result: dict[str, list[Site]] = {}
    for group in traced.groups:
        if group.name not in names or group.layers or group.kind == "product":
            continue
        own = [*sites.of_leaf(every, group.atom)]
        try:
            for site in own:
                sites.index(site, group.atom)
        except forms.Unsuited:
            continue
        if own:
            result[group.name] = own
    return result


def _singular(matrix: Array | None) -> Float[np.ndarray, " d"] | None:
    """Over the root of the rows; as many as columns."""
    if matrix is None:
        return None
    G = np.asarray(matrix, np.float64)
    found = np.linalg.svd(G, compute_uv=False) / np.sqrt(len(G))
    return np.pad(found, (0, G.shape[1] - len(found)))


def _covariance(here: Stream, site: Site, group: Group) -> Float[np.ndarray, "d d"]:
    """Of the group's channels, over examples and positions; batch by batch about their
    own mean, so that nothing is lost in single precision (Chan et al. 1983).
    """
    own = sites.index(site, group.atom)

    def make():
        def sums(h: Array, real: Array, own: Array):
            h = layouts.as_hidden(site, h)[..., own]  # (n, *positions, d, m)
            real = layouts.as_hidden(site, real)[..., 0] if real.ndim > 1 else real
            real = real.reshape(*real.shape, *[1] * (h.ndim - 1 - real.ndim))
            x = jnp.moveaxis(h, -1, -2).astype(jnp.float32)
            w = jnp.broadcast_to(real[..., None], (*x.shape[:-1], 1)).reshape(-1, 1)
            x = x.reshape(-1, len(own))
            count = w.sum()
            mean = (x * w).sum(0) / jnp.maximum(count, 1)
            x = (x - mean) * w
            with jax.default_matmul_precision("highest"):
                return count, mean, x.sum(0), x.T @ x

        return sums

    run = compiled(("covariance", sites.text(site), own.shape), make)
    count, mean = 0.0, np.zeros(group.width)
    squares = np.zeros((group.width, group.width))
    for k, h in enumerate(here.live[site.hidden]):
        found = jax.device_get(run(h, places.rows(here, site, k), own))
        n, middle, rest, products = (np.asarray(a, np.float64) for a in found)
        if not np.isfinite(products).all():
            raise FloatingPointError(
                f"{site.name}: what it reads of group {group.name!r} holds NaN or "
                "infinity; check the weights and the calibration images."
            )
        n = float(n)
        if n == 0:
            continue
        apart = middle + rest / n - mean
        both = count + n
        squares += products - np.outer(rest, rest) / n
        squares += count * n / both * np.outer(apart, apart)
        count, mean = both, mean + n / both * apart
    return squares / count
