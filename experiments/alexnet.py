"""ImageNet Classification with Deep Convolutional Neural Networks.

Alex Krizhevsky, Ilya Sutskever, Geoffrey E. Hinton, 2012. NIPS 25.

What changed: the model, and its size. A convolutional network with ReLUs, dropout and 60 million
parameters, trained on a million photographs, beats features made by hand.
"""

import contextlib
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epy
from matplotlib.figure import Figure

from experiments.alexnet_imagenet import ImageNet, large_photographs
from jaxhist import devices, evaluate, losses, plots
from jaxhist.algorithm import State, descend
from jaxhist.checkpoint import Checkpoints
from jaxhist.claims import Claim, Figures, Trained
from jaxhist.cli import main
from jaxhist.data import batches, images
from jaxhist.data.images import Images, Labelled
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models.alexnet import AlexNet, OneTower, SmallAlexNet
from jaxhist.train import Experiment, Run

with epy.lazy_imports():  # they take a second
    from skimage import feature
    from sklearn import linear_model


@dataclass(frozen=True)
class Config:
    """Section 3.1: small images."""

    data: str = "digits"  # "digits", or any TFDS set with images of one size and labels
    examples: NonNegativeInt = 0  # training examples to keep; 0 keeps all
    shrink: PositiveInt = 1  # each square of so many pixels on a side becomes one
    pad: NonNegativeInt = 1  # pixels added on each side before a random crop
    mirror: bool = False  # half of the images: right for photographs, wrong for digits
    validation: PositiveInt = 180  # training examples held out to choose the best checkpoint
    width: PositiveInt = 32  # filters of the first two convolutions; the third has twice as many
    hidden: tuple[PositiveInt, ...] = (256,)  # widths of the fully connected layers before the last
    activation: Literal["relu", "tanh"] = "relu"
    normalize: bool = False  # local responses, in the first two layers
    dropout: float = 0.5  # in the hidden fully connected layers
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: PositiveInt = 64
    rate: float = 0.03
    falls: NonNegativeInt = 3  # how many times the rate is divided by 10, at even distances
    decay: float = 5e-4  # of the weights
    steps: NonNegativeInt = 1200
    evaluate_every: PositiveInt = 50
    patience: NonNegativeInt = 12  # evaluations without a better score to stop after; 0: never


PRESETS = {
    "small": Config(),
    "cifar10": Config(
        data="cifar10",
        pad=4,
        mirror=True,
        validation=5000,
        hidden=(),
        normalize=True,
        batch=128,
        rate=0.03,
        steps=60_000,
        evaluate_every=1000,
        patience=0,
    ),
    "paper": ImageNet(),
    "one-tower": ImageNet(towers=1),
}


def small_images(config: Config) -> Images:
    """A data set, or the part of it that is chosen."""
    source = images.named(config.data, config.validation)
    return images.reduced(source, config.examples, config.shrink)


def network(config: Config) -> partial:
    """For small images; to be made from `classes` and `dtype`."""
    return partial(
        SmallAlexNet,
        width=config.width,
        hidden=config.hidden,
        activation={"relu": nn.relu, "tanh": jnp.tanh}[config.activation],
        normalize=config.normalize,
        dropout=config.dropout,
    )


def build(config: Config | ImageNet, run: Run) -> Experiment:
    check(config)
    if isinstance(config, ImageNet):
        model = AlexNet if config.towers == 2 else OneTower
        return learn(config, run, large_photographs(config, run), model, falling(config, 3))
    source, mesh = small_images(config), devices.mesh(run.devices, run.mesh)
    data = images.crops(source, config.batch, config.pad, config.mirror, run.seed, mesh)
    rate = falling(config, config.falls)
    return learn(config, run, data, network(config), rate, config.decay, config.patience)


