"""Documents to learn a language from: Python's own documentation, and TFDS data sets of texts."""

import ast
import functools
import platform
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from rich.progress import track

from jaxhist import UserError
from jaxhist.data import prepared

EVERY = 50  # one of so many documents is for validation, the next one for the test

Documents = Callable[[str], list[str]]  # split -> texts


def named(name: str) -> Documents:
    """`python`, or a TFDS data set by its name. The splits are train, validation and test."""
    return python if name == "python" else from_tfds(name)


@functools.cache
def python(split: str) -> list[str]:
    """The documentation that comes with every interpreter: of its language, a document for each
    topic of `help()`, and of its library, one for each module, made of its docstrings."""

    def read() -> dict[str, np.ndarray]:
        modules = track(list(_modules()), "reading Python's documentation, once", transient=True)
        texts = [*topics.values(), *map(_docstrings, modules)]
        return {"text": np.array("\0".join(text for text in texts if text).encode())}

    both = prepared.cached(f"python-documentation-{platform.python_version()}", read)
    return _part(both["text"].item().decode().split("\0"), split)


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


def from_tfds(name: str) -> Documents:
    """A TFDS data set of documents with a `text`, of which the split train is used.

    Args:
      name: such as "wikipedia/20230601.en".

    Raises (when documents are asked for):
      UserError: it is not there, or has no `text`.
    """

    @functools.cache
    def documents(split: str) -> list[str]:
        examples = prepared.examples(prepared.parallel_texts(name, ["text"]), "train")
        chosen = _part(range(len(examples)), split)
        return [examples[i]["text"].decode() for i in chosen]

    return documents


def _part(documents: list | range, split: str) -> list:
    """The documents of a split."""
    if len(documents) < EVERY:
        raise UserError(f"{len(documents)} documents are too few; {EVERY} are needed")
    place = {"validation": 0, "test": 1}
    return [
        document
        for i, document in enumerate(documents)
        if (i % EVERY == place[split] if split in place else i % EVERY > 1)
    ]
