"""The learning rate of every preset, at any step."""

import importlib
import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from conftest import PLAYS, needs

from experiments import gpt, gpt_tuning, simclr, transformer
from jaxhist.data import prepared
from jaxhist.train import Run

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = [
    path.stem for path in sorted(EXPERIMENTS.glob("*.py")) if "main(build" in path.read_text()
]


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


GAMES = {"dqn": PLAYS}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=GAMES.get(name, ())) for name in SCRIPTS]
)
def test_no_rate_is_below_zero_or_above_its_peak(name, rates, monkeypatch):
    """From the first step to ten times as many as there are."""
    script = importlib.import_module(f"experiments.{name}")
    classes = SimpleNamespace(num_classes=2, names=["no", "yes"])
    described = SimpleNamespace(info=SimpleNamespace(features={"label": classes})), ["sentence"]
    monkeypatch.setattr(prepared, "labelled_texts", lambda data: described)
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
            if hasattr(config, "rate") and name != "transformer":
                assert peak <= config.rate * (1 + 1e-6), preset


@pytest.mark.parametrize("steps", [1, 99, 100, 101])
def test_simclr_rises_over_its_warmup_also_where_no_steps_are_left(rates, steps):
    config = replace(simclr.PRESETS["small"], warmup=100, steps=steps)
    simclr.build(config, Run())
    at = np.arange(steps)
    np.testing.assert_allclose(jax.vmap(rates[0])(at), config.rate * at / 100, rtol=1e-6)


@needs("sst_binary")
def test_a_decay_of_0_lasts_until_the_last_step(rates):
    """GPT's, of text and of labels; BERT's is in tests/test_bert_experiment.py."""
    for fields in ({}, gpt.SST):
        config = replace(gpt.PRESETS["small"], **{**fields, "steps": 40, "decay": 0})
        for other in (config, replace(config, decay=40)):
            gpt.build(other, Run(devices=1))
        none, forty = (jax.vmap(rate)(np.arange(40)) for rate in rates[-2:])
        assert np.isfinite(none).all() and (none == forty).all()


def test_without_a_warmup_a_rate_begins_at_its_peak():
    transformers, labels = transformer.warmed(16, 0), gpt_tuning.warmed(0.1, 0, 100)
    assert transformers(1.0) == 16**-0.5 > transformers(2.0) and labels(0) == np.float32(0.1)
