"""What a command was asked: made once from its flags (flags.py, prune_flags.py), then
never changed; where another is needed, `dataclasses.replace` makes it. A field has the
name of its flag; None is a value that is not known before weights and data are, which
the flag's help tells. Imports nothing slow.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Weights:
    """A network that somebody has trained.

    Attributes:
      weights: where its weights are.
      ema_weights: whether their moving average is meant.
      new_head: whether a classifier of another number of classes is drawn afresh.
    """

    weights: str
    ema_weights: bool = False
    new_head: bool = False


@dataclass(frozen=True)
class Scratch:
    """A network that is trained on the data first."""


@dataclass(frozen=True)
class Network:
    """Which network.

    Attributes:
      model: the architecture's name, or package.module:function.
      stem: of its first layers; None: what suits the images.
      start: where it comes from.
    """

    model: str
    stem: str | None
    start: Weights | Scratch


@dataclass(frozen=True)
class Data:
    """Which images or texts, and how they become inputs.

    Attributes:
      data: the source.
      num_classes: of the network; None: the data's.
      image_size: side of an input in pixels; None, as of the next three: the weights'
        or the data's.
      resize: shorter side before the crop in pixels.
      mean: of each channel.
      std: of each channel.
      max_tokens: of a text.
      batch_size: images a batch; None: by the size of the training split.
    """

    data: str
    num_classes: int | None
    image_size: int | None
    resize: int | Literal["none"] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    max_tokens: int | None
    batch_size: int | None


@dataclass(frozen=True)
class Optimisation:
    """How to train.

    Attributes:
      learning_rate: at its highest; None: the command's, in proportion to the batch.
      weight_decay: on kernels; None: the architecture's.
      label_smoothing: taken from the true class.
      ema: decay of the weights' moving average; None keeps none.
    """

    learning_rate: float | None
    weight_decay: float | None
    label_smoothing: float
    ema: float | None


@dataclass(frozen=True)
class Run:
    """Where and how to compute.

    Attributes:
      out: folder of the result; None: one in runs/.
      seed: of everything that is drawn.
      precision: of activations in calibration and training.
      resume: whether to go on where a stopped run left off.
      devices: of each host; None: all, but one CPU.
      compilation_cache: folder of compiled programs; None keeps none.
      distributed: whether other hosts run the same.
      quiet: whether nothing is said but results and errors.
      json: whether programs listen in the place of people.
      logdir: folder for TensorBoard; None: none.
    """

    out: Path | None
    seed: int
    precision: Literal["fp32", "bf16"]
    resume: bool
    devices: int | Literal["all"] | None
    compilation_cache: Path | None
    distributed: bool
    quiet: bool
    json: bool
    logdir: Path | None


@dataclass(frozen=True)
class TrainConfig:
    """What train.py was asked.

    Attributes:
      epochs: passes over the training split.
      shrink: the fraction of hidden channels that are not shrunk; None: all.
    """

    network: Network
    data: Data
    optimisation: Optimisation
    run: Run
    epochs: int
    shrink: float | None = None


@dataclass(frozen=True)
class Ratios:
    """Cut to fractions of the channels.

    Attributes:
      keep: (glob over groups, fraction) pairs; the last that matches wins.
    """

    keep: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Ranks:
    """Keep as many channels as say something of their own: the rank of every group."""


@dataclass(frozen=True)
class Preset:
    """Cut to the fractions that authors have published.

    Attributes:
      preset: which authors'.
    """

    preset: Literal["paper"]


@dataclass(frozen=True)
class Limits:
    """Cut until the network costs no more than this, with the least damage.

    Attributes:
      target: KIND=AMOUNT, each.
      tolerance: largest predicted residual; None: no bound.
      curves: file to solve from; None: the one in `out`, if it fits, else measured.
      depth: whether branches may go whole.
      pareto: whether the whole front is solved, and some of its points are cut.
      pick: the point to go on with: "knee", or its number.
    """

    target: tuple[str, ...]
    tolerance: float | None
    curves: Path | None
    depth: bool = False
    pareto: bool = False
    pick: str = "knee"


@dataclass(frozen=True)
class PlanFile:
    """Cut what a plan says.

    Attributes:
      plan: its file.
    """

    plan: Path


@dataclass(frozen=True)
class Pruning:
    """What to cut, and how.

    Attributes:
      cut: how much.
      method: the criterion's name; "plan" where a plan is given.
      num_iters: iterations of an iterative criterion.
      scope: which groups may be cut.
      ignore: globs over groups that stay whole.
      min_channels: a group never has fewer.
      round_to: widths are multiples of it; None: 1, within limits budget.regular.
      repair: after a cut.
      calibration_images: training images that the selection sees.
      calibration_memory: bytes of their activations on each device; None: no limit.
    """

    cut: Ratios | Ranks | Preset | Limits | PlanFile
    method: str
    num_iters: int
    scope: Literal["inner", "all"]
    ignore: tuple[str, ...]
    min_channels: int
    round_to: int | Literal["auto"] | None
    repair: Literal["none", "bn", "lsq"]
    calibration_images: int
    calibration_memory: int | None

    @property
    def by_branch(self) -> bool:
        """Whether branches go whole, and --keep is the share of them that stays."""
        return self.method == "sglp"

    @property
    def fits(self) -> bool:
        """Whether consumers are refitted, by least squares, to the dense network."""
        return self.repair == "lsq"


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning of the pruned network.

    Attributes:
      finetune_epochs: at the end.
      block_finetune_epochs: after each block.
      distill: share of the dense network's logits in the loss.
      distill_temperature: what softens both networks' logits there.
    """

    finetune_epochs: int
    block_finetune_epochs: int
    distill: float
    distill_temperature: float

    @property
    def trains(self) -> bool:
        """Whether anything is trained, so that all training images are seen."""
        return bool(self.finetune_epochs or self.block_finetune_epochs)


@dataclass(frozen=True)
class Output:
    """What is measured and written beside the network.

    Attributes:
      latency_batch_size: images a pass when latency is measured.
      torch: whether to write the weights for PyTorch.
      formats: of files for other runtimes.
      push: where on the Hugging Face Hub the result is published; empty: nowhere.
      command: what was typed.
    """

    latency_batch_size: int
    torch: bool
    formats: tuple[str, ...]
    push: str
    command: str


@dataclass(frozen=True)
class PruneConfig:
    """What prune.py was asked.

    Attributes:
      dry_run: print the plan, touching neither weights nor images.
    """

    network: Network
    data: Data
    pruning: Pruning
    tuning: Tuning
    optimisation: Optimisation
    run: Run
    output: Output
    dry_run: bool


#: What both commands' stages take.
Config = TrainConfig | PruneConfig

#: What may be another when a stopped run goes on: the result is the same.
_ASIDE = (
    *("resume", "out", "dry_run", "devices", "distributed", "compilation_cache"),
    *("calibration_memory", "command", "push", "quiet", "json", "logdir"),
)


def settings(config: Any) -> dict[str, Any]:
    """All that a result depends on, by the names of the flags."""
    result = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result |= settings(value)
        elif field.name not in _ASIDE:
            result[field.name] = value
    return result
