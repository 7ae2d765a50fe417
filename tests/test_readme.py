"""The README's block runs from any folder, its tables are the benchmarks' JSON, and
what it names is there.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import snippets

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_block_on_a_model_of_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = snippets.run("README.md")
    kernel = names["pruned"].variables["params"]["Conv_0"]["kernel"]
    assert kernel.shape == (3, 3, 1, 20)
    small = names["ispasp_jax"].load("small")
    np.testing.assert_allclose(small(names["images"]), names["logits"], atol=1e-5)


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 120


def test_tables_are_the_results():
    check = [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"]
    subprocess.run(check, check=True, cwd=ROOT)


def test_the_map_is_the_packages():
    block = TEXT[TEXT.index("## Map") : TEXT.index("## Citation")]
    named = {name.rstrip("/") for name in re.findall(r"^      ([\w.]+/?)", block, re.M)}
    rooms = {path.parent.name for path in ROOT.glob("ispasp_jax/*/__init__.py")}
    assert rooms <= named
    assert all((ROOT / "ispasp_jax" / name).exists() for name in named)


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target
