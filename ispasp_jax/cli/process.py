"""How a command begins and ends: exit codes, signals. Imports nothing slow."""

import _thread
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence

from ispasp_jax.cli import peers
from ispasp_jax.errors import InputError


def run(command: Callable[[Sequence[str] | None], None], argv=None) -> int:
    """Runs a command; its exit code: 0 done, 2 bad input, 130 interrupted, and with
    --distributed 3 where another process was lost.
    """
    if argv is None and not sys.warnoptions:
        _quieten()
    code = 1  # of a traceback
    try:
        code = _ended(command, argv)
    finally:
        peers.tell(code)
    return code


def _quieten() -> None:
    """Leaves the terminal to this project's words: the notices and warnings of the
    libraries below are not said, their errors are. `python -W default` has them back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of jaxlib's and others' C++
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _ended(command: Callable[[Sequence[str] | None], None], argv) -> int:
    path = list(sys.path)
    try:
        with _terminable():
            command(argv)
    except InputError as error:
        kept = type(error) is InputError and _resumable(error)
        after = " What was finished is kept: --resume goes on from there."
        print(f"{error}{after if kept else ''}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        after = "; --resume then goes on from here" if _resumable(error) else ""
        print(f"{what}; give another place, or mend it{after}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        after = "--resume goes on from here"
        after = after if _resumable(error) else "nothing was finished yet"
        print(f"interrupted; {after}", file=sys.stderr)
        if argv is None:  # a program that was interrupted in XLA may crash at its end
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        return 130
    except Exception as error:
        if not peers.is_loss(error):
            raise
        return peers.say_loss()
    finally:
        sys.path[:] = path
    return 0


def _resumable(error: BaseException) -> bool:
    """Whether the place that the error came from has something to go on from."""
    return bool(getattr(error, "__notes__", ()))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Answers SIGTERM as Ctrl-C, where signals are answered at all, and Ctrl-C where
    Python drops it: raised in a destructor or a library's callback it would be lost.
    """
    before, hook = answer_termination(), sys.unraisablehook

    def unraisable(dropped):
        if dropped.exc_type is KeyboardInterrupt:
            # Not here, where it would be dropped again.
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            hook(dropped)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def answer_termination():
    """Lets SIGTERM interrupt this process from now on; what answered it before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, signal.default_int_handler)


def find_own(model: str) -> None:
    """Lets package.module:function be found in the present folder, too, after all
    other places, until the command ends.
    """
    if ":" in model:
        sys.path.append(os.getcwd())


def load(*modules: str) -> None:
    """Imports what a command needs. An interrupt in the middle of an import may end as
    another error, so here it ends the process; nothing has been written yet.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda *_: os._exit(130)) for each in signals]
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        for each, answer in zip(signals, before, strict=True):
            signal.signal(each, answer)
