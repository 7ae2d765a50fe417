"""What the site shows of the rest of the repository, made when it is built, so that
nothing is written twice: pages that are files elsewhere, the commands' flags from their
parsers, the criteria from their docstrings.
"""

import argparse
import inspect
import posixpath
import re
from pathlib import Path

from ispasp_jax.cli import compare, export, prune_flags, train
from ispasp_jax.selection.criteria import CRITERIA

ROOT = Path(__file__).parents[1]

#: Files that are pages -> their names on the site.
PAGES = {
    "README.md": "index.md",
    "benchmarks/README.md": "measured.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
PICTURES = "benchmarks/results/"

#: A page's mark -> what stands in its place.
MARKS = {
    "<!-- train.py -->": lambda: flags(train.parser()),
    "<!-- prune.py -->": lambda: flags(prune_flags.parser()),
    "<!-- ispasp-export -->": lambda: flags(export.parser()),
    "<!-- ispasp-compare -->": lambda: flags(compare.parser()),
    "<!-- criteria -->": lambda: criteria(),
}


def flags(parser: argparse.ArgumentParser) -> str:
    """A table of a command's flags for each of its groups, in Markdown."""
    formatter, parts = parser._get_formatter(), []
    groups = [group for group in parser._action_groups if group._group_actions]
    others = parser._optionals
    for group in sorted(groups, key=lambda group: group is others):
        lines = [
            f"| {_called(action)} | {_cell(formatter._expand_help(action))} |"
            for action in group._group_actions
            if action.option_strings != ["-h", "--help"]
        ]
        title = "other" if group is others else group.title
        parts.append("\n".join([f"**{title}**\n\n| flag | |\n|---|---|", *lines]))
    return "\n\n".join(parts)


def _called(action: argparse.Action) -> str:
    value = action.metavar or "|".join(action.choices or ())
    if not value and action.nargs != 0:
        value = action.dest.upper()
    value = {"+": f"{value} ...", "?": f"[{value}]"}.get(action.nargs, value)
    names = action.option_strings[-1:]  # of what stands alone, its value is its name
    called = " ".join([*names, value or ""]).strip()
    return f"<code>{_cell(called)}</code>"


def _cell(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "&#124;").replace("*", "&#42;")


def criteria() -> str:
    """Every criterion with its options, its docstring and what it asks for."""
    parts = []
    for name, make in CRITERIA.items():
        asked = ", ".join(f"`{field}`" for field in sorted(make().needs))
        labels = ", so for labelled images" if make().labels else ""
        parts.append(
            f"### {name}\n\n`criteria.{name}{inspect.signature(make)}`\n\n"
            f"{inspect.cleandoc(make.__doc__)}\n\n"
            f"Asks for {asked}{labels}."
        )
    return "\n\n".join(parts)


def page(source: str) -> str:
    """A file's text as a page of the site."""
    return linked((ROOT / source).read_text(encoding="utf-8"), source)


def linked(text: str, source: str) -> str:
    """The text of a file with links that lead to the site's pages.

    Raises:
      ValueError: it links to what is no page.
    """

    def link(found: re.Match) -> str:
        target, hash_, anchor = found[2].partition("#")
        if not target or "://" in target:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in PAGES:
            path = PAGES[path]
        elif path.startswith(PICTURES):
            path = path.removeprefix("benchmarks/")
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        else:
            raise ValueError(f"{source} links to {target}, which is not on the site.")
        return f"{found[1]}({path}{hash_}{anchor})"

    return re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", link, text)


def filled(markdown: str) -> str:
    """A page with what its marks stand for."""
    for mark, make in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def on_files(files, config):
    """Adds the pages and pictures that lie outside docs/; called by mkdocs."""
    from mkdocs.structure.files import File

    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=page(source)))
    for picture in sorted((ROOT / PICTURES).glob("*.png")):
        name = f"results/{picture.name}"
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, **_):
    """Fills a page's marks; called by mkdocs."""
    return filled(markdown)
