"""Pictures of what the other benchmarks' JSON says: accuracy against multiply-adds for
every method, and how a budget's widths differ by block. tables.py draws them.
"""

import after_pruning
import methods
import numpy as np
import rows

from ispasp_jax.selection import criteria

#: What has the strong colours; the others are compared with it.
FIRST = ("ispasp", "cosamp", "obs", "gfs")


def accuracy(results: list[dict]) -> None:
    """Top-1 against multiply-adds, a line for each method: repaired, and what the
    channels chosen there give as cut. (Chosen without repair, as in the tables' "as
    cut", they differ: later blocks then see damaged inputs.)
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    weak = [name for name in criteria.CRITERIA if name not in FIRST]
    styles = {name: {"color": f"C{i}", "lw": 2} for i, name in enumerate(FIRST)}
    shades = matplotlib.colormaps["tab20b"](np.linspace(0, 1, len(weak)))
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
        whole = rows.top1(found[0])["dense"]
        for panel, stage in zip(panels, ("pruned", "repaired"), strict=True):
            scores = [rows.top1(row)[stage] for row in found] + [whole]
            panel.plot(shares, scores, label=method, **styles[method])
    titles = "the same channels, as cut", "repaired, no training"
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="multiply-adds, % of dense", ylabel="top-1 %")
        panel.grid(alpha=0.3)
    panels[1].set(ylim=(58, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right")
    figure.suptitle(f"{methods.SWEPT}, CIFAR-10")
    figure.savefig(rows.RESULTS / "methods.png", dpi=110)


def _swept(row: dict, method: str) -> bool:
    """Whether the row is one of the method's, repaired, of the network swept."""
    budgets = [f"{methods.SWEPT} {macs}, {method}" for macs in methods.BUDGETS]
    return row["row"] in (*budgets, f"{methods.SWEPT}, {method}, repaired")


def widths(results: list[dict]) -> None:
    """The channels that stay in every block, a panel for each network, a line for each
    budget.
    """
    from matplotlib.figure import Figure

    networks = ("resnet56", "tf_mobilenetv2")
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    panels = figure.subplots(len(networks), 1)
    for network, panel in zip(networks, panels, strict=True):
        budgets = [
            amount
            for model, amount in after_pruning.ROWS
            if model == network and "keep" not in amount and "," not in amount
        ]
        for i, amount in enumerate(budgets):
            name = f"{network}, {amount}, obs"
            found = [row["groups"] for row in results if row["row"] == name]
            if not found:
                continue
            (groups,) = found
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
    figure.savefig(rows.RESULTS / "widths.png", dpi=110)
