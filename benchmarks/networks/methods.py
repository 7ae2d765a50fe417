"""The fair table: every method on the same network, budget, calibration images, repair
and fine-tuning.

    ISPASP_DATA=DIR python benchmarks/methods.py [--only 'resnet20*'] [--small]

A method has two rows for each network: prune.py without repair, and with least squares;
both go on to the same short fine-tuning, towards the dense network's logits, without
labels. Three more budgets of resnet20, repaired and not fine-tuned, make the picture of
accuracy against multiply-adds. Calibration and fine-tuning see training images only.

The curves of a network are measured by its first row and kept for the others, so that
all methods have the same widths. --small does one method on the digits. Rows that are
in the JSON already are not run again. About three hours of one CPU core, and an hour
and a half of two for tf_mobilenetv2, whose fine-tuning takes 11 GB.
"""

import functools
from typing import NamedTuple

import numpy as np

from benchmarks.benchmark import Benchmark, Lines, panels, table
from benchmarks.networks import commands
from benchmarks.networks.after_pruning import CIFAR
from benchmarks.networks.commands import IMAGENET, share, target, top1
from ispasp_jax.selection import criteria


class Case(NamedTuple):
    """A network: flags of its data, file of its weights, budget, fine-tuning."""

    flags: list[str]
    weights: str | None
    macs: str
    epochs: int


#: MobileNetV2 is calibrated on fewer images here than elsewhere: labels cost a forward
#: and a backward pass of the rest of the network for every block.
CASES = {
    "resnet20": Case(CIFAR, "cifar10_resnet20", "47%", 1),
    "digits": Case(["--data=digits"], None, "40%", 5),
    "resnet56": Case(CIFAR, "cifar10_resnet56", "47%", 1),
    "tf_mobilenetv2": Case(
        [*IMAGENET, "--calibration-images=512"], "mobilenet_v2_imagenet_tf", "247M", 1
    ),
}
#: What digits are pruned in; trained by the first row, in runs/.
DIGITS = "resnet20"
SWEPT, BUDGETS = "resnet20", ("80%", "65%", "30%")

#: What has the strong colours; the others are compared with it.
FIRST = ("ispasp", "cosamp", "obs", "gfs")


def _commands() -> dict[str, list[str]]:
    """The flags of every row."""
    table = {}
    for name, case in CASES.items():
        model = DIGITS if case.weights is None else name
        shared = [f"--model={model}"]
        if case.weights:
            shared.append(commands.weights(case.weights))
        shared += case.flags
        tuned = ["--distill", f"--finetune-epochs={case.epochs}"]
        for method in criteria.CRITERIA:
            row = [*shared, *target(case.macs), f"--method={method}"]
            table[f"{name}, {method}"] = [*row, "--repair=none", *tuned]
            table[f"{name}, {method}, repaired"] = [*row, "--repair=lsq", *tuned]
            for macs in BUDGETS if name == SWEPT else ():
                less = [*shared, *target(macs), f"--method={method}"]
                table[f"{name} {macs}, {method}"] = [*less, "--finetune-epochs=0"]
    return table


def selection_seconds(row: dict) -> float:
    """Of a row without repair: all but compilation, which the first row has more of;
    second moments that the method asks for are booked as repair's.
    """
    seconds = row["seconds"]
    spent = seconds["selection"] + seconds["repair"]
    return spent - seconds["compilation_in_both"]


def columns(results: list[dict], name: str) -> Lines:
    """The README's columns of a network; a method each line."""
    rows = {row["row"]: row for row in results}
    pairs = {
        method: (rows.get(f"{name}, {method}"), rows.get(f"{name}, {method}, repaired"))
        for method in criteria.CRITERIA
    }
    shown = {
        "method": lambda m: m,
        "labels": lambda m: "yes" if criteria.create(m).labels else "–",
        "as cut": lambda m: f"{top1(pairs[m][0])['pruned']:.1f}",
        "repaired": lambda m: f"{top1(pairs[m][1])['repaired']:.1f}",
        "as cut, tuned": lambda m: f"{top1(pairs[m][0])['finetuned']:.1f}",
        "repaired, tuned": lambda m: f"{top1(pairs[m][1])['finetuned']:.1f}",
        "multiply-adds": lambda m: f"{pairs[m][1]['pruned']['macs'] / 1e6:.3g} M",
        "parameters": lambda m: f"{pairs[m][1]['pruned']['params'] / 1e6:.2f} M",
        "latency": lambda m: f"{share(pairs[m][1], 'latency_ms'):.0%}",
        "selection s": lambda m: f"{selection_seconds(pairs[m][0]):.0f}",
    }
    return table([method for method, pair in pairs.items() if all(pair)], shown)


def accuracy(results: list[dict]):
    """Top-1 against multiply-adds, a line for each method: repaired, and what the
    channels chosen there give as cut. (Chosen without repair, as in the tables' "as
    cut", they differ: later blocks then see damaged inputs.)
    """
    from matplotlib import colormaps

    figure, (both,) = panels((10, 4.2), 1, 2, sharex=True)
    weak = [name for name in criteria.CRITERIA if name not in FIRST]
    styles = {name: {"color": f"C{i}", "lw": 2} for i, name in enumerate(FIRST)}
    shades = colormaps["tab20b"](np.linspace(0, 1, len(weak)))
    marks = "osv^D<>P*X"
    for name, shade, mark in zip(weak, shades, marks, strict=False):
        styles[name] = {"color": shade, "lw": 0.9, "marker": mark, "ms": 4}
    for method in criteria.CRITERIA:
        found = [row for row in results if _swept(row, method)]
        if not found:
            continue
        found.sort(key=lambda row: row["pruned"]["macs"])
        dense = found[0]["dense"]["macs"]
        shares = [100 * row["pruned"]["macs"] / dense for row in found] + [100]
        whole = top1(found[0])["dense"]
        for panel, stage in zip(both, ("pruned", "repaired"), strict=True):
            scores = [top1(row)[stage] for row in found] + [whole]
            panel.plot(shares, scores, label=method, **styles[method])
    titles = "the same channels, as cut", "repaired, no training"
    for panel, title in zip(both, titles, strict=True):
        panel.set(title=title, xlabel="multiply-adds, % of dense", ylabel="top-1 %")
        panel.grid(alpha=0.3)
    both[1].set(ylim=(58, None))
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right")
    figure.suptitle(f"{SWEPT}, CIFAR-10")
    return figure


def _swept(row: dict, method: str) -> bool:
    """Whether the row is one of the method's, repaired, of the network swept."""
    budgets = [f"{SWEPT} {macs}, {method}" for macs in BUDGETS]
    return row["row"] in (*budgets, f"{SWEPT}, {method}, repaired")


COMMANDS = _commands()
BENCHMARK = Benchmark(
    file="methods.jsonl",
    full=COMMANDS,
    small={name: COMMANDS[name] for name in ("digits, l1", "digits, l1, repaired")},
    measure=commands.prune_with_curves,
    tables={f"methods {n}": functools.partial(columns, name=n) for n in CASES},
    pictures={"methods.png": accuracy},
)
