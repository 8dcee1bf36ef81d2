"""Sentences and their translations: number words and strings without end, and TFDS data sets."""

import functools
import itertools
import string
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from num2words import num2words
from tokenizers import Tokenizer

from jaxhist import UserError, tell
from jaxhist.algorithm import Batch, State
from jaxhist.data import batches, prepared, text
from jaxhist.data.text import Row

DIGITS = 6  # of the largest numbers
HELD_OUT = 500  # pairs to validate on, and as many others to test on, of those that are drawn


class Pairs(NamedTuple):
    """Sentences in two languages."""

    source: Sequence[str]
    target: Sequence[str]


Vocabularies = tuple[Tokenizer, Tokenizer]  # of the source, of the target


class Parallel(NamedTuple):
    """A parallel corpus as an experiment wants it."""

    batch: Batch  # shapes and dtypes of a training batch: "source" and "target", [B, L] each
    train: Callable[[int, State], Batch]  # (step, state) -> rows of sentences, as `packed` has them
    rows: Callable[[str], Iterator[Batch]]  # of "validation" or "test", the same in batches
    pairs: Callable[[str], Pairs]  # of "validation" or "test"
    vocabularies: Callable[[], Vocabularies]
    encode: Callable[[Sequence[str]], list[list[int]]]  # sources -> tokens
    score: Literal["exact", "BLEU"]  # how translations are measured


def named(
    name: str,
    languages: tuple[str, str],
    vocabulary: tuple[int, ...],
    batch: int,
    length: int,
    reverse: bool,
    seed: int,
    workdir: str,
    mesh: Mesh,
) -> Parallel:
    """A corpus in batches.

    Args:
      name: "numbers", "recall", or a TFDS data set with a text in each language.
      languages: of the source and of the target, such as ("en", "de"); they may be the same.
      vocabulary: how many sub-words both have together, or how many words each has.
      batch: rows in a training batch.
      length: tokens in a row. Pairs that are longer are left out of training.
      reverse: the tokens of the source stand from the last to the first.
      seed: of the run.
      workdir: of the run, where its vocabularies are kept.
      mesh: that the batches are split over.

    Raises:
      UserError: a size makes no sense, or num2words does not know a language; and, when data are
        asked for, that the data set is not there or has no such texts.
    """
    if len(vocabulary) not in (1, 2) or min(vocabulary) < 4:
        raise UserError(
            f"a vocabulary is one number of sub-words, or two of words, 4 or more: {vocabulary}"
        )
    if length < 2:
        raise UserError(f"length must be at least 2, a token and the end, not {length}")
    drawn = None
    if name == "numbers":
        drawn = numbers(languages)
    elif name == "recall":
        drawn = recall
    pairs = from_tfds(name, languages) if drawn is None else sampled(drawn)
    vocabularies = _vocabularies(lambda: pairs("train"), vocabulary, workdir)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return text.encode(vocabularies()[0], texts, reverse)

    def tokens(split: str) -> tuple[list[list[int]], list[list[int]]]:
        source, target = pairs(split)
        return encode(source), text.encode(vocabularies()[1], target)

    @functools.cache
    def rows(split: str) -> Batch:
        """Of what is measured nothing is left out: where a sentence is longer, so are the rows."""
        source, target = tokens(split)
        return text.pack(source, target, max(length, *map(len, source), *map(len, target)))[0]

    def packed_train() -> Batch:
        arrays, longer = text.pack(*tokens("train"), length)
        if longer:
            tell(f"{longer} training pairs are longer than {length} tokens and left out")
        return arrays

    def drawn_row(_: int, random: np.random.Generator) -> Batch:
        """As many pairs as there is room for."""
        row = Row(length)
        while True:
            source, target = ([one] for one in of_split("train", drawn, random))
            (source,), (target,) = encode(source), text.encode(vocabularies()[1], target)
            if not row.takes(source, target):
                return {
                    "source": text.padded([row.source], length)[0],
                    "target": text.padded([row.target], length)[0],
                }

    def endless() -> Sequence[int]:
        """Every row is drawn anew, so how many there are in an epoch has no meaning."""
        vocabularies()  # made here, not by many threads at once
        return range(1 << 20)

    unchanged = lambda batch, key: batch
    if drawn is None:
        train = batches.on_device(packed_train, batch, seed, mesh, unchanged)
    else:
        train = batches.streamed(endless, drawn_row, batch, seed, mesh, unchanged)
    shape = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return Parallel(
        {"source": shape, "target": shape},
        train,
        lambda split: batches.slices(rows(split), batch),
        pairs,
        vocabularies,
        encode,
        # Numbers are right or wrong; and in German they are one word, of which BLEU says nothing.
        "BLEU" if drawn is None else "exact",
    )


