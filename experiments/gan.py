"""Generative Adversarial Nets.

Ian J. Goodfellow, Jean Pouget-Abadie, Mehdi Mirza, Bing Xu, David Warde-Farley, Sherjil Ozair,
Aaron Courville, Yoshua Bengio, 2014. arXiv:1406.2661. And DCGAN: Alec Radford, Luke Metz, Soumith
Chintala, 2015. arXiv:1511.06434.

What changed: the loss. It is another network, which learns to tell samples from real images while
the generator learns to deceive it. So the algorithm has two players, and to each of them the other
is part of the data.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from experiments.gan_players import Players, adversaries, each
from experiments.gan_samples import Judge
from jaxhist import devices, losses
from jaxhist.adam import adam
from jaxhist.cli import main
from jaxhist.data import batches, images, photographs
from jaxhist.models import dcgan, gan
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    data: str = "digits"  # "digits", or any TFDS set with images of one size and labels
    shrink: int = 1  # each square of so many pixels on a side becomes one
    photographs: int = 0  # crop and scale photographs of any size to so many pixels; 0: no such set
    validation: int = 180  # training images held out, to choose the width of Parzen windows
    network: Literal["maxout", "convolutional"] = "maxout"
    widths: tuple[int, ...] = (256, 256)  # of the generator; if convolutional, of both, mirrored
    units: int = 64  # of each of the discriminator's two layers of maxout
    normalize: bool = True  # batches, if convolutional
    loss: Literal["non-saturating", "saturating"] = "non-saturating"  # the generator's
    k: int = 1  # steps of the discriminator to one of the generator; 0: it stays as it is
    ahead: int = 0  # steps that the discriminator learns alone, at the beginning
    optimizer: Literal["sgd", "adam"] = "adam"
    rate: float = 0.001
    b1: float = 0.5  # of Adam
    batch: int = 100
    steps: int = 6000
    evaluate_every: int = 1000
    samples: int = 10_000  # to measure


# The paper gives no widths, rates or noise for MNIST; these are its code's, mnist.yaml.
PAPER = Config(
    data="mnist",
    validation=10_000,
    widths=(1200, 1200),
    units=240,
    optimizer="sgd",
    rate=0.1,
    # 250 epochs. Not in the paper: how long; by then the momentum has risen.
    steps=125_000,
    evaluate_every=5000,
)
PRESETS = {
    "small": Config(),
    "mnist": PAPER,
    "paper": PAPER,
    # Not in the paper of 2015: ImageNet in the network for LSUN's bedrooms, and how long.
    "dcgan": Config(
        data="imagenet2012",
        photographs=64,
        network="convolutional",
        widths=(1024, 512, 256, 128),
        rate=2e-4,
        batch=128,
        steps=100_000,
        evaluate_every=1000,
    ),
}


def build(config: Config, run: Run) -> Experiment:
    # Data. Pixels from 0 to 1, and for each step of the discriminator other images.
    mesh, size = devices.mesh(run.devices), max(config.k, 1) * config.batch
    scaled = lambda batch, key: {"image": batch["image"] / jnp.float32(255)}
    if side := config.photographs:
        source, shape = photographs.from_tfds(config.data), (side, side, 3)
        see = lambda photograph, _: {"image": photographs.central_square(photograph, side)}
        data = batches.streamed(lambda: source.load("train"), see, size, run.seed, mesh, scaled)
    else:
        source = images.reduced(images.named(config.data, config.validation), by=config.shrink)
        shape, train = source.shape, lambda: {"image": source.load()["train"]["image"]}
        data = batches.on_device(train, size, run.seed, mesh, scaled)

    # Model.
    widths = tuple(config.widths)
    if config.network == "maxout":
        marginals = lambda *_: gan.log_odds(train()["image"])
        generator = gan.Generator(shape, widths, output_bias=marginals)
        networks = Players(generator, gan.Discriminator(config.units))
    else:
        generator = dcgan.Generator(shape, widths, normalize=config.normalize)
        networks = Players(generator, dcgan.Discriminator(widths, normalize=config.normalize))

    @jax.jit
    def generate(state, noise):
        player = each(state).generator
        return generator.apply({"params": player.params, **player.extra}, noise, train=False)

    # Loss. The discriminator's is equation 1; of the generator's the paper has two.
    loss = {
        "non-saturating": losses.non_saturating_generator_loss,
        "saturating": losses.saturating_generator_loss,
    }[config.loss]

    # Algorithm.
    algorithm = adversaries(networks, shape, loss, optimizer(config), config.k, config.ahead)

    judge = Judge(source, generator.draw, config.samples, labels=not config.photographs)
    return Experiment(
        data=data,
        batch={"image": jax.ShapeDtypeStruct((size, *shape), jnp.float32)},
        init=algorithm.init,
        step=algorithm.step,
        evaluate=lambda state: judge.evaluate(partial(generate, state)),
        test=lambda state: judge.test(partial(generate, state)),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
    )


def optimizer(config: Config) -> optax.GradientTransformation:
    if config.optimizer == "adam":
        return adam(config.rate, b1=config.b1)
    # As published: the rate is divided by 1.000004 at each step and is 1e-6 at least; the momentum
    # rises over 250 epochs. The rate is in the velocity.
    steps = 125_000
    rate = optax.exponential_decay(config.rate, steps, 1.000004**-steps, end_value=1e-6)
    momentum = optax.linear_schedule(0.5, 0.7, steps)
    return optax.chain(
        optax.scale_by_learning_rate(rate), optax.inject_hyperparams(optax.trace)(decay=momentum)
    )


if __name__ == "__main__":
    main(build, PRESETS, {})
