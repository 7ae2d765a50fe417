"""A set of texts that every machine has: sentences of installed packages' docstrings,
to be told apart by the package that they are of.

The same sentences come out as long as the same versions are installed.
"""

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PACKAGES = ("flax", "jax", "numpy", "optax", "PIL", "scipy", "sklearn", "etils")
#: Sentences of each package, and of how many words.
COUNT, WORDS = 800, (6, 30)


def write(path: Path) -> None:
    """Writes `jsonl:` lines of text and label (the package)."""
    rows, known = [], set()
    for package in PACKAGES:
        found = sorted(set(_sentences(package)) - known)
        known |= {*found}
        order = np.random.default_rng(0).permutation(len(found))[:COUNT]
        rows += [{"text": found[i], "label": package} for i in sorted(order)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _sentences(package: str) -> Iterator[str]:
    """Those without the names of packages, which would tell."""
    spec = importlib.util.find_spec(package)
    (root,) = spec.submodule_search_locations if spec else ()
    names = re.compile("|".join(PACKAGES) + "|scikit|pillow", re.IGNORECASE)
    for file in sorted(Path(root).rglob("*.py")):
        if "test" in str(file):
            continue
        for text in _docstrings(file):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
                words = sentence.split()
                plain = sentence.isascii() and sentence[:1].isupper()
                if plain and WORDS[0] <= len(words) <= WORDS[1]:
                    if not names.search(sentence) and ">>>" not in sentence:
                        yield sentence


def _docstrings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text
