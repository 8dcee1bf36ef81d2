"""Section 6: the networks, the table of optimizers, and the rates side by side."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import needs

from experiments import adam_equations
from experiments.adam import CLAIMS, OPTIMIZERS, PRESETS, build
from jaxhist.algorithm import DIVERGED, keys
from jaxhist.claims import Equation, _equation
from jaxhist.train import Run

# Of the sheet: MNIST 784 -> 10, 784-1000-1000-10, c64-c64-c128-1000 on CIFAR-10, 784-500-50.
PARAMETERS = {
    "paper-logistic": 7_850,
    "paper": 1_796_010,
    "paper-convolutional": 2_371_266,
    "paper-autoencoder": 860_884,
}


@needs("mnist")
@needs("cifar10")
@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameters_are_the_papers(preset):
    experiment = build(PRESETS[preset], Run())
    state = jax.eval_shape(experiment.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == PARAMETERS[preset]


def train(config, steps):
    """The first steps: each state and its metrics."""
    experiment, key = build(config, Run(devices=1)), keys(0)
    state, step = jax.jit(experiment.init)(key.init), jax.jit(experiment.step)
    for s in range(steps):
        # Numpy's arrays are nowhere in particular, as the first state: all steps are one program.
        batch = jax.device_get(experiment.data(s, state))
        state, metrics = step(state, batch, jax.random.fold_in(key.step, s))
        yield jax.device_get((state, metrics))


def losses(config, steps):
    """Of the first steps, as {metric: [steps]}."""
    logged = [metrics for _, metrics in train(config, steps)]
    return {name: np.array([metrics[name] for metrics in logged]) for name in logged[0]}


@pytest.mark.parametrize("preset", ["small", "autoencoder"])
def test_side_by_side_each_learns_as_it_does_alone(preset):
    config = replace(PRESETS[preset], widths=(16, 4))
    rates = (0.001, 0.03)
    both = losses(replace(config, rates=rates), 8)
    for rate in rates:
        alone = losses(replace(config, rates=(rate,)), 8)
        np.testing.assert_allclose(both[f"loss {rate:g}"], alone["loss"], rtol=2e-4)
    assert both["count/examples"][0] == 128 and both["diverged"][-1] == 0


def test_what_diverges_stands_still_and_leaves_the_others_alone():
    config = replace(PRESETS["autoencoder"], widths=(16, 4), optimizer="sgd")
    steps = list(train(replace(config, rates=(1e-3, 1e3)), 6))
    second = lambda state: np.concatenate([x[1].ravel() for x in jax.tree.leaves(state.params)])
    frozen, (_, metrics) = [second(state) for state, _ in steps], steps[-1]
    assert metrics["loss 1000"] == DIVERGED and metrics["diverged"] == 1
    assert metrics["loss 0.001"] < 100
    assert np.isfinite(frozen).all()
    np.testing.assert_array_equal(frozen[-1], frozen[-2])


# The first step of rate 0.1 along a gradient of 0.5.
FIRST_STEPS = {
    "adam": 0.1,
    "uncorrected": 0.1 * (1 - 0.9) / (1 - 0.999) ** 0.5,
    "adamax": 0.1,
    "sgd": 0.05,
    "momentum": 0.05,
    "nesterov": 0.05 * 1.9,
    "adagrad": 0.1,
    "rmsprop": 0.1 / (1 - 0.9) ** 0.5,
    "adadelta": 0.1 * 1e-3 / 0.05**0.5,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_table_has_the_papers_conventions(name):
    optimizer = OPTIMIZERS[name](0.1, PRESETS["small"])
    updates, _ = optimizer.update(jnp.float32(0.5), optimizer.init(jnp.float32(1)), jnp.float32(1))
    np.testing.assert_allclose(-updates, FIRST_STEPS[name], rtol=1e-3)


def test_the_rate_falls_with_the_root_of_the_step():
    """Plain SGD from the same parameters: the second step of rate r is 1 / sqrt(2) of r long."""
    config = replace(PRESETS["logistic"], optimizer="sgd", rates=(0.5,), l2=0.0)

    def second_step(decay):
        experiment, key = build(replace(config, decay=decay), Run(devices=1)), keys(0)
        state = jax.device_get(jax.jit(experiment.init)(key.init)).replace(step=np.int32(1))
        moved = jax.tree.map(lambda leaf: leaf * 0 + 1, state.opt_state)  # its counter is at 1
        batch = experiment.data(1, state)
        after, _ = jax.jit(experiment.step)(state.replace(opt_state=moved), batch, key.step)
        return jax.tree.map(lambda a, b: a - b, jax.device_get(after.params), state.params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a * np.sqrt(2), b, rtol=1e-4, atol=1e-7),
        second_step(True),
        second_step(False),
    )


def test_l2_adds_half_the_squared_weights():
    config = PRESETS["logistic"]
    a, b = (losses(replace(config, l2=l2), 1)["loss"][0] for l2 in (0.0, 0.5))
    experiment = build(config, Run(devices=1))
    params = jax.jit(experiment.init)(keys(0).init).params["params"]["Dense_0"]
    np.testing.assert_allclose(b - a, 0.25 * np.sum(params["kernel"] ** 2), rtol=1e-4)


@pytest.mark.parametrize("key", [k for k, claim in CLAIMS.items() if isinstance(claim, Equation)])
def test_equations_hold(key):
    result = _equation(CLAIMS[key])
    assert result["verdict"] == "exact", result["sides"]


def test_nesterov_is_far_below_the_heavy_ball_on_a_long_valley():
    """The sheet's figures, x = (1, 1) in 0.5 x^T diag(1, 0.01) x, momentum 0.99, rate 0.9."""
    assert adam_equations.damping()["Nesterov, h = 0.01"][0] < 0.991
    h = jnp.array([1.0, 0.01])
    ends = {}
    for nesterov in (True, False):
        optimizer = optax.sgd(0.9, momentum=0.99, nesterov=nesterov)
        x, state = jnp.ones(2), optimizer.init(jnp.ones(2))
        for _ in range(500):
            updates, state = optimizer.update(h * x, state)
            x = x + updates
        ends[nesterov] = float(0.5 * jnp.sum(h * x**2))
    assert ends[True] < 1e-5 < 1e-3 < ends[False]
