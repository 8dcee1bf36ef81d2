"""BERT's tasks, made from documents: words that are hidden, and a segment that may follow another.

    B rows      T tokens in a row, R = T - 3 without [CLS] and [SEP]      P to be predicted

A row is [CLS] A [SEP] B [SEP], and behind that [PAD]. To be predicted are `label`, the tokens at
the places `position`; where there are fewer than P, the label is [PAD].
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from jaxhist import UserError
from jaxhist.algorithm import Batch, Key, State
from jaxhist.data import batches, text, wordpiece
from jaxhist.data.documents import HELD_OUT, Documents, first
from jaxhist.data.wordpiece import Special
from jaxhist.packed import PAD

Array = jax.Array

SHARE = 0.15  # of the tokens of a row, hidden
KEPT, RANDOM = 0.1, 0.1  # of those, what is left as it is, and what becomes any other
SHORT = 0.1  # of the rows, shorter than they could be
TESTED = 2000  # rows to validate on, and as many others to test on, if there are more


class Corpus(NamedTuple):
    """Documents as an experiment wants them."""

    batch: Batch  # shapes and dtypes of a training batch
    train: Callable[[int, State], Batch]
    held_out: Callable[[str], Iterator[Batch]]  # of "validation" or "test", with `alone`


def corpus(
    documents: Documents,
    tokenizer: Callable[[], Tokenizer],
    vocabulary: int,
    batch: int,
    length: int,
    pairs: bool,
    left_to_right: bool,
    seed: int,
    mesh: Mesh,
) -> Corpus:
    """Rows of documents, other ones at every visit.

    A batch has "tokens" and "segment" [B, T], "position" and "label" [B, P], and "follows" [B],
    whether B follows A. One that is held out also has "alone", the same row with one token hidden.

    Args:
      documents: by split.
      tokenizer: cuts them into pieces.
      vocabulary: how many pieces there are.
      batch: rows in a training batch.
      length: T.
      pairs: B follows A in half of the rows; else in all.
      left_to_right: nothing is hidden, and from each token the next one is to be predicted.
      seed: of the run.
      mesh: that the batches are split over.

    Raises:
      UserError: a row is too short; and, when data are asked for, that documents have no words.
    """
    if length < 8:
        raise UserError(f"length must be at least 8 for a row of two segments, not {length}")

    def cut(document: str, number: int) -> list[Batch]:
        """The windows of a document, and its number with each."""
        found = windows(text.ids(tokenizer(), sentences(document)), length - 3)
        return [window | {"document": np.int32(number)} for window in found]

    def rows(texts: Sequence[str]) -> Batch:
        found = [window for number, one in enumerate(texts) for window in cut(one, number)]
        if not found:
            raise UserError("the documents have no two words that follow each other")
        return {name: np.stack([window[name] for window in found]) for name in found[0]}

    def drawn(_: int, random: np.random.Generator) -> Batch:
        """A window of a document that is drawn, each as often as any other, since there are too
        many to be read."""
        every, found = documents("train"), []
        while not found:
            number = int(random.integers(len(every)))
            found = cut(every[number], number)
        return found[int(random.integers(len(found)))]

    def endless() -> Sequence[int]:
        tokenizer()  # made here, not by many threads at once
        return range(1 << 20)

    def prepare(batch: Batch, key: Key) -> Batch:
        special = wordpiece.special(tokenizer())
        pair_key, hide_key = jax.random.split(key)
        paired = pair(batch, pair_key, special, 0.5 if pairs else 1.0)
        if left_to_right:
            return paired | following(paired["tokens"])
        return paired | hide(paired["tokens"], hide_key, special, vocabulary)

    def test(batch: Batch, key: Key) -> Batch:
        """Both from the same rows."""
        special = wordpiece.special(tokenizer())
        whole = pair(batch, jax.random.split(key)[0], special, 1.0)
        alone = hide(whole["tokens"], key, special, vocabulary, share=0, kept=0, random=0)
        if left_to_right:  # it is predicted from what is before it
            alone["position"] -= 1
        return prepare(batch, key) | {"alone": whole | alone}

    @functools.cache
    def tested(split: str) -> Batch:
        every = rows(first(documents(split), HELD_OUT))
        chosen = np.random.default_rng(0).permutation(batches.count(every))[:TESTED]
        some = {name: array[chosen] for name, array in every.items()}
        return jax.device_get(jax.jit(test)(some, jax.random.key(0)))

    read = batches.on_device(lambda: rows(documents("train")), batch, seed, mesh, prepare)
    streamed = batches.streamed(endless, drawn, batch, seed, mesh, prepare)

    def train(step: int, state: State) -> Batch:
        return (read if isinstance(documents("train"), list) else streamed)(step, state)

    shape = lambda *sizes: jax.ShapeDtypeStruct((batch, *sizes), jnp.int32)
    P = length - 1 if left_to_right else most(length)
    return Corpus(
        {
            "tokens": shape(length),
            "segment": shape(length),
            "position": shape(P),
            "label": shape(P),
            "follows": shape(),
        },
        train,
        lambda split: batches.slices(tested(split), batch),
    )


SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")  # what is between two


def sentences(text: str) -> list[str]:
    """Of a text, roughly: behind a full stop and a space, or an empty line, begins another."""
    return [sentence for sentence in SENTENCE.split(text) if sentence.strip()]


def windows(document: Sequence[list[int]], room: int) -> Iterator[Batch]:
    """Sentences that follow each other, as many as there is room for; longer ones are cut, and what
    is a single token is left out.

    Args:
      document: sentences of tokens.
      room: R.

    Yields:
      "tokens" [R] int32; "begins" [R], whether a sentence begins there.
    """
    row, starts = [], []
    for sentence in document:
        for part in (sentence[i : i + room] for i in range(0, len(sentence), room)):
            if len(row) + len(part) > room:
                yield from _window(row, starts, room)
                row, starts = [], []
            starts.append(len(row))
            row = row + part
    yield from _window(row, starts, room)


def _window(row: list[int], starts: list[int], room: int) -> Iterator[Batch]:
    if len(row) > 1:
        tokens = np.pad(np.array(row, np.int32), (0, room - len(row)), constant_values=PAD)
        yield {"tokens": tokens, "begins": np.isin(np.arange(room), starts)}


def pair(batch: Batch, key: Key, special: Special, together: float) -> Batch:
    """Two segments of each window, cut where a sentence begins, if one does.

    With the probability `together` B is what follows A; else it is the beginning of another window
    of the batch, of another document. (If there is none, B follows.)

    Returns:
      "tokens" and "segment" [B, R + 3], "follows" [B].
    """
    tokens, document = batch["tokens"], batch["document"]
    (B, R), rows = tokens.shape, jnp.arange(len(tokens))
    short_key, length_key, cut_key, other_key, key = jax.random.split(key, 5)
    full = jnp.sum(tokens != PAD, 1)
    shorter = jax.random.randint(length_key, (B,), 2, full + 1)
    length = jnp.where(jax.random.bernoulli(short_key, SHORT, (B,)), shorter, full)

    place = jnp.arange(R)[None]
    inside = (place > 0) & (place < length[:, None])
    wanted = jax.random.uniform(cut_key, (B, R)) + batch["begins"]
    a = jnp.where(inside, wanted, -1).argmax(1)  # tokens of A
    others = document[:, None] != document[None]
    other = jnp.where(others, jax.random.uniform(other_key, (B, B)), -1).argmax(1)
    follows = jax.random.bernoulli(key, together, (B,)) | ~others.any(1)
    source, begin = jnp.where(follows, rows, other), jnp.where(follows, a, 0)
    b = jnp.minimum(length - a, full[source] - begin)

    place, a, b, begin = jnp.arange(R + 3)[None], a[:, None], b[:, None], begin[:, None]
    of_a = tokens[rows[:, None], jnp.clip(place - 1, 0, R - 1)]
    of_b = tokens[source[:, None], jnp.clip(place - a - 2 + begin, 0, R - 1)]
    end = a + b + 2
    row = jnp.where(place <= a, of_a, jnp.where(place < end, of_b, PAD))
    row = jnp.where((place == a + 1) | (place == end), special.end, row)
    row = jnp.where(place == 0, special.begin, row)
    segment = (place > a + 1) & (place <= end)
    return {
        "tokens": row,
        "segment": segment.astype(jnp.int32),
        "follows": follows.astype(jnp.int32),
    }


def most(length: int, share: float = SHARE) -> int:
    """P, the most tokens that are hidden in a row."""
    return max(1, round(share * length))


def hide(
    tokens: Array,
    key: Key,
    special: Special,
    vocabulary: int,
    share: float = SHARE,
    kept: float = KEPT,
    random: float = RANDOM,
) -> Batch:
    """Words to be predicted, section 3.1: of each row a share, at least one, no special tokens.

    Most of them become [MASK]; the shares `kept` and `random` are left, or become any of the
    vocabulary.

    Returns:
      "tokens" [B, T], "position" and "label" [B, P].
    """
    P, (choose_key, how_key, which_key) = most(tokens.shape[1], share), jax.random.split(key, 3)
    words = (tokens != PAD) & (tokens != special.begin) & (tokens != special.end)
    drawn = jnp.where(words, jax.random.uniform(choose_key, tokens.shape), -1)
    chance, position = jax.lax.top_k(drawn, P)
    count = jnp.maximum(1, jnp.round(share * jnp.sum(tokens != PAD, 1, keepdims=True)))
    hidden = (chance >= 0) & (jnp.arange(P)[None] < count)
    there = jnp.take_along_axis(tokens, position, 1)
    how = jax.random.uniform(how_key, there.shape)
    which = jax.random.randint(which_key, there.shape, 0, vocabulary)
    instead = jnp.where(how < kept, there, jnp.where(how < kept + random, which, special.mask))
    rows = jnp.arange(len(tokens))[:, None]
    return {
        "tokens": tokens.at[rows, position].set(jnp.where(hidden, instead, there)),
        "position": position,
        "label": jnp.where(hidden, there, PAD),
    }


def following(tokens: Array) -> Batch:
    """From each token the next one is to be predicted. "position" and "label" [B, T - 1]"""
    label = tokens[:, 1:]
    position = jnp.broadcast_to(jnp.arange(label.shape[1], dtype=jnp.int32)[None], label.shape)
    return {"position": position, "label": label}
