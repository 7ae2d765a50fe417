"""Transformers at small size, end to end: neurons and heads cut to the same share.

    python benchmarks/attention.py [--only 'bert*'] [--small]

BERT (mini) learns to tell from which of eight packages a docstring's sentence is
(sentences.py), a vision transformer (tiny, patches of 4 pixels) learns the digits: both
in a few minutes, from nothing, by train.py into runs/. Then every method cuts every
layer's neurons and heads to 75, 50 and 40 %, on 1,024 training examples, as cut and
repaired by least squares, without labels or training. --small is one row of the digits.

The paper's second version prunes BERT on XNLI. Where its files are, as
$ISPASP_DATA/xnli/en.jsonl with lines {"text": premise, "second": hypothesis, "label":
..., "split": "train" or "test"}, and a BERT trained on it is
$ISPASP_DATA/xnli/model.safetensors (config.json and tokenizer.json beside it, as
Hugging Face has them), the rows "xnli" do the same with them:

    ISPASP_DATA=DIR python benchmarks/attention.py --only 'xnli*'
"""

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.benchmark import Benchmark, Lines, table
from benchmarks.networks import commands, sentences
from benchmarks.networks.commands import DATA, share, top1


class Case(NamedTuple):
    """A network: its flags, epochs of training (None where it is trained), and what
    stays besides neurons and heads."""

    flags: list[str]
    epochs: int | None
    ignore: list[str]


#: Where sentences and dense networks are kept.
RUNS = Path("runs")
SENTENCES = RUNS / "sentences.jsonl"
CASES = {
    "bert_mini, sentences": Case(
        ["--model=bert_mini", f"--data=jsonl:{SENTENCES}", "--max-tokens=48"],
        8,
        ["*.value.2", "*pooler*"],
    ),
    "vit_tiny, digits": Case(
        ["--model=vit_tiny_patch16_224", "--data=digits"], 60, ["*.value.2"]
    ),
    "xnli": Case(
        [
            "--model=bert_base",
            f"--data=jsonl:{DATA}/xnli/en.jsonl",
            f"--weights={DATA}/xnli/model.safetensors",
        ],
        None,
        ["*.value.2", "*pooler*"],
    ),
}
METHODS = ("random", "l1", "ispasp", "obs")
SHARES = ("0.75", "0.5", "0.4")


class Row(NamedTuple):
    """What a row runs."""

    case: str
    flags: tuple[str, ...]


def _has_xnli() -> bool:
    return (Path(os.environ.get("ISPASP_DATA", "")) / "xnli").is_dir()


def _rows(cases: Iterable[str]) -> dict[str, Row]:
    return {
        f"{case}, {float(keep):.0%}, {method}": Row(
            case,
            (
                f"--keep={keep}",
                f"--method={method}",
                "--scope=all",
                "--calibration-images=1024",
                "--finetune-epochs=0",
                "--ignore",
                *CASES[case].ignore,
            ),
        )
        for case in cases
        if case != "xnli" or _has_xnli()
        for keep in SHARES
        for method in METHODS
    }


def measure(row: Row) -> dict:
    """Trains the network, if no other row has, and prunes it."""
    case = CASES[row.case]
    return commands.prune([*case.flags, *weights(row.case), *row.flags])


def weights(name: str) -> list[str]:
    """The flag of the dense network, which is trained where it is not there."""
    from ispasp_jax.cli import train

    case = CASES[name]
    if case.epochs is None:
        return []
    out = RUNS / ("attention-" + name.replace(", ", "-"))
    if any(str(SENTENCES) in flag for flag in case.flags) and not SENTENCES.exists():
        RUNS.mkdir(exist_ok=True)
        sentences.write(SENTENCES)
    if not (out / "training.json").exists():
        asked = [*case.flags, f"--epochs={case.epochs}", f"--out={out}"]
        if train.main(asked):
            raise SystemExit(f"train.py {' '.join(asked)} failed")
    return [f"--weights={out}"]


def columns(results: list[dict], name: str) -> Lines:
    """As cut → repaired, a method a column."""
    found = {row["row"]: row for row in results}

    def cell(keep: str, method: str) -> str:
        row = found.get(f"{name}, {float(keep):.0%}, {method}")
        if row is None:
            return "–"
        scores = top1(row)
        return f"{scores['pruned']:.1f} → {scores['repaired']:.1f}"

    def any_of(keep: str) -> dict:
        return next(r for k, r in found.items() if f"{name}, {float(keep):.0%}" in k)

    shown = {
        "neurons and heads": lambda keep: f"{float(keep):.0%}",
        "multiply-adds": lambda keep: f"{share(any_of(keep), 'macs'):.0%}",
        "dense": lambda keep: f"{top1(any_of(keep))['dense']:.1f}",
        **{m: functools.partial(cell, method=m) for m in METHODS},
    }
    measured = [k for k in SHARES if any(f"{name}, {float(k):.0%}" in r for r in found)]
    return table(measured, shown)


ROWS = _rows(CASES)
BENCHMARK = Benchmark(
    file="attention.jsonl",
    full=ROWS,
    small={"vit_tiny, digits, 50%, l1": ROWS["vit_tiny, digits, 50%, l1"]},
    measure=measure,
    tables={
        f"attention {n}": functools.partial(columns, name=n)
        for n in CASES
        if n != "xnli"
    },
)
