"""The walls between the packages, and what an import must not do."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

import ispasp_jax

ROOT = pathlib.Path(ispasp_jax.__file__).parent

#: What every package may import of the others: one way, from what it stands on.
WALLS = {
    "selection": {"errors"},
    "graph": {"errors"},
    "models": {"errors"},
    "data": {"errors", "json_text"},
    "walk": {"errors", "devices", "selection", "graph"},
    "budget": {"errors", "files", "numerals", "graph", "walk"},
    "report": {"errors", "numerals", "devices", "budget", "walk"},
    "weights": {"errors", "files", "json_text", "data", "graph", "models", "walk"},
    "export": {"errors", "files", "numerals", "graph", "walk", "weights"},
    "training": {"errors", "devices", "data", "graph", "weights"},
}

#: Third parties by package, where it is more than jax, jaxtyping and numpy.
LIBRARIES = {
    "selection": {"jax", "jaxtyping"},
    "graph": {"flax", "optax"},
    "walk": {"optax", "scipy"},
    "budget": {"scipy"},
    "models": {"flax"},
}


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
    """The library's packages and modules that a file imports."""
    found = {name for name in imported(path) if name.split(".")[0] == "ispasp_jax"}
    return {".".join(name.split(".")[1:2]) for name in found} - {"__version__"}


@pytest.mark.parametrize("package", WALLS)
def test_imports_run_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        allowed = WALLS[package] | {package}
        if path == ROOT / "models" / "__init__.py":
            allowed = allowed | {"graph"}  # the registry takes anybody's model
        assert ours(path) <= allowed, path


def test_every_package_has_its_walls():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {*WALLS, "cli"}
    for path in ROOT.glob("*.py"):
        assert "cli" not in ours(path), path


def test_no_modules_import_each_other():
    """Not even inside functions, so that every file can be read after what it uses."""
    files = {
        ".".join(("ispasp_jax", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in ROOT.rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}

    def module(name):
        return name if name in files else name.rpartition(".")[0]

    graph = {
        name: {module(other) for other in imported(path)} & files.keys()
        for name, path in files.items()
    }
    for name, others in graph.items():  # of the root, nothing but its name is asked
        others -= {name, "ispasp_jax"}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", LIBRARIES)
def test_the_core_needs_few_libraries(package):
    known = {"jax", "jaxtyping", "numpy", "ispasp_jax", *sys.stdlib_module_names}
    if package == "selection":
        known -= {"numpy", "os", "io", "pathlib", "logging", "sys"}
    for path in (ROOT / package).rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots <= known | LIBRARIES[package], path


def test_jax_config_is_the_users():
    for path in ROOT.rglob("*.py"):
        if "cli" not in path.parts:
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
    module = "ispasp_jax, ispasp_jax.pruning, ispasp_jax.weights, ispasp_jax.training"
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
    if not module.name.startswith("ispasp_jax.report.plots"):
        importlib.import_module(module.name)
for name, thing in public().items():
    assert thing is before[name], name
assert callable(ispasp_jax.ispasp) and ispasp_jax.ispasp() == ispasp_jax.ispasp(20)
from ispasp_jax.selection.algorithm_1 import algorithm_1
assert algorithm_1 is ispasp_jax.algorithm_1 is ispasp_jax.selection.algorithm_1
"""


def test_type_checkers_are_told_of_every_public_name():
    (block,) = (
        node
        for node in ast.parse((ROOT / "__init__.py").read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    told: dict = {}
    exec("\n".join(map(ast.unparse, block.body)), told)
    told = {name: told[name] for name in told if not name.startswith("_")}
    assert told.keys() == {*ispasp_jax.__all__} - {"__version__"}
    assert all(getattr(ispasp_jax, name) is thing for name, thing in told.items())


@pytest.mark.parametrize("early", ["", "import ispasp_jax.selection.algorithm_1"])
def test_a_public_name_is_one_object_whatever_is_imported(early):
    subprocess.run(
        [sys.executable, "-c", NAMES.replace("EARLY", early)],
        check=True,
        cwd=ROOT.parent,
        timeout=120,
    )
