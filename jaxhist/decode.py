"""Decoding: sentences from any function that predicts the next token, on batches, under `jit`.

    next_token(memory, cache, token [N], index) -> logits [N, V], cache

`index` is how many tokens there are already; `token` is the last of them, and EOS at first.
`memory` is what stays as it is, such as the source; `cache` is what changes with each token, such
as the keys and values of those before. Both are pytrees of [B, ...]; N is B, or B times the beams.

PAD is never predicted.

    B sentences      L tokens at most, EOS included      K beams      V vocabulary
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxhist.algorithm import Key
from jaxhist.packed import EOS, PAD

Array = jax.Array
NextToken = Callable[[Any, Any, Array, Array], tuple[Array, Any]]


class Decoded(NamedTuple):
    """Sentences."""

    tokens: Array  # [B, L], PAD behind EOS
    log_probability: Array  # [B], of all tokens; of a beam search divided by the penalty


def greedy(next_token: NextToken, memory: Any, cache: Any, count: int, length: int) -> Decoded:
    """The most probable token, again and again.

    Args:
      next_token, memory, cache: as above.
      count: B.
      length: L.
    """
    return _one_by_one(next_token, memory, cache, count, length, lambda log_p, _: log_p.argmax(-1))


def sample(
    next_token: NextToken,
    memory: Any,
    cache: Any,
    count: int,
    length: int,
    key: Key,
    adjust: Callable[[Array], Array] = lambda logits: logits,
) -> Decoded:
    """Tokens drawn from softmax(adjust(logits)). The others: as in `greedy`."""

    def choose(log_p, index):
        return jax.random.categorical(jax.random.fold_in(key, index), adjust(log_p))

    return _one_by_one(next_token, memory, cache, count, length, choose)


def temperature(logits: Array, value: float) -> Array:
    """softmax(logits / value): the nearer to 0, the more often the most probable one. [N, V]"""
    return logits / value


def top_k(logits: Array, k: int) -> Array:
    """The k most probable ones; -inf for the others. [N, V]

    Fan et al., arXiv:1805.04833.
    """
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits >= least, logits, -jnp.inf)


def nucleus(logits: Array, p: float) -> Array:
    """The fewest that together have a probability of p or more; -inf for the others. [N, V]

    Holtzman et al., arXiv:1904.09751, section 3.1.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(ordered)
    before = jnp.cumsum(probability, -1) - probability  # of those that are more probable
    least = jnp.min(jnp.where(before < p, ordered, jnp.inf), -1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def _one_by_one(next_token, memory, cache, count, length, choose) -> Decoded:
    def going_on(state):
        _, token, _, _, index = state
        # At first the last token is EOS, and nothing has ended.
        return (index < length) & ((index == 0) | jnp.any((token != EOS) & (token != PAD)))

    def step(state):
        cache, token, tokens, total, index = state
        logits, cache = next_token(memory, cache, token, index)
        log_p = _log_softmax(logits)
        ended = (index > 0) & ((token == EOS) | (token == PAD))
        new = jnp.where(ended, PAD, choose(log_p, index).astype(jnp.int32))
        chosen = jnp.take_along_axis(log_p, new[:, None], 1)[:, 0]
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, new[:, None], index, 1)
        return cache, new, tokens, total + jnp.where(ended, 0, chosen), index + 1

    first = jnp.full(count, EOS, jnp.int32)
    tokens = jnp.full((count, length), PAD, jnp.int32)
    state = cache, first, tokens, jnp.zeros(count), jnp.int32(0)
    _, _, tokens, total, _ = jax.lax.while_loop(going_on, step, state)
    return Decoded(tokens, total)


def _log_softmax(logits: Array) -> Array:
    """[N, V], in float32, of all tokens but PAD."""
    return jax.nn.log_softmax(logits.astype(jnp.float32).at[:, PAD].set(-jnp.inf))


def length_penalty(length: Array, alpha: float) -> Array:
    """lp(Y) = ((5 + |Y|) / 6)^alpha. Wu et al., arXiv:1609.08144, equation 14."""
    return ((5 + length) / 6) ** alpha


