"""A network as an ONNX file: its equations, one rule a primitive, checked by running.

What depends on the variables alone is computed here and written as a constant, under
the variable's key path where it is one. The batch may have any size.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import files
from ispasp_jax.errors import InputError
from ispasp_jax.export import arithmetic, contractions, examples, shapes
from ispasp_jax.export.emission import (
    Emission,
    Node,
    Size,
    Step,
    Tensor,
    emit,
    sizes,
)
from ispasp_jax.export.equations import equations, sized
from ispasp_jax.graph.program import Program, Value
from ispasp_jax.graph.trees import key_path

#: Of the operators: ReduceSum and Pad take their axes and pads as inputs.
OPSET = 18
#: The version of the format that goes with it; older runtimes refuse newer ones.
IR_VERSION = 8
#: A message of protobuf holds no more; then the constants lie in a file beside it.
LIMIT = 2**31 - 2**20

_RULES = (arithmetic, contractions, shapes)  # what fills the table


class Written(NamedTuple):
    """An ONNX file.

    Attributes:
      path: where it lies.
      nodes: how many operators it has.
      largest_difference: of its outputs to the network's in JAX, on random inputs, as a
        share of the largest output.
    """

    path: Path
    nodes: int
    largest_difference: float


def write(
    function: Callable[..., Any],
    variables: Any,
    inputs: Sequence[Any],
    path: str | os.PathLike,
    tolerance: float = 1e-5,
) -> Written:
    """Writes a function of (variables, *inputs) as ONNX, and runs what it wrote.

    Args:
      function: the network, pure; its first output's first axis is the batch.
      variables: arrays.
      inputs: shapes and dtypes; the first axis of each is the batch.
      path: of the file; one that is there is replaced, or stays as it is.
      tolerance: the largest difference to the network in JAX that is accepted, as a
        share of its largest output.

    Raises:
      InputError: a primitive has no rule, the extra [onnx] is missing, or the file does
        not compute what the network does.
    """
    onnx, runtime = _libraries()
    emission, names, outputs = _emitted(function, variables, inputs)
    nodes = _needed(emission.nodes, outputs)
    model = _model(onnx, emission, nodes, names, inputs, outputs)
    path = Path(path)
    external = sum(a.nbytes for a in emission.initializers.values()) > LIMIT
    with files.new_file(path) as new:
        if external:
            _save_beside(onnx, model, new, path)
        else:
            new.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(new), full_check=True)
        run = _runner(runtime, new, names)
        largest = examples.check(
            jax.jit(function), variables, run, inputs, tolerance, "ONNX file"
        )
    return Written(path, len(nodes), largest)


def latencies(
    paths: Sequence[Path], inputs: Sequence[Any], batch_size: int, repeats: int = 9
) -> list[float]:
    """Median milliseconds of a batch of each file in onnxruntime, on the CPU; the files
    take turns, so that what else the machine does slows all of them alike.

    Args:
      paths: ONNX files, of the same inputs.
      inputs: shapes and dtypes.
      batch_size: examples a pass.
      repeats: how many passes are timed, after one that warms up.
    """
    _, runtime = _libraries()
    given = [examples.example(x, batch_size) for x in inputs]
    runners = [_runner(runtime, path, input_names(len(given))) for path in paths]
    rows = []
    for _ in range(repeats + 1):
        row = []
        for run in runners:
            start = time.perf_counter()
            run(*given)
            row.append(1e3 * (time.perf_counter() - start))
        rows.append(row)
    return [statistics.median(column) for column in zip(*rows[1:], strict=True)]


def _libraries():
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"writing ONNX needs the package {error.name}; run pip install "
            "'ispasp_jax[onnx]'."
        ) from error
    return onnx, onnxruntime


def _emitted(function, variables, inputs):
    """The equations written; names of the inputs, and of the outputs with what they
    hold."""
    two, three = (equations(function, variables, sized(inputs, n)) for n in (2, 3))
    count = len(jax.tree.leaves(variables))
    paths = [
        key_path(where) for where, _ in jax.tree_util.tree_leaves_with_path(variables)
    ]
    names = input_names(len(two.inputs) - count)
    out = Emission(names[0])
    for value, leaf, label in zip(
        two.inputs[:count], jax.tree.leaves(variables), paths, strict=True
    ):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            out.set(value, out.constant(np.asarray(leaf), label))
    for value, twin, name in zip(
        two.inputs[count:], three.inputs[count:], names, strict=True
    ):
        shape = sizes(value.shape, twin.shape)
        out.set(value, Tensor(name, shape, tuple(range(len(shape)))))
    _walk(out, two, three)
    result = {}
    for place, (value, twin) in enumerate(zip(two.outputs, three.outputs, strict=True)):
        label = "output" if len(two.outputs) == 1 else f"output_{place}"
        out.nodes.append(
            Node("Identity", (out.as_it_is(_held(out, value)),), label, {})
        )
        result[label] = value.aval.dtype, sizes(value.shape, twin.shape)
    return out, names, result


def input_names(count: int) -> list[str]:
    return ["input"] if count == 1 else [f"input_{place}" for place in range(count)]


def _walk(out: Emission, two: Program, three: Program) -> None:
    """Every equation, once: computed where it depends on no input, or written."""
    for constant in two.constants:
        out.set(constant, out.constant(constant.constant))
    for eqn, twin in zip(two.equations, three.equations, strict=True):
        step = Step(eqn, twin)
        tensors = [_held(out, value) for value in eqn.inputs]
        fixed = all(value.shape == other.shape for value, other in zip(
            (*eqn.inputs, *eqn.outputs), (*twin.inputs, *twin.outputs), strict=True
        ))  # fmt: skip
        known = all(t.array is not None and not t.thin for t in tensors)
        if fixed and known and not any(value.live for value in eqn.outputs):
            arrays = [out.straight(tensor).array for tensor in tensors]
            for value, array in zip(eqn.outputs, _computed(eqn, arrays), strict=True):
                out.set(value, out.constant(array))
            continue
        emit(out, step)


def _held(out: Emission, value: Value) -> Tensor:
    """A value's tensor; a literal becomes one when it is first read."""
    if value not in out and value.constant is not None:
        out.set(value, out.constant(value.constant))
    return out.get(value)


