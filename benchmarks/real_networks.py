"""Public networks pruned on real data: CIFAR ResNets and MobileNetV2.

    ISPASP_DATA=DIR python benchmarks/real_networks.py [--only 'resnet56*'] [--small]

Every row is a run of prune.py: top-1 of the dense network, as cut, repaired (least
squares, no labels), and after a short fine-tuning on the few training images that the folder has (4,000 of CIFAR-10, 1,000 of
ImageNet); calibration sees training images only. About 25 minutes on two CPU cores;
--small does one row. Rows that are in the JSON already are not run again.
"""

import argparse
from pathlib import Path

import rows

from ispasp_jax import report

#: CIFAR: the stems and preprocessing are the weights'. MobileNetV2: 227-pixel images.
CIFAR = ["--data=npz:{data}/cifar10/cifar10_lossless.npz", "--finetune-epochs=3"]
IMAGENET = [
    "--data=folder:{data}/imagenet",
    "--resize=none",
    "--finetune-epochs=1",
    "--calibration-images=1000",
    "--latency-batch-size=8",
]


def commands(data: Path) -> dict[str, list[str]]:
    """The flags of every row."""
    table = {}
    for depth in (20, 32, 44, 56):
        for keep in ("0.7", "0.5"):
            table[f"resnet{depth} keep {keep}"] = [
                f"--model=resnet{depth}",
                f"--weights={data}/weights/cifar10_resnet{depth}.safetensors",
                *CIFAR,
                f"--keep={keep}",
            ]
    for name, flag in (
        ("paper", "--preset=paper"),
        ("keep 0.7", "--keep=0.7"),
        ("keep 0.5", "--keep=0.5"),
    ):
        table[f"tf_mobilenetv2 {name}"] = [
            "--model=tf_mobilenetv2",
            f"--weights={data}/weights/mobilenet_v2_imagenet_tf.safetensors",
            *IMAGENET,
            flag,
        ]
    return {
        name: [flag.format(data=data) for flag in flags]
        for name, flags in table.items()
    }


def table(results: list[dict]) -> list[list[str]]:
    """The README's columns."""
    heads = ["network", "top-1 dense", "as cut", "repaired", "fine-tuned"]
    heads += ["multiply-adds", "parameters", "latency", "selection s", "repair s"]
    lines = [heads]
    for row in results:
        top1 = {stage["stage"]: 100 * stage["top1"] for stage in row["stages"]}
        dense, pruned = row["dense"], row["pruned"]
        lines.append(
            [
                row["row"],
                f"{top1['dense']:.2f}",
                f"{top1['pruned']:.2f}",
                f"{top1['repaired']:.2f}",
                f"{top1['finetuned']:.2f}",
                f"{dense['macs'] / 1e6:.0f} → {pruned['macs'] / 1e6:.0f} M",
                f"{dense['params'] / 1e6:.2f} → {pruned['params'] / 1e6:.2f} M",
                f"{pruned['latency_ms'] / dense['latency_ms']:.0%}",
                f"{row['seconds']['selection']:.0f}",
                f"{row['seconds']['repair']:.0f}",
            ]
        )
    return lines


def main() -> None:
    """Runs the rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="GLOB")
    parser.add_argument("--small", action="store_true", help="one row")
    args = parser.parse_args()
    chosen = rows.only(commands(rows.data_folder()), args.only)
    if args.small:
        chosen = dict(list(chosen.items())[:1])
    file = rows.RESULTS / "real_networks.jsonl"
    results = rows.run_rows(file, chosen, rows.prune)
    print(report.table(table(results)))


if __name__ == "__main__":
    main()
