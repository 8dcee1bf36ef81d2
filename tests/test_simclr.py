"""A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxhist import devices, losses

# Loss.

VIEWS = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])


def test_nt_xent_is_equation_1():
    want = [1.6782859679, 2.2220798604, 2.2220798604, 1.6782859679]
    got = losses.nt_xent(VIEWS, 0.5)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(np.mean(got), 1.9501829142, rtol=1e-7)


def test_nt_xent_is_numpys_and_its_mean_is_optaxs():
    z, tau = np.random.default_rng(0).normal(size=(12, 5)), 0.3
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    want = []
    for i in range(12):
        j = i + 1 if i % 2 == 0 else i - 1
        total = sum(np.exp(unit[i] @ unit[k] / tau) for k in range(12) if k != i)
        want.append(-np.log(np.exp(unit[i] @ unit[j] / tau) / total))
    got = losses.nt_xent(jnp.asarray(z), tau)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    pairs = jnp.arange(12) // 2
    optaxs = optax.losses.ntxent(jnp.asarray(z, jnp.float32), pairs, tau)
    np.testing.assert_allclose(jnp.mean(got), optaxs, rtol=1e-5)


def test_nt_xent_does_not_see_the_length_of_z_unless_it_is_asked_to():
    scaled = VIEWS * jnp.array([[1.0], [2.0], [3.0], [4.0]])
    same = losses.nt_xent(scaled, 0.5)
    np.testing.assert_allclose(same, losses.nt_xent(VIEWS, 0.5), rtol=1e-6)
    products = losses.view_logits(scaled, 10.0, normalize=False)
    want = scaled @ scaled.T / 10
    np.testing.assert_allclose(products, jnp.where(jnp.eye(4) > 0, -jnp.inf, want), rtol=1e-6)


def test_nt_xents_limits():
    equal = losses.nt_xent(jnp.ones((8, 3)), 0.1)
    np.testing.assert_allclose(equal, np.full(8, np.log(7)), rtol=1e-6)
    matched = jnp.repeat(jnp.eye(4), 2, axis=0)  # and orthogonal to all others
    np.testing.assert_allclose(losses.nt_xent(matched, 0.01), np.zeros(8), atol=1e-6)
    gradient = jax.grad(lambda z: losses.nt_xent(z, 0.1).mean())(jnp.zeros((4, 2)))
    assert np.isfinite(gradient).all()


def test_nt_xent_and_its_gradient_are_those_of_the_whole_batch_on_8_devices():
    """Negatives of a view lie on all devices, and the gradient flows to all of them."""
    z = jax.random.normal(jax.random.key(0), (32, 8))

    def of(mesh):
        value = jax.value_and_grad(lambda z: losses.nt_xent(z, 0.5).mean())
        jitted = jax.jit(value, in_shardings=devices.split(mesh))
        return jitted(jax.device_put(z, devices.split(mesh)))

    (one, gradient_1), (eight, gradient_8) = of(devices.mesh(1)), of(devices.mesh(8))
    np.testing.assert_allclose(one, eight, rtol=1e-6)
    np.testing.assert_allclose(gradient_1, gradient_8, atol=1e-7)
    # Of each half alone it is another one.
    halves = [losses.nt_xent(half, 0.5).mean() for half in (z[:16], z[16:])]
    assert abs(np.mean(halves) - one) > 0.1
