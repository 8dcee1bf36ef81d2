import contextlib
import dataclasses
import errno
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import IDENTITY, batch, run_tiny, tiny

from jaxhist import UserError, claims, devices, log
from jaxhist.checkpoint import Checkpoints
from jaxhist.finite import Diverged
from jaxhist.stopping import Interrupted, between
from jaxhist.train import Run, train


@pytest.fixture
def run(tmp_path):
    return Run(workdir=str(tmp_path / "run"), log_every=1, save_every=5)


def phase(run, name):
    return [line for line in log.read(run.workdir)[1:] if line["phase"] == name]


def without_speed(run):
    return [{k: v for k, v in line.items() if k != "speed"} for line in log.read(run.workdir)[1:]]


def test_a_step_takes_what_its_batch_takes_and_not_what_evaluations_do(run, clock):
    def data(step, state):
        clock.now += 0.05
        return batch(step)

    def evaluate(state):
        clock.now += 100
        return {"error": 0.0}

    run = dataclasses.replace(run, log_every=4, save_every=7)
    run_tiny(run, data=data, evaluate=evaluate, steps=30)
    speeds = [line["speed"] for line in phase(run, "train")]
    np.testing.assert_allclose([speed["seconds/step"] for speed in speeds], 0.05)
    np.testing.assert_allclose([speed["examples/s"] for speed in speeds], 16 / 0.05)


def test_data_that_reads_the_state_waits_for_the_step_and_not_for_input(run, clock):
    """As a player does, who looks at the parameters before it acts."""

    def slow(x):
        clock.now += 0.05
        return x

    def step(state, batch, key):
        state, metrics = tiny().step(state, batch, key)
        out = jax.ShapeDtypeStruct(state.params.shape, state.params.dtype)
        return state.replace(params=jax.pure_callback(slow, out, state.params)), metrics

    def data(step, state):
        jax.block_until_ready(state.params)
        return batch(step)

    run_tiny(dataclasses.replace(run, devices=1), step=step, data=data)
    speeds = [line["speed"] for line in phase(run, "train")]
    np.testing.assert_allclose([speed["seconds/step"] for speed in speeds], 0.05)
    assert [speed["waiting"] for speed in speeds] == [0] * 20


@pytest.mark.parametrize("asked, saved", [(0, [20, 14]), (9, [20, 18])])
def test_an_experiment_says_how_often_it_is_saved_unless_the_run_does(run, asked, saved):
    run_tiny(dataclasses.replace(run, save_every=asked), save_every=7)
    assert Checkpoints(run.workdir).steps() == saved


def test_it_learns_and_tells(run, drawn):
    result = run_tiny(run)
    header = log.read(run.workdir)[0]
    assert header["experiment"] == "tiny" and header["config"] == {"rate": 0.1}
    assert header["starts"][0]["step"] == 0 and header["starts"][0]["devices"] == "8 x cpu"
    losses = [line["loss"] for line in phase(run, "train")]
    assert len(losses) == 20 and losses[-1] < losses[0] / 10
    assert [line["step"] for line in phase(run, "evaluate")] == [5, 10, 15, 20]
    assert phase(run, "test") == [{"step": 20, "phase": "test", **result}]
    speed = phase(run, "train")[-1]["speed"]
    assert np.isclose(speed["examples/s"], 16 / speed["seconds/step"])
    assert 0 <= speed["waiting"] <= 1
    assert np.isclose(speed["FLOP/s"], 2 * 2 * 16 * 3 / speed["seconds/step"])  # forward, backward
    assert Checkpoints(run.workdir).steps() == [20, 15]
    assert {"curves.png", "tensorboard"} <= {path.name for path in Path(run.workdir).iterdir()}


def test_the_step_is_traced_and_compiled_once(run):
    traces = []

    def step(state, batch, key):
        traces.append(None)
        return tiny().step(state, batch, key)

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **info: (
            compiled.append(info.get("fun_name")) if "backend_compile" in event else None
        )
    )
    run_tiny(run, step=step)
    jax.monitoring.clear_event_listeners()
    assert len(traces) == 1
    assert sum("update" in str(name) for name in compiled) == 1, compiled


