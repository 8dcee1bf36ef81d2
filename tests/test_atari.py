"""Deep Q-learning on games of the Atari 2600."""

import functools
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import dqn
from experiments.dqn_atari import Atari
from experiments.dqn_learner import Practice
from jaxhist import UserError, replay
from jaxhist.algorithm import keys
from jaxhist.checkpoint import Checkpoints
from jaxhist.data import atari
from jaxhist.train import Run, train

pytest.importorskip("ale_py", reason="the games of ale-py are not installed")

TINY = Atari(
    rom="pong",
    network="linear",
    games=2,
    memory=400,
    begin=40,
    explore=100,
    target_every=2,
    steps=30,
    evaluate_every=15,
    measured=2,
    most=200,
)


class Script:
    """Stands for the emulators: what they send back is written down."""

    def __init__(self, rows):
        self.rows, self.sent = list(rows), []

    def send(self, action):
        self.sent.append(action)

    def recv(self):
        screen, reward, terminated, truncated, lives = self.rows.pop(0)
        return (
            np.full((1, 1, 84, 84), screen, np.uint8),
            np.array([reward]),
            np.array([terminated]),
            np.array([truncated]),
            {"lives": np.array([lives])},
        )


def scripted(rows, lives):
    """A game of which the first screen is 1, with three lives."""
    games = atari.Games("pong", 1, seed=0, lives=lives)
    games._emulators, games._lives = Script(rows), np.array([3])
    games.recent[:] = 0
    games.recent[:, -1] = 1
    steps = []
    for number in range(len(rows)):
        games.send(np.array([number], np.int32))
        steps.append(games.receive()[0])
    return games, steps


def test_screens_are_those_of_the_paper():
    games = atari.Games("breakout", 2, seed=0, lives=True)
    assert games.actions == 4 and games.seen().shape == (2, 84, 84, 4)
    assert not games.seen()[..., :3].any() and games.seen()[..., 3].any((1, 2)).all()
    first = games.seen()[..., 3]
    for _ in range(4):
        games.send(np.array([1, 3], np.int32))
        steps, over = games.receive()
    assert steps.frame.shape == (2, 84, 84, 1) and steps.frame.dtype == np.uint8
    assert not over.any() and steps.keep.all()
    # After four actions all four screens are there, and the oldest has gone.
    assert games.seen().any((1, 2)).all() and (games.seen()[..., 3] != first).any()
    np.testing.assert_array_equal(steps.frame[..., 0], games.seen()[..., 2])


