"""Who hears what a command does, as its flags say."""

import contextlib
from collections.abc import Iterator

from ispasp_jax import report
from ispasp_jax.cli.config import Run
from ispasp_jax.report import listeners


@contextlib.contextmanager
def audience(run: Run) -> Iterator[None]:
    """Inside it, those listen that --quiet, --json and --logdir ask for.

    Raises:
      InputError: --logdir is given, and the extra [tensorboard] not installed.
    """
    with contextlib.ExitStack() as stack:
        if run.json:
            hearers = [listeners.json_lines()]
        elif run.quiet:
            hearers = [listeners.tables()]
        else:
            hearers = [listeners.words(), listeners.tables()]
        if run.logdir is not None:
            hearers.append(stack.enter_context(listeners.scalars(run.logdir)))
        stack.enter_context(report.audience(*hearers))
        yield
