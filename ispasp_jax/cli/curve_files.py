"""curves.json as the commands read and write it: curves, and what they were measured
on, so that they answer for that network and those images alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ispasp_jax.budget.cost import BySize, Terms
from ispasp_jax.cli import content, json_files, widths
from ispasp_jax.cli.config import PruneConfig, Pruning
from ispasp_jax.errors import InputError
from ispasp_jax.walk import curves
from ispasp_jax.walk.curves import Curves
from ispasp_jax.weights.folders import Model, fingerprint

#: What a run calls its curves.
CURVES = "curves.json"
_EXPECTED = f"the {CURVES} of a run of prune.py with --target or --tolerance"


class CurveFile(NamedTuple):
    """Curves, and what they were measured on.

    Attributes:
      identity: of `identity`.
      curves: by group.
      latency: timings by size on some device, as JSON has them; None: none were taken.
    """

    identity: Mapping[str, Any]
    curves: Curves
    latency: Mapping[str, Any] | None = None


def identity(
    config: PruneConfig, model: Model, batches: list[np.ndarray]
) -> dict[str, Any]:
    """What curves depend on, by content.

    Args:
      config: scope, precision and repair.
      model: the network.
      batches: calibration images, preprocessed.
    """
    result = {
        "model": model.name,
        "options": dict(model.options),
        "widths": widths.scope(config.pruning, model),
        "weights": fingerprint(model.variables),
        "images": content.of_batches(batches),
        "precision": config.run.precision,
        "repaired": config.pruning.fits,
    }
    return json.loads(json.dumps(result))


def read(path: Path, pruning: Pruning, model: Model) -> CurveFile:
    """The curves of --curves.

    Raises:
      InputError: they cannot be read, or are of another network.
    """
    try:
        return _fitting(path, pruning, model)
    except InputError as error:
        raise InputError(f"--curves {path} cannot be used: {error}") from error


def fingerprint_of(path: Path) -> str:
    """Of the file of --curves, whatever it holds.

    Raises:
      InputError: it cannot be read.
    """
    try:
        return content.of_arrays([np.frombuffer(path.read_bytes(), np.uint8)])
    except OSError as error:
        raise InputError(
            f"--curves {path} cannot be used ({error.strerror}); expected {_EXPECTED}."
        ) from error


def beside(folder: Path, pruning: Pruning, model: Model) -> CurveFile | None:
    """The curves in a run's folder, whatever they were measured on; None if none are.

    Raises:
      InputError: they are damaged, or of another network.
    """
    path = folder / CURVES
    return _fitting(path, pruning, model) if path.exists() else None


def answers(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether curves of the one identity do for the other: all is equal, and they are
    of all groups of the other, at least.
    """
    groups = wanted["widths"].items() <= there.get("widths", {}).items()
    return groups and {**there, "widths": wanted["widths"]} == wanted


def _fitting(path: Path, pruning: Pruning, model: Model) -> CurveFile:
    held = json_files.read(path, _EXPECTED, from_json)
    there, lengths = (
        held.identity,
        {name: len(curve.order) for name, curve in held.curves.items()},
    )
    before, wanted = there.get("widths"), widths.scope(pruning, model)
    fits = isinstance(before, dict) and wanted.items() <= before.items()
    if there.get("model") != model.name or not fits:
        raise InputError(
            f"{path} holds curves of {there.get('model')!r} with other groups or "
            f"widths than this {model.name} is to be cut in; give curves of this "
            "network, or measure them again."
        )
    unknown = [name for name, d in lengths.items() if model.widths.get(name) != d]
    if unknown:
        raise InputError(
            f"{path} holds a curve of group {unknown[0]!r} with {lengths[unknown[0]]} "
            f"channels, which {model.name} does not have; measure them again."
        )
    return held


def to_json(held: CurveFile) -> dict[str, Any]:
    """What curves.json holds."""
    result: dict[str, Any] = {"format": 1, "identity": held.identity}
    if held.latency is not None:
        result["latency"] = held.latency
    result["groups"] = curves.to_json(held.curves)
    return {**result, "sum": _sum(result)}


def from_json(data: Any) -> CurveFile:
    """What curves.json says.

    Raises:
      InputError: it does not hold curves, or a byte of it has changed.
    """
    if not isinstance(data, dict) or data.get("format") != 1:
        raise InputError("not curves of format 1")
    if not isinstance(data.get("identity"), dict):
        raise InputError("not curves: it does not say what they were measured on")
    if "sum" in data and data["sum"] != _sum(data):
        raise InputError("damaged: its content does not have the sum that it names")
    result, latency = curves.from_json(data.get("groups")), None
    # Timings of an earlier version, with a slope, are taken again.
    if "latency" in data and "slope" not in (data["latency"] or {}):
        latency = data["latency"]
        _check_latency(latency)
    return CurveFile(data["identity"], result, latency)


def _sum(data: Mapping[str, Any]) -> str:
    text = json.dumps({k: data[k] for k in data if k != "sum"}, sort_keys=True)
    return content.of_text(text)


def latency(held: CurveFile, here: Mapping[str, Any]) -> BySize | None:
    """Latencies that were timed before, where they agree with `here`: device, batch
    size and widths.
    """
    there = held.latency
    if not there or any(there.get(key) != value for key, value in here.items()):
        return None
    rest = {name: _terms(rows) for name, rows in there.get("rest", {}).items()}
    return BySize(there["widths"], _terms(there["terms"]), rest)


def latency_to_json(found: BySize, here: Mapping[str, Any]) -> dict[str, Any]:
    """Timed latencies as curves.json has them, with what they were timed on."""

    def rows(terms: Terms) -> list[Any]:
        return [[list(names), value] for names, value in terms.items()]

    rest = {name: rows(terms) for name, terms in found.rest.items()}
    return {**here, "widths": found.widths, "terms": rows(found.terms), "rest": rest}


def _terms(rows: Any) -> Terms:
    return {tuple(names): milliseconds for names, milliseconds in rows}


def _check_latency(there: Any) -> None:
    """Raises InputError where they are none."""
    try:
        rest = [row for rows in there.get("rest", {}).values() for row in rows]
        for names, value in (*there["terms"], *rest):
            if not all(type(there["widths"][name]) is int for name in names):
                raise ValueError
            if type(value) not in (int, float) or not np.isfinite(value):
                raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise InputError("not curves: its latencies are damaged") from None
