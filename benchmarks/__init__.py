"""What was measured, and how to measure it again.

    python -m benchmarks                     what there is
    python -m benchmarks NAME [--small]      or python benchmarks/NAME.py
    python -m benchmarks tables [--check]    results to the READMEs' tables and pictures

    benchmark   what a benchmark is, and the one way to run it
    networks    public networks, as flags of prune.py
    timings     seconds and bytes, on random weights and images unless said otherwise
    paper       the paper's experiments, and what it reports
    render      results to tables and pictures
    results     what was found

A new benchmark is a module with a BENCHMARK in one of the rooms, its name here, and a
script beside the others. Modules are imported when they are asked for, so one may need
what the others do not.
"""

import importlib
from types import ModuleType

#: The benchmarks of every room.
ROOMS = {
    "networks": [
        *("after_pruning", "attention", "fidelity", "methods", "peers"),
        *("real_networks", "signs"),
    ],
    "timings": "selection_cost walk_steps core latency export_latency scale".split(),
    "paper": "mnist_two_layer synthetic_decay against_gfs traces supports".split(),
}
NAMES = tuple(name for names in ROOMS.values() for name in names)


def module(name: str) -> ModuleType:
    """Where a benchmark is: its BENCHMARK, and what it says of itself."""
    (room,) = (room for room, names in ROOMS.items() if name in names)
    return importlib.import_module(f"benchmarks.{room}.{name}")
