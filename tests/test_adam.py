"""The optimizers: the sheets' traces, and where a library's convention is not the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxhist.adam import adam, adamax

GRADIENTS = [1, -0.5, 0.25, 0.1, -0.02]


def trace(optimizer, gradients=GRADIENTS, decay=0.0):
    """theta after each step from 1, in float64; `decay` adds L2 to the gradient."""
    with jax.enable_x64(True):
        theta = jnp.ones([])
        state = optimizer.init(theta)
        path = []
        for g in gradients:
            updates, state = optimizer.update(jnp.float64(g) + decay * theta, state, theta)
            theta = optax.apply_updates(theta, updates)
            path.append(float(theta))
        return path


# The paper's and each library's convention, from theta = 1 along fixed gradients.
TRACES = {
    "sgd": (
        optax.sgd(0.1),
        [0.900000000000, 0.950000000000, 0.925000000000, 0.915000000000, 0.917000000000],
    ),
    # The rate stands outside of the velocity. AlexNet has it inside: the same while it is constant.
    "heavy ball": (
        optax.sgd(0.1, momentum=0.9),
        [0.900000000000, 0.860000000000, 0.799000000000, 0.734100000000, 0.677690000000],
    ),
    # What is kept is phi = theta + mu v, at which the next gradient is taken.
    "nesterov": (
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        [0.810000000000, 0.824000000000, 0.744100000000, 0.675690000000, 0.626921000000],
    ),
    # optax puts eps inside the root: with the paper's sum from 0 and 1e-10 outside the difference
    # is below 1e-7.
    "adagrad from 0": (
        optax.adagrad(0.1, initial_accumulator_value=0.0, eps=1e-20),
        [0.900000000010, 0.944721359556, 0.922899570534, 0.914203918361, 0.915942785849],
    ),
    "adagrad, optax's defaults: from 0.1, eps inside": (
        optax.adagrad(0.1),
        [0.904653745409, 0.947686892107, 0.926651734756, 0.918267298887, 0.919943950345],
    ),
    "rmsprop, eps outside": (
        optax.rmsprop(0.01, decay=0.9, eps=1e-8, eps_in_sqrt=False),
        [0.968377224398, 0.983121419579, 0.975575055901, 0.972409214764, 0.973076484076],
    ),
    "rmsprop, optax's default: eps inside": (
        optax.rmsprop(0.01, decay=0.9, eps=1e-8),
        [0.968377224979, 0.983121419954, 0.975575056392, 0.972409215313, 0.973076484611],
    ),
    "rmsprop of DQN: centred": (
        optax.rmsprop(2.5e-4, decay=0.95, eps=0.01, centered=True),
        [0.998957427930, 0.999431601277, 0.999193629013, 0.999096490386, 0.999116319825],
    ),
    # optax's default rho is 0.9; the paper has no rate.
    "adadelta": (
        optax.adadelta(1.0, rho=0.95, eps=1e-6),
        [0.995527908766, 0.998414621622, 0.996846157327, 0.996197911993, 0.996329522953],
    ),
    "adam": (
        adam(),
        [0.999000000010, 0.998733662974, 0.998393233831, 0.998064833097, 0.997796804589],
    ),
    "adam, not corrected": (
        adam(corrected=False),
        [0.996837723340, 0.995705899990, 0.994020696053, 0.992233665679, 0.990679867236],
    ),
    "adam, eps 1e-3": (
        adam(eps=1e-3),
        [0.999000999001, 0.998734998479, 0.998395083418, 0.998067253159, 0.997799745152],
    ),
    "adamax": (
        adamax(),
        [0.998000000000, 0.997578525894, 0.997127439671, 0.996748869796, 0.996472265048],
    ),
    # The paper's decay is not multiplied by the rate; optax's is.
    "adamw": (
        optax.adamw(1e-3, weight_decay=0.1),
        [0.998900000010, 0.998533772974, 0.998093490453, 0.997665280371, 0.997297485335],
    ),
}


@pytest.mark.parametrize("name", TRACES)
def test_traces(name):
    optimizer, path = TRACES[name]
    np.testing.assert_allclose(trace(optimizer), path, atol=2e-11 if "from 0" not in name else 1e-9)


def test_l2_in_the_gradient_is_not_weight_decay():
    path = [0.999000000009, 0.998624811022, 0.998163855936, 0.997697306735, 0.997268643307]
    np.testing.assert_allclose(trace(adam(), decay=0.1), path, atol=2e-11)


@pytest.mark.parametrize(
    "b1, b2, eps", [(0.9, 0.999, 1e-8), (0.0, 0.99, 1e-3), (0.5, 0.9999, 1e-6)]
)
@pytest.mark.parametrize("rate", [0.003, lambda t: 0.01 / jnp.sqrt(t + 1.0)])
def test_adam_and_adamax_are_optaxs(b1, b2, eps, rate):
    """Over a hundred random gradients of a tree of parameters."""
    rng = np.random.default_rng(0)
    params = {"a": jnp.ones((3, 2)), "b": jnp.zeros(4)}
    for ours, theirs in (
        (adam(rate, b1, b2, eps), optax.adam(rate, b1, b2, eps)),
        (adamax(rate, b1, b2), optax.adamax(rate, b1, b2, eps=1e-12)),
    ):
        states, paths = [ours.init(params), theirs.init(params)], [params, params]
        update = [jax.jit(optimizer.update) for optimizer in (ours, theirs)]
        for _ in range(100):
            gradient = jax.tree.map(lambda p: np.array(rng.normal(size=p.shape), p.dtype), params)
            for i in range(2):
                updates, states[i] = update[i](gradient, states[i], paths[i])
                paths[i] = jax.tree.map(np.add, paths[i], updates)
        for name in params:
            np.testing.assert_allclose(paths[0][name], paths[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", [adam(0.01), adamax(0.01)])
def test_no_step_is_longer_than_alpha_where_gradients_are_steady(optimizer):
    """Section 2.1, for a gradient of any scale."""
    for scale in (1e-4, 1.0, 1e4):
        steps = np.abs(np.diff([1.0, *trace(optimizer, [scale] * 20)]))
        np.testing.assert_allclose(steps, 0.01, rtol=1e-3)


def test_adamax_stands_still_before_the_first_gradient():
    assert trace(adamax(), [0.0, 0.0]) == [1.0, 1.0]
    assert trace(adamax(), [0.0, 1.0])[1] < 1
