"""A run that begins with what another one has learned."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import jax
from etils import epath

from jaxhist import UserError, checkpoint, devices, log
from jaxhist.algorithm import State, keys
from jaxhist.finite import Diverged
from jaxhist.train import Run


def learned(build: Callable, config: Any, run: Run, part: Callable[[State], Any], like: Any) -> Any:
    """What another run has learned, in the place of what an `init` has drawn.

    Args:
      build: makes the other run's experiment from its configuration.
      config: `start` is the other run's directory, in the same one as this run's; {seed} in it
        stands for this run's seed. Where it is empty, all stays as it was drawn.
      run: this one.
      part: state -> what is wanted of the other run's. No more is read.
      like: what it takes the place of, a pytree of arrays of the same shapes. It lies on the
        devices as they do.

    Raises:
      UserError: there is no such run, it has another network, or it has no checkpoint.
      Diverged: what begins with a run that has diverged has done so too.
    """
    if not config.start:
        return like
    workdir = epath.Path(run.workdir).parent / config.start.replace("{seed}", str(run.seed))
    header, *lines = log.read(workdir)
    if lines and lines[-1]["phase"] == "diverged":
        raise Diverged(0, f"{workdir} has diverged; begin with another run")
    # What it began with itself does not matter any more.
    alone = replace(log.configuration(workdir, header, [type(config)]), start="")
    init = build(alone, Run(workdir=str(workdir), seed=header["seed"])).init
    there = jax.eval_shape(init, keys(0).init)
    shapes = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
    if shapes(part(there)) != shapes(like):
        differing = log.differences(asdict(alone), asdict(replace(config, start="")))
        raise UserError(f"{workdir} holds a run with another network ({differing})")
    wanted = zip(jax.tree.leaves(part(there)), jax.tree.leaves(like), strict=True)
    where = {id(leaf): array.sharding for leaf, array in wanted}
    whole = devices.whole(devices.mesh(run.devices, run.mesh))
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where.get(id(a), whole)), there
    )
    return part(checkpoint.tested(workdir, checkpoint.only(placed, part)))