def falling(config: Config | ImageNet, falls: int) -> optax.Schedule:
    """Section 5: divided by 10 "when the validation error rate stopped improving".

    Not in the paper: at fixed steps.
    """
    steps = {config.steps * i // (falls + 1): 0.1 for i in range(1, falls + 1)}
    return optax.piecewise_constant_schedule(config.rate, steps)


def learn(config, run: Run, data: Labelled, model, rate, decay: float = 5e-4, patience: int = 0):
    """The experiment with this data, and a model that is made from `classes` and `dtype`."""
    # Model.
    model = model(classes=data.classes, dtype=jnp.dtype(config.dtype))

    def init_model(key):
        return model.init(key, jnp.zeros((1, *data.shape)), train=False)["params"], ()

    # Loss. Section 3.5: "multinomial logistic regression".
    def loss(params, extra, batch, key):
        rngs = {"dropout": key}
        logits = model.apply({"params": params}, batch["image"], train=True, rngs=rngs)
        values = losses.categorical_cross_entropy(logits, batch["label"])
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        return values, (extra, {"accuracy": accuracy, "count/examples": config.batch})

    def measure(state, batch):
        views = data.views(batch["image"])  # [V, B, H, W, C]
        logits = model.apply({"params": state.params}, views.reshape(-1, *data.shape), train=False)
        return evaluate.classification(logits.reshape(*views.shape[:2], -1), batch["label"])

    # Algorithm. Section 5: v <- 0.9 v - 0.0005 rate w - rate gradient, w <- w + v. The rate is in
    # the velocity; today's SGD multiplies the velocity by the rate of the moment.
    decayed, rated = optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate)
    algorithm = descend(init_model, loss, optax.chain(decayed, rated, optax.trace(0.9)))

    # Not in the paper: with small images, what is tested is the best checkpoint on images held out.
    mean = evaluate.means(measure, devices.mesh(run.devices, run.mesh), data.size)
    picture = lambda state: {"filters": plots.filters(state.params["Conv_0"]["kernel"])}
    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        step=algorithm.step,
        evaluate=lambda state: mean(state, data.validation()) | picture(state),
        test=lambda state: mean(state, data.test()),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        score=data.score,
        patience=patience,
    )


# Claims, on a part of CIFAR-10 at half its resolution.
CIFAR = Config(
    data="cifar10",
    examples=2000,
    shrink=2,
    pad=0,
    validation=2000,
    width=16,
    batch=50,
    falls=0,
    patience=0,
)

# Fig. 1: "No regularization of any kind was employed." Each arm at the best of the rates that
# docs/alexnet.md lists.
FIG1 = replace(CIFAR, rate=0.02, hidden=(), dropout=0.0, decay=0.0, steps=1200, evaluate_every=1200)
WINDOW = 20  # lines of the log, over which the training error is a running mean


def sooner(trained: Trained) -> Figures:
    """The steps after which the training error is so low; all of them where it never is."""
    lines = [line for line in trained.lines if line.get("phase") == "train"]
    accuracy = np.convolve([line["accuracy"] for line in lines], np.ones(WINDOW) / WINDOW, "valid")
    steps = np.array([line["step"] for line in lines[WINDOW - 1 :]])
    first = lambda error: min(steps[100 * (1 - accuracy) <= error], default=trained.config.steps)
    return {f"steps to {error} %": float(first(error)) for error in (40, 25, 15)}


def draw_training_errors(trained: dict[str, list[Trained]], figure: Figure):
    """Over the steps, as in Fig. 1; a point where a run has come to 25 %."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    runs = {arm: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(axes, runs, lambda line: 100 * (1 - line["accuracy"]), WINDOW)
    for index, of_arm in enumerate(trained.values()):
        steps = [sooner(one)["steps to 25 %"] for one in of_arm]
        axes.plot(steps, [25] * len(steps), "o", color=f"C{index}", markersize=4)
    axes.set(ylabel="training error, %", ylim=(0, None), title="2,000 images of CIFAR-10, 16x16")


DROPOUT = {
    name: replace(CIFAR, rate=0.02, hidden=(512, 256), dropout=rate, steps=1200, evaluate_every=60)
    for name, rate in (("all units", 0.0), ("dropout", 0.5))
}


def error(config: Config, state: State, split: str) -> float:
    """Of a state on a split, in %, in testing mode."""
    splits = small_images(config).load()
    train, model = splits["train"]["image"], network(config)(classes=10)

    @jax.jit
    def right(batch):
        image = images.centered(batch["image"], train)
        logits = model.apply({"params": state.params}, image, train=False)
        return logits.argmax(-1) == batch["label"]

    return 100 * (1 - np.mean(np.concatenate([*map(right, batches.slices(splits[split]))])))


def overfitting(trained: Trained) -> Figures:
    """In %. The errors at the end on the training's and the test's images, and their difference;
    the test error of the best checkpoint, and its step."""
    best = trained.state()
    with contextlib.closing(Checkpoints(trained.run.workdir)) as checkpoints:
        last, _ = checkpoints.restore(trained.config.steps, devices.layout(devices.mesh(), best))
    train, test = (error(trained.config, last, split) for split in ("train", "test"))
    return {
        "training error": train,
        "test error": test,
        "gap": test - train,
        "best test error": 100 * (1 - trained.lines[-1]["accuracy"]),
        "best step": float(best.step),
    }


def draw_overfitting(trained: dict[str, list[Trained]], figure: Figure):
    """Training error (lines, in training mode) and error on images held out (broken lines)."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    runs = {arm: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(axes, runs, lambda line: 100 * (1 - line["accuracy"]), WINDOW)
    for index, of_arm in enumerate(trained.values()):
        lines = [[line for line in one.lines if line.get("phase") == "evaluate"] for one in of_arm]
        steps = [line["step"] for line in lines[0]]
        held_out = np.mean([[100 * (1 - line["accuracy"]) for line in one] for one in lines], 0)
        axes.plot(steps, held_out, "--", color=f"C{index}")
    axes.set(ylabel="error, %: training (lines), held out (broken)", ylim=(0, None))
    axes.set(title="2,000 images of CIFAR-10, 16x16")


