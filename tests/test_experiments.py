"""What holds for every experiment."""

import shutil

import jax
import numpy as np
import pytest
from conftest import needs
from every import EXPERIMENTS, brief

from jaxhist import chips, devices, log, plan
from jaxhist.algorithm import keys
from jaxhist.checkpoint import Checkpoints
from jaxhist.train import Run, train

pytestmark = pytest.mark.usefixtures("compiled_fast")

EVERY = pytest.mark.parametrize(
    "module, config",
    [
        pytest.param(*each, id=name, marks=[needs("sst_binary")] if "sst_binary" in name else [])
        for name, *each in EXPERIMENTS
    ],
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    brief(monkeypatch.setattr)


@EVERY
def test_it_is_planned_for_two_gpus(module, config):
    where = chips.Slice(chips.CHIPS["h100"], 2, None)
    made = plan.make(module.build, config, Run(), where)
    assert made.flops > 0 and made.memory["params"] > 0 and not made.refused


@EVERY
def test_one_step_on_1_and_8_devices_agrees(module, config):
    key, results = keys(0), []
    # As the trainer does, so that both tests compile it once.
    init = module.build(config, Run(devices=1)).init
    init = jax.jit(init, out_shardings=devices.whole(devices.mesh(1)))
    before = jax.device_get(init(key.init))
    for count in (1, 8):
        mesh = devices.mesh(count)
        experiment = module.build(config, Run(devices=count))
        state = jax.device_put(before, devices.whole(mesh))
        batch = devices.put(mesh, experiment.data(0, state), experiment.batch)
        step = jax.jit(experiment.step, out_shardings=devices.whole(mesh))
        after, metrics = step(state, batch, key.step)
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
    and goes on from there."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, *of: (save(self, *of), self.wait()))

    def start(workdir):
        run = Run(workdir=str(workdir), log_every=1, save_every=2, devices=1)
        experiment = module.build(config, run)

        def data(step, state):
            if step == 5 and not killed.exists():
                shutil.copytree(undisturbed, killed)
            return experiment.data(step, state)

        train(experiment._replace(data=data), run, {"experiment": module.__name__, "config": {}})

    start(undisturbed)
    start(killed)
    assert [each["step"] for each in log.read(killed)[0]["starts"]] == [0, 4]
    lines = [
        [{k: v for k, v in line.items() if k != "speed"} for line in log.read(name)[1:]]
        for name in (undisturbed, killed)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 6 + 2 + 1
    layout = jax.eval_shape(module.build(config, Run()).init, jax.random.key(0))
    a, b = (Checkpoints(name).restore(6, layout) for name in (undisturbed, killed))
    jax.tree.map(np.testing.assert_array_equal, a, b)
