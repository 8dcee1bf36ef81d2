"""Games written in JAX, many side by side. The one kind of data that the learner changes.

A game is a pair of pure functions, like an algorithm. What it shows is a frame: bytes, booleans or
numbers. A player sees the last frames, as many as `history`, laid one behind the other in the
channels; before the first frame of a game there is nothing, which is 0.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import struct

from jaxhist import UserError
from jaxhist.algorithm import Key

MINATAR = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
CONTROL = ("acrobot", "cart_pole", "mountain_car")


class Game(NamedTuple):
    """G games, H height, W width, C channels of a frame."""

    start: Callable[[Key], tuple[Any, jax.Array]]  # -> its state, the first frame [H, W, C]
    # state, action, key -> state, frame, reward, whether it is over
    act: Callable[[Any, jax.Array, Key], tuple[Any, jax.Array, jax.Array, jax.Array]]
    frame: jax.ShapeDtypeStruct  # [H, W, C], uint8, bool or float32
    actions: int
    history: int  # frames that a player sees


def named(name: str) -> Game:
    """A game of gymnax: one of MinAtar's five (arXiv:1903.03176), 10x10 cells, and in each channel
    a kind of thing; or one of three tasks of control, whose frame is a few numbers [1, 1, C].

    Unlike there, a game ends when it is lost or won and not after some time.

    Raises:
      UserError: there is no such game, or gymnax is not installed.
    """
    if name not in (*MINATAR, *CONTROL):
        raise UserError(f"no game {name!r}; there are {', '.join((*MINATAR, *CONTROL))}")
    if importlib.util.find_spec("gymnax") is None:
        raise UserError("the games are not installed: pip install -e '.[play]'")
    import gymnax  # here, since it imports a second's worth of what draws

    title = "".join(word.capitalize() for word in name.split("_"))
    version = "-MinAtar" if name in MINATAR else "-v0" if name == "mountain_car" else "-v1"
    environment, rules = gymnax.make(title + version)
    rules = rules.replace(max_steps_in_episode=np.iinfo(np.int32).max)
    show = (
        (lambda frame: frame.astype(bool))
        if name in MINATAR
        else (lambda frame: frame.reshape(1, 1, -1).astype(jnp.float32))
    )

    def first(key):
        frame, state = environment.reset_env(key, rules)
        return state, show(frame)

    def act(state, action, key):
        frame, state, reward, over, _ = environment.step_env(key, state, action, rules)
        return state, show(frame), jnp.float32(reward), over

    # A new game's state has some Python numbers; `act` says what they are.
    example, frame = jax.eval_shape(first, jax.random.key(0))
    like = jax.eval_shape(act, example, 0, jax.random.key(0))[0]

    def start(key):
        state, frame = first(key)
        return jax.tree.map(lambda x, of: jnp.asarray(x, of.dtype), state, like), frame

    return Game(start, act, frame, environment.num_actions, history=1)


class Games(struct.PyTreeNode):
    """G games side by side."""

    state: Any  # of each
    recent: jax.Array  # [G, history, H, W, C], the newest frame last
    score: jax.Array  # [G], rewards since the game began
    final: jax.Array  # [G], the score of the game before this one; 0 before the first has ended


def begin(game: Game, key: Key, count: int) -> Games:
    """New games."""
    state, frame = jax.vmap(game.start)(jax.random.split(key, count))
    recent = jnp.zeros((count, game.history, *game.frame.shape), game.frame.dtype)
    nothing = jnp.zeros(count)
    return Games(state, recent.at[:, -1].set(frame), nothing, nothing)


def advance(
    game: Game, games: Games, action: jax.Array, key: Key
) -> tuple[Games, jax.Array, jax.Array]:
    """Take an action [G] in each. Of a game that is over, a new one begins.

    Returns:
      The games, the rewards [G], and which are over [G].
    """
    chance, start = jax.random.split(key)
    chances = jax.random.split(chance, len(action))
    state, frame, reward, over = jax.vmap(game.act)(games.state, action, chances)
    fresh = begin(game, start, len(action))
    recent = jnp.concatenate([games.recent[:, 1:], frame[:, None]], 1)
    score = games.score + reward
    ongoing = Games(state, recent, score, games.final)
    ended = fresh.replace(final=score)
    choose = jax.vmap(lambda over, new, old: jax.tree.map(partial(jnp.where, over), new, old))
    return choose(over, ended, ongoing), reward, over


def seen(recent: jax.Array) -> jax.Array:
    """What players see. [B, history, H, W, C] -> [B, H, W, history * C]"""
    B, _, H, W, _ = recent.shape
    return jnp.moveaxis(recent, 1, 3).reshape(B, H, W, -1)


# (seen [G, H, W, history * C], key) -> actions [G]
Player = Callable[[jax.Array, Key], jax.Array]


def at_random(actions: int) -> Player:
    """All actions are equally likely."""
    return lambda seen, key: jax.random.randint(key, len(seen), 0, actions)


def sometimes_at_random(value: Callable, actions: int, epsilon: jax.Array | float) -> Player:
    """The action of the largest value or, with the probability epsilon, any.

    Args:
      value: seen -> [G, actions].
      actions: how many.
      epsilon: [].
    """

    def player(seen, key):
        which, what = jax.random.split(key)
        explores = jax.random.uniform(which, len(seen)) < epsilon
        return jnp.where(explores, at_random(actions)(seen, what), value(seen).argmax(-1))

    return player


def whole_games(game: Game, player: Player, key: Key, count: int, most: int) -> jax.Array:
    """Play games to their ends, all side by side.

    Args:
      game: which.
      player: who plays.
      key: of the player and the games.
      count: how many games.
      most: actions, after which a game counts as it stands.

    Returns:
      Their scores [count].
    """

    def playing(carry):
        _, over, taken = carry
        return ~over.all() & (taken < most)

    def step(carry):
        games, over, taken = carry
        choose, chance = jax.random.split(jax.random.fold_in(key, taken))
        action = player(seen(games.recent), choose)
        after, _, ends = advance(game, games, action, chance)
        # Of a game that was over, the score stays.
        score = jnp.where(over, games.score, jnp.where(ends, after.final, after.score))
        return after.replace(score=score), over | ends, taken + 1

    carry = begin(game, key, count), jnp.zeros(count, bool), jnp.int32(0)
    return jax.lax.while_loop(playing, step, carry)[0].score


def frames(game: Game, player: Player, key: Key, most: int) -> tuple[jax.Array, jax.Array]:
    """Play one game, and record it.

    Returns:
      The frames [most, H, W, C], and how many of them are of this game.
    """

    def step(carry, index):
        games, over, count = carry
        choose, chance = jax.random.split(jax.random.fold_in(key, index))
        action = player(seen(games.recent), choose)
        after, _, ends = advance(game, games, action, chance)
        return (after, over | ends[0], count + ~over), games.recent[0, -1]

    carry = begin(game, key, 1), jnp.bool(False), jnp.int32(0)
    (_, _, count), frame = jax.lax.scan(step, carry, jnp.arange(most))
    return frame, count


def states(game: Game, key: Key, count: int) -> jax.Array:
    """What a player who acts at random sees, every tenth time: [count, H, W, history * C]."""
    player = at_random(game.actions)

    def step(games, index):
        choose, chance = jax.random.split(jax.random.fold_in(key, index))
        games, _, _ = advance(game, games, player(seen(games.recent), choose), chance)
        return games, seen(games.recent)

    turns = 10 * -(-count // 50)
    _, sights = jax.lax.scan(step, begin(game, key, 50), jnp.arange(turns))
    return sights[9::10].reshape(-1, *sights.shape[2:])[:count]


def film(frames: np.ndarray, pixels: int = 16) -> np.ndarray:
    """Frames of cells, each kind of thing in its colour; of numbers, a bar for each, up or down
    from the middle. [T, H, W, C] bool or float32 -> [T, H', W', 3] uint8

    Of the things in a cell, the one whose channel comes first is seen.
    """
    if frames.dtype != bool:
        frames = bars(frames[:, 0, 0])
    colors = matplotlib.color_sequences["tab10"][: frames.shape[-1]]
    palette = np.array([(0, 0, 0), *colors])
    kind = np.where(frames.any(-1), 1 + frames.argmax(-1), 0)
    pictures = (255 * palette[kind]).round().astype(np.uint8)
    return pictures.repeat(pixels, 1).repeat(pixels, 2)


def bars(numbers: np.ndarray, height: int = 10) -> np.ndarray:
    """[T, C] -> cells [T, 2 height, 2 C, C] bool: a bar for each number, of which the largest in
    the film is as high as there is room."""
    T, C = numbers.shape
    size = np.round(height * numbers / np.abs(numbers).max(0)).astype(int)
    up = np.arange(height, -height, -1)[:, None]  # of the upper edge of a row
    filled = ((up > 0) & (up <= size[:, None])) | ((up <= 0) & (up > size[:, None]))  # [T, 2h, C]
    cells = np.zeros((T, 2 * height, 2 * C, C), bool)
    cells[:, :, 2 * np.arange(C), np.arange(C)] = filled
    return cells
