"""The configuration that the flags of prune.py make. Imports nothing slow."""

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence

from ispasp_jax.cli import flags
from ispasp_jax.cli.config import (
    Limits,
    Output,
    PlanFile,
    Preset,
    PruneConfig,
    Pruning,
    Ranks,
    Ratios,
    Tuning,
)
from ispasp_jax.cli.prune_flags import parser
from ispasp_jax.errors import InputError

#: The flags by which a network is cut to what it may cost.
_LIMITS = "--target, --tolerance or --pareto"

#: Epochs of fine-tuning on the embedded digits.
DIGITS_FINETUNE_EPOCHS = 4


def configuration(argv: Sequence[str] | None) -> PruneConfig:
    """What the flags ask for.

    Raises:
      InputError: they are none, or exclude each other.
    """
    args = parser().parse_args(argv)
    _check_cut(args)
    _check_branches(args)
    tuning = _tuning(args)
    _check_distillation(args, tuning)
    return PruneConfig(
        network=flags.network(args),
        data=flags.data(args),
        pruning=_pruning(args),
        tuning=tuning,
        optimisation=flags.optimisation(args),
        run=flags.run(args),
        output=_output(args, argv),
        dry_run=args.dry_run,
    )


def _output(args: Namespace, argv: Sequence[str] | None) -> Output:
    given = sys.argv[1:] if argv is None else argv
    return Output(
        latency_batch_size=args.latency_batch_size,
        torch=args.torch,
        formats=tuple(dict.fromkeys(_flat(args.export))),
        push=args.push or "",
        command=shlex.join(["python", "prune.py", *given]),
    )


def _pruning(args: Namespace) -> Pruning:
    return Pruning(
        cut=_cut(args),
        method=args.method or ("plan" if args.plan else "ispasp"),
        num_iters=args.num_iters,
        scope=args.scope,
        ignore=_flat(args.ignore),
        min_channels=args.min_channels,
        round_to=args.round_to,
        repair=args.repair,
        calibration_images=args.calibration_images,
        calibration_memory=args.calibration_memory,
    )


def _tuning(args: Namespace) -> Tuning:
    epochs = args.finetune_epochs
    if epochs is None:
        digits = args.data == "digits" and not args.weights
        epochs = DIGITS_FINETUNE_EPOCHS if digits else 0
    return Tuning(
        finetune_epochs=epochs,
        block_finetune_epochs=args.block_finetune_epochs,
        distill=args.distill,
        distill_temperature=args.distill_temperature,
    )


def _cut(args: Namespace) -> Ratios | Ranks | Preset | Limits | PlanFile:
    if args.plan:
        return PlanFile(args.plan)
    if _has_limits(args):
        return Limits(
            target=_flat(args.target),
            tolerance=args.tolerance,
            curves=args.curves,
            depth=args.depth,
            pareto=args.pareto,
            pick=args.pick or "knee",
        )
    if args.preset:
        return Preset(args.preset)
    keep = _flat(args.keep) or ("0.4",)
    if "auto" in keep:
        if len(keep) > 1 or args.dry_run or args.method == "sglp":
            raise InputError(
                "--keep auto takes groups' ranks from the calibration images; give "
                "it alone, for a method that selects channels, and without --dry-run."
            )
        return Ranks()
    return _ratios(keep)


def _flat(items: Iterable[Iterable[str]] | None) -> tuple[str, ...]:
    """What a flag says, of all times that it is given."""
    return tuple(text for texts in items or () for text in texts)


def _ratios(texts: Iterable[str]) -> Ratios:
    """K or GLOB=K, each."""
    ratios: dict[str, float] = {}
    for text in texts:
        glob, equals, ratio = text.rpartition("=")
        glob = glob if equals else "*"
        try:
            ratios.pop(glob, None)  # the last that matches wins
            ratios[glob] = float(ratio)
        except ValueError:
            raise InputError(
                f"--keep {text!r} is not a ratio; expected K or GLOB=K with K in (0, "
                "1]."
            ) from None
    return Ratios(tuple(ratios.items()))


def _has_limits(args: Namespace) -> bool:
    """Whether a network is cut to what it may cost."""
    return bool(args.target or args.tolerance is not None or args.pareto)


def _check_cut(args: Namespace) -> None:
    """Raises InputError where flags exclude each other."""
    ways = {
        "--plan": args.plan,
        "--preset": args.preset,
        "--keep": args.keep,
        _LIMITS: _has_limits(args) or None,
    }
    given = [flag for flag, value in ways.items() if value is not None]
    if args.plan and args.method is not None:
        given = ["--plan", "--method"]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} were both given; each says what is kept, give one "
            "of them."
        )
    for flag, value in {"--curves": args.curves, "--depth": args.depth}.items():
        if value and _LIMITS not in given:
            raise InputError(f"{flag} is for {_LIMITS}; give one of them.")
    if args.pick and not args.pareto:
        raise InputError("--pick is for --pareto; give that too.")
    if args.pareto and args.dry_run:
        raise InputError(
            "--pareto cuts and measures ten networks, --dry-run none; leave one out."
        )


def _check_branches(args: Namespace) -> None:
    """Raises InputError where branches cannot go as asked."""
    if args.method != "sglp":
        return
    keep = _flat(args.keep)
    if _has_limits(args) or args.preset:
        raise InputError(
            "--method sglp removes whole branches, and --keep is the share of them "
            "that stays; within --target give --depth and another method."
        )
    if args.dry_run or len(keep) > 1 or any("=" in text for text in keep):
        what = "--dry-run" if args.dry_run else f"--keep {' '.join(keep)}"
        raise InputError(
            f"--method sglp chooses branches from images, by one --keep K; got {what}."
        )


def _check_distillation(args: Namespace, tuning: Tuning) -> None:
    """Raises InputError where there is nothing to teach, or nobody who could."""
    if tuning.distill and not tuning.trains:
        raise InputError(
            "--distill is for fine-tuning, and this run has none; give "
            "--finetune-epochs too."
        )
    if tuning.distill and args.new_head:
        raise InputError(
            "--distill learns from the dense network, and --new-head starts its "
            "classifier afresh; train that first (train.py --new-head)."
        )
