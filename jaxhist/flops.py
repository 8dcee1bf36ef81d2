"""Model FLOPs: what a program multiplies and adds, counted from its jaxpr.

Only products of matrices and convolutions count, at two FLOPs per multiply-add; the compiler's own
count leaves out the repetitions of a scan and counts what it has rewritten.
"""

import math
from collections.abc import Sequence
from functools import partial

from jax.extend import core


def count(jaxpr: core.Jaxpr, outputs: Sequence[int] | None = None, backward: bool = True) -> int:
    """The FLOPs that the outputs of a jaxpr need, such as `jax.make_jaxpr(f)(...).jaxpr`.

    Args:
      jaxpr: what is run.
      outputs: the places of the outputs that are wanted; all if not given. Of a `scan` and the like
        the whole body is needed if one of its outputs is.
      backward: whether backward passes count. (It does not follow from the outputs: where one loop
        learns, each loss but the first needs the backward passes before it.)

    The body of a `scan` counts once per iteration, that of a `while_loop` once (its length is not
    known), and of a `cond` the dearest branch.
    """
    inside = partial(count, backward=backward)
    total = 0
    wanted = jaxpr.outvars if outputs is None else [jaxpr.outvars[i] for i in outputs]
    needed = set(filter(_is_variable, wanted))
    for equation in reversed(jaxpr.eqns):
        if needed.isdisjoint(equation.outvars):
            continue
        needed.update(filter(_is_variable, equation.invars))
        if not backward and _is_backward(equation):
            continue
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += params["length"] * inside(params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(inside(branch.jaxpr) for branch in params["branches"])
        else:
            total += sum(inside(inner) for value in params.values() for inner in _jaxprs(value))
    return total


def _is_variable(atom) -> bool:
    return not isinstance(atom, core.Literal)


def _is_backward(equation) -> bool:
    """Whether it comes of the transposition of a forward pass, as its name in a profile says."""
    return "transpose(" in str(equation.source_info.name_stack)


def _jaxprs(value):
    """The jaxprs inside a parameter of an equation."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs(item)


def _dot(equation) -> int:
    left = equation.invars[0].aval.shape
    contracted = equation.params["dimension_numbers"][0][0]
    return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation) -> int:
    kernel = equation.invars[1].aval
    output_channels = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    products = equation.outvars[0].aval.size * (kernel.size // output_channels)
    # A gradient with respect to the input of a strided convolution spreads its input with zeros:
    # they are not multiplied.
    return 2 * products // math.prod(equation.params["lhs_dilation"])
