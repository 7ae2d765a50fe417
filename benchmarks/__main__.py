"""python -m benchmarks NAME [--small] [--only GLOB ...] [--out FILE]"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks
from benchmarks import benchmark, render
from ispasp_jax import devices


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures, keeps and prints."
    )
    parser.add_argument("name", choices=[*benchmarks.NAMES, "tables"])
    if not argv:
        parser.print_help()
        return 0
    if argv[0] == "tables":
        return render.main(argv[1:])
    name = parser.parse_args(argv[:1]).name
    args = options(name).parse_args(argv[1:])
    devices.keep_freed_memory()  # as the commands do
    benchmark.run(name, benchmarks.find(name), args.small, args.only, args.out)
    return 0


def options(name: str) -> argparse.ArgumentParser:
    """What a benchmark may be told."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=benchmarks.about(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--small", action="store_true", help="a minute or two; nothing is kept"
    )
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="GLOB", help="the rows of these names"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="instead of the file in results/"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
