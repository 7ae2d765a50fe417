"""Models as the walk reads them: their sites, and any value on the way."""

import jax.numpy as jnp
import numpy as np

from ispasp_jax import graph
from ispasp_jax.walk import flat, pieces, sites


def sites_of(model, variables, x):
    """The sites, and the weights, of a model on one batch."""
    program = flat.flatten(graph.trace(model, variables, x))
    return sites.sites(program), flat.arrays(program, variables)


def value(site, wanted, weights, x):
    """A value of the program on these images."""
    env = {site.flat.inputs[0]: x, **weights}
    return pieces.evaluate(site.flat.equations, [wanted], env)[0]


def draw(*shape, seed=0):
    """Numbers of single precision, none near zero on average."""
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(0.5 + rng.normal(size=shape), jnp.float32)
