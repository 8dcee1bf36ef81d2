"""Adam: A Method for Stochastic Optimization.

Diederik P. Kingma, Jimmy Lei Ba, 2014. arXiv:1412.6980.

What changed: the optimization algorithm. Every parameter gets a step of its own, from running means
of its gradient and of the gradient's square, both corrected for having begun at zero. Here section
6: data, model and loss stay, and the fourth part is a row of a table.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhist import devices, evaluate, losses
from jaxhist.adam import adam, adamax
from jaxhist.algorithm import Batch, State, by_setting, descend, side_by_side
from jaxhist.cli import main
from jaxhist.data import batches, images, words
from jaxhist.models.adam import Autoencoder, Convolutional, Logistic, Multilayer
from jaxhist.train import Experiment, Run

# The fourth part: (rate, config) -> optimizer. Where optax's defaults are not the papers', they are
# given: AdaGrad sums from 0, AdaDelta's rho is 0.95.
OPTIMIZERS = {
    "adam": lambda rate, config: adam(rate, config.b1, config.b2),
    "uncorrected": lambda rate, config: adam(rate, config.b1, config.b2, corrected=False),
    "adamax": lambda rate, config: adamax(rate, config.b1, config.b2),
    "sgd": lambda rate, config: optax.sgd(rate),
    "momentum": lambda rate, config: optax.sgd(rate, momentum=0.9),
    "nesterov": lambda rate, config: optax.sgd(rate, momentum=0.9, nesterov=True),
    "adagrad": lambda rate, config: optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-8),
    "rmsprop": lambda rate, config: optax.rmsprop(rate, decay=0.9, eps=1e-8),
    "adadelta": lambda rate, config: optax.adadelta(rate, rho=0.95, eps=1e-6),
}


@dataclass(frozen=True)
class Config:
    network: Literal["logistic", "words", "multilayer", "convolutional", "autoencoder"] = (
        "multilayer"  # "words" is logistic regression too, of a text on the words it has
    )
    data: str = (
        "digits"  # or any TFDS set of images of one size; of words "docstrings", or of texts
    )
    validation: int = 180  # training examples held out
    widths: tuple[int, ...] = (256, 256)  # of the hidden layers; of the code last
    dropout: float = 0.5  # the part that is dropped, of inputs or hidden units
    l2: float = 0.0  # half of it times the sum of the squared weights is added to the loss
    optimizer: Literal[tuple(OPTIMIZERS)] = "adam"
    rates: tuple[float, ...] = (0.001,)  # one network for each, side by side
    decay: bool = False  # divide the rate of step t by sqrt(t)
    b1: float = 0.9  # of Adam: decay of the mean of the gradient
    b2: float = 0.999  # and of its square
    batch: int = 128
    steps: int = 600
    evaluate_every: int = 100


MNIST = Config(data="mnist", validation=5000, steps=21_450, evaluate_every=429)  # 50 epochs
LOGISTIC = Config(network="logistic", widths=(), dropout=0.0, decay=True, rates=(0.01,))
# Not in the paper: the weight of the L2 term, the numbers of steps of 6.1 and 6.2.
PRESETS = {
    "small": Config(),
    "logistic": replace(LOGISTIC, l2=1e-4, rates=(0.1,)),
    "words": replace(LOGISTIC, network="words", data="docstrings", validation=1000, dropout=0.5),
    "convolutional": Config(network="convolutional", widths=(16, 16, 32, 128)),
    "autoencoder": Config(network="autoencoder", widths=(64, 8), dropout=0.0, rates=(0.01,)),
    "paper": replace(MNIST, widths=(1000, 1000)),
    "paper-logistic": replace(
        MNIST, network="logistic", widths=(), dropout=0.0, l2=1e-4, decay=True
    ),
    "paper-words": replace(
        LOGISTIC, network="words", data="imdb_reviews", validation=2500, dropout=0.5, steps=28_000,
        evaluate_every=175,
    ),
    "paper-convolutional": replace(
        MNIST, network="convolutional", data="cifar10", widths=(64, 64, 128, 1000), steps=15_795,
        evaluate_every=351,
    ),
    "paper-autoencoder": replace(
        MNIST, network="autoencoder", widths=(500, 50), dropout=0.0, steps=42_900
    ),
}  # fmt: skip


class Inputs(NamedTuple):
    """A data set: arrays `input` and `label` for train, validation and test."""

    shape: tuple[int, ...]  # of an input
    classes: int
    load: Callable[[], dict[str, Batch]]  # read once and kept


def inputs(config: Config) -> Inputs:
    """Bags of words, images as rows of pixels from 0 to 1, or images whitened."""
    if config.network == "words":
        bags = words.named(config.data, config.validation)
        return Inputs((words.WORDS,), bags.classes, bags.load)
    source = images.named(config.data, config.validation)
    if config.network == "convolutional":
        shape, load = source.shape, lambda: images.whitened(source)
    else:
        shape, load = (math.prod(source.shape),), lambda: images.scaled(source)
    return Inputs(shape, source.classes, functools.cache(load))


def classification(network, config: Config):
    """Cross-entropy; and what is measured of a batch."""

    def loss(params, extra, batch, key):
        logits = network.apply(params, batch["input"], train=True, rngs={"dropout": key})
        weights = sum(jnp.sum(w**2) for w in jax.tree.leaves(params) if w.ndim > 1)
        values = losses.categorical_cross_entropy(logits, batch["label"]) + config.l2 / 2 * weights
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        return values, (extra, {"accuracy": accuracy, "count/examples": len(values)})

    def measure(state, batch):
        logits = network.apply(state.params, batch["input"], train=False)
        return evaluate.classification(logits[None], batch["label"])

    return loss, measure


def evidence(network, config: Config):
    """The negative lower bound on the log-likelihood, -E log p(x|z) + KL(q(z|x) || N(0, 1))."""

    def bound(params, x, key):
        logits, m, s = network.apply(params, x, rngs={"code": key})
        divergence = jnp.sum(jnp.exp(s) + m**2 - 1 - s, -1) / 2
        return losses.bernoulli_cross_entropy(logits, x) + divergence

    def loss(params, extra, batch, key):
        values = bound(params, batch["input"], key)
        return values, (extra, {"count/examples": len(values)})

    def measure(state, batch):
        return {"loss": bound(state.params, batch["input"], jax.random.key(0))}

    return loss, measure


def build(config: Config, run: Run) -> Experiment:
    # Data.
    data, mesh = inputs(config), devices.mesh(run.devices)
    wide = lambda batch, key=None: {**batch, "input": batch["input"].astype(jnp.float32)}
    train = batches.on_device(lambda: data.load()["train"], config.batch, run.seed, mesh, wide)

    # Model.
    network = {
        "logistic": lambda: Logistic(data.classes, config.dropout),
        "words": lambda: Logistic(data.classes, config.dropout),
        "multilayer": lambda: Multilayer(config.widths, data.classes, config.dropout),
        "convolutional": lambda: Convolutional(config.widths, data.classes, config.dropout),
        "autoencoder": lambda: Autoencoder(*config.widths),
    }[config.network]()
    mode = {} if config.network == "autoencoder" else {"train": False}

    def init_model(key):
        return network.init({"params": key, "code": key}, jnp.zeros((1, *data.shape)), **mode), ()

    # Loss.
    loss, measure = (evidence if config.network == "autoencoder" else classification)(
        network, config
    )

    # Algorithm.
    def algorithm_of(rate):
        schedule = (lambda step: rate / jnp.sqrt(step + 1)) if config.decay else rate
        return descend(init_model, loss, OPTIMIZERS[config.optimizer](schedule, config))

    if len(config.rates) == 1:
        algorithm, measures = algorithm_of(config.rates[0]), measure
    else:
        algorithm = side_by_side(algorithm_of, config.rates)

        def measures(state, batch):
            each = jax.vmap(measure, in_axes=(State(None, 0, 0, 0), None))
            return by_setting(config.rates, each(state, batch))

    mean = evaluate.means(lambda state, batch: measures(state, wide(batch)), mesh)
    return Experiment(
        data=train,
        batch={
            "input": jax.ShapeDtypeStruct((config.batch, *data.shape), jnp.float32),
            "label": jax.ShapeDtypeStruct((config.batch,), jnp.int32),
        },
        init=algorithm.init,
        step=algorithm.step,
        evaluate=lambda state: mean(state, batches.slices(data.load()["validation"])),
        test=lambda state: mean(state, batches.slices(data.load()["test"])),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
    )


# Claims.
CLAIMS = {}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
