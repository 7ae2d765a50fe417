"""One small rule a primitive: which dimensions carry the same channel, and how its
parameters read when dimensions are narrower.

A rule joins, refines and freezes the atoms of an equation's dimensions. Where the
equation's parameters hold shapes, the rule's `narrow` gives them anew. A user adds a
primitive by one function:

    @rule("my_primitive", narrow=lambda eqn, size: {"shape": shape(eqn.outputs[0],
    size)})
    def my_primitive(eqn):
        same(eqn, eqn.inputs[0], eqn.outputs[0])

An equation without a rule freezes what it touches.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ispasp_jax.graph.atoms import (
    POSITIONS,
    Atom,
    Size,
    freeze,
    is_position,
    join,
    product,
    total,
)
from ispasp_jax.graph.program import Equation, Value

#: The new size of an atom, called by `narrow` functions.
Sizes = Callable[[Atom], Size]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is known of a primitive.

    Attributes:
      join: changes the atoms of an equation's dimensions; called once an equation.
      narrow: the parameters that change with the sizes; called when it is evaluated.
    """

    join: Callable[[Equation], None]
    narrow: Callable[[Equation, Sizes], dict[str, Any]] | None = None


RULES: dict[str, Rule] = {}

#: Primitives whose output is made anew; all others change what was made before them.
MAKERS = frozenset({"dot_general", "conv_general_dilated", "gather"})


#: Affine in any one operand, if nothing else is live.
AFFINE = frozenset(
    """
    add add_any sub neg mul div copy convert_element_type reduce_precision reshape
    broadcast_in_dim squeeze transpose rev pad slice split concatenate reduce_sum
    reduce_window_sum cumsum gather dot_general conv_general_dilated device_put
    optimization_barrier sharding_constraint dynamic_slice real stop_gradient stack
    unstack name layout_constraint reshard
    """.split()
)
#: Of these, the ones that are affine in several operands together.
_JOINT = frozenset("add add_any sub concatenate optimization_barrier stack".split())


def is_affine(eqn: Equation) -> bool:
    """Whether what it gives is affine in what depends on the inputs."""
    live = [place for place, value in enumerate(eqn.inputs) if value.live]
    if not live:
        return True
    if eqn.name not in AFFINE or (eqn.name == "div" and 1 in live):
        return False
    return len(live) == 1 or eqn.name in _JOINT


class Contraction(NamedTuple):
    """What a dot or a convolution sums over: the memo of such an equation.

    Attributes:
      left: atoms of the first operand's dimensions that are summed over.
      right: of the second operand's.
      batch: dimensions of both that go side by side.
    """

    left: tuple[Atom, ...]
    right: tuple[Atom, ...]
    batch: tuple[Atom, ...] = ()


def rule(*names: str, narrow=None):
    """Registers the decorated function for primitives of these names."""

    def register(function):
        for name in names:
            RULES[name] = Rule(function, narrow)
        return function

    return register


def shape(value: Value, size: Sizes) -> tuple[Size, ...]:
    """The value's narrower shape."""
    return tuple(size(atom) for atom in value.dims)


def apply(equations: Iterable[Equation]) -> None:
    """Applies every equation's rule, in order, and says where values come from."""
    for eqn in equations:
        _describe(eqn)
        known = RULES.get(eqn.name)
        if known is None:
            unknown(eqn)
        else:
            known.join(eqn)


def _describe(eqn: Equation) -> None:
    live = [value for value in eqn.inputs if value.live]
    named = [value for value in eqn.inputs if value.origin]
    largest = max(named, key=lambda v: v.aval.size, default=None)
    makers = {id(value.maker): value.maker for value in live}
    mixes = eqn.name in MAKERS or len(makers) != 1
    for value in eqn.outputs:
        value.live = bool(live)
        value.maker = eqn if mixes else next(iter(makers.values()))
        value.origin = largest.origin if largest and not live else None


def unknown(eqn: Equation) -> None:
    """What nothing is known of: all that it touches stays as it is."""
    for value in (*eqn.inputs, *eqn.outputs):
        for atom in value.dims:
            freeze(atom, f"no rule for {eqn.where}", shape=True)


def same(eqn: Equation, a: Value, b: Value) -> None:
    """Joins two values of one shape, dimension by dimension."""
    for x, y in zip(a.dims, b.dims, strict=True):
        join(x, y, eqn.where)


