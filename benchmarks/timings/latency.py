"""Whether fewer multiply-adds are faster: dense against pruned networks on the present
backend, and MobileNetV2's shifted depthwise convolutions against plain ones.

    python benchmarks/latency.py [--small] [--out FILE]

Uniform keep 0.5 and 0.4, batch 1 and a large batch; dense and pruned take turns. A row
says "slower" where pruning made the network slower outright, and "not paid" where the
latency fell by less than the multiply-adds, by a margin of 0.1 of the dense network's.
The second table times MobileNetV2's forward pass and training step as shipped
(models/layers.py: sums of shifted products on a CPU) and with jax.lax's grouped
convolution everywhere. Weights and images are random, accuracy is not asked. About
eight minutes on two CPU cores; --small, half a minute, takes small networks.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.benchmark import Benchmark, Lines, table
from benchmarks.timings import turns
from benchmarks.timings.cases import random_batches, random_variables
from ispasp_jax import budget, graph, models, report, training
from ispasp_jax.budget import cost
from ispasp_jax.data import Batch

KEEPS = (0.5, 0.4)
MARGIN = 0.1
CLASSES = 1000


class Case(NamedTuple):
    """A network, its images, and batch sizes."""

    model: str
    pixels: int
    batches: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.pixels, self.pixels, 3)


class Settings(NamedTuple):
    """What a run measures; `depthwise` has the forward pass's batch sizes."""

    latency: tuple[Case, ...]
    depthwise: Case
    repeats: int


FULL = Settings(
    latency=(
        Case("resnet34", 224, (1, 32)),
        Case("resnet50", 224, (1, 32)),
        Case("mobilenetv2", 224, (1, 32)),
        Case("resnet56", 32, (1, 256)),
    ),
    depthwise=Case("mobilenetv2", 224, (1, 16)),
    repeats=9,
)
SMALL = Settings(
    latency=(Case("resnet20", 32, (1, 64)),),
    depthwise=Case("mobilenetv2", 64, (4,)),
    repeats=3,
)


def latency_rows(case: Case, repeats: int) -> list[dict]:
    """A row for each batch size and ratio."""
    report.say(f"latency: {case.model}")
    dense = models.create(case.model, CLASSES)
    variables = {"dense": random_variables(dense, case.shape)}
    image = jax.ShapeDtypeStruct((2, *case.shape), "float32")
    traced = graph.trace(dense, variables["dense"], image)
    inner = graph.scope(traced.groups, "inner", models.IGNORE.get(case.model, ()))
    applies, macs = {"dense": traced.function}, {"dense": cost.macs(traced)}
    for keep in KEEPS:
        sizes = budget.sizes(inner, keep)
        plan = {n: graph.Cut(traced[n].width, np.arange(s)) for n, s in sizes.items()}
        variables[keep] = traced.take(plan, variables["dense"])
        applies[keep] = graph.narrow(traced.function, traced, plan)
        macs[keep] = int(cost.macs_by_size(traced).total(sizes))
    rows = []
    for batch in case.batches:
        own = {"model": case.model, "pixels": case.pixels, "batch": batch}
        (images,) = random_batches(batch, batch, case.shape)
        timed = turns.turns(
            {
                k: functools.partial(jax.jit(f), variables[k], images)
                for k, f in applies.items()
            },
            repeats,
        )
        for keep in KEEPS:
            share = macs[keep] / macs["dense"]
            over = turns.ratio(timed[keep], timed["dense"])
            rows.append(
                {
                    **own,
                    "keep": keep,
                    "macs": macs[keep],
                    "macs_over_dense": share,
                    "dense": timed["dense"],
                    "pruned": timed[keep],
                    "over_dense": over,
                    "verdict": verdict(over["ratio"], share),
                }
            )
    return rows


def verdict(latency: float, macs: float) -> str:
    """Whether the multiply-adds that were cut paid."""
    if latency > 1:
        return "slower"
    return "not paid" if latency > macs + MARGIN else "paid"


class Plain(nn.Module):
    """A network with jax.lax's convolution in the place of its own, everywhere."""

    network: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        with nn.intercept_methods(_plainly):
            return self.network(x, train=train)


