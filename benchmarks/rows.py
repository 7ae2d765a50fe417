"""What the benchmarks share: a row's result is a line of JSON that is kept, so that a
benchmark that was stopped goes on with the next row.
"""

import fnmatch
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def data_folder() -> Path:
    """The folder of real data and weights that ISPASP_DATA names; exits without it."""
    folder = os.environ.get("ISPASP_DATA")
    if not folder or not Path(folder).is_dir():
        sys.exit(
            "skipped: ISPASP_DATA does not name a folder with weights/, cifar10/, "
            "imagenet/ and mnist/"
        )
    return Path(folder)


def run_rows(
    file: Path, rows: Mapping[str, Any], measure: Callable[[Any], dict]
) -> list[dict[str, Any]]:
    """Measures the rows that the file does not have yet; gives all of them in order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    known = {row["row"]: row for row in read(file)} if file.exists() else {}
    for name, what in rows.items():
        if name not in known:
            print(f"--- {name}", file=sys.stderr, flush=True)
            known[name] = {"row": name, **measure(what)}
            ordered = [known[key] for key in rows if key in known]
            ordered += [row for key, row in known.items() if key not in rows]
            text = "\n".join(json.dumps(row) for row in ordered)
            new = file.with_suffix(".new")
            new.write_text(text + "\n")
            new.replace(file)
    return [known[name] for name in rows]


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def top1(row: Mapping[str, Any]) -> dict[str, float]:
    """Top-1 of a run of prune.py by stage, in per cent."""
    return {stage["stage"]: 100 * stage["top1"] for stage in row["stages"]}


def only(rows: Mapping[str, Any], globs: Iterable[str]) -> dict[str, Any]:
    """The rows whose names match a glob; all of them without globs."""
    globs = list(globs)
    chosen = {
        name: row
        for name, row in rows.items()
        if not globs or any(fnmatch.fnmatch(name, glob) for glob in globs)
    }
    return chosen or sys.exit(f"--only matches no row of {', '.join(rows)}")


def prune(
    flags: list[str],
    more: Iterable[str] = (),
    keep: Callable[[Path], None] = lambda out: None,
) -> dict[str, Any]:
    """Runs `prune.py`; its report, and the command as one types it.

    Args:
      flags: of the row.
      more: flags that save time and change nothing; not in the command.
      keep: sees the finished folder before it goes.
    """
    import jax

    from ispasp_jax.cli import prune as command

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        if command.main([*flags, *more, f"--out={out}"]):
            sys.exit(f"prune.py {' '.join(flags)} failed")
        report = json.loads((out / "report.json").read_text())
        keep(out)
    jax.clear_caches()  # a hundred rows' programs are more than a process may map
    folder = str(data_folder())
    typed = " ".join(flags).replace(folder, "$ISPASP_DATA")
    return {"command": f"python prune.py {typed}", **report}


#: Flags that curves do not depend on.
_NOT_OF_CURVES = ("--method", "--target", "--round-to", "--finetune", "--distill")


def prune_with_curves(folder: Path, flags: list[str]) -> dict[str, Any]:
    """The same; curves that a budget needs are measured by the first row that needs
    them, and wait in the folder for the others.
    """
    if not any(flag.startswith("--target") for flag in flags):
        return prune(flags)
    of_curves = [flag for flag in flags if not flag.startswith(_NOT_OF_CURVES)]
    name = hashlib.sha256(" ".join(of_curves).encode()).hexdigest()
    held = folder / f"{name}.json"
    if held.exists():
        return prune(flags, [f"--curves={held}"])
    return prune(flags, keep=lambda out: shutil.copy(out / "curves.json", held))
