"""What becomes of a run of several processes that loses one of them.

Where that happens, the libraries below jax end a process from C++, with a stack trace
and no way to be asked first. So each process of such a run is two: the command itself,
whose own words go where they always go, and above it one that waits, holds back what
C++ says, and has the last word. Imports nothing slow.
"""

import contextlib
import os
import re
import signal
import sys
import threading

from ispasp_jax.cli.config import Run

#: The exit code where another process of the run was lost.
LOST = 3

#: How long a command that failed takes leave of the other processes.
_SECONDS_TO_LEAVE = 5

_SENTENCE = (
    "--distributed: another process of this run has ended or cannot be reached, so "
    "this one ends, too; see what that one said, then start all of them again, with "
    "--resume to go on from what is finished."
)

#: What jax and the libraries below it say of a connection to another process.
_OF_PEERS = re.compile(
    r"gloo|nccl|coordination|distributed service|heartbeat|socket closed|"
    r"connection (closed|reset|refused)|barrier|\bpeer\b",
    re.IGNORECASE,
)

#: Where the command says how it ended; None where nobody waits for it.
_told: int | None = None


def guard(run: Run) -> None:
    """Splits the process where --distributed was given: the command goes on in the new
    one, and the old one exits as it does, or with LOST and a sentence.

    Call it before jax is loaded, whose threads would not survive.
    """
    if not run.distributed or not hasattr(os, "fork") or "jax" in sys.modules:
        return
    foreign, told, alive = os.pipe(), os.pipe(), os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    command = os.fork()
    if command == 0:
        _begin(foreign, told, alive)
        return
    for end in (foreign[1], told[1], alive[0]):
        os.close(end)
    os._exit(_wait(command, foreign[0], told[0]))


def tell(code: int) -> None:
    """Says how the command ended; leaving the other processes may still fail."""
    if _told is not None:
        os.write(_told, bytes([code]))


def is_loss(error: BaseException) -> bool:
    """Whether an error of jax says that another process cannot be reached."""
    text = str(error)
    from_below = re.match("[A-Z_]+: ", text)  # a status code, whatever Python type
    return _told is not None and bool(from_below and _OF_PEERS.search(text))


def say_loss() -> int:
    """Says that another process is lost; the exit code."""
    print(_SENTENCE, file=sys.stderr)
    return LOST


def _begin(foreign, told, alive) -> None:
    """The command's process: Python writes where it did, C++ into `foreign`."""
    global _told
    os.setpgid(0, 0)  # Ctrl-C reaches it once, by way of the process above
    for end in (foreign[0], told[0], alive[1]):
        os.close(end)
    _told = told[1]
    for name, number in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        own = os.fdopen(
            os.dup(number),
            "w",
            buffering=1 if number == 2 else -1,
            encoding=before.encoding,
            errors=before.errors,
        )
        setattr(sys, name, own)
        os.dup2(foreign[1], number)
    os.close(foreign[1])

    def end_with_the_process_above():
        os.read(alive[0], 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end_with_the_process_above, daemon=True).start()


def _wait(command: int, foreign: int, told: int) -> int:
    """Waits for the command's process; the exit code of both."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, _: _signal(command, number))
    said, ended = bytearray(), bytearray()

    def hold():
        while more := os.read(foreign, 2**16):
            said.extend(more)
            del said[: -(2**16)]

    def listen():
        ended.extend(os.read(told, 1))
        if ended and ended[0]:  # it failed: the others need not be waited for long
            seconds = 0 if ended[0] == LOST else _SECONDS_TO_LEAVE
            timer = threading.Timer(seconds, _signal, (command,))
            timer.daemon = True
            timer.start()

    threads = [threading.Thread(target=each, daemon=True) for each in (hold, listen)]
    for thread in threads:
        thread.start()
    _, status = os.waitpid(command, 0)
    for thread in threads:
        thread.join(1)
    if ended:  # what came after was leave-taking
        return ended[0]
    words = said.decode(errors="replace")
    if _OF_PEERS.search(words):
        return say_loss()
    sys.stderr.write(words)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _signal(process: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
