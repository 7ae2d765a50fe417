"""Puts the results' tables into the READMEs and docs/scale.md, and draws pictures.

python benchmarks/tables.py            write tables and pictures
python benchmarks/tables.py --check    exit 1 where READMEs and results disagree
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks.benchmark import RESULTS, Benchmark, Lines, draw, read, table
from benchmarks.paper import reported

HERE = Path(__file__).parent
READMES = (
    HERE.parent / "README.md",
    HERE / "README.md",
    HERE.parent / "docs" / "scale.md",
)


def every() -> list[Benchmark]:
    """All benchmarks."""
    return [benchmarks.module(name).BENCHMARK for name in benchmarks.NAMES]


def tables() -> dict[str, Lines]:
    """Name in one of the READMEs -> the table."""
    found = {"reported": table(reported.ROWS, reported.COLUMNS)}
    for benchmark in every():
        result = read(RESULTS / benchmark.file)
        found |= {name: columns(result) for name, columns in benchmark.tables.items()}
    return found


def markdown(lines: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; all columns but the first to the right."""
    # Heads that read alike differ by a space at the end.
    cells = [
        ["–" if c is None else str(c).strip().replace("|", "\\|") for c in line]
        for line in lines
    ]
    head, *body = ["| " + " | ".join(line) + " |" for line in cells]
    rule = "|---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([head, rule, *body])


def filled(texts: Sequence[str]) -> list[str]:
    """The READMEs' texts with every table as the results have it."""
    for name, lines in tables().items():
        mark = f"<!-- table {name} -->\n"
        if sum(text.count(mark) for text in texts) != 1:
            raise ValueError(f"The READMEs do not have one place for table {name}.")
        filling = markdown(lines)
        texts = [
            re.sub(
                f"({re.escape(mark)}).*?(<!-- end -->)",
                lambda found, filling=filling: f"{found[1]}{filling}\n{found[2]}",
                text,
                flags=re.DOTALL,
            )
            for text in texts
        ]
    return list(texts)


def main(argv: Sequence[str]) -> int:
    """Writes or checks; the exit code."""
    texts = [path.read_text() for path in READMES]
    new = filled(texts)
    if "--check" in argv:
        return int(texts != new)
    for path, text in zip(READMES, new, strict=True):
        path.write_text(text)
    for benchmark in every():
        draw(benchmark)
    return 0
