"""Over a whole dimension, or windows of it."""

from ispasp_jax.graph.atoms import POSITIONS, freeze, is_position, join
from ispasp_jax.graph.program import Equation
from ispasp_jax.graph.rules.rule import equal, fixed, remaining, rule, same


@rule(
    *("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or").split(),
    *("reduce_xor argmax argmin").split(),
)
def reduction(eqn: Equation) -> None:
    axes = {*map(int, eqn.params["axes"])}  # numpy's, at times
    for operand in eqn.inputs:
        fixed(eqn, [operand.dims[a] for a in axes], "goes over it", False)
    remaining(eqn, axes)


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(eqn: Equation) -> None:
    same(eqn, eqn.inputs[0], eqn.outputs[0])
    fixed(eqn, [eqn.inputs[0].dims[eqn.params["axis"]]], "goes over it", False)


@rule("sort")
def sort(eqn: Equation) -> None:
    for a, b in zip(eqn.inputs, eqn.outputs, strict=True):
        same(eqn, a, b)
        same(eqn, eqn.inputs[0], a)
        fixed(eqn, [a.dims[eqn.params["dimension"]]], "orders it")


@rule("top_k")
def top_k(eqn: Equation) -> None:
    operand = eqn.inputs[0]
    fixed(eqn, [operand.dims[-1]], "chooses from it")
    for out in eqn.outputs:
        for x, y in zip(operand.dims[:-1], out.dims[:-1], strict=True):
            join(x, y, eqn.where)
        fixed(eqn, [out.dims[-1]], "chooses")


@rule("fft")
def fft(eqn: Equation) -> None:
    """Mixes its last dimensions."""
    operand, out = eqn.inputs[0].dims, eqn.outputs[0].dims
    mixed = len(operand) - len(eqn.params["fft_lengths"])
    fixed(eqn, (*operand[mixed:], *out[mixed:]), "mixes it")
    for x, y in zip(operand[:mixed], out[:mixed], strict=True):
        join(x, y, eqn.where)


@rule(
    *("reduce_window_max reduce_window_min reduce_window_sum reduce_window").split(),
    *("select_and_scatter_add select_and_gather_add").split(),
)
def window(eqn: Equation) -> None:
    """Dimensions with a window of one place pass through."""
    sizes = eqn.params["window_dimensions"]
    arrays = [v for v in (*eqn.inputs, *eqn.outputs) if len(v.dims) == len(sizes)]
    for place, side in enumerate(sizes):
        atoms = [value.dims[place] for value in arrays]
        if side == 1 and all(equal(a.size, atoms[0].size) for a in atoms):
            for atom in atoms[1:]:
                join(atoms[0], atom, eqn.where)
        elif any(is_position(atom) for atom in atoms):
            for atom in atoms:
                freeze(atom, POSITIONS, shape=True)
        else:
            fixed(eqn, atoms, "slides over it")
