"""Beside Torch-Pruning: its importances and this project's methods on the same weights,
calibration images and budgets, and the authors' routine beside algorithm_1.

    pip install 'ispasp_jax[peers]'
    ISPASP_DATA=DIR python benchmarks/peers.py [--only 'resnet56 47*'] [--small]

Torch-Pruning chooses channels, all of one share ("uniform") or where its scores are
lowest ("global"), of the smallest ratio that meets the budget; only inner channels. Its
supports become a plan, and three things are done about it, all by this project:
nothing, batch norm's moments measured again, least squares. This project's methods have
the widths that the budget gives from the curves with least squares, in all three
columns. Calibration sees training images only, labels where Taylor asks for them. Every
network is the same in PyTorch: its logits are compared first. torch and torch-pruning
are no dependencies of anything else here. About an hour on two CPU cores; --small, one
row.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ispasp_jax
from benchmarks.benchmark import SEED, Benchmark, Lines, data_folder, table
from benchmarks.paper import cifar
from ispasp_jax import budget, data, graph, models, report, weights
from ispasp_jax.budget import cost
from ispasp_jax.graph import Cut, Plan
from ispasp_jax.selection.algorithm_1 import algorithm_1
from ispasp_jax.walk import consumers, layouts, repair, sites
from ispasp_jax.walk.curves import measure_curves
from ispasp_jax.walk.pieces import compiled
from ispasp_jax.walk.sites import Site

REPAIRS: dict[repair.Name, str] = {
    "none": "as cut",
    "bn": "recalibrated",
    "lsq": "least squares",
}
#: How far a network's logits in PyTorch may be from JAX's, of the largest.
CLOSE = 1e-4


class Case(NamedTuple):
    """A network's weights, data, classes, calibration images."""

    weights: str
    source: str
    classes: int
    images: int
    batch: int


class Row(NamedTuple):
    """A network of CASES, its budget, who chooses and how, on how many images."""

    case: str
    macs: str
    side: str
    method: str
    images: int
    everywhere: bool = False


class Blocks(NamedTuple):
    """A network whose blocks are pruned by the authors' routine, on how many images."""

    model: str
    images: int


CASES = {
    "resnet56": Case(
        "cifar10_resnet56", "npz:{}/cifar10/cifar10_lossless.npz", 10, 1024, 128
    ),
    "tf_mobilenetv2": Case(
        "mobilenet_v2_imagenet_tf", "folder:{}/imagenet", 1000, 512, 64
    ),
}
#: What Torch-Pruning is asked: importance, and whether all groups compete.
THEIRS = {
    ("resnet56", "47%"): [
        ("L1", False),
        ("L1", True),
        ("FPGM", True),
        ("BN scale", True),
        ("LAMP", True),
        ("group norm", True),
        ("Taylor", True),
    ],
    ("resnet56", "33%"): [("L1", False), ("group norm", True), ("Taylor", True)],
    ("tf_mobilenetv2", "247M"): [("L2", False), ("group norm", True)],
}
#: Shares of a block's channels that the routines keep.
KEEPS = (0.1, 0.2, 0.3, 0.4, 0.5)


class Ready(NamedTuple):
    """A case made.

    Attributes:
      network: in JAX.
      arrays: its weights by their public names.
      variables: the same as JAX has them.
      traced: its groups.
      roots: of every inner group, the layer that makes it.
      batches: calibration images.
      labels: theirs.
      test: batches to measure on.
      dense: what the network says of those.
    """

    network: Any
    arrays: dict[str, np.ndarray]
    variables: Any
    traced: graph.Traced
    roots: dict[str, str]
    batches: list[np.ndarray]
    labels: list[np.ndarray]
    test: list[data.Batch]
    dense: np.ndarray


def torch_side() -> ModuleType:
    """What needs PyTorch; exits where it is missing."""
    for package in ("torch", "torch_pruning"):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"skipped: {package} is missing; pip install 'ispasp_jax[peers]'")
    return importlib.import_module("benchmarks.networks.torch_side")


