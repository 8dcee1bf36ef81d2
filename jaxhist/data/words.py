"""Bags of words: 1 for each of a data set's most frequent words that a text has, 0 for others."""

import ast
import functools
import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from etils import epy

from jaxhist import UserError, progress
from jaxhist.data import labels, prepared
from jaxhist.data.images import Inputs
from jaxhist.data.labels import Split, split_off

with epy.lazy_imports():  # they take a second
    from sklearn import feature_extraction

WORDS = 10_000  # the most frequent of the training texts


def named(name: str, validation: int) -> Inputs:
    """`docstrings`, or a TFDS data set by its name.

    Raises:
      UserError: it is not there, not made of labelled texts, or has more classes than there are
        examples to be held out.
    """
    source = docstrings(validation) if name == "docstrings" else from_tfds(name, validation)
    labels.check_each("validation", validation, source.classes)
    return source


# Packages that come with jaxhist and are full of English, by the names of their distributions.
PACKAGES = {
    "jax": "jax",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
}


def docstrings(validation: int) -> Inputs:
    """The docstrings of five packages; the label is the package, whose name is no word.

    Args:
      validation: how many training examples to hold out.
    """

    def read() -> Split:
        packages = progress(PACKAGES, "reading the docstrings of five packages")
        texts = {package: _docstrings(package) for package in packages}
        label = np.repeat(np.arange(len(texts), dtype=np.int32), list(map(len, texts.values())))
        text = np.array("\0".join(text for some in texts.values() for text in some).encode())
        return {"text": text, "label": label}

    @functools.cache
    def load() -> dict[str, Split]:
        versions = "-".join(version(distribution) for distribution in PACKAGES.values())
        both = prepared.cached(f"docstrings-{versions}", read)
        text = np.array(both["text"].item().decode().split("\0"), object)
        rest, test = split_off({"text": text, "label": both["label"]}, len(text) // 5)
        train, held_out = split_off(rest, validation)
        return _bags({"train": train, "validation": held_out, "test": test}, list(PACKAGES))

    return Inputs((WORDS,), len(PACKAGES), load)


def _docstrings(package: str) -> list[str]:
    """Of all modules, classes and functions, tests left out. Nothing is imported."""
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    texts = []
    for path in sorted(Path(folder).rglob("*.py")):
        if "tests" not in path.parts:
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
            nodes = ast.walk(ast.parse(path.read_bytes()))
            texts += [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
    return [text for text in texts if text]


def from_tfds(name: str, validation: int) -> Inputs:
    """A TFDS data set of labelled texts, with the splits that `labels.splits` wants.

    Args:
      name: such as "imdb_reviews".
      validation: how many training examples to hold out.

    Raises:
      UserError: it is not there, or not made of labelled texts.
    """
    builder, (text, *_) = prepared.labelled_texts(name)

    def split(name: str) -> Split:
        examples = list(prepared.examples(builder, name))
        return {
            "text": np.array([example[text] for example in examples], object),
            "label": np.array([example["label"] for example in examples], np.int32),
        }

    @functools.cache
    def load() -> dict[str, Split]:
        return _bags(labels.splits(builder, split, validation))

    return Inputs((WORDS,), builder.info.features["label"].num_classes, load)


def _bags(splits: dict[str, Split], stop_words: Sequence[str] | None = None) -> dict[str, Split]:
    """The texts as bags of the words that are most frequent in the training texts."""
    count = feature_extraction.text.CountVectorizer(
        max_features=WORDS, binary=True, dtype=np.uint8, stop_words=stop_words
    )
    try:
        count.fit(splits["train"]["text"])
    except ValueError as error:
        raise UserError(f"the training texts have no words to be counted ({error})") from error
    return {
        name: {"input": _wide(count.transform(split["text"]).toarray()), "label": split["label"]}
        for name, split in splits.items()
    }


def _wide(bags: np.ndarray) -> np.ndarray:
    """A small data set may have fewer words: the others never occur."""
    return np.pad(bags, ((0, 0), (0, WORDS - bags.shape[1])))