def fixed(eqn: Equation, atoms: Iterable[Atom], why: str, in_shape=True) -> None:
    """Freezes atoms; `why` follows the equation's name."""
    for atom in atoms:
        freeze(atom, f"{eqn.where} {why}", in_shape)


def matched(eqn: Equation, a: Atom, b: Atom, why: str) -> None:
    """Joins atoms of equal size, a whole dimension; freezes them where only a part of
    one is read."""
    if a.size is b.size or bool(a.size == b.size):
        join(a, b, eqn.where)
    else:
        fixed(eqn, (a, b), why)


#: Place by place; a place of the output depends on that place of the inputs alone.
ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy cos
    cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a
    igammac imag integer_pow is_finite layout_constraint le lgamma log log1p logistic lt
    max mesh_cast min mul mulhi name ne neg nextafter not or polygamma population_count
    pow pvary real reduce_precision regularized_incomplete_beta rem reshard round rsqrt
    select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical
    sign sin sinh sqrt square stop_gradient sub tan tanh threefry2x32 xor zeta
""".split()


@rule(*ELEMENTWISE)
def elementwise(eqn: Equation) -> None:
    """Equal ranks, sizes of one against full ones; scalars beside them."""
    for out in eqn.outputs:
        for value in eqn.inputs:
            if len(value.dims) not in (0, len(out.dims)):
                return unknown(eqn)  # bits of one number as several
            for x, y in zip(value.dims, out.dims, strict=False):
                if _equal(x.size, y.size):
                    join(x, y, eqn.where)


@rule("optimization_barrier", "device_put")
def passed(eqn: Equation) -> None:
    """A tuple that comes out as it went in."""
    for a, b in zip(eqn.inputs, eqn.outputs, strict=True):
        same(eqn, a, b)


def _equal(a, b) -> bool:
    return a is b or bool(a == b)


@rule(
    "broadcast_in_dim",
    narrow=lambda eqn, size: {"shape": shape(eqn.outputs[0], size)},
)
def broadcast_in_dim(eqn: Equation) -> None:
    operand, out = eqn.inputs[0], eqn.outputs[0]
    for x, place in zip(operand.dims, eqn.params["broadcast_dimensions"], strict=True):
        if _equal(x.size, out.dims[place].size):
            join(x, out.dims[place], eqn.where)


@rule("tile")
def tile(eqn: Equation) -> None:
    """Every repeated dimension is so many times the operand's."""
    places = zip(
        eqn.params["reps"], eqn.inputs[0].dims, eqn.outputs[0].dims, strict=True
    )
    for count, x, y in places:
        if isinstance(count, int):
            join(product((Atom(count), x)), y, eqn.where)
        else:
            fixed(eqn, (x, y), "repeats it")


@rule("reshape", narrow=lambda eqn, size: {"new_sizes": shape(eqn.outputs[0], size)})
def reshape(eqn: Equation) -> None:
    """Joins the smallest runs of dimensions with equal products, in order."""
    given, after = eqn.inputs[0].dims, list(eqn.outputs[0].dims)
    order = eqn.params.get("dimensions")  # gradients transpose first
    before = [given[d] for d in order] if order is not None else list(given)
    for ends in (0, -1):  # equal first and last dimensions need no arithmetic
        while before and after and _equal(before[ends].size, after[ends].size):
            join(before.pop(ends), after.pop(ends), eqn.where)
    for left, right in _runs(before, after):
        if left and right:
            join(product(left), product(right), eqn.where)


def _runs(before: list[Atom], after: list[Atom]):
    if not all(isinstance(atom.size, int) for atom in (*before, *after)):
        yield before, after
        return
    while before or after:
        left, right = [], []
        p = q = 1
        while (before or after) and (not (left or right) or p != q):
            if before and (p <= q or not after):
                left.append(before.pop(0))
                p *= left[-1].size
            else:
                right.append(after.pop(0))
                q *= right[-1].size
        yield left, right


@rule("transpose")
def transpose(eqn: Equation) -> None:
    for place, atom in zip(eqn.params["permutation"], eqn.outputs[0].dims, strict=True):
        join(eqn.inputs[0].dims[place], atom, eqn.where)


@rule("squeeze")
def squeeze(eqn: Equation) -> None:
    gone = {d % len(eqn.inputs[0].dims) for d in eqn.params["dimensions"]}
    _remaining(eqn, gone)


