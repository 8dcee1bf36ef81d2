"""Games of the Atari 2600, played on the host by the Arcade Learning Environment.

A screen is what the paper makes of it (2015, Methods): the larger of the last two of four frames,
pixel by pixel, its luminance, 84x84. An action lasts four frames, and a game begins after up to
thirty frames without one. No action is repeated at random, and none is taken to start a game.

An emulator cannot be copied, so no checkpoint holds a game: who resumes begins new ones.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxhist import UserError
from jaxhist.stopping import check

FRAME = jax.ShapeDtypeStruct((84, 84, 1), np.uint8)
HISTORY = 4  # screens that a player sees
FRAMES = 4  # to an action
FIVE_MINUTES = 18_000  # frames

# Scores of a player at random and of a person (2015, Extended Data Table 2).
REFERENCES = {
    "beam_rider": (363.9, 5775),
    "breakout": (1.7, 31.8),
    "enduro": (0, 309.6),
    "freeway": (0, 29.6),
    "montezuma_revenge": (0, 4367),
    "pong": (-20.7, 9.3),
    "qbert": (163.9, 13455),
    "seaquest": (68.4, 20182),
    "space_invaders": (148, 1652),
}


def of_human(name: str, score: float) -> float | None:
    """100 (score - random) / (human - random); None where the references are not known here."""
    if name not in REFERENCES:
        return None
    random, human = REFERENCES[name]
    return 100 * (score - random) / (human - random)


@functools.cache
def actions(name: str) -> int:
    """How many actions do something in a game.

    Raises:
      UserError: there is no such game, or ale-py is not installed.
    """
    return _emulators(name, 1, FIVE_MINUTES).single_action_space.n


def _emulators(name: str, games: int, most: int):
    """Games side by side, each ending after so many frames at the latest."""
    if importlib.util.find_spec("ale_py") is None:
        raise UserError("the games are not installed: pip install -e '.[play]'")
    from ale_py import roms, vector_env  # here, so that what needs no game does without them

    with warnings.catch_warnings(action="ignore"):
        if roms.get_rom_path(name) is None:
            raise UserError(f"no game {name!r}; there are {', '.join(roms.get_all_rom_ids())}")
    return vector_env.AtariVectorEnv(
        name,
        games,
        max_num_frames_per_episode=most,
        stack_num=1,
        frameskip=FRAMES,
        noop_max=30,
        use_fire_reset=False,
        reward_clipping=False,
        episodic_life=False,
    )


class Steps(NamedTuple):
    """What came of an action in each of G games, as `replay.add` takes it."""

    frame: np.ndarray  # [G, 84, 84, 1] uint8, the screen before it
    action: np.ndarray  # [G] int32
    reward: np.ndarray  # [G] float32, the game's own
    terminal: np.ndarray  # [G] bool, whether a game or, if it counts, a life was lost by it
    keep: np.ndarray  # [G] bool, False where nothing was done but to begin a new game
    begins: np.ndarray  # [G] bool, whether what went before is another game, which was broken off


class Games:
    """G games side by side. `send` actions; `receive` what came of them, when it is there."""

    def __init__(self, name: str, games: int, seed: int, lives: bool, most: int = 108_000):
        """Begin new games.

        Args:
          name: of the game, such as "space_invaders".
          games: how many.
          seed: of the frames without an action at the beginning.
          lives: whether a lost life ends what a player sees.
          most: frames, after which a game is broken off.
        """
        self._emulators, self._count_lives = _emulators(name, games, most), lives
        self.actions = self._emulators.single_action_space.n
        # One for each game: those of another seed, even the next one, are other games.
        seeds = np.random.default_rng(seed).integers(0, 2**31, games)
        screen, about = self._emulators.reset(seed=seeds)
        self.recent = np.zeros((games, HISTORY, *FRAME.shape), np.uint8)  # the newest screen last
        self.recent[:, -1, ..., 0] = screen[:, 0]
        self._lives = about["lives"].copy()
        self._over = np.zeros(games, bool)
        self._begins = np.ones(games, bool)
        self.sent: np.ndarray | None = None  # actions that have not been received yet
        self.score = np.zeros(games)  # of the game that goes on, or has just ended
        self.final = np.full(games, np.nan, np.float32)  # of the last game that ended; NaN before

    def seen(self) -> np.ndarray:
        """What players see: [G, 84, 84, HISTORY]."""
        return np.moveaxis(self.recent[..., 0], 1, -1)

    def send(self, action: np.ndarray):
        """Take actions [G] int32. The emulators have threads of their own."""
        self.sent = action
        self._emulators.send(action)

    def receive(self) -> tuple[Steps, np.ndarray]:
        """Wait for what came of them.

        Returns:
          The steps, and which games are over [G]. With the next action they begin anew.
        """
        screen, reward, terminated, truncated, about = self._emulators.recv()
        begun, lives = self._over, about["lives"]
        lost = (lives < self._lives) & self._count_lives
        steps = Steps(
            frame=self.recent[:, -1].copy(),
            action=self.sent,
            reward=reward.astype(np.float32),
            terminal=(terminated | lost) & ~begun,
            keep=~begun,
            begins=self._begins & ~begun,
        )
        self.sent = None
        self._over = terminated | truncated
        self.score = np.where(begun, 0, self.score + reward)
        self.final = np.where(self._over, self.score, self.final).astype(np.float32)
        # A game that was broken off has no end: what begins then does not follow it.
        self._begins = (self._begins & begun) | truncated
        self._lives = lives.copy()
        self.recent = np.roll(self.recent, -1, 1)
        self.recent[steps.terminal | begun] = 0
        self.recent[:, -1, ..., 0] = screen[:, 0]
        return steps, self._over


# (what is seen [G, 84, 84, HISTORY], a generator) -> actions [G] int32
Player = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def at_random(actions: int) -> Player:
    """All actions are equally likely."""
    return lambda seen, random: random.integers(0, actions, len(seen), np.int32)


def sometimes_at_random(value: Callable, actions: int, epsilon: float) -> Player:
    """The action of the largest value or, with the probability epsilon, any. `value` is seen ->
    [G, actions]."""

    def player(seen, random):
        action = at_random(actions)(seen, random)
        explores = random.random(len(seen)) < epsilon
        if not explores.all():
            best = np.asarray(value(seen)).argmax(-1).astype(np.int32)
            action = np.where(explores, action, best)
        return action

    return player


def whole_games(name: str, player: Player, seed: int, games: int, most: int) -> np.ndarray:
    """Scores [games] of whole games, of so many frames at most, all side by side."""
    playing, random = Games(name, games, seed, lives=False, most=most), np.random.default_rng(seed)
    over, score = np.zeros(games, bool), np.zeros(games)
    while not over.all():
        check()
        playing.send(player(playing.seen(), random))
        _, ends = playing.receive()
        score = np.where(over, score, playing.score)
        over |= ends
    return score


def screens(name: str, player: Player, seed: int, most: int) -> np.ndarray:
    """The screens of a game, of so many at most: [T, 84, 84, 1]."""
    playing, random = Games(name, 1, seed, lives=False), np.random.default_rng(seed)
    film = [playing.recent[0, -1]]
    ends = np.zeros(1, bool)
    while len(film) < most and not ends.all():
        check()
        playing.send(player(playing.seen(), random))
        _, ends = playing.receive()
        film.append(playing.recent[0, -1].copy())
    return np.stack(film)


def states(name: str, seed: int, count: int) -> np.ndarray:
    """What a player who acts at random sees, every tenth time: [count, 84, 84, HISTORY]."""
    playing = Games(name, 10, seed, lives=False)
    random, player, sights = np.random.default_rng(seed), at_random(playing.actions), []
    while 10 * len(sights) < count:
        check()
        for _ in range(10):
            playing.send(player(playing.seen(), random))
            playing.receive()
        sights.append(playing.seen())
    return np.concatenate(sights)[:count]
