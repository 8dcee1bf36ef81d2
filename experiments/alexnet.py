"""ImageNet Classification with Deep Convolutional Neural Networks.

Alex Krizhevsky, Ilya Sutskever, Geoffrey E. Hinton, 2012. NIPS 25.

What changed: the model, and its size. A convolutional network with ReLUs, dropout and 60 million
parameters, trained on a million photographs, beats features made by hand.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import optax

from jaxhist import devices, evaluate, losses, plots
from jaxhist.algorithm import descend
from jaxhist.cli import main
from jaxhist.data import images, photographs
from jaxhist.data.images import Images, Labelled
from jaxhist.models.alexnet import AlexNet, OneTower, SmallAlexNet
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Section 3.1: small images."""

    data: str = "digits"  # "digits", or any TFDS set with images of one size and labels
    examples: int = 0  # training examples to keep; 0 keeps all
    shrink: int = 1  # each square of so many pixels on a side becomes one
    pad: int = 1  # pixels added on each side before a random crop
    mirror: bool = False  # half of the images: right for photographs, wrong for digits
    validation: int = 180  # training examples held out to choose the best checkpoint
    width: int = 32  # filters of the first two convolutions; the third has twice as many
    hidden: tuple[int, ...] = (256,)  # widths of the fully connected layers before the last
    activation: Literal["relu", "tanh"] = "relu"
    normalize: bool = False  # local responses, in the first two layers
    dropout: float = 0.5  # in the hidden fully connected layers
    lecun: bool = False  # weights begin as N(0, 1 / fan_in) instead of N(0, 0.01^2)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: int = 64
    rate: float = 0.003
    falls: int = 3  # how many times the rate is divided by 10, at even distances
    decay: float = 5e-4  # of the weights
    steps: int = 1200
    evaluate_every: int = 50
    patience: int = 12  # evaluations without a better score before stopping; 0 never stops


@dataclass(frozen=True)
class ImageNet:
    """Section 5: photographs."""

    data: str = "imagenet2012"  # any TFDS set with images, labels, and splits train and validation
    towers: Literal[1, 2] = 2
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: int = 128
    rate: float = 0.01  # divided by 10 after 1/4, 1/2 and 3/4 of the steps
    steps: int = 900_000  # 90 epochs
    evaluate_every: int = 10_000


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
        rate=0.001,
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


def large_photographs(config: ImageNet, run: Run) -> Labelled:
    """Section 4.1: random crops, mirrored, in shifted colours; tests on ten crops."""
    source = photographs.from_tfds(config.data)
    view, test_view = photographs.square_crop, photographs.five_crops
    mesh = devices.mesh(run.devices)
    return photographs.crops(source, config.batch, view, test_view, run.seed, mesh)


def network(config: Config) -> partial:
    """For small images; to be made from `classes` and `dtype`."""
    return partial(
        SmallAlexNet,
        width=config.width,
        hidden=config.hidden,
        activation={"relu": nn.relu, "tanh": jnp.tanh}[config.activation],
        normalize=config.normalize,
        dropout=config.dropout,
        lecun=config.lecun,
    )


def build(config: Config | ImageNet, run: Run) -> Experiment:
    if isinstance(config, ImageNet):
        model = AlexNet if config.towers == 2 else OneTower
        return learn(config, run, large_photographs(config, run), model, falling(config, 3))
    source, mesh = small_images(config), devices.mesh(run.devices)
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
        flat = views.reshape(-1, *data.shape)
        logits = model.apply({"params": state.params}, flat, train=False)
        return evaluate.classification(logits.reshape(*views.shape[:2], -1), batch["label"])

    # Algorithm. Section 5: v <- 0.9 v - 0.0005 rate w - rate gradient, w <- w + v. The rate is in
    # the velocity; today's SGD multiplies the velocity by the rate of the moment.
    decayed, rated = optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate)
    algorithm = descend(init_model, loss, optax.chain(decayed, rated, optax.trace(0.9)))

    # Not in the paper: with small images, what is tested is the best checkpoint on images held out.
    mean = evaluate.means(measure, devices.mesh(run.devices), data.size)
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


if __name__ == "__main__":
    main(build, PRESETS, {})
