"""How many channels every group keeps: ratios, a plan, or a budget. The flags, and what
they ask; imports nothing slow.
"""

import fnmatch
from pathlib import Path

from ispasp_jax.cli import flags
from ispasp_jax.errors import InputError

#: What a budget's widths are multiples of without --round-to: targets.DEFAULT_ROUND_TO,
#: which is slow to import.
BUDGET_ROUND_TO = 8


def add_flags(parser: flags.Parser) -> None:
    """The flags; ratios, plan and budget exclude each other."""
    group = parser.add_argument_group("how much to cut")
    group.add_argument(
        "--keep",
        action="append",
        nargs="+",
        metavar="K|GLOB=K",
        help="fraction of hidden channels kept, in (0, 1], for all groups or for those "
        "a glob matches; the last that matches wins, a group that nothing matches "
        "keeps all; default: 0.4",
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
        f"device; default: {BUDGET_ROUND_TO} with --target or --tolerance, else 1",
    )
    group.add_argument(
        "--curves",
        type=Path,
        metavar="FILE",
        help="curves.json of an earlier run, to solve another budget from; default: "
        "the one in --out, if it is of the same network and images",
    )
    group.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="cut what an earlier run's plan.json says instead of selecting; "
        "default: select",
    )


def _multiple(text: str) -> int | str:
    return text if text == "auto" else flags.positive(text)


def check(args) -> None:
    """Raises InputError where flags exclude each other."""
    ways = {
        "--plan": args.plan,
        "--preset": args.preset,
        "--keep": args.keep,
        "--target or --tolerance": args.target or args.tolerance,
    }
    given = [flag for flag, value in ways.items() if value is not None]
    if args.plan and args.method is not None:
        given = ["--plan", "--method"]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} were both given; each says what is kept, give one "
            "of them."
        )
    if args.curves and not budget(args):
        raise InputError("--curves is for --target and --tolerance; give one of them.")


def keep(args):
    """What --keep and --preset ask for."""
    from ispasp_jax import models

    if args.preset:
        if args.model not in models.PAPER:
            raise InputError(
                f"--preset paper has no ratios for {args.model!r}; it has them for "
                f"{', '.join(models.PAPER)}, for another model give --keep."
            )
        return models.PAPER[args.model]
    ratios: dict[str, float] = {}
    for text in (item for items in args.keep or [["0.4"]] for item in items):
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
    return ratios


def budget(args):
    """What --target and --tolerance ask for; None without them."""
    if not has_budget(args):
        return None
    from ispasp_jax import budget

    wanted = tuple(map(budget.target, targets(args)))
    return budget.Asked(wanted, args.tolerance, args.min_channels, rounding(args))


def targets(args) -> list[str]:
    """What --target says, of all times that it is given."""
    return [text for items in args.target or [] for text in items]


def has_budget(args) -> bool:
    """Whether --target or --tolerance is given."""
    return bool(args.target) or args.tolerance is not None


def scoped(args, model) -> dict[str, int]:
    """The width of every group of the model that --scope and --ignore let be cut.

    Raises:
      InputError: a glob of --ignore matches no group.
    """
    from ispasp_jax import graph, models

    groups = model.traced.groups
    names, own = [group.name for group in groups], []
    if args.scope == "inner":  # what the architecture leaves whole, where it is there
        own = models.IGNORE.get(args.model, ())
        own = [glob for glob in own if fnmatch.filter(names, glob)]
    given = [glob for globs in args.ignore or [] for glob in globs]
    try:
        found = graph.scope(groups, args.scope, (*own, *given))
    except InputError as error:
        raise InputError(f"--{error}") from error
    why = model.unselectable
    return {group.name: group.width for group in found if group.name not in why}


def kept(args, model) -> dict[str, int]:
    """The channels that --keep or --preset leave in every group that may be cut."""
    from ispasp_jax import budget

    groups = scoped(args, model)
    sizes = budget.sizes(groups, keep(args))
    return budget.rounded(sizes, groups, args.min_channels, rounding(args))


def rounding(args) -> int:
    """--round-to, or its default, as a number."""
    if args.round_to is None:
        return BUDGET_ROUND_TO if has_budget(args) else 1
    if args.round_to != "auto":
        return args.round_to
    import jax

    from ispasp_jax import budget

    return budget.ROUND_TO.get(jax.default_backend(), BUDGET_ROUND_TO)
