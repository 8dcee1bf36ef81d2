"""Measures over a whole data set."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sacrebleu
from etils import epy
from jax.sharding import Mesh

from jaxhist import devices, losses
from jaxhist.algorithm import Batch, State
from jaxhist.stopping import between, check

with epy.lazy_imports():  # they take a second
    from sklearn import linear_model, neighbors, pipeline, preprocessing


def means(
    measure: Callable, mesh: Mesh, size: int = 500
) -> Callable[[State, Iterable[Batch]], dict[str, float]]:
    """The means of measures over a data set, each example counted once.

    Args:
      measure: (state, batch) -> {name: [B]}, one value per example.
      mesh: the devices that share each batch.
      size: the most examples in a batch.

    Returns:
      (state, batches) -> {name: float}. The batches are of numpy arrays. A smaller one is padded
      and the padding masked, so that one program measures all.
    """
    size = -(-size // mesh.size) * mesh.size

    @functools.partial(jax.jit, out_shardings=devices.whole(mesh))
    def sums(state: State, batch: Batch, mask: jax.Array):
        return jax.tree.map(
            lambda values: jnp.sum(jnp.where(mask, values, 0)), measure(state, batch)
        )

    def mean(state: State, batches: Iterable[Batch]) -> dict[str, float]:
        total, parts = 0, []
        for batch in between(batches):
            count = len(jax.tree.leaves(batch)[0])
            padded = jax.tree.map(functools.partial(_padded, size=size), batch)
            mask = np.arange(size) < count
            parts.append(sums(state, *devices.place((padded, mask), devices.split(mesh))))
            total += count
            # One batch is measured while the next is read; no more wait on the devices.
            jax.block_until_ready(parts[-2:-1])
        parts = jax.device_get(parts)
        return {name: float(sum(part[name] for part in parts) / total) for name in parts[0]}

    return mean


def outputs(
    function: Callable, mesh: Mesh, size: int = 500
) -> Callable[[State, Iterable[Batch]], Any]:
    """What a network makes of a data set, such as features.

    Args:
      function: (state, batch) -> a pytree of arrays [B, ...].
      mesh: the devices that share each batch.
      size: the most examples in a batch.

    Returns:
      (state, batches) -> the pytree, numpy arrays [N, ...]. The batches are of numpy arrays.
    """
    size = -(-size // mesh.size) * mesh.size
    function = jax.jit(function, out_shardings=devices.whole(mesh))

    def output(state: State, batches: Iterable[Batch]) -> Any:
        parts = []
        for batch in between(batches):
            count = len(jax.tree.leaves(batch)[0])
            padded = jax.tree.map(functools.partial(_padded, size=size), batch)
            part = jax.device_get(function(state, devices.place(padded, devices.split(mesh))))
            parts.append(jax.tree.map(lambda array, count=count: array[:count], part))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    return output


class Features(NamedTuple):
    """Of images, and what the images show."""

    values: np.ndarray  # [N, D]
    label: np.ndarray  # [N]


def probe(train: Features, test: Features) -> float:
    """The accuracy of a linear classifier on frozen features: logistic regression with a small L2
    term, on features of mean 0 and variance 1 over the training examples."""
    regression = linear_model.LogisticRegression(C=0.01, max_iter=1000).set_callbacks(_Asking())
    classifier = pipeline.make_pipeline(preprocessing.StandardScaler(), regression)
    return float(classifier.fit(*train).score(*test))


class _Asking:
    """A callback of scikit-learn's: a fit can be stopped after each of its iterations. Several
    processes need not take equally many, so that they cannot agree here."""

    def on_fit_task_end(self, *_, **__):
        if jax.process_count() == 1:
            check()

    def _nothing(self, *_, **__):
        pass

    setup = teardown = on_fit_task_begin = _nothing


def nearest(train: Features, test: Features, count: int = 20) -> float:
    """The accuracy of the most frequent class among the neighbours, by the cosine."""
    classifier = neighbors.KNeighborsClassifier(count, metric="cosine").fit(*train)
    parts = between(np.array_split(test.values, -(-len(test.values) // 500)))
    return float(np.mean(np.concatenate([*map(classifier.predict, parts)]) == test.label))


def neighbours(train: np.ndarray, test: np.ndarray, count: int) -> np.ndarray:
    """The places in `train` [N, D] that are nearest to each of `test` [M, D], by the cosine, the
    nearest first. -> [M, count]"""
    found = neighbors.NearestNeighbors(n_neighbors=count, metric="cosine").fit(train)
    return found.kneighbors(test, return_distance=False)


def classification(logits: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
    """How well images are classified, by the mean of the probabilities over the views of each.

    Args:
      logits: [V, B, K] of V views.
      label: [B].

    Returns:
      name -> [B]: the cross-entropy `loss`, `accuracy`, and, where there are 100 classes or more,
      `top5`.
    """
    log_probability = jax.nn.log_softmax(logits)
    logits = jax.nn.logsumexp(log_probability, axis=0) - np.log(len(logits))  # [B, K]
    classes = logits.shape[-1]
    top = jax.lax.top_k(logits, min(5, classes))[1]  # [B, 5]
    values = losses.categorical_cross_entropy(logits, label)
    return {
        "loss": values,
        "accuracy": top[:, 0] == label,
        **({"top5": jnp.any(top == label[:, None], -1)} if classes >= 100 else {}),
    }


def parzen_log_likelihoods(
    samples: np.ndarray, x: np.ndarray, sigmas: np.ndarray, block: int = 250
) -> np.ndarray:
    """Of points under windows: a Gaussian around each sample, in nats.

        log p(x) = log mean_i N(x; s_i, sigma^2 I)

    Args:
      samples: s, [S, D] float32.
      x: the points, [N, D] float32.
      sigmas: the windows' standard deviations, [K].
      block: how many points are compared with all samples at a time.

    Returns:
      [K, N].
    """
    parts = between(x[begin : begin + block] for begin in range(0, len(x), block))
    return np.concatenate([_parzen(samples, part, jnp.float32(sigmas)) for part in parts], axis=1)


@jax.jit
def _parzen(samples: jax.Array, x: jax.Array, sigmas: jax.Array) -> jax.Array:
    norms = lambda rows: jnp.sum(rows**2, 1)
    squares = norms(x)[:, None] + norms(samples)[None] - 2 * x @ samples.T  # [N, S]

    def one(sigma):
        log_sum = jax.nn.logsumexp(-squares / (2 * sigma**2), axis=1)
        constant = samples.shape[1] * jnp.log(sigma * jnp.sqrt(2 * jnp.pi))
        return log_sum - jnp.log(len(samples)) - constant

    return jax.lax.map(one, sigmas)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between two sets of points [N, D] and [M, D], each taken for a Gaussian.

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2)

    Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    a, b = np.float64(a), np.float64(b)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The root has the trace of (R C_b R)^1/2, R the root of C_a, which is symmetric.
    values, vectors = np.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_b @ root), 0)).sum()
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + traces - 2 * both)


class Bleu(NamedTuple):
    """BLEU (Papineni et al., ACL 2002) of a corpus, and how it was measured."""

    score: float  # from 0 to 100
    signature: str  # sacrebleu's (Post, arXiv:1804.08771)


def bleu(translations: Sequence[str], references: Sequence[str]) -> Bleu:
    """By sacrebleu, with one reference to a sentence."""
    metric = sacrebleu.BLEU()
    score = metric.corpus_score(list(translations), [list(references)]).score
    return Bleu(score, str(metric.get_signature()))


def exact(translations: Sequence[str], references: Sequence[str]) -> float:
    """How many translations are the reference to the letter."""
    return float(np.mean([a == b for a, b in zip(translations, references, strict=True)]))


def by_length(
    measure: Callable[[Sequence[str], Sequence[str]], float],
    sources: Sequence[str],
    translations: Sequence[str],
    references: Sequence[str],
    parts: int = 4,
) -> dict[str, float]:
    """A measure of the shortest part of the sentences, of the next, ... by the words of the source.

    Returns:
      Such as {"3 to 9": 0.9, "10": 0.8}: the words, and measure(translations, references).
    """
    lengths = np.array([len(source.split()) for source in sources])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, parts + 1)[1:], method="lower"))
    found, begin = {}, lengths.min()
    for end in edges.tolist():
        (chosen,) = np.nonzero((begin <= lengths) & (lengths <= end))
        name = f"{begin} to {end}" if begin < end else f"{end}"
        found[name] = measure([translations[i] for i in chosen], [references[i] for i in chosen])
        begin = end + 1
    return found


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """[N, ...] -> [size, ...], zeros behind the end."""
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
