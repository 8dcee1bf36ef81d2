"""The learning rate of every preset, at any step."""

import inspect
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from experiments import (
    adam,
    alexnet,
    attention,
    bert,
    dqn,
    gan,
    googlenet,
    gpt,
    identity_mappings,
    regression,
    resnet,
    seq2seq,
    simclr,
    transformer,
)
from jaxhist.data import prepared
from jaxhist.train import Run

SCRIPTS = [adam, alexnet, attention, bert, dqn, gan, googlenet, gpt, identity_mappings]
SCRIPTS += [regression, resnet, seq2seq, simclr, transformer]


@pytest.fixture
def rates(monkeypatch):
    """What optimizers are made with from now on."""
    rates = []

    def recorded(make):
        def made(learning_rate, *arguments, **options):
            rates.append(learning_rate)
            return make(learning_rate, *arguments, **options)

        return made

    for name, make in inspect.getmembers(optax, inspect.isfunction):
        if next(iter(inspect.signature(make).parameters), "") == "learning_rate":
            monkeypatch.setattr(optax, name, recorded(make))
    return rates


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__.split(".")[1])
def test_no_rate_is_below_zero_or_above_its_peak(script, rates, monkeypatch):
    """From the first step to ten times as many as there are."""
    classes = SimpleNamespace(num_classes=2, names=["no", "yes"])
    described = SimpleNamespace(info=SimpleNamespace(features={"label": classes})), ["sentence"]
    monkeypatch.setattr(prepared, "labelled_texts", lambda name: described)
    for preset, config in script.PRESETS.items():
        rates.clear()
        experiment = script.build(config, Run())
        if not rates:  # made for each of several at once
            jax.eval_shape(experiment.init, jax.random.key(0))
        assert rates, preset
        length = config.steps
        steps = np.unique([*range(50), *np.linspace(0, 10 * length, 2001), length - 1, length + 1])
        for rate in rates:
            if not callable(rate):
                assert isinstance(rate, jax.core.Tracer) or rate == -1 or rate > 0
                continue
            at = np.asarray(jax.vmap(rate)(np.int32(steps)))
            peak = at[steps <= length].max()
            assert peak > 0 and at.min() >= 0 and at.max() <= peak, preset
            if hasattr(config, "rate") and script is not transformer:
                assert peak <= config.rate * (1 + 1e-6), preset
