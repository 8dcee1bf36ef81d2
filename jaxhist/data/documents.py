"""Documents to learn a language from: Python's own documentation, letters and digits, and TFDS data
sets of texts."""

import ast
import functools
import platform
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from jaxhist import UserError, progress
from jaxhist.data import prepared

EVERY = 50  # where nothing else is held out, one of so many is to validate on, the next one to test
HELD_OUT = 1_000_000  # characters at most, to validate on and to test on
SAMPLE = 100_000_000  # characters at most, from which a vocabulary is made
LARGE = 1 << 27  # bytes of a data set, above which it is not read whole

# Of "train", "validation" or "test"; a list where they have been read.
Documents = Callable[[str], Sequence[str]]


def named(name: str) -> Documents:
    """`python`, `letters`, or a TFDS data set by its name."""
    return {"python": python, "letters": letters}.get(name) or from_tfds(name)


def first(documents: Sequence[str], characters: int) -> list[str]:
    """As many as have so many characters together."""
    chosen, total = [], 0
    for document in documents:
        if total >= characters:
            break
        chosen.append(document)
        total += len(document)
    return chosen


@functools.cache
def python(split: str) -> list[str]:
    """The documentation that comes with every interpreter: of its language, a document for each
    topic of `help()`, and of its library, one for each module, made of its docstrings."""

    def read() -> dict[str, np.ndarray]:
        modules = progress(list(_modules()), "reading Python's documentation")
        texts = [*topics.values(), *map(_docstrings, modules)]
        return {"text": np.array("\0".join(text for text in texts if text).encode())}

    both = prepared.cached(f"python-documentation-{platform.python_version()}", read)
    texts = both["text"].item().decode().split("\0")
    return [texts[i] for i in _part(len(texts), split)]


def _modules() -> Iterator[Path]:
    """The files of the library, tests and what else is installed left out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.rglob("*.py")):
        if not {"site-packages", "dist-packages", "test", "tests", "pydoc_data"} & set(path.parts):
            yield path


def _docstrings(path: Path) -> str:
    """Of a module and of all classes and functions in it. Nothing is imported."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = ast.walk(ast.parse(path.read_bytes()))
    texts = [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
    return "\n\n".join(text for text in texts if text)


LETTERS, DIGITS = "abcd", "0123456789"
PAIRS = 16  # in a document


@functools.cache
def letters(split: str) -> list[str]:
    """Documents of letters and digits, a pair to a line: each letter has a digit, which is another
    one in each document. So what it is can be known from the pairs before alone."""
    number, count = {"train": (0, 20_000), "validation": (1, 500), "test": (2, 500)}[split]
    random = np.random.default_rng(number)
    letter = random.integers(len(LETTERS), size=(count, PAIRS))
    digits = random.integers(len(DIGITS), size=(count, len(LETTERS)))
    digit = np.take_along_axis(digits, letter, 1)
    pair = lambda x, y: LETTERS[x] + DIGITS[y]
    return ["\n".join(map(pair, *rows)) for rows in zip(letter, digit, strict=True)]


class Texts(Sequence[str]):
    """Some of the examples of a TFDS data set, each read when it is asked for."""

    def __init__(self, examples: Sequence[dict], places: Sequence[int]):
        self.examples, self.places = examples, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> str:
        return self.examples[self.places[index]]["text"]


def from_tfds(name: str) -> Documents:
    """A TFDS data set of documents with a `text`. One above `LARGE` is not read whole.

    Where it has one split beside train, every other document of that is to validate on; where it
    has none, some of train are.

    Args:
      name: such as "wikipedia/20230601.en".

    Raises (when documents are asked for):
      UserError: it is not there, or has no `text`, or too few.
    """

    @functools.cache
    def documents(split: str) -> Sequence[str]:
        builder = prepared.parallel_texts(name, ["text"])
        others = [part for part in ("validation", "test") if part in builder.info.splits]
        own = len(others) == 2 or (others and split == "train")
        examples = prepared.examples(builder, split if own else (others or ["train"])[0])
        if own:
            places = range(len(examples))
        elif others:
            places = range(split == "test", len(examples), 2)
        else:
            places = _part(len(examples), split)
        texts = Texts(examples, places)
        return texts if builder.info.dataset_size > LARGE else list(texts)

    return documents


def _part(count: int, split: str) -> list[int]:
    """The places of a split's, of so many documents."""
    if count < EVERY:
        raise UserError(f"{count} documents are too few; {EVERY} are needed")
    place = {"validation": 0, "test": 1}
    if split in place:
        return list(range(place[split], count, EVERY))
    return [i for i in range(count) if i % EVERY > 1]
