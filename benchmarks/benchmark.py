"""What a benchmark is, and the one way to run it: measure, keep, print, draw."""

import fnmatch
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ispasp_jax import files, report

RESULTS = Path(__file__).parent / "results"
SEED = 0

#: A table: its heads, and its lines.
Lines = list[list[Any]]


class Benchmark(NamedTuple):
    """A benchmark, as data.

    Attributes:
      file: of results/: one record (.json), or a row a line (.jsonl).
      full: what is measured: rows by name, each measured by itself and kept as soon as
        it is, so that who was stopped goes on with the next one; what is no dict is
        measured at once.
      small: the same, in a minute or two.
      measure: of a row, or of all at once: what was found.
      tables: columns of the results, by the name that a README's mark has.
      pictures: a matplotlib Figure of the results, by the file in results/.
      text: of the results, printed in the tables' stead.
    """

    file: str
    full: Any
    small: Any
    measure: Callable[[Any], Any]
    tables: Mapping[str, Callable[[Any], Lines]] = {}
    pictures: Mapping[str, Callable[[Any], Any]] = {}
    text: Callable[[Any], str] | None = None


def run(
    name: str,
    benchmark: Benchmark,
    small: bool = False,
    only: Sequence[str] = (),
    out: Path | None = None,
) -> Any:
    """Measures, keeps and prints; gives the results.

    Args:
      name: the benchmark's.
      benchmark: what it measures.
      small: the small ones; they are kept in `out` alone.
      only: globs of rows.
      out: where results are kept instead of the benchmark's file in results/.
    """
    what = benchmark.small if small else benchmark.full
    own = RESULTS / benchmark.file
    file = out or (None if small else own)
    if isinstance(what, dict):
        result = measure_rows(benchmark.measure, chosen(what, only), file)
    else:
        found = benchmark.measure(what)
        record = isinstance(found, dict)
        result = {**header(name, small), **found} if record else found
        write(file, result)
    text = benchmark.text or functools.partial(tables, benchmark.tables)
    print(text(result))
    if file == own:
        draw(benchmark)
    return result


def measure_rows(
    measure: Callable[[Any], dict], rows: Mapping[str, Any], file: Path | None
) -> list[dict[str, Any]]:
    """Measures the rows that the file does not have yet; gives all of them in order."""
    known = {row["row"]: row for row in read(file)} if file and file.exists() else {}
    for name, what in rows.items():
        if name not in known:
            report.say(f"--- {name}")
            known[name] = {"row": name, **measure(what)}
            first = [known[key] for key in rows if key in known]
            write(file, first + [row for key, row in known.items() if key not in rows])
    return [known[name] for name in rows]


def chosen(rows: Mapping[str, Any], globs: Sequence[str]) -> dict[str, Any]:
    """The rows whose names match a glob; all of them without globs."""
    names = {name for glob in globs or ["*"] for name in fnmatch.filter(rows, glob)}
    return {name: rows[name] for name in rows if name in names} or sys.exit(
        f"--only matches no row of {', '.join(rows)}"
    )


def header(name: str, small: bool = False) -> dict[str, Any]:
    """What the numbers depend on."""
    import jax

    return {
        "command": f"python benchmarks/{name}.py" + " --small" * small,
        "device": report.device(),
        "backend": jax.default_backend(),
        "versions": report.versions(),
        "seed": SEED,
    }


def table(rows: Iterable[Any], columns: Mapping[str, Callable[[Any], Any]]) -> Lines:
    """A line for each row: what every column has of it, below the columns' heads."""
    return [[*columns], *([of(row) for of in columns.values()] for row in rows)]


def tables(columns: Mapping[str, Callable[[Any], Lines]], result: Any) -> str:
    """Of the results, all tables that have lines, for people."""
    made = {name: lines(result) for name, lines in columns.items()}
    return "\n\n".join(
        f"{name}\n{report.table(lines)}" for name, lines in made.items() if lines[1:]
    )


def panels(size: tuple[float, float], rows: int, columns: int, **shared):
    """A figure of so many inches, and an array of its panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def draw(benchmark: Benchmark) -> None:
    """Draws the pictures of what results/ has."""
    result = read(RESULTS / benchmark.file)
    for name, picture in benchmark.pictures.items():
        picture(result).savefig(RESULTS / name, dpi=110)


def read(file: Path) -> Any:
    """A record, or a list of rows."""
    if file.suffix == ".json":
        return json.loads(file.read_text())
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(file: Path | None, result: Any) -> None:
    """Keeps a record or rows, whole or not at all; nowhere without a file."""
    if file:
        lines = result if isinstance(result, list) else [result]
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, "".join(json.dumps(line) + "\n" for line in lines))


def data_folder() -> Path:
    """The folder of real data and weights that ISPASP_DATA names; exits without it."""
    folder = os.environ.get("ISPASP_DATA")
    if not folder or not Path(folder).is_dir():
        sys.exit(
            "skipped: ISPASP_DATA does not name a folder with weights/, cifar10/, "
            "imagenet/ and mnist/"
        )
    return Path(folder)