def _vocabularies(
    pairs: Callable[[], Pairs], sizes: tuple[int, ...], workdir: str
) -> Callable[[], Vocabularies]:
    if len(sizes) == 1:
        make = lambda: text.subwords(itertools.chain(*pairs()), *sizes)
        both = text.kept(workdir, text.FILE, make)
        return lambda: (both(), both())
    source = lambda: text.words(pairs().source, sizes[0])
    target = lambda: text.words(pairs().target, sizes[1])
    source = text.kept(workdir, "vocabulary-source.json", source)
    target = text.kept(workdir, "vocabulary-target.json", target)
    return lambda: (source(), target())


Draw = Callable[[np.random.Generator], tuple[str, str]]  # a pair, one of many


def numbers(languages: tuple[str, str]) -> Draw:
    """Numbers in words: first how many digits, each as likely, then which number."""

    def draw(random):
        digits = int(random.integers(1, DIGITS + 1))
        number = int(random.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
        return tuple(spell(number, language) for language in languages)

    for language in languages:
        spell(0, language)
    return draw


def spell(number: int, language: str) -> str:
    """In words, by num2words.

    Raises:
      UserError: it does not know the language.
    """
    try:
        return num2words(number, lang=language)
    except NotImplementedError as error:
        raise UserError(f"num2words does not know the language {language!r}") from error


def recall(random: np.random.Generator) -> tuple[str, str]:
    """5 to 60 letters, and the first of them: what is asked for is as far away as the string is
    long."""
    letters = random.choice(list(string.ascii_lowercase), random.integers(5, 61))
    return " ".join(letters), str(letters[0])


def of_split(split: str, draw: Draw, random: np.random.Generator) -> tuple[str, str]:
    """A pair of a split. A sixteenth of the sources is for validation, another for the test; no
    training batch has them."""
    while True:
        source, target = draw(random)
        part = zlib.crc32(source.encode()) >> 28  # spreads them evenly
        if {0: "test", 1: "validation"}.get(part, "train") == split:
            return source, target


def sampled(draw: Draw) -> Callable[[str], Pairs]:
    """Pairs of each split; those of "train" are a sample, from which a vocabulary is made."""

    @functools.cache
    def pairs(split: str) -> Pairs:
        random, chosen = np.random.default_rng(0), {}
        while len(chosen) < (4 if split == "train" else 1) * HELD_OUT:
            source, target = of_split(split, draw, random)
            chosen[source] = target
        return Pairs(list(chosen), list(chosen.values()))

    return pairs


def from_tfds(name: str, languages: tuple[str, str]) -> Callable[[str], Pairs]:
    """A TFDS data set with a text in each language, and the splits train, validation and test.

    Args:
      name: such as "wmt14_translate/de-en".
      languages: the names of the texts.

    Raises (when pairs are asked for):
      UserError: it is not there, or has no such texts.
    """

    @functools.cache
    def pairs(split: str) -> Pairs:
        builder = prepared.parallel_texts(name, languages)
        examples = list(prepared.examples(builder, split))
        if split == "train":  # neighbours may be of one document, and would share a row
            np.random.default_rng(0).shuffle(examples)
        return Pairs(*([example[name] for example in examples] for name in languages))

    return pairs
