"""What the distributions say of themselves, and hold; .ci/run builds and tries them."""

import ast
import configparser
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import ispasp_jax

ROOT = Path(__file__).parents[1]

#: Modules -> the distribution that has them, where the names differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "orbax": "orbax-checkpoint",
}


@pytest.fixture
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def names(requirements):
    """The distributions that lines of requirements name."""
    found = [re.match(r"[\w.-]+", line) for line in requirements.split("\n")]
    return {name[0].lower().replace("_", "-") for name in found if name}


def test_what_the_package_imports_is_required(setup):
    required = names(setup["options"]["install_requires"])
    extras = setup["options.extras_require"]
    offered = [names(v) for k, v in extras.items() if k not in ("dev", "docs", "test")]
    allowed = required.union(*offered) | {"torch"}  # taken where the user has it
    imported = set()
    for path in (ROOT / "ispasp_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported -= {"ispasp_jax", *sys.stdlib_module_names}
    distributions = {DISTRIBUTIONS.get(name, name) for name in imported}
    assert {name.replace("_", "-") for name in distributions} <= allowed


def test_the_changes_begin_with_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changes, re.M)[0] == ispasp_jax.__version__


def test_the_licence_is_the_one_that_is_named(setup):
    assert setup["metadata"]["license_expression"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text


def test_the_commands_are_there(setup):
    lines = setup["options.entry_points"]["console_scripts"].strip().split("\n")
    points = dict(line.split(" = ") for line in lines)
    names = ("train", "prune", "export", "compare")
    assert points.keys() == {f"ispasp-{name}" for name in names}
    assert all(callable(pkgutil.resolve_name(place)) for place in points.values())


def test_the_source_distribution_has_what_tests_and_site_read():
    wanted = (ROOT / "MANIFEST.in").read_text()
    for folder in ("benchmarks", "docs", "examples", "tests"):
        suffixes = {p.suffix for p in (ROOT / folder).rglob("*.*") if p.is_file()}
        suffixes -= {".pyc"}
        (line,) = re.findall(rf"^recursive-include {folder} (.*)$", wanted, re.M)
        assert suffixes <= {glob.removeprefix("*") for glob in line.split()}
