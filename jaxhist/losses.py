"""Losses: pure functions of outputs and targets, one value per example, none averaged.

Maximum likelihood gives all of them: the squared error is a Gaussian's negative log-likelihood of
fixed variance (up to a constant), each cross-entropy that of its distribution. Logits are used as
they are: no probability is formed and then logged, so a confident mistake stays finite.
All compute in float32 at least, whatever the dtype of the model.
"""

import jax
import jax.numpy as jnp


def _wide(x: jax.Array) -> jax.Array:
    """At least float32: half precision is for the model's products, not for its loss."""
    return jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32))


def _over_features(x: jax.Array, reduce) -> jax.Array:
    """[B, ...] -> [B]."""
    return reduce(x, axis=tuple(range(1, x.ndim)))


def mean_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """mean_i (y_i - f_i)^2, the mean over the features of an example. [B, ...], [B, ...] -> [B]"""
    _same_shape(prediction, target)
    return _over_features((_wide(target) - _wide(prediction)) ** 2, jnp.mean)


def categorical_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """-log softmax(z)_y = logsumexp(z) - z_y. [..., K], integers [...] -> [...]"""
    if logits.shape[:-1] != label.shape:
        raise ValueError(
            f"logits {logits.shape} want labels {logits.shape[:-1]}, not {label.shape}"
        )
    logits = _wide(logits)
    chosen = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def smoothed_cross_entropy(logits: jax.Array, label: jax.Array, epsilon: float) -> jax.Array:
    """-sum_k q_k log softmax(z)_k, q_k = (1 - epsilon) [k = y] + epsilon / K.

    [..., K], integers [...] -> [...]. Szegedy et al., arXiv:1512.00567, section 7. It is at least
    the entropy of q.
    """
    plain = categorical_cross_entropy(logits, label)
    logits = _wide(logits)
    uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(-1)
    return (1 - epsilon) * plain + epsilon * uniform


def per_real(values: jax.Array, real: jax.Array, count: jax.Array | None = None) -> jax.Array:
    """Values whose mean is the sum of the real ones over `count`. [...], bool [...] -> [...]

    So padding counts for nothing: neither in the sum nor, if `count` is not given, in the number of
    values. With the number of sentences as `count`, it is the mean over those.
    """
    _same_shape(values, real)
    count = real.sum() if count is None else count
    return jnp.where(real, values, 0) * (values.size / jnp.maximum(count, 1))


def bernoulli_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """sum_i -y_i log s(z_i) - (1 - y_i) log(1 - s(z_i)), y in [0, 1]. [B, ...], [B, ...] -> [B]

    Written max(z, 0) - z y + log(1 + exp(-|z|)), which neither overflows nor loses the tail.
    """
    _same_shape(logits, target)
    z, y = _wide(logits), _wide(target)
    values = jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))
    return _over_features(values, jnp.sum)


def gaussian_negative_log_likelihood(
    mean: jax.Array, log_variance: jax.Array, target: jax.Array
) -> jax.Array:
    """sum_i ((y_i - m_i)^2 / v_i + log v_i + log 2 pi) / 2. [B, ...] x 3 -> [B]

    Of a Gaussian with diagonal covariance, in nats. `log_variance` has the shape of `mean`.
    """
    _same_shape(mean, target)
    _same_shape(mean, log_variance)
    m, s, y = _wide(mean), _wide(log_variance), _wide(target)
    values = ((y - m) ** 2 * jnp.exp(-s) + s + jnp.log(2 * jnp.pi)) / 2
    return _over_features(values, jnp.sum)


