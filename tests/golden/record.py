"""What prune.py left on public weights and on the digits, recorded in runs.json so that
a new engine can be held to it: plans, and top-1 of every stage.

    ISPASP_DATA=... python tests/golden/record.py [--check]

Without --check the file is written anew; with it every run is compared: the channels
are the same where nothing was repaired, top-1 within one standard error where it was.
Ten minutes on two cores. The record was made by version 0.1.0, but for the budget's,
whose widths follow from curves that count an error against what it is added to before
the activation (there: behind it); that one was 90.3 and is 91.5.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).parent / "runs.json"
ROOT = Path(__file__).parents[2]

RESNET56 = (
    "--model=resnet56",
    "--weights=$ISPASP_DATA/weights/cifar10_resnet56.safetensors",
    "--data=npz:$ISPASP_DATA/cifar10/cifar10_lossless.npz",
    "--calibration-images=2048",
)
MOBILENET = (
    "--model=tf_mobilenetv2",
    "--weights=$ISPASP_DATA/weights/mobilenet_v2_imagenet_tf.safetensors",
    "--data=folder:$ISPASP_DATA/imagenet",
    "--calibration-images=600",
    "--preset=paper",
)
#: Flags of prune.py, and how many test images there are.
RUNS: dict[str, tuple[tuple[str, ...], int]] = {
    "resnet56-none": ((*RESNET56, "--keep=0.4", "--repair=none"), 1000),
    "resnet56-lsq": ((*RESNET56, "--keep=0.4", "--repair=lsq"), 1000),
    "resnet56-obs-47": (
        (*RESNET56, "--method=obs", "--target=macs=47%", "--round-to=1"),
        1000,
    ),
    "mobilenet-paper-none": ((*MOBILENET, "--repair=none"), 650),
    "mobilenet-paper-lsq": (MOBILENET, 650),
    "resnet34-digits": (("--model=resnet34",), 360),
}


def found(folder: Path) -> dict:
    """The plan and the top-1 of every stage that a run left."""
    plan = json.loads((folder / "plan.json").read_text())
    report = json.loads((folder / "report.json").read_text())
    return {
        "plan": {group["name"]: group["kept"] for group in plan["groups"]},
        "top1": {stage["stage"]: stage["top1"] for stage in report["stages"]},
    }


def run(name: str, out: Path) -> dict:
    """Runs prune.py as the record says."""
    flags = [os.path.expandvars(flag) for flag in RUNS[name][0]]
    command = [sys.executable, ROOT / "prune.py", *flags, "--out", out]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return found(out)


def differences(name: str, now: dict, then: dict) -> list[str]:
    """What is not as it was, a sentence each."""
    said = []
    unrepaired = "none" in name
    if unrepaired and now["plan"] != then["plan"]:
        groups = {*now["plan"], *then["plan"]}
        other = [g for g in groups if now["plan"].get(g) != then["plan"].get(g)]
        said.append(f"{name}: other channels in {', '.join(sorted(other))}")
    for stage, before in then["top1"].items():
        error = math.sqrt(max(before * (1 - before), 0.01) / RUNS[name][1])
        after = now["top1"].get(stage, math.nan)
        if not abs(after - before) <= (error if stage != "dense" else 1e-6):
            said.append(f"{name}: {stage} top-1 {after:.4f}, was {before:.4f}")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {name: run(name, Path(folder) / name) for name in args.only}
    record = json.loads(RECORD.read_text())
    if not args.check:
        RECORD.write_text(json.dumps(record | results))
        return 0
    said = [s for n, r in results.items() for s in differences(n, r, record[n])]
    print("\n".join(said) or "as recorded")
    return bool(said)


if __name__ == "__main__":
    sys.exit(main())
