"""train.py: trains a dense network (or goes on training a pruned one) and saves it."""

from collections.abc import Sequence
from pathlib import Path

from ispasp_jax.cli import flags, peers, process
from ispasp_jax.cli.config import TrainConfig, Weights
from ispasp_jax.cli.parsing import Parser


def parser() -> Parser:
    """The flags of train.py."""
    parser = Parser(
        "train.py",
        "ispasp-train",
        [
            "--model resnet20 --epochs 20 --out DIR",
            "--model resnet20 --weights DIR/model --data npz:FILE --epochs 5",
        ],
        description="Train a network from nothing, or from --weights, and save it as\n"
        "a model folder that prune.py and ispasp_jax.load open.",
    )
    flags.add_shared(parser)
    parser.add_argument(
        "--epochs",
        type=flags.positive,
        metavar="N",
        help="passes over the training data; default: 10 on digits, else 90",
    )
    parser.add_argument(
        "--learning-rate",
        type=flags.rate,
        metavar="X",
        help="at its highest, after warm-up; default: 0.08 for batches of 256, and in "
        "proportion",
    )
    parser.add_argument(
        "--shrink",
        type=flags.ratio,
        metavar="TARGET",
        help="shrink the weakest hidden channels at every step, in the first half of "
        "all steps ever more of them, until all but this fraction do, so that prune.py "
        "--keep TARGET then takes little; default: none",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the model; default: runs/MODEL-DATA-dense",
    )
    return parser


def configuration(argv: Sequence[str] | None) -> TrainConfig:
    """What the flags ask for.

    Raises:
      InputError: they are none, or exclude each other.
    """
    args = parser().parse_args(argv)
    return TrainConfig(
        network=flags.network(args),
        data=flags.data(args),
        optimisation=flags.optimisation(args),
        run=flags.run(args),
        epochs=args.epochs or flags.default_epochs(args.data),
        shrink=args.shrink,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return process.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    """Parses the flags and trains."""
    config = configuration(argv)
    process.find_own(config.network.model)
    peers.guard(config.run)
    process.load("ispasp_jax.cli.dense")
    from ispasp_jax.cli import words

    with words.audience(config.run):
        train(config)


def train(config: TrainConfig) -> None:
    """The whole job: data, network, training, result."""
    from ispasp_jax.cli import dense, opening

    opening.start_devices(config.run)
    source = opening.open_source(config.data)
    model = dense.start(config, source)
    kind = "tuned" if isinstance(config.network.start, Weights) else "dense"
    dense.train(config, source, model, config.run.out or opening.place(config, kind))
