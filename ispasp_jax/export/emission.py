"""An ONNX graph as it grows: what every value of the program is there.

A tensor may lie otherwise than the program has it. Its axes may be stored in another
order (a convolution gives NCHW), and axes along which it repeats may be stored once:
rules ask for what they need, and only then a Transpose or an Expand is written.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ispasp_jax.errors import InputError
from ispasp_jax.graph.program import Equation, Value


class Batch(NamedTuple):
    """A size that grows with the batch n: times · n + plus."""

    times: int
    plus: int


#: A dimension: a number, or one that grows with the batch.
Size = int | Batch


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value of the program in the ONNX graph.

    Attributes:
      name: of what holds it; None for a constant that no node has asked for.
      shape: as the program has it.
      order: which of the program's axes each stored one is.
      thin: the program's axes that are stored with size 1, and repeat.
      array: of a constant, as stored.
    """

    name: str | None
    shape: tuple[Size, ...]
    order: tuple[int, ...]
    thin: frozenset[int] = frozenset()
    array: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def straight(self) -> bool:
        """Whether the axes are stored as the program has them."""
        return self.order == tuple(range(self.rank))

    def stored(self, axis: int) -> int:
        """Where an axis of the program is stored."""
        return self.order.index(axis)


class Step(NamedTuple):
    """An equation, traced for a batch of two and for one of three."""

    eqn: Equation
    twin: Equation

    @property
    def params(self) -> dict[str, Any]:
        return self.eqn.params

    @property
    def shape(self) -> tuple[Size, ...]:
        """Of its first output."""
        return sizes(self.eqn.outputs[0].shape, self.twin.outputs[0].shape)

    @property
    def dtype(self) -> np.dtype:
        """Of its first output."""
        return np.dtype(self.eqn.outputs[0].aval.dtype)

    def both(self, name: str) -> tuple[Size, ...]:
        """A parameter that is a row of sizes."""
        return sizes(self.eqn.params[name], self.twin.params[name])


def sizes(two: Sequence[int], three: Sequence[int]) -> tuple[Size, ...]:
    """Sizes for every batch, from those of two and of three examples."""
    return tuple(
        int(a) if a == b else Batch(int(b - a), int(3 * a - 2 * b))
        for a, b in zip(two, three, strict=True)
    )


