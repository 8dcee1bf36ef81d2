"""What a preset needs on a machine that you do not have: does it fit, and how long does it take?

The step that the trainer would run is compiled for TPUs that are not there: libtpu, which comes
with the `tpu` extra, does so on any Linux machine. For a GPU, or without libtpu, only what follows
from shapes is said. Nothing is run, and no data is read.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from jaxhist import UserError, devices, finite, flops, hlo, tell
from jaxhist.algorithm import State, keys
from jaxhist.chips import GIB, Slice, named
from jaxhist.devices import Axes
from jaxhist.files import failing_in_one_line, write_durably
from jaxhist.train import Experiment, Run

Build = Callable[[Any, Run], Experiment]


@dataclass(frozen=True)
class Options:
    """For which machine."""

    topology: str  # a chip and the shape of its slice, such as v5p:4x4x8, or h100:8
    search: bool = False  # where it does not fit, try other meshes, --remat and --parts
    output: str = ""  # a JSON file that the figures are added to


@dataclass(frozen=True)
class Plan:
    """What a step needs. Bytes and seconds are of one chip; what was not compiled is not known."""

    steps: int
    memory: dict[str, int]  # bytes for each purpose, as in `MEMORY`
    available: float  # bytes
    flops: int  # of products of matrices and convolutions, on all chips together
    seconds: dict[str, float]  # for each limit, taken alone, as in `LIMITS`
    sent: float | None = None  # bytes to other chips
    compiling: float | None = None  # seconds to compile
    refused: str = ""  # why it does not fit

    @property
    def needed(self) -> int:
        return sum(self.memory.values())

    @property
    def step(self) -> float:
        """Seconds, if all that a chip can do at once overlaps: the longest of them."""
        return max(self.seconds.values())

    @property
    def days(self) -> float:
        return self.step * self.steps / 86400


MEMORY = {
    "params": "parameters",
    "opt_state": "the optimizer's memory",
    "extra": "what else a checkpoint holds",
    "batch": "a batch",
    "padding": "padding of these",
    "temporaries": "activations, gradients and other temporaries",
    "program": "the program",
}
LIMITS = {
    "products": "products of matrices and convolutions, at the chip's peak",
    "memory": "what is read from memory and written, at its rate",
    "links": "what is sent to other chips, at the rate of the links",
    "kernels": "all kernels but what is sent, as the compiler estimates",
}


# In a process of its own: libtpu, once loaded, looks for TPUs, and may end the process.
INSIDE = {
    "JAXHIST_PLANS": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # no TPU is asked what it is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nor is one used, so others may compile meanwhile
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def inside() -> bool:
    """Whether this is the process that compiles."""
    return "JAXHIST_PLANS" in os.environ


def outside() -> int:
    """Run this same command in a process that compiles.

    Returns:
      Its exit code.

    Raises:
      UserError: it was ended by a signal.
    """
    code = subprocess.run(sys.orig_argv, env=os.environ | INSIDE).returncode
    if code < 0:
        raise UserError(
            f"the process that compiles was ended by {signal.Signals(-code).name}; after SIGKILL, "
            "try it on a machine with more memory"
        )
    return code


def main(command: str, build: Build, config: Any, run: Run, options: Options):
    """Print the plan for a configuration.

    Args:
      command: as it was given.
      build: makes the experiment.
      config: of the experiment.
      run: whose mesh is meant.
      options: for which machine.

    Raises:
      UserError: it does not fit, with what to try; or there is no such machine.
    """
    where = named(options.topology)
    plan = make(build, config, run, where)
    tell(_table(where, run, plan))
    found = {command: plan}
    if plan.refused and options.search:
        tried = search(build, config, run, where)
        found |= {f"{command} {more}": plan for more, plan in tried}
    if options.output:
        _write(Path(options.output), where, found)
    if all(plan.refused for plan in found.values()):
        others = "--run.mesh.fsdp, --remat or --parts if this experiment has them, or --search"
        raise UserError(
            f"it needs {_size(plan.needed)} on each chip, which has {_size(plan.available)}; try "
            f"more chips, a smaller --batch{'' if options.search else ', ' + others}"
        )


def search(build: Build, config: Any, run: Run, where: Slice) -> Iterator[tuple[str, Plan]]:
    """Try what `candidates` proposes until something fits; yields options and their plan."""
    for other, on in candidates(build, config, run, where):
        more = " ".join([*_options(on), *_changes(config, other)])
        try:
            plan = make(build, other, on, where)
        except UserError as error:
            tell(f"tried {more}: {error}")
            continue
        tell(f"tried {more}: {_size(plan.needed)}{', too much' if plan.refused else ''}")
        yield more, plan
        if not plan.refused:
            tell(_table(where, on, plan))
            return


def make(build: Build, config: Any, run: Run, where: Slice) -> Plan:
    """The plan for one configuration on one mesh.

    Raises:
      UserError: the configuration does not go with the mesh, or the compiler fails.
    """
    key = keys(0)  # made here: the mesh's devices compute nothing
    with _on(build, config, run, where) as (mesh, experiment, layout):
        memory = _held(mesh, experiment, layout)
        program = finite.traced(experiment.step, key.step, mesh, layout, experiment.batch)
        cost = flops.count(program.jaxpr.jaxpr)
        plan = Plan(
            steps=experiment.steps,
            memory=memory,
            available=where.chip.memory,
            flops=cost,
            seconds={"products": cost / mesh.size / devices.PEAK_FLOPS[where.chip.kind]},
        )
        if plan.needed > plan.available:
            return dataclasses.replace(plan, refused="what a checkpoint holds is too much already")
        return _compiled(program, plan, where) if where.devices else plan


@contextlib.contextmanager
def _on(
    build: Build, config: Any, run: Run, where: Slice
) -> Iterator[tuple[Mesh | AbstractMesh, Experiment, State]]:
    """Inside, programs are for this mesh; yields it, the experiment, and the layout of its state.

    Raises:
      UserError: the configuration does not go with the mesh.
    """
    if run.devices:
        raise UserError("--topology says how many chips there are; leave --run.devices away")
    key = keys(0)
    within = jax.set_mesh if where.devices else jax.sharding.use_abstract_mesh
    with devices.elsewhere(where.mesh_of):
        mesh = devices.mesh(0, run.mesh)
        experiment = build(config, dataclasses.replace(run, workdir=""))
    devices.check_divides(mesh, experiment.batch)
    with within(mesh):
        shapes = jax.eval_shape(experiment.init, key.init)
        yield mesh, experiment, devices.layout(mesh, shapes, experiment.tensor)


def _held(mesh: Mesh | AbstractMesh, experiment: Experiment, layout: State) -> dict[str, int]:
    """The bytes on each chip of what a checkpoint holds, and of a batch."""
    parts = {name: getattr(layout, name) for name in ("params", "opt_state", "extra")}
    parts["batch"] = devices.spread(mesh, experiment.batch)
    return {name: _bytes(tree) for name, tree in parts.items()}


def _compiled(program: jax.stages.Traced, plan: Plan, where: Slice) -> Plan:
    """The plan, with what the compiler says."""
    begin = time.monotonic()
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return _refused(plan, str(error))
    seconds = time.monotonic() - begin
    has, does = compiled.memory_analysis(), hlo.totals(compiled.as_text(), where.count)
    # At the peak, which the compiler holds against the memory of the chip. The sum of all that it
    # lays out is more: not all of that is there at once.
    more = {
        "padding": max(has.argument_size_in_bytes - plan.needed, 0),
        "temporaries": max(has.peak_memory_in_bytes - has.argument_size_in_bytes, 0),
        "program": has.generated_code_size_in_bytes,
    }
    limits = {
        "memory": does.moved / where.chip.bandwidth,
        "links": does.sent / where.chip.links,
        "kernels": does.cycles / where.chip.clock,
    }
    return dataclasses.replace(
        plan,
        memory=plan.memory | more,
        seconds=plan.seconds | limits,
        sent=does.sent,
        compiling=seconds,
    )


def _refused(plan: Plan, error: str) -> Plan:
    """The plan, with the compiler's reason, where that is a memory too small."""
    size = r"([\d.]+)([KMGT])"
    # Either is of all that is there at once, what a checkpoint holds among it.
    used = re.search(rf"Used {size} of \S+ hbm", error)
    used = used or re.search(rf"HLO temporaries \({size}\)", error)
    if not used:
        raise UserError(f"the compiler fails: {' '.join(error.split())[:300]}")
    more = round(float(used[1]) * 1024 ** " KMGT".index(used[2])) - plan.needed
    most = re.search(r'Size: (\S+)\s.*?op_name="(.*?)".*?Shape: (\S+?\])', error, re.DOTALL)
    largest = f"; the largest array, {most[3]} of {most[1]}, is of {most[2]}" if most else ""
    return dataclasses.replace(
        plan,
        memory=plan.memory | {"temporaries": more},
        refused=f"what is computed on the way is too much{largest}",
    )


