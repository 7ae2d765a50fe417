"""One rule a primitive: arithmetic, and choosing."""

import math

import numpy as np

from ispasp_jax.export.emission import (
    Emission,
    Step,
    Tensor,
    emits,
    refused,
)

#: Primitives that are one operator of as many inputs.
OPERATORS = {
    "add": "Add",
    "add_any": "Add",
    "mul": "Mul",
    "div": "Div",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "erf": "Erf",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "sin": "Sin",
    "cos": "Cos",
    "max": "Max",
    "pow": "Pow",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "and": "And",
    "or": "Or",
    "not": "Not",
}


def elementwise(out: Emission, step: Step, operator: str, *values) -> Tensor:
    """An operator of values that are laid alike; axes along which all of them repeat
    stay thin."""
    tensors = [out._of(value) for value in values]
    lying = max(tensors, key=lambda t: (t.rank, t.array is None, -len(t.thin)))
    names = [
        out.name(out.laid(t, lying.order) if t.rank == lying.rank else t)
        for t in tensors
    ]
    full = [t for t in tensors if t.rank == lying.rank]
    thin = frozenset.intersection(*(t.thin for t in full))
    return out.made(operator, *names, shape=step.shape, order=lying.order, thin=thin)


@emits(*OPERATORS)
def _operator(out: Emission, step: Step) -> Tensor:
    return elementwise(out, step, OPERATORS[step.eqn.name], *step.eqn.inputs)


def scalar(out: Emission, value) -> float | None:
    """The number that a value is everywhere, if it is one."""
    array = out.get(value).array
    if array is None or array.size == 0 or (array != array.flat[0]).any():
        return None
    return array.flat[0].item()


def number(out: Emission, step: Step, value: float) -> Tensor:
    """A number in the step's dtype, without axes."""
    return out.constant(np.asarray(value, step.dtype))


@emits("sub")
def _sub(out: Emission, step: Step) -> Tensor:
    left, right = (out.get(value) for value in step.eqn.inputs)
    if right.array is not None and right.array.dtype.kind == "f":
        # runtimes melt an addition into the convolution before it, not a subtraction
        turned = Tensor(None, right.shape, right.order, right.thin, -right.array)
        return elementwise(out, step, "Add", left, turned)
    return elementwise(out, step, "Sub", left, right)


@emits("max")
def _max(out: Emission, step: Step) -> Tensor:
    for value, other in (step.eqn.inputs, step.eqn.inputs[::-1]):
        if step.dtype.kind == "f" and scalar(out, other) == 0:
            return elementwise(out, step, "Relu", value)
    return elementwise(out, step, "Max", *step.eqn.inputs)


@emits("min")
def _min(out: Emission, step: Step) -> Tensor:
    for value, other in (step.eqn.inputs, step.eqn.inputs[::-1]):
        top, tensor = scalar(out, other), out.get(value)
        before = out.nodes[-1] if out.nodes else None
        if top is None or before is None or before.operator != "Relu":
            continue
        if before.output == tensor.name:  # relu6
            limits = (out.name(number(out, step, limit)) for limit in (0, top))
            return out.made(
                "Clip",
                before.inputs[0],
                *limits,
                shape=step.shape,
                order=tensor.order,
                thin=tensor.thin,
            )
    return elementwise(out, step, "Min", *step.eqn.inputs)


@emits("clamp")
def _clamp(out: Emission, step: Step) -> Tensor:
    low, x, high = (out.get(value) for value in step.eqn.inputs)
    above = elementwise(out, step, "Max", x, low)
    return elementwise(out, step, "Min", above, high)


@emits("square")
def _square(out: Emission, step: Step) -> Tensor:
    (x,) = step.eqn.inputs
    return elementwise(out, step, "Mul", x, x)


@emits("integer_pow")
def _integer_pow(out: Emission, step: Step) -> Tensor:
    (x,), power = step.eqn.inputs, step.params["y"]
    if power == 2:
        return elementwise(out, step, "Mul", x, x)
    return elementwise(out, step, "Pow", x, number(out, step, power))


@emits("rsqrt")
def _rsqrt(out: Emission, step: Step) -> Tensor:
    root = elementwise(out, step, "Sqrt", *step.eqn.inputs)
    return elementwise(out, step, "Reciprocal", root)


@emits("erfc")
def _erfc(out: Emission, step: Step) -> Tensor:
    erf = elementwise(out, step, "Erf", *step.eqn.inputs)
    return elementwise(out, step, "Sub", number(out, step, 1), erf)


@emits("log1p")
def _log1p(out: Emission, step: Step) -> Tensor:
    more = elementwise(out, step, "Add", *step.eqn.inputs, number(out, step, 1))
    return elementwise(out, step, "Log", more)


@emits("expm1")
def _expm1(out: Emission, step: Step) -> Tensor:
    grown = elementwise(out, step, "Exp", *step.eqn.inputs)
    return elementwise(out, step, "Sub", grown, number(out, step, 1))


@emits("exp2")
def _exp2(out: Emission, step: Step) -> Tensor:
    scaled = elementwise(
        out, step, "Mul", *step.eqn.inputs, number(out, step, math.log(2))
    )
    return elementwise(out, step, "Exp", scaled)


@emits("ne")
def _ne(out: Emission, step: Step) -> Tensor:
    return elementwise(
        out, step, "Not", elementwise(out, step, "Equal", *step.eqn.inputs)
    )


@emits("select_n")
def _select(out: Emission, step: Step) -> Tensor:
    which, *cases = step.eqn.inputs
    if len(cases) != 2 or which.aval.dtype != bool:
        raise refused(step, "it chooses among more than two")
    return elementwise(out, step, "Where", which, cases[1], cases[0])


@emits("convert_element_type")
def _convert(out: Emission, step: Step) -> Tensor:
    tensor = out.get(step.eqn.inputs[0])
    return out.made(
        "Cast",
        out.name(tensor),
        shape=step.shape,
        order=tensor.order,
        thin=tensor.thin,
        to=step.dtype,
    )


@emits("copy", "copy_p", "stop_gradient", "optimization_barrier", "name")
def _same(out: Emission, step: Step) -> list[Tensor]:
    return [out.get(value) for value in step.eqn.inputs]