def _remaining(eqn: Equation, gone: set[int]) -> None:
    """Joins the dimensions that are left when some are gone."""
    for operand in eqn.inputs:
        left = [a for place, a in enumerate(operand.dims) if place not in gone]
        for out in eqn.outputs:
            for x, y in zip(left, out.dims, strict=True):
                join(x, y, eqn.where)


@rule(
    *("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or").split(),
    *("reduce_xor argmax argmin").split(),
)
def reduction(eqn: Equation) -> None:
    axes = set(eqn.params["axes"])
    for operand in eqn.inputs:
        fixed(eqn, [operand.dims[a] for a in axes], "goes over it", False)
    _remaining(eqn, axes)


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


@rule("rev")
def rev(eqn: Equation) -> None:
    turned = set(eqn.params["dimensions"])
    for place, (x, y) in enumerate(
        zip(eqn.inputs[0].dims, eqn.outputs[0].dims, strict=True)
    ):
        if place in turned:
            fixed(eqn, (x, y), "turns it round")
        else:
            join(x, y, eqn.where)


@rule("fft")
def fft(eqn: Equation) -> None:
    """Mixes its last dimensions."""
    operand, out = eqn.inputs[0].dims, eqn.outputs[0].dims
    mixed = len(operand) - len(eqn.params["fft_lengths"])
    fixed(eqn, (*operand[mixed:], *out[mixed:]), "mixes it")
    for x, y in zip(operand[:mixed], out[:mixed], strict=True):
        join(x, y, eqn.where)


@rule("iota", narrow=lambda eqn, size: {"shape": shape(eqn.outputs[0], size)})
def iota(eqn: Equation) -> None:
    counted = eqn.outputs[0].dims[eqn.params["dimension"]]
    fixed(eqn, [counted], "counts along it", False)


@rule("random_bits", narrow=lambda eqn, size: _bits(eqn, size))
def random_bits(eqn: Equation) -> None:
    """Any other number of them is as random."""
    for x, y in zip(eqn.inputs[0].dims, eqn.outputs[0].dims, strict=False):
        join(x, y, eqn.where)


def _bits(eqn: Equation, size: Sizes) -> dict[str, Any]:
    keys = len(eqn.inputs[0].dims)
    return {"shape": shape(eqn.outputs[0], size)[keys:]}


@rule("concatenate")
def concatenate(eqn: Equation) -> None:
    _pieces(eqn, eqn.inputs, eqn.outputs[0], eqn.params["dimension"])


@rule("split", narrow=lambda eqn, size: _split_sizes(eqn, size))
def split(eqn: Equation) -> None:
    _pieces(eqn, eqn.outputs, eqn.inputs[0], eqn.params["axis"])


def _pieces(eqn: Equation, pieces: Sequence[Value], whole: Value, axis: int) -> None:
    """Joins pieces with the whole that they are along an axis."""
    for value in pieces:
        for place, (x, y) in enumerate(zip(value.dims, whole.dims, strict=True)):
            if place != axis:
                join(x, y, eqn.where)
    join(total(value.dims[axis] for value in pieces), whole.dims[axis], eqn.where)


def _split_sizes(eqn: Equation, size: Sizes) -> dict[str, Any]:
    where = eqn.params["axis"]
    return {"sizes": tuple(size(value.dims[where]) for value in eqn.outputs)}


@rule("stack")
def stack(eqn: Equation) -> None:
    _side_by_side(eqn, eqn.inputs, eqn.outputs[0])


@rule("unstack")
def unstack(eqn: Equation) -> None:
    _side_by_side(eqn, eqn.outputs, eqn.inputs[0])


def _side_by_side(eqn: Equation, ones: Sequence[Value], whole: Value) -> None:
    """Joins values with what holds them all along a dimension of its own."""
    axis = eqn.params["axis"]
    rest = [atom for place, atom in enumerate(whole.dims) if place != axis]
    for value in ones:
        for x, y in zip(value.dims, rest, strict=True):
            join(x, y, eqn.where)
    fixed(eqn, [whole.dims[axis]], "counts what lies side by side")