def candidates(build: Build, config: Any, run: Run, where: Slice) -> Iterator[tuple[Any, Run]]:
    """What may fit, the faster first. Layers are computed again only if nothing else helps, and
    then a batch is taken in parts. Products are split over few chips rather than many. The state is
    split over as few as leave half of their memory free, and then over as many as can be."""
    uncompiled = where._replace(devices=None)
    for other, tensor in itertools.product(_with_less(config), (1, 2, 4, 8)):
        fitting = {}
        for fsdp in (n for n in range(1, where.count + 1) if where.count % (n * tensor) == 0):
            on = dataclasses.replace(run, mesh=Axes(0, fsdp, tensor))
            try:
                with _on(build, other, on, uncompiled) as laid_out:
                    needed = sum(_held(*laid_out).values())
            except UserError:  # the model or the batch cannot be split so
                continue
            if needed <= where.chip.memory:
                fitting[on] = needed
        half = [on for on, needed in fitting.items() if needed < where.chip.memory / 2]
        for on in dict.fromkeys(half[:1] + list(fitting)[-1:]):
            if (other, on.mesh) != (config, run.mesh):
                yield other, on


def _with_less(config: Any) -> list[Any]:
    """The configuration, and others that need less memory on the way, where it has such fields."""
    configs = [config]
    if getattr(config, "remat", True) is False:
        configs.append(dataclasses.replace(config, remat=True))
    if getattr(config, "parts", 0) == 1:
        configs += [dataclasses.replace(configs[-1], parts=parts) for parts in (4, 16)]
    return configs


