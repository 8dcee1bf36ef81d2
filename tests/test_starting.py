"""A run that begins with what another one has learned."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from jaxhist import UserError, claims, devices, log, starting
from jaxhist.algorithm import keys
from jaxhist.devices import WHOLE, Axes
from jaxhist.finite import Diverged
from jaxhist.stopping import Interrupted
from jaxhist.train import Run, train


@dataclasses.dataclass(frozen=True)
class Config:
    start: str = ""
    inputs: int = 3


LARGE = np.arange(100_000, dtype=np.float32)
KEY = keys(0).init


def build(config, run):
    """The regression, and an array beside it."""
    experiment = tiny(steps=2)

    def init(key):
        return experiment.init(key).replace(params=jnp.zeros((config.inputs, 1)), extra=LARGE)

    def begin(state):
        part = lambda state: {"weights": state.params, "large": state.extra}
        found = starting.learned(build, config, run, part, part(state))
        return state.replace(params=found["weights"], extra=found["large"])

    return experiment._replace(init=init, begin=begin)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run, and its state."""
    run = Run(workdir=str(tmp_path_factory.mktemp("runs") / "first-seed0"), devices=1)
    identity = {"experiment": "tiny", "config": dataclasses.asdict(Config())}
    experiment = build(Config(), run)
    train(experiment, run, identity)
    return run, jax.device_get(claims.tested(experiment, run))


def beginning(first, start="first-seed{seed}", mesh=WHOLE, **changes):
    """A state that is made as the trainer makes it."""
    count = mesh.fsdp * max(mesh.data, 1)
    run = Run(workdir=first[0].workdir + "-second", devices=count, mesh=mesh)
    experiment = build(Config(start=start, **changes), run)
    layout = devices.layout(devices.mesh(count, mesh), jax.eval_shape(experiment.init, KEY))
    return experiment.begin(jax.jit(experiment.init, out_shardings=devices.shardings(layout))(KEY))


@pytest.mark.parametrize("mesh", [WHOLE, Axes(data=8), Axes(fsdp=4), Axes(data=2, fsdp=4)])
def test_it_begins_with_what_was_learned(first, mesh):
    """Which lies on the devices as what was drawn: of what is split, none has all."""
    state = beginning(first, mesh=mesh)
    np.testing.assert_array_equal(state.params, first[1].params)
    np.testing.assert_array_equal(state.extra, LARGE)
    assert first[1].params.any()
    assert {part.data.size for part in state.extra.addressable_shards} == {LARGE.size // mesh.fsdp}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"start": "nowhere"}, "no run in .*nowhere"),
        ({"inputs": 4}, r"another network \(inputs is 3 there, 4 here\)"),
        ({"start": "empty"}, "no checkpoint in .*empty yet"),
    ],
    ids=["missing", "another size", "no checkpoint"],
)
def test_a_start_that_does_not_fit_is_one_line(first, changes, says):
    there = Path(first[0].workdir)
    empty = there.parent / "empty"
    empty.mkdir(exist_ok=True)
    (empty / log.FILE).write_text((there / log.FILE).read_text())
    with pytest.raises(UserError, match=says) as error:
        beginning(first, **changes)
    assert "\n" not in str(error.value)


def test_what_begins_with_a_run_that_has_diverged_has_done_so_too(first):
    """Though that has a checkpoint."""
    copy = Path(shutil.copytree(first[0].workdir, Path(first[0].workdir).parent / "diverged"))
    *lines, _ = (copy / log.FILE).read_text().splitlines()
    lines.append('{"step": 2, "phase": "diverged"}')
    (copy / log.FILE).write_text("\n".join([*lines, ""]))
    with pytest.raises(Diverged, match="diverged has diverged") as error:
        jax.eval_shape(beginning(first, start="diverged"), keys(0).init)
    assert error.value.step == 0


def test_a_damaged_checkpoint_is_one_line(first, tmp_path):
    copy = tmp_path / "first-seed0"
    shutil.copytree(first[0].workdir, copy)
    run = Run(workdir=str(tmp_path / "second"), devices=1)
    for path in (copy / "checkpoints").glob("*/d/*"):
        path.write_bytes(b"damaged")
    experiment = build(Config(start="first-seed0"), run)
    with pytest.raises(UserError, match="is damaged"):
        experiment.begin(jax.jit(experiment.init)(KEY))


def test_what_it_began_with_may_be_gone(first, tmp_path):
    """When the run goes on, or is tested or described."""
    shutil.copytree(first[0].workdir, tmp_path / "first-seed0")
    run = Run(workdir=str(tmp_path / "second"), devices=1)
    make = lambda workdir: build(
        Config(start="first-seed0"), dataclasses.replace(run, workdir=workdir)
    )
    identity, asked = {"experiment": "tiny", "config": {}}, iter([False, False, True])
    with pytest.raises(Interrupted):
        train(make(run.workdir)._replace(steps=4), run, identity, lambda: next(asked))
    shutil.rmtree(tmp_path / "first-seed0")
    train(make(run.workdir)._replace(steps=4), run, identity)
    assert claims.tested(make(run.workdir), run).step == 4
    third = make(str(tmp_path / "third"))
    drawn = jax.jit(third.init)(KEY)
    with pytest.raises(UserError, match=r"no run in .*first-seed0"):
        third.begin(drawn)
