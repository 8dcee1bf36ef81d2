"""Text as tokens: vocabularies of sub-words or of words, and sentences in rows.

A vocabulary is a `Tokenizer` of Hugging Face's tokenizers. It is made from the training texts once
and kept in the run's directory: a run that goes on reads it and never makes another.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from etils import epath
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from jaxhist import UserError
from jaxhist.files import failing_in_one_line, write_durably
from jaxhist.packed import EOS, PAD, SPECIAL

FILE = "vocabulary.json"  # in the directory of a run


def subwords(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte pair encoding (Sennrich et al., arXiv:1508.07909): from letters on, the most frequent
    pair becomes one token, until there are `size`, or no pair is left.

    What is decoded has the spaces of what was encoded.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[-1]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_pairs(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte pair encoding that begins with the 256 bytes, so that no text is unknown (GPT-2, section
    2.2). A space belongs to the word behind it, and no pair crosses from letters to other signs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def characters(texts: Iterable[str], size: int) -> Tokenizer:
    """The most frequent characters, in their order; any other is [UNK]."""
    counts = collections.Counter()
    for text in texts:
        counts.update(text)
    most = sorted(character for character, _ in counts.most_common(size - len(SPECIAL)))
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *most])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def words(texts: Iterable[str], size: int) -> Tokenizer:
    """The most frequent words and punctuation marks; any other is [UNK]."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[-1]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def kept(workdir: str, name: str, make: Callable[[], Tokenizer]) -> Callable[[], Tokenizer]:
    """A vocabulary that is made when it is first asked for, and then kept in a run's directory.

    Text is text: where it says [EOS], it has as many tokens as that is spelled with.

    Args:
      workdir: the directory; without one ("") nothing is kept.
      name: of the file there.
      make: makes it.

    Raises (when it is asked for):
      UserError: the file is damaged, or cannot be written.
    """

    @functools.cache
    def load() -> Tokenizer:
        tokenizer = read()
        tokenizer.encode_special_tokens = True  # as text; the library's name for it
        return tokenizer

    def read() -> Tokenizer:
        path = epath.Path(workdir) / name
        if workdir and path.exists():
            try:
                return Tokenizer.from_str(path.read_bytes().decode())
            except Exception as error:  # the library raises no other
                raise UserError(f"{path} is damaged ({error})") from error
        tokenizer = make()
        if workdir:
            with failing_in_one_line(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                # Each process of a job makes the same; none reads what another has half written.
                draft = path.parent / f"{name}.{jax.process_index()}.draft"
                write_durably(draft, tokenizer.to_str(pretty=True))
                draft.replace(path)
        return tokenizer

    return load


def taken_over(workdir: str, other: str) -> Tokenizer:
    """The vocabulary of another run, which is in the same directory as this one.

    Raises:
      UserError: it has none, or it is damaged.
    """
    folder = epath.Path(workdir).parent / other
    if not (folder / FILE).exists():
        raise UserError(f"no vocabulary in {folder}")
    return kept(str(folder), FILE, list)()  # it is there


def ids(tokenizer: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """Texts as tokens."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]


def encode(tokenizer: Tokenizer, texts: Sequence[str], reverse: bool = False) -> list[list[int]]:
    """Sentences as tokens that end with EOS; their words from the last to the first, if asked."""
    found = ids(tokenizer, texts)
    return [[*(tokens[::-1] if reverse else tokens), EOS] for tokens in found]


def decode(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """[B, L] tokens -> B texts, each up to its EOS."""
    return tokenizer.decode_batch([row[: _until_end(row)].tolist() for row in tokens])


def pieces(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """What the tokens [L] stand for, up to EOS and with it."""
    return [tokenizer.id_to_token(token) for token in tokens[: _until_end(tokens) + 1].tolist()]


def _until_end(row: np.ndarray) -> int:
    (ends,) = np.nonzero((row == EOS) | (row == PAD))
    return int(ends[0]) if len(ends) else len(row)


def padded(sentences: Sequence[list[int]], length: int = 0) -> np.ndarray:
    """Each in a row of its own. [B, L] int32, L the longest one's if not given."""
    rows = np.full((len(sentences), length or max(map(len, sentences))), PAD, np.int32)
    for row, sentence in zip(rows, sentences, strict=True):
        row[: len(sentence)] = sentence
    return rows


class Row:
    """A row of sources and the row of their translations, to be filled."""

    def __init__(self, length: int):
        self.room = np.array([length, length])
        self.source, self.target = [], []

    def takes(self, source: list[int], target: list[int]) -> bool:
        """Add a pair, if there is room for it."""
        need = np.array([len(source), len(target)])
        if (need > self.room).any():
            return False
        self.room -= need
        self.source += source
        self.target += target
        return True


def pack(
    sources: Iterable[list[int]], targets: Iterable[list[int]], length: int, open_rows: int = 32
) -> tuple[dict[str, np.ndarray], int]:
    """Pairs of sentences in rows of `length` tokens: each in the first row that has room, of those
    that are open.

    Returns:
      {"source", "target"}: [N, length] int32; and how many pairs are longer than a row, and so are
      in none.
    """
    rows, done, longer = [], [], 0
    for source, target in zip(sources, targets, strict=True):
        if max(len(source), len(target)) > length:
            longer += 1
        elif not any(row.takes(source, target) for row in rows):
            if len(rows) == open_rows:
                done.append(rows.pop(0))
            rows.append(Row(length))
            rows[-1].takes(source, target)
    done += rows
    if not done:
        raise UserError(f"no pair of sentences is as short as a row of {length} tokens")
    arrays = {
        name: padded([getattr(row, name) for row in done], length) for name in ("source", "target")
    }
    return arrays, longer
