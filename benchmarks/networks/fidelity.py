"""A judge that can decide: how like the dense network pruned ones answer, repaired and
without training, on 10,000 images of CIFAR-10 and 650 of ImageNet.

    ISPASP_DATA=DIR python benchmarks/fidelity.py [--only 'resnet20*'] [--small]

Every row is a run of prune.py. Beside top-1 it has the agreement with the dense
network's classes and the mean KL divergence from its softmax, KL(dense ‖ pruned), with
standard errors, and the differences to another row on the same images; one of more than
two standard errors is decided. Nothing was calibrated on these images: CIFAR-10's are
the JPEG test images, lossless training images calibrate.

The pruned networks and what they make of every image stay in runs/fidelity/, so that
rows compared later need no second run; remove the folder when prune.py has changed.
--small does one row. Rows that are in the JSON already are not run again. About twenty
minutes on two CPU cores.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.benchmark import Benchmark, Lines, table
from benchmarks.networks import commands, judge
from benchmarks.networks.after_pruning import CIFAR
from benchmarks.networks.commands import target
from benchmarks.networks.judge import Mean, Outcome
from ispasp_jax import weights
from ispasp_jax.data import Preprocessing

#: Where pruned networks and outcomes are kept.
RUNS = Path("runs") / "fidelity"


class Case(NamedTuple):
    """A network: file of its weights, flags of its data, images to judge by."""

    weights: str
    flags: list[str]
    images: judge.Judges


CASES = {
    "resnet20": Case("cifar10_resnet20", CIFAR, judge.cifar),
    "resnet32": Case("cifar10_resnet32", CIFAR, judge.cifar),
    "tf_mobilenetv2": Case(
        "mobilenet_v2_imagenet_tf", commands.IMAGENET, judge.imagenet
    ),
}
#: (network, multiply-adds) -> methods, and what widths are multiples of beside 1 (None:
#: what they are by default).
BUDGETS = {
    ("resnet20", "33%"): (("obs", "ispasp"), (8, None)),
    ("resnet20", "47%"): (("obs",), (8,)),
    ("resnet32", "33%"): (("obs",), (8,)),
}


class Row(NamedTuple):
    """A run: its network, its flags, and the row that it is compared with."""

    network: str
    flags: list[str]
    against: str | None


def _rows() -> dict[str, Row]:
    rows = {}
    for (network, macs), (methods, multiples) in BUDGETS.items():
        case = CASES[network]
        shared = [f"--model={network}", commands.weights(case.weights), *case.flags]
        for method in methods:
            name, base = (f"{network}, {macs}, {m}" for m in (method, methods[0]))
            flags = [*shared, *target(macs), f"--method={method}"]
            rows[name] = Row(network, flags, None if name == base else base)
            for n in multiples:
                flags = [*shared, *target(macs, n), f"--method={method}"]
                how = f"multiples of {n}" if n else "as by default"
                rows[f"{name}, {how}"] = Row(network, flags, name)
    return rows


def measure(row: Row) -> dict[str, Any]:
    """Prunes, and judges what is left; what it is compared with is pruned too where no
    row before has."""
    own, report = _judged(row)
    result = {
        "network": row.network,
        "against": row.against,
        "command": report["command"],
        "budget": report["budget"],
        "groups": report["groups"],
        "dense": report["dense"],
        "pruned": report["pruned"],
        "images": len(own.right),
        **{name: found._asdict() for name, found in judge.means(own).items()},
    }
    if row.against:
        base, _ = _judged(ROWS[row.against])
        found = judge.differences(own, base)
        result["difference"] = {name: one._asdict() for name, one in found.items()}
    return result


def _judged(row: Row) -> tuple[Outcome, dict[str, Any]]:
    """What the row's network makes of every image, and the report of its run."""
    name = hashlib.sha256(" ".join(row.flags).encode()).hexdigest()[:16]
    folder, said, kept = (RUNS / f"{name}{end}" for end in ("", ".json", ".npz"))
    if not said.exists():
        report = commands.prune_with_curves(row.flags, folder)
        said.write_text(json.dumps(report))
    if not kept.exists():
        np.savez(kept, **_outcome(row.network, folder)._asdict())
    with np.load(kept) as file:
        found = Outcome(**{field: file[field] for field in Outcome._fields})
    return found, json.loads(said.read_text())


def _outcome(network: str, folder: Path) -> Outcome:
    case, model = CASES[network], weights.load(folder)
    split = case.images()
    labels = np.array([split.read(i)[1] for i in range(len(split))])
    theirs = _dense(network, model.images, model.num_classes)
    return judge.outcome(judge.logits(model, split), theirs, labels)


@functools.cache
def _dense(network: str, prep: Preprocessing, num_classes: int) -> np.ndarray:
    """The dense network's logits."""
    case = CASES[network]
    whole = judge.dense(network, case.weights, prep, num_classes)
    return judge.logits(whole, case.images())


#: Column -> attribute of an outcome, factor of the unit, digits, what is better.
_MEASURES = {
    "agreement %": ("agrees", 100, 1, True),
    "KL": ("divergence", 1, 3, False),
}


def columns(results: list[dict]) -> Lines:
    """A line for each run: what it is, and what it is beside another."""

    def value(row, name):
        attribute, factor, digits, _ = _MEASURES[name]
        return _shown(Mean(**row[attribute]), factor, digits)

    def difference(row, name):
        if row["against"] is None:
            return None
        attribute, factor, digits, larger = _MEASURES[name]
        found = Mean(**row["difference"][attribute])
        said = judge.verdict(found, larger)
        return f"{_shown(found, factor, digits, '+')}, {said}"

    shown = {
        "run": lambda row: row["row"],
        "top-1": lambda row: f"{100 * row['right']['mean']:.1f}",
        **{name: functools.partial(value, name=name) for name in _MEASURES},
        "against": lambda row: row["against"] and row["against"].rpartition("%, ")[2],
        **{f"Δ {name}": functools.partial(difference, name=name) for name in _MEASURES},
    }
    return table(results, shown)


def _shown(found: Mean, factor: float, digits: int, sign: str = "") -> str:
    return f"{factor * found.mean:{sign}.{digits}f} ± {factor * found.error:.{digits}f}"


ROWS = _rows()
_SMALL = ROWS["resnet20, 47%, obs"]
BENCHMARK = Benchmark(
    file="fidelity.jsonl",
    full=ROWS,
    small={
        "resnet20, 47%, obs": _SMALL._replace(
            flags=[*_SMALL.flags, "--calibration-images=250"], against=None
        )
    },
    measure=measure,
    tables={"fidelity": columns},
)
