"""`probe`: does every consumer do what selection and repair take it for?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax.graph import Traced
from ispasp_jax.walk import consumers, flat, layouts, sites
from ispasp_jax.walk.pieces import piece
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import weights_of


def probe(traced: Traced, variables: Any, *inputs: Any) -> dict[str, float]:
    """Compares what consumers give with patches · kernel · scale + shift.

    Args:
      traced: the model, traced on inputs of these shapes.
      variables: its variables.
      *inputs: a small batch.

    Returns:
      The largest difference, relative to the largest output, of every consumer of a
      text of its own, by the path of its kernel.
    """
    program = flat.flatten(traced)
    weights = flat.arrays(program, jax.device_put(variables))
    result: dict[str, Site] = {}
    for site in sites.suited(program):
        result.setdefault(sites.text(site), site)
    wanted = [value for s in result.values() for value in (s.hidden, s.out)]
    step = piece(program, wanted)
    given = dict(zip(program.inputs, inputs, strict=True))
    with jax.default_matmul_precision("highest"):
        run = jax.jit(step.run)
        made = run([given[value] for value in step.given], weights_of(step, weights))
        pairs = zip(made[::2], made[1::2], strict=True)
        return {
            site.name: _apart(site, weights, *pair)
            for site, pair in zip(result.values(), pairs, strict=True)
        }


def _apart(site: Site, weights, hidden, out) -> float:
    whole = consumers.consumer(site, weights)
    h = layouts.as_hidden(site, hidden).astype(jnp.float32)
    patches = np.asarray(layouts.patches(site, h), np.float64)
    matrix = np.asarray(whole.kernel, np.float64).reshape(patches.shape[-1], -1)
    expected = patches @ matrix * whole.scale + whole.shift
    u = np.asarray(layouts.as_out(site, out), np.float64)
    return float(np.abs(u - expected).max() / max(np.abs(u).max(), 1e-30))
