"""Rows of sentences: [B, L] tokens, sentence after sentence, so that little of a row is padding.

Every sentence ends with EOS, and what is behind the last one is PAD. The sentences of a row of
targets are the translations of those of the same row of sources, in the same order. A batch of
single sentences is a batch of rows with one sentence in each.

    B rows      S, T, L tokens in a row of sources, of targets, of either
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

PAD, EOS, UNK = 0, 1, 2
SPECIAL = ("[PAD]", "[EOS]", "[UNK]")


class Places(NamedTuple):
    """Where the tokens of a row stand."""

    sentence: jax.Array  # [B, L], from 1; 0 is padding
    position: jax.Array  # [B, L] in its sentence, from 0


def places(tokens: jax.Array) -> Places:
    """Of tokens [B, L]."""
    ends = tokens == EOS
    before = jnp.cumsum(ends, 1) - ends
    index = jnp.arange(tokens.shape[1])[None]
    begins = jnp.concatenate([jnp.ones_like(ends[:, :1]), ends[:, :-1]], 1)
    position = index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    return Places(jnp.where(tokens == PAD, 0, before + 1), position)


def shifted(tokens: jax.Array) -> jax.Array:
    """What a decoder reads to predict [B, T]: the token before. It begins a sentence with EOS, the
    end of the one before."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=EOS)


def last(tokens: jax.Array, sentence: jax.Array) -> jax.Array:
    """Where sentences end: [B, S] tokens, [B, T] numbers of sentences -> [B, T] indices."""
    done = jnp.cumsum(tokens == EOS, 1)
    return jnp.sum(done[:, None, :] < sentence[:, :, None], -1)


def first(tokens: jax.Array, sentence: jax.Array) -> jax.Array:
    """Where sentences begin, likewise."""
    return jnp.where(sentence > 1, last(tokens, sentence - 1) + 1, 0)


def at(values: jax.Array, index: jax.Array) -> jax.Array:
    """[B, S, D] values at [B, T] indices -> [B, T, D]."""
    return jnp.take_along_axis(values, index[..., None], axis=1, mode="clip")
