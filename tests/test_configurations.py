"""Fields that contradict themselves or each other.

Each integer field of every type of configuration alone at -1, 0 and 1, and `warmup`, `decay` and
`steps` equal and one apart: it trains, or is refused in one line that names a field.
"""

import functools
import importlib.util
import itertools
import re
import typing
from dataclasses import replace

import flax.linen as nn
import jax
import pytest
from conftest import PLAYS, needs
from every import BRIEF, EXPERIMENTS, brief, tiny
from test_schedules import SCRIPTS

from experiments import (
    alexnet,
    dqn,
    gan,
    googlenet,
    identity_mappings,
    resnet,
    simclr,
)
from experiments.gan_mixture import Mixture
from jaxhist import UserError
from jaxhist.data import photographs, prepared
from jaxhist.models import googlenet as googlenet_models
from jaxhist.models.resnet import DEPTHS
from jaxhist.train import Run, train


def of_photographs(module, preset, **changes):
    name, _, config = tiny(module, preset, data="imagenet_sample", **changes)
    return name, module, replace(config, batch=2)


# The types of configuration that tests/every.py has not, and what else their fields choose.
OTHERS = [
    tiny(resnet, "small", depth=8),
    tiny(identity_mappings, "small", depth=8),
    ("gan mixture", gan, Mixture(learns=True, **BRIEF)),
    tiny(dqn, "breakout", memory=100, begin=20, most=100, measured=2),
    of_photographs(alexnet, "paper"),
    of_photographs(googlenet, "paper"),
    of_photographs(resnet, "imagenet18"),
    of_photographs(gan, "dcgan", photographs=8, widths=(8, 4), samples=20),
    of_photographs(simclr, "paper-linear", depth=18, start=""),
]
EMULATES = pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None, reason="the games of ale-py are not installed"
)
DATA = {name: needs(name) for name in ("sst_binary", "imagenet_sample")}


def every():
    for name, module, config in EXPERIMENTS + OTHERS:
        config, seen = replace(config, steps=2, evaluate_every=2), set()
        marks = [PLAYS, EMULATES] if module is dqn else [DATA[d] for d in DATA if d in name]
        for changes in ({}, *changed(config)):
            after = replace(config, **changes)
            if after not in seen:
                yield pytest.param(module, after, changes, id=f"{name} {changes}", marks=marks)
            seen.add(after)


def changed(config):
    """{field: number} to try."""
    types = typing.get_type_hints(type(config))
    for name, number in itertools.product(types, (-1, 0, 1)):
        value = getattr(config, name)
        if types[name] is int:
            yield {name: number}
        elif types[name] == tuple[int, ...]:
            yield from ({name: (*value[:i], number, *value[i + 1 :])} for i in range(len(value)))
            yield {name: ()}
    lengths = [name for name in ("warmup", "decay", "steps") if types.get(name) is int]
    for pair in itertools.combinations(lengths, 2):
        yield from (dict(zip(pair, both, strict=True)) for both in ((1, 1), (1, 2), (2, 1)))


EVERY = pytest.mark.parametrize("module, config, changes", [*every()])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is brief; of networks for photographs some layers, and of a test some views. Where a
    data set has but the split train, a few examples of it are any other."""
    brief(monkeypatch.setattr)
    examples, modules = prepared.examples, googlenet_models.MODULES

    def some(builder, split, *of):
        there = split in builder.info.splits
        return examples(builder, split, *of) if there else examples(builder, "train", *of)[:8]

    monkeypatch.setattr(googlenet_models, "MODULES", {name: modules[name] for name in ("3a", "4a")})
    monkeypatch.setitem(DEPTHS, 18, (1, 1, 1, 1))
    monkeypatch.setattr(photographs, "inception_crops", photographs.five_crops)
    monkeypatch.setattr(prepared, "examples", some)


def test_every_type_is_tried_and_its_numbers_are_bounded():
    scripts = [importlib.import_module(f"experiments.{name}") for name in SCRIPTS]
    claims = [claim for script in scripts for claim in script.CLAIMS.values()]
    configs = [config for script in scripts for config in script.PRESETS.values()]
    configs += [arm for claim in claims for arm in getattr(claim, "arms", {}).values()]
    types = {*map(type, configs)}
    assert types == {type(config) for *_, config in EXPERIMENTS + OTHERS}
    for kind in types:
        for name, of in typing.get_type_hints(kind, include_extras=True).items():
            assert of not in (int, tuple[int, ...]), (kind, name)


def once(method):
    """`init` or `apply` of flax's modules; equal ones are traced once for the same shapes, which
    saves half of the time."""

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def traced(module, static, *inputs, **keys):
        return method(module, *inputs, **dict(static), **keys)

    def called(module, *inputs, **options):
        keys = {"rngs": options.pop("rngs")} if "rngs" in options else {}
        static = ((name, tuple(v) if isinstance(v, list) else v) for name, v in options.items())
        return traced(module, tuple(static), *inputs, **keys)

    return called


INIT, APPLY = once(nn.Module.init), once(nn.Module.apply)


def assert_named(error, changes):
    """It is one line on what was changed, not on something else."""
    text = str(error)
    assert "\n" not in text and "learning rate" not in text
    assert any(re.search(rf"\b{name}\b", text) for name in changes), text


@EVERY
def test_it_is_traced_or_refused(module, config, changes, monkeypatch):
    monkeypatch.setattr(nn.Module, "init", INIT)
    monkeypatch.setattr(nn.Module, "apply", APPLY)
    try:
        experiment = module.build(config, Run(devices=1))
        state = jax.eval_shape(experiment.init, jax.random.key(0))
        jax.eval_shape(experiment.step, state, experiment.batch, jax.random.key(0))
    except UserError as error:
        assert_named(error, changes)


@pytest.mark.long
@EVERY
def test_it_learns_or_is_refused(module, config, changes, tmp_path):
    run = Run(workdir=str(tmp_path), log_every=1, devices=1)
    try:
        train(module.build(config, run), run, {"experiment": module.__name__, "config": {}})
    except UserError as error:
        assert_named(error, changes)
