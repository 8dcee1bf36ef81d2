"""A run that begins with what another one has learned."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from jaxhist import UserError, checkpoint, devices, log, starting
from jaxhist.algorithm import keys
from jaxhist.finite import Diverged
from jaxhist.train import Run, train


@dataclasses.dataclass(frozen=True)
class Config:
    start: str = ""
    inputs: int = 3


LARGE = np.arange(100_000, dtype=np.float32)  # what would be long, written into a program


def build(config, run):
    """The regression, and an array beside it."""
    experiment = tiny(steps=2)

    def init(key):
        state = experiment.init(key)
        drawn = {"weights": jnp.zeros((config.inputs, 1)), "large": jnp.zeros(LARGE.size)}
        if config.start:
            part = lambda state: {"weights": state.params, "large": state.extra}
            drawn = starting.learned(build, config, run, part, drawn)
        return state.replace(params=drawn["weights"], extra=drawn["large"] + LARGE)

    return experiment._replace(init=init)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run, and its state."""
    run = Run(workdir=str(tmp_path_factory.mktemp("runs") / "first-seed0"), devices=1)
    identity = {"experiment": "tiny", "config": dataclasses.asdict(Config())}
    experiment = build(Config(), run)
    train(experiment, run, identity)
    return run, jax.device_get(checkpoint.tested(run.workdir, experiment.init))


def beginning(first, start="first-seed{seed}", count=1, **changes):
    run = Run(workdir=first[0].workdir + "-second", devices=count)
    return build(Config(start=start, **changes), run).init


@pytest.mark.parametrize("count", [1, 8])
def test_it_begins_with_what_was_learned(first, count):
    init = jax.jit(beginning(first, count=count), out_shardings=devices.whole(devices.mesh(count)))
    state = init(keys(0).init)
    np.testing.assert_array_equal(state.params, first[1].params)
    np.testing.assert_array_equal(state.extra, 2 * LARGE)
    assert first[1].params.any() and len(state.params.sharding.device_set) == count


def test_what_was_learned_is_not_a_constant_of_the_program(first):
    program = jax.jit(beginning(first)).lower(keys(0).init).as_text()
    constants = jax.jit(lambda: jnp.asarray(first[1].extra)).lower().as_text()
    own = jax.jit(build(Config(), Run(devices=1)).init).lower(keys(0).init).as_text()
    assert len(program) - len(own) < 0.1 * len(constants)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"start": "nowhere"}, "no run in .*nowhere"),
        ({"inputs": 4}, "another network"),
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
        jax.eval_shape(beginning(first, **changes), keys(0).init)
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
    with pytest.raises(UserError, match="is damaged"):
        jax.jit(build(Config(start="first-seed0"), run).init)(keys(0).init)


def test_what_it_began_with_may_be_gone(first, tmp_path):
    """When the run goes on, or is tested or described."""
    shutil.copytree(first[0].workdir, tmp_path / "first-seed0")
    run = Run(workdir=str(tmp_path / "second"), devices=1)
    make = lambda workdir: build(
        Config(start="first-seed0"), dataclasses.replace(run, workdir=workdir)
    )
    identity = {"experiment": "tiny", "config": {}}
    train(make(run.workdir)._replace(steps=2), run, identity)
    shutil.rmtree(tmp_path / "first-seed0")
    train(make(run.workdir)._replace(steps=4), run, identity)
    assert checkpoint.tested(run.workdir, make(run.workdir).init).step == 4
    jax.eval_shape(make("").init, keys(0).init)
    with pytest.raises(UserError, match=r"no run in .*first-seed0"):
        jax.eval_shape(make(str(tmp_path / "third")).init, keys(0).init)


def test_it_is_read_once(first, monkeypatch):
    """The trainer asks for the shapes of a state, then for the state."""
    asked, tested = [], checkpoint.tested
    count = lambda *arguments: asked.append(1) or tested(*arguments)
    monkeypatch.setattr(checkpoint, "tested", count)
    init = beginning(first)
    jax.eval_shape(init, keys(0).init)
    jax.jit(init, out_shardings=devices.whole(devices.mesh(1)))(keys(0).init)
    assert len(asked) == 1
