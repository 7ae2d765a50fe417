"""JSON that somebody else may have written."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from ispasp_jax.errors import InputError

#: Bytes of the longest file that is read.
LONGEST = 2**24


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


def read(path: Path) -> Any:
    """What a file holds.

    Raises:
      OSError: it cannot be read.
      InputError: it is not JSON, or too long.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError("not JSON: it is no file")
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except ValueError as error:  # a zero byte in the path
        raise OSError(errno.EINVAL, str(error)) from error
    if len(content) > LONGEST:
        raise InputError(f"not JSON: longer than {LONGEST} bytes")
    try:
        return parse(content.decode())
    except UnicodeDecodeError:
        raise InputError("not JSON: not even text") from None