def _plainly(call, arguments, options, context):
    """Calls a layer, a convolution's twin in its stead."""
    layer = context.module
    convolve = getattr(layer, "conv_general_dilated", jax.lax.conv_general_dilated)
    if convolve is jax.lax.conv_general_dilated:
        return call(*arguments, **options)
    twin = layer.clone(
        parent=None, name=None, conv_general_dilated=jax.lax.conv_general_dilated
    )
    return twin.apply(layer.variables, *arguments, **options)


def depthwise_rows(case: Case, repeats: int) -> list[dict]:
    """The shipped network against its twin with jax.lax's convolution everywhere."""
    report.say(f"depthwise: {case.model}")
    network = models.create(case.model, CLASSES)
    own = random_variables(network, case.shape)
    both = {
        "shipped": (network, own),
        "plain": (Plain(network), {kind: {"network": own[kind]} for kind in own}),
    }

    def forward(network, variables, images):
        return functools.partial(jax.jit(network.apply), variables, images)

    rows = []
    for batch in case.batches:
        own = {"model": case.model, "pixels": case.pixels, "batch": batch}
        (images,) = random_batches(batch, batch, case.shape)
        for what, call in {"forward": forward, "training step": step}.items():
            timed = turns.turns(
                {name: call(*twin, images) for name, twin in both.items()}, repeats
            )
            over = turns.ratio(timed["plain"], timed["shipped"])
            rows.append({**own, "what": what, **timed, "plain_over_shipped": over})
    return rows


def step(network: nn.Module, variables: dict, images: jax.Array) -> Callable:
    """A call that trains the network by a step, each on from the one before."""
    recipe = training.Recipe(1)
    transformation = training.optimizer(recipe, 100)
    own = jax.tree.map(jnp.array, variables)  # each step gives up what it was given
    state = training.start(network, recipe, transformation, own)
    batch = Batch(images, jnp.arange(len(images)) % CLASSES, jnp.ones(len(images)))

    def call():
        nonlocal state
        state, loss = training.train_step(network, transformation, recipe, state, batch)
        return state, loss

    return call


def measure(settings: Settings) -> dict[str, Any]:
    """Everything."""
    return {
        "repeats": settings.repeats,
        "margin": MARGIN,
        "latency": [
            row
            for case in settings.latency
            for row in latency_rows(case, settings.repeats)
        ],
        "depthwise": depthwise_rows(settings.depthwise, settings.repeats),
    }


def latency_table(result: dict[str, Any]) -> Lines:
    """Columns of dense against pruned."""
    columns = {
        "network": lambda r: f"{r['model']}, {r['pixels']}",
        "batch": lambda r: str(r["batch"]),
        "keep": lambda r: f"{r['keep']:g}",
        "dense ms": lambda r: f"{1e3 * r['dense']['seconds']:.1f}",
        "pruned ms": lambda r: f"{1e3 * r['pruned']['seconds']:.1f}",
        "multiply-adds": lambda r: f"{r['macs_over_dense']:.2f}",
        "latency (range)": lambda r: turns.spread(*r["over_dense"].values()),
        "verdict": lambda r: r["verdict"],
    }
    return table(result["latency"], columns)


def depthwise_table(result: dict[str, Any]) -> Lines:
    """Columns of shifted against plain depthwise convolutions."""
    columns = {
        "depthwise": lambda r: f"{r['model']}, {r['pixels']}, {r['what']}",
        "batch": lambda r: str(r["batch"]),
        "shipped ms": lambda r: f"{1e3 * r['shipped']['seconds']:.1f}",
        "plain ms": lambda r: f"{1e3 * r['plain']['seconds']:.1f}",
        "times faster (range)": lambda r: turns.spread(
            *r["plain_over_shipped"].values()
        ),
    }
    return table(result["depthwise"], columns)


BENCHMARK = Benchmark(
    file="latency.json",
    full=FULL,
    small=SMALL,
    measure=measure,
    tables={"latency": latency_table, "depthwise": depthwise_table},
)
