"""A result on the Hugging Face Hub: the model folder, with a card from its report."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ispasp_jax import files
from ispasp_jax.errors import InputError
from ispasp_jax.numerals import numeral

#: Beside the model, where the result has them.
BESIDE = ("plan.json", "report.json", "report.html", "curves.json", "model.onnx")
#: What stands for the Hub in a dry run.
LOCAL = "folder:"


def push(result: str | Path, repo: str, *, private: bool = False) -> str:
    """Publishes what prune.py left.

    Args:
      result: its folder: `model/`, report.json, plan.json and what lies beside.
      repo: OWNER/NAME on the Hub, made where it is not there; folder:DIR writes the
        same files to a new folder instead.
      private: whether a repository that is made is.

    Returns:
      Where it is.

    Raises:
      InputError: no result is there, the extra [hub] is missing, or the Hub refuses.
    """
    result = Path(result)
    if not (result / "model" / "config.json").exists():
        raise InputError(
            f"{result} holds no result: expected model/config.json, as prune.py leaves "
            "it; give its --out folder."
        )
    if repo.startswith(LOCAL):
        place = Path(repo.removeprefix(LOCAL))
        if place.exists():
            raise InputError(f"{place} is there already; give a new folder.")
        with files.new_folder(place) as new:
            stage(result, new, place.name)
        return str(place)
    with tempfile.TemporaryDirectory() as folder:
        stage(result, Path(folder), repo)
        return _upload(Path(folder), repo, private)


def stage(result: Path, folder: Path, repo: str) -> None:
    """Puts a result's files into a folder as they lie on the Hub."""
    for path in sorted((result / "model").iterdir()):
        shutil.copyfile(path, folder / path.name)
    for name in BESIDE:
        if (result / name).exists():
            shutil.copyfile(result / name, folder / name)
    report = result / "report.json"
    about = json.loads(report.read_text()) if report.exists() else {}
    config = json.loads((result / "model" / "config.json").read_text())
    (folder / "README.md").write_text(card(about, config, repo))


def card(report: Mapping[str, Any], config: Mapping[str, Any], repo: str) -> str:
    """The model card: what it is, what was cut, how to load it.

    Args:
      report: of report.json; nothing where there is none.
      config: of the model folder.
      repo: where it will lie.
    """
    head = ["library_name: ispasp_jax", "tags:", "- pruning", "- jax", "- i-spasp"]
    lines = ["---", *head, "---", "", f"# {config['model']}, pruned", ""]
    if report:
        lines += [
            f"Structured pruning by {report['method']} on {report['data']}, seed "
            f"{report['seed']}, with ispasp_jax {report['versions']['ispasp_jax']}.",
            "",
            "| stage | top-1 % | loss |",
            "|---|---|---|",
            *(
                f"| {s['stage']} | {100 * s['top1']:.2f} | {numeral(s['loss'])} |"
                for s in report["stages"]
            ),
            "",
            "| | dense | pruned |",
            "|---|---|---|",
            *(
                f"| {label} | {numeral(report['dense'][key])} | "
                f"{numeral(report['pruned'][key])} |"
                for label, key in (("multiply-adds", "macs"), ("parameters", "params"))
            ),
            "",
        ]
    lines += [
        "```python",
        "import ispasp_jax",
        "",
        f'model = ispasp_jax.load("hf:{repo}")',
        "logits = model(images)  # preprocessed, (n, height, width, channels)",
        "```",
        "",
    ]
    if report.get("notes"):
        lines += ["Notes:", "", *(f"- {note}" for note in report["notes"]), ""]
    return "\n".join(lines)


def _upload(folder: Path, repo: str, private: bool) -> str:
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise InputError(
            "publishing needs the package huggingface_hub; run pip install "
            "'ispasp_jax[hub]'."
        ) from error
    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=made.repo_id)
    except Exception as error:  # of the HTTP library beneath, of any kind
        why = str(error).strip().partition("\n")[0].removesuffix(".")
        raise InputError(
            f"{repo} cannot be published ({why:.200}); check the name and the network, "
            "or log in with `hf auth login`."
        ) from error
    return str(made)
