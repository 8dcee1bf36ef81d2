"""What a model of images costs, without computing anything, and parameters for it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxhist import flops


def image(size):
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


@functools.cache
def traced(model, size):
    """The program that initialises a model and applies it to an image; the variables' shapes."""
    both = lambda key, image: model.init_with_output(key, image, train=False)
    trace = jax.make_jaxpr(both, return_shape=True)
    program, (_, variables) = trace(jax.random.key(0), image(size))
    return program.jaxpr, variables


def shapes(model, size):
    return traced(model, size)[1]


def parameters(model, size):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, size)["params"]))


def multiply_adds(model, size):
    """Of the forward pass of one image."""
    count = flops.count(traced(model, size)[0], outputs=[0])
    assert count % 2 == 0
    return count // 2


def filled(shapes, seed=0):
    """Parameters of these shapes, without compiling their initialisation: kernels N(0, 2 / fan_in),
    scales and variances 1, biases and means 0."""
    random = np.random.default_rng(seed)

    def fill(path, leaf):
        if leaf.ndim > 1:
            return random.normal(0, (2 / math.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"))

    whole = jax.tree_util.tree_map_with_path(fill, shapes)
    return jax.tree.map(np.float32, whole)
