"""What the loss says of a group's channels, for the criteria that need labels.

    L(z) = an example's cross-entropy with every channel c of the group times z_c

is differentiated at z = 1, each example on its own: z = 1 is the network as it is,
z_c = 0 the network without the channel, so the gradient and the curvature along 1 are
what first and second order say of removing channels.

L is the rest of the network, from the first place at which the group is read. It
differs at every group, so each costs one compilation of all that is behind it, and a
batch costs a forward and a backward pass through that (curvature: about twice as much).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ispasp_jax import devices
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group, atoms
from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.walk import inputs, layouts
from ispasp_jax.walk.batches import padded
from ispasp_jax.walk.pieces import Piece, compiled, evaluate, piece
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream, weights_of

#: The calibration images' classes, an array of (n,) whole numbers for each batch.
Labels = Iterable[Any]


def aligned(
    labels: Labels | None, stream: Stream, mesh: jax.sharding.Mesh | None
) -> list[Int[Array, " n"]]:
    """The labels, batch by batch as the stream's activations.

    Raises:
      InputError: there are none, or not one of the model's classes for each image, in
        batches as long as theirs.
    """
    if labels is None:
        raise InputError(
            "this criterion differentiates the loss and so needs labels; give `labels`,"
            " batches of them as long as those of the images, or choose a criterion "
            "that needs none."
        )
    logits = stream.flat.outputs[0]
    if len(stream.flat.outputs) > 1 or len(logits.shape) != 2:
        raise InputError(
            "this criterion differentiates the cross-entropy of a row of logits for "
            f"every image; the model gives {logits.aval.str_short()}: choose a "
            "criterion that needs no labels."
        )
    batches = inputs.checked_labels(labels, logits.shape[-1])
    result, weight = padded(batches, mesh)
    real, expected = ([int(w.sum()) for w in ws] for ws in (weight, stream.weight))
    if real != expected:
        raise InputError(
            f"labels come in batches of {real}, images in batches of {expected}; give "
            "one label for each image, in the same batches."
        )
    return [batch for (batch,) in result]


def derivatives(
    reads: Sequence[Site],
    group: Group,
    stream: Stream,
    labels: Sequence[Int[Array, " n"]],
    curvature: bool,
) -> dict[str, Float[Array, "images d"]]:
    """∂L/∂z and, if asked for, (∂²L/∂z²) · 1 of every calibration image.

    Args:
      reads: the places where the group is read.
      group: the group.
      stream: the network as it is, before the first of them.
      labels: of the stream's batches.
      curvature: whether the second is asked for.
    """
    flat = stream.flat
    step = piece(flat, flat.outputs, stream.live)
    numbers = [atoms.labels(site.contracted, group.atom) for site in reads]

    def make():
        def function(given, weights, targets, own):
            def loss(z):
                gates = [(site, n, z) for site, n in zip(reads, own, strict=True)]
                return _loss(step, (given, weights), targets, gates)

            one = jnp.ones((len(targets), group.width), jnp.float32)
            with jax.default_matmul_precision("highest"):
                if curvature:  # examples do not mix, so each has a Hessian of its own
                    return jax.jvp(jax.grad(loss), (one,), (one,))
                return (jax.grad(loss)(one),)

        return function

    places = tuple(step.equations.index(site.equation) for site in reads)
    key = "gates", step.text, places, curvature, group.width
    run, result = compiled(key, make), []
    for k, (targets, weight) in enumerate(zip(labels, stream.weight, strict=True)):
        given = [stream.live[value][k] for value in step.given]
        pair = run(given, weights_of(step, stream.weights), targets, numbers)
        result.append([devices.rows(each, weight) for each in pair])
    whole = (jnp.concatenate(batches) for batches in zip(*result, strict=True))
    return dict(zip(("gradient", "curvature"), whole, strict=False))


def gradients(
    groups: Sequence[tuple[Group, Sequence[Site]]],
    stream: Stream,
    labels: Sequence[Int[Array, " n"]],
) -> dict[str, Float[Array, "images d"]]:
    """∂L/∂z of every calibration image for many groups at once: gates on all of them,
    one program and one backward pass a batch.

    Args:
      groups: each with the places where it is read.
      stream: the network as it is, before the first of them.
      labels: of the stream's batches.
    """
    step = piece(stream.flat, stream.flat.outputs, stream.live)
    pairs = [(group, site) for group, reads in groups for site in reads]
    numbers = [atoms.labels(site.contracted, group.atom) for group, site in pairs]

    def make():
        def function(given, weights, targets, own):
            def loss(z):
                gates = [
                    (site, n, z[group.name])
                    for (group, site), n in zip(pairs, own, strict=True)
                ]
                return _loss(step, (given, weights), targets, gates)

            n = len(targets)
            one = {g.name: jnp.ones((n, g.width), jnp.float32) for g, _ in groups}
            with jax.default_matmul_precision("highest"):
                return jax.grad(loss)(one)

        return function

    places = [step.equations.index(site.equation) for _, site in pairs]
    names = [(group.name, group.width) for group, _ in pairs]
    run = compiled(("gates of all", step.text, *zip(names, places, strict=True)), make)
    result = []
    for k, (targets, weight) in enumerate(zip(labels, stream.weight, strict=True)):
        given = [stream.live[value][k] for value in step.given]
        made = run(given, weights_of(step, stream.weights), targets, numbers)
        result.append({name: devices.rows(a, weight) for name, a in made.items()})
    return {n: jnp.concatenate([one[n] for one in result]) for n in result[0]}


#: Where a group is read, which of its channels is read at which place, its gates.
_Gate = tuple[Site, Int[Array, "_"], Float[Array, "_ _"]]


def _loss(
    step: Piece,
    known: tuple[Sequence[Any], Sequence[Any]],
    targets: Int[Array, " n"],
    gates: Sequence[_Gate],
) -> Float[Array, ""]:
    """The examples' cross-entropies, summed."""
    given, weights = known
    env = dict(zip((*step.given, *step.weights), (*given, *weights), strict=True))
    logits = _gated(step, env, gates).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum()


def _gated(step: Piece, env: dict[Value, Any], gates: Sequence[_Gate]) -> Array:
    """The logits with the groups' channels times z wherever they are read."""
    reads: dict[Equation, list[_Gate]] = {}
    for gate in gates:
        reads.setdefault(gate[0].equation, []).append(gate)
    low = 0
    for place, eqn in enumerate(step.equations):
        if eqn not in reads:
            continue
        evaluate(step.equations[low:place], [], env)
        hidden = reads[eqn][0][0].hidden
        before = env[hidden]
        for site, own, z in reads[eqn]:
            factor = jnp.where(own >= 0, z[:, jnp.maximum(own, 0)], 1)
            factor = layouts.in_place(site, factor).astype(before.dtype)
            env[hidden] = env[hidden] * factor
        evaluate([eqn], [], env)
        env[hidden] = before
        low = place + 1
    return evaluate(step.equations[low:], step.wanted, env)[0]