def _computed(eqn, arrays) -> Sequence[Any]:
    params = eqn.primitive.get_bind_params(eqn.params)
    made = eqn.primitive.bind(*(jnp.asarray(a) for a in arrays), **params)
    return made if eqn.primitive.multiple_results else [made]


def _model(onnx, out: Emission, nodes, names, inputs, outputs):
    """The whole as onnx has it."""
    helper = onnx.helper

    def kind(dtype) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def attribute(value):
        return kind(value) if isinstance(value, np.dtype) else value

    read = {name for node in nodes for name in node.inputs}
    graph = helper.make_graph(
        [
            helper.make_node(
                node.operator,
                node.inputs,
                [node.output],
                name=f"{place}",
                **{k: attribute(v) for k, v in node.attributes.items()},
            )
            for place, node in enumerate(nodes)
        ],
        "ispasp_jax",
        [
            helper.make_tensor_value_info(name, kind(x.dtype), ["batch", *x.shape[1:]])
            for name, x in zip(names, inputs, strict=True)
        ],
        [
            helper.make_tensor_value_info(name, kind(dtype), [*map(_dimension, shape)])
            for name, (dtype, shape) in outputs.items()
        ],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in out.initializers.items()
            if name in read
        ],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(
        graph,
        opset_imports=[opset],
        ir_version=IR_VERSION,
        producer_name="ispasp_jax",
    )


def _dimension(size: Size) -> int | str:
    if isinstance(size, int):
        return size
    times = "" if size.times == 1 else f"{size.times}*"
    return f"{times}batch{size.plus:+}" if size.plus else f"{times}batch"


def _save_beside(onnx, model, new: Path, path: Path) -> None:
    """Writes the constants to a file of their own: one message holds no more."""
    data = path.with_name(f"{path.name}.data")
    with files.new_file(data) as constants:
        onnx.save_model(
            model,
            new,
            save_as_external_data=True,
            location=constants.name,
            convert_attribute=False,
        )
    written = onnx.load(new, load_external_data=False)
    for tensor in written.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    new.write_bytes(written.SerializeToString())


def _runner(runtime, path: Path, names: Sequence[str]):
    """Runs the file, by name of its inputs."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _needed(nodes: Iterable[Node], outputs: Iterable[str]) -> list[Node]:
    """Nodes that something reads."""
    wanted, kept = {*outputs}, []
    for node in reversed([*nodes]):
        if node.output in wanted:
            wanted |= {*node.inputs}
            kept.append(node)
    return kept[::-1]
