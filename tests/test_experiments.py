"""What holds for every experiment, on networks so small that it takes seconds."""

import dataclasses
from pydoc_data.topics import topics

import jax
import numpy as np
import pytest
from conftest import needs

from experiments import (
    adam,
    alexnet,
    attention,
    bert,
    dqn,
    gan,
    gan_samples,
    googlenet,
    gpt,
    gpt_text,
    regression,
    seq2seq,
    simclr,
    transformer,
)
from jaxhist import chips, devices, log, plan
from jaxhist.algorithm import keys
from jaxhist.checkpoint import Checkpoints
from jaxhist.data import documents, masked, translation
from jaxhist.train import Run, train

pytestmark = pytest.mark.usefixtures("compiled_fast")

BRIEF = {"batch": 16, "steps": 6, "evaluate_every": 3}
LABELS = {"learn": "labels", "data": "sst_binary", "layers": 1, "warmup": 0}


def tiny(module, preset, *marks, **changes):
    """The script, and a preset of it made small."""
    config = dataclasses.replace(module.PRESETS[preset], **BRIEF, **changes)
    name = f"{module.__name__.split('.')[1]} {changes.get('data', preset)}"
    return pytest.param(module, config, id=name, marks=marks)


EVERY = pytest.mark.parametrize(
    "module, config",
    [
        tiny(regression, "small"),
        tiny(adam, "small", widths=(16,), rates=(0.001, 0.01)),
        tiny(adam, "convolutional", widths=(4, 4, 4, 8)),
        tiny(adam, "autoencoder", widths=(8, 2)),
        tiny(alexnet, "small", width=4, hidden=(8,), normalize=True),
        tiny(dqn, "small", memory=200, begin=8, rounds=4, most=30),
        tiny(gan, "small", widths=(16,), units=4, samples=200),
        tiny(googlenet, "small"),
        tiny(seq2seq, "small", vocabulary=(60,), n=8, layers=1, length=32, beams=1),
        tiny(attention, "small", vocabulary=(60,), n=8, m=4, l=4, length=32, beams=1),
        tiny(
            transformer,
            "small",
            vocabulary=(60,),
            layers=1,
            width=16,
            hidden=16,
            length=32,
            beams=2,
        ),
        tiny(bert, "small", vocabulary=300, layers=1, width=8, length=32, warmup=0),
        tiny(bert, "small", needs("sst_binary"), vocabulary=300, width=8, length=32, **LABELS),
        tiny(
            gpt, "small", data="letters", vocabulary=262, layers=2, width=16, heads=2, dropout=0.1
        ),
        tiny(
            gpt,
            "small",
            needs("sst_binary"),
            vocabulary=262,
            width=16,
            heads=2,
            dropout=0.1,
            **LABELS,
        ),
        tiny(simclr, "small", examples=200, widths=(4, 8), warmup=0),
    ],
)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """What measures samples learns for an epoch; numbers to be translated are few and short, and so
    are documents; questions are few."""
    monkeypatch.setattr(gan_samples, "SEEN", 1)
    monkeypatch.setattr(translation, "HELD_OUT", 16)
    monkeypatch.setattr(translation, "DIGITS", 4)
    monkeypatch.setattr(masked, "TESTED", 16)
    monkeypatch.setattr(gpt_text, "QUESTIONS", 16)
    monkeypatch.setattr(documents, "python", few_documents)


def few_documents(split):
    return [text[:1500] for text in list(topics.values())[:8]]


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


class Killed(Exception):
    pass


@EVERY
def test_a_killed_run_goes_on_bit_for_bit(module, config, tmp_path):
    """It ends where nothing is saved: two steps after the last checkpoint."""

    def start(name, dies_at=None):
        run = Run(workdir=str(tmp_path / name), log_every=1, save_every=2, devices=1)
        experiment = module.build(config, run)

        def data(step, state):
            if step == dies_at:
                raise Killed
            return experiment.data(step, state)

        train(experiment._replace(data=data), run, {"experiment": module.__name__, "config": {}})

    start("undisturbed")
    with pytest.raises(Killed):
        start("killed", dies_at=5)
    assert Checkpoints(tmp_path / "killed").steps()[0] == 4
    start("killed")
    lines = [
        [{k: v for k, v in line.items() if k != "speed"} for line in log.read(tmp_path / name)[1:]]
        for name in ("undisturbed", "killed")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 6 + 2 + 1
    layout = jax.eval_shape(module.build(config, Run()).init, jax.random.key(0))
    a, b = (Checkpoints(tmp_path / name).restore(6, layout) for name in ("undisturbed", "killed"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
