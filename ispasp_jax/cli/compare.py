"""ispasp-compare: what several runs of prune.py have come to, side by side."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ispasp_jax import files
from ispasp_jax.cli import json_files, process
from ispasp_jax.cli.parsing import Parser
from ispasp_jax.errors import InputError
from ispasp_jax.report import compare

#: What is read in a run's folder, and what is written in --out.
REPORT, NUMBERS, PICTURE = "report.json", "compare.json", "compare.svg"


def parser() -> Parser:
    """The flags of ispasp-compare."""
    parser = Parser(
        "-m ispasp_jax.cli.compare",
        "ispasp-compare",
        ["runs/resnet20-digits-ispasp runs/resnet20-digits-obs --out comparison"],
        description="Show runs of prune.py side by side, and mark those that no other\n"
        "beats in top-1 against multiply-adds or latency.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders that prune.py left"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"also write {NUMBERS} and {PICTURE} (needs the extra [plots]) there; "
        "default: none",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return process.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    """Parses the flags, prints the table and writes the files."""
    args = parser().parse_args(argv)
    runs = [read(folder) for folder in args.runs]
    marks = compare.best(runs)
    if args.out is not None:
        write(args.out, runs, marks)
    print(compare.comparison_table(runs, marks))


def read(folder: Path) -> compare.Run:
    """The run that a folder holds.

    Args:
      folder: where prune.py left it; the run is called so.

    Returns:
      The run.

    Raises:
      InputError: it has no report.json, or not one of prune.py.
    """
    return json_files.read(
        folder / REPORT,
        f"the {REPORT} that prune.py leaves in its --out folder; give such a folder",
        lambda report: compare.run(str(folder), report),
    )


def write(
    out: Path, runs: Sequence[compare.Run], marks: Sequence[compare.Best]
) -> None:
    """Writes the comparison; the picture where matplotlib is there.

    Args:
      out: the folder, made where it is not there.
      runs: what to compare.
      marks: of compare.best.

    Raises:
      InputError: the folder's place is a file's.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder, or a new name.")
    out.mkdir(parents=True, exist_ok=True)
    content = compare.to_json(runs, marks)
    files.write_text(out / NUMBERS, json_files.dump(content))
    try:
        from ispasp_jax.report import plots
    except ImportError:
        words = f"no {PICTURE}: install the [plots] extra (matplotlib)"
        print(words, file=sys.stderr)
        return
    with files.new_file(out / PICTURE) as new:
        plots.comparison(runs, marks, new)


if __name__ == "__main__":
    raise SystemExit(main())
