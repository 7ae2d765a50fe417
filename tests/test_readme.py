"""The README's snippets run, and its tables are the benchmarks' JSON."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ispasp_jax

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def snippet(word):
    """The one snippet with this word in it, run; its names."""
    (code,) = [text for text in SNIPPETS if word in text]
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_sweep_over_sizes():
    supports = np.asarray(snippet("def sweep")["supports"])
    np.testing.assert_array_equal(supports.sum(1), np.arange(1, 65))


def test_your_own_network():
    network = snippet("class Mixer")["Net"](10)
    images = jax.random.normal(jax.random.key(0), (32, 4, 4, 64))
    variables = network.init(jax.random.key(1), images)
    for repair in ("none", "lsq"):
        pruned = ispasp_jax.prune(
            network, variables, [images], {"mixer.*": 0.5}, repair=repair
        )
        assert set(pruned.network.group_widths().values()) == {128}
        assert jnp.isfinite(pruned.network.apply(pruned.variables, images)).all()
    assert ispasp_jax.plan.verify(pruned.plan, network, variables, images) < 1e-4


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
