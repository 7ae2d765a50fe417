"""train.py: trains a dense network (or goes on training a pruned one) and saves it."""

from pathlib import Path

from ispasp_jax.cli import flags, peers
from ispasp_jax.errors import InputError

#: What a training run adds to a model folder.
TRAINING = "training.json"


def parser() -> flags.Parser:
    """The flags of train.py."""
    parser = flags.Parser(
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
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the model; default: runs/MODEL-DATA-dense",
    )
    return parser


def main(argv=None) -> int:
    """The command; returns the exit code."""
    return flags.run(command, argv)


def command(argv) -> None:
    """Parses the flags and trains."""
    args = parser().parse_args(argv)
    flags.find_own(args.model)
    peers.guard(args)
    flags.load("ispasp_jax.cli.dense", "ispasp_jax.cli.workspace")

    from ispasp_jax.cli import dense

    dense.start_devices(args)
    source = dense.open_source(args)
    model = start(args, source)
    kind = "tuned" if args.weights else "dense"
    train(args, source, model, args.out or Path("runs") / dense.run_name(args, kind))


def start(args, source):
    """The model to train: fresh, or from --weights."""
    from ispasp_jax.cli import dense, doubts
    from ispasp_jax.report import say

    dense.check_batch(args, source)
    if args.weights:
        model = dense.load_weights(args, source)
        if doubt := doubts.of_images(source.preprocessing, model.preprocessing):
            say(doubt)
        return model
    prep = dense.preprocessing(args, source.preprocessing)
    model = dense.architecture(args, source.num_classes, prep)
    return dense.initialised(model, args.seed)


def train(args, source, model, out: Path) -> None:
    """Trains, evaluates and saves in `out`, by way of a folder beside it."""
    import json
    import time

    from ispasp_jax import report
    from ispasp_jax.cli import dense, locks, workspace
    from ispasp_jax.numerals import numeral
    from ispasp_jax.weights import folders

    locks.check(out)
    check_out(out, args.model)
    epochs = args.epochs or (dense.DIGITS_EPOCHS if args.data == "digits" else 90)
    recipe = dense.recipe(args, source, epochs, 0.08, warmup_epochs=epochs / 10)
    identity = dense.identity(args, source, model)
    size = dense.batch_size(args, source)
    how = {"batch_size": size, "precision": args.precision}
    asked = {"data": args.data, "weights": args.weights}
    settings = {**identity, **asked, **recipe._asdict(), **how}
    names = {"images": "training images", "weights_given": "weights"}
    given = {names[key]: settings.pop(key) for key in names if key in settings}
    began = time.perf_counter()
    with locks.locked(out):
        if there := check_out(out, args.model):
            report.say(f"{out} holds {there}: replaced when training is done")
        with workspace.Workspace(out, settings, args.resume) as work:
            work.begin(given)
            label = f"training {args.model}"
            model = dense.train(args, source, model, recipe, label, work)
            seconds = time.perf_counter() - began
            with workspace.replacing(out, work.folder) as new:
                model = workspace.written(new, model)
                score = dense.evaluate(args, source, model)
                record = {
                    "identity": identity,
                    "sum": folders.fingerprint(model.variables),
                    "recipe": recipe._asdict(),
                    **how,
                    "top1": score.top1,
                    "loss": score.loss,
                    "seconds": seconds,
                    "versions": report.versions(),
                    "device": report.device(args.devices),
                }
                if new is not None:
                    (new / TRAINING).write_text(json.dumps(record, indent=1) + "\n")
            work.remove()
    report.say(
        f"{args.model} on {args.data}: top-1 {100 * score.top1:.2f} % on the test "
        f"split after {epochs} epochs in {numeral(seconds)} s, saved in {out}: "
        f"{', '.join(folders.FILES)}, {TRAINING}"
    )


def dense_network(args, source) -> Path:
    """The folder of the dense network that prune.py starts from without --weights: kept
    from an earlier run, or trained now.

    Args:
      args: the flags of prune.py.
      source: its data.

    Raises:
      InputError: the folder holds another network.
    """
    from ispasp_jax.cli import dense
    from ispasp_jax.report import say

    folder = Path("runs") / dense.run_name(args, "dense")
    wanted = parser().parse_args(["--model", args.model, "--data", args.data])
    for name in set(vars(wanted)) - {"learning_rate", "epochs", "out"}:
        setattr(wanted, name, getattr(args, name))
    prep = dense.preprocessing(wanted, source.preprocessing)
    model = dense.architecture(wanted, source.num_classes, prep)
    if (folder / TRAINING).exists():
        if _record(folder) != _wanted(
            folder, args.model, dense.identity(wanted, source, model)
        ):
            raise InputError(
                f"{folder} was trained on other data or with other settings, or its "
                "files have changed since; delete it, or name the weights to prune "
                "with --weights."
            )
        say(f"dense network: {folder}, kept from an earlier run")
    else:
        say(f"no --weights: training {args.model} on {args.data} first")
        train(wanted, source, start(wanted, source), folder)
    return folder


def _wanted(folder: Path, name: str, identity: dict) -> dict:
    """What training.json has to say of a folder whose network is to be used."""
    from ispasp_jax.weights import folders

    model = folders.load(folder, name)
    return {"identity": identity, "sum": folders.fingerprint(model.variables)}


def _record(folder: Path) -> dict:
    """What training.json says; nothing where it cannot be read."""
    import json

    try:
        record = json.loads((folder / TRAINING).read_text())
        return {key: record[key] for key in ("identity", "sum")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def check_out(out: Path, model: str) -> str | None:
    """What an earlier training of the model has left in --out, in words; None if
    nothing.

    Raises:
      InputError: --out holds anything else.
    """
    import json

    from ispasp_jax.weights import folders

    if not out.exists():
        return None
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
    foreign = sorted(set(names) - {*folders.FILES, TRAINING})
    if foreign or (names and TRAINING not in names):
        raise InputError(
            f"--out {out} holds other files ({', '.join((foreign or names)[:3])}); "
            "give a new folder, or one of an earlier training run."
        )
    if not names:
        return None
    try:
        there = json.loads((out / folders.CONFIG).read_text())["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"--out {out} is no finished training (its {folders.CONFIG} cannot be "
            "read); give a new folder or delete it."
        ) from None
    if there != model:
        raise InputError(
            f"--out {out} holds a {there}, not a {model}; give another folder."
        )
    return f"an earlier training of {model}"