def beam_search(
    next_token: NextToken,
    memory: Any,
    cache: Any,
    count: int,
    length: int,
    beams: int,
    alpha: float = 0.0,
) -> Decoded:
    """The sentence of the highest log P(Y) / lp(Y) among those that a beam finds.

    The K most probable beginnings are kept. One that EOS ends leaves the beam, which is narrower
    from then on (Sutskever et al., arXiv:1409.3215, section 3.2). A search is over when the beam is
    empty, or when no beginning in it can become better than the best sentence. Where no sentence
    has ended after L tokens, it is the most probable beginning. With one beam it is `greedy`.

    Args:
      next_token, memory, cache, count, length: as in `greedy`.
      beams: K.
      alpha: of the length penalty. 0, as in Sutskever et al., prefers short sentences.
    """
    B, K, L = count, beams, length
    wide = lambda tree: jax.tree.map(lambda leaf: jnp.repeat(leaf, K, 0), tree)
    memory = wide(memory)

    class Beam(NamedTuple):
        cache: Any  # [B K, ...]
        tokens: Array  # [B, K, L], the beginnings
        live: Array  # [B, K], their log-probabilities; -inf where there is none
        width: Array  # [B], how many there may be
        best: Array  # [B, L], the best sentence
        score: Array  # [B], its own; -inf if there is none
        index: Array  # []

    def going_on(beam):
        return (beam.index < L) & jnp.any(beam.live > -jnp.inf)

    def step(beam):
        last = beam.tokens[:, :, jnp.maximum(beam.index - 1, 0)].reshape(-1)
        token = jnp.where(beam.index == 0, EOS, last)
        logits, cache = next_token(memory, beam.cache, token, beam.index)
        new = _log_softmax(logits).reshape(B, K, -1)
        V = new.shape[-1]
        total, chosen = jax.lax.top_k((beam.live[:, :, None] + new).reshape(B, -1), K)
        parent, token = chosen // V, chosen % V

        total = jnp.where(jnp.arange(K)[None] < beam.width[:, None], total, -jnp.inf)
        tokens = jnp.take_along_axis(beam.tokens, parent[:, :, None], 1)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, :, None], beam.index, 2)
        ended = (token == EOS) & (total > -jnp.inf)

        score = jnp.where(ended, total, -jnp.inf) / length_penalty(beam.index + 1, alpha)
        where = score.argmax(1)[:, None]
        best = jnp.take_along_axis(tokens, where[:, :, None], 1)[:, 0]
        score = jnp.take_along_axis(score, where, 1)[:, 0]
        better = score > beam.score
        best, score = jnp.where(better[:, None], best, beam.best), jnp.maximum(score, beam.score)

        live = jnp.where(ended, -jnp.inf, total)
        hope = live.max(1) / length_penalty(jnp.float32(L), alpha)
        live = jnp.where((hope > score)[:, None], live, -jnp.inf)
        rows = (jnp.arange(B)[:, None] * K + parent).reshape(-1)
        cache = jax.tree.map(lambda leaf: leaf[rows], cache)
        width = beam.width - ended.sum(1)
        return Beam(cache, tokens, live, width, best, score, beam.index + 1)

    first = Beam(
        cache=wide(cache),
        tokens=jnp.full((B, K, L), PAD, jnp.int32),
        live=jnp.full((B, K), -jnp.inf).at[:, 0].set(0),  # the empty beginning
        width=jnp.full(B, K),
        best=jnp.full((B, L), PAD, jnp.int32),
        score=jnp.full(B, -jnp.inf),
        index=jnp.int32(0),
    )
    beam = jax.lax.while_loop(going_on, step, first)
    unended = jnp.take_along_axis(beam.tokens, beam.live.argmax(1)[:, None, None], 1)[:, 0]
    nothing = beam.score == -jnp.inf
    total = beam.live.max(1) / length_penalty(jnp.float32(L), alpha)
    tokens = jnp.where(nothing[:, None], unended, beam.best)
    return Decoded(tokens, jnp.where(nothing, total, beam.score))
