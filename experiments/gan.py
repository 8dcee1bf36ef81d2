"""Generative Adversarial Nets.

Ian J. Goodfellow, Jean Pouget-Abadie, Mehdi Mirza, Bing Xu, David Warde-Farley, Sherjil Ozair,
Aaron Courville, Yoshua Bengio, 2014. arXiv:1406.2661. And DCGAN: Alec Radford, Luke Metz, Soumith
Chintala, 2015. arXiv:1511.06434.

What changed: the loss. It is another network, which learns to tell samples from real images while
the generator learns to deceive it. So the algorithm has two players, and to each of them the other
is part of the data.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments import gan_mixture
from experiments.gan_mixture import GRID, Mixture
from experiments.gan_players import Players, adversaries, each
from experiments.gan_samples import Judge
from jaxhist import UserError, devices, losses, plots
from jaxhist.adam import adam
from jaxhist.claims import Claim, Figures, Trained
from jaxhist.cli import main
from jaxhist.data import batches, images, photographs
from jaxhist.fields import AtLeast, NonNegativeInt, PositiveInt, check
from jaxhist.models import dcgan, gan
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    data: str = "digits"  # "digits", or any TFDS set with images of one size and labels
    shrink: PositiveInt = 1  # each square of so many pixels on a side becomes one
    photographs: NonNegativeInt = 0  # crop and scale photographs to so many pixels; 0: none
    validation: PositiveInt = 180  # training images held out, to choose the width of Parzen windows
    network: Literal["maxout", "convolutional"] = "maxout"
    widths: tuple[PositiveInt, ...] = (256, 256)  # of the generator; if convolutional, of both
    units: PositiveInt = 240  # of each of the discriminator's two layers of maxout
    normalize: bool = True  # batches, if convolutional
    loss: Literal["non-saturating", "saturating"] = "non-saturating"  # the generator's
    k: NonNegativeInt = 1  # steps of the discriminator to one of the generator; 0: it stays
    ahead: NonNegativeInt = 0  # steps that the discriminator learns alone, at the beginning
    optimizer: Literal["sgd", "adam"] = "adam"
    rate: float = 0.001
    b1: float = 0.5  # of Adam
    batch: PositiveInt = 100
    steps: NonNegativeInt = 10_000
    evaluate_every: PositiveInt = 1000
    samples: Annotated[int, AtLeast(20)] = 10_000  # to measure


# The paper gives no widths, rates or noise for MNIST; these are its code's, mnist.yaml.
PAPER = Config(
    data="mnist",
    validation=10_000,
    widths=(1200, 1200),
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
    "dcgan-mnist": Config(
        data="mnist",
        validation=10_000,
        network="convolutional",
        widths=(64, 32),
        rate=2e-4,
        batch=128,
        steps=3000,
    ),
}


def build(config: Config | Mixture, run: Run) -> Experiment:
    check(config)
    if isinstance(config, Mixture):  # of a claim
        return gan_mixture.build(config, run)
    # Data. Pixels from 0 to 1, and for each step of the discriminator other images.
    mesh, size = devices.mesh(run.devices, run.mesh), max(config.k, 1) * config.batch
    scaled = lambda batch, key: {"image": batch["image"] / jnp.float32(255)}
    if side := config.photographs:
        if config.data in images.EMBEDDED:
            raise UserError(f"{config.data} has no photographs; leave --photographs away")
        source, shape = photographs.from_tfds(config.data), (side, side, 3)
        see = lambda photograph, _: {"image": photographs.central_square(photograph, side)}
        data = batches.streamed(lambda: source.load("train"), see, size, run.seed, mesh, scaled)
    else:
        source = images.reduced(images.named(config.data, config.validation), by=config.shrink)
        shape, train = source.shape, lambda: {"image": source.load()["train"]["image"]}
        data = batches.on_device(train, size, run.seed, mesh, scaled)

    # Model.
    if config.network == "maxout":
        marginals = lambda *_: gan.log_odds(train()["image"])
        generator = gan.Generator(shape, config.widths, output_bias=marginals)
        networks = Players(generator, gan.Discriminator(config.units))
    else:
        generator = dcgan.Generator(shape, config.widths, normalize=config.normalize)
        networks = Players(
            generator, dcgan.Discriminator(config.widths, normalize=config.normalize)
        )

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


# Claims: on the digits, but for N2 (a mixture on a line) and N5 (MNIST).
SCALE = replace(PRESETS["small"], units=64, steps=4000, evaluate_every=4000)
LONG = replace(SCALE, steps=10_000, evaluate_every=10_000)
AHEAD = 200  # steps of the discriminator alone
DCGAN = {
    f"{name}, b1 = {b1}": replace(
        PRESETS["dcgan-mnist"],
        widths=(32, 16),
        normalize=normalize,
        b1=b1,
        batch=64,
        steps=1000,
        evaluate_every=1000,
        samples=2000,
    )
    for name, normalize in (("normalized", True), ("plain", False))
    for b1 in (0.5, 0.9)
}


def measured(*names: str):
    """These metrics of the test."""
    return lambda trained: {name: float(trained.lines[-1][name]) for name in names}


def training(trained: Trained) -> list[dict]:
    return [line for line in trained.lines if line.get("phase") == "train"]


def draw_points(axes: Axes, values: dict[str, list[float]], label: str):
    """A row of points for each name, one for each seed."""
    for row, of_name in enumerate(values.values()):
        axes.plot(of_name, [row] * len(of_name), "o", alpha=0.6)
    axes.set(yticks=range(len(values)), yticklabels=values, ylim=(len(values) - 0.5, -0.5))
    axes.set(xlabel=label)
    axes.grid(alpha=0.3)


def draw_samples(axes: Axes, trained: Trained, title: str):
    """As the run's last evaluation drew them."""
    axes.imshow(imread(f"{trained.run.workdir}/samples.png"), cmap="gray")
    axes.set(title=title, xticks=(), yticks=())


