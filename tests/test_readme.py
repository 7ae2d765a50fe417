"""The README's snippets run, and its tables are the benchmarks' JSON."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import variables_of

import ispasp_jax
from ispasp_jax import models
from ispasp_jax.data import Preprocessing

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def snippet(word):
    """The one snippet with this word in it, run; its names."""
    (code,) = [text for text in SNIPPETS if word in text]
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.fixture
def after_the_first_line(tmp_path, monkeypatch):
    """A working folder as the first line leaves it, but for a network that is made in a
    second: untrained, and small.
    """
    monkeypatch.chdir(tmp_path)
    network = models.create("resnet20", 10)
    prep = Preprocessing(image_size=8, resize=None, mean=(0.5,), std=(0.5,))
    variables = variables_of(network, (8, 8, 1))
    model = ispasp_jax.Model("resnet20", network, variables, prep, {})
    ispasp_jax.save("runs/resnet34-digits-dense", model)


def test_every_block_is_run_by_a_test_of_this_file():
    tried = ("pruned.plan", "def sweep", "class CNN", "class Net(nnx")
    assert all(sum(w in text for text in SNIPPETS) == 1 for w in tried)
    assert len(SNIPPETS) == len(tried)


def test_the_first_block_leaves_a_smaller_network(after_the_first_line):
    names = snippet("pruned.plan")
    assert len(names["pruned"].plan["layer1.0"].kept) == 6  # of 16
    assert Path("small/config.json").exists()
    ours = names["model"](names["images"])
    np.testing.assert_allclose(ours, names["logits"], rtol=1e-5, atol=1e-5)


def test_the_sweep_over_sizes():
    supports = np.asarray(snippet("def sweep")["supports"])
    np.testing.assert_array_equal(supports.sum(1), np.arange(1, 65))


def test_any_jax_model():
    names = snippet("class CNN")
    assert names["small"]["params"]["Conv_0"]["kernel"].shape == (3, 3, 1, 16)
    masked = names["traced"].mask(names["plan"], names["variables"])
    expected = names["model"].apply(masked, names["x"])
    np.testing.assert_allclose(names["logits"], expected, rtol=1e-4, atol=1e-4)


def test_your_own_model():
    made = snippet("class Net(nnx")["make"](7)
    images = jax.random.normal(jax.random.key(0), (32, 8, 8, 1))
    pruned = ispasp_jax.prune(made, images=[images], keep=0.5)
    assert pruned.module.grow.out_features == 32
    pruned.module.eval()  # it learns, as it was made to
    np.testing.assert_allclose(
        pruned.module(images), pruned.apply(pruned.variables, images), atol=1e-5
    )


def test_tables_are_the_results():
    check = [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"]
    subprocess.run(check, check=True, cwd=ROOT)


def test_every_file_of_the_map_is_there():
    text = (ROOT / "README.md").read_text()
    block = text[text.index("## Map") : text.index("## Citation")]
    named = re.findall(r"^      ([\w/]+(?:\.py)?)", block, re.M)
    assert len(named) > 12
    for name in named:
        assert (ROOT / "ispasp_jax" / name).exists(), name
