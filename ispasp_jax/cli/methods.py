"""The criteria as a command lists them: read from their files, since --help is instant
and importing jax is not.
"""

import ast
from pathlib import Path

from ispasp_jax import __file__ as package

_SELECTION = Path(package).parent / "selection"


def named() -> dict[str, bool]:
    """Every criterion, the paper's first, and whether it asks for labels."""
    result = {}
    for path in sorted(_SELECTION.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and _is_criterion(node):
                asked = {argument.arg for argument in node.args.args}
                result[node.name] = bool(asked & {"gradient", "curvature"})
    return dict(sorted(result.items(), key=lambda item: (item[0] != "ispasp", item[0])))


def _is_criterion(node: ast.FunctionDef) -> bool:
    return any(
        isinstance(decorator, ast.Name) and decorator.id == "criterion"
        for decorator in node.decorator_list
    )


def listed() -> str:
    """The names in a sentence of --help."""
    methods = named()
    free, labelled = (
        [name for name, needs in methods.items() if needs is wanted]
        for wanted in (False, True)
    )
    return (
        f"how to select. Without labels: {_either(free)}; with the calibration images' "
        f"labels: {_either(labelled)}, or sglp, which removes whole branches and keeps "
        "the share --keep of them; default: ispasp"
    )


def _either(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