@rule("slice", narrow=lambda eqn, size: _slice_limits(eqn, size))
def slice_(eqn: Equation) -> None:
    p, operand, out = eqn.params, eqn.inputs[0], eqn.outputs[0]
    strides = p["strides"] or (1,) * len(operand.dims)
    before = []
    limits = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    for (low, high, step), x, y in zip(limits, operand.dims, out.dims, strict=True):
        first = None
        if _equal(x.size, y.size):
            join(x, y, eqn.where)
        elif step != 1 or not isinstance(x.size, int):
            fixed(eqn, (x, y), "reads a part of it")
        else:
            first, last = Atom(low), Atom(x.size - high)
            join(total((first, y, last)), x, eqn.where)
        before.append(first)
    eqn.memo = before


def _slice_limits(eqn: Equation, size: Sizes) -> dict[str, Any]:
    """Starts after what is left before; a dimension that is frozen keeps its own."""
    p, low, high = eqn.params, [], []
    places = zip(
        eqn.memo, eqn.outputs[0].dims, p["start_indices"], p["limit_indices"],
        eqn.inputs[0].dims, strict=True,
    )  # fmt: skip
    for first, out, start, limit, operand in places:
        if first is not None:
            start = size(first) if first.size else 0
            limit = start + size(out)
        elif _equal(operand.size, out.size):
            start, limit = 0, size(out)
        low.append(start)
        high.append(limit)
    return {"start_indices": tuple(low), "limit_indices": tuple(high)}


@rule("pad", narrow=lambda eqn, size: _padding(eqn, size))
def pad(eqn: Equation) -> None:
    operand, out, memo = eqn.inputs[0], eqn.outputs[0], []
    places = zip(eqn.params["padding_config"], operand.dims, out.dims, strict=True)
    for (low, high, inside), x, y in places:
        added = None
        if (low, high, inside) == (0, 0, 0):
            join(x, y, eqn.where)
        elif inside or low < 0 or high < 0 or not isinstance(x.size, int):
            fixed(eqn, (x, y), "pads within it")
        else:
            added = Atom(low), Atom(high)
            join(total((added[0], x, added[1])), y, eqn.where)
        memo.append(added)
    eqn.memo = memo


def _padding(eqn: Equation, size: Sizes) -> dict[str, Any]:
    def narrower(config, added):
        if added is None:
            return config
        low, high = (size(atom) if atom.size else 0 for atom in added)
        return (low, high, 0)

    pairs = zip(eqn.params["padding_config"], eqn.memo, strict=True)
    return {"padding_config": tuple(narrower(*pair) for pair in pairs)}


