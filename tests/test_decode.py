"""Decoding, beside loops in Python, with a table of chances for a model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist import decode
from jaxhist.models.transformer import Size, Transformer
from jaxhist.packed import EOS, PAD

B, V, L = 4, 4, 3
# Logits after every beginning of up to two tokens, which the cache tells apart, for each of B.
TABLE = np.random.default_rng(1).normal(size=(B, V**L, V), scale=1.5).astype(np.float32)
ALLOWED = np.where(np.arange(V) == PAD, -np.inf, TABLE)
LOG_P = ALLOWED - np.log(np.exp(ALLOWED).sum(-1, keepdims=True))


def next_token(memory, cache, token, index):
    """The cache is the beginning, as a number in the base V."""
    beginning = jnp.where(index == 0, 0, cache * V + token)
    return jnp.take_along_axis(memory, beginning[:, None, None], 1)[:, 0], beginning


def place(beginning):
    number = 0
    for token in beginning:
        number = number * V + token
    return number


ARGUMENTS = next_token, TABLE, np.zeros(B, np.int32), B, L


def log_probability(row, sentence):
    return sum(LOG_P[row, place(sentence[:i]), token] for i, token in enumerate(sentence))


def sentences():
    """All that end after at most L tokens."""
    words = [token for token in range(V) if token not in (EOS, PAD)]
    for count in range(L):
        for beginning in itertools.product(words, repeat=count):
            yield [*beginning, EOS]


def padded(sentence):
    return sentence + [PAD] * (L - len(sentence))


@pytest.fixture(scope="module")
def greedy():
    return jax.device_get(jax.jit(lambda: decode.greedy(*ARGUMENTS))())


@pytest.fixture(scope="module")
def search():
    """(beams, alpha) -> what is found."""
    found = lambda beams, alpha: decode.beam_search(*ARGUMENTS, beams=beams, alpha=alpha)
    jitted = jax.jit(found, static_argnums=0)
    return lambda beams, alpha=0.0: jax.device_get(jitted(beams, alpha))


def test_greedy_takes_the_most_probable_token(greedy):
    for row in range(B):
        sentence = []
        while len(sentence) < L and sentence[-1:] != [EOS]:
            sentence.append(int(LOG_P[row, place(sentence)].argmax()))
        assert greedy.tokens[row].tolist() == padded(sentence)
        np.testing.assert_allclose(
            greedy.log_probability[row], log_probability(row, sentence), rtol=1e-5
        )
    assert len({tuple(row) for row in greedy.tokens}) > 1


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_one_beam_is_greedy(alpha, greedy, search):
    np.testing.assert_array_equal(search(1, alpha).tokens, greedy.tokens)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_beams_enough_for_all_beginnings_search_exhaustively(alpha, search):
    found, lengths = search(V**L, alpha), []
    for row in range(B):
        score = lambda s, row=row: log_probability(row, s) / ((5 + len(s)) / 6) ** alpha
        best = max(sentences(), key=score)
        assert found.tokens[row].tolist() == padded(best)
        np.testing.assert_allclose(found.log_probability[row], score(best), rtol=1e-5)
        lengths.append(len(best))
    assert len(set(lengths)) > 1 or alpha == 3


def test_a_wider_beam_finds_better_sentences(search):
    totals = [search(k).log_probability.mean() for k in (1, 4, V**L)]
    assert totals[0] <= totals[1] <= totals[2] and totals[0] < totals[2]


def test_length_penalty_is_that_of_the_paper():
    got = jax.jit(decode.length_penalty)(np.array([1, 5, 10, 20]), 0.6)
    np.testing.assert_allclose(got, [1, 1.3586551827, 1.7328621079, 2.3543620837], rtol=1e-6)


def test_samples_have_the_chances_of_the_model():
    memory = np.tile(TABLE[:1], (4000, 1, 1))

    @jax.jit
    def draw(key, t):
        adjust = lambda logits: decode.temperature(logits, t)
        cache = jnp.zeros(4000, jnp.int32)
        return decode.sample(next_token, memory, cache, 4000, L, key, adjust).tokens

    tokens = np.asarray(draw(jax.random.key(0), 1.0))
    got = np.bincount(tokens[:, 0], minlength=V) / 4000
    np.testing.assert_allclose(got, np.exp(LOG_P[0, 0]), atol=0.03)
    assert (tokens[tokens[:, 0] == EOS, 1:] == PAD).all()
    cold = np.asarray(draw(jax.random.key(0), 1e-4))
    assert (cold == cold[:1]).all()


@pytest.mark.parametrize("k", [1, 3, 12, 50])
def test_top_k_keeps_the_most_probable(k):
    logits = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    least = np.sort(logits, 1)[:, -min(k, 12)]
    want = np.where(logits >= least[:, None], logits, -np.inf)
    np.testing.assert_array_equal(jax.jit(decode.top_k, static_argnums=1)(logits, k), want)


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 1.0])
def test_a_nucleus_is_the_fewest_that_have_p(p):
    logits = np.random.default_rng(1).normal(size=(5, 12), scale=2).astype(np.float32)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = np.asarray(jax.jit(decode.nucleus)(logits, p))
    for row, got, chance in zip(logits, found, probability, strict=True):
        kept, total = set(), 0.0
        for token in np.argsort(-row):
            if total < min(p, 1 - 1e-6):
                kept.add(int(token))
                total += chance[token]
        assert set(np.flatnonzero(np.isfinite(got)).tolist()) == kept
        np.testing.assert_array_equal(got[np.isfinite(got)], row[np.isfinite(got)])


def test_cached_and_uncached_decoding_agree():
    model = Transformer(V + 5, Size(1, 8, 16, 2, 0.0))
    source = np.array([[3, 4, 5, 1], [6, 1, 0, 0]], np.int32)
    shapes = jax.eval_shape(lambda k: model.init(k, source, source, train=False), jax.random.key(0))
    random = np.random.default_rng(3)
    normal = lambda leaf: random.normal(size=leaf.shape, scale=0.7).astype(np.float32)
    params = jax.tree.map(normal, shapes)

    def cached(memory, cache, token, index):
        return model.apply(params, memory, cache, token, index, method=model.next)

    def uncached(source, written, token, index):
        """The whole model, on all that is written; 3 where nothing is written yet."""
        written = jnp.where(jnp.arange(6)[None] == index - 1, token[:, None], written)
        return model.apply(params, source, written, train=False)[:, index], written

    def both():
        memory, cache = model.apply(params, source, 6, method=model.begin)
        written = jnp.full((2, 6), 3)
        for search in (decode.greedy, lambda *a: decode.beam_search(*a, beams=3, alpha=0.6)):
            yield search(cached, memory, cache, 2, 6)
            yield search(uncached, source, written, 2, 6)

    one, other, *beams = jax.jit(lambda: list(both()))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), one, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *beams)
