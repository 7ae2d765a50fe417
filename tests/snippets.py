"""Runs what the documents show: the Python blocks of a page, in order, with one set of
names; a block of plain text right behind one is what it prints, word for word.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```$)?", re.S | re.M
)


class Snippet(NamedTuple):
    """A block of a page.

    Attributes:
      code: what stands there.
      printed: what it is said to print; None where nothing is said.
      line: where it begins.
    """

    code: str
    printed: str | None
    line: int


def snippets(page: str) -> list[Snippet]:
    """The blocks of a page, by its path in the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Snippet(found["code"], found["printed"], text.count("\n", 0, found.start()) + 2)
        for found in _BLOCK.finditer(text)
    ]


def run(page: str) -> dict:
    """Runs a page's blocks; the names that they leave.

    Raises:
      AssertionError: one prints something else than the page says.
    """
    names = {"__name__": "page"}
    for snippet in snippets(page):
        said = io.StringIO()
        # Blank lines in front, so that a traceback names the page's line.
        code = "\n" * (snippet.line - 1) + snippet.code
        with contextlib.redirect_stdout(said):
            exec(compile(code, page, "exec"), names)
        printed, shown = said.getvalue().strip(), (snippet.printed or "").strip()
        if snippet.printed is not None and printed != shown:
            raise AssertionError(
                f"{page}, line {snippet.line}, prints\n{printed}\nand not\n{shown}"
            )
    return names
