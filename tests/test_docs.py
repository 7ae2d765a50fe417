"""Every Python block of the documents runs and prints what they say, the notebook runs,
and the site's generated parts say what the code has.
"""

import contextlib
import importlib.util
import inspect
import io
import json
import pkgutil
import re
from pathlib import Path

import matplotlib
import pytest
import snippets

import ispasp_jax
from ispasp_jax.cli import compare, export, prune_flags, train
from ispasp_jax.selection.criteria import CRITERIA
from ispasp_jax.selection.criterion import Factory

ROOT = Path(__file__).parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))
#: Packages of the extras that a page is about.
NEEDS = {"docs/export.md": ("onnx", "onnxruntime")}
DOCUMENTS = ["CONTRIBUTING.md", "benchmarks/README.md", *PAGES]


@pytest.mark.parametrize("page", [p for p in DOCUMENTS if snippets.snippets(p)])
def test_snippets(page, tmp_path, monkeypatch):
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    snippets.run(page)


def test_a_page_that_prints_something_else_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match="page.md, line 2, prints\n2\nand not\n3"):
        snippets.run("page.md")
    page.write_text(page.read_text().replace("3\n```", "2\n```"))
    snippets.run("page.md")


def test_every_python_block_is_found():
    for page in DOCUMENTS:
        fences = (ROOT / page).read_text().count("```python")
        assert fences == len(snippets.snippets(page)), page


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    notebook = json.loads((ROOT / "examples/prune_digits.ipynb").read_text())
    assert notebook["nbformat"] == 4
    names = {"__name__": "notebook"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "committed without outputs"
            code = compile("".join(cell["source"]), f"cell {number}", "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, names)
    from matplotlib import pyplot

    assert len(pyplot.get_fignums()) == 2
    pyplot.close("all")
    assert names["small"] > names["dense"] - 0.05


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("script", "parser", "least"),
    [
        ("train.py", train.parser, 20),
        ("prune.py", prune_flags.parser, 20),
        ("ispasp-export", export.parser, 4),
        ("ispasp-compare", compare.parser, 1),
    ],
)
def test_the_commands_page_has_every_flag(script, parser, least, hooks):
    text = hooks.flags(parser())
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        parser().parse_args(["--help"])
    offered = set(re.findall(r"^  (--[\w-]+)", said.getvalue(), re.M))
    assert len(offered) >= least
    assert set(re.findall(r"^\| <code>(--[\w-]+)", text, re.M)) == offered
    mark = f"<!-- {script} -->"
    assert hooks.filled(f"{mark}\n") == text + "\n"
    assert mark in (ROOT / "docs/commands.md").read_text()


def test_the_criteria_page_has_every_criterion(hooks):
    text = hooks.criteria()
    assert re.findall(r"^### (\w+)", text, re.M) == [*CRITERIA]
    assert "`criteria.ispasp(num_iters: int = 20)`" in text
    assert text.count("so for labelled images.") == 2


def test_links_from_other_files_lead_to_the_site(hooks):
    home = hooks.page("README.md")
    assert "(algorithm.md#what-differs-from-the-authors-code)" in home
    assert "(measured.md)" in home and "](docs/" not in home
    assert "(results/traces.png)" in hooks.page("benchmarks/README.md")
    with pytest.raises(ValueError, match="LICENSE, which is not on the site"):
        hooks.linked("[licence](LICENSE)", "README.md")


API = (ROOT / "docs/api.md").read_text()


def documented():
    """What the API page shows, by name; of a module, what it defines."""
    for path in re.findall(r"^::: (\S+)$", API, re.M):
        thing = pkgutil.resolve_name(path)
        members = vars(thing).items() if inspect.ismodule(thing) else [("", thing)]
        for name, one in members:
            own = getattr(one, "__module__", path) == path or one is thing
            if callable(one) and own and not name.startswith("_"):
                yield f"{path}.{name}".rstrip("."), one


#: A criterion's parameters are a Problem's fields, and are told there.
DOCUMENTED = {n: one for n, one in documented() if not isinstance(one, Factory)}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_docstrings_are_complete(name):
    thing = inspect.unwrap(DOCUMENTED[name])
    text = inspect.getdoc(thing)
    if isinstance(thing, type):
        named = [n for n in vars(thing).get("__annotations__", ()) if n[0] != "_"]
        assert not named or "Attributes:" in text
    else:
        signature = inspect.signature(thing)
        named = [*signature.parameters]
        answers = signature.return_annotation is not None
        assert not named or "Args:" in text
        assert not (named and answers) or "Returns:" in text
    missing = [n for n in named if not re.search(rf"^  \*?{n}: ", text, re.M)]
    assert not missing


def test_the_api_page_has_every_public_name():
    shown = set(map(id, DOCUMENTED.values()))
    for name in ispasp_jax.__all__:
        thing = getattr(ispasp_jax, name)
        if callable(thing) and not isinstance(thing, Factory):
            assert id(thing) in shown, name
