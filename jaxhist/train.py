"""The loop. It knows no model, no loss and no optimizer: only an Experiment."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxhist import UserError, devices, files, finite, flops, log, plots, processes, tell, warn
from jaxhist.algorithm import Batch, Key, Metrics, State, keys
from jaxhist.checkpoint import Checkpoints, Progress
from jaxhist.devices import WHOLE, Axes


class Experiment(NamedTuple):
    """What to learn."""

    data: Callable[[int, State], Batch]  # (step, state) -> batch, a function of the step
    batch: Batch  # its shapes and dtypes as jax.ShapeDtypeStructs, known without the data
    init: Callable[[Key], State]
    step: Callable[[State, Batch, Key], tuple[State, Metrics]]  # metrics: `loss...`, `count/...`
    evaluate: Callable[[State], dict[str, Any]]  # on validation data: scalars, uint8 pictures
    test: Callable[[State], dict[str, Any]]  # on test data: asked once, at the end
    steps: int
    evaluate_every: int
    score: str = ""  # the metric of evaluate, the more the better, that chooses the best checkpoint
    patience: int = 0  # evaluations without a better score before stopping; 0 never stops
    save_every: int = 200  # steps from one checkpoint to the next; more for a large state
    tensor: devices.Rules = devices.NOTHING  # what of the state is split over that axis


@dataclass(frozen=True)
class Run:
    """How to run it. Nothing here, but the seed, changes what is learned."""

    workdir: str = ""  # where the run lives, runs/NAME-PRESET if not given
    seed: int = 0  # of the initialisation, the order of the data and all noise
    log_every: int = 20  # steps from one line of the log to the next
    save_every: int = 0  # steps from one checkpoint to the next, 0 for the experiment's own
    devices: int = 0  # how many devices to use, 0 for all
    mesh: Axes = WHOLE  # how many there are along each axis of their mesh
    distributed: bool = False  # be one of the processes of a job
    profile: int = 0  # steps to record for TensorBoard's profiler, after the first ten


class Interrupted(Exception):
    """Asked to stop: everything is saved, and the same call goes on from there."""


def train(
    experiment: Experiment,
    run: Run,
    identity: dict[str, Any],
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train, from the newest checkpoint in `run.workdir` if there is one, to the end.

    Args:
      experiment: what to learn.
      run: how to run it.
      identity: what must be the same for a run to go on, such as its name and configuration.
      interrupted: asked after each step; where it says True, the state is saved and the run ends.

    Returns:
      The metrics of the test, at the best checkpoint where there is a score, else at the last.

    Raises:
      UserError: one line on what is wrong. What was saved is still there.
      Interrupted: after the save.
    """
    mesh = devices.mesh(run.devices, run.mesh)
    devices.check_divides(mesh, experiment.batch)
    save_every = run.save_every or experiment.save_every
    everies = run.log_every, save_every, experiment.evaluate_every
    for name, every in zip(("log_every", "save_every", "evaluate_every"), everies, strict=True):
        if every < 1:
            raise UserError(f"{name} must be at least 1")
    key = keys(run.seed)
    workdir = epath.Path(run.workdir)
    identity = {**identity, "seed": run.seed}
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        # 1. Nobody else trains here, and what is here is this run.
        home = stack.enter_context(processes.home(workdir))
        starts = stack.enter_context(log.claim(home, identity))
        here = {**devices.machine(mesh), "arithmetic": devices.arithmetic()}
        if (differing := log.changed(workdir, starts, here)) and processes.first():
            warn(f"{workdir} was trained elsewhere ({differing}); its bits may be others from now")

        # 2. The newest whole checkpoint, or a new state.
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir)))
        newest = checkpoints.begin()
        shapes = jax.eval_shape(experiment.init, key.init)
        layout = devices.layout(mesh, shapes, experiment.tensor)
        if newest is not None:
            state, progress = checkpoints.restore(newest, layout)
        else:
            if starts:
                warn(f"{workdir} holds a run but no checkpoint yet; it begins again")
            init = jax.jit(experiment.init, out_shardings=devices.shardings(layout))
            state, progress = init(key.init), Progress()
        start = step = int(state.step)

        # 3. The step, compiled once: what is compiled takes no other shapes.
        batch = devices.put(mesh, experiment.data(step, state), experiment.batch)
        nonfinite = devices.place(np.int32(finite.NEVER), devices.whole(mesh))
        program = finite.traced(experiment.step, key.step, mesh, layout, experiment.batch)
        tell(f"compiling for {devices.describe(mesh)}")
        update = program.lower().compile()

        # 4. The log, cut back to the checkpoint.
        here = {"step": start, "time": time.strftime("%F %T%z"), **here}
        header = {**identity, "starts": [*starts, here]}
        cost, peak = flops.count(program.jaxpr.jaxpr), devices.peak_flops(mesh)
        history = log.Log(home, header, start, experiment.steps, cost, peak)
        stack.callback(history.close)

        # 5. The loop. While one step runs, the next batch is made; no more is ahead, so that a stop
        # is soon. Only an evaluation and a save wait for the step itself.
        def over() -> bool:
            return step >= experiment.steps or 0 < experiment.patience <= progress.since

        asked = processes.Agreement(mesh)
        stopping = asked(interrupted())
        try:
            while not over() and not stopping:
                before = nonfinite
                with history.profiling(step - start - 10, run.profile):
                    state, metrics = update(state, batch, before)
                nonfinite = metrics["nonfinite"]
                step += 1
                before.block_until_ready()
                with history.fetching(nonfinite):
                    batch = devices.put(mesh, experiment.data(step, state), experiment.batch)
                stopping = asked(interrupted())
                evaluating = step % experiment.evaluate_every == 0 or step == experiment.steps
                saving = stopping or step % save_every == 0
                if step % run.log_every == 0:
                    history.train(step, metrics)
                if evaluating or saving:
                    history.flush()
                    finite.check(step - 1, state, nonfinite)
                if evaluating:
                    with history.pausing("evaluating"):
                        scores = experiment.evaluate(state)
                    history.write("evaluate", step, scores)
                    if experiment.score:
                        progress = progress.after(step, float(scores[experiment.score]))
                if saving or over() or progress.best_step == step:
                    with history.pausing("saving"):
                        checkpoints.save(step, state, progress)
            checkpoints.wait()
        except finite.NonFinite as error:
            checkpoints.wait()
            batch = devices.gathered(mesh, experiment.data(error.step, state))
            file = files.write_arrays(home, error.step, batch)
            history.write("diverged", error.step, {})
            raise finite.Diverged(
                error.step,
                f"{error}; its batch is in {file}, the last good checkpoint is "
                f"{next(iter(checkpoints.steps()), 'none')}; try a lower learning rate elsewhere",
            ) from error
        if stopping and not over():
            raise Interrupted

        # 6. The test, once, of the best state where there is a score, else of the last.
        state = checkpoints.best(state, progress, layout)
        result = experiment.test(state)
        history.write("test", int(state.step), result)
        plots.curves(home)
        return result
