import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxhist import losses
from jaxhist.algorithm import descend, keys

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(8, 3)).astype("f4"), rng.normal(size=(8, 1)).astype("f4")


def square(params, extra, batch, key):
    x, y = batch
    metrics = {"noise": jax.random.normal(key), "count/x": jnp.int32(len(x))}
    return losses.mean_squared_error(x @ params, y), (extra + 1, metrics)


def linear(optimizer):
    return descend(lambda key: (jnp.zeros((3, 1)), jnp.int32(0)), square, optimizer)


def test_a_step_is_gradient_descent():
    algorithm = linear(optax.sgd(0.1))
    state = algorithm.init(jax.random.key(0))
    want = np.zeros((3, 1))
    for step in range(3):
        state, metrics = algorithm.step(state, (X, Y), jax.random.key(step))
        assert np.isclose(metrics["loss"], np.mean((X @ want - Y) ** 2), rtol=1e-5)
        want -= 0.1 * 2 * X.T @ (X @ want - Y) / len(X)
        np.testing.assert_allclose(state.params, want, rtol=1e-4)
    assert state.step == state.extra == 3


def test_a_step_is_pure():
    algorithm = linear(optax.adam(0.1))
    state = algorithm.init(jax.random.key(0))
    once, twice = (algorithm.step(state, (X, Y), jax.random.key(1)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once, twice)


def test_accumulating_two_halves_is_one_whole_batch():
    whole, halves = linear(optax.sgd(0.1)), linear(optax.MultiSteps(optax.sgd(0.1), 2))
    a, b = whole.init(jax.random.key(0)), halves.init(jax.random.key(0))
    a, _ = whole.step(a, (X, Y), jax.random.key(0))
    b, _ = halves.step(b, (X[:4], Y[:4]), jax.random.key(0))
    assert not b.params.any()
    b, _ = halves.step(b, (X[4:], Y[4:]), jax.random.key(0))
    np.testing.assert_allclose(a.params, b.params, rtol=1e-6)


def test_a_batch_in_two_parts_is_one_whole_batch():
    whole = linear(optax.sgd(0.1))
    halves = descend(lambda key: (jnp.zeros((3, 1)), jnp.int32(0)), square, optax.sgd(0.1), parts=2)
    state = whole.init(jax.random.key(0))
    a, one = whole.step(state, (X, Y), jax.random.key(0))
    b, two = halves.step(state, (X, Y), jax.random.key(0))
    np.testing.assert_allclose(a.params, b.params, rtol=1e-6)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-6)
    assert (a.extra, b.extra) == (1, 2)  # each part goes on from the one before
    noise = [jax.random.normal(key) for key in jax.random.split(jax.random.key(0))]
    assert np.isclose(two["noise"], np.mean(noise)) and one["count/x"] == two["count/x"] == 8


def test_the_streams_of_keys_differ_and_depend_on_the_seed():
    data = {tuple(jax.random.key_data(key).tolist()) for seed in (0, 1) for key in keys(seed)}
    assert len(data) == 8
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(*map(jax.random.key_data, (a, b))),
        keys(0),
        keys(0),
    )
