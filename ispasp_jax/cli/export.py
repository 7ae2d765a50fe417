"""ispasp-export: writes a saved network for other runtimes."""

from collections.abc import Sequence
from pathlib import Path

from ispasp_jax.cli import flags, process
from ispasp_jax.cli.parsing import Parser
from ispasp_jax.errors import InputError


def parser() -> Parser:
    """The flags of ispasp-export."""
    parser = Parser(
        "-m ispasp_jax.cli.export",
        "ispasp-export",
        ["runs/resnet34-digits-ispasp/model --out resnet34.onnx"],
        description="Write a network that train.py or prune.py saved as ONNX or\n"
        "StableHLO, and check the file by running it.",
    )
    parser.add_argument("model", type=Path, metavar="FOLDER", help="the saved network")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the new file: .onnx (needs the extra [onnx]) or .stablehlo",
        default=Path("model.onnx"),
    )
    parser.add_argument(
        "--platforms",
        nargs="+",
        metavar="NAME",
        help="where a StableHLO program runs: cpu, cuda, rocm, tpu; default: all",
    )
    parser.add_argument(
        "--batch",
        type=flags.positive,
        metavar="N",
        help="examples a pass of a StableHLO program, for compilers that want every "
        "shape known; default: any",
    )
    parser.add_argument(
        "--weights-beside",
        action="store_true",
        help="a StableHLO program's weights lie in a .safetensors file beside it",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return process.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    """Parses the flags and writes the file."""
    args = parser().parse_args(argv)
    kind = args.out.suffix
    if kind not in (".onnx", ".stablehlo"):
        raise InputError(
            f"--out {args.out} is neither .onnx nor .stablehlo; its ending says what "
            "is written."
        )
    if kind == ".onnx" and (args.platforms or args.batch or args.weights_beside):
        raise InputError(
            "--platforms, --batch and --weights-beside are for .stablehlo; leave them "
            "out."
        )
    from ispasp_jax import export, load
    from ispasp_jax.weights.stablehlo import PLATFORMS

    odd = [name for name in args.platforms or () if name not in PLATFORMS]
    if odd:
        raise InputError(
            f"--platforms {' '.join(odd)}: expected {', '.join(PLATFORMS)}."
        )
    model = load(args.model)
    if kind == ".onnx":
        written = export.onnx(model, args.out)
        what = f"{written.nodes} operators"
    else:
        written = export.stablehlo(
            model,
            args.out,
            inside=not args.weights_beside,
            platforms=args.platforms or PLATFORMS,
            batch=args.batch,
        )
        what = ", ".join(written.platforms)
    print(
        f"{written.path}: {what}, {written.path.stat().st_size:,} bytes; largest "
        f"difference to the network in JAX {written.largest_difference:.1g} of the "
        "largest output"
    )


if __name__ == "__main__":
    raise SystemExit(main())
