"""Adam: A Method for Stochastic Optimization.

Diederik P. Kingma, Jimmy Lei Ba, 2014. arXiv:1412.6980. Here: Algorithm 1 and AdaMax (Algorithm 2),
as optax transformations. All other optimizers are optax's own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Moments(NamedTuple):
    """What the optimizer remembers."""

    t: jax.Array  # [] int32, the number of steps taken
    m: Any  # the running mean of the gradient, like the parameters
    v: Any  # that of its square; in AdaMax, u: the greatest of its decayed absolute values


def adam(
    alpha: optax.ScalarOrSchedule = 0.001,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    corrected: bool = True,
) -> optax.GradientTransformation:
    """Algorithm 1.

        m_t = b1 m_t-1 + (1 - b1) g_t         mhat = m_t / (1 - b1^t)
        v_t = b2 v_t-1 + (1 - b2) g_t^2       vhat = v_t / (1 - b2^t)
        theta_t = theta_t-1 - alpha mhat / (sqrt(vhat) + eps)

    Args:
      alpha: the step size, or a schedule of it.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.
      corrected: whether m and v, which begin at 0, are corrected for that (section 3). Without, it
        is what section 6.4 compares with.
    """

    def update(gradient, state, params=None):
        t = state.t + 1
        m = _decayed(b1, state.m, gradient)
        v = _decayed(b2, state.v, jax.tree.map(jnp.square, gradient))
        mhat, vhat = (_corrected(m, b1, t), _corrected(v, b2, t)) if corrected else (m, v)
        steps = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mhat, vhat)
        return steps, Moments(t, m, v)

    return optax.chain(
        optax.GradientTransformation(_begin, update), optax.scale_by_learning_rate(alpha)
    )


def adamax(
    alpha: optax.ScalarOrSchedule = 0.002, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Algorithm 2, Adam with the infinity norm in place of the second: no step is above alpha.

        m_t = b1 m_t-1 + (1 - b1) g_t
        u_t = max(b2 u_t-1, |g_t|)
        theta_t = theta_t-1 - alpha / (1 - b1^t) m_t / u_t

    Where no gradient has come yet, u_t is 0, and so is the step.
    """

    def update(gradient, state, params=None):
        t = state.t + 1
        m = _decayed(b1, state.m, gradient)
        u = jax.tree.map(lambda u, g: jnp.maximum(b2 * u, jnp.abs(g)), state.v, gradient)
        steps = jax.tree.map(
            lambda m, u: jnp.where(u > 0, m / jnp.where(u > 0, u, 1), 0), _corrected(m, b1, t), u
        )
        return steps, Moments(t, m, u)

    return optax.chain(
        optax.GradientTransformation(_begin, update), optax.scale_by_learning_rate(alpha)
    )


def _begin(params) -> Moments:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Moments(jnp.zeros([], jnp.int32), zeros, zeros)


def _decayed(decay, mean, value):
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, mean, value)


def _corrected(mean, decay, t):
    return jax.tree.map(lambda x: x / (1 - decay**t), mean)
