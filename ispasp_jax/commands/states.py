"""Training states in a run's folder: the last one, and the fingerprint that it has to
have when training goes on from it.
"""

import shutil
from typing import Any

from ispasp_jax import checkpoints, devices
from ispasp_jax.commands import content
from ispasp_jax.commands.workspace import Workspace
from ispasp_jax.report import say

_FOLDER, _SUMS = "states", "states.json"


class Keeper:
    """Keeps the states of one training.

    Attributes:
      work: whose folder they are in.
      label: what is trained.
    """

    def __init__(self, work: Workspace, label: str):
        self.work, self.label = work, label
        self._states = checkpoints.States(work.path(_FOLDER))

    def latest(self, like: Any, steps: int) -> Any | None:
        """The state to go on from; None, and why, where training starts at epoch 1.

        Args:
          like: a state of the same structure and shapes.
          steps: of an epoch.
        """
        state, why = self._read(like)
        if devices.agree(state is not None):
            say(f"{self.label}: resuming after epoch {int(state.step) // steps}")
            return state
        say(f"{self.label}: starting at epoch 1, since {why}")
        self._states.close()
        if devices.is_first():  # a later state would keep an earlier one out
            shutil.rmtree(self.work.path(_FOLDER), ignore_errors=True)
        devices.barrier("no states")
        self._states = checkpoints.States(self.work.path(_FOLDER))
        return None

    def _read(self, like: Any) -> tuple[Any | None, str]:
        try:
            state = self._states.latest(like)
        except Exception:  # whatever Orbax raises on a damaged file
            return None, "the state that was kept cannot be read"
        if state is None:
            return None, "the stopped run had not kept a state of it yet"
        if content.of_tree(state) not in (self.work.read(_SUMS) or []):
            return None, "the state that was kept is damaged"
        return state, ""

    def save(self, epoch: int, state: Any) -> None:
        """Keeps a state; the one before goes.

        Raises:
          OSError: the disk is full, or does not take it for another reason.
        """
        before = self.work.read(_SUMS) or []
        self.work.write(_SUMS, [content.of_tree(state), *before[:1]])
        try:
            self._states.save(epoch, state)
        except (ValueError, RuntimeError) as error:  # Orbax's words for a full disk
            first = str(error).partition("\n")[0]
            raise OSError(f"{self.work.folder / _FOLDER}: {first}") from error

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._states.close()
