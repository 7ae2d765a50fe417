"""The flags of prune.py. Imports nothing slow."""

from pathlib import Path
from typing import Literal

from ispasp_jax.cli import flags, methods
from ispasp_jax.cli.parsing import Parser


def parser() -> Parser:
    """The flags of prune.py."""
    parser = Parser(
        "prune.py",
        "ispasp-prune",
        [
            "--model mlp --keep 0.4",
            "--model resnet20 --weights DIR --data npz:FILE --method obs "
            "--target macs=50%",
        ],
        description="Prune a network by i-SpaSP: cut hidden channels out of it, so "
        "that it is really\nsmaller, and save it with a plan and a report.",
    )
    flags.add_shared(parser)
    _add_cut(parser)
    _add_pruning(parser)
    _add_tuning(parser)
    _add_output(parser)
    return parser


def _add_cut(parser: Parser) -> None:
    """How much to cut: ratios, preset, limits and plan exclude each other. Long, since
    it is nothing but a list."""
    group = parser.add_argument_group("how much to cut")
    group.add_argument(
        "--keep",
        action="append",
        nargs="+",
        metavar="K|GLOB=K|auto",
        help="fraction of hidden channels kept, in (0, 1], for all groups or for those "
        "a glob matches; the last that matches wins, a group that nothing matches "
        "keeps all; auto: as many as the numerical rank of each group's channels on "
        "the calibration images, the least that misses no more than a tenth of their "
        "norm about the mean; default: 0.4",
    )
    group.add_argument(
        "--scope",
        choices=["inner", "all"],
        default="inner",
        help="which groups may be cut: inner, the channels hidden inside a block; all, "
        "residual streams, heads and concatenated ones, too",
    )
    group.add_argument(
        "--ignore",
        action="append",
        nargs="+",
        metavar="GLOB",
        help="groups that stay whole, whatever --keep, --target or --tolerance ask; "
        "default: none",
    )
    group.add_argument(
        "--preset",
        choices=["paper"],
        help="the authors' groups and ratios, for resnet34 and the MobileNetV2s; "
        "default: what --keep says",
    )
    group.add_argument(
        "--target",
        action="append",
        nargs="+",
        metavar="KIND=AMOUNT",
        help="macs=60%%, params=1.2M or latency=8ms (measured on this device), several "
        "at once: widths differ by block, so that the least is lost; default: none, "
        "one ratio by --keep",
    )
    group.add_argument(
        "--tolerance",
        type=flags.portion,
        metavar="X",
        help="largest predicted residual of any group, from 0 to 1; without --target, "
        "cut as far; default: no bound",
    )
    group.add_argument(
        "--min-channels",
        type=flags.positive,
        default=1,
        metavar="N",
        help="a group never has fewer",
    )
    group.add_argument(
        "--round-to",
        type=_multiple,
        metavar="N|auto",
        help="widths are multiples of N, or the dense one; auto: what suits this "
        "device; default: 1, with --target or --tolerance 8, less in groups narrower "
        "than 32",
    )
    group.add_argument(
        "--curves",
        type=Path,
        metavar="FILE",
        help="curves.json of an earlier run, to solve another budget from; default: "
        "the one in --out, if it is of the same network and images",
    )
    group.add_argument(
        "--depth",
        action="store_true",
        help="within --target, --tolerance or --pareto, whole residual blocks and "
        "other branches may go, too, those whose channels are one group",
    )
    group.add_argument(
        "--pareto",
        action="store_true",
        help="solve every budget at once, cut, repair and measure ten: a table, "
        "front.json and front.png; go on with the one of --pick",
    )
    group.add_argument(
        "--pick",
        type=_point,
        metavar="knee|N",
        help="of --pareto: the point to go on with, knee or its number in the table; "
        "default: knee",
    )
    group.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="cut what an earlier run's plan.json says instead of selecting; "
        "default: select",
    )


def _add_pruning(parser: Parser) -> None:
    pruning = parser.add_argument_group("pruning")
    pruning.add_argument(
        "--method",
        help=methods.listed(),
    )
    pruning.add_argument(
        "--num-iters", type=flags.positive, default=20, metavar="T", help="iterations"
    )
    pruning.add_argument(
        "--repair",
        choices=["none", "bn", "lsq"],
        default="lsq",
        help="no labels, no training: refit consumers to the dense network by least "
        "squares, or measure batch norm's moments again",
    )
    pruning.add_argument(
        "--calibration-images",
        type=flags.positive,
        default=1280,
        metavar="N",
        help="training images that the selection sees",
    )
    pruning.add_argument(
        "--calibration-memory",
        type=flags.gibibytes,
        metavar="GIB",
        help="of those images' activations on each device; what exceeds it is computed "
        "again or lies on the host, with the same result; default: no limit, all that "
        "the images make at one block's input and inside it",
    )
    pruning.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, touching neither weights nor data",
    )


def _add_tuning(parser: Parser) -> None:
    tuning = parser.add_argument_group("fine-tuning")
    tuning.add_argument(
        "--block-finetune-epochs",
        type=flags.count,
        default=0,
        metavar="N",
        help="epochs after each block",
    )
    tuning.add_argument(
        "--finetune-epochs",
        type=flags.count,
        metavar="N",
        help="epochs at the end; default: 4 on digits, 0 with --weights",
    )
    tuning.add_argument(
        "--distill",
        type=flags.portion,
        nargs="?",
        const=1.0,
        default=0.0,
        metavar="SHARE",
        help="share of the dense network's logits in the loss; alone: 1, no labels",
    )
    tuning.add_argument(
        "--distill-temperature",
        type=flags.above,
        default=4.0,
        metavar="T",
        help="what softens both networks' logits there",
    )
    tuning.add_argument(
        "--learning-rate",
        type=flags.rate,
        metavar="X",
        help="of fine-tuning, at its highest; default: 0.01 for batches of 256, and in "
        "proportion",
    )


def _add_output(parser: Parser) -> None:
    parser.add_argument(
        "--torch",
        action="store_true",
        help="also write torchvision.safetensors: the pruned weights for PyTorch",
    )
    parser.add_argument(
        "--export",
        choices=["onnx", "stablehlo"],
        nargs="+",
        action="append",
        metavar="FORMAT",
        help="also write the pruned network for other runtimes: onnx (needs the extra "
        "[onnx]) or stablehlo, each checked by running it; default: none",
    )
    parser.add_argument(
        "--push",
        metavar="REPO",
        help="publish the result on the Hugging Face Hub with a model card (needs the "
        "extra [hub]); folder:DIR writes the same files to a folder; default: no",
    )
    parser.add_argument(
        "--latency-batch-size",
        type=flags.positive,
        default=32,
        metavar="N",
        help="images a pass when latency is measured",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the result; default: runs/MODEL-DATA-METHOD",
    )


def _point(text: str) -> str:
    return text if text == "knee" else str(flags.positive(text))


def _multiple(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else flags.positive(text)
