"""python -m benchmarks NAME [--small] [--only GLOB ...] [--out FILE]"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks
from benchmarks import benchmark, render
from ispasp_jax import devices


def main(argv: Sequence[str]) -> int:
    """The command; the exit code."""
    if argv[:1] == ["tables"]:
        return render.main(argv[1:])
    named = argv[:1] and argv[0] in benchmarks.NAMES
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(benchmarks.module(argv[0]) if named else benchmarks).__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("name", choices=[*benchmarks.NAMES, "tables"], metavar="NAME")
    flag("--small", action="store_true", help="a minute or two; nothing is kept")
    flag("--only", nargs="*", default=[], metavar="GLOB", help="rows of these names")
    flag("--out", type=Path, metavar="FILE", help="instead of the file in results/")
    args = parser.parse_args(argv or ["--help"])
    devices.keep_freed_memory()  # as the commands do
    own = benchmarks.module(args.name).BENCHMARK
    benchmark.run(args.name, own, args.small, args.only, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
