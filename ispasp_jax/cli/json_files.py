"""JSON files, read whatever they hold, and the text of those that are written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ispasp_jax.errors import InputError
from ispasp_jax.json_text import parse

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


def dump(content: Any) -> str:
    """The text of a file."""
    return json.dumps(content, indent=1) + "\n"
