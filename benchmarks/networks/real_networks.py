"""Public networks pruned on real data, CIFAR ResNets and MobileNetV2; and the ResNet34
that prune.py trains on the digits by itself.

    ISPASP_DATA=DIR python benchmarks/real_networks.py [--only 'resnet56*'] [--small]

Every row is a run of prune.py, two for each network and ratio: the paper's procedure
(as cut, and after a short fine-tuning on the few training images that the folder has,
4,000 of CIFAR-10 and 1,000 of ImageNet), and the repair by least squares without any
training. Calibration sees training images only. About 40 minutes on two CPU cores;
--small does the first ratio. Rows that are in the JSON already are not run again.
"""

from benchmarks.benchmark import Benchmark, Lines, table
from benchmarks.networks import commands
from benchmarks.networks.commands import CIFAR, IMAGENET, share, top1

RATIOS = {"keep 0.7": "--keep=0.7", "keep 0.5": "--keep=0.5"}


def _commands() -> dict[str, list[str]]:
    """The flags of every row."""
    networks = {
        f"resnet{depth}": (f"cifar10_resnet{depth}", CIFAR, RATIOS, 2)
        for depth in (20, 32, 44, 56)
    }
    ratios = {"paper": "--preset=paper", **RATIOS}
    networks["tf_mobilenetv2"] = "mobilenet_v2_imagenet_tf", IMAGENET, ratios, 1
    table = {}
    for model, (file, flags, ratios, epochs) in networks.items():
        for name, ratio in ratios.items():
            shared = [
                f"--model={model}",
                commands.weights(file),
                *flags,
                ratio,
            ]
            row = f"{model}, {name}"
            table[row] = [*shared, "--repair=none", f"--finetune-epochs={epochs}"]
            table[f"{row}, repaired"] = [*shared, "--repair=lsq"]
    digits = ["--model=resnet34", "--data=digits"]
    table["resnet34 on the digits"] = [*digits, "--repair=none"]
    table["resnet34 on the digits, repaired"] = [*digits, "--finetune-epochs=0"]
    return table


def columns(results: list[dict]) -> Lines:
    """The README's columns; a row and its repaired twin make one line."""
    rows = {row["row"]: row for row in results}
    pairs = {n: (rows[n], rows.get(f"{n}, repaired")) for n in rows}

    def smaller(n, what, form):
        row = pairs[n][0]
        dense, pruned = (row[which][what] / 1e6 for which in ("dense", "pruned"))
        return f"{dense:{form}} → {pruned:{form}} M"

    shown = {
        "network": lambda n: n,
        "top-1 dense": lambda n: f"{top1(pairs[n][0])['dense']:.2f}",
        "as cut": lambda n: f"{top1(pairs[n][0])['pruned']:.2f}",
        "fine-tuned": lambda n: f"{top1(pairs[n][0])['finetuned']:.2f}",
        "repaired": lambda n: f"{top1(pairs[n][1])['repaired']:.2f}",
        "multiply-adds": lambda n: smaller(n, "macs", ".0f"),
        "parameters": lambda n: smaller(n, "params", ".2f"),
        "latency": lambda n: f"{share(pairs[n][1], 'latency_ms'):.0%}",
        "selection s": lambda n: f"{pairs[n][0]['seconds']['selection']:.0f}",
        "repair s": lambda n: f"{pairs[n][1]['seconds']['repair']:.0f}",
    }
    return table([name for name, pair in pairs.items() if all(pair)], shown)


COMMANDS = _commands()
BENCHMARK = Benchmark(
    file="real_networks.jsonl",
    full=COMMANDS,
    small={
        name: [*COMMANDS[name], "--calibration-images=250", *tuned]
        for name, tuned in zip(COMMANDS, (["--finetune-epochs=1"], []), strict=False)
    },
    measure=commands.prune,
    tables={"real_networks": columns},
)
