"""The flags that both commands share, and how a command ends. Imports nothing slow."""

import _thread
import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ispasp_jax.cli import peers
from ispasp_jax.cli.parsing import Parser
from ispasp_jax.errors import InputError


def run(command: Callable[[Sequence[str] | None], None], argv=None) -> int:
    """Runs a command; its exit code: 0 done, 2 bad input, 130 interrupted, and with
    --distributed 3 where another process was lost.
    """
    if argv is None and not sys.warnoptions:
        _quieten()
    code = 1  # of a traceback
    try:
        code = _ended(command, argv)
    finally:
        peers.tell(code)
    return code


def _quieten() -> None:
    """Leaves the terminal to this project's words: the notices and warnings of the
    libraries below are not said, their errors are. `python -W default` has them back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of jaxlib's and others' C++
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _ended(command: Callable[[Sequence[str] | None], None], argv) -> int:
    path = list(sys.path)
    try:
        with _terminable():
            command(argv)
    except InputError as error:
        kept = type(error) is InputError and _resumable(error)
        after = " What was finished is kept: --resume goes on from there."
        print(f"{error}{after if kept else ''}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        after = "; --resume then goes on from here" if _resumable(error) else ""
        print(f"{what}; give another place, or mend it{after}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        after = "--resume goes on from here"
        after = after if _resumable(error) else "nothing was finished yet"
        print(f"interrupted; {after}", file=sys.stderr)
        if argv is None:  # a program that was interrupted in XLA may crash at its end
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        return 130
    except Exception as error:
        if not peers.is_loss(error):
            raise
        return peers.say_loss()
    finally:
        sys.path[:] = path
    return 0


def _resumable(error: BaseException) -> bool:
    """Whether the place that the error came from has something to go on from."""
    return bool(getattr(error, "__notes__", ()))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Answers SIGTERM as Ctrl-C, where signals are answered at all, and Ctrl-C where
    Python drops it: raised in a destructor or a library's callback it would be lost.
    """
    before, hook = answer_termination(), sys.unraisablehook

    def unraisable(dropped):
        if dropped.exc_type is KeyboardInterrupt:
            # Not here, where it would be dropped again.
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            hook(dropped)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def answer_termination():
    """Lets SIGTERM interrupt this process from now on; what answered it before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, signal.default_int_handler)


def find_own(model: str) -> None:
    """Lets package.module:function be found in the present folder, too, after all
    other places, until the command ends.
    """
    if ":" in model:
        sys.path.append(os.getcwd())


def load(*modules: str) -> None:
    """Imports what a command needs. An interrupt in the middle of an import may end as
    another error, so here it ends the process; nothing has been written yet.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda *_: os._exit(130)) for each in signals]
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        for each, answer in zip(signals, before, strict=True):
            signal.signal(each, answer)


def _number(kind: type, allowed: Callable, what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
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
portion = _number(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
above = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")
rate = _number(float, lambda x: 0 <= x < float("inf"), "a number, 0 or more")


def gibibytes(text: str) -> int:
    """GiB, in bytes."""
    return int(rate(text) * 2**30)


_real = _number(float, lambda x: abs(x) < float("inf"), "a number")


def resize(text: str) -> int | str:
    """Pixels, or "none"."""
    return text if text == "none" else positive(text)


def device_count(text: str) -> int | str:
    """A number of devices, or "all"."""
    return text if text == "all" else positive(text)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between."""
    return tuple(_real(part) for part in text.split(","))


def add_shared(parser: Parser) -> None:
    """The flags of train.py and prune.py alike."""
    network = parser.add_argument_group("network")
    network.add_argument(
        "--model",
        default="resnet34",
        metavar="NAME",
        help="architecture: mlp, resnet18/34/50/101, resnet20/32/44/56/110 (CIFAR), "
        "mobilenetv2, tf_mobilenetv2, flax_resnet18/34/50/101, or "
        "package.module:function",
    )
    network.add_argument(
        "--weights",
        metavar="SOURCE",
        help="trained weights: a folder of train.py or prune.py, a .safetensors or "
        ".pth file, hf:REPO[@REVISION]; default: none, the network is trained on "
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
        help="digits, tfds:NAME[:SPLITS], folder:DIR, npz:FILE, idx:DIR",
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
        help="on kernels; default: 4e-5 for MobileNets, else 5e-4",
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
