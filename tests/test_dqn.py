"""Deep Q-learning, arXiv:1312.5602 and doi:10.1038/nature14236."""

from collections import deque
from dataclasses import asdict, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import PLAYS
from every import BRIEF

from experiments import dqn
from experiments.dqn_agent import q_learning
from experiments.dqn_atari import Atari
from experiments.dqn_learner import Practice, learn, rmsprop
from jaxhist import UserError, losses
from jaxhist.cli import main
from jaxhist.convolution import IMAGES, convolve_small
from jaxhist.data import play
from jaxhist.data.play import Game
from jaxhist.models.dqn import Linear, MinAtar, Nature, Workshop
from jaxhist.train import Run, train

# Models.


@pytest.mark.parametrize("actions", [4, 6, 18])
def test_parameters_are_those_of_the_paper(actions):
    for network, shape, count in (
        (Nature, (84, 84, 4), 1_684_128 + 513 * actions),
        (Workshop, (84, 84, 4), 676_144 + 257 * actions),
        (Linear, (84, 84, 4), 28_225 * actions),
        (MinAtar, (10, 10, 4), 131_792 + 129 * actions),
    ):
        frames = jax.ShapeDtypeStruct((2, *shape), jnp.uint8)
        init = network(actions).init_with_output
        q, variables = jax.eval_shape(init, jax.random.key(0), frames)
        assert q.shape == (2, actions) and q.dtype == jnp.float32
        assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


def test_weights_and_biases_begin_as_torchs():
    init = jax.jit(MinAtar(6).init)
    params = jax.device_get(init(jax.random.key(0), np.zeros((1, 10, 10, 4), bool))["params"])
    for layer, fan_in in (("Conv_0", 36), ("Dense_0", 1024), ("Dense_1", 128)):
        limit = fan_in**-0.5
        for values in params[layer].values():
            assert 0.7 * limit < np.abs(values).max() <= limit
        assert np.isclose(params[layer]["kernel"].std(), limit / 3**0.5, rtol=0.06)


def test_bytes_and_cells_are_numbers_from_0_to_1():
    params = {"params": Linear(3).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1), bool))["params"]}
    cells = np.random.default_rng(0).random((5, 2, 2, 1)) < 0.5
    as_bytes = (255 * cells).astype(np.uint8)
    np.testing.assert_allclose(Linear(3).apply(params, cells), Linear(3).apply(params, as_bytes))


