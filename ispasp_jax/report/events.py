"""What happens in a run, as those who listen hear it.

note    text
begin   stage, depth (0; more where a stage is inside another), done, total
step    as begin, and seconds, left: seconds to the end, or None
end     as step
epoch   stage, epoch (from 1), epochs, loss
score   stage, top1, loss, seconds
plan    of a dry run: model, data, input, num_classes, groups, budget, dense, pruned
report  as report.json, and out: its folder
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal["note", "begin", "step", "end", "epoch", "score", "plan", "report"]


class Event(NamedTuple):
    """Something that happened.

    Attributes:
      kind: one of the list above.
      values: what it has there, by name.
    """

    kind: Kind
    values: Mapping[str, Any]


#: Called with every event, in order: prints it, draws it, keeps it.
Listener = Callable[[Event], None]
