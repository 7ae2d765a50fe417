"""Which equations are affine in what depends on the inputs."""

from ispasp_jax.graph.program import Equation

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