def test_a_small_convolution_is_xlas():
    """And so are its gradients."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 5, 6, 3)).astype(np.float32)
    kernel = random.normal(size=(3, 3, 3, 4)).astype(np.float32)
    for padding in ("VALID", "SAME"):
        want, got = (
            jax.jit(
                jax.value_and_grad(
                    lambda x, kernel, f=f, p=padding: jnp.sum(f(x, kernel, (1, 1), p) ** 2), (0, 1)
                )
            )(x, kernel)
            for f in (
                partial(jax.lax.conv_general_dilated, dimension_numbers=IMAGES),
                convolve_small,
            )
        )
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# Losses.


def test_the_error_is_that_of_algorithm_1():
    random = np.random.default_rng(0)
    q_tm1, q_t = random.normal(size=(2, 50, 3)).astype(np.float32)
    action, reward = random.integers(0, 3, 50), random.normal(size=50).astype(np.float32)
    terminal = random.random(50) < 0.3
    got = losses.q_learning_error(q_tm1, action, reward, terminal, q_t, 0.9)
    for n in range(50):
        y = reward[n] if terminal[n] else reward[n] + 0.9 * max(q_t[n])
        np.testing.assert_allclose(got[n], y - q_tm1[n, action[n]], rtol=1e-4, atol=1e-6)


def test_the_gradient_is_the_clipped_error_of_the_chosen_action_alone():
    q_tm1 = np.array([[0.0, 5.0], [1.0, 0.2], [0.0, 0.5]], np.float32)
    action, reward = np.array([1, 0, 1]), np.array([0.0, 0.0, 1.0], np.float32)
    terminal = np.array([False, False, True])

    def total(q_tm1, q_t):
        error = losses.q_learning_error(q_tm1, action, reward, terminal, q_t, 0.5)
        return losses.huber(error).sum()

    q_t = np.array([[1.0, 2.0], [3.6, 0.0], [9.0, 9.0]], np.float32)
    of_q, of_target = jax.device_get(jax.jit(jax.grad(total, (0, 1)))(q_tm1, q_t))
    # The errors are 1 - 5, 1.8 - 1 and 1 - 0.5.
    np.testing.assert_allclose(of_q, [[0, 1], [-0.8, 0], [0, -0.5]], rtol=1e-6)
    assert not of_target.any()


def test_huber_is_numpys_and_its_slope_clipped():
    error = np.linspace(-3, 3, 61, dtype=np.float32)
    want = [e * e / 2 if abs(e) <= 1 else abs(e) - 0.5 for e in error]
    np.testing.assert_allclose(losses.huber(error), want, rtol=1e-5)
    slope = jax.vmap(jax.grad(losses.huber))(error)
    np.testing.assert_allclose(slope, np.clip(error, -1, 1), rtol=1e-6)


def test_shapes_that_would_broadcast_are_refused():
    q, one = jnp.zeros((4, 2)), jnp.zeros(4)
    with pytest.raises(ValueError, match="differ"):
        losses.q_learning_error(q, jnp.zeros(4, int), one[:, None], one, q, 0.9)


# The optimizer.


def test_rmsprop_is_that_of_the_published_code():
    """For a sum over the batch with eps 0.01, and for a mean with 0.01 / 32^2."""
    trace = [0.998957427930, 0.999431601277, 0.999193629013, 0.999096490386, 0.999116319825]
    for batch in (1, 32):
        optimizer, theta = rmsprop(2.5e-4, batch), jnp.float32(1)
        state = optimizer.init(theta)
        for g, want in zip((1, -0.5, 0.25, 0.1, -0.02), trace, strict=True):
            update, state = optimizer.update(jnp.float32(g / batch), state)
            theta = optax.apply_updates(theta, update)
            np.testing.assert_allclose(theta, want, rtol=2e-7)


# Games.

GAMES = pytest.mark.parametrize("name", [*play.MINATAR, *play.CONTROL])


@PLAYS
@GAMES
def test_games_can_be_played_side_by_side(name):
    """They end, new ones begin, and there is something to see."""
    game = play.named(name)
    player = play.at_random(game.actions)

    @jax.jit
    def rollout(key):
        def step(games, key):
            choose, chance = jax.random.split(key)
            action = player(play.seen(games.recent), choose)
            after, reward, over = play.advance(game, games, action, chance)
            return after, (after, reward, over)

        games = play.begin(game, key, 2)
        return jax.lax.scan(step, games, jax.random.split(key, 200))[1]

    games, reward, over = jax.device_get(rollout(jax.random.key(0)))
    assert games.recent.shape == (200, 2, 1, *game.frame.shape)
    assert games.recent.dtype == game.frame.dtype == (bool if name in play.MINATAR else np.float32)
    assert games.recent.any((2, 3, 4, 5)).all()
    if name not in ("freeway", "acrobot", "mountain_car"):  # which take longer
        assert over.any(0).all()
    for g in range(2):
        score = final = 0.0
        for t in range(200):
            score += reward[t, g]
            if over[t, g]:
                score, final = 0.0, score
            assert np.isclose(games.score[t, g], score) and np.isclose(games.final[t, g], final)


def counting(length: int) -> Game:
    """A game of so many actions; a frame is the number of actions so far and the last of them, and
    action 1 is rewarded with 3."""
    frame = jax.ShapeDtypeStruct((1, 2, 1), jnp.uint8)

    def show(count, action):
        return jnp.stack([count, action]).astype(jnp.uint8).reshape(1, 2, 1)

    def act(state, action, key):
        return state + 1, show(state + 1, action), 3.0 * (action == 1), state + 1 == length

    return Game(lambda key: (jnp.int32(0), show(0, 0)), act, frame, actions=2, history=2)


def test_a_player_sees_nothing_of_the_game_before():
    game = counting(3)
    games = jax.jit(lambda key: play.begin(game, key, 2))(jax.random.key(0))
    advance = jax.jit(lambda games, key: play.advance(game, games, np.array([1, 0]), key)[0])
    seen = []
    for _ in range(5):
        seen.append(np.asarray(play.seen(games.recent))[0, 0, 0].tolist())  # the counts
        games = advance(games, jax.random.key(1))
    assert seen == [[0, 0], [0, 1], [1, 2], [0, 0], [0, 1]]
    assert games.final.tolist() == [9, 0] and games.score.tolist() == [6, 0]


def test_whole_games_are_counted_to_their_end_and_no_further():
    game = counting(5)
    ones = lambda seen, key: jnp.ones(len(seen), jnp.int32)
    for most, score in ((100, 15), (4, 12)):
        got = play.whole_games(game, ones, jax.random.key(0), 3, most)
        assert got.tolist() == [score] * 3


def test_epsilon_is_how_often_an_action_is_taken_at_random():
    value = lambda seen: jnp.broadcast_to(jnp.array([[0.0, 1, 0, 0]]), (len(seen), 4))
    for epsilon in (0, 0.4, 1):
        player = play.sometimes_at_random(value, 4, epsilon)
        action = np.asarray(player(jnp.zeros((20_000, 1)), jax.random.key(0)))
        share = np.bincount(action, minlength=4) / len(action)
        np.testing.assert_allclose(share[1], 1 - 0.75 * epsilon, atol=0.01)
        np.testing.assert_allclose(share[[0, 2, 3]], epsilon / 4, atol=0.01)


def test_a_film_shows_each_kind_of_thing_in_its_colour():
    frames = np.zeros((2, 1, 3, 2), bool)
    frames[0, 0, 1, 0] = frames[1, 0, 2, 1] = True
    film = play.film(frames, pixels=2)
    assert film.shape == (2, 2, 6, 3) and film.dtype == np.uint8
    assert not film[0, :, :2].any() and film[0, 0, 2].any() and film[1, 0, 4].any()
    assert (film[0, 0, 2] != film[1, 0, 4]).any()


def test_a_film_of_numbers_shows_bars():
    numbers = np.array([[1.0, -4.0], [-2.0, 0.0]], np.float32)
    cells = play.bars(numbers, height=4)
    assert cells.shape == (2, 8, 4, 2)
    # Rows from the top: 1 of 2 fills half of the room above the middle, -4 of 4 all below it.
    assert cells[0, :, 0, 0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert cells[0, :, 2, 1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert cells[1, :, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and not cells[1, :, 2].any()
    assert cells.sum() == 10
    assert play.film(numbers.reshape(2, 1, 1, 2), pixels=3).shape == (2, 60, 12, 3)


# The algorithm.


class Slow:
    """Algorithm 1 with lists and loops, for games that count, and a linear network."""

    def __init__(self, params, games, memory, target_every):
        self.w, self.b = (np.float64(params["Dense_0"][name]) for name in ("kernel", "bias"))
        self.target, self.target_every = (self.w.copy(), self.b.copy()), target_every
        self.memory = [deque(maxlen=memory // games) for _ in range(games)]
        self.updates = 0

    def learn(self, number, rate):
        """On (seen, action, reward, terminal, seen) by a step of gradient descent."""
        drawn = [step for steps in self.memory for step in steps]
        dw, db = np.zeros_like(self.w), np.zeros_like(self.b)
        for n in number:
            x, a, r, terminal, after = drawn[n % len(drawn)]
            y = r if terminal else r + 0.9 * max(after @ self.target[0] + self.target[1])
            slope = -np.clip(y - (x @ self.w + self.b)[a], -1, 1) / len(number)
            dw[:, a] += slope * x
            db[a] += slope
        self.w, self.b = self.w - rate * dw, self.b - rate * db
        self.updates += 1
        if self.updates % self.target_every == 0:
            self.target = self.w.copy(), self.b.copy()


@pytest.mark.parametrize("games, every, plays, updates", [(2, 4, 2, 1), (3, 1, 1, 3)])
def test_it_is_algorithm_1(games, every, plays, updates):
    """Against lists and loops: what is remembered, forgotten, drawn and learned."""
    game, rounds, memory, begin, rate = counting(5), 3, 12 * games, 10 * games, 0.5
    learner = learn(Linear(2), game.frame, game.history, optax.sgd(rate), 0.9, target_every=4)
    practice = Practice(games, every, begin, explore=10 * games, memory=memory)
    assert (practice.plays, practice.updates) == (plays, updates)
    algorithm = q_learning(Linear(2), game, learner, practice, rounds)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    slow, step = Slow(state.params, games, memory, 4), jax.jit(algorithm.step)
    random, taken, learned = np.random.default_rng(0), 0, 0
    pending = [None] * games  # the last step, of which what followed is not stored yet
    for s in range(8):
        number = random.integers(0, 2**32, (6, rounds, updates), np.uint32)
        before, (state, metrics) = state, step(state, {"number": number}, jax.random.key(s))
        ring = jax.device_get(state.extra.memory)
        for r in range(rounds):
            for _ in range(plays):
                place = taken // games % ring.action.shape[1]
                for g in range(games):
                    count, last = ring.frame[g, place] / 255
                    fresh = pending[g] is None or pending[g][3]
                    older = np.zeros(2) if fresh else pending[g][4]
                    # Channels are the frames, so a cell's older value comes first.
                    seen = np.stack([older, np.array([count, last])], -1).ravel()
                    # Of the very first step the frame before is not known to be none.
                    if taken >= 2 * games:
                        slow.memory[g].append((*pending[g][:4], seen))
                    action, reward = ring.action[g, place], ring.reward[g, place]
                    assert reward == (action == 1)  # 3, clipped
                    ends = bool(ring.terminal[g, place])
                    assert ends == (round(255 * count) == 4)
                    pending[g] = (seen, action, reward, ends, np.array([count, last]))
                taken += games
            if taken >= begin:
                for u in range(updates):
                    slow.learn(number[:, r, u], rate)
                    learned += 1
        assert state.extra.updates == learned
        np.testing.assert_allclose(state.params["Dense_0"]["kernel"], slow.w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.params["Dense_0"]["bias"], slow.b, rtol=1e-4, atol=1e-5)
        target = state.extra.target["Dense_0"]["kernel"]
        np.testing.assert_allclose(target, slow.target[0], rtol=1e-4, atol=1e-5)
        if learned == 0:
            same = jax.tree.map(np.array_equal, before.params, state.params)
            assert all(jax.tree.leaves(same)) and metrics["loss"] == 0
    assert learned >= 10 and taken == 8 * rounds * plays * games == int(
        8 * metrics["count/actions"]
    )


# The experiment.

# As in test_experiments.py, so that it is compiled once.
TINY = replace(
    dqn.PRESETS["small"],
    **BRIEF,
    memory=200,
    begin=8,
    rounds=4,
    most=30,
)


@PLAYS
def test_states_held_out_depend_on_the_seed_alone():
    game = play.named("breakout")
    states = jax.jit(lambda key: play.states(game, key, 120))
    a, again, b = (np.asarray(states(jax.random.key(seed))) for seed in (0, 0, 1))
    assert a.shape == (120, 10, 10, 4) and len(np.unique(a.reshape(120, -1), axis=0)) > 20
    np.testing.assert_array_equal(a, again)
    assert (a != b).any()


@PLAYS
def test_a_run_is_filmed_and_its_network_plays_again(tmp_path, monkeypatch, capsys):
    run = Run(workdir=str(tmp_path), devices=1)
    result = train(dqn.build(TINY, run), run, {"experiment": "dqn", "config": asdict(TINY)})
    assert {"score", "standard error", "predicted", "score random"} <= result.keys()
    assert (tmp_path / "film.gif").exists()

    def play_it(*arguments):
        monkeypatch.setattr("sys.argv", ["dqn", "play", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main(dqn.build, dqn.PRESETS, dqn.CLAIMS, {"play": dqn.watch})
        return stop.value.code, capsys.readouterr().err

    film = tmp_path / "out.gif"
    assert play_it(tmp_path, "--film", film, "--seed", 3)[0] == 0 and film.exists()
    assert play_it() == (2, "error: python -m experiments.dqn play DIR [OPTIONS]\n")
    assert play_it("--help")[0] == 0
    assert play_it(tmp_path / "nothing")[0] == 1
    code, error = play_it(tmp_path, "--film", "out.png")
    assert code == 1 and error == "error: a film is a .gif, not out.png\n"


def test_a_game_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no game 'chess'; there are asterix, breakout"):
        play.named("chess")


@PLAYS
@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"begin": 4}, "before the first update, each of 4 games wants some actions"),
        ({"games": 0}, "games must be at least 1, not 0"),
        ({"explore": 0}, "explore must be at least 1, not 0"),
        ({"memory": 3}, "a memory of 3 is too small for 4 games"),
    ],
)
def test_where_there_is_nothing_to_learn_from_it_says_so(wrong, says):
    for config in (TINY, replace(dqn.PRESETS["pong"], begin=100)):
        if isinstance(config, Atari):
            pytest.importorskip("ale_py", reason="the games of ale-py are not installed")
        with pytest.raises(UserError, match=says):
            dqn.build(replace(config, **wrong), Run(devices=1))
