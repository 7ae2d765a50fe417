"""Place by place: a place of what comes out depends on that place of what goes in."""

from ispasp_jax.graph.atoms import join
from ispasp_jax.graph.program import Equation
from ispasp_jax.graph.rules.rule import equal, fixed, rule, same, unknown

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
                if equal(x.size, y.size):
                    join(x, y, eqn.where)


@rule("optimization_barrier", "device_put")
def passed(eqn: Equation) -> None:
    """A tuple that comes out as it went in."""
    for a, b in zip(eqn.inputs, eqn.outputs, strict=True):
        same(eqn, a, b)


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
