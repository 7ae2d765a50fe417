"""train.py: trains a dense network (or goes on training a pruned one) and saves it."""

from pathlib import Path

from ispasp_jax.commands import flags
from ispasp_jax.errors import InputError


def parser() -> flags.Parser:
    """The flags of train.py."""
    parser = flags.Parser(
        prog="train.py",
        description="Train a network from nothing, or from --weights, and save it as a "
        "model folder that prune.py and ispasp_jax.load open.",
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

    from ispasp_jax import data
    from ispasp_jax.commands import dense

    source = data.open_source(args.data)
    model = start(args, source)
    out = args.out or Path("runs") / dense.run_name(args, "dense")
    train(args, source, model, out)


def start(args, source):
    """The model to train: fresh, or from --weights."""
    from ispasp_jax.commands import dense

    if args.weights:
        return dense.load_weights(args, source)
    prep = dense.preprocessing(args, source.preprocessing)
    dense.batch_size(args, source)
    model = dense.architecture(args, source.num_classes, prep)
    return dense.initialised(model, args.seed)


def train(args, source, model, out: Path):
    """Trains, evaluates and saves in `out`, by way of a folder beside it."""
    import json
    import shutil
    import time

    from ispasp_jax import checkpoints, report
    from ispasp_jax.commands import dense

    check_out(out)
    work = out.absolute().with_name(f".{out.name}.partial")
    if not args.resume:
        shutil.rmtree(work, ignore_errors=True)
    epochs = args.epochs or (dense.DIGITS_EPOCHS if args.data == "digits" else 90)
    recipe = dense.recipe(args, source, epochs, 0.08, warmup_epochs=epochs / 10)
    began = time.perf_counter()
    label = f"training {args.model}"
    model = dense.train(args, source, model, recipe, label, work, args.resume)
    seconds = time.perf_counter() - began
    with checkpoints.replacing(out) as new:
        checkpoints.write(new, model)
        score = dense.evaluate(args, source, checkpoints.load(new))
        record = {
            "model": args.model,
            "data": args.data,
            "seed": args.seed,
            "recipe": recipe._asdict(),
            "top1": score.top1,
            "loss": score.loss,
            "seconds": seconds,
            "versions": report.versions(),
            "device": report.device(),
        }
        (new / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    report.say(
        f"{args.model} on {args.data}: top-1 {100 * score.top1:.2f} % on the test "
        f"split after {epochs} epochs in {seconds:.0f} s, saved in {out}"
    )
    return model


def check_out(out: Path) -> None:
    """Raises InputError where a folder holds anything but an earlier training run."""
    ours = {"config.json", "model.safetensors", "training.json"}
    foreign = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    if out.exists() and not (out.is_dir() and set(foreign) <= ours):
        raise InputError(
            f"--out {out} holds other files ({', '.join(foreign[:3]) or 'a file'}); "
            "give a new folder, or one of an earlier training run."
        )
