"""One process of a job, in float64: `python worker.py WORKDIR`."""

import dataclasses
import sys

import jax
import jax.numpy as jnp

from experiments import resnet
from jaxhist import processes
from jaxhist.train import Run, train

CONFIG = dataclasses.replace(
    resnet.PRESETS["small"], depth=8, batch=16, steps=20, evaluate_every=20, dtype="float64"
)


def wide(x):
    return x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    with processes.joined(wanted=False):
        run = Run(workdir=sys.argv[1], log_every=1)
        experiment = resnet.build(CONFIG, run)
        init = lambda key: jax.tree.map(wide, experiment.init(key))
        train(experiment._replace(init=init), run, {"experiment": "worker", "config": {}})
