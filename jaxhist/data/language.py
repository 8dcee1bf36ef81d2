"""Documents as a stream of tokens.

The documents stand one behind the other, each with EOS at its end, and a window is any piece of
that stream: it may begin within a document and have the beginning of another (GPT-3, appendix B).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from jaxhist import UserError, devices
from jaxhist.algorithm import Batch, State, keys
from jaxhist.data import batches, documents, text
from jaxhist.packed import SPECIAL

Unit = Literal["bytes", "characters"]
MAKE = {"bytes": text.byte_pairs, "characters": text.characters}
LEAST = {"bytes": 256 + len(SPECIAL), "characters": 1 + len(SPECIAL)}  # of a vocabulary


class Corpus(NamedTuple):
    """A text as an experiment wants it."""

    batch: Batch  # shapes and dtypes of a training batch: "tokens", [B, T + 1]
    train: Callable[[int, State], Batch]  # (step, state) -> windows, each anywhere in the stream
    # Of "validation" or "test", end to end, so many at a time.
    windows: Callable[[str, int], Iterator[Batch]]
    tokens_per_character: Callable[[str], float]  # of "validation" or "test"
    vocabulary: Callable[[], Tokenizer]


def named(
    name: str,
    unit: Unit,
    vocabulary: int,
    batch: int,
    length: int,
    share: float,
    seed: int,
    workdir: str,
    mesh: Mesh,
) -> Corpus:
    """A corpus in batches.

    Args:
      name: of the documents.
      unit: what a vocabulary begins with. Bytes are merged, characters are not.
      vocabulary: how many tokens it has at most.
      batch: windows in a training batch.
      length: T, the tokens to be predicted in a window.
      share: of the training text, from its beginning.
      seed: of the run.
      workdir: of the run, where its vocabulary is kept.
      mesh: that the batches are split over.

    Raises:
      UserError: a size makes no sense; and, when data are asked for, that the data set is not
        there, or has no such text.
    """
    if not 0 < share <= 1:
        raise UserError(f"a share of the text is above 0 and at most 1, not {share}")
    texts = documents.named(name)
    sample = lambda: documents.first(texts("train"), documents.SAMPLE)
    tokenizer = kept(workdir, "", sample, unit, vocabulary)

    def encode(chosen: Sequence[str]) -> np.ndarray:
        return np.concatenate([np.int32(ids) for ids in text.encode(tokenizer(), chosen)])

    @functools.cache
    def held_out(split: str) -> tuple[np.ndarray, int]:
        """The stream, and how many characters it has."""
        chosen = documents.first(texts(split), documents.HELD_OUT)
        if not any(chosen):
            raise UserError(f"all documents of {name} {split} are empty")
        return encode(chosen), sum(map(len, chosen))

    def windows(split: str, size: int) -> Iterator[Batch]:
        """Each token but the first is predicted once. What is behind the end is PAD."""
        stream, _ = held_out(split)
        rows = [stream[i : i + length + 1] for i in range(0, len(stream) - 1, length)]
        return batches.slices({"tokens": text.padded(rows, length + 1)}, size)

    @functools.cache
    def stream() -> jax.Array:
        if not any(texts("train")):
            raise UserError(f"all documents of {name} train are empty")
        whole = encode(texts("train"))
        kept = whole[: round(share * len(whole))]
        if len(kept) <= length:
            raise UserError(f"the {len(kept)} tokens to train on are no more than {length}")
        return devices.place(kept, devices.whole(mesh))

    key = keys(seed).order

    @functools.partial(jax.jit, out_shardings=devices.split(mesh))
    def cut(stream: jax.Array, step: jax.Array) -> Batch:
        highest = len(stream) - length
        begin = jax.random.randint(jax.random.fold_in(key, step), (batch, 1), 0, highest)
        return {"tokens": stream[begin + jnp.arange(length + 1)[None]]}

    def drawn(_: int, random: np.random.Generator) -> Batch:
        """A window of documents that are drawn, each as often as any other, since there are too
        many to be read."""
        every, row = texts("train"), []
        count = max(1, int(share * len(every)))
        while len(row) <= length:
            row += text.encode(tokenizer(), [every[int(random.integers(count))]])[0]
        begin = random.integers(len(row) - length)
        return {"tokens": np.array(row[begin : begin + length + 1], np.int32)}

    def endless() -> Sequence[int]:
        tokenizer()  # made here, not by many threads at once
        return range(1 << 20)

    streamed = batches.streamed(endless, drawn, batch, seed, mesh, lambda batch, key: batch)

    def train(step: int, state: State) -> Batch:
        if isinstance(texts("train"), list):
            return cut(stream(), step)
        return streamed(step, state)

    def tokens_per_character(split: str) -> float:
        stream, characters = held_out(split)
        return len(stream) / characters

    shape = jax.ShapeDtypeStruct((batch, length + 1), jnp.int32)
    return Corpus({"tokens": shape}, train, windows, tokens_per_character, tokenizer)


def kept(
    workdir: str, other: str, texts: Callable[[], Sequence[str]], unit: Unit, size: int
) -> Callable[[], Tokenizer]:
    """The vocabulary of a run, kept in its directory.

    Args:
      workdir: the directory; without one ("") nothing is kept.
      other: another run in the same directory as this one, whose vocabulary it takes over, or "" to
        make one.
      texts: -> those to make one from.
      unit: what a vocabulary begins with.
      size: how many tokens it has at most.

    Raises:
      UserError: the size makes no sense; and, when the vocabulary is asked for, that the other run
        has none, or a larger one.
    """
    if size < LEAST[unit]:
        raise UserError(f"a vocabulary of {unit} has {LEAST[unit]} tokens at least: {size}")

    def make() -> Tokenizer:
        if not other:
            return MAKE[unit](texts(), size)
        tokenizer = text.taken_over(workdir, other)
        if (found := tokenizer.get_vocab_size()) > size:
            raise UserError(f"{other} has {found} tokens, and the configuration asks for {size}")
        return tokenizer

    return text.kept(workdir, text.FILE, make)
