"""Networks with random weights and images, and the calls on them that are timed."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from benchmarks.benchmark import SEED
from benchmarks.timings import naive, turns
from ispasp_jax import budget, devices, graph, models
from ispasp_jax.selection.algorithm_1 import ispasp
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.walk import Options, Walked, walk

KEEP, T = 0.4, 20
ROOT = Path(__file__).parents[2]

#: Networks of examples/: module, class.
EXAMPLES = {"efficientnet_lite0": ("efficientnet_lite0", "EfficientNetLite")}


class Case(NamedTuple):
    """A network and its calibration images, or texts.

    Attributes:
      model: as `--model` names it, or one of EXAMPLES.
      size: pixels of an image's side, or tokens of a text.
      images: how many.
      batch: divides them.
    """

    model: str
    size: int
    images: int
    batch: int = 32

    @property
    def shape(self) -> tuple[int, ...]:
        text = self.model.startswith("bert")
        return (self.size,) if text else (self.size, self.size, 3)


def random_variables(network: nn.Module, shape: tuple[int, ...]) -> dict:
    """Variables whose activations neither vanish nor explode, and whose channels differ
    as those of a trained network do, so that no two scores tie.
    """
    rng = np.random.default_rng(SEED)

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            array = rng.standard_normal(leaf.shape, np.float32) * deviation
        elif kind in ("scale", "var"):
            array = rng.uniform(0.5, 1.0, leaf.shape)
        else:
            array = 0.2 * rng.standard_normal(leaf.shape)
        return jax.device_put(np.asarray(array, np.float32))

    return jax.tree_util.tree_map_with_path(draw, models.shapes(network, shape))


def random_batches(
    images: int, batch_size: int, shape: tuple[int, ...]
) -> list[jax.Array]:
    """Standard normal images on the device, or texts of any of the first thousand
    tokens; the batch size divides their number."""
    keys = jax.random.split(jax.random.key(SEED), images // batch_size)
    batch = models.inputs(shape, batch_size)
    if np.issubdtype(batch.dtype, np.integer):
        return [jax.random.randint(k, batch.shape, 1, 1000, batch.dtype) for k in keys]
    return [jax.random.normal(key, batch.shape) for key in keys]


class Ready(NamedTuple):
    """A case made: what is timed is called without another image.

    Attributes:
      traced: the network.
      variables: random ones.
      batches: random images, on the device.
      sizes: channels to keep by group.
      forward: the network, jitted.
    """

    traced: graph.Traced
    variables: dict
    batches: list[jax.Array]
    sizes: dict[str, int]
    forward: Callable

    def dense(self) -> list[jax.Array]:
        """A pass over the images."""
        return [self.forward(self.variables, x) for x in self.batches]

    def walk(self, criterion: Criterion, **options) -> Walked:
        """The walk."""
        given = self.traced, self.variables, self.batches, self.sizes
        return walk(*given, criterion, options=Options(**options))

    def naive(self, stop: bool) -> naive.Answer:
        """The authors' kind of loop."""
        given = self.traced, self.variables, self.batches, self.sizes
        return naive.walk(*given, T, stop)


def network_of(name: str) -> nn.Module:
    """A network as `--model` names it, or one of examples/."""
    if name not in EXAMPLES:
        return models.create(name, 1000)
    module, kind = EXAMPLES[name]
    return getattr(example(module), kind)()


def example(name: str) -> ModuleType:
    """A module of examples/."""
    sys.path.append(str(ROOT / "examples"))
    return importlib.import_module(name)


def ready(case: Case) -> Ready:
    """Network, weights and images, and what is asked of them."""
    network = network_of(case.model)
    variables = random_variables(network, case.shape)
    batches = random_batches(case.images, case.batch, case.shape)
    traced = graph.trace(network, variables, batches[0])
    ignored = models.IGNORE.get(case.model, ())
    sizes = budget.sizes(graph.scope(traced.groups, "inner", ignored), KEEP)
    jax.block_until_ready((variables, batches))
    return Ready(traced, variables, batches, sizes, jax.jit(traced.function))


def passes(made: Ready, criterion: Criterion) -> dict[str, Callable]:
    """Dense pass and walk, to be timed beside each other."""
    return {
        "dense": made.dense,
        "walk": lambda: made.walk(criterion).variables,
        "walk_without_residual": lambda: (
            made.walk(criterion, residual_images=0).variables
        ),
    }


def peak_memory(case: Case) -> dict[str, int] | None:
    """Peak bytes of dense pass and walk, on a CPU in a process of their own: the peak
    is the process's, and cannot be set back.
    """
    if jax.default_backend() != "cpu":
        return memory_here(case)
    command = [sys.executable, "-m", __spec__.name, json.dumps(case)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


def memory_here(case: Case) -> dict[str, int] | None:
    """The same in this process."""
    calls = passes(ready(case), ispasp(T))
    return turns.peaks({name: calls[name] for name in ("dense", "walk")})


if __name__ == "__main__":  # a process of peak_memory's
    devices.keep_freed_memory()
    print(json.dumps(memory_here(Case(*json.loads(sys.argv[1])))))
