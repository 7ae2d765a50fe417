"""The walls between the modules, and what an import must not do."""

import ast
import pathlib
import subprocess
import sys

import pytest

import ispasp_jax.problem

ROOT = pathlib.Path(ispasp_jax.problem.__file__).parent


def imported(path):
    """The absolute names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path):
    """The library's modules that a file imports."""
    found = {name for name in imported(path) if name.split(".")[0] == "ispasp_jax"}
    return {".".join(name.split(".")[1:2]) for name in found}


def test_the_selection_core_imports_jax_alone():
    allowed = {
        "trees": set(),
        "problem": set(),
        "ispasp": {"problem"},
        "cosamp": {"problem"},
        "obs": {"problem"},
        "criteria": {"problem", "ispasp", "cosamp", "obs"},
    }
    assert not imported(ROOT / "errors.py")
    for module, neighbours in allowed.items():
        path = ROOT / f"{module}.py"
        roots = {name.split(".")[0] for name in imported(path)}
        known = {"jax", "jaxtyping", "ispasp_jax", *sys.stdlib_module_names}
        outside = roots - known - ({"numpy"} if module == "trees" else set())
        assert not outside, module
        assert ours(path) <= neighbours | {"errors"}, module
        stdlib = roots & sys.stdlib_module_names
        assert not stdlib & {"os", "io", "pathlib", "logging", "sys"}, module


def test_the_graph_knows_nothing_of_the_rest():
    files = sorted((ROOT / "graph").glob("*.py"))
    assert files
    for path in files:
        assert ours(path) <= {"graph", "trees", "errors"}, path
        roots = {name.split(".")[0] for name in imported(path)}
        known = {"jax", "jaxtyping", "numpy", "flax", "ispasp_jax"}
        assert roots <= known | sys.stdlib_module_names, path
        flax = {"adapters.py", "linen.py", "modules.py"}
        assert "flax" not in roots or path.name in flax, path


def test_models_know_nothing_of_pruning():
    files = sorted((ROOT / "models").glob("*.py"))
    assert files
    for path in files:
        registry = {"graph"} if path.name == "__init__.py" else set()
        assert ours(path) <= {"models", "groups", "errors"} | registry, path


def test_imports_run_one_way():
    """The core, then graph and models, then plans and the walk, then all the rest."""
    upper = {"data", "training", "checkpoints", "report", "commands", "hub", "weights"}
    for module in ("groups", "plan", "budget", "cost", "timing"):
        assert not ours(ROOT / f"{module}.py") & (upper | {"pruning"}), module
    assert ours(ROOT / "groups.py") == {"trees", "errors"}
    assert ours(ROOT / "optimizers.py") == {"trees", "groups", "errors"}


def test_the_walk_knows_selection_and_the_graph():
    known = {"walk", "graph", "devices", "errors", "problem", "ispasp", "obs"}
    files = sorted((ROOT / "walk").glob("*.py"))
    assert files
    for path in files:
        assert ours(path) <= known, path


def test_jax_config_is_the_users():
    for path in ROOT.rglob("*.py"):
        if "commands" not in path.parts:
            assert "jax.config.update" not in path.read_text(), path


PROGRAM = """
import sys
import jax
before = dict(jax.config.values)
import {module}
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a backend was started"
heavy = {{"tensorflow", "torch", "tensorboard", "clu"}} & set(sys.modules)
assert not heavy, heavy
assert dict(jax.config.values) == before, "jax.config was changed"
"""


def test_importing_starts_no_backend_and_loads_no_other_framework():
    module = "ispasp_jax, ispasp_jax.pruning, ispasp_jax.models, ispasp_jax.cost"
    subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        check=True,
        cwd=ROOT.parent,
        timeout=120,
    )


NAMES = """
import importlib, pkgutil
import ispasp_jax

def public():
    return {name: getattr(ispasp_jax, name) for name in ispasp_jax.__all__}

EARLY
before = public()
for module in pkgutil.walk_packages(ispasp_jax.__path__, "ispasp_jax."):
    if not module.name.startswith("ispasp_jax.plots"):
        importlib.import_module(module.name)
for name, thing in public().items():
    assert thing is before[name], name
assert callable(ispasp_jax.ispasp) and ispasp_jax.ispasp() is ispasp_jax.ispasp(20)
from ispasp_jax.ispasp import algorithm_1
assert algorithm_1 is ispasp_jax.algorithm_1
"""


@pytest.mark.parametrize("early", ["", "import ispasp_jax.ispasp"])
def test_a_public_name_is_one_object_whatever_is_imported(early):
    subprocess.run(
        [sys.executable, "-c", NAMES.replace("EARLY", early)],
        check=True,
        cwd=ROOT.parent,
        timeout=120,
    )
