"""Adam: A Method for Stochastic Optimization: what is exact about it, and about other optimizers.

`python -m experiments.adam claims` puts these to the test; each returns name -> two sides.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxhist import losses
from jaxhist.adam import adam
from jaxhist.data import images


def path(optimizer, gradients, theta=1.0, decay=0.0) -> np.ndarray:
    """theta after each step along these gradients, to which `decay` theta is added."""

    def step(carry, gradient):
        theta, state = carry
        updates, state = optimizer.update(gradient + decay * theta, state, theta)
        theta = optax.apply_updates(theta, updates)
        return (theta, state), theta

    theta = jnp.float64(theta)
    return np.asarray(jax.lax.scan(step, (theta, optimizer.init(theta)), jnp.array(gradients))[1])


@jax.enable_x64(True)
def first_steps() -> dict[str, tuple[float, float]]:
    """Section 3: without correction the first step is alpha (1 - b1) / sqrt(1 - b2)."""
    sides = {}
    for b1 in (0.0, 0.9):
        for b2 in (0.99, 0.999, 0.9999):
            first = lambda corrected, b1=b1, b2=b2: (
                -path(adam(1.0, b1, b2, eps=0.0, corrected=corrected), [1.0], theta=0.0)[0]
            )
            sides[f"with, {b1:g}, {b2:g}"] = first(True), 1.0
            sides[f"without, {b1:g}, {b2:g}"] = first(False), (1 - b1) / (1 - b2) ** 0.5
    return sides


@jax.enable_x64(True)
def scaled_losses() -> dict[str, tuple[float, float]]:
    """Section 2.1: the path of a logistic regression where the loss is multiplied by a number."""
    train = images.scaled(images.digits(180)).load()["train"]
    x, label = jnp.asarray(train["input"], jnp.float64), jnp.asarray(train["label"])

    def walk(optimizer, scale, steps):
        loss = lambda w: scale * jnp.mean(losses.categorical_cross_entropy(x @ w, label))

        def step(carry, _):
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w), state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.zeros((64, 10))
        return jax.lax.scan(step, (w, optimizer.init(w)), length=steps)[0][0]

    exact, sides = adam(0.01, eps=1e-30), {}  # eps is the one thing that knows the scale
    usual = walk(exact, 1.0, 100)
    for scale in (1e-3, 1e3):
        w = walk(exact, scale, 100)
        sides[f"Adam, loss x {scale:g}"] = jnp.linalg.norm(w), jnp.linalg.norm(usual)
        sides[f"cosine, loss x {scale:g}"] = (
            jnp.vdot(w, usual) / (jnp.linalg.norm(w) * jnp.linalg.norm(usual)), 1.0
        )  # fmt: skip
        step, usual_step = walk(optax.sgd(0.01), scale, 1), walk(optax.sgd(0.01), 1.0, 1)
        sides[f"SGD's step, x {scale:g}"] = (
            jnp.linalg.norm(step) / jnp.linalg.norm(usual_step),
            scale,
        )
    return {name: (float(left), float(right)) for name, (left, right) in sides.items()}


@jax.enable_x64(True)
def damping() -> dict[str, tuple[float, float]]:
    """How much of an error is left after a step down a parabola of curvature h, in the long run:
    the spectral radius of the step as a map of position and velocity."""
    mu, rate, sides = 0.99, 0.9, {}
    for h in (1.0, 0.01):
        for name, nesterov in (("heavy ball", False), ("Nesterov", True)):
            optimizer = optax.sgd(rate, momentum=mu, nesterov=nesterov)
            place, leaves = jax.tree.flatten(optimizer.init(jnp.float64(0)))[::-1]

            def step(both, optimizer=optimizer, place=place, h=h):
                theta, velocity = both
                state = jax.tree.unflatten(place, [velocity])
                updates, state = optimizer.update(h * theta, state)
                return jnp.stack([theta + updates, *jax.tree.leaves(state)])

            assert len(leaves) == 1  # the velocity
            eigenvalues = np.linalg.eigvals(jax.jacobian(step)(jnp.zeros(2)))
            theory = mu * (1 - rate * h) if nesterov else mu
            sides[f"{name}, h = {h:g}"] = float(np.abs(eigenvalues).max()), theory**0.5
    return sides


@jax.enable_x64(True)
def steady() -> dict[str, tuple[float, float]]:
    """The step along a gradient that is always 1, at step 1,000, in parts of the rate."""
    step = lambda optimizer: -np.diff(path(optimizer, [1.0] * 1000))[-1]
    return {
        "AdaGrad": (step(optax.adagrad(1.0, initial_accumulator_value=0.0)), 1000**-0.5),
        "RMSProp": (step(optax.rmsprop(1.0, decay=0.9)), 1.0),
        "Adam": (step(adam(1.0, eps=0.0)), 1.0),
    }


@jax.enable_x64(True)
def decays() -> dict[str, tuple[float, float]]:
    """theta after steps of rate r along gradients: with l theta added to the gradient, and shrunk
    by r l theta beside the step."""
    gradients, r, l = [1.0, -0.5, 0.25, 0.1, -0.02], 0.1, 0.1  # noqa: E741
    decoupled = lambda optimizer: optax.chain(optimizer, optax.add_decayed_weights(-r * l))
    apart = path(decoupled(adam(r)), gradients)[-1]
    first = lambda **l2: path(adam(r, eps=0.0), gradients[:1], **l2)[0]
    return {
        "SGD": (
            path(optax.sgd(r), gradients, decay=l)[-1],
            path(decoupled(optax.sgd(r)), gradients)[-1],
        ),
        "Adam, decoupled: AdamW": (apart, path(optax.adamw(r, weight_decay=l), gradients)[-1]),
        "Adam, first step: with and without L2": (first(decay=l), first()),
    }
