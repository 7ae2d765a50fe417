"""prune.py: trains or loads a network, prunes it, fine-tunes, measures and saves it."""

from pathlib import Path

from ispasp_jax.cli import flags, methods, peers, widths
from ispasp_jax.errors import InputError


def parser() -> flags.Parser:
    """The flags of prune.py."""
    parser = flags.Parser(
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
    widths.add_flags(parser)
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
    parser.add_argument(
        "--torch",
        action="store_true",
        help="also write torchvision.safetensors: the pruned weights for PyTorch",
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
    return parser


def main(argv=None) -> int:
    """The command; returns the exit code."""
    return flags.run(command, argv)


def command(argv) -> None:
    """Parses the flags and prunes, or prints the plan."""
    args = parser().parse_args(argv)
    flags.find_own(args.model)
    widths.check(args)
    args.method = args.method or ("plan" if args.plan else "ispasp")
    peers.guard(args)
    flags.load("ispasp_jax.cli.run")
    if args.dry_run:
        dry_run(args)
    else:
        prune(args)


def criterion(args):
    """The criterion that --method names."""
    from ispasp_jax.selection import criteria

    known, given = criteria.factory(args.method), {"num_iters": args.num_iters}
    options = {name: given[name] for name in given if name in known.defaults}
    return criteria.create(args.method, **options)


def dry_run(args) -> None:
    """Prints groups, widths, kept channels and costs, from shapes alone."""
    from ispasp_jax import data
    from ispasp_jax.budget import cost
    from ispasp_jax.cli import budgets, dense, plan_files
    from ispasp_jax.report import budget_table, cost_table, plan_table

    given, record = plan_files.given(args), None
    if given is None:
        criterion(args)
    try:
        num_classes, prep = data.describe(args.data)
    except InputError:
        if not (args.num_classes and args.image_size):
            raise
        prep = data.Preprocessing(args.image_size, None, (0.5,) * 3, (0.5,) * 3)
    num_classes = args.num_classes or num_classes
    model = dense.architecture(args, num_classes, dense.preprocessing(args, prep))
    if given is not None:
        sizes = plan_files.sizes(args, given, model)
    elif widths.budget(args):
        sizes, record = budgets.dry_run(args, model, args.out or default_out(args))
    else:
        sizes = widths.kept(args, model)
    macs = cost.macs_by_size(model.traced)
    params = cost.parameters_by_size(model.traced)
    costs = [
        {"macs": int(macs.total(at)), "params": int(params.total(at))}
        for at in ({}, sizes)
    ]
    size = " × ".join(map(str, model.input_shape))
    print(f"{args.model} on {args.data}: input {size}, {num_classes} classes\n")
    wide = model.widths
    rows = [{"name": n, "width": wide[n], "kept": size} for n, size in sizes.items()]
    tables = [] if record is None else [budget_table(record)]
    print(plan_table(rows, record), *tables, cost_table(*costs), sep="\n\n")


def prune(args) -> None:
    """The whole job: dense network, walk, fine-tuning, measurements, result."""
    from ispasp_jax import devices
    from ispasp_jax.cli import budgets, dense, locks, plan_files
    from ispasp_jax.cli.run import Run, trains
    from ispasp_jax.report import say, summary

    dense.start_devices(args)
    given = plan_files.given(args)
    select = None if given is not None else criterion(args)
    asked = widths.budget(args)
    if args.distill and not trains(args):
        raise InputError(
            "--distill is for fine-tuning, and this run has none; give "
            "--finetune-epochs too."
        )
    if args.distill and args.new_head:
        raise InputError(
            "--distill learns from the dense network, and --new-head starts its "
            "classifier afresh; train that first (train.py --new-head)."
        )
    out = args.out or default_out(args)
    locks.check(out)
    check_out(out, args.model)
    if args.weights and out.resolve() in (
        Path(args.weights).resolve(),
        *Path(args.weights).resolve().parents,
    ):
        raise InputError(
            f"--out {out} is where --weights comes from and would be replaced; give "
            "another folder."
        )
    source = dense.open_source(args)
    if trains(args):
        dense.check_batch(args, source)
    prep = dense.preprocessing(args, source.preprocessing)
    own = dense.architecture(args, source.num_classes, prep)
    if given is None and asked is None:
        widths.kept(args, own)
    elif not args.weights:  # weights may be narrower than the architecture
        if asked is not None:
            budgets.check(args, own)
        else:
            plan_files.sizes(args, given, own)

    with locks.locked(out):
        if there := check_out(out, args.model):
            say(f"{out} holds {there}: replaced when this run is done")
        run = Run(args, source, out, given)
        with run.work:
            model = run.dense_network()
            pruned = run.prune(model, select)
            tuned = run.finetune(pruned, model)
            made = run.finish(model, tuned)
    if devices.is_first():
        print(summary(run.report))
    say(f"\nsaved in {out}: {', '.join(made)}")


def default_out(args) -> Path:
    """Where a result goes without --out."""
    from ispasp_jax.cli import dense

    return Path("runs") / dense.run_name(args, args.method)


def check_out(out: Path, model: str) -> str | None:
    """What an earlier run of the model has left in --out, in words; None if nothing.

    Raises:
      InputError: --out holds anything else.
    """
    import json

    from ispasp_jax.cli.run import OUTPUTS

    if not out.exists():
        return None
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in names if name not in OUTPUTS]
    if not out.is_dir() or foreign:
        raise InputError(
            f"--out {out} holds other files ({', '.join(foreign[:3]) or 'a file'}); "
            "give a new folder, or one of an earlier run."
        )
    if not names:
        return None
    try:
        there = json.loads((out / "report.json").read_text())
        name, params = there["model"], int(there["pruned"]["params"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise InputError(
            f"--out {out} is no finished run (its report.json cannot be read); give a "
            "new folder or delete it."
        ) from None
    if name != model:
        raise InputError(
            f"--out {out} holds a run of {name}, not of {model}; give another folder."
        )
    return (
        f"a run of {there.get('method')} on {there.get('data')}, seed "
        f"{there.get('seed')}, {params:,} parameters"
    )
