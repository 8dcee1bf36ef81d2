"""Labelled sentences, or pairs of them, of TFDS: begin A end, or begin A end B end."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from jaxhist import UserError, warn
from jaxhist.algorithm import Batch, State
from jaxhist.data import batches, labels, prepared, text
from jaxhist.data.labels import Split, split_off
from jaxhist.packed import PAD


class Sentences(NamedTuple):
    """A data set as an experiment wants it: "tokens" and "segment" [B, T], "label" [B]."""

    batch: Batch  # shapes and dtypes of a training batch
    names: list[str]  # of the classes
    train: Callable[[int, State], Batch]
    held_out: Callable[[str], Iterator[Batch]]  # of "validation" or "test"
    texts: Callable[[], list[str]]  # of the training data, to make a vocabulary from


def from_tfds(
    name: str,
    tokenizer: Callable[[], Tokenizer],
    marks: tuple[str, str],
    examples: int,
    batch: int,
    length: int,
    seed: int,
    mesh: Mesh,
) -> Sentences:
    """A data set with one text or two, and a label, and the splits that `labels.splits` wants.

    Args:
      name: such as "glue/cola" or "glue/mrpc".
      tokenizer: cuts texts into pieces.
      marks: the pieces that begin a row, and that end each text in it: [CLS] and [SEP] for BERT.
      examples: how many training examples to keep, of each label its share; 0 keeps all.
      batch: examples in a training batch.
      length: T; of a pair that is longer, the longer text is cut, a token at a time.
      seed: of the run.
      mesh: that the batches are split over.

    Raises:
      UserError: it is not there, or not made of one or two texts with a label; a row is too short
        for them, or `examples` are fewer than the classes.
    """
    builder, texts = prepared.labelled_texts(name)
    if len(texts) > 2:
        raise UserError(f"data set {name!r} has more than two texts: {', '.join(texts)}")
    names = list(builder.info.features["label"].names)
    if examples:
        labels.check_each("examples", examples, len(names))
    if length < 2 * len(texts) + 1:
        raise UserError(
            f"length must be at least {2 * len(texts) + 1}, for a token of each text and the marks "
            f"around them, not {length}"
        )

    def split(part: str) -> Split:
        found = list(prepared.examples(builder, part))
        read = {key: np.array([example[key] for example in found], object) for key in texts}
        return read | {"label": np.array([example["label"] for example in found], np.int32)}

    @functools.cache
    def load() -> dict[str, Split]:
        parts = labels.splits(builder, split)
        if examples:
            parts["train"] = split_off(parts["train"], examples)[1]
        return parts

    @functools.cache
    def rows(part: str) -> Batch:
        read = load()[part]
        pieces = [text.ids(tokenizer(), read[name]) for name in texts]
        begin, end = map(tokenizer().token_to_id, marks)
        together = list(zip(*pieces, strict=True))
        _tell_what_is_lost(f"{name} {part}", together, length)
        both = [row(parts, length, begin, end) for parts in together]
        tokens, segment = (np.stack(arrays) for arrays in zip(*both, strict=True))
        return {"tokens": tokens, "segment": segment, "label": read["label"]}

    shape = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return Sentences(
        {"tokens": shape, "segment": shape, "label": jax.ShapeDtypeStruct((batch,), jnp.int32)},
        names,
        batches.on_device(lambda: rows("train"), batch, seed, mesh, lambda batch, key: batch),
        lambda part: batches.slices(rows(part)),
        lambda: [one for name in texts for one in load()["train"][name]],
    )


def _tell_what_is_lost(split: str, texts: Sequence[Sequence[list[int]]], length: int):
    """One line, where a text or a pair of texts is longer than a row."""
    tokens = [sum(map(len, parts)) for parts in texts]
    room = length - 1 - len(texts[0])
    lost = [count - room for count in tokens if count > room]
    if lost:
        warn(
            f"{len(lost):,} of {len(texts):,} texts of {split} are longer than a row of {length} "
            f"tokens and cut: {sum(lost) / sum(tokens):.1%} of all tokens are lost"
        )


def row(
    parts: Sequence[list[int]], length: int, begin: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segments, [T] each, of one or two texts."""
    parts = [list(part) for part in parts]
    while sum(map(len, parts)) > length - 1 - len(parts):
        max(parts, key=len).pop()
    tokens, segment = [begin], [0]
    for number, part in enumerate(parts):
        tokens += [*part, end]
        segment += [number] * (len(part) + 1)
    pad = lambda row, value: np.array(row + [value] * (length - len(row)), np.int32)
    return pad(tokens, PAD), pad(segment, 0)
