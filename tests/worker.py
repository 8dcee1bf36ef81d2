"""One process of a job: `python worker.py WORKDIR [NAME]`.

It trains the experiment of that name in every.py, or a residual network in float64.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp

from experiments import resnet
from jaxhist import processes
from jaxhist.train import Run, train

CONFIG = dataclasses.replace(
    resnet.PRESETS["small"], depth=8, batch=8, steps=20, evaluate_every=20, dtype="float64"
)


def wide(x):
    return x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x


def residual(run):
    jax.config.update("jax_enable_x64", True)
    experiment = resnet.build(CONFIG, run)
    return experiment._replace(init=lambda key: jax.tree.map(wide, experiment.init(key)))


def named(name, run):
    from every import EXPERIMENTS, brief  # what they import takes seconds

    ((module, config),) = [each for other, *each in EXPERIMENTS if other == name]
    brief(setattr)
    return module.build(config, run)


if __name__ == "__main__":
    workdir, *name = sys.argv[1:]
    run = Run(workdir, log_every=1)
    with processes.joined(wanted=False):
        experiment = named(*name, run) if name else residual(run)
        train(experiment, run, {"experiment": "worker", "config": {}})
