"""Word pieces, BERT's vocabulary: made from texts, or read from a `vocab.txt`.

Mike Schuster, Kaisuke Nakajima, ICASSP 2012. A word is cut from the left into the longest pieces
that there are; those that do not begin it are written with ##.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from etils import epath
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jaxhist import UserError
from jaxhist.data import text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Special(NamedTuple):
    """The numbers of the pieces that are no words."""

    pad: int
    unknown: int
    begin: int  # [CLS], the first of every row
    end: int  # [SEP], behind each segment
    mask: int


def trained(texts: Iterable[str], size: int, cased: bool) -> Tokenizer:
    """Pieces of texts.

    Not in the paper: the most frequent pair of pieces becomes one, as in byte pair encoding, until
    there are `size`. How its authors made theirs was not published.
    """
    texts, empty = list(texts), _tokenizer({}, cased)
    letters = set().union(*map(empty.normalizer.normalize_str, texts))
    word = empty.pre_tokenizer.pre_tokenize_str
    inside = [f"##{c}" for c in sorted(letters) if [w for w, _ in word(f"a{c}")] == [f"a{c}"]]
    # Those that it is not given here the library numbers otherwise every time, and then breaks ties
    # by the numbers (huggingface/tokenizers, issue 1794).
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *inside],
        limit_alphabet=1000,
        show_progress=False,
    )
    empty.train_from_iterator(texts, trainer)
    return _tokenizer(empty.get_vocab(), cased)


def read(path: epath.PathLike, cased: bool) -> Tokenizer:
    """Pieces of a `vocab.txt`, one to a line, such as those published with BERT.

    Raises:
      UserError: it is not there, or has no [PAD] in its first line or not all of the others.
    """
    try:
        lines = epath.Path(path).read_bytes().decode().rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"no vocabulary can be read from {path}: {error}") from error
    if lines[:1] != ["[PAD]"] or not set(SPECIAL) <= set(lines):
        raise UserError(
            f"{path} is not a vocabulary of BERT: its first line is [PAD], and others are "
            f"{', '.join(SPECIAL[1:])}"
        )
    return _tokenizer({piece: number for number, piece in enumerate(lines)}, cased)


def kept(
    workdir: str, words: str, texts: Callable[[], Iterable[str]], size: int, cased: bool
) -> Callable[[], Tokenizer]:
    """The vocabulary of a run, kept in its directory.

    Args:
      workdir: the directory; without one ("") nothing is kept.
      words: a vocab.txt; or another run in the same directory as this one, whose vocabulary it
        takes over; or "" to make one.
      texts: -> those of the training data, to make one from.
      size: how many pieces.
      cased: capital letters and accents matter, in one that is made or read.

    Raises:
      UserError: the size makes no sense; and, when the vocabulary is asked for, that it cannot be
        read, or has another size.
    """
    if size <= len(SPECIAL):
        raise UserError(
            f"a vocabulary has more pieces than the {len(SPECIAL)} special ones: {size}"
        )

    def make() -> Tokenizer:
        if words.endswith(".txt"):
            tokenizer = read(words, cased)
        elif words:
            tokenizer = text.taken_over(workdir, words)
        else:
            tokenizer = trained(texts(), size, cased)
        found = tokenizer.get_vocab_size()
        if found > size or (words.endswith(".txt") and found < size):
            name = words or "the alphabet of the texts"
            raise UserError(f"{name} has {found} pieces, and the configuration asks for {size}")
        return tokenizer

    return text.kept(workdir, text.FILE, make)


def special(tokenizer: Tokenizer) -> Special:
    return Special(*map(tokenizer.token_to_id, SPECIAL))


def _tokenizer(vocabulary: dict[str, int], cased: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased, strip_accents=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([piece for piece in SPECIAL if piece in vocabulary])
    return tokenizer
