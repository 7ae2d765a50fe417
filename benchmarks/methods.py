"""The fair table: every method on the same network, budget, calibration images, repair
and fine-tuning.

    ISPASP_DATA=DIR python benchmarks/methods.py [--only 'resnet20*'] [--small]

A method has two rows for each network: prune.py without repair, and with least squares;
both go on to the same short fine-tuning, towards the dense network's logits, without
labels. Three more budgets of resnet20, repaired and not fine-tuned, make the picture of
accuracy against multiply-adds. Calibration and fine-tuning see training images only.

The curves of a network are measured by its first row and kept for the others, so that
all methods have the same widths. --small does one method on the digits. Rows that are
in the JSON already are not run again. About three hours of one CPU core, and an hour
and a half of two for tf_mobilenetv2, whose fine-tuning takes 11 GB.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import rows
from after_pruning import CIFAR, IMAGENET, target

from ispasp_jax import report
from ispasp_jax.selection import criteria

FILE = "methods.jsonl"


class Case(NamedTuple):
    """A network: flags of its data, file of its weights, budget, fine-tuning."""

    flags: list[str]
    weights: str | None
    macs: str
    epochs: int


#: MobileNetV2 is calibrated on fewer images here than elsewhere: labels cost a forward
#: and a backward pass of the rest of the network for every block.
CASES = {
    "resnet20": Case(CIFAR, "cifar10_resnet20", "47%", 1),
    "digits": Case(["--data=digits"], None, "40%", 5),
    "resnet56": Case(CIFAR, "cifar10_resnet56", "47%", 1),
    "tf_mobilenetv2": Case(
        [*IMAGENET, "--calibration-images=512"], "mobilenet_v2_imagenet_tf", "247M", 1
    ),
}
#: What digits are pruned in; trained by the first row, in runs/.
DIGITS = "resnet20"
SWEPT, BUDGETS = "resnet20", ("80%", "65%", "30%")


def commands(data: Path) -> dict[str, list[str]]:
    """The flags of every row."""
    table = {}
    for name, case in CASES.items():
        model = DIGITS if case.weights is None else name
        shared = [f"--model={model}"]
        if case.weights:
            shared.append(f"--weights={data}/weights/{case.weights}.safetensors")
        shared += [flag.format(data=data) for flag in case.flags]
        tuned = ["--distill", f"--finetune-epochs={case.epochs}"]
        for method in criteria.CRITERIA:
            row = [*shared, *target(case.macs), f"--method={method}"]
            table[f"{name}, {method}"] = [*row, "--repair=none", *tuned]
            table[f"{name}, {method}, repaired"] = [*row, "--repair=lsq", *tuned]
            for macs in BUDGETS if name == SWEPT else ():
                less = [*shared, *target(macs), f"--method={method}"]
                table[f"{name} {macs}, {method}"] = [*less, "--finetune-epochs=0"]
    return table


def selection_seconds(row: dict) -> float:
    """Of a row without repair: all but compilation, which the first row has more of;
    second moments that the method asks for are booked as repair's.
    """
    seconds = row["seconds"]
    spent = seconds["selection"] + seconds["repair"]
    return spent - seconds["compilation_in_both"]


def table(results: list[dict], name: str) -> list[list[str]]:
    """The README's columns of a network; a method each line."""
    heads = ["method", "labels", "as cut", "repaired", "as cut, tuned"]
    heads += ["repaired, tuned", "multiply-adds", "parameters", "latency"]
    lines, by_name = [[*heads, "selection s"]], {row["row"]: row for row in results}
    for method in criteria.CRITERIA:
        plain = by_name.get(f"{name}, {method}")
        repaired = by_name.get(f"{name}, {method}, repaired")
        if plain is None or repaired is None:
            continue
        before, after = rows.top1(plain), rows.top1(repaired)
        scores = [before["pruned"], after["repaired"]]
        scores += [before["finetuned"], after["finetuned"]]
        dense, pruned = repaired["dense"], repaired["pruned"]
        labels = criteria.create(method).labels
        lines.append(
            [
                method,
                "yes" if labels else "–",
                *(f"{score:.1f}" for score in scores),
                f"{pruned['macs'] / 1e6:.3g} M",
                f"{pruned['params'] / 1e6:.2f} M",
                f"{pruned['latency_ms'] / dense['latency_ms']:.0%}",
                f"{selection_seconds(plain):.0f}",
            ]
        )
    return lines


def main() -> None:
    """Runs the rows and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="GLOB")
    parser.add_argument("--small", action="store_true", help="l1 on the digits")
    args = parser.parse_args()
    globs = ["digits, l1*"] if args.small else args.only
    chosen = rows.only(commands(rows.data_folder()), globs)
    with tempfile.TemporaryDirectory() as folder:
        results = rows.run_rows(
            rows.RESULTS / FILE,
            chosen,
            lambda flags: rows.prune_with_curves(Path(folder), flags),
        )
    for name in CASES:
        lines = table(results, name)
        if len(lines) > 1:
            print(f"\n{name}\n{report.table(lines)}")


if __name__ == "__main__":
    main()
