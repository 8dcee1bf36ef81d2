"""Linear regression by gradient descent, the smallest experiment.

Adrien-Marie Legendre, 1805, and Carl Friedrich Gauss, 1809: least squares, and why it is likely.

Ten measurements of 442 patients, and how far their diabetes went in a year. Every experiment has
these four parts; read this one first.

    python -m experiments.regression train        ten seconds; explains 0.32 of the variance
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epy

from jaxhist import devices, losses
from jaxhist.algorithm import descend
from jaxhist.claims import Equation
from jaxhist.cli import main
from jaxhist.data import batches
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.train import Experiment, Run

with epy.lazy_imports():  # they take a second
    from sklearn import datasets, model_selection, preprocessing


@dataclass(frozen=True)
class Config:
    batch: PositiveInt = 64
    rate: float = 0.01
    steps: NonNegativeInt = 1000
    evaluate_every: PositiveInt = 100


PRESETS = {"small": Config()}


def patients() -> list[dict[str, np.ndarray]]:
    """For training, validation and test: x [N, 10] and y [N, 1], of mean 0 and variance 1."""
    both = np.column_stack(datasets.load_diabetes(return_X_y=True))
    rest, test = model_selection.train_test_split(both, test_size=88, random_state=0)
    train, validation = model_selection.train_test_split(rest, test_size=64, random_state=0)
    scale = preprocessing.StandardScaler().fit(train).transform
    tables = [scale(table).astype(np.float32) for table in (train, validation, test)]
    return [{"x": table[:, :-1], "y": table[:, -1:]} for table in tables]


def build(config: Config, run: Run) -> Experiment:
    check(config)
    # Data.
    train, validation, test = patients()
    mesh = devices.mesh(run.devices, run.mesh)
    data = batches.on_device(lambda: train, config.batch, run.seed, mesh, lambda batch, key: batch)

    # Model.
    model = nn.Dense(1)

    # Loss.
    def loss(params, extra, batch, key):
        values = losses.mean_squared_error(model.apply(params, batch["x"]), batch["y"])
        return values, (extra, {"count/examples": config.batch})

    def measure(state, table):
        error = jnp.mean(
            losses.mean_squared_error(model.apply(state.params, table["x"]), table["y"])
        )
        return {"loss": error, "explained": 1 - error / jnp.var(table["y"])}  # of the variance, R^2

    # Algorithm.
    algorithm = descend(lambda key: (model.init(key, train["x"]), ()), loss, optax.sgd(config.rate))

    return Experiment(
        data=data,
        batch={
            "x": jax.ShapeDtypeStruct((config.batch, 10), jnp.float32),
            "y": jax.ShapeDtypeStruct((config.batch, 1), jnp.float32),
        },
        init=algorithm.init,
        step=algorithm.step,
        evaluate=lambda state: measure(state, validation),
        test=lambda state: measure(state, test),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
    )


# Claims.


def likelihood() -> dict[str, tuple[float, float]]:
    """Gauss: errors of a normal distribution of variance v have the negative log-likelihood
    MSE / 2v + log(2 pi v) / 2, so the most likely line has the least squares. Of the 290 patients,
    for a line drawn at random, in float64."""
    with jax.enable_x64(True):
        x, y = (jnp.asarray(part, jnp.float64) for part in patients()[0].values())
        w = jax.random.normal(jax.random.key(0), (10, 1))
        square = lambda w: jnp.mean(losses.mean_squared_error(x @ w, y))
        sides = {}
        for v in (0.5, 1.0, 4.0):
            log_v = jnp.full_like(y, jnp.log(v))
            unlikely = lambda w, log_v=log_v: jnp.mean(
                losses.gaussian_negative_log_likelihood(x @ w, log_v, y)
            )
            sides[f"loss, v = {v}"] = unlikely(w), square(w) / (2 * v) + jnp.log(2 * jnp.pi * v) / 2
            gradients = jax.grad(unlikely)(w), jax.grad(square)(w) / (2 * v)
            sides[f"|gradient|, v = {v}"] = tuple(map(jnp.linalg.norm, gradients))
            sides[f"their product, v = {v}"] = (
                jnp.vdot(*gradients),
                jnp.vdot(gradients[1], gradients[1]),
            )
        return {name: (float(left), float(right)) for name, (left, right) in sides.items()}


CLAIMS = {
    "L1": Equation(
        says="The squared error is a Gaussian's negative log-likelihood: least squares are likely.",
        paper="Gauss 1809, Theoria motus, book 2, section 3",
        sides=likelihood,
    )
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