class Node(NamedTuple):
    """A node of the graph: operator, what it reads and gives, its attributes."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


class Emission:
    """What is written so far.

    Attributes:
      nodes: in order.
      initializers: constants by name.
    """

    #: Smaller constants are written once where they are equal.
    SMALL = 64

    def __init__(self, batch_input: str):
        self.nodes: list[Node] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._tensors: dict[Value, Tensor] = {}
        self._batch_input = batch_input
        self._labels: dict[int, tuple[np.ndarray, str]] = {}
        self._made: dict[tuple, str] = {}
        self._count = 0

    def __contains__(self, value: Value) -> bool:
        return value in self._tensors

    def set(self, value: Value, tensor: Tensor) -> None:
        self._tensors[value] = tensor

    def get(self, value: Value) -> Tensor:
        """What a value is, however it lies."""
        return self._tensors[value]

    def constant(self, array: Any, label: str | None = None) -> Tensor:
        """A constant, straight."""
        array = np.asarray(array)
        shape = tuple(array.shape)
        tensor = Tensor(None, shape, tuple(range(array.ndim)), frozenset(), array)
        if label is not None:
            self._labels[id(array)] = array, label
        return tensor

    def name(self, tensor: Tensor) -> str:
        """The name of what holds a tensor, as it lies."""
        if tensor.name is not None:
            return tensor.name
        array = tensor.array
        assert array is not None
        return self.initializer(array, self._label(array))

    def _label(self, array: np.ndarray) -> str | None:
        return self._labels.get(id(array), (None, None))[1]

    def initializer(self, array: np.ndarray, label: str | None = None) -> str:
        """A constant's name; equal small ones are written once."""
        key = None
        if array.size <= self.SMALL:
            key = ("constant", array.dtype.str, array.shape, array.tobytes())
            if key in self._made:
                return self._made[key]
        name = label if label and label not in self.initializers else self.fresh("c")
        self.initializers[name] = np.ascontiguousarray(array).reshape(array.shape)
        if key is not None:
            self._made[key] = name
        return name

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Writes a node, and gives the name of its output; the same twice is one."""
        given = {k: v for k, v in attributes.items() if v is not None}
        key = (operator, inputs, repr(sorted(given.items())))
        if key not in self._made:
            made = self.fresh(operator.lower())
            self.nodes.append(Node(operator, inputs, made, given))
            self._made[key] = made
        return self._made[key]

    # What rules ask for.

    def laid(self, value: Value | Tensor, order: Iterable[int]) -> Tensor:
        """A value with its axes stored in this order."""
        tensor, order = self._of(value), tuple(order)
        if tensor.order == order:
            return tensor
        steps = tuple(tensor.stored(axis) for axis in order)
        if tensor.array is not None:
            array = tensor.array.transpose(steps)
            if label := self._label(tensor.array):
                self._labels[id(array)] = array, label
            return dataclasses.replace(tensor, order=order, array=array)
        name = self.node("Transpose", self.name(tensor), perm=list(steps))
        return dataclasses.replace(tensor, order=order, name=name)

    def whole(self, value: Value | Tensor, axes: Iterable[int] | None = None) -> Tensor:
        """A value that is stored at full size along these axes, or all."""
        tensor = self._of(value)
        wanted = tensor.thin if axes is None else tensor.thin & frozenset(axes)
        if not wanted:
            return tensor
        stored = tuple(
            1 if axis in tensor.thin - wanted else tensor.shape[axis]
            for axis in tensor.order
        )
        if tensor.array is not None and all(isinstance(s, int) for s in stored):
            array = np.broadcast_to(tensor.array, stored)  # type: ignore[arg-type]
            return dataclasses.replace(tensor, thin=tensor.thin - wanted, array=array)
        name = self.node("Expand", self.name(tensor), self.shape(stored))
        return dataclasses.replace(
            tensor, thin=tensor.thin - wanted, name=name, array=None
        )

    def straight(self, value: Value | Tensor) -> Tensor:
        """A value as the program has it."""
        tensor = self._of(value)
        return self.laid(self.whole(tensor), range(tensor.rank))

    def as_it_is(self, value: Value | Tensor) -> str:
        """The name of a value as the program has it."""
        return self.name(self.straight(value))

    def made(
        self,
        operator: str,
        *inputs: str,
        shape: tuple[Size, ...],
        order: Iterable[int] | None = None,
        thin: Iterable[int] = (),
        **attributes: Any,
    ) -> Tensor:
        """Writes a node whose output is this tensor."""
        name = self.node(operator, *inputs, **attributes)
        lies = tuple(range(len(shape)) if order is None else order)
        return Tensor(name, shape, lies, frozenset(thin))

    def ints(self, *numbers: int) -> str:
        """A row of integers."""
        return self.initializer(np.asarray(numbers, np.int64).reshape(len(numbers)))

    def shape(self, shape: Sequence[Size]) -> str:
        """A shape as a tensor, whatever the batch is."""
        if all(isinstance(size, int) for size in shape):
            return self.ints(*shape)  # type: ignore[arg-type]
        parts, run = [], []
        for size in shape:
            if isinstance(size, int):
                run.append(size)
                continue
            if run:
                parts.append(self.ints(*run))
                run = []
            parts.append(self._size(size))
        if run:
            parts.append(self.ints(*run))
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def reshape(self, value: Value | Tensor, shape: tuple[Size, ...]) -> Tensor:
        """A straight value in another shape."""
        tensor = self.straight(value)
        if tensor.array is not None and all(isinstance(s, int) for s in shape):
            return self.constant(tensor.array.reshape(shape))  # type: ignore[arg-type]
        free = [place for place, size in enumerate(shape) if isinstance(size, Batch)]
        if len(free) == 1:
            asked = self.ints(*(-1 if isinstance(s, Batch) else s for s in shape))
        else:
            asked = self.shape(shape)
        return self.made("Reshape", self.name(tensor), asked, shape=shape)

    def _size(self, size: Batch) -> str:
        """A size of the batch, as a row of one."""
        shape = self.node("Shape", self._batch_input)
        result = self.node("Gather", shape, self.ints(0), axis=0)
        if size.times != 1:
            result = self.node("Mul", result, self.ints(size.times))
        if size.plus:
            result = self.node("Add", result, self.ints(size.plus))
        return result

    def _of(self, value: Value | Tensor) -> Tensor:
        return value if isinstance(value, Tensor) else self._tensors[value]


#: Writes what an equation computes: its outputs' tensors.
Rule = Callable[[Emission, Step], Tensor | Sequence[Tensor]]

#: How each primitive is written.
EMITTERS: dict[str, Rule] = {}


def emits(*names: str) -> Callable[[Rule], Rule]:
    """Puts a rule into the table that writes equations as ONNX operators.

        @emits("my_primitive")
        def _mine(out, step):
            x = out.as_it_is(step.eqn.inputs[0])
            return out.made("Relu", x, shape=step.shape)

    Args:
      *names: of the primitives that it writes; one that is there is replaced.

    Returns:
      What takes the rule, a function of what is written so far and of the step, and
      gives it back.
    """

    def put(write: Rule) -> Rule:
        EMITTERS.update(dict.fromkeys(names, write))
        return write

    return put


def emit(out: Emission, step: Step) -> None:
    """Writes one step.

    Raises:
      InputError: no rule knows its primitive.
    """
    write = EMITTERS.get(step.eqn.name)
    if write is None:
        raise refused(step, "no rule writes it; `ispasp_jax.export.emits` adds one")
    made = write(out, step)
    tensors = [made] if isinstance(made, Tensor) else made
    for value, tensor in zip(step.eqn.outputs, tensors, strict=True):
        out.set(value, tensor)


def refused(step: Step, why: str) -> InputError:
    """A step that cannot be written."""
    return InputError(f"{step.eqn.where} cannot be written as ONNX: {why}.")
