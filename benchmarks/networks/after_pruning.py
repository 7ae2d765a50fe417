"""Networks as they leave prune.py, before any training: five methods, as cut and
repaired, under a budget of multiply-adds and at one ratio for every block.

    ISPASP_DATA=DIR python benchmarks/after_pruning.py [--only 'resnet56*'] [--small]

Every row is a run of prune.py; labels are not used, calibration sees training images
only, and the curves of a network are measured by its first row and kept for the others.
No method or budget was decided on resnet32 and resnet44. About two hours on two CPU
cores; --small does one row. Rows that are in the JSON already are not run again.
"""

import functools

import numpy as np

from benchmarks.benchmark import Benchmark, Lines, panels, table
from benchmarks.networks import commands
from benchmarks.networks.commands import share, target, top1

METHODS = ("random", "l1", "ispasp", "cosamp", "obs")

CIFAR = [*commands.CIFAR, "--calibration-images=2048"]
#: Network -> weights, flags of its data.
NETWORKS = {
    "resnet56": ("cifar10_resnet56", CIFAR),
    "tf_mobilenetv2": ("mobilenet_v2_imagenet_tf", commands.IMAGENET),
    "resnet32": ("cifar10_resnet32", CIFAR),
    "resnet44": ("cifar10_resnet44", CIFAR),
}


ALL = "--calibration-images=4000"
TWO, L1_TOO = ("ispasp", "obs"), ("l1", "obs")
#: Ten epochs over the 4,000 training images at hand, without their labels.
TUNED = [*target("47%"), "--distill", "--finetune-epochs=10"]
#: (network, how much) -> flags, methods.
ROWS = {
    ("resnet56", "60 %"): (target("60%"), TWO),
    ("resnet56", "47 %"): (target("47%"), METHODS),
    ("resnet56", "33 %"): (target("33%"), TWO),
    ("resnet56", "keep 0.47"): (["--keep=0.47"], METHODS),
    ("tf_mobilenetv2", "247 M"): (target("247M"), TWO),
    ("tf_mobilenetv2", "223 M"): (target("223M"), METHODS[1:]),
    ("tf_mobilenetv2", "200 M"): (target("200M"), TWO),
    ("tf_mobilenetv2", "keep 0.7"): (["--keep=0.7"], ("l1", "obs")),
    ("resnet32", "47 %"): (target("47%"), TWO),
    ("resnet44", "47 %"): (target("47%"), TWO),
    ("resnet56", "60 %, 4,000 images"): ([*target("60%"), ALL], L1_TOO),
    ("resnet56", "47 %, 4,000 images"): ([*target("47%"), ALL], L1_TOO),
    ("resnet56", "33 %, 4,000 images"): ([*target("33%"), ALL], L1_TOO),
    ("resnet56", "47 %, distilled"): (TUNED, ("obs",)),
    ("resnet56", "47 %, rounded"): (target("47%", "auto"), ("obs",)),
    ("tf_mobilenetv2", "247 M, rounded"): (target("247M", "auto"), ("obs",)),
}


#: The flags of every row.
COMMANDS = {
    f"{model}, {amount}, {method}": [
        f"--model={model}",
        commands.weights(NETWORKS[model][0]),
        *NETWORKS[model][1],
        *how,
        f"--method={method}",
    ]
    for (model, amount), (how, methods) in ROWS.items()
    for method in methods
}


def columns(results: list[dict]) -> Lines:
    """The README's columns: a line for each network and amount, methods beside."""
    found = {(_what(row), row["method"]): row for row in results}
    first = {_what(row): row for row in reversed(results)}

    def scores(method, name):
        top = top1(found[name, method]) if (name, method) in found else {}
        stages = [s for s in ("pruned", "repaired", "finetuned") if s in top]
        return " → ".join(f"{top[stage]:.1f}" for stage in stages) or None

    def macs(name):
        own = first[name]
        return f"{own['pruned']['macs'] / 1e6:.0f} M ({share(own, 'macs'):.0%})"

    shown = {
        "network": lambda name: name,
        "multiply-adds": macs,
        "dense": lambda name: f"{top1(first[name])['dense']:.1f}",
        **{method: functools.partial(scores, method) for method in METHODS},
    }
    names = [f"{model}, {amount}" for model, amount in ROWS]
    return table([name for name in names if name in first], shown)