def _bytes(layout: Any) -> int:
    """On each chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(layout)
    )


def _changes(config: Any, other: Any) -> list[str]:
    """As options, such as `--remat` and `--parts 4`."""
    before, after = dataclasses.asdict(config), dataclasses.asdict(other)
    changed = {name: value for name, value in after.items() if value != before[name]}
    return [
        f"--{name}" if value is True else f"--{name} {value}" for name, value in changed.items()
    ]


def _options(run: Run) -> list[str]:
    sizes = dataclasses.asdict(run.mesh).items()
    return [f"--run.mesh.{axis} {n}" for axis, n in sizes if n != getattr(devices.WHOLE, axis)]


def _table(where: Slice, run: Run, plan: Plan) -> str:
    lines = [" ".join([f"{where.count:,} x {where.chip.kind} ", *_options(run)]).rstrip()]
    row = lambda name, figure, says: lines.append(f"{name:10}{figure:>14}  {says}")
    for name, size in plan.memory.items():
        if size:
            row("memory", _size(size), MEMORY[name])
    verdict = f"it does not fit: {plan.refused}" if plan.refused else "it fits"
    if not plan.refused and plan.compiling is None:
        compiler = "; for TPUs, pip install -e '.[tpu]'" if where.chip.clock else ""
        verdict = f"nothing was compiled, so activations are not among it{compiler}"
    row("memory", _size(plan.needed), f"of {_size(plan.available)} a chip: {verdict}")
    row("FLOPs", f"{plan.flops:.3g}", "of products in a step, of all chips together")
    if plan.refused:
        return "\n".join(lines)
    for limit, seconds in plan.seconds.items():
        row("seconds", f"{seconds:.3g}", LIMITS[limit])
    row("seconds", f"{plan.step:.3g}", "a step, if all of these overlap: the longest")
    row("days", f"{plan.days:.3g}", f"for {plan.steps:,} such steps")
    if plan.sent is not None:
        row("sent", _size(plan.sent), "to other chips by each, in a step")
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"


def _write(path: Path, where: Slice, found: dict[str, Plan]):
    """Add plans to a file, under the commands that make them."""
    packages = ["jax", "libtpu"] if where.devices else ["jax"]
    versions = {name: importlib.metadata.version(name) for name in packages}
    try:
        plans = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is not a file of plans ({error}); choose another") from error
    for command, plan in found.items():
        plans[command] = {
            "chips": where.count,
            "kind": where.chip.kind,
            "fits": None if plan.compiling is None and not plan.refused else not plan.refused,
            "needed": plan.needed,
            "step": plan.step,
            "days": plan.days,
            **dataclasses.asdict(plan),
            "versions": versions,
        }
    with failing_in_one_line(path.parent):
        write_durably(path, json.dumps(plans, indent=1) + "\n")
