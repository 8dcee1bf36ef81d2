"""Generative Adversarial Nets: what samples are worth, and what they look like.

`python -m experiments.gan train` measures with this: the paper's estimate of the likelihood
(section 5, and parzen_ll.py of the published code), and two later ones, for which a small
classifier is trained on the labels: how many of the classes appear, and a Fréchet distance.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epy

from jaxhist import evaluate, plots
from jaxhist.data.batches import slices
from jaxhist.data.images import Images, scaled
from jaxhist.stopping import between

with epy.lazy_imports():  # they take a second
    from scipy import spatial
    from sklearn import neural_network

SIGMAS = np.logspace(-1, 0, 10)  # of the windows, to choose from
APPEARS = 0.01  # a class does if it is this part of the samples
SEEN = 250_000  # images, by the classifier while it learns
HEIGHT = 64  # of an image in a picture, at least

Generate = Callable[[np.ndarray], jax.Array]  # noise [N, Z] -> images [N, H, W, C] from 0 to 1


class Judge:
    """Samples beside the images of a data set, which is read when it is needed first."""

    def __init__(
        self, source: Images, draw: Callable[[jax.Array, int], jax.Array], count: int, labels: bool
    ):
        """Args:
        source: of the images.
        draw: (key, N) -> noise [N, Z].
        count: how many samples to measure.
        labels: whether there are any; without, there is nothing but pictures.
        """
        self.source, self.draw, self.count, self.labels = source, draw, count, labels

    def evaluate(self, generate: Generate) -> dict[str, Any]:
        """Samples beside the validation's images, and pictures."""
        shown = self.pictures(generate)
        if not self.labels:
            return shown
        samples = self.samples(generate)
        neighbours = self.neighbours(samples)
        return self.measures(samples, "validation") | shown | {"neighbours": neighbours}

    def test(self, generate: Generate) -> dict[str, float]:
        """Samples beside the test's images; and for comparison a Gaussian that is fitted to the
        training images, and the test's images themselves."""
        if not self.labels:
            return {}
        samples, gaussian, real = (
            self.samples(generate),
            self.gaussian(),
            self.rows["test"]["input"],
        )
        likelihoods = self.log_likelihoods(samples, "test")
        return self.measures(samples, "test") | {
            "standard_error": float(likelihoods.std() / np.sqrt(len(likelihoods))),
            "log_likelihood gaussian": float(self.log_likelihoods(gaussian, "test").mean()),
            "frechet gaussian": self.frechet(gaussian),
            "frechet test": self.frechet(real),
            "distance test": distance(real),
        }

    @functools.cached_property
    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Each split: input [N, D], pixels from 0 to 1, and label [N]."""
        return scaled(self.source).load()

    @functools.cached_property
    def classifier(self) -> "neural_network.MLPClassifier":
        """Of pixels [N, D], a function of the training images and their labels alone."""
        train = self.rows["train"]
        classifier = neural_network.MLPClassifier((128, 64), random_state=0)
        classes = range(self.source.classes)
        for _ in between(range(-(-SEEN // len(train["label"])))):  # epochs
            classifier.partial_fit(train["input"], train["label"], classes=classes)
        return classifier

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """What the classifier makes of pixels in its last hidden layer. [N, D] -> [N, 64]."""
        layers = zip(self.classifier.coefs_, self.classifier.intercepts_, strict=True)
        for weights, biases in list(layers)[:-1]:
            pixels = np.maximum(pixels @ weights + biases[None], 0)
        return pixels

    def samples(self, generate: Generate) -> np.ndarray:
        """[N, D], always of the same noise."""
        noise = np.asarray(self.draw(jax.random.key(0), self.count))
        return np.concatenate([*map(generate, between(slices(noise)))]).reshape(self.count, -1)

    def gaussian(self) -> np.ndarray:
        """Samples [N, D] of a Gaussian with the mean and the covariance of the training images."""
        train, random = self.rows["train"]["input"], np.random.default_rng(0)
        moments = train.mean(0), np.cov(train, rowvar=False)
        return np.float32(random.multivariate_normal(*moments, self.count, method="eigh"))

    def measures(self, samples: np.ndarray, split: str) -> dict[str, float]:
        """The mean log-likelihood of a split's images, in nats; how many classes appear in the
        samples; their Fréchet distance to the training images; and the distance between two."""
        counts = np.bincount(self.classifier.predict(samples), minlength=self.source.classes)
        return {
            "log_likelihood": float(self.log_likelihoods(samples, split).mean()),
            "classes": int((counts >= APPEARS * len(samples)).sum()),
            "frechet": self.frechet(samples),
            "distance": distance(samples),
        }

    def log_likelihoods(self, samples: np.ndarray, split: str) -> np.ndarray:
        """The Parzen log-likelihood of each image of a split, in nats, [N].

        The windows' width is that of `SIGMAS` under which the first 1,000 of the validation's
        images are likeliest.
        """
        held_out = self.rows["validation"]["input"][:1000]
        means = evaluate.parzen_log_likelihoods(samples, held_out, SIGMAS).mean(1)
        sigma = SIGMAS[[means.argmax()]]
        return evaluate.parzen_log_likelihoods(samples, self.rows[split]["input"], sigma)[0]

    def frechet(self, pixels: np.ndarray) -> float:
        """The distance of images [N, D] to the training images, in features."""
        return evaluate.frechet_distance(*map(self.features, (self.rows["train"]["input"], pixels)))

    def neighbours(self, samples: np.ndarray) -> np.ndarray:
        """Ten samples, and below each the training image that is nearest (Fig. 2); twice."""
        train, samples = self.rows["train"]["input"], samples[:20]
        nearest = [train[np.square(train - row[None]).sum(1).argmin()] for row in samples]
        pairs = np.stack([samples.reshape(2, 10, -1), np.reshape(nearest, (2, 10, -1))], 1)
        return plots.tiles(eight_bits(pairs.reshape(-1, *self.source.shape)), 10, HEIGHT)

    def pictures(self, generate: Generate) -> dict[str, np.ndarray]:
        """Samples, and what lies between the noise of one and of another (Fig. 3), always of the
        same noise."""
        noise = np.asarray(self.draw(jax.random.key(1), 64))
        part = np.linspace(0, 1, 12, dtype=np.float32)[None, :, None]
        start, end = noise[:8, None], noise[8:16, None]
        between = (start + part * (end - start)).reshape(-1, noise.shape[1])
        return {
            "samples": plots.tiles(eight_bits(generate(noise)), 8, HEIGHT),
            "interpolation": plots.tiles(eight_bits(generate(between)), 12, HEIGHT),
        }


def distance(images: np.ndarray) -> float:
    """The mean distance between two of the first thousand images [N, D]."""
    return float(spatial.distance.pdist(images[:1000]).mean())


def eight_bits(images: Any) -> np.ndarray:
    """Pixels from 0 to 1 -> uint8."""
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
