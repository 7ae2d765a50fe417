"""Several runs side by side: what each report.json says of its network, and which of
them no other beats. Reads no file.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ispasp_jax.errors import InputError
from ispasp_jax.numerals import numeral
from ispasp_jax.report.tables import table


class Costs(NamedTuple):
    """What a network costs.

    Attributes:
      macs: multiply-adds for one image.
      params: numbers in its arrays.
      latency_ms: of a pass.
    """

    macs: int
    params: int
    latency_ms: float


class Run(NamedTuple):
    """What a comparison takes from a report.json.

    Attributes:
      name: of the run.
      model: its architecture.
      method: what chose the channels.
      data: what top-1 is of.
      device: where latency was measured.
      batch_size: images of a pass there.
      dense_top1: of the network given, 0 to 1, as the next two.
      cut_top1: as cut, before any repair.
      top1: in the end.
      dense: what the network given costs.
      pruned: what is left of that.
    """

    name: str
    model: str
    method: str
    data: str
    device: str
    batch_size: int
    dense_top1: float
    cut_top1: float
    top1: float
    dense: Costs
    pruned: Costs


class Best(NamedTuple):
    """Whether a run is a Pareto point: none is at least as good in both, and better in
    one.

    Attributes:
      macs: of top-1 against multiply-adds, among runs on the same data.
      latency: of top-1 against latency, among those of them that were measured on the
        same device with as many images a pass.
    """

    macs: bool
    latency: bool


def run(name: str, report: Any) -> Run:
    """What a report says.

    Args:
      name: what to call the run.
      report: what its report.json holds, whoever wrote it.

    Returns:
      The run.

    Raises:
      InputError: a field is not there, or not what it should be.
    """
    stages = _field(report, "stages", list)
    top1 = {_field(stage, "stage", str, "stages."): _top1(stage) for stage in stages}
    for stage in ("dense", "pruned"):
        if stage not in top1:
            raise InputError(f"without the stage {stage!r}")
    dense, pruned = (_field(report, key, dict) for key in ("dense", "pruned"))
    return Run(
        name,
        *(_field(report, key, str) for key in ("model", "method", "data", "device")),
        batch_size=_count(pruned, "batch_size", "pruned."),
        dense_top1=top1["dense"],
        cut_top1=top1["pruned"],
        top1=_top1(stages[-1]),
        dense=_costs(dense, "dense."),
        pruned=_costs(pruned, "pruned."),
    )


def _costs(network: Mapping[str, Any], where: str) -> Costs:
    return Costs(
        _count(network, "macs", where),
        _count(network, "params", where),
        _number(network, "latency_ms", where, _is_positive, "above 0"),
    )


def _is_positive(value: float) -> bool:
    return 0 < value < 1e15  # what floats hold, and pictures show


def _top1(stage: Any) -> float:
    return _number(stage, "top1", "stages.", lambda x: 0 <= x <= 1, "from 0 to 1")


def _count(content: Any, key: str, where: str) -> int:
    value = _field(content, key, int, where)
    if isinstance(value, bool) or not 0 < value < 2**63:
        raise InputError(f"with {value!r} as {where}{key}, which counts something")
    return value


def _number(
    content: Any, key: str, where: str, allowed: Callable[[float], bool], what: str
) -> float:
    value = _field(content, key, (int, float), where)
    if isinstance(value, bool) or not allowed(value):
        raise InputError(f"with {value!r} as {where}{key}, which is a number {what}")
    return float(value)


def _field(content: Any, key: str, kind: Any, where: str = "") -> Any:
    """A field of a report, of its kind."""
    value = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(value, kind):
        how = "without" if value is None else "with another kind of"
        raise InputError(f"{how} {where}{key}")
    return value


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other point beats.

    Args:
      points: (cost, gain) each: the less of the first, the more of the second the
        better. Equal points do not beat each other.

    Returns:
      For each point whether it is one.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    result = [False] * len(points)
    last: tuple[float, float] | None = None
    for i in order:
        result[i] = last is None or points[i][1] > last[1] or points[i] == last
        last = points[i] if result[i] else last
    return result


def best(runs: Sequence[Run]) -> list[Best]:
    """Which runs are Pareto points.

    Args:
      runs: of any data and devices; only those are held against each other that can be.

    Returns:
      For each run what it is.
    """
    macs = _among(runs, lambda run: run.data, lambda run: run.pruned.macs)
    latency = _among(
        runs,
        lambda run: (run.data, run.device, run.batch_size),
        lambda run: run.pruned.latency_ms,
    )
    return [Best(*marks) for marks in zip(macs, latency, strict=True)]


def _among(
    runs: Sequence[Run], alike: Callable[[Run], Any], cost: Callable[[Run], float]
) -> list[bool]:
    """Pareto points among runs that are alike."""
    result = [False] * len(runs)
    for kind in {alike(run) for run in runs}:
        places = [i for i, run in enumerate(runs) if alike(run) == kind]
        points = [(cost(runs[i]), runs[i].top1) for i in places]
        for i, mark in zip(places, pareto(points), strict=True):
            result[i] = mark
    return result


def comparison_table(runs: Sequence[Run], marks: Sequence[Best]) -> str:
    """The runs, for people.

    Args:
      runs: in the order of the lines.
      marks: of `best`.

    Returns:
      The table, and what is to be known of it.
    """
    rows: list[list[Any]] = [
        ["run", "model", "method", "top-1 %: dense", "as cut", "final"]
        + ["multiply-adds", "parameters", "latency ms"]
    ]
    for one, mark in zip(runs, marks, strict=True):
        top1 = (one.dense_top1, one.cut_top1, one.top1)
        rows.append(
            [one.name, one.model, one.method, *(f"{100 * x:.2f}" for x in top1)]
            + [
                _starred(one.pruned.macs, mark.macs),
                _starred(one.pruned.params, False),
                _starred(one.pruned.latency_ms, mark.latency),
            ]
        )
    words = [
        "* no other run has at least this top-1 for less of it, or more top-1 for as "
        "much"
    ]
    if len({one.data for one in runs}) > 1:
        words.append(
            "the runs are on different data: marks are among those on the same"
        )
    if len({(one.device, one.batch_size) for one in runs}) > 1:
        words.append(
            "latency is of different devices or images a pass: marks are among those "
            "of the same"
        )
    return "\n".join([table(rows), "", *words])


def _starred(value: float | int, mark: bool) -> str:
    return numeral(value) + (" *" if mark else "  ")


def to_json(runs: Sequence[Run], marks: Sequence[Best]) -> dict[str, Any]:
    """What compare.json holds.

    Args:
      runs: what to compare.
      marks: of `best`.

    Returns:
      Plain numbers and texts.
    """
    return {
        "format": 1,
        "runs": [
            {
                **one._asdict(),
                "dense": one.dense._asdict(),
                "pruned": one.pruned._asdict(),
                "pareto": mark._asdict(),
            }
            for one, mark in zip(runs, marks, strict=True)
        ],
    }
