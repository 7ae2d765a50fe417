"""Rows that are runs of `prune.py`: flags, and its report."""

import functools
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks.benchmark import data_folder
from ispasp_jax.cli import prune as command

#: The folder of data and weights, as flags and results name it.
DATA = "$ISPASP_DATA"

#: Flags of the data; ImageNet's images are 227 pixels already, so only cropped.
CIFAR = [f"--data=npz:{DATA}/cifar10/cifar10_lossless.npz"]
IMAGENET = [
    f"--data=folder:{DATA}/imagenet",
    "--resize=none",
    "--calibration-images=1000",
    "--latency-batch-size=8",
]

#: Flags that curves do not depend on.
_NOT_OF_CURVES = ("--method", "--target", "--round-to", "--finetune", "--distill")


def weights(file: str) -> str:
    """The flag of public weights."""
    return f"--weights={DATA}/weights/{file}.safetensors"


def target(macs: str, round_to: int | str | None = 1) -> list[str]:
    """The flags of a budget; any widths unless told otherwise, so that it is met as
    nearly as can be. None: the default.
    """
    rounding = [] if round_to is None else [f"--round-to={round_to}"]
    return [f"--target=macs={macs}", *rounding]


def top1(row: Mapping[str, Any]) -> dict[str, float]:
    """Top-1 of a run by stage, in per cent."""
    return {stage["stage"]: 100 * stage["top1"] for stage in row["stages"]}


def share(row: Mapping[str, Any], what: str) -> float:
    """What the pruned network has of the dense one's multiply-adds, latency, …"""
    return row["pruned"][what] / row["dense"][what]


def prune(
    flags: list[str],
    more: Iterable[str] = (),
    curves: Path | None = None,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Runs `prune.py`; its report, and the command as one types it.

    Args:
      flags: of the row.
      more: flags that save time and change nothing; not in the command.
      curves: where the run's curves are kept.
      kept: the run's folder; None: it goes.
    """
    typed = " ".join(flags)
    folder = str(data_folder()) if DATA in typed else DATA
    given = [flag.replace(DATA, folder) for flag in flags]
    with tempfile.TemporaryDirectory() as scratch:
        out = kept or Path(scratch) / "out"
        more = [*more, "--resume"] if kept else more  # of one that was stopped
        if command.main([*given, *more, f"--out={out}"]):
            sys.exit(f"prune.py {typed} failed")
        report = json.loads((out / "report.json").read_text().replace(folder, DATA))
        if curves:
            shutil.copy(out / "curves.json", curves)
    jax.clear_caches()  # a hundred rows' programs are more than a process may map
    return {**report, "command": f"python prune.py {typed}"}


def prune_with_curves(flags: list[str], kept: Path | None = None) -> dict[str, Any]:
    """The same; curves that a budget needs are measured by the first row that needs
    them, and kept for the others: as long as the process lives, or beside the run's
    folder where that is kept.
    """
    if not any(flag.startswith("--target") for flag in flags):
        return prune(flags, kept=kept)
    of_curves = [flag for flag in flags if not flag.startswith(_NOT_OF_CURVES)]
    name = hashlib.sha256(" ".join(of_curves).encode()).hexdigest()
    curves = (kept.parent if kept else Path(_folder().name)) / f"{name}.json"
    if curves.exists():
        return prune(flags, [f"--curves={curves}"], kept=kept)
    return prune(flags, curves=curves, kept=kept)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()
