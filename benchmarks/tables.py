"""Puts the benchmarks' tables into README.md, from their JSON.

python benchmarks/tables.py            write
python benchmarks/tables.py --check    exit 1 where README.md and JSON disagree
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import after_pruning
import real_networks
import rows
import supports

README = Path(__file__).parents[1] / "README.md"

#: Name in README.md -> file of JSON lines, and the function that makes its columns.
TABLES: dict[str, tuple[str, Callable]] = {
    "after_pruning": ("after_pruning.jsonl", after_pruning.table),
    "supports": ("supports.jsonl", supports.table),
    "real_networks": ("real_networks.jsonl", real_networks.table),
}


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first to the right."""
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    rule = "|---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([head, rule, *body])


def filled(text: str) -> str:
    """README.md's text with every table as the JSON has it."""
    for name, (file, columns) in TABLES.items():
        table = markdown(columns(rows.read(rows.RESULTS / file)))
        text, count = re.subn(
            rf"(<!-- table {name} -->\n).*?(<!-- end -->)",
            lambda found, table=table: f"{found[1]}{table}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"README.md has {count} places for table {name}, not one.")
    return text


def main() -> int:
    """Writes or checks; the exit code."""
    text = README.read_text()
    new = filled(text)
    if "--check" in sys.argv:
        return int(text != new)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
