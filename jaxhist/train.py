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
from jaxhist.stopping import Interrupted, asking


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
    begin: Callable[[State], State] = lambda state: state  # on what `init` has drawn, for a new run
    measured: Callable[[State], Any] = lambda state: (state.params, state.extra)  # by the tests


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
      interrupted: asked after each step, and between the batches of an evaluation; where it says
        True, the state is saved and the run ends.

    Returns:
      The metrics of the test, at the best checkpoint where there is a score, else at the last; of a
      run that had ended, those that its log has.

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
    key, workdir = keys(run.seed), epath.Path(run.workdir)
    identity = {**identity, "seed": run.seed}
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        # 1. Nobody else trains here, and what is here is this run.
        home = stack.enter_context(processes.home(workdir))
        starts = stack.enter_context(log.claim(home, identity))
        if starts and (last := log.read(workdir)[-1]).pop("phase", "") == "test":
            tell(f"{workdir} has ended, and is tested at step {last.pop('step')}")
            return last
        here = {"time": time.strftime("%F %T%z"), **devices.machine(mesh), "mesh": dict(mesh.shape)}
        here |= {"arithmetic": devices.arithmetic()}
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
            state, progress = experiment.begin(init(key.init)), Progress(due=experiment.steps == 0)
        start = step = int(state.step)
        over = lambda: step >= experiment.steps or 0 < experiment.patience <= progress.since

        # 3. The step, compiled once: what is compiled takes no other shapes. A test needs none.
        program = finite.traced(experiment.step, key.step, mesh, layout, experiment.batch)
        if not over():
            batch = devices.put(mesh, experiment.data(step, state), experiment.batch)
            tell(f"compiling for {devices.describe(mesh)}")
            update = program.lower().compile()

        # 4. The log, cut back to the checkpoint.
        header = {**identity, "starts": [*starts, {"step": start, **here}]}
        cost, peak = flops.count(program.jaxpr.jaxpr), devices.peak_flops(mesh)
        history = log.Log(home, header, start, experiment.steps, cost, peak, progress.due)
        stack.callback(history.close)

        # 5. The loop. While one step runs, the next batch is made; no more is ahead, so that a stop
        # is soon. Only an evaluation and a save wait for the step itself.
        asked = processes.Agreement(mesh, interrupted)
        stopping = asked()
        nonfinite = devices.place(np.int32(finite.NEVER), devices.whole(mesh))
        try:
            while not stopping and (progress.due or not over()):
                if not progress.due:
                    before = nonfinite
                    with history.profiling(step - start - 10, run.profile):
                        state, metrics = update(state, batch, before)
                    nonfinite = metrics["nonfinite"]
                    step += 1
                    before.block_until_ready()
                    with history.fetching(nonfinite):
                        batch = devices.put(mesh, experiment.data(step, state), experiment.batch)
                    stopping = asked()
                    due = step % experiment.evaluate_every == 0 or over()
                    progress = progress._replace(due=due)
                    if step % run.log_every == 0:
                        history.train(step, metrics)
                    if due or stopping or step % save_every == 0:
                        history.flush()
                        finite.check(step - 1, state, nonfinite)
                if progress.due and not stopping:  # a stop puts it off
                    try:
                        with asking(asked), history.pausing("evaluating"):
                            scores = experiment.evaluate(state)
                        history.write("evaluate", step, scores)
                        score = float(scores[experiment.score]) if experiment.score else None
                        progress = progress.after(step, score)
                    except Interrupted:
                        stopping = True
                if stopping or over() or step == progress.best_step or step % save_every == 0:
                    with history.pausing("saving"):
                        checkpoints.save(step, state, progress)
            checkpoints.wait()
        except finite.NonFinite as error:
            checkpoints.wait()
            batch = devices.gathered(mesh, experiment.data(error.step, state))
            file = files.write_arrays(home, error.step, batch)
            history.write("diverged", error.step, {})
            good = next(iter(checkpoints.steps()), "none")
            why = f"{error}; its batch is in {file}, the last good checkpoint is {good}"
            raise finite.Diverged(error.step, f"{why}; try a lower rate elsewhere") from error
        if stopping:
            raise Interrupted

        # 6. The test, once, of the best state where there is a score, else of the last.
        state = checkpoints.best(state, progress, layout)
        with asking(asked):
            result = experiment.test(state)
        history.write("test", int(state.step), result)
        plots.curves(home)
        return result
