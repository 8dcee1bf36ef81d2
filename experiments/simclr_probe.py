"""A Simple Framework for Contrastive Learning of Visual Representations, section 2.3: what the
features of an encoder are good for, measured with labels that it never saw.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epy

from jaxhist import devices, evaluate, plots
from jaxhist.algorithm import Batch, Key, State, keys
from jaxhist.data.augment import Views
from jaxhist.evaluate import Features
from jaxhist.train import Run

with epy.lazy_imports():  # they take a second
    from sklearn import manifold


def tests(
    encode: Callable[[State, Batch], tuple[jax.Array, jax.Array]],
    data: Views,
    init: Callable[[Key], State],
    run: Run,
) -> Callable[[State, str], dict[str, Any]]:
    """What to measure of the features of a split, with the training images and their labels.

    Args:
      encode: (state, batch) -> h and z of its images, which are as they are stored.
      data: the images.
      init: of an encoder that has learned nothing, by the seed of the run.
      run: this one.

    Returns:
      (state, split) -> the accuracy of the most frequent class among the neighbours of h, and of a
      linear classifier of h. Of the split "test" also of linear classifiers of z, of the pixels and
      of an untrained encoder's h. With more than 100 classes only of the neighbours: for linear
      classifiers there is the preset paper-linear.
    """
    outputs = evaluate.outputs(
        lambda state, batch: (*encode(state, batch), batch["label"]),
        devices.mesh(run.devices, run.mesh),
        data.size,
    )

    def features(state: State, split: str) -> tuple[Features, Features]:
        h, z, label = outputs(state, data.whole(split))
        return Features(h, label), Features(z, label)

    def measure(state: State, split: str) -> dict[str, Any]:
        (h, z), (test_h, test_z) = features(state, "train"), features(state, split)
        metrics = {"accuracy neighbours": evaluate.nearest(h, test_h)}
        if len(data.names) > 100:
            return metrics
        metrics["accuracy probe"] = evaluate.probe(h, test_h)
        if split != "test":
            return metrics
        untrained = jax.jit(init)(keys(run.seed).init)
        (random, _), (test_random, _) = (features(untrained, name) for name in ("train", split))
        seen, test_seen = (stored(data.whole(name)) for name in ("train", split))
        return metrics | {
            "accuracy projection": evaluate.probe(z, test_z),
            "accuracy untrained": evaluate.probe(random, test_random),
            "accuracy pixels": evaluate.probe(pixels(seen, h), pixels(test_seen, test_h)),
            "neighbours": draw_neighbours(h, test_h, seen, test_seen, data.names),
            "map": draw_map(test_h, data.names),
        }

    return measure


def stored(batches: Iterable[Batch]) -> np.ndarray:
    """Images as they are. [N, H, W, C]"""
    return np.concatenate([batch["image"] for batch in batches])


def pixels(image: np.ndarray, beside: Features) -> Features:
    """Images as features of themselves, beside other features of theirs."""
    return beside._replace(values=image.reshape(len(image), -1) / np.float32(255))


def draw_neighbours(
    train: Features, test: Features, seen: np.ndarray, test_seen: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """The first test image of each class, and the training images nearest to it."""
    chosen = np.array([np.argmax(test.label == i) for i in range(len(names))])
    found = evaluate.neighbours(train.values, test.values[chosen], 10)
    rows = np.concatenate([test_seen[chosen, None], seen[found]], 1)
    return plots.neighbours(rows, train.label[found] == test.label[chosen, None], names)


def draw_map(test: Features, names: Sequence[str], count: int = 1000) -> np.ndarray:
    """The features of some of the test images, in a plane."""
    begin = "pca" if test.values.shape[1] > 1 else "random"
    places = manifold.TSNE(init=begin, random_state=0).fit_transform(test.values[:count])
    title = f"h of {len(places)} test images (t-SNE)"
    return plots.scatter(places, test.label[:count], names, title)
