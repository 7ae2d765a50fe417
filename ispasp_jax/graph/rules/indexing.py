"""Places that are told by numbers."""

from ispasp_jax.graph.atoms import Size, join
from ispasp_jax.graph.program import Equation
from ispasp_jax.graph.rules.rule import Sizes, equal, fixed, matched, rule, same, shape


@rule("gather", narrow=lambda eqn, size: {"slice_sizes": _slice_sizes(eqn, size)})
def gather(eqn: Equation) -> None:
    """Rows of a table, as an embedding reads them; whole other dimensions pass."""
    numbers = eqn.params["dimension_numbers"]
    (operand, indices), out = eqn.inputs, eqn.outputs[0].dims
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    gone = (*numbers.collapsed_slice_dims, *batching)
    fixed(eqn, [operand.dims[d] for d in gone], "reads places of it")
    windows = [d for d in range(len(operand.dims)) if d not in gone]
    for place, d in zip(numbers.offset_dims, windows, strict=True):
        matched(eqn, operand.dims[d], out[place], "reads a part of it")
    rest = [a for place, a in enumerate(out) if place not in numbers.offset_dims]
    for x, y in zip(indices.dims[:-1], rest, strict=True):
        join(x, y, eqn.where)


def _slice_sizes(eqn: Equation, size: Sizes) -> tuple[Size, ...]:
    pairs = zip(eqn.params["slice_sizes"], eqn.inputs[0].dims, strict=True)
    return tuple(size(a) if equal(s, a.size) else s for s, a in pairs)


@rule(*"scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max".split())
def scatter(eqn: Equation) -> None:
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = eqn.inputs
    same(eqn, operand, eqn.outputs[0])
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    gone = (*numbers.inserted_window_dims, *batching)
    fixed(eqn, [operand.dims[d] for d in gone], "writes places of it")
    windows = [d for d in range(len(operand.dims)) if d not in gone]
    for place, d in zip(numbers.update_window_dims, windows, strict=True):
        matched(eqn, operand.dims[d], updates.dims[place], "writes a part of it")
    rest = [
        a
        for place, a in enumerate(updates.dims)
        if place not in numbers.update_window_dims
    ]
    for x, y in zip(indices.dims[:-1], rest, strict=True):
        join(x, y, eqn.where)


@rule(
    "dynamic_slice",
    narrow=lambda eqn, size: {"slice_sizes": shape(eqn.outputs[0], size)},
)
def dynamic_slice(eqn: Equation) -> None:
    for x, y in zip(eqn.inputs[0].dims, eqn.outputs[0].dims, strict=True):
        matched(eqn, x, y, "reads a part of it")


@rule("dynamic_update_slice")
def dynamic_update_slice(eqn: Equation) -> None:
    operand, update = eqn.inputs[:2]
    same(eqn, operand, eqn.outputs[0])
    for x, y in zip(operand.dims, update.dims, strict=True):
        matched(eqn, x, y, "writes a part of it")