def draw_likelihoods(trained: dict[str, list[Trained]], figure: Figure):
    """The likelihoods of the test's images under each, and samples."""
    figure.set_size_inches(8, 4)
    left, right = figure.subplots(1, 2)
    metric = lambda name, arm: [one.lines[-1][name] for one in trained[arm]]
    values = {arm: metric("log_likelihood", arm) for arm in trained}
    draw_points(
        left,
        values | {"a Gaussian": metric("log_likelihood gaussian", "trained")},
        "log-likelihood of the test's images, nats",
    )
    draw_samples(right, trained["trained"][0], "samples, seed 0")


def theory(trained: Trained) -> Figures:
    """How far the discriminator is from the best for N(0, 1), at most on the grid; where the
    generator learns, what the test measured."""
    if trained.config.learns:
        return measured("V", "from a half", "total variation")(trained)
    miss = gan_mixture.discriminate(trained.state(), GRID) - gan_mixture.best(GRID)[:, 0]
    return {"from the best": float(np.abs(miss).max())}


def draw_theory(trained: dict[str, list[Trained]], figure: Figure):
    """The densities and the discriminators, one for each seed, as in Fig. 1."""
    figure.set_size_inches(8, 4)
    panels = figure.subplots(1, 2, sharey=True)
    x = np.linspace(-3, 3, 201)[:, None]
    for axes, (arm, of_arm) in zip(panels, trained.items(), strict=True):
        axes.fill_between(x[:, 0], gan_mixture.density(x)[:, 0], alpha=0.2, label="real points")
        samples = gan_mixture.generate(of_arm[0].state(), 100_000)
        axes.hist(
            samples[:, 0],
            120,
            (-3, 3),
            density=True,
            histtype="step",
            color="tab:green",
            label="samples, seed 0",
        )
        for one in of_arm:
            label = "discriminators" if one is of_arm[0] else None
            probability = gan_mixture.discriminate(one.state(), x)
            axes.plot(x, probability, color="tab:blue", linewidth=0.8, label=label)
        if not of_arm[0].config.learns:
            axes.plot(x, gan_mixture.best(x), "k--", linewidth=0.8, label="the best one")
        axes.set(title=arm, xlabel="point", ylim=(0, 1.05))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("density, or probability of being real")
    panels[0].legend(fontsize=8)


def early(trained: Trained) -> Figures:
    """Where the discriminator is ahead; and at the end."""
    (line,) = (line for line in training(trained) if line["step"] == AHEAD)
    return {
        "gradient": line["gradient"],
        "D sample": line["D sample"],
        **measured("log_likelihood")(trained),
    }