def test_metrics_are_fetched_one_interval_late(run, monkeypatch):
    """When step s is on its way, the metrics that are fetched are those of one interval before."""
    dispatched, fetched = [], []

    def data(step, state):  # called when step number `step`, counted from 1, is on its way
        dispatched.append(step)
        return batch(step)

    def fetch(tree):
        if isinstance(tree, dict):
            fetched.append(dispatched[-1])
        return jax.device_get(tree)

    monkeypatch.setattr(log, "fetch", fetch)
    run_tiny(dataclasses.replace(run, log_every=4, save_every=100), data=data, evaluate_every=100)
    assert [line["step"] for line in phase(run, "train")] == [4, 8, 12, 16, 20]
    # Lines 4, 8, 12, 16 when step 8, 12, 16, 20 is on its way; the last at the end.
    assert fetched == [8, 12, 16, 20, 20]


def starts(run):
    """The steps that it began with."""
    return [start["step"] for start in log.read(run.workdir)[0]["starts"]]


def assert_same(run, other):
    """All lines, and the last state, to the bit."""
    assert without_speed(run) == without_speed(other)
    a, b = (Checkpoints(each.workdir) for each in (run, other))
    layout = jax.eval_shape(tiny().init, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, a.restore(20, layout), b.restore(20, layout))
    a.close()
    b.close()


def test_a_stopped_run_goes_on_bit_for_bit(run, tmp_path):
    run_tiny(run)
    stopped = dataclasses.replace(run, workdir=str(tmp_path / "stopped"))
    for steps in (7, 6, 1):
        asked = iter([False] * steps + [True] * 100)
        with pytest.raises(Interrupted):
            run_tiny(stopped, lambda asked=asked: next(asked))
    run_tiny(stopped)
    assert_same(stopped, run)
    assert starts(stopped) == [0, 7, 13, 14]


def test_a_stop_in_an_evaluation_puts_it_off(run, tmp_path):
    """One batch passes until the save, whichever it is: of the evaluation in the middle and at the
    end, and of the test."""
    batches = []

    def error(state):
        for i in between(range(4)):
            batches.append(i)
        return {"error": float(np.mean(state.params**2))}

    phases = {"evaluate": error, "test": error, "evaluate_every": 10, "score": "error"}
    run_tiny(run, **phases)
    stopped = dataclasses.replace(run, workdir=str(tmp_path / "stopped"), save_every=100)
    for passed in (1, 3, 4 + 1, 4 + 2, 3):
        batches.clear()
        with pytest.raises(Interrupted):
            run_tiny(stopped, lambda passed=passed: len(batches) == passed, **phases)
    run_tiny(stopped, **phases)
    assert_same(stopped, run)
    assert starts(stopped) == [0, 10, 10, 20, 20, 20]


def test_a_run_that_has_ended_reads_no_data_and_compiles_nothing(run, capsys):
    first, lines = run_tiny(run), without_speed(run)
    capsys.readouterr()
    never = lambda *_: pytest.fail("it was asked for")
    assert run_tiny(run, data=never, evaluate=never, test=never, init=never) == first
    assert capsys.readouterr().out == f"{run.workdir} has ended, and is tested at step 20\n"
    assert without_speed(run) == lines


def test_a_run_of_no_steps_has_a_checkpoint(run):
    """An arm of a claim that learns nothing is measured as the others are."""
    result = run_tiny(run, steps=0, data=lambda *_: pytest.fail("it was asked for"))
    state = claims.tested(tiny(steps=0), run)
    assert int(state.step) == 0 and tiny().test(state) == result
    assert [line["phase"] for line in log.read(run.workdir)[1:]] == ["evaluate", "test"]


def test_a_run_is_not_made_longer_and_the_line_says_why(run):
    shorter, longer = ({"experiment": "tiny", "config": {"steps": steps}} for steps in (20, 40))
    train(tiny(), run, shorter)
    with pytest.raises(UserError, match=r"steps is 20 there, 40 here.*a run keeps the length"):
        train(tiny(steps=40), run, longer)


def test_asked_to_stop_before_the_first_step_nothing_is_saved(run):
    with pytest.raises(Interrupted):
        run_tiny(run, lambda: True)
    assert Checkpoints(run.workdir).newest() is None
    assert len(log.read(run.workdir)) == 1


def test_a_finished_run_only_tests_again(run):
    first, lines = run_tiny(run), without_speed(run)
    assert run_tiny(run) == first
    assert without_speed(run) == lines


SCORES = {5: 0.1, 10: 0.9, 15: 0.9, 20: 0.3, 25: float("nan"), 30: 0.2}


