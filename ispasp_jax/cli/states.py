"""Training states in a run's folder, and why training starts at epoch 1 if it does."""

import shutil
from typing import Any

from ispasp_jax import devices
from ispasp_jax.cli.workspace import Workspace
from ispasp_jax.errors import InputError
from ispasp_jax.report import say
from ispasp_jax.training import States

_FOLDER = "states"


class Keeper:
    """Keeps the last state of one training; the first process writes.

    Attributes:
      work: whose folder it is in.
      label: what is trained.
    """

    def __init__(self, work: Workspace, label: str):
        self.work, self.label = work, label

    def latest(self, like: Any, steps: int) -> Any | None:
        """The state to go on from; None, and why, where training starts at epoch 1.

        Args:
          like: a state of the same structure and shapes.
          steps: of an epoch.
        """
        why = "the stopped run had not kept a state of it yet"
        try:
            state = States(self.work.path(_FOLDER)).latest(like)
        except InputError as error:
            state, why = None, str(error).removesuffix(".")
        if devices.agree(state is not None):
            assert state is not None  # the processes read the same files
            say(f"{self.label}: resuming after epoch {int(state.step) // steps}")
            return state
        say(f"{self.label}: starting at epoch 1, since {why}")
        if devices.is_first():  # a later state would outlive those to come
            shutil.rmtree(self.work.path(_FOLDER), ignore_errors=True)
        return None

    def save(self, epoch: int, state: Any) -> None:
        """Keeps a state; the one before goes."""
        if devices.is_first():
            States(self.work.path(_FOLDER)).save(epoch, state)
