"""JSON files: read whatever they hold, written whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ispasp_jax.errors import InputError

T = TypeVar("T")


def read(path: Path, expected: str, check: Callable[[Any], T] = lambda data: data) -> T:
    """What `check` makes of what a file holds.

    Args:
      path: the file, with what the sentence is to call it.
      expected: the end of the sentence: what was expected.
      check: raises InputError where it is not that.

    Raises:
      InputError: it cannot be read, is not JSON, or `check` raised.
    """
    try:
        return check(parse(path.read_text()))
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        why = "is not JSON (not even text)"
    except InputError as error:
        why = f"is {error}".removesuffix(".")
    raise InputError(f"{path} {why}; expected {expected}.")


def parse(text: str) -> Any:
    """What a text holds.

    Raises:
      InputError: it is not JSON; NaN and infinity are not, and neither is what is
        nested deeper than anyone writes.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"not JSON: {why}") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def dump(content: Any) -> str:
    """The text of a file."""
    return json.dumps(content, indent=1) + "\n"


def put(path: Path, text: str) -> None:
    """Writes a text, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)