def scores(state):
    return {"score": SCORES[int(state.step)]}


def test_the_best_checkpoint_is_kept_and_tested(run):
    run_tiny(
        dataclasses.replace(run, save_every=1),
        evaluate=scores,
        score="score",
        steps=30,
        test=lambda state: {"at": int(state.step)},
    )
    assert phase(run, "test") == [{"step": 15, "phase": "test", "at": 15}]
    assert Checkpoints(run.workdir).steps() == [30, 29, 15]
    assert phase(run, "evaluate")[4]["score"] is None  # NaN is not JSON


@pytest.mark.parametrize("patience, last", [(0, 30), (1, 15), (2, 20), (3, 25), (4, 30)])
def test_patience_counts_evaluations_and_neither_ties_nor_nan_are_better(run, patience, last):
    run_tiny(run, evaluate=scores, score="score", steps=30, patience=patience)
    assert phase(run, "evaluate")[-1]["step"] == last
    assert phase(run, "test")[-1]["step"] == 15
    stopped = without_speed(run)
    run_tiny(run, evaluate=scores, score="score", steps=30, patience=patience)
    assert without_speed(run) == stopped  # a run that stopped early stays stopped


def poisoned(step, state):
    good = batch(step)
    return good if step < 12 else good | {"y": good["y"] * np.float32("inf")}


@pytest.mark.parametrize("log_every, save_every", [(1, 5), (4, 100), (100, 100)])
def test_a_loss_that_is_not_finite_ends_the_run(run, log_every, save_every):
    run = dataclasses.replace(run, log_every=log_every, save_every=save_every)
    with pytest.raises(UserError, match="step 12 is not finite") as error:
        run_tiny(run, data=poisoned, evaluate_every=100)
    assert "\n" not in str(error.value)
    with np.load(f"{run.workdir}/batch-12.npz") as saved:
        np.testing.assert_array_equal(saved["x"], batch(12)["x"])
        assert np.isinf(saved["y"]).any()
    assert Checkpoints(run.workdir).steps() == ([10, 5] if save_every == 5 else [])
    assert all(line["step"] <= 12 for line in log.read(run.workdir)[1:])


@pytest.mark.parametrize("save_every", [4, 5])  # one checkpoint is of the step that fails
def test_the_log_says_at_which_step_a_run_has_diverged(run, save_every):
    """And says it once where the run goes on, from its last checkpoint, to the same end."""
    run, logs = dataclasses.replace(run, save_every=save_every), []
    for _ in range(2):
        with pytest.raises(Diverged) as error:
            run_tiny(run, data=poisoned)
        assert error.value.step == 12
        logs.append(without_speed(run))
    assert logs[0] == logs[1] and logs[0][-1] == {"step": 12, "phase": "diverged"}
    assert len(phase(run, "diverged")) == 1 and len(phase(run, "train")) == 12


def test_a_state_that_is_not_finite_is_not_saved_though_the_loss_was(run):
    def step(state, batch, key):
        state, metrics = tiny().step(state, batch, key)
        return state.replace(params=jnp.where(state.step == 10, jnp.nan, state.params)), metrics

    with pytest.raises(UserError, match="state at the end of step 9 is not finite"):
        run_tiny(run, step=step)
    assert Checkpoints(run.workdir).steps() == [5]


def test_data_of_another_shape_is_refused(run):
    with pytest.raises(UserError, match="wrong shape"):
        run_tiny(run, data=lambda step, state: batch(step, size=24))


def test_a_batch_that_cannot_be_split_is_refused(run):
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((12, *a.shape[1:]), a.dtype), tiny().batch)
    with pytest.raises(UserError, match="12 cannot be split over 8 devices"):
        run_tiny(run, batch=shapes)


def test_two_processes_do_not_train_in_one_directory(run):
    with log.claim(run.workdir, IDENTITY), pytest.raises(UserError, match="another process"):
        run_tiny(run)


def test_a_disk_that_is_full_when_the_log_is_written(run, monkeypatch):
    write = log.EventsWriter.write_event

    def fails(writer, event):
        if event.HasField("summary"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, event)

    monkeypatch.setattr(log.EventsWriter, "write_event", fails)
    with pytest.raises(UserError, match="no space left on device"):
        run_tiny(run)


