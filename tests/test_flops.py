import jax
import jax.numpy as jnp
import pytest
from conftest import PLAYS

from experiments import adam, dqn, gpt, regression
from jaxhist import cli, flops

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


def test_a_backward_pass_in_a_loop_is_told_from_the_forward_pass():
    """Three steps of gradient descent: each loss but the first needs the backward passes before."""
    loss = lambda b, a: jnp.square(a @ b).sum()

    def descended(a, b):
        def step(b, _):
            value, gradient = jax.value_and_grad(loss)(b, a)
            return b - gradient, value

        return jax.lax.scan(step, b, length=3)

    program = jax.make_jaxpr(descended)(A, B).jaxpr
    assert flops.count(program) == 3 * 2 * MATMUL  # b's gradient is one more product
    assert flops.count(program, [-1]) == 3 * 2 * MATMUL
    assert flops.count(program, [-1], backward=False) == 3 * MATMUL


@pytest.fixture
def described(monkeypatch, capsys):
    """What `describe` counts: forward and training of an example, training of a step, and how many
    examples it has."""

    def run(script, *arguments):
        monkeypatch.setattr("sys.argv", ["script", "describe", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main(script.build, script.PRESETS, script.CLAIMS)
        assert stop.value.code == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        lines = [words for words in lines if words[0] == "FLOPs"]
        forward, training, step = (int(words[1].replace(",", "")) for words in lines)
        return forward, training, step, int(lines[-1][-2])

    return run


def test_a_plain_step_is_described(described):
    """Ten numbers become one; backwards the weights alone have a gradient."""
    counted = described(regression, "small")
    assert counted == (2 * 10, 2 * 2 * 10, 64 * 2 * 2 * 10, 64)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_in_parts_is_described_as_one_in_one(parts, described):
    """4 layers of 128 units see 64 tokens of 2,000. An example is a row of the batch."""
    L, D, T, V = 4, 128, 64, 2000
    products = 3 * D * D + D * D + 4 * D * D + 4 * D * D  # of a token: QKV, out, expand, project
    attention = 2 * T * D  # of a token: with the keys, and of the weights with the values
    forward = 2 * T * (L * (products + attention) + D * V)
    # Backwards each product becomes two.
    counted = described(gpt, "small", "--parts", str(parts))
    assert counted == (forward, 3 * forward, 32 * 3 * forward, 32)


def test_networks_side_by_side_are_described(described):
    """Two of them; what diverges stays as it was, so a loss depends on the backward pass."""
    products = 64 * 256 + 256 * 256 + 256 * 10
    forward, training = 2 * 2 * products, 2 * 2 * (3 * products - 64 * 256)
    counted = described(adam, "small", "--rates", "0.001", "0.01")
    assert counted == (forward, training, 128 * training, 128)


@PLAYS
def test_a_step_that_plays_and_learns_is_described(described):
    """25 rounds of 4 actions and an update of 32; an example is what is drawn for an update."""
    convolution = 2 * (8 * 8) * (3 * 3 * 4) * 16  # of 10x10 cells in 4 planes
    dense = 2 * (8 * 8 * 16) * 128 + 2 * 128 * 3  # to the values of Breakout's 3 actions
    value = convolution + dense
    # An action asks for values once, an update for those before and after it. Backwards there are
    # those before it alone, and of the convolution, which sees the cells, the kernel's gradient.
    forward = 25 * (4 * value + 32 * 2 * value)
    step = forward + 25 * 32 * (convolution + 2 * dense)
    counted = described(dqn, "small")
    assert counted == (forward // 800, step // 800, step, 800)