def test_a_lost_life_ends_what_is_seen_and_not_the_game():
    rows = [(2, 7, False, False, 3), (3, 0, False, False, 2), (4, -2, False, False, 2)]
    games, steps = scripted(rows, lives=True)
    assert [bool(step.terminal[0]) for step in steps] == [False, True, False]
    assert games.seen()[0, 0, 0].tolist() == [0, 0, 3, 4] and games.score == [5]
    games, steps = scripted(rows, lives=False)
    assert not any(step.terminal[0] for step in steps)
    assert games.seen()[0, 0, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("truncated", [False, True])
def test_the_restart_of_a_game_is_not_kept(truncated):
    """The third action does nothing but begin anew. A game that was broken off has no end."""
    end = (3, 1, not truncated, truncated, 3 if truncated else 0)
    rows = [(2, 1, False, False, 3), end, (9, 0, False, False, 3), (10, 4, False, False, 3)]
    games, steps = scripted(rows, lives=True)
    assert [bool(step.keep[0]) for step in steps] == [True, True, False, True]
    assert [bool(step.terminal[0]) for step in steps] == [False, not truncated, False, False]
    assert [int(step.frame[0, 0, 0, 0]) for step in steps] == [1, 2, 3, 9]
    assert [bool(step.begins[0]) for step in steps] == [True, False, False, truncated]
    assert games.final == [2] and games.score == [4]
    assert games.seen()[0, 0, 0].tolist() == [0, 0, 9, 10]


def test_what_was_broken_off_is_never_learned():
    """As after a resume: new games begin where others were."""
    ring = replay.empty(1, 8, jax.ShapeDtypeStruct((1, 1, 1), jnp.uint8))
    add, draw = jax.jit(replay.add), jax.jit(replay.draw, static_argnames="history")
    one = np.ones(1, np.float32)
    for step in range(1, 7):
        frame = np.full((1, 1, 1, 1), step, np.uint8)
        begins = np.array([step == 4])
        action = np.full(1, step)
        ring = add(ring, frame, action, one, one == 0, one == 1, begins)
    rows = jax.device_get(draw(ring, np.arange(4, dtype=np.uint32), history=2))
    assert rows.action_tm1.tolist() == [2, 3, 4, 5]
    assert rows.weight.tolist() == [1, 0, 1, 1] and not rows.terminal_t.any()
    # Nor does a player see what went before.
    assert rows.seen_tm1[..., 0].tolist() == [[1, 2], [2, 3], [0, 4], [4, 5]]
    assert rows.seen_t[2, :, 0].tolist() == [4, 5]


def test_the_next_seed_begins_other_games():
    """The best player is tested in games that did not choose it: not in all but one of the same."""
    a, again, b = (atari.Games("seaquest", 2, seed, lives=False).recent for seed in (7, 7, 8))
    np.testing.assert_array_equal(a, again)
    assert (a[1:] != b[:-1]).any()


def test_scores_beside_a_persons():
    assert atari.of_human("pong", 18.9) == pytest.approx(132.0)
    assert atari.of_human("breakout", 401.2) == pytest.approx(1327.2, abs=0.1)
    assert atari.of_human("alien", 100) is None


def test_whole_games_are_played_to_their_end():
    player = atari.at_random(6)
    scores = atari.whole_games("pong", player, seed=0, games=2, most=100)
    np.testing.assert_array_equal(scores, atari.whole_games("pong", player, 0, 2, most=100))
    assert scores.shape == (2,) and (scores <= 0).all()
    film = atari.screens("pong", player, seed=0, most=7)
    assert film.shape == (7, 84, 84, 1) and (film[1:] != film[:-1]).any((1, 2, 3)).all()


def test_a_game_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no game 'chess'; there are adventure, air_raid"):
        atari.actions("chess")


def test_parameters_of_the_paper_are_those_of_breakout():
    experiment = dqn.build(dqn.PRESETS["paper"], Run(devices=1))
    state = jax.eval_shape(experiment.init, keys(0).init)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 1_686_180
    assert state.extra.memory.frame.shape == (1, 1_000_004, 7056)


@pytest.fixture
def brief(monkeypatch):
    """Values are predicted in few states, which are seen once: ten emulators take long to start."""
    few = functools.cache(functools.partial(atari.states, count=20))
    monkeypatch.setattr(atari, "states", lambda rom, seed, count: few(rom, seed))


def test_all_but_the_games_goes_on_exactly(brief, tmp_path):
    run = Run(workdir=str(tmp_path), log_every=5, save_every=10, devices=1)
    identity = {"experiment": "dqn", "config": asdict(TINY)}

    class Killed(Exception):
        pass

    def start(dies_at=None):
        experiment = dqn.build(TINY, run)

        def data(step, state):
            if step == dies_at:
                raise Killed
            return experiment.data(step, state)

        return train(experiment._replace(data=data), run, identity)

    with pytest.raises(Killed):
        start(dies_at=25)
    experiment = dqn.build(TINY, run)
    layout = jax.eval_shape(experiment.init, jax.random.key(0))
    state, _ = Checkpoints(tmp_path).restore(20, layout)
    # 2 games, 2 actions each in a step; the first updates after 40 actions.
    assert state.extra.memory.count.tolist() == [40, 40]
    assert state.extra.updates == 20 - 9 and state.opt_state is not None
    moved = jax.tree.map(lambda a, b: (a != b).any(), state.params, state.extra.target)
    assert any(jax.tree.leaves(moved))
    result = start()
    assert {"score", "standard error", "percent of human", "predicted"} <= result.keys()
    assert (tmp_path / "film.gif").exists()
    after, _ = Checkpoints(tmp_path).restore(30, layout)
    assert after.step == 30 and after.extra.updates == 30 - 9
    assert after.extra.memory.count.tolist() == [60, 60]
    # What was remembered is still there; what follows it begins other games.
    before, now = state.extra.memory, after.extra.memory
    np.testing.assert_array_equal(before.frame[:, :40], now.frame[:, :40])
    np.testing.assert_array_equal(before.action[:, :40], now.action[:, :40])
    assert now.cut[:, 39].all() and now.cut[:, :60].sum() == 2


def test_actions_do_not_depend_on_how_fast_the_emulators_are():
    """Two runs are the same, bit for bit, as long as neither is resumed."""
    states, key = [], keys(0)
    runs = [dqn.build(TINY, Run(devices=1)) for _ in range(2)]
    init, step = jax.jit(runs[0].init), jax.jit(runs[0].step)
    for run in runs:
        state = init(key.init)
        for index in range(15):
            state, metrics = step(state, run.data(index, state), key.step)
        states.append(jax.device_get(state))
    metrics = jax.device_get(metrics)
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert metrics["count/frames"] == 16 and metrics["count/actions"] == 4
    assert np.isnan(metrics["score"])  # no game has ended yet
    # What is logged is what the host acted by: 60 actions, of which 40 without a choice.
    schedule = Practice(TINY.games, TINY.every, TINY.begin, TINY.explore, TINY.memory).epsilon
    np.testing.assert_allclose(metrics["epsilon"], schedule(14 * 4), rtol=1e-5)


@pytest.mark.long
def test_memory_stays_flat(tmp_path):
    """A short form of `train pong`, saved again and again. (For a moment, while it is saved, the
    process is larger: medians do not see that.)"""
    options = ["--begin=1000", "--run.save-every=1000", "--run.log-every=20"]
    arguments = ["train", "pong", *options, f"--run.workdir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.dqn", *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
    )
    sizes = {}  # step -> kB in memory
    while max(sizes, default=0) < 4000:
        time.sleep(0.2)
        assert process.poll() is None, "the run has ended"
        lines = (tmp_path / "log.jsonl").read_text() if (tmp_path / "log.jsonl").exists() else ""
        status = Path(f"/proc/{process.pid}/status").read_text()
        step = lines.rpartition('{"step": ')[2].partition(",")[0]
        if step.isdigit():
            sizes[int(step)] = int(status.partition("VmRSS:")[2].split()[0])
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    early = np.median([size for step, size in sizes.items() if 1000 <= step < 2000])
    late = np.median([size for step, size in sizes.items() if step >= 3000])
    assert late < 1.02 * early


def test_the_games_want_one_process(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="the games of the Atari are played in one process"):
        dqn.build(Atari(), Run())
