"""Public networks pruned on real data, CIFAR ResNets and MobileNetV2; and the ResNet34
that prune.py trains on the digits by itself.

    ISPASP_DATA=DIR python benchmarks/real_networks.py [--only 'resnet56*'] [--small]

Every row is a run of prune.py, two for each network and ratio: the paper's procedure
(as cut, and after a short fine-tuning on the few training images that the folder has,
4,000 of CIFAR-10 and 1,000 of ImageNet), and the repair by least squares without any
training. Calibration sees training images only. About 40 minutes on two CPU cores;
--small does the first ratio. Rows that are in the JSON already are not run again.
"""

import argparse
from pathlib import Path

import rows
from after_pruning import IMAGENET

from ispasp_jax import report

#: Flags for the data.
CIFAR = ["--data=npz:{data}/cifar10/cifar10_lossless.npz"]
RATIOS = {"keep 0.7": "--keep=0.7", "keep 0.5": "--keep=0.5"}


def commands(data: Path) -> dict[str, list[str]]:
    """The flags of every row."""
    networks = {
        f"resnet{depth}": (f"cifar10_resnet{depth}", CIFAR, RATIOS, 2)
        for depth in (20, 32, 44, 56)
    }
    ratios = {"paper": "--preset=paper", **RATIOS}
    networks["tf_mobilenetv2"] = "mobilenet_v2_imagenet_tf", IMAGENET, ratios, 1
    table = {}
    for model, (weights, flags, ratios, epochs) in networks.items():
        for name, ratio in ratios.items():
            shared = [
                f"--model={model}",
                f"--weights={data}/weights/{weights}.safetensors",
                *(flag.format(data=data) for flag in flags),
                ratio,
            ]
            row = f"{model}, {name}"
            table[row] = [*shared, "--repair=none", f"--finetune-epochs={epochs}"]
            table[f"{row}, repaired"] = [*shared, "--repair=lsq"]
    digits = ["--model=resnet34", "--data=digits"]
    table["resnet34 on the digits"] = [*digits, "--repair=none"]
    table["resnet34 on the digits, repaired"] = [*digits, "--finetune-epochs=0"]
    return table


def table(results: list[dict]) -> list[list[str]]:
    """The README's columns; a row and its repaired twin make one line."""
    heads = ["network", "top-1 dense", "as cut", "fine-tuned", "repaired"]
    heads += ["multiply-adds", "parameters", "latency", "selection s", "repair s"]
    lines, by_name = [heads], {row["row"]: row for row in results}
    for name, row in by_name.items():
        twin = by_name.get(f"{name}, repaired")
        if twin is None:
            continue
        top1 = rows.top1(twin) | rows.top1(row)
        stages = ("dense", "pruned", "finetuned", "repaired")
        dense, pruned = row["dense"], row["pruned"]
        lines.append(
            [
                name,
                *(f"{top1[stage]:.2f}" for stage in stages),
                f"{dense['macs'] / 1e6:.0f} → {pruned['macs'] / 1e6:.0f} M",
                f"{dense['params'] / 1e6:.2f} → {pruned['params'] / 1e6:.2f} M",
                f"{twin['pruned']['latency_ms'] / twin['dense']['latency_ms']:.0%}",
                f"{row['seconds']['selection']:.0f}",
                f"{twin['seconds']['repair']:.0f}",
            ]
        )
    return lines


def main() -> None:
    """Runs the rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="GLOB")
    parser.add_argument(
        "--small", action="store_true", help="the first network and ratio"
    )
    args = parser.parse_args()
    chosen = rows.only(commands(rows.data_folder()), args.only)
    if args.small:
        chosen = dict(list(chosen.items())[:2])
    file = rows.RESULTS / "real_networks.jsonl"
    results = rows.run_rows(file, chosen, rows.prune)
    print(report.table(table(results)))


if __name__ == "__main__":
    main()
