import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist import losses

rng = np.random.default_rng(0)
B, K, D = 5, 4, 6


def test_mean_squared_error_is_numpys():
    a, b = rng.normal(size=(2, B, 2, 3))
    want = [
        sum((x - y) ** 2 for x, y in zip(p.flat, q.flat, strict=True)) / 6
        for p, q in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(losses.mean_squared_error(a, b), want, rtol=1e-6)


def test_mean_squared_error_is_least_at_the_mean():
    y = jnp.asarray(rng.normal(size=(50, 1)))
    loss = lambda c: losses.mean_squared_error(jnp.full_like(y, c), y).mean()
    assert abs(jax.grad(loss)(y.mean())) < 1e-6
    assert loss(y.mean()) < loss(y.mean() + 0.1)


def test_categorical_cross_entropy_is_numpys():
    z, y = rng.normal(size=(B, 3, K)), rng.integers(K, size=(B, 3))
    want = np.empty((B, 3))
    for i in np.ndindex(B, 3):
        want[i] = -math.log(math.exp(z[i][y[i]]) / sum(math.exp(v) for v in z[i]))
    got = losses.categorical_cross_entropy(jnp.asarray(z), jnp.asarray(y))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_categorical_cross_entropy_of_a_uniform_guess_is_log_k():
    got = losses.categorical_cross_entropy(jnp.zeros((B, K)), jnp.arange(B) % K)
    np.testing.assert_allclose(got, np.full(B, math.log(K)), rtol=1e-6)


def test_categorical_cross_entropy_has_gradient_p_minus_q():
    z, y = jnp.asarray(rng.normal(size=K)), jnp.int32(2)
    gradient = jax.grad(losses.categorical_cross_entropy)(z, y)
    np.testing.assert_allclose(gradient, jax.nn.softmax(z) - jax.nn.one_hot(2, K), atol=1e-6)
    assert abs(gradient.sum()) < 1e-6


def test_categorical_cross_entropy_ignores_a_shift_of_all_logits():
    z, y = jnp.asarray(rng.normal(size=(B, K))), jnp.zeros(B, jnp.int32)
    a, b = (losses.categorical_cross_entropy(z + shift, y) for shift in (0.0, 100.0))
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_smoothed_cross_entropy_is_numpys():
    z, y = rng.normal(size=(B, 3, K)), rng.integers(K, size=(B, 3))
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    q = 0.9 * np.eye(K)[y] + 0.1 / K
    got = losses.smoothed_cross_entropy(jnp.asarray(z), jnp.asarray(y), 0.1)
    np.testing.assert_allclose(got, -(q * log_p).sum(-1), rtol=1e-5)


def test_smoothed_cross_entropy_shares_epsilon_among_all_classes():
    """Not among the others only, which would give 0.64019."""
    z, y = jnp.array([2.0, 1.0, 0.0, -1.0]), jnp.int32(0)
    got = [losses.smoothed_cross_entropy(z, y, epsilon) for epsilon in (0.1, 0.0)]
    np.testing.assert_allclose(got, [0.5901896986, 0.4401896986], rtol=1e-6)
    q = jnp.array([0.925, 0.025, 0.025, 0.025])
    np.testing.assert_allclose(
        losses.smoothed_cross_entropy(jnp.log(q), y, 0.1), 0.3487803849, rtol=1e-6
    )
    gradient = jax.grad(losses.smoothed_cross_entropy)(z, y, 0.1)
    np.testing.assert_allclose(gradient, jax.nn.softmax(z) - q, atol=1e-6)


def test_per_real_has_the_mean_of_what_is_no_padding():
    values, real = jnp.array([[1.0, 2.0, 7.0], [6.0, 7.0, 7.0]]), jnp.array([[1, 1, 0], [1, 0, 0]])
    assert losses.per_real(values, real == 1).mean() == 3
    assert losses.per_real(values, real == 1, jnp.int32(2)).mean() == 4.5
    assert losses.per_real(values, jnp.zeros((2, 3), bool)).mean() == 0


def test_bernoulli_cross_entropy_is_numpys():
    z, y = rng.normal(size=(B, D)), rng.random((B, D))
    p = 1 / (1 + np.exp(-z))
    want = [-sum(y[i] * np.log(p[i]) + (1 - y[i]) * np.log(1 - p[i])) for i in range(B)]
    np.testing.assert_allclose(losses.bernoulli_cross_entropy(z, y), want, rtol=1e-5)


def test_bernoulli_cross_entropy_is_the_categorical_of_two_classes():
    z, y = jnp.asarray(rng.normal(size=(B, 1))), jnp.arange(B)[:, None] % 2
    two = losses.categorical_cross_entropy(jnp.concatenate([jnp.zeros_like(z), z], -1), y[:, 0])
    np.testing.assert_allclose(losses.bernoulli_cross_entropy(z, y), two, rtol=1e-5)


@pytest.mark.parametrize("z", [-1e4, 1e4])
def test_a_confident_mistake_stays_finite(z):
    y = jnp.full((1, 1), float(z < 0))
    loss = lambda z: losses.bernoulli_cross_entropy(z, y)[0]
    assert loss(jnp.full((1, 1), z)) == 1e4
    assert abs(jax.grad(loss)(jnp.full((1, 1), z))[0, 0]) == 1
    wrong = losses.categorical_cross_entropy(jnp.array([[z, 0.0]]), jnp.array([int(z > 0)]))
    assert wrong[0] == 1e4


def test_gaussian_negative_log_likelihood_is_scipys():
    from scipy.stats import norm

    m, s, y = rng.normal(size=(3, B, D))
    want = -norm.logpdf(y, m, np.exp(s / 2)).sum(1)
    np.testing.assert_allclose(losses.gaussian_negative_log_likelihood(m, s, y), want, rtol=1e-5)


def test_the_squared_error_is_a_gaussian_likelihood():
    """With variance 1, NLL = D/2 MSE + D/2 log 2 pi: the same gradient up to a factor."""
    m, y = rng.normal(size=(2, B, D))
    nll = losses.gaussian_negative_log_likelihood(m, np.zeros_like(m), y)
    want = D / 2 * losses.mean_squared_error(m, y) + D / 2 * math.log(2 * math.pi)
    np.testing.assert_allclose(nll, want, rtol=1e-5)


def test_permuting_the_batch_permutes_the_losses():
    z, y, order = rng.normal(size=(B, K)), rng.integers(K, size=B), rng.permutation(B)
    before = losses.categorical_cross_entropy(jnp.asarray(z), jnp.asarray(y))
    after = losses.categorical_cross_entropy(jnp.asarray(z[order]), jnp.asarray(y[order]))
    np.testing.assert_array_equal(before[order], after)


def test_half_precision_is_computed_in_float32():
    z = jnp.ones((1, K), jnp.bfloat16)
    assert losses.categorical_cross_entropy(z, jnp.zeros(1, jnp.int32)).dtype == jnp.float32
    assert losses.mean_squared_error(z, z).dtype == jnp.float32


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.mean_squared_error(jnp.ones((B, 1)), jnp.ones(B)),
        lambda: losses.bernoulli_cross_entropy(jnp.ones((B, 1)), jnp.ones((B, 2))),
        lambda: losses.categorical_cross_entropy(jnp.ones((B, K)), jnp.ones((B, 1), jnp.int32)),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call):
    with pytest.raises(ValueError, match=r"\(5, "):
        call()


def test_divergence_from_a_standard_normal_is_an_integral():
    """KL(N(m, v) || N(0, 1)) of one dimension, summed up over a fine grid."""
    m, s = np.array([0.3, -1.0]), np.array([0.5, -0.7])
    x = np.linspace(-12, 12, 200_001)
    log_normal = lambda mean, variance: (
        -((x - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2
    )
    want = 0.0
    for mean, log_variance in zip(m, s, strict=True):
        q = log_normal(mean, np.exp(log_variance))
        want += np.trapezoid(np.exp(q) * (q - log_normal(0.0, 1.0)), x)
    got = losses.divergence_from_standard_normal(jnp.array(m)[None], jnp.array(s)[None])
    np.testing.assert_allclose(got, [want], rtol=1e-5)
    zero = jnp.zeros((2, 3))
    np.testing.assert_array_equal(losses.divergence_from_standard_normal(zero, zero), np.zeros(2))
