"""Puts the benchmarks' tables into the READMEs, and draws the pictures, from JSON.

python benchmarks/tables.py            write tables and pictures
python benchmarks/tables.py --check    exit 1 where READMEs and JSON disagree
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import after_pruning
import core
import figures
import gfs_report
import latency
import methods
import mnist_two_layer
import real_networks
import reported
import rows
import selection_cost
import supports
import synthetic_decay
import traces
import walk_steps

HERE = Path(__file__).parent
READMES = (HERE.parent / "README.md", HERE / "README.md")


def lines(file: str) -> list[dict]:
    """The rows of results/FILE."""
    return rows.read(rows.RESULTS / file)


def whole(file: str) -> dict:
    """What results/FILE holds."""
    return json.loads((rows.RESULTS / file).read_text())


#: Name in one of the READMEs -> its columns.
TABLES: dict[str, Callable[[], list[list[Any]]]] = {
    "after_pruning": lambda: after_pruning.table(lines("after_pruning.jsonl")),
    "claim": lambda: after_pruning.claim_table(lines("after_pruning.jsonl")),
    "rounding": lambda: after_pruning.rounding_table(lines("after_pruning.jsonl")),
    "supports": lambda: supports.table(lines("supports.jsonl")),
    "real_networks": lambda: real_networks.table(lines("real_networks.jsonl")),
    "selection_cost": lambda: selection_cost.walk_table(whole("selection_cost.json")),
    "iterations": lambda: selection_cost.iteration_table(whole("selection_cost.json")),
    "naive": lambda: selection_cost.naive_table(whole("selection_cost.json")),
    "walk_steps": lambda: walk_steps.columns(whole("walk_steps.json")),
    "core": lambda: core.columns(whole("core.json"), keep=0.1),
    "latency": lambda: latency.latency_table(whole("latency.json")),
    "depthwise": lambda: latency.depthwise_table(whole("latency.json")),
    "traces": lambda: traces.table(lines("traces.jsonl")),
    "synthetic_decay": lambda: synthetic_decay.table(whole("synthetic_decay.json")),
    "against_gfs": lambda: gfs_report.table(lines("against_gfs.jsonl")),
    "reported": reported.table,
    **{
        f"methods {name}": lambda name=name: methods.table(lines(methods.FILE), name)
        for name in methods.CASES
    },
}

#: What draws a picture in results/.
PICTURES: tuple[Callable[[], None], ...] = (
    lambda: mnist_two_layer.plot(whole("mnist_two_layer.json")),
    lambda: synthetic_decay.plot(whole("synthetic_decay.json")),
    lambda: gfs_report.plot(lines("against_gfs.jsonl")),
    lambda: traces.plot(lines("traces.jsonl")),
    lambda: figures.accuracy(lines(methods.FILE)),
    lambda: figures.widths(lines("after_pruning.jsonl")),
)


def markdown(lines: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; all columns but the first to the right."""
    cells = [["–" if cell is None else str(cell) for cell in line] for line in lines]
    head, *body = ["| " + " | ".join(line) + " |" for line in cells]
    rule = "|---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([head, rule, *body])


def filled(texts: Sequence[str]) -> list[str]:
    """The READMEs' texts with every table as the JSON has it."""
    for name, columns in TABLES.items():
        mark = f"<!-- table {name} -->\n"
        if sum(text.count(mark) for text in texts) != 1:
            raise ValueError(f"The READMEs do not have one place for table {name}.")
        table = markdown(columns())
        texts = [
            re.sub(
                f"({re.escape(mark)}).*?(<!-- end -->)",
                lambda found, table=table: f"{found[1]}{table}\n{found[2]}",
                text,
                flags=re.DOTALL,
            )
            for text in texts
        ]
    return list(texts)


def main() -> int:
    """Writes or checks; the exit code."""
    texts = [path.read_text() for path in READMES]
    new = filled(texts)
    if "--check" in sys.argv:
        return int(texts != new)
    for path, text in zip(READMES, new, strict=True):
        path.write_text(text)
    for draw in PICTURES:
        draw()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