@functools.cache
def ready(name: str, images: int) -> Ready:
    """Network, images and what the dense network says."""
    case, folder = CASES[name], data_folder()
    source = data.open_source(case.source.format(folder))
    own = models.PREPROCESSING.get(name)
    inputs = data.Preprocessing(224, None, **own) if own else source.preprocessing
    network = models.create(name, case.classes)
    arrays, _ = weights.read(str(folder / f"weights/{case.weights}.safetensors"))
    variables = weights.to_variables(arrays, network, inputs.shape)
    chosen = data.calibration_indices(source.train, images, SEED)
    read = data.batches(source.train, inputs, case.batch, indices=chosen)
    found = [(b.image[b.weight > 0], b.label[b.weight > 0]) for b in read]
    batches, labels = map(list, zip(*found, strict=True))
    test = [*data.batches(source.test, inputs, case.batch)]
    traced = graph.trace(network, variables, batches[0])
    ignored = models.IGNORE.get(name, ())
    roots = {
        group.name: ".".join(group.makers[0].split("/")[1:-1])
        for group in graph.scope(traced.groups, "inner", ignored)
    }
    dense = predicted(network.apply, variables, test)
    return Ready(
        network, arrays, variables, traced, roots, batches, labels, test, dense
    )


def predicted(apply: Callable, variables: Any, test: list[data.Batch]) -> np.ndarray:
    """The logits of the test images."""
    run = jax.jit(apply)
    made = [np.asarray(run(variables, b.image))[b.weight > 0] for b in test]
    return np.concatenate(made)


def measure(row: Row | Blocks) -> dict[str, Any]:
    """Top-1 by repair, and on how many test images the dense network agrees."""
    if isinstance(row, Blocks):
        return supports(row)
    made = ready(row.case, row.images)
    costs = cost.macs_by_size(made.traced)
    choose = theirs if row.side == "Torch-Pruning" else ours
    plan, own = choose(row, made, _limit(row.macs, costs.full))
    truth = np.concatenate([b.label[b.weight > 0] for b in made.test])
    scores, sizes = {}, {}
    for how, stage in REPAIRS.items():
        pruned = ispasp_jax.prune(
            made.network, made.variables, made.batches, repair=how, plan=plan, **own
        )
        sizes = {name: cut.size for name, cut in pruned.plan.items()}
        logits = predicted(pruned.apply, pruned.variables, made.test)
        found = logits.argmax(-1)
        scores[stage] = {
            "top1": 100 * float((found == truth).mean()),
            "agreement": 100 * float((found == made.dense.argmax(-1)).mean()),
        }
    jax.clear_caches()
    return {
        **row._asdict(),
        "dense": 100 * float((made.dense.argmax(-1) == truth).mean()),
        "macs_share": costs.total(sizes) / costs.full,
        "scores": scores,
        "versions": {**report.versions(), **_versions()},
    }


def _versions() -> dict[str, str]:
    names = ("torch", "torch-pruning")
    return {name: importlib.metadata.version(name) for name in names}


def _limit(macs: str, full: float) -> float:
    """The multiply-adds that a budget allows."""
    (target,) = budget.Budget(macs=macs).asked.targets
    return target.limit(full)


def theirs(row: Row, made: Ready, limit: float) -> tuple[Plan, dict]:
    """Torch-Pruning's largest network within the budget."""
    side, costs = torch_side(), cost.macs_by_size(made.traced)
    model = side.networks.twin(made.network, made.arrays)
    first = made.test[0]
    apart = np.abs(
        side.networks.logits(model, first.image) - made.dense[: len(first.image)]
    )
    assert apart.max() <= CLOSE * np.abs(made.dense).max(), apart.max()
    kept = side.supports(
        model,
        row.method,
        row.everywhere,
        made.roots,
        zip(made.batches, made.labels, strict=True),
        made.batches[0].shape[1:],
    )

    def fits(ratio: float) -> bool:
        sizes = {name: len(own) for name, own in kept(ratio).items()}
        return costs.total(sizes) <= limit

    low, high = 0.0, 0.99
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    widths = {group.name: group.width for group in made.traced.groups}
    return {name: Cut(widths[name], own) for name, own in kept(high).items()}, {}


def ours(row: Row, made: Ready, limit: float) -> tuple[None, dict]:
    """The budget's widths, and a criterion that chooses within them."""
    widths = {name: made.traced[name].width for name in made.roots}
    costs = {"macs": cost.macs_by_size(made.traced)}
    asked = budget.Budget(macs=limit, round_to=1).asked
    sizes = budget.solve(_curves(row.case, row.images), costs, widths, asked)
    keep = {name: sizes[name] / width for name, width in widths.items()}
    return None, {"keep": keep, "criterion": row.method}


@functools.cache
def _curves(case: str, images: int):
    made = ready(case, images)
    groups = [made.traced[name] for name in made.roots]
    return measure_curves(made.traced, made.variables, made.batches, groups)