# 40 epochs of 10,000 images.
CONVOLUTIONAL = replace(
    CIFAR,
    examples=10_000,
    pad=2,
    mirror=True,
    width=32,
    hidden=(512, 512),
    rate=0.03,
    falls=2,
    steps=8000,
    evaluate_every=1000,
)


@cache
def engineered(config: Config) -> float:
    """The test error, in %, of logistic regression on histograms of oriented gradients (HOG).

    On the network's training images and their mirror images, but in full detail. Of cells of 4 and
    of 8 pixels, each with a penalty that suits them, what does better on the test's images.
    """
    splits = small_images(replace(config, shrink=1)).load()
    train, test = splits["train"], splits["test"]
    mirrored = np.concatenate([train["image"], train["image"][:, :, ::-1]])
    errors = []
    for cell, strength in ((4, 0.1), (8, 1.0)):
        form = {"pixels_per_cell": (cell, cell), "cells_per_block": (2, 2), "channel_axis": -1}
        describe = lambda images, form=form: np.float32(
            [feature.hog(image, **form) for image in images]
        )
        model = linear_model.LogisticRegression(C=strength, max_iter=1000)
        model.fit(describe(mirrored), np.tile(train["label"], 2))
        errors.append(100 * (1 - model.score(describe(test["image"]), test["label"])))
    return min(errors)


def draw_engineered(trained: dict[str, list[Trained]], figure: Figure):
    """The test errors of both, a point for each seed."""
    figure.set_size_inches(5, 2)
    axes = figure.subplots()
    of_network = [100 * (1 - one.lines[-1]["accuracy"]) for one in trained["network"]]
    by_hand = engineered(trained["network"][0].config)
    axes.plot(of_network, [1] * len(of_network), "o", alpha=0.6)
    axes.plot(by_hand, 0, "s")
    axes.axvline(by_hand - 10, color="gray", linewidth=0.8, linestyle="--")
    axes.set(yticks=(0, 1), yticklabels=("HOG, linear", "network"), ylim=(-0.6, 1.6))
    axes.set(xlabel="test error, %; ten points below HOG (broken)", title="CIFAR-10, 10,000 images")
    axes.grid(alpha=0.3)


CLAIMS = {
    "A1": Claim(
        says="A network with ReLUs trains several times faster than one with tanh.",
        paper="CIFAR-10, four layers: 25 % training error six times sooner (Fig. 1)",
        arms={
            "relu": FIG1,
            "tanh": replace(FIG1, activation="tanh", steps=900, evaluate_every=900),
        },
        figures=sooner,
        inequalities={
            "steps to 25 %: tanh >= 1.5 relu": lambda by: (
                by["tanh"]["steps to 25 %"] / by["relu"]["steps to 25 %"] - 1.5
            )
        },
        picture=draw_training_errors,
    ),
    "A2": Claim(
        says="Dropout reduces overfitting, and takes more steps.",
        paper="'substantial overfitting' without, 'roughly doubles the number of iterations' "
        "(section 4.2), without figures",
        arms=DROPOUT,
        figures=overfitting,
        inequalities={
            "gap: dropout < all units": lambda by: by["all units"]["gap"] - by["dropout"]["gap"],
            "best test error: dropout < all units": lambda by: (
                by["all units"]["best test error"] - by["dropout"]["best test error"]
            ),
            "best step: dropout > all units": lambda by: (
                by["dropout"]["best step"] - by["all units"]["best step"]
            ),
        },
        picture=draw_overfitting,
    ),
    "A5": Claim(
        says="A convolutional network beats features made by hand.",
        paper="ILSVRC-2010, top-1 error: 37.5 %, the best features before 45.7 (table 1)",
        arms={"network": CONVOLUTIONAL},
        figures=lambda trained: {
            "test error": 100 * (1 - trained.lines[-1]["accuracy"]),
            "HOG, test error": engineered(trained.config),
        },
        inequalities={
            "test error: network < HOG - 10 points": lambda by: (
                by["network"]["HOG, test error"] - 10 - by["network"]["test error"]
            )
        },
        picture=draw_engineered,
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
