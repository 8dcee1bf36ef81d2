"""The convolution and its gradients against XLA's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from jaxhist import devices, flops
from jaxhist.convolution import IMAGES, convolve, double, halve

# Kernel, strides, padding. Three are XLA's own: they change the image's size.
CASES = {
    "3x3": ((3, 3), (1, 1), ((1, 1), (1, 1))),
    "1x1": ((1, 1), (1, 1), ((0, 0), (0, 0))),
    "uneven": ((4, 5), (1, 1), ((1, 2), (0, 4))),
    "same": ((2, 3), (1, 1), "SAME"),
    "valid": ((3, 3), (1, 1), "VALID"),
    "wide": ((2, 2), (1, 1), ((3, 3), (2, 2))),
    "stride": ((3, 3), (2, 2), ((1, 1), (1, 1))),
    "larger than the image": ((7, 3), (1, 1), ((3, 3), (1, 1))),
    "larger than the image, uneven": ((8, 9), (1, 1), ((3, 4), (4, 4))),
}


def operands(size, dtype, batch=8):
    draw = np.random.default_rng(0).normal
    x = jnp.asarray(draw(size=(batch, 6, 7, 5)), dtype)
    return x, jnp.asarray(draw(size=(*size, 5, 4)), dtype)


def value_and_gradients(function, x, kernel, strides, padding):
    def total(x, kernel):
        y = function(x, kernel, strides, padding, dimension_numbers=IMAGES)
        return jnp.sum(jnp.sin(y.astype(jnp.promote_types(y.dtype, jnp.float32)))), y

    gradients, y = jax.grad(total, (0, 1), has_aux=True)(x, kernel)
    return y, *gradients


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_it_is_the_convolution_of_xla(case, dtype):
    size, *rest = CASES[case]
    with jax.enable_x64(dtype == "float64"):
        x, kernel = operands(size, dtype)
        of = lambda function: jax.jit(lambda *both: value_and_gradients(function, *both, *rest))
        ours, theirs = (of(each)(x, kernel) for each in (convolve, lax.conv_general_dilated))
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype == dtype
            one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
            rounding = 100 * float(jnp.finfo(dtype).eps) * np.abs(other).max()
            np.testing.assert_allclose(one, other, atol=rounding, rtol=0)


@pytest.mark.parametrize("count", [1, 8])
def test_it_splits_over_devices(count):
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices")
    with jax.enable_x64(True):
        x, kernel = operands((3, 3), jnp.float64)
        mesh = devices.mesh(count)
        split = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec("data")))
        whole = jax.device_put(kernel, jax.NamedSharding(mesh, PartitionSpec()))
        step = jax.jit(lambda x, k: value_and_gradients(convolve, x, k, (1, 1), "SAME"))
        compiled = step.lower(split, whole).compile()
        assert "all-gather" not in compiled.as_text()
        expected = value_and_gradients(lax.conv_general_dilated, x, kernel, (1, 1), "SAME")
        for one, other in zip(compiled(split, whole), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-11)


def test_it_repeats_bit_for_bit():
    x, kernel = operands((3, 3), jnp.float32, batch=64)
    step = jax.jit(lambda x, k: value_and_gradients(convolve, x, k, (1, 1), "SAME"))
    for one, other in zip(step(x, kernel), step(x, kernel), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_its_flops_are_those_of_the_convolution(case):
    size, *rest = CASES[case]
    x, kernel = operands(size, jnp.float32)

    def count(function):
        trace = jax.make_jaxpr(lambda x, k: value_and_gradients(function, x, k, *rest))
        return flops.count(trace(x, kernel).jaxpr)

    assert count(convolve) == count(lax.conv_general_dilated)


def test_only_the_cpu_backend_has_the_product():
    x, kernel = operands((3, 3), jnp.float32)
    step = jax.jit(lambda x, k: value_and_gradients(convolve, x, k, (1, 1), "SAME"))
    text = step.trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.convolution") == 3
    assert "dot_general" not in text


# With a stride of 2.

STRIDED = {
    "halve": (
        halve,
        lambda x, kernel: lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (8, 4, 3, 5),
    ),
    "double": (
        double,
        lambda x, kernel: lax.conv_transpose(x, kernel, (2, 2), "SAME"),
        (8, 16, 12, 5),
    ),
}


@pytest.mark.parametrize("case", STRIDED)
@pytest.mark.parametrize("channels", [6, 3])  # with 3, ours is XLA's own
def test_halving_and_doubling_are_the_convolutions_of_xla(case, channels):
    ours, theirs, shape = STRIDED[case]
    draw = np.random.default_rng(0).normal

    def total(function, x, kernel):
        y = function(x, kernel)
        return jnp.sum(jnp.sin(y)), y

    with jax.enable_x64(True):
        x, kernel = draw(size=(8, 8, 6, channels)), draw(size=(5, 5, channels, 5))
        results = []
        for function in (ours, theirs):
            compute = jax.jit(jax.grad(partial(total, function), (0, 1), has_aux=True))
            gradients, y = compute(x, kernel)
            assert y.shape == shape
            results.append((y, *gradients))
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
