"""What holds for every experiment."""

import functools
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import PLAYS, needs
from every import EXPERIMENTS, brief

from experiments import regression
from jaxhist import chips, devices, finite, log, plan
from jaxhist.algorithm import keys
from jaxhist.checkpoint import Checkpoints
from jaxhist.stopping import Interrupted
from jaxhist.train import Run, train


def of(experiments):
    marks = {"sst_binary": needs("sst_binary"), "dqn": PLAYS}
    each = [
        pytest.param(*rest, id=name, marks=[mark for word, mark in marks.items() if word in name])
        for name, *rest in experiments
    ]
    return pytest.mark.parametrize("module, config", each)


EVERY = of(EXPERIMENTS)
# tests/test_mesh.py has these over twenty steps, in float64.
LONGER = "transformer small", "bert small", "gpt letters", "simclr small"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    brief(monkeypatch.setattr)


@functools.cache
def built(module, config, count):
    """The experiment on so many devices, once for all tests, and so is what it compiles."""
    return module.build(config, Run(devices=count))


TRACE, TRACED = finite.traced, {}


def traced(step, *of):
    """As `finite.traced`; but each step is traced, and what it returns compiled, once."""
    if step not in TRACED:
        program = TRACE(step, *of)
        update = program.lower().compile()
        lower = lambda: SimpleNamespace(compile=lambda: update)
        TRACED[step] = SimpleNamespace(jaxpr=program.jaxpr, lower=lower)
    return TRACED[step]


@EVERY
def test_it_is_planned_for_two_gpus(module, config):
    where = chips.Slice(chips.CHIPS["h100"], 2, None)
    made = plan.make(module.build, config, Run(), where)
    assert made.flops > 0 and made.memory["params"] > 0 and not made.refused


@of([each for each in EXPERIMENTS if each[0] not in LONGER])
def test_one_step_on_1_and_8_devices_agrees(module, config):
    key, results, before = keys(0), [], None
    never = np.int32(finite.NEVER)
    for count in (1, 8):
        mesh = devices.mesh(count)
        experiment = built(module, config, count)
        with jax.set_mesh(mesh):
            layout = devices.layout(mesh, jax.eval_shape(experiment.init, key.init))
            if before is None:
                init = jax.jit(experiment.init, out_shardings=devices.shardings(layout))
                before = jax.device_get(init(key.init))
            step = traced(experiment.step, key.step, mesh, layout, experiment.batch)
            state = jax.device_put(before, devices.shardings(layout))
            batch = devices.put(mesh, experiment.data(0, state), experiment.batch)
            never = jax.device_put(never, devices.whole(mesh))
            after, metrics = step.lower().compile()(state, batch, never)
        results.append(jax.device_get((after.params, metrics)))
    (one, metrics_1), (eight, metrics_8) = results
    for name in metrics_1:
        np.testing.assert_allclose(metrics_1[name], metrics_8[name], rtol=1e-5, err_msg=name)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    moved_1, moved_8 = (flat(params) - flat(before.params) for params in (one, eight))
    # Adam's first step is the sign of the gradient, whatever its size: a gradient that is nothing
    # but rounding may differ, so a few weights may.
    far = np.abs(moved_1 - moved_8) > 1e-3 * np.abs(moved_1).max()
    assert np.abs(moved_1).max() > 0 and far.mean() < 0.01


@EVERY
def test_a_killed_run_goes_on_bit_for_bit(module, config, tmp_path, monkeypatch):
    """What a kill leaves is what is on the disk then. It is copied after a step that is not saved,
    and goes on from there, with data that are made anew. Then it is stopped twice more: before the
    last batch of its evaluation, and of its test."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, *of: (save(self, *of), self.wait()))
    monkeypatch.setattr(finite, "traced", traced)

    asked = {"evaluate": 0, "test": 0}  # how often they ask whether to stop

    def start(workdir, stop=None):
        run = Run(workdir=str(workdir), log_every=1, save_every=2, devices=1)
        new = module.build(config, run)

        def data(step, state):
            if step == 5 and not killed.exists():
                shutil.copytree(undisturbed, killed)
            return new.data(step, state)

        inside, count = None, 0

        def within(phase, measure):
            def measured(state):
                nonlocal inside, count
                inside, count = phase, 0
                found = measure(state)
                asked[phase], inside = count, None
                return found

            return measured

        def interrupted():
            nonlocal count
            count += 1
            return inside == stop is not None and count >= asked[stop]

        experiment = built(module, config, 1)
        phases = {name: within(name, getattr(experiment, name)) for name in asked}
        experiment = experiment._replace(data=data, **phases)
        train(experiment, run, {"experiment": module.__name__, "config": {}}, interrupted)

    start(undisturbed)
    # A regression measures all at once.
    asks = [name for name in asked if asked[name]]
    assert asks == [] if module is regression else ["evaluate", "test"]
    for name in asks:
        with pytest.raises(Interrupted):
            start(killed, stop=name)
    start(killed)
    stopped = [6] * len(asks)
    assert [each["step"] for each in log.read(killed)[0]["starts"]] == [0, 4, *stopped]
    lines = [
        [{k: v for k, v in line.items() if k != "speed"} for line in log.read(name)[1:]]
        for name in (undisturbed, killed)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 6 + 2 + 1
    layout = jax.eval_shape(built(module, config, 1).init, jax.random.key(0))
    a, b = (Checkpoints(name).restore(6, layout) for name in (undisturbed, killed))
    jax.tree.map(np.testing.assert_array_equal, a, b)
