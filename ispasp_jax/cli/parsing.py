"""argparse as the commands use it: one sentence for an error, every default told, the
name that the command was called by. Imports nothing slow.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ispasp_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Also takes --some_flag for --some-flag."""

    def __init__(self, script: str, installed: str, examples: Sequence[str], **options):
        """A parser of a command.

        Args:
          script: its file or `-m module`, as in `python script`.
          installed: its name where the package is installed.
          examples: what to write behind the name, one a line.
          **options: of ArgumentParser.
        """
        by_name = Path(sys.argv[0]).stem == installed
        called = installed if by_name else f"python {script}"
        lines = "\n".join(f"  {called} {example}" for example in examples)
        super().__init__(
            prog=called.removeprefix("python ") if script.endswith(".py") else called,
            formatter_class=_WithDefaults,
            epilog=f"examples:\n{lines}",
            **options,
        )

    # Narrower than the overloads above it: a namespace is never typed here.
    def parse_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        given = sys.argv[1:] if args is None else args
        return super().parse_args([_dashed(arg) for arg in given], namespace)

    def error(self, message):
        raise InputError(f"{message} (see {self.prog} --help).")


class _WithDefaults(argparse.RawDescriptionHelpFormatter):
    """Tells the defaults that are values; the others are told in the flags' words."""

    def _get_help_string(self, action):
        if action.default in (None, argparse.SUPPRESS):
            return action.help
        value = "off" if action.default is False else "%(default)s"
        return f"{action.help}; default: {value}"


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value