def divergence_from_standard_normal(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL(N(m, v) || N(0, 1)) = sum_i (v_i + m_i^2 - 1 - log v_i) / 2. [B, ...] x 2 -> [B]

    Kingma & Welling, arXiv:1312.6114, appendix B.
    """
    _same_shape(mean, log_variance)
    m, s = _wide(mean), _wide(log_variance)
    return _over_features((jnp.exp(s) + m**2 - 1 - s) / 2, jnp.sum)


def discriminator_loss(real: jax.Array, sample: jax.Array) -> jax.Array:
    """-log D(x) - log(1 - D(G(z))), D = s(logit) the probability of being real. [B], [B] -> [B]

    Goodfellow et al., arXiv:1406.2661, eq. 1, whose V is the mean of this with a minus. It is log 4
    where samples cannot be told from real images (theorem 1).
    """
    _same_shape(real, sample)
    return jax.nn.softplus(-_wide(real)) + jax.nn.softplus(_wide(sample))


def saturating_generator_loss(sample: jax.Array) -> jax.Array:
    """log(1 - D(G(z))), of the same equation. [B] -> [B]

    Its slope in the logit is -D, next to nothing where a sample is sure to be told from real ones.
    """
    return -jax.nn.softplus(_wide(sample))


def non_saturating_generator_loss(sample: jax.Array) -> jax.Array:
    """-log D(G(z)), the end of section 3 there. [B] -> [B]

    It has the same fixed point; its slope in the logit is -(1 - D).
    """
    return jax.nn.softplus(-_wide(sample))


def nt_xent(z: jax.Array, temperature: float, normalize: bool = True) -> jax.Array:
    """-log exp(sim(z_i, z_j) / tau) / sum_{k != i} exp(sim(z_i, z_k) / tau). [2N, D] -> [2N]

    SimCLR, equation 1: i and j are two views of one example, in the rows 2n and 2n + 1, each once
    in the place of i. The sum has the positive j and all 2N - 2 negatives. It is the cross-entropy
    of finding j among all views but i.
    """
    return categorical_cross_entropy(view_logits(z, temperature, normalize), other_view(len(z)))


def view_logits(z: jax.Array, temperature: float, normalize: bool = True) -> jax.Array:
    """sim(z_i, z_k) / tau, -inf where k is i. [2N, D] -> [2N, 2N]

    sim is the cosine or, if not to `normalize` (table 5), the product.
    """
    z = _wide(z)
    if normalize:
        z *= jax.lax.rsqrt(jnp.maximum(jnp.sum(z**2, -1, keepdims=True), 1e-24))
    return jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, z @ z.T / temperature)


def other_view(count: int) -> jax.Array:
    """Of each of 2N views, the place of the other one of the same example: 1, 0, 3, 2, ... [2N]"""
    return jnp.arange(count) ^ 1


def q_learning_error(
    q_tm1: jax.Array,
    action_tm1: jax.Array,
    reward_t: jax.Array,
    terminal_t: jax.Array,
    q_t: jax.Array,
    discount: float,
) -> jax.Array:
    """r + gamma max_a' Q^(s', a') - Q(s, a), r alone where s' is terminal. -> [B]

    Mnih et al. 2015, Methods, algorithm 1, whose y is the first two terms; no gradient goes there.

    Args:
      q_tm1: Q(s, .), [B, actions].
      action_tm1: a, [B] integers.
      reward_t: r, [B].
      terminal_t: [B], 1 or True where the game ended.
      q_t: Q^(s', .), of the target network, [B, actions].
      discount: gamma.
    """
    _same_shape(q_tm1, q_t)
    _same_shape(action_tm1, reward_t)
    _same_shape(action_tm1, terminal_t)
    y = reward_t + discount * (1 - terminal_t.astype(jnp.float32)) * _wide(q_t).max(-1)
    chosen = jnp.take_along_axis(_wide(q_tm1), action_tm1[:, None], axis=-1)[:, 0]
    return jax.lax.stop_gradient(y) - chosen


def huber(error: jax.Array) -> jax.Array:
    """e^2 / 2 up to 1, |e| - 1/2 beyond. [...] -> [...]

    Its slope is e clipped to [-1, 1]: what Mnih et al. mean by clipping the error term.
    """
    size = jnp.abs(_wide(error))
    return jnp.where(size <= 1, size**2 / 2, size - 1 / 2)


def _same_shape(a: jax.Array, b: jax.Array):
    """Broadcasting [B, 1] against [B] gives [B, B] and a loss that looks fine; refuse it."""
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
