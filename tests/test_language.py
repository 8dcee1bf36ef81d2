"""Texts as tokens, and questions that are put to a model as texts."""

from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sets
import tensorflow_datasets as tfds
from conftest import needs

from experiments import gpt_text
from jaxhist import UserError, devices, shots
from jaxhist.data import documents, language, text
from jaxhist.packed import EOS, PAD, UNK
from jaxhist.shots import Question

# Data


def corpus(name="letters", seed=0, **changes):
    options = {"unit": "characters", "vocabulary": 18, "batch": 8, "length": 40, "share": 1.0}
    options |= {"workdir": "", "mesh": devices.mesh(1)} | changes
    return language.named(name, seed=seed, **options)


@pytest.fixture
def few(monkeypatch):
    """Of documents of letters 19,200 tokens."""
    letters = documents.letters("validation")[:400]
    monkeypatch.setattr(documents, "letters", lambda split: letters)


ODD = ["Grüße, 東京!\n\n  x = {'a': 1}\t# 100 %\n", "\u200bé e\u0301 \x00"]


def test_bytes_make_every_text():
    vocabulary = text.byte_pairs(["the cat sat on the mat"] * 3, 270)
    assert vocabulary.get_vocab_size() == 270 == 3 + 256 + 11
    assert vocabulary.token_to_id("Ġthe") is not None  # the space belongs to the word behind it
    rows = text.padded(text.encode(vocabulary, ODD))
    assert text.decode(vocabulary, rows) == ODD and (rows != UNK).all()
    texts = list(topics.values())[:9]
    assert len({text.byte_pairs(texts, 300).to_str() for _ in range(3)}) == 1


def test_characters_are_the_most_frequent():
    vocabulary = text.characters(["aab\n", "ba\nc"], 6)
    assert [vocabulary.id_to_token(i) for i in range(3, 6)] == ["\n", "a", "b"]
    ((*tokens, end),) = text.encode(vocabulary, ["ab\nca"])
    assert (tokens, end) == ([4, 5, 3, UNK, 4], EOS)
    assert text.decode(vocabulary, np.array([[4, 5, 3, 4, EOS]])) == ["ab\na"]


def test_a_window_is_a_piece_of_the_stream(few):
    """It may begin anywhere, and goes on from one document to the next."""
    letters = corpus()
    stream = np.concatenate(text.encode(letters.vocabulary(), documents.letters("train")))
    written = "".join(map(chr, stream))
    batch = jax.device_get(letters.train(3, None))["tokens"]
    assert batch.shape == letters.batch["tokens"].shape == (8, 41)
    assert all("".join(map(chr, row)) in written for row in batch)
    assert (batch == EOS).any()
    rows = np.concatenate([jax.device_get(letters.train(i, None))["tokens"] for i in range(8)])
    assert len(set((rows == EOS).argmax(1).tolist())) > 20  # of 48 places to begin


def test_a_batch_is_a_function_of_the_seed_and_the_step(few):
    batch = lambda step, **changes: jax.device_get(corpus(**changes).train(step, None)["tokens"])
    want = batch(5)
    np.testing.assert_array_equal(batch(5), want)
    assert (batch(6) != want).any() and (batch(5, seed=1) != want).any()


def test_held_out_tokens_are_predicted_once(few):
    letters = corpus(length=32)
    stream = np.concatenate(text.encode(letters.vocabulary(), documents.letters("test")))
    parts = [batch["tokens"] for batch in letters.windows("test", 3)]
    assert {len(part) for part in parts[:-1]} == {3}
    rows = np.concatenate(parts)
    assert rows.shape[1] == 33 and (rows[1:, 0] == rows[:-1, -1]).all()
    targets = rows[:, 1:].ravel()
    np.testing.assert_array_equal(targets[: len(stream) - 1], stream[1:])
    assert (targets[len(stream) - 1 :] == PAD).all()
    assert letters.tokens_per_character("test") == 48 / 47


def test_a_share_is_the_beginning_of_the_text(few):
    begun = corpus(share=0.005)  # 96 tokens
    stream = np.concatenate(text.encode(begun.vocabulary(), documents.letters("train")))[:96]
    written = "".join(map(chr, stream))
    rows = jax.device_get(begun.train(0, None))["tokens"]
    assert all("".join(map(chr, row)) in written for row in rows)