def draw_gradients(trained: dict[str, list[Trained]], figure: Figure):
    """The norms of the generator's gradient over the first steps; the likelihoods at the end."""
    figure.set_size_inches(8, 4)
    left, right = figure.subplots(1, 2)
    first = lambda one: [line for line in training(one) if line["step"] <= 3 * AHEAD]
    runs = {arm: [first(one) for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(left, runs, lambda line: line["gradient"])
    left.axvline(AHEAD, color="gray", linestyle="--", linewidth=0.8)
    left.set(yscale="log", ylabel="norm of the generator's gradient")
    left.set(title="it learns from the broken line on")
    values = {a: [one.lines[-1]["log_likelihood"] for one in runs] for a, runs in trained.items()}
    draw_points(right, values, "log-likelihood at the end, nats")


def draw_diversity(trained: dict[str, list[Trained]], figure: Figure):
    """Samples of the first seed."""
    figure.set_size_inches(3.5 * len(trained), 4)
    panels = figure.subplots(1, len(trained))
    for axes, (arm, (first, *_)) in zip(panels, trained.items(), strict=True):
        draw_samples(axes, first, f"{arm}: distance {first.lines[-1]['distance']:.2f}")


def stability(trained: Trained) -> Figures:
    """Whether it has collapsed, and the variance of the discriminator's loss over the second half
    of the steps."""
    lines = training(trained)
    late = [line["loss discriminator"] for line in lines[len(lines) // 2 :]]
    classes = trained.lines[-1]["classes"]
    return {
        "classes": float(classes),
        "collapsed": float(classes < 9),
        "variance": float(np.var(late)),
        "mean loss": float(np.mean(late)),
    }


def draw_stability(trained: dict[str, list[Trained]], figure: Figure):
    """The discriminator's loss over the steps, and the classes that appear."""
    figure.set_size_inches(9, 4)
    left, right = figure.subplots(1, 2)
    runs = {arm: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(left, runs, lambda line: line["loss discriminator"], window=4)
    left.set(ylabel="the discriminator's loss", ylim=(0, None), title="MNIST")
    values = {arm: [one.lines[-1]["classes"] for one in runs] for arm, runs in trained.items()}
    draw_points(right, values, "classes that appear in samples")
    right.set(xlim=(-0.5, 10.5))


CLAIMS = {
    "N1": Claim(
        says="Adversarial training alone makes samples under which real images are likely.",
        paper="MNIST, Parzen log-likelihood 225 +- 2, Deep GSN 214 +- 1.1 (table 1)",
        arms={"untrained": replace(LONG, steps=0), "trained": LONG},
        figures=measured("log_likelihood", "log_likelihood gaussian", "classes", "frechet"),
        inequalities={
            "log-likelihood: trained > untrained": lambda by: (
                by["trained"]["log_likelihood"] - by["untrained"]["log_likelihood"]
            ),
            "log-likelihood: trained > a Gaussian with full covariance": lambda by: (
                by["trained"]["log_likelihood"] - by["trained"]["log_likelihood gaussian"]
            ),
        },
        picture=draw_likelihoods,
        log_every=50,
    ),
    "N2": Claim(
        says="The best discriminator is p / (p + q), and at the end of the game it cannot tell.",
        paper="proposition 1 and theorem 1: 1/2 everywhere, V = -log 4 = -1.386",
        arms={
            "q stays N(0, 1)": Mixture(learns=False),
            "both learn": Mixture(learns=True, rate=0.002),
        },
        figures=theory,
        inequalities={
            "q stays: from the best < 0.03 on a grid": lambda by: (
                0.03 - by["q stays N(0, 1)"]["from the best"]
            ),
            "both learn: |V + log 4| < 0.15": lambda by: (
                0.15 - abs(by["both learn"]["V"] + np.log(4))
            ),
            "both learn: from a half < 0.15": lambda by: 0.15 - by["both learn"]["from a half"],
        },
        picture=draw_theory,
        log_every=50,
    ),
    "N3": Claim(
        says="Against a discriminator that is ahead, log D(G(z)) has the gradient that log(1 - "
        "D(G(z))) lacks.",
        paper="section 3, without figures",
        arms={
            name: replace(SCALE, loss=name, ahead=AHEAD)
            for name in ("non-saturating", "saturating")
        },
        figures=early,
        inequalities={
            "where it is ahead: mean D(G(z)) < 0.05": lambda by: (
                0.05 - by["non-saturating"]["D sample"]
            ),
            "there: gradient non-saturating > 10 saturating": lambda by: np.log10(
                by["non-saturating"]["gradient"] / by["saturating"]["gradient"] / 10
            ),
            "log-likelihood: non-saturating > saturating": lambda by: (
                by["non-saturating"]["log_likelihood"] - by["saturating"]["log_likelihood"]
            ),
        },
        picture=draw_gradients,
    ),
    "N4": Claim(
        says="One step of each is enough; a generator that learns alone collapses.",
        paper="section 4 and 6, 'the Helvetica scenario', without figures",
        arms={
            "k = 1": replace(SCALE, ahead=AHEAD),
            "k = 5": replace(SCALE, ahead=AHEAD, k=5),
            "generator alone": replace(SCALE, ahead=AHEAD, k=0),
        },
        figures=measured("distance", "log_likelihood", "classes"),
        inequalities={
            "distance between samples: alone < 0.3 of k = 1": lambda by: (
                0.3 * by["k = 1"]["distance"] - by["generator alone"]["distance"]
            )
        },
        picture=draw_diversity,
        log_every=50,
    ),
    "N5": Claim(
        says="Batch normalization and b1 = 0.5 keep a convolutional GAN stable.",
        paper="DCGAN, section 4 and 3, without figures",
        arms=DCGAN,
        figures=stability,
        inequalities={
            f"{text}: normalized, b1 = 0.5 < {arm}": (
                lambda by, arm=arm, name=name: by[arm][name] - by["normalized, b1 = 0.5"][name]
            )
            for text, name in (
                ("runs with fewer than 9 classes", "collapsed"),
                ("variance of D's loss", "variance"),
            )
            for arm in list(DCGAN)[1:]
        },
        picture=draw_stability,
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
