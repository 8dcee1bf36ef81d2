"""What a model costs, without computing anything."""

import functools

import jax
import jax.numpy as jnp

from jaxhist import flops


def image(size):
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


@functools.cache
def shapes(model, size):
    init = lambda key, image: model.init(key, image, train=False)
    return jax.eval_shape(init, jax.random.key(0), image(size))


def parameters(model, size):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, size)["params"]))


def multiply_adds(model, size):
    """Of the forward pass of one image."""
    forward = lambda variables, image: model.apply(variables, image, train=False)
    count = flops.count(jax.make_jaxpr(forward)(shapes(model, size), image(size)).jaxpr)
    assert count % 2 == 0
    return count // 2