def supports(blocks: Blocks) -> dict[str, Any]:
    """Of how many groups the authors' routine has algorithm_1's support, by what it
    takes for batch norm; and of those, how many by the share of channels kept."""
    side, equal, count = torch_side(), {}, {}
    file = data_folder() / f"weights/cifar10_{blocks.model}.safetensors"
    arrays, _ = weights.read(str(file))
    for name, site, here, _ in cifar.consumers(blocks.model, blocks.images):
        kernel, scale, _ = consumers.consumer(site, here.weights)
        batches = [np.asarray(h) for h in here.live[site.hidden]]
        hidden = np.concatenate(batches)[: blocks.images]  # the rest is padding
        total = jnp.asarray(hidden.sum(0, keepdims=True))
        select = compiled(("peers", sites.text(site)), functools.partial(_select, site))
        norm = [arrays[f"{name}.bn2.{part}"] for part in side.NORM]
        given = np.moveaxis(hidden, -1, 1).copy(), _to_torch(kernel), norm
        for keep in KEEPS:
            size = max(1, int(keep * hidden.shape[-1] + 1e-6))
            own = np.asarray(select(total, kernel, scale, size))
            count[keep] = count.get(keep, 0) + 1
            for how in side.NORMS:
                same = (side.authors(*given, size, how) == own).all()
                equal.setdefault(how, {}).setdefault(keep, 0)
                equal[how][keep] += int(same)
    return {**blocks._asdict(), "groups": count, "equal": equal}


def _to_torch(kernel) -> np.ndarray:
    return np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1)).copy()


def _select(site: Site) -> Callable:
    """algorithm_1's support of a block, of the sum of H."""

    def function(total, kernel, scale, size):
        def consumer(h):
            return layouts.linear(site, h, kernel) * scale

        return algorithm_1(total, consumer, size).support

    return function


def columns(results: list[dict], case: str) -> Lines:
    """As cut, recalibrated, refitted: top-1, and agreement with the dense network."""

    def cell(row, stage):
        own = row["scores"][stage]
        return f"{own['top1']:.1f} ({own['agreement']:.1f})"

    def chosen(row):
        if row["side"] != "Torch-Pruning":
            return f"{row['method']}, this project"
        how = "global" if row["everywhere"] else "uniform"
        return f"{row['method']}, {how}, Torch-Pruning"

    shown = {
        "channels chosen by": chosen,
        "multiply-adds": lambda r: f"{r['macs']} ({r['macs_share']:.1%})",
        **{s: functools.partial(cell, stage=s) for s in REPAIRS.values()},
    }
    order = [*ROWS]
    found = [r for r in results if r.get("case") == case]
    return table(sorted(found, key=lambda r: order.index(r["row"])), shown)


def equal(results: list[dict]) -> Lines:
    """Of how many groups the supports are equal, by the share kept."""
    lines = [
        {"how": how, "groups": row["groups"], "equal": own}
        for row in results
        if "equal" in row
        for how, own in row["equal"].items()
    ]
    keeps = dict.fromkeys(keep for line in lines for keep in line["groups"])
    shown = {
        "batch norm of the pruned block": lambda line: line["how"],
        **{f"keep {k}": functools.partial(_of, keep=k) for k in keeps},
        "together": lambda line: (
            f"{sum(line['equal'].values())} of {sum(line['groups'].values())}"
        ),
    }
    return table(lines, shown)


def _of(line, keep):
    return f"{line['equal'][keep]} of {line['groups'][keep]}"


def _rows() -> dict[str, Row | Blocks]:
    """What is measured, by name."""
    found: dict[str, Row | Blocks] = {"the authors' routine": Blocks("resnet56", 128)}
    for (case, macs), methods in THEIRS.items():
        images = CASES[case].images
        for method, everywhere in methods:
            how = "global" if everywhere else "uniform"
            name = f"{case} {macs}, {method} {how}"
            found[name] = Row(case, macs, "Torch-Pruning", method, images, everywhere)
        for method in ("ispasp", "obs", "l1"):
            name = f"{case} {macs}, {method}"
            found[name] = Row(case, macs, "ispasp_jax", method, images)
    return found


ROWS = _rows()
BENCHMARK = Benchmark(
    file="peers.jsonl",
    full=ROWS,
    small={
        "the authors' routine": Blocks("resnet20", 16),
        "L1": Row("resnet56", "47%", "Torch-Pruning", "L1", 128),
    },
    measure=measure,
    tables={
        **{f"peers {case}": functools.partial(columns, case=case) for case in CASES},
        "authors": equal,
    },
)
