"""A linear regression: the smallest experiment, for the tests of the trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxhist import losses
from jaxhist.algorithm import descend, keys
from jaxhist.train import Experiment, train

IDENTITY = {"experiment": "tiny", "config": {"rate": 0.1}}
WEIGHTS = np.array([[1.0], [-2.0], [3.0]], np.float32)


def batch(step, size=16):
    x = np.random.default_rng(step).normal(size=(size, 3)).astype(np.float32)
    return {"x": x, "y": x @ WEIGHTS}


def tiny(**changes) -> Experiment:
    """The experiment, with some of its fields changed."""

    def loss(params, extra, batch, key):
        values = losses.mean_squared_error(batch["x"] @ params, batch["y"])
        return values, (extra, {"noise": jax.random.normal(key), "count/examples": len(values)})

    algorithm = descend(lambda key: (jnp.zeros((3, 1)), ()), loss, optax.sgd(0.1, momentum=0.5))
    held_out = batch(10_000)

    def error(state):
        return {"error": float(np.mean((held_out["x"] @ state.params - held_out["y"]) ** 2))}

    experiment = Experiment(
        data=lambda step, state: batch(step),
        batch=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch(0)),
        init=algorithm.init,
        step=algorithm.step,
        evaluate=error,
        test=error,
        steps=20,
        evaluate_every=5,
    )
    return experiment._replace(**changes)


def begun(experiment):
    """The state that a new run begins with, on one device."""
    return experiment.begin(jax.jit(experiment.init)(keys(0).init))


def run_tiny(run, interrupted=lambda: False, **changes):
    return train(tiny(**changes), run, IDENTITY, interrupted)