def test_a_letter_has_one_digit_in_a_document_and_another_in_the_next():
    seen = set()
    for document in documents.letters("validation"):
        pairs = document.split("\n")
        assert len(pairs) == documents.PAIRS and len(set(pairs)) == len(dict(set(pairs)))
        seen |= set(pairs)
    assert len(seen) == 40  # every letter with every digit
    assert not set(documents.letters("test")) & set(documents.letters("train"))


@needs("tiny_shakespeare")
def test_shakespeare_is_characters():
    plays = corpus("tiny_shakespeare", vocabulary=68)
    row = jax.device_get(plays.train(0, None))["tokens"][0]
    said = text.decode(plays.vocabulary(), row[None])[0]
    assert len(said) == 41 and said in documents.from_tfds("tiny_shakespeare")("train")[0]
    assert plays.vocabulary().get_vocab_size() == 68


@needs("english_documents")
def test_a_large_set_is_not_read_whole(monkeypatch):
    monkeypatch.setattr(documents, "LARGE", 0)
    monkeypatch.setattr(documents, "SAMPLE", 10_000)
    make = lambda: corpus("english_documents", unit="bytes", vocabulary=300, batch=2)
    rows = jax.device_get(make().train(1, None))["tokens"]
    assert rows.shape == (2, 41) and (rows != PAD).all()
    np.testing.assert_array_equal(jax.device_get(make().train(1, None))["tokens"], rows)


def test_documents_that_are_all_empty(data_sets):
    documents = [{"text": ""}] * 20
    text = {"text": tfds.features.Text()}
    sets.write(data_sets, "tiny", text, train=documents, test=documents)
    empty = corpus("tiny", unit="bytes", vocabulary=300)
    with pytest.raises(UserError, match="all documents of tiny train are empty"):
        empty.train(0, None)
    with pytest.raises(UserError, match="all documents of tiny test are empty"):
        empty.tokens_per_character("test")


def test_what_cannot_be_read_is_said_in_one_line(few):
    with pytest.raises(UserError, match="vocabulary of bytes has 259 tokens at least: 100"):
        corpus(unit="bytes", vocabulary=100)
    with pytest.raises(UserError, match=r"share of the text is above 0 and at most 1, not 1\.5"):
        corpus(share=1.5)
    with pytest.raises(UserError, match="prepare it"):
        corpus("no_such_texts").train(0, None)
    with pytest.raises(UserError, match="tokens to train on are no more than 40"):
        corpus(share=1e-5).train(0, None)


# Questions

LETTERS = text.characters(["abcdefghij\n"], 14)
QUESTIONS = [
    Question(["ab", "bc"], "c", "def", 0),
    Question(["aj", "ca"], "d", "cab", 1),
]


def test_an_option_stands_behind_k_demonstrations():
    rows = shots.rows(LETTERS, QUESTIONS, 1, 32)
    assert rows["tokens"].shape == (6, 17)
    ids = lambda said: LETTERS.encode(said).ids
    want = [EOS, *ids("ab\nce"), *[PAD] * 11]
    assert rows["tokens"][1].tolist() == want
    assert (rows["begin"] == 4).all() and (rows["end"] == 5).all()  # of what is predicted
    assert shots.rows(LETTERS, QUESTIONS, 0, 9)["tokens"].shape == (6, 10)
    with pytest.raises(UserError, match="2 demonstrations are 8 tokens, more than 7"):
        shots.rows(LETTERS, QUESTIONS, 2, 7)


def test_the_likeliest_option_is_the_answer():
    """To a model that finds `d` twice as likely as `a`, and that as `c`, whatever it has read."""
    chances = np.zeros(14, np.float32)
    for letter, chance in {"d": 2.0, "a": 1.0}.items():
        chances[LETTERS.encode(letter).ids] = chance

    def predict(state, tokens):
        return jnp.broadcast_to(jnp.asarray(chances), (*tokens.shape, 14))

    accuracy = shots.accuracy(predict, LETTERS, 32, devices.mesh(1))
    assert accuracy(None, QUESTIONS, 2) == 1.0
    wrong = Question([], "b", ["e", "dd", "a"], 2)
    assert accuracy(None, [*QUESTIONS, wrong], 0) == pytest.approx(2 / 3)


def test_the_last_pair_of_a_document_is_asked_for():
    document = documents.letters("test")[0]
    question = gpt_text.asked(document)
    lines = document.split("\n")
    assert list(question.demonstrations) == lines[:8] and lines[8][0] == question.question
    assert question.options[question.answer] == lines[8][1]
