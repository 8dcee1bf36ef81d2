"""Experience replay: the last steps of some games, from which batches are drawn.

Each frame is stored once, as it is, which is bytes or booleans where there are many; what a player
saw, the last frames one behind the other, is laid together again when it is drawn. So a million
steps of 84x84 pixels take 7 GB, and not the 56 of a million pairs of four frames.

    place    ...  t - 1    t            t + 1        t + 2  ...
    frame         f        g            h (last)     k of another game
    terminal      no       no           yes
    drawn                  (f g, a_t, r_t, g h)      (g h, a, r, anything)

The step at a place is its frame and what was done then: the action, its reward, and whether this
ended the game. The next place has the frame that followed or, after an end, the first one of
another game, which counts for nothing. So there is no step from one game into another to be drawn,
as long as nobody stores one: where an environment restarts in a step of its own, `keep` is False.
Where a game was broken off, and what followed was never seen, the next step `begins` another one,
and the one before it is `cut`: it has no weight.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class Ring(struct.PyTreeNode):
    """The last N steps of each of G games; frames have F bytes, booleans or numbers."""

    frame: jax.Array  # [G, N, F]
    action: jax.Array  # [G, N] int32
    reward: jax.Array  # [G, N] float32
    terminal: jax.Array  # [G, N] bool
    cut: jax.Array  # [G, N] bool
    count: jax.Array  # [G] int32, steps ever stored


class Transitions(struct.PyTreeNode):
    """B steps, with names that tell the time: t - 1 is before the action and t after it."""

    seen_tm1: jax.Array  # [B, history, F]
    action_tm1: jax.Array  # [B]
    reward_t: jax.Array  # [B]
    terminal_t: jax.Array  # [B], whether seen_t counts for nothing
    seen_t: jax.Array  # [B, history, F]
    weight: jax.Array  # [B], 1; 0 where seen_t was never seen


def empty(games: int, size: int, frame: jax.ShapeDtypeStruct) -> Ring:
    """Room for the last `size` steps of each game, with frames of this shape and dtype."""
    shape = games, size
    return Ring(
        jnp.zeros((*shape, int(np.prod(frame.shape))), frame.dtype),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, bool),
        jnp.zeros(shape, bool),
        jnp.zeros(games, jnp.int32),
    )


def add(
    ring: Ring,
    frame: jax.Array,
    action: jax.Array,
    reward: jax.Array,
    terminal: jax.Array,
    keep: jax.Array | None = None,
    begins: jax.Array | None = None,
) -> Ring:
    """Store a step of each game, in the place of its oldest.

    Args:
      ring: what there is.
      frame: that was seen last, [G, ...].
      action: that was taken then, [G].
      reward: that followed, [G].
      terminal: whether the game ended, [G].
      keep: which to store, [G]; all if not given.
      begins: of which games the one stored before was broken off, [G]; none if not given.
    """
    games, size = ring.action.shape
    place = ring.count % size
    if keep is None:
        keep = jnp.ones(games, bool)
    place = jnp.where(keep, place, size)  # which is outside, and is dropped

    def put(array, value, place=place):
        return array.at[jnp.arange(games), place].set(value, mode="drop", unique_indices=True)

    cut = put(ring.cut, False)
    if begins is not None:
        cut = put(cut, True, jnp.where(begins, (ring.count - 1) % size, size))

    return Ring(
        put(ring.frame, frame.reshape(games, -1)),
        put(ring.action, action),
        put(ring.reward, reward),
        put(ring.terminal, terminal),
        cut,
        ring.count + keep,
    )


def drawable(ring: Ring, history: int) -> jax.Array:
    """How many steps of each game can be drawn: [G].

    Not the newest, whose next frame is not there yet, nor the oldest `history - 1`, of which the
    frames before are gone.
    """
    return jnp.maximum(jnp.minimum(ring.count, ring.action.shape[1]) - history, 0)


def draw(ring: Ring, number: jax.Array, history: int) -> Transitions:
    """The steps to which numbers lead, each as likely as any other that can be drawn.

    Frames of a game before are 0. Where nothing can be drawn yet, what comes is meaningless.

    Args:
      ring: what there is.
      number: [B] uint32, uniform over all of them.
      history: frames that a player sees.
    """
    size = ring.action.shape[1]
    ends = jnp.cumsum(drawable(ring, history))
    chosen = (number % jnp.maximum(ends[-1], 1).astype(jnp.uint32)).astype(jnp.int32)
    game = jnp.searchsorted(ends, chosen, side="right")
    game = jnp.minimum(game, len(ends) - 1)
    back = ends[game] - chosen  # steps before the newest, 1 or more
    place = (ring.count[game] - 1 - back) % size  # of t - 1
    window = (place[:, None] + jnp.arange(1 - history, 2)[None]) % size  # t - history .. t
    frames = ring.frame[game[:, None], window]  # [B, history + 1, F]
    before = game[:, None], window[:, :-1]
    ended = ring.terminal[before] | ring.cut[before]  # [B, history]

    def of_this_game(frames, ended):
        """Frames, the last of which is of this game, and whether it ended between them."""
        later = jnp.cumsum(ended[:, ::-1], 1)[:, ::-1]  # ends between a frame and the last one
        kept = jnp.pad(later == 0, ((0, 0), (0, 1)), constant_values=True)
        return jnp.where(kept[..., None], frames, jnp.zeros([], frames.dtype))

    return Transitions(
        of_this_game(frames[:, :-1], ended[:, :-1]),
        ring.action[game, place],
        ring.reward[game, place],
        ring.terminal[game, place],
        of_this_game(frames[:, 1:], ended[:, 1:]),
        1 - ring.cut[game, place].astype(jnp.float32),
    )
