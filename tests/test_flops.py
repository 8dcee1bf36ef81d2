import jax
import jax.numpy as jnp

from jaxhist import flops

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
MATMUL = 2 * 3 * 5 * 7


def count(f, *args):
    return flops.count(jax.make_jaxpr(f)(*args).jaxpr)


def test_a_product():
    assert count(lambda a, b: jnp.tanh(a @ b), A, B) == MATMUL


def test_a_batched_product():
    assert count(jnp.matmul, jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))) == 4 * MATMUL


def test_a_gradient_is_two_more_products():
    loss = lambda a, b: (a @ b).sum()
    assert count(jax.value_and_grad(loss, (0, 1)), A, B) == 3 * MATMUL


def test_calls_are_entered():
    assert count(jax.jit(jnp.matmul), A, B) == MATMUL
    assert count(jax.checkpoint(jnp.matmul), A, B) == MATMUL


def test_a_scan_counts_its_length():
    scan = lambda a, b: jax.lax.scan(lambda c, _: (c, c @ b), a, length=10)[1]
    assert count(scan, A, B) == 10 * MATMUL


def test_a_cond_counts_its_dearest_branch():
    cond = lambda a, b: jax.lax.cond(True, lambda: a @ b, lambda: (a @ b) + (a @ b))
    assert count(cond, A, B) == 2 * MATMUL


def convolve(image, kernel, strides=1, groups=1):
    return jax.lax.conv_general_dilated(
        image,
        kernel,
        (strides, strides),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_a_strided_convolution_and_its_gradients_cost_the_same():
    image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    forward = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)
    assert count(lambda i, k: convolve(i, k, 2), image, kernel) == forward
    loss = lambda i, k: (convolve(i, k, 2) ** 2).sum()
    assert count(jax.grad(loss, 1), image, kernel) == 2 * forward
    assert count(jax.grad(loss, (0, 1)), image, kernel) == 3 * forward


def test_what_no_output_needs_is_not_counted():
    both = lambda a, b: (jnp.tanh(a @ b), (a @ b).sum())
    assert count(both, A, B) == 2 * MATMUL
    assert count(lambda a, b: both(a, b)[0], A, B) == MATMUL


def test_groups_divide_the_work():
    image = jnp.ones((2, 8, 8, 4))
    whole = count(convolve, image, jnp.ones((3, 3, 4, 6)))
    assert 2 * count(lambda i, k: convolve(i, k, 1, 2), image, jnp.ones((3, 3, 2, 6))) == whole