@rule("dot_general")
def dot_general(eqn: Equation) -> None:
    (summed_a, summed_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    a, b = (value.dims for value in eqn.inputs[:2])
    for x, y in zip((*summed_a, *batch_a), (*summed_b, *batch_b), strict=True):
        join(a[x], b[y], eqn.where)
    free_a = [d for d in range(len(a)) if d not in (*summed_a, *batch_a)]
    free_b = [d for d in range(len(b)) if d not in (*summed_b, *batch_b)]
    made = [a[d] for d in (*batch_a, *free_a)] + [b[d] for d in free_b]
    for x, y in zip(made, eqn.outputs[0].dims, strict=True):
        join(x, y, eqn.where)
    eqn.memo = Contraction(
        tuple(a[d] for d in summed_a),
        tuple(b[d] for d in summed_b),
        tuple(a[d] for d in batch_a),
    )


@rule("conv_general_dilated", narrow=lambda eqn, size: _groups_of_conv(eqn, size))
def convolution(eqn: Equation) -> None:
    """Plain, grouped and depthwise: features in = groups x kernel's, kernel's features
    out = groups x a group's. Gradients come with batch groups.
    """
    numbers = eqn.params["dimension_numbers"]
    groups, batches = (
        eqn.params["feature_group_count"],
        eqn.params["batch_group_count"],
    )
    (lhs, rhs), out = (value.dims for value in eqn.inputs), eqn.outputs[0].dims
    n, c, *space = (lhs[d] for d in numbers.lhs_spec)
    o, i, *taps = (rhs[d] for d in numbers.rhs_spec)
    n_out, c_out, *space_out = (out[d] for d in numbers.out_spec)
    join(o, c_out, eqn.where)
    for atom in (*space, *taps, *space_out):
        freeze(atom, POSITIONS, shape=True)
    if groups == batches == 1:
        join(n, n_out, eqn.where)
        join(c, i, eqn.where)
    else:
        count = Atom(max(groups, batches))
        each = Atom(o.size // count.size)
        join(product((count, each)), o, eqn.where)
        join(product((count, i)) if groups > 1 else i, c, eqn.where)
        join(n_out if groups > 1 else product((count, n_out)), n, eqn.where)
    left = () if groups > 1 and i.size == 1 else (i,)
    eqn.memo = Contraction(left, left)


def _groups_of_conv(eqn: Equation, size: Sizes) -> dict[str, Any]:
    numbers, p = eqn.params["dimension_numbers"], eqn.params
    lhs, rhs = (value.dims for value in eqn.inputs)
    n, c = (lhs[d] for d in numbers.lhs_spec[:2])
    _, i = (rhs[d] for d in numbers.rhs_spec[:2])
    if p["feature_group_count"] > 1:
        return {"feature_group_count": size(c) // size(i)}
    if p["batch_group_count"] > 1:
        kept = eqn.outputs[0].dims[numbers.out_spec[0]]
        return {"batch_group_count": size(n) // size(kept)}
    return {}


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
        if side == 1 and all(_equal(a.size, atoms[0].size) for a in atoms):
            for atom in atoms[1:]:
                join(atoms[0], atom, eqn.where)
        elif any(is_position(atom) for atom in atoms):
            for atom in atoms:
                freeze(atom, POSITIONS, shape=True)
        else:
            fixed(eqn, atoms, "slides over it")


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
    return tuple(size(a) if _equal(s, a.size) else s for s, a in pairs)


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


@rule("random_wrap", "random_unwrap", "random_fold_in", "random_split", "random_seed")
def random_key(eqn: Equation) -> None:
    """Keys are not channels."""
    for value in (*eqn.inputs, *eqn.outputs):
        fixed(eqn, value.dims, "makes keys of it")


@rule("platform_index")
def platform_index(eqn: Equation) -> None:
    """A number."""


@rule("debug_print", "debug_callback")
def shown(eqn: Equation) -> None:
    """What is looked at may have any width."""


def _inside(eqn: Equation, body: int, given: Sequence[Value], out: Sequence[Value]):
    """Applies a body's rules, joined with what it is given and what it gives."""
    inner = eqn.bodies[body]
    for a, b in zip(given, inner.inputs, strict=True):
        b.live, b.origin, b.maker = a.live, a.origin, a.maker
        same(eqn, a, b)
    apply(inner.equations)
    for a, b in zip(inner.outputs, out, strict=True):
        same(eqn, a, b)
        b.live |= a.live


@rule("cond")
def cond(eqn: Equation) -> None:
    for body in range(len(eqn.bodies)):
        _inside(eqn, body, eqn.inputs[1:], eqn.outputs)


@rule("remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
def call(eqn: Equation) -> None:
    _inside(eqn, 0, eqn.inputs, eqn.outputs)


@rule("while")
def while_(eqn: Equation) -> None:
    c, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = eqn.inputs[c + b :]
    for a, out in zip(carry, eqn.outputs, strict=True):
        same(eqn, a, out)
    _inside(eqn, 0, (*eqn.inputs[:c], *carry), eqn.bodies[0].outputs)
    _inside(eqn, 1, eqn.inputs[c:], eqn.outputs)


@rule("scan")
def scan(eqn: Equation) -> None:
    """Constants, carry, and slices of what is scanned over. A leaf that lives in the
    slices alone is a channel of every layer by itself (groups.py)."""
    inner = eqn.bodies[0]
    consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    fed = consts + carried
    layers = Atom(eqn.params["length"])
    freeze(layers, POSITIONS, shape=True)
    for place, (a, b) in enumerate(zip(eqn.inputs, inner.inputs, strict=True)):
        b.live, b.origin, b.maker = a.live, a.origin, b
        dims = a.dims
        if place >= fed:
            join(dims[0], layers, eqn.where)
            dims = dims[1:]
        for x, y in zip(dims, b.dims, strict=True):
            join(x, y, eqn.where)
    for value in inner.inputs[consts:fed]:
        value.live, value.origin = True, None
    apply(inner.equations)
    for place, (a, out) in enumerate(zip(inner.outputs, eqn.outputs, strict=True)):
        dims = out.dims
        if place < carried:
            same(eqn, a, inner.inputs[consts + place])
        else:
            join(dims[0], layers, eqn.where)
            dims = dims[1:]
        for x, y in zip(a.dims, dims, strict=True):
            join(x, y, eqn.where)
        out.live |= a.live
    eqn.memo = layers
