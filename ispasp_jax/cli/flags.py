"""Values that flags take, the flags that both commands share, and the configuration
that they make. Imports nothing slow.
"""

import argparse
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from ispasp_jax.cli.config import Data, Network, Optimisation, Run, Scratch, Weights
from ispasp_jax.cli.parsing import Parser
from ispasp_jax.errors import InputError

N = TypeVar("N", int, float)


def _number(
    kind: Callable[[str], N], allowed: Callable[[N], bool], what: str
) -> Callable[[str], N]:
    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


positive = _number(int, lambda value: value > 0, "a whole number above 0")
count = _number(int, lambda value: value >= 0, "a whole number, 0 or more")
seed = _number(int, lambda value: 0 <= value < 2**31, "a whole number below 2^31")
share = _number(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")
ratio = _number(float, lambda x: 0 < x < 1, "a number between 0 and 1")
portion = _number(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
above = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")
rate = _number(float, lambda x: 0 <= x < float("inf"), "a number, 0 or more")


def gibibytes(text: str) -> int:
    """GiB, in bytes."""
    return int(rate(text) * 2**30)


_real = _number(float, lambda x: abs(x) < float("inf"), "a number")


def resize(text: str) -> int | Literal["none"]:
    """Pixels, or "none"."""
    return "none" if text == "none" else positive(text)


def device_count(text: str) -> int | Literal["all"]:
    """A number of devices, or "all"."""
    return "all" if text == "all" else positive(text)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between."""
    return tuple(_real(part) for part in text.split(","))


def add_shared(parser: Parser) -> None:
    """The flags of train.py and prune.py alike. Long, since it is only a list."""
    network = parser.add_argument_group("network")
    network.add_argument(
        "--model",
        default="resnet34",
        metavar="NAME",
        help="architecture: mlp, resnet18/34/50/101, resnet20/32/44/56/110 (CIFAR), "
        "mobilenetv2, tf_mobilenetv2, flax_resnet18/34/50/101, "
        "vit_tiny/small/base_patch16/32_224, deit_tiny/small/base_patch16_224, of "
        "texts bert_tiny/mini/small/medium/base, or "
        "package.module:function",
    )
    network.add_argument(
        "--weights",
        metavar="SOURCE",
        help="trained weights: a folder of train.py, prune.py or Orbax, a .safetensors "
        "or .pth file, hf:REPO[@REVISION]; default: none, the network is trained on "
        "the data",
    )
    network.add_argument(
        "--ema-weights",
        action="store_true",
        help="of a checkpoint that holds the weights and their moving average, the "
        "average; default: the weights themselves",
    )
    network.add_argument(
        "--stem",
        choices=["imagenet", "small"],
        help="first layers; default: small below 64 pixels, where there is a choice",
    )
    network.add_argument(
        "--new-head",
        action="store_true",
        help="start a fresh classifier where the weights' number of classes differs",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default="digits",
        metavar="SOURCE",
        help="digits, tfds:NAME[:SPLITS], folder:DIR, npz:FILE, idx:DIR; of texts "
        "jsonl:FILE",
    )
    data.add_argument(
        "--num-classes",
        type=positive,
        metavar="N",
        help="classes of the network, where the data lacks the last ones; default: the "
        "data's",
    )
    data.add_argument(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="side of the network's input; default: the weights' or the data's",
    )
    data.add_argument(
        "--resize",
        type=resize,
        metavar="PIXELS|none",
        help="shorter side before the centre crop; default: the weights' or the data's",
    )
    for name in ("mean", "std"):
        data.add_argument(
            f"--{name}",
            type=numbers,
            metavar="X[,X,X]",
            help=f"{name} of each channel, in 0..1; default: as the weights, or data",
        )
    data.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="tokens of a text's input, longer ones are cut; default: the weights', or "
        "of the data's longest, 128 at most",
    )
    data.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="images a batch; default: 256, and 64 for training splits below 10,000",
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--weight-decay",
        type=rate,
        metavar="X",
        help="on kernels; default: 4e-5 for MobileNets, 0.05 for vision transformers, "
        "0.01 for BERT, else 5e-4",
    )
    training.add_argument(
        "--label-smoothing", type=share, default=0.1, metavar="X", help="0 to below 1"
    )
    training.add_argument(
        "--ema",
        type=share,
        metavar="DECAY",
        help="evaluate and save the weights' moving average, as 0.999; default: none",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="of activations in calibration and training; weights, statistics and "
        "scores are always fp32, and so are the networks that are evaluated, timed and "
        "saved",
    )
    run.add_argument("--seed", type=seed, default=0, metavar="N", help="of everything")
    run.add_argument(
        "--resume", action="store_true", help="go on where a stopped run left off"
    )
    run.add_argument(
        "--devices",
        type=device_count,
        metavar="N|all",
        help="devices of each host that share every batch; default: all, but one CPU",
    )
    run.add_argument(
        "--compilation-cache",
        type=Path,
        metavar="DIR",
        help="folder for compiled programs, so that the next run on the same kind of "
        "device, with the same versions, compiles nothing; default: none is kept",
    )
    run.add_argument(
        "--distributed",
        action="store_true",
        help="join other hosts, which run the same command on the same files: by "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or as Slurm, "
        "Open MPI or a TPU pod say",
    )
    _add_words(parser)


def _add_words(parser: Parser) -> None:
    """How a run tells what it does."""
    group = parser.add_argument_group("words")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--quiet",
        action="store_true",
        help="say nothing but the result and errors",
    )
    either.add_argument(
        "--json",
        action="store_true",
        help="tell what happens as JSON on stdout, an object a line, the report among "
        "them; nothing but errors on stderr",
    )
    group.add_argument(
        "--logdir",
        type=Path,
        metavar="DIR",
        help="folder for TensorBoard: losses, scores and costs (needs the extra "
        "[tensorboard]); default: none is written",
    )


def network(args: Namespace) -> Network:
    """The network that the flags name.

    Raises:
      InputError: a flag is for weights, and there are none.
    """
    if args.weights:
        start = Weights(args.weights, args.ema_weights, args.new_head)
    elif args.ema_weights:
        raise InputError(
            "--ema-weights is for checkpoints that hold the weights and their moving "
            "average; name one with --weights, or leave it out."
        )
    else:
        start = Scratch()
    return Network(args.model, args.stem, start)


def data(args: Namespace) -> Data:
    """The data that the flags name."""
    return Data(
        data=args.data,
        num_classes=args.num_classes,
        image_size=args.image_size,
        resize=args.resize,
        mean=args.mean,
        std=args.std,
        max_tokens=args.max_tokens,
        batch_size=args.batch_size,
    )


def optimisation(args: Namespace) -> Optimisation:
    """How the flags say to train."""
    return Optimisation(
        args.learning_rate, args.weight_decay, args.label_smoothing, args.ema
    )


def run(args: Namespace) -> Run:
    """Where and how the flags say to compute."""
    return Run(
        out=args.out,
        seed=args.seed,
        precision=args.precision,
        resume=args.resume,
        devices=args.devices,
        compilation_cache=args.compilation_cache,
        distributed=args.distributed,
        quiet=args.quiet,
        json=args.json,
        logdir=args.logdir,
    )


def default_epochs(source: str) -> int:
    """Epochs of training from nothing, on data of that name, where --epochs does not
    say."""
    return 10 if source == "digits" else 90