def test_no_more_than_two_steps_are_on_their_way(run):
    """So a stop is soon, however long a step takes and however rarely the log is written."""
    ended, asked = [], []

    def slow(step, x):
        time.sleep(0.02)  # a loop that runs ahead would be far ahead
        ended.append(int(step) + 1)
        return x

    def step(state, batch, key):
        after, metrics = tiny().step(state, batch, key)
        out = jax.ShapeDtypeStruct((), jnp.float32)
        loss = jax.pure_callback(slow, out, state.step, metrics["loss"])
        return after, metrics | {"loss": loss}

    def data(step, state):
        asked.append((step, len(ended)))
        return batch(step)

    run = dataclasses.replace(run, log_every=100, save_every=100, devices=1)
    run_tiny(run, step=step, data=data, evaluate_every=100)
    # The batch after step s is asked for when step s - 1 has ended.
    assert [step for step, _ in asked] == list(range(21))
    assert all(count >= step - 1 for step, count in asked)


def test_a_run_goes_on_on_another_number_of_devices(run):
    for count, steps in ((1, 7), (8, 6), (1, 30)):
        asked = iter([False] * steps + [True] * 100)
        with contextlib.suppress(Interrupted):
            run_tiny(dataclasses.replace(run, devices=count), lambda asked=asked: next(asked))
    starts = log.read(run.workdir)[0]["starts"]
    assert [(start["step"], start["devices"]) for start in starts] == [
        (0, "1 x cpu"),
        (7, "8 x cpu"),
        (13, "1 x cpu"),
    ]
    assert phase(run, "test")[0]["error"] < 1e-3


def stopped(run, at=7):
    """A run that is asked to stop after so many steps."""
    asked = iter([False] * at)
    with pytest.raises(Interrupted):
        run_tiny(run, interrupted=lambda: next(asked, True))


def test_what_bits_depend_on_is_said_where_it_changes(run, monkeypatch, capsys):
    stopped(run)
    assert not capsys.readouterr().err
    (start,) = log.read(run.workdir)[0]["starts"]
    assert start["processor"] and start["cores"] == devices.cores()
    monkeypatch.setattr(devices, "cores", lambda: 3)
    monkeypatch.setattr(devices, "processor", lambda: "Deep Thought")
    run_tiny(run)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cores is {start['cores']} there, 3 here; processor is" in line
    assert "here); its bits may be others from now" in line


@pytest.mark.parametrize(
    "option, value",
    [
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_enable_x64", True),
    ],
)
def test_a_run_does_not_go_on_with_other_numbers(run, option, value):
    stopped(run)
    before = Path(run.workdir, log.FILE).read_bytes()
    there = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        with pytest.raises(UserError, match=f"{option} is {there!r} there, {value!r} here"):
            run_tiny(run)
    finally:
        jax.config.update(option, there)
    assert Path(run.workdir, log.FILE).read_bytes() == before


def test_a_log_that_does_not_say_where_it_was_made_goes_on(run):
    """As those of version 0.1.0."""
    stopped(run)
    path = Path(run.workdir, log.FILE)
    header, *lines = log.read(run.workdir)
    for name in ("arithmetic", "processor", "cores"):
        del header["starts"][0][name]
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    run_tiny(run)
    assert len(phase(run, "train")) == 20


def test_a_score_may_be_any_number(run):
    for kind in (np.float32, int):
        workdir = f"{run.workdir}-{kind.__name__}"
        asked = iter([False] * 7 + [True])
        changes = {"evaluate": lambda state, kind=kind: {"score": kind(1)}, "score": "score"}
        here = dataclasses.replace(run, workdir=workdir)
        with pytest.raises(Interrupted):
            run_tiny(here, lambda asked=asked: next(asked), **changes)
        run_tiny(here, **changes)
        assert phase(here, "test")


def test_pictures_become_files(run):
    from PIL import Image

    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    grey = picture[..., :1]
    run_tiny(run, evaluate=lambda state: {"error": 1.0, "picture": picture, "grey": grey})
    np.testing.assert_array_equal(Image.open(f"{run.workdir}/picture.png"), picture)
    np.testing.assert_array_equal(Image.open(f"{run.workdir}/grey.png"), grey[..., 0])
    assert "picture" not in phase(run, "evaluate")[0]


@pytest.mark.parametrize("steps", [2, 100])
def test_a_profile_can_be_recorded(run, steps):
    run_tiny(dataclasses.replace(run, profile=steps))
    assert list(Path(run.workdir).glob("profile/plugins/profile/*/*"))
