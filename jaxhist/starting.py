"""A run that begins with what another one has learned."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from etils import epath

from jaxhist import UserError, checkpoint, log
from jaxhist.algorithm import State, keys
from jaxhist.finite import Diverged
from jaxhist.train import Run


def learned(build: Callable, config: Any, run: Run, part: Callable[[State], Any], like: Any) -> Any:
    """What another run has learned, in the place of what an `init` has drawn.

    It is not read where a state is only described, by a run without a directory, or comes from this
    run's own checkpoint: what it has begun with may be gone by then.

    Args:
      build: makes the other run's experiment from its configuration.
      config: `start` is the other run's directory, in the same one as this run's; {seed} in it
        stands for this run's seed.
      run: this one.
      part: state -> what is wanted of the other run's.
      like: what it takes the place of, a pytree of arrays of the same shapes.

    Raises:
      UserError: there is no such run, it has another network, or it has no checkpoint.
      Diverged: what begins with a run that has diverged has done so too.
    """
    if not run.workdir or checkpoint.finished(run.workdir):
        return like
    workdir = epath.Path(run.workdir).parent / config.start.replace("{seed}", str(run.seed))
    header, *lines = log.read(workdir)
    if lines and lines[-1]["phase"] == "diverged":
        raise Diverged(0, f"{workdir} has diverged; begin with another run")
    # What it began with itself does not matter any more.
    alone = replace(log.configuration(workdir, header, [type(config)]), start="")
    init = build(alone, Run(workdir=str(workdir), seed=header["seed"])).init
    shapes = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
    wanted = shapes(like)
    if shapes(part(jax.eval_shape(init, keys(0).init))) != wanted:
        raise UserError(f"{workdir} holds a run with another network: {header['config']}")
    with jax.ensure_compile_time_eval():  # also while a program is traced
        found = jax.device_get(part(checkpoint.tested(workdir, init)))
    # A program would have constants written into it, which takes long where they are many and fails
    # above 2 GB; so it asks for them when it runs. They are in memory by then: while it waits for
    # files, several devices wait for each other and give up after 40 seconds.
    return jax.pure_callback(lambda: found, wanted)
