"""What the stages of a run of prune.py return; report.json is put together from them
(reports.py), and what a stopped run goes on from is one of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from ispasp_jax import data, training
from ispasp_jax.cli.config import PruneConfig
from ispasp_jax.data import Source
from ispasp_jax.graph.plans import Plan
from ispasp_jax.report import say
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.weights.folders import Model


@dataclass(frozen=True)
class Task:
    """What a run was asked, opened.

    Attributes:
      config: what was asked.
      source: the data.
      out: folder of the result.
      choice: what says which channels stay.
    """

    config: PruneConfig
    source: Source
    out: Path
    choice: Criterion | Plan

    @property
    def calibration(self) -> np.ndarray:
        """Indices of the training images that are for calibration."""
        wanted, seed = self.config.pruning.calibration_images, self.config.run.seed
        return data.calibration_indices(self.source.train, wanted, seed)


class Stage(NamedTuple):
    """A score of the network, as report.json has it.

    Attributes:
      stage: dense, pruned, repaired or finetuned.
      top1: on the test split.
      loss: there, in nats.
      seconds: that led to it.
    """

    stage: str
    top1: float
    loss: float
    seconds: float


class Dense(NamedTuple):
    """The network to prune.

    Attributes:
      model: the network.
      seconds: to load or train it.
      notes: what a person should know of it.
    """

    model: Model
    seconds: float
    notes: tuple[str, ...]


class Baseline(NamedTuple):
    """What the network to prune scores.

    Attributes:
      stage: the score.
      notes: what a person should know of it.
    """

    stage: Stage
    notes: tuple[str, ...]


class Images(NamedTuple):
    """The calibration images.

    Attributes:
      batches: preprocessed.
      labels: theirs, batch by batch.
      mesh: devices to spread them over.
      forward: seconds of one dense pass over them.
      notes: what a person should know of them.
      real: which tokens of texts are no padding, batch by batch.
    """

    batches: list[np.ndarray]
    labels: list[np.ndarray]
    mesh: jax.sharding.Mesh
    forward: float
    notes: tuple[str, ...]
    real: list[np.ndarray] | None = None


class Sizes(NamedTuple):
    """How many channels stay.

    Attributes:
      sizes: by group; none where a plan says it.
      budget: what was asked of the widths and reached; None: they go by ratios.
      seconds: of measuring curves or ranks, as Clocks have them.
      notes: what a person should know of it.
      ranks: of the groups, where they say how many channels stay.
    """

    sizes: Mapping[str, int]
    budget: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    ranks: Mapping[str, int] = MappingProxyType({})


class Pruned(NamedTuple):
    """The network as cut and repaired, and how it came about.

    Attributes:
      model: the network, as loaded from disk.
      stages: the dense network's score, and its own.
      forward: seconds of one dense pass over the calibration images.
      seconds: of curves or ranks, selection and repair, as Clocks have them.
      groups: of report.json.
      budget: of Sizes.
      notes: what a person should know of it.
    """

    model: Model
    stages: tuple[Stage, ...]
    forward: float
    seconds: Mapping[str, float]
    groups: list[dict[str, Any]]
    budget: Mapping[str, Any] | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All but the model, whose place is a folder."""
        result = {k: v for k, v in self._asdict().items() if k != "model"}
        return {**result, "stages": [stage._asdict() for stage in self.stages]}

    @classmethod
    def from_json(cls, model: Model, found: Mapping[str, Any]) -> "Pruned":
        """What `to_json` said of the model."""
        stages = tuple(Stage(**stage) for stage in found["stages"])
        return cls(model, **{**found, "stages": stages, "notes": tuple(found["notes"])})


class Tuned(NamedTuple):
    """The network at the end.

    Attributes:
      model: the network.
      seconds: of fine-tuning.
      recipe: how it was fine-tuned; None: it was not.
    """

    model: Model
    seconds: float = 0.0
    recipe: training.Recipe | None = None


class Final(NamedTuple):
    """What was measured of the result.

    Attributes:
      stages: all scores.
      dense: costs of the dense network, as report.json has them.
      pruned: of the result.
      budget: of Sizes, with the latencies of the result.
      notes: what a person should know of it.
      exports: files for other runtimes, as report.json has them.
    """

    stages: tuple[Stage, ...]
    dense: dict[str, Any]
    pruned: dict[str, Any]
    budget: Mapping[str, Any] | None
    notes: tuple[str, ...]
    exports: tuple[dict[str, Any], ...] = ()


def noted(*texts: str | None) -> tuple[str, ...]:
    """The notes among the texts, said at once."""
    result = tuple(filter(None, texts))
    for text in result:
        say(text)
    return result
