"""Lets `python benchmarks/NAME.py` do what `python -m benchmarks NAME` does."""

import sys
from pathlib import Path


def start() -> None:
    """Runs the benchmark that the script is called after."""
    script = Path(sys.argv[0])
    sys.path[0] = str(script.resolve().parents[1])  # not the scripts, but the package
    from benchmarks.__main__ import main

    raise SystemExit(main([script.stem, *sys.argv[1:]]))