#: Of the table, what the first README claims.
CLAIM = ("resnet56, 60 %", "resnet56, 47 %", "resnet56, 33 %")
CLAIM += ("tf_mobilenetv2, 247 M", "tf_mobilenetv2, 223 M", "tf_mobilenetv2, 200 M")


def claim_table(results: list[dict]) -> Lines:
    """The first README's: one budget a line, repaired, three methods."""
    found = {(_what(row), row["method"]): row for row in results}

    def repaired(method, name):
        row = found.get((name, method))
        return None if row is None else f"{top1(row)['repaired']:.1f}"

    shown = {
        "network": lambda name: name.partition(",")[0],
        "multiply-adds": lambda name: f"{share(found[name, 'obs'], 'macs'):.0%}",
        "dense": lambda name: f"{top1(found[name, 'obs'])['dense']:.1f}",
        "l1": functools.partial(repaired, "l1"),
        "ispasp, the paper's": functools.partial(repaired, "ispasp"),
        "obs": functools.partial(repaired, "obs"),
    }
    return table([name for name in CLAIM if (name, "obs") in found], shown)


def rounding_table(results: list[dict]) -> Lines:
    """What `--round-to auto` does to a budget's networks: each beside its twin."""
    by_name = {_what(row): row for row in results if row["method"] == "obs"}
    rounded = [name for name in by_name if name.endswith(", rounded")]
    pairs = [(name.removesuffix(", rounded"), name) for name in rounded]
    shown = {
        "network": lambda row: _what(row).removesuffix(", rounded"),
        "method": lambda row: row["method"],
        "multiples of": lambda row: row["budget"]["round_to"],
        "as cut": lambda row: f"{top1(row)['pruned']:.1f}",
        "repaired": lambda row: f"{top1(row)['repaired']:.1f}",
        "multiply-adds": lambda row: f"{share(row, 'macs'):.0%}",
        "latency": lambda row: f"{share(row, 'latency_ms'):.0%}",
    }
    return table([by_name[n] for pair in pairs for n in pair if n in by_name], shown)


def _what(row: dict) -> str:
    """A row's network and amount."""
    return row["row"].rpartition(", ")[0]


def widths(results: list[dict]):
    """The channels that stay in every block, a panel for each network, a line for each
    budget.
    """
    networks = ("resnet56", "tf_mobilenetv2")
    found = {row["row"]: row["groups"] for row in results}
    figure, column = panels((10, 6.2), len(networks), 1)
    for network, (panel,) in zip(networks, column, strict=True):
        budgets = [
            amount
            for model, amount in ROWS
            if model == network and "keep" not in amount and "," not in amount
        ]
        for i, amount in enumerate(budgets):
            if (name := f"{network}, {amount}, obs") not in found:
                continue
            groups = found[name]
            places = np.arange(len(groups))
            share = np.array([g["kept"] / g["width"] for g in groups])
            width = 0.8 / len(budgets)
            panel.bar(places + (i - 1) * width, share, width, label=amount)
        names = [g["name"] for g in groups]
        panel.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        panel.set(ylabel="channels kept, of all", title=network, ylim=(0, 1.02))
        panel.margins(x=0.01)
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        panel.legend(title="multiply-adds", fontsize=8, title_fontsize=8, **beside)
    return figure


BENCHMARK = Benchmark(
    file="after_pruning.jsonl",
    full=COMMANDS,
    small={k: [*COMMANDS[k], "--calibration-images=250"] for k in [*COMMANDS][:1]},
    measure=commands.prune_with_curves,
    tables={"after_pruning": columns, "claim": claim_table, "rounding": rounding_table},
    pictures={"widths.png": widths},
)
