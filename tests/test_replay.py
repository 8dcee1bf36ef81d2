"""The memory, as a specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist import replay

SHAPE = jax.ShapeDtypeStruct((2, 1, 1), jnp.uint8)
add = jax.jit(replay.add)
draw = jax.jit(replay.draw, static_argnames="history")


def filled(steps, games=1, size=8, ends=(), keep=lambda step: None):
    """A memory in which step s of game g has the frame (s, g + 1), action s and reward s / 10."""
    ring = replay.empty(games, size, SHAPE)
    of_each = jnp.arange(1, games + 1)
    for s in range(1, steps + 1):
        frame = jnp.stack([jnp.full(games, s), of_each], 1).astype(jnp.uint8)[:, :, None, None]
        action, reward = jnp.full(games, s), jnp.full(games, s / 10)
        ring = add(ring, frame, action, reward, jnp.full(games, s in ends), keep(s))
    return ring


def drawn(ring, history=1, count=60):
    """Everything that can be drawn, each once: a list of dictionaries with numpy arrays."""
    batch = draw(ring, jnp.arange(count, dtype=jnp.uint32), history=history)
    total = int(replay.drawable(ring, history).sum())
    rows = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), batch) for i in range(count)]
    for i in range(total, count):  # and then all again
        jax.tree.map(np.testing.assert_array_equal, rows[i], rows[i % total])
    return rows[:total]


def test_a_step_is_drawn_with_what_followed():
    rows = drawn(filled(3))
    assert [(row.seen_tm1[0, 0], row.action_tm1, row.seen_t[0, 0]) for row in rows] == [
        (1, 1, 2),
        (2, 2, 3),
    ]
    np.testing.assert_allclose([row.reward_t for row in rows], [0.1, 0.2])
    assert not any(row.terminal_t for row in rows)


def test_each_step_is_as_likely_as_any_other():
    ring = filled(20, games=3)
    assert replay.drawable(ring, 1).tolist() == [7, 7, 7]
    pairs = {(int(row.seen_tm1[0, 0]), int(row.seen_tm1[0, 1])) for row in drawn(ring)}
    assert pairs == {(step, game) for step in range(13, 20) for game in (1, 2, 3)}


def test_the_oldest_is_forgotten():
    assert [int(row.action_tm1) for row in drawn(filled(11, size=4))] == [8, 9, 10]


def test_frames_are_stored_once_and_as_they_are():
    ring = filled(3, size=5)
    assert ring.frame.shape == (1, 5, 2) and ring.frame.dtype == jnp.uint8
    million = jax.eval_shape(
        lambda: replay.empty(1, 1_000_000, jax.ShapeDtypeStruct((84, 84, 1), jnp.uint8))
    )
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(million)) < 7.1e9


def test_a_player_has_seen_the_last_frames():
    rows = drawn(filled(6), history=3)
    assert [(row.seen_tm1[:, 0].tolist(), row.seen_t[:, 0].tolist()) for row in rows] == [
        ([1, 2, 3], [2, 3, 4]),
        ([2, 3, 4], [3, 4, 5]),
        ([3, 4, 5], [4, 5, 6]),
    ]


def test_before_a_game_began_there_was_nothing():
    """Step 3 ended a game: what is seen in step 4 is its own frame alone."""
    rows = {int(row.action_tm1): row for row in drawn(filled(7, ends=[3]), history=3)}
    assert rows[3].terminal_t and rows[3].seen_tm1[:, 0].tolist() == [1, 2, 3]
    assert rows[4].seen_tm1[:, 0].tolist() == [0, 0, 4]
    assert rows[4].seen_t[:, 0].tolist() == [0, 4, 5]
    assert rows[5].seen_tm1[:, 0].tolist() == [0, 4, 5]
    assert rows[6].seen_tm1[:, 0].tolist() == [4, 5, 6]


def test_nothing_leads_from_one_game_into_another():
    """Unless it says that what follows counts for nothing."""
    ring = filled(40, games=2, size=16, ends=[29, 33, 34])
    for row in drawn(ring, history=2):
        before, after = row.seen_tm1[-1, 0], row.seen_t[-1, 0]
        assert after == before + 1 and row.seen_tm1[-1, 1] == row.seen_t[-1, 1]
        assert row.terminal_t == (before in (29, 33, 34))


def test_the_restart_of_an_environment_is_not_stored():
    """After its end (step 3) an environment wants one more action, and starts again with it."""
    ring = filled(6, ends=[3], keep=lambda step: jnp.array([step != 4]))
    assert ring.count.tolist() == [5]
    pairs = [(int(row.action_tm1), int(row.seen_t[0, 0])) for row in drawn(ring)]
    assert pairs == [(1, 2), (2, 3), (3, 5), (5, 6)]


def test_games_may_have_ended_at_different_times():
    ring = filled(6, games=2, keep=lambda step: jnp.array([step != 4, True]))
    assert replay.drawable(ring, 1).tolist() == [4, 5]
    assert len(drawn(ring)) == 9


@pytest.mark.parametrize("history, games, size", [(1, 1, 5), (1, 3, 7), (4, 2, 9)])
def test_it_is_a_list_of_everything(history, games, size):
    """Frames, actions, rewards and ends at random, against lists that remember all."""
    random, ring = np.random.default_rng(0), replay.empty(games, size, SHAPE)
    past = [[] for _ in range(games)]
    for _ in range(3 * size):
        frame = random.integers(1, 256, (games, 2, 1, 1)).astype(np.uint8)
        action, reward = random.integers(0, 9, games), random.normal(size=games).astype(np.float32)
        terminal, keep = random.random(games) < 0.3, random.random(games) < 0.8
        ring = add(ring, frame, action, reward, terminal, keep)
        for g in np.flatnonzero(keep):
            past[g].append((frame[g].ravel(), action[g], reward[g], terminal[g]))
    want = []
    for steps in past:
        steps = steps[-size:]

        def sight(i, steps=steps):
            """The frames up to step i, none of another game."""
            frames = [steps[i][0]]
            while len(frames) < history:
                i -= 1
                if steps[i][3]:
                    break
                frames.insert(0, steps[i][0])
            return [np.zeros(2, np.uint8)] * (history - len(frames)) + frames

        for i in range(history - 1, len(steps) - 1):
            want.append((sight(i), *steps[i][1:], sight(i + 1)))
    rows = drawn(ring, history)
    assert len(rows) == len(want) > 0
    for row, (before, action, reward, terminal, after) in zip(rows, want, strict=True):
        np.testing.assert_array_equal(row.seen_tm1, before)
        np.testing.assert_array_equal(row.seen_t, after)
        assert (row.action_tm1, row.reward_t, row.terminal_t) == (action, reward, terminal)
