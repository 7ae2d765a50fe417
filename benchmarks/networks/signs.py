"""What μ should be where activations are negative: the s neurons of the largest sum of
H, of |H| or of H², behind a GELU.

    python benchmarks/signs.py [--only 'bert*'] [--small]

From a keep ratio of one half i-SpaSP keeps the neurons of the largest μ(H), so this is
its choice and two others. The networks are attention.py's, trained if they are not in
runs/ yet; sums are over 1,024 training examples, in the dense network, padding left
out. --small is one row of the digits.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import ispasp_jax
from benchmarks.benchmark import SEED, Benchmark, Lines, table
from benchmarks.networks import attention
from ispasp_jax import data, training
from ispasp_jax.data import Text
from ispasp_jax.graph import Cut

#: What a neuron's activations are counted as.
SCORES = {"μ(H)": lambda h: h, "μ(|H|)": jnp.abs, "μ(H²)": jnp.square}
#: The layers in front of the GELU.
LAYERS = ("fc1", "intermediate.dense")
SHARES = (0.5, 0.4, 0.25)


class Row(NamedTuple):
    """A network of attention.py, the share of neurons, and the score."""

    case: str
    keep: float
    score: str


def measure(row: Row) -> dict[str, Any]:
    """Top-1 as cut and repaired, and what share of the chosen neurons μ(H) chooses."""
    (flag,) = attention.weights(row.case)
    model = ispasp_jax.load(flag.removeprefix("--weights="))
    flags = attention.CASES[row.case].flags
    (spec,) = (f.removeprefix("--data=") for f in flags if f.startswith("--data="))
    source = data.open_source(spec)
    chosen = data.calibration_indices(source.train, 1024, SEED)
    read = data.batches(source.train, model.images, 128, indices=chosen)
    batches = [batch.image[batch.weight > 0] for batch in read]
    real = None
    if isinstance(model.images, Text):
        real = [data.tokens.real(model.images, batch) for batch in batches]
    plan = _plan(model, batches, real, row)
    plain = _plan(model, batches, real, row._replace(score="μ(H)"))
    shared = [np.isin(plan[n].kept, plain[n].kept).mean() for n in plan]
    scores = {"dense": _top1(model.network, model.variables, model, source)}
    for stage, repair in (("as cut", "none"), ("repaired", "lsq")):
        pruned = ispasp_jax.prune(
            model.network, model.variables, batches, plan=plan, repair=repair, real=real
        )
        scores[stage] = _top1(pruned.apply, pruned.variables, model, source)
    return {**row._asdict(), **scores, "shared": float(np.mean(shared))}


def _top1(network, variables, model, source) -> float:
    batches = data.batches(source.test, model.images, 128)
    return 100 * training.evaluate(network, variables, batches).top1


def _plan(model, batches, real, row: Row) -> dict[str, Cut]:
    """The neurons of the largest sums, in every layer."""
    sums: dict[str, Any] = {}
    for k, batch in enumerate(batches):
        _, kept = model.network.apply(
            model.variables,
            batch,
            capture_intermediates=lambda module, _: module.name in LAYERS,
            mutable=["intermediates"],
        )
        for layer, name, h in _found(kept["intermediates"]):
            h = SCORES[row.score](nn.gelu(h, approximate=False))
            if real is not None:
                h = h * real[k][..., None]
            group = layer if name == "fc1" else f"{layer}.{name}"
            sums[group] = sums.get(group, 0) + h.sum((0, 1))
    plan = {}
    for group, each in sums.items():
        size = max(1, int(row.keep * len(each) + 1e-6))
        plan[group] = Cut(len(each), np.sort(np.argsort(-np.asarray(each))[:size]))
    return plan


def _found(tree, path=()):
    """Of every layer its group's module, its own name and what it gave."""
    for key, below in tree.items():
        if key in LAYERS:
            yield ".".join(path), key, below["__call__"][0]
        elif isinstance(below, dict):
            yield from _found(below, (*path, key))


def columns(results: list[dict]) -> Lines:
    """As cut → repaired, a score a column."""
    found = {(r["case"], r["keep"], r["score"]): r for r in results}

    def cell(pair, score):
        row = found.get((*pair, score))
        return f"{row['as cut']:.1f} → {row['repaired']:.1f}" if row else "–"

    pairs = dict.fromkeys((r["case"], r["keep"]) for r in results)
    shown = {
        "network": lambda pair: pair[0],
        "neurons": lambda pair: f"{pair[1]:.0%}",
        **{s: lambda pair, s=s: cell(pair, s) for s in SCORES},
    }
    return table(pairs, shown)


ROWS = {
    f"{case}, {keep:.0%}, {score}": Row(case, keep, score)
    for case in ("bert_mini, sentences", "vit_tiny, digits")
    for keep in SHARES
    for score in SCORES
}
BENCHMARK = Benchmark(
    file="signs.jsonl",
    full=ROWS,
    small={"vit_tiny, digits, 50%, μ(H)": ROWS["vit_tiny, digits, 50%, μ(H)"]},
    measure=measure,
    tables={"signs": columns},
)
