"""Adam: A Method for Stochastic Optimization.

Diederik P. Kingma, Jimmy Lei Ba, 2014. arXiv:1412.6980.

What changed: the optimization algorithm. Every parameter gets a step of its own, from running means
of its gradient and of the gradient's square, both corrected for having begun at zero. Here section
6: data, model and loss stay, and the fourth part is a row of a table.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments import adam_equations
from jaxhist import UserError, devices, evaluate, losses, plots
from jaxhist.adam import adam, adamax
from jaxhist.algorithm import DIVERGED, State, by_setting, descend, side_by_side
from jaxhist.claims import Claim, Equation, Figures, Trained
from jaxhist.cli import main
from jaxhist.data import batches, images, words
from jaxhist.fields import NonNegativeInt, PositiveInt, check
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
    data: str = "digits"  # or a TFDS set of images of one size; of words "docstrings", or of texts
    validation: PositiveInt = 180  # training examples held out
    widths: tuple[PositiveInt, ...] = (256, 256)  # of the hidden layers; of the code last
    dropout: float = 0.5  # the part that is dropped, of inputs or hidden units
    l2: float = 0.0  # half of it times the sum of the squared weights is added to the loss
    optimizer: Literal[tuple(OPTIMIZERS)] = "adam"
    rates: tuple[float, ...] = (0.001,)  # one network for each, side by side
    decay: bool = False  # divide the rate of step t by sqrt(t)
    b1: float = 0.9  # of Adam: decay of the mean of the gradient
    b2: float = 0.999  # and of its square
    batch: PositiveInt = 128
    steps: NonNegativeInt = 600
    evaluate_every: PositiveInt = 100


# Not in the paper: the weight of the L2 term, and how long 6.1 and 6.2 train.
LOGISTIC = Config(network="logistic", widths=(), dropout=0.0, l2=1e-4, rates=(0.1,), decay=True)
WORDS = replace(LOGISTIC, network="words", data="docstrings", dropout=0.5, l2=0.0)
AUTOENCODER = Config(network="autoencoder", widths=(64, 8), dropout=0.0)
CONVOLUTIONAL = Config(network="convolutional", widths=(16, 16, 32, 128))
LARGE = {"validation": 5000, "steps": 21_500, "evaluate_every": 430}  # 50 epochs of MNIST
PRESETS = {
    "small": Config(),
    "logistic": LOGISTIC,
    "words": replace(WORDS, validation=1000),
    "convolutional": CONVOLUTIONAL,
    "autoencoder": replace(AUTOENCODER, rates=(0.01,)),
    "paper": Config(data="mnist", widths=(1000, 1000), **LARGE),
    "paper-logistic": replace(LOGISTIC, data="mnist", **LARGE),
    "paper-words": replace(WORDS, data="imdb_reviews", **LARGE),
    # 45 epochs of CIFAR-10, 100 of MNIST.
    "paper-convolutional": replace(
        CONVOLUTIONAL, data="cifar10", widths=(64, 64, 128, 1000), **LARGE | {"steps": 15_800}
    ),
    "paper-autoencoder": replace(
        AUTOENCODER, data="mnist", widths=(500, 50), **LARGE | {"steps": 43_000}
    ),
}


def classification(network, config: Config):
    """Cross-entropy; and what is measured of a batch."""

    def loss(params, extra, batch, key):
        logits = network.apply(params, batch["input"], train=True, rngs={"dropout": key})
        weights = sum(jnp.sum(w**2) for w in jax.tree.leaves(params) if w.ndim > 1)
        values = losses.categorical_cross_entropy(logits, batch["label"]) + config.l2 / 2 * weights
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        return values, (extra, {"accuracy": accuracy, "count/examples": config.batch})

    def measure(state, batch):
        logits = network.apply(state.params, batch["input"], train=False)
        return evaluate.classification(logits[None], batch["label"])

    return loss, measure


def evidence(network, config: Config):
    """The negative lower bound on the log-likelihood, -E log p(x|z) + KL(q(z|x) || N(0, 1))."""

    def bound(params, x, key):
        logits, mean, log_variance = network.apply(params, x, rngs={"code": key})
        divergence = losses.divergence_from_standard_normal(mean, log_variance)
        return losses.bernoulli_cross_entropy(logits, x) + divergence

    def loss(params, extra, batch, key):
        return bound(params, batch["input"], key), (extra, {"count/examples": config.batch})

    def measure(state, batch):
        return {"loss": bound(state.params, batch["input"], jax.random.key(0))}

    return loss, measure


def build(config: Config, run: Run) -> Experiment:
    check(config)
    # Data.
    if config.network == "words":
        data = words.named(config.data, config.validation)
    else:
        prepare = images.whitened if config.network == "convolutional" else images.scaled
        data = prepare(images.named(config.data, config.validation))
    mesh = devices.mesh(run.devices, run.mesh)
    wide = lambda batch, key=None: {**batch, "input": batch["input"].astype(jnp.float32)}
    train = batches.on_device(lambda: data.load()["train"], config.batch, run.seed, mesh, wide)

    # Model.
    if config.network == "autoencoder" and len(config.widths) != 2:
        raise UserError(f"widths of an autoencoder are two, not {len(config.widths)}")
    network = {
        "logistic": lambda: Logistic(data.classes, config.dropout),
        "words": lambda: Logistic(data.classes, config.dropout),
        "multilayer": lambda: Multilayer(config.widths, data.classes, config.dropout),
        "convolutional": lambda: Convolutional(config.widths, data.classes, config.dropout),
        "autoencoder": lambda: Autoencoder(*config.widths),
    }[config.network]()

    def init_model(key):
        return network.init({"params": key, "code": key}, jnp.zeros((1, *data.shape))), ()

    # Loss.
    objective = evidence if config.network == "autoencoder" else classification
    loss, measure = objective(network, config)

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
        batch=data.batch(config.batch),
        init=algorithm.init,
        step=algorithm.step,
        evaluate=lambda state: mean(state, batches.slices(data.load()["validation"])),
        test=lambda state: mean(state, batches.slices(data.load()["test"])),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
    )


# Claims: on the digits, and of words on docstrings. An epoch of the digits is 9 steps. Every
# optimizer has a grid of as many rates and is judged at its best one.


def cost_of(rate: float, trained: Trained) -> np.ndarray:
    """The training cost of each step, of the network with this rate."""
    name = f"loss {rate:g}" if len(trained.config.rates) > 1 else "loss"
    return np.array([line[name] for line in trained.lines if line.get("phase") == "train"])


def late(costs: np.ndarray) -> float:
    """The mean over the last tenth of the steps."""
    return float(np.mean(costs[-len(costs) // 10 :]))


def best(trained: Trained) -> Figures:
    """Over the rates, the lowest training cost at the end."""
    cost, rate = min((late(cost_of(rate, trained)), rate) for rate in trained.config.rates)
    return {"training cost": cost, "best rate": rate}


def draw_costs(trained: dict[str, list[Trained]], figure: Figure):
    """The training cost over the steps, of each optimizer at its best rate, as in Figs. 1 to 3."""

    def lines(one: Trained) -> list[dict]:
        costs = cost_of(best(one)["best rate"], one)
        return [{"phase": "train", "step": i + 1, "cost": c} for i, c in enumerate(costs)]

    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    runs = {arm: [lines(one) for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(axes, runs, lambda line: line["cost"], window=9)
    config = next(iter(trained.values()))[0].config
    axes.set(ylabel="training cost", yscale="log", title=f"{config.network}, {config.data}")


RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FIG4 = {
    f"{name}, b1 = {b1:g}, b2 = {b2:g}": replace(
        PRESETS["autoencoder"],
        optimizer=optimizer,
        rates=RATES,
        b1=b1,
        b2=b2,
        steps=90,
        evaluate_every=90,
    )
    for name, optimizer in (("with", "adam"), ("without", "uncorrected"))
    for b1 in (0.0, 0.9)
    for b2 in (0.99, 0.999, 0.9999)
}


def robustness(trained: Trained) -> Figures:
    """Over the rates: how many diverge, the worst loss at the end; and one loss, early."""
    costs = {rate: cost_of(rate, trained) for rate in RATES}
    return {
        "diverged": float(sum(cost[-1] == DIVERGED for cost in costs.values())),
        "worst": max(map(late, costs.values())),
        "epoch 2, rate 0.01": float(np.mean(costs[1e-2][9:18])),
    }


def saved(by: dict[str, Figures], b2: float) -> float:
    """By how much the correction lowers the loss of epoch 2, with b1 = 0.9 and a rate of 0.01."""
    without, with_ = (by[f"{name}, b1 = 0.9, b2 = {b2:g}"] for name in ("without", "with"))
    return without["epoch 2, rate 0.01"] - with_["epoch 2, rate 0.01"]


def draw_robustness(trained: dict[str, list[Trained]], figure: Figure):
    """The loss at the end over the rates, for each b1 and b2, as in Fig. 4."""
    figure.set_size_inches(8, 5)
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for row, b1 in enumerate((0.0, 0.9)):
        for column, b2 in enumerate((0.99, 0.999, 0.9999)):
            axes = panels[row, column]
            for name, style in (("without", "o--"), ("with", "o-")):
                runs = trained[f"{name}, b1 = {b1:g}, b2 = {b2:g}"]
                costs = np.mean([[late(cost_of(rate, one)) for rate in RATES] for one in runs], 0)
                axes.plot(RATES, costs, style, label=f"{name} correction", markersize=4)
            axes.set(title=f"b1 = {b1:g}, b2 = {b2:g}", xscale="log", ylim=(20, 60))
            axes.grid(alpha=0.3)
        panels[row, 0].set_ylabel("loss after 10 epochs")
    for axes in panels[1]:
        axes.set_xlabel("rate")
    panels[0, 0].legend(fontsize=8)


def arms(config: Config, grids: dict[str, tuple[float, ...]]) -> dict[str, Config]:
    """One for each optimizer. AdaGrad's rate falls by its own rule, the others' as configured."""
    kind = config.network + (f", dropout {config.dropout:g}" if config.network == "words" else "")
    return {
        f"{kind}, {name}": replace(
            config, optimizer=name, rates=grid, decay=config.decay and name != "adagrad"
        )
        for name, grid in grids.items()
    }


def cost(by: dict[str, Figures], arm: str) -> float:
    return by[arm]["training cost"]


def briefly(config: Config, steps: int) -> Config:
    return replace(config, steps=steps, evaluate_every=steps)


CONVEX = arms(
    briefly(PRESETS["logistic"], 405),
    dict.fromkeys(("adam", "nesterov", "adagrad"), (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0)),
)
SPARSE = {
    dropout: arms(
        replace(briefly(PRESETS["words"], 300), dropout=dropout),
        {
            "adam": (0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
            "nesterov": (1.0, 2.0, 3.0, 5.0, 10.0, 20.0),
            "adagrad": (0.1, 0.2, 0.3, 0.5, 1.0, 2.0),
        },
    )
    for dropout in (0.5, 0.0)
}
DROPOUT = arms(
    briefly(PRESETS["small"], 180),
    {
        "adam": (0.001, 0.002, 0.003, 0.005, 0.01),
        "nesterov": (0.02, 0.05, 0.1, 0.2, 0.3),
        "adagrad": (0.01, 0.02, 0.03, 0.05, 0.1),
        "rmsprop": (0.001, 0.002, 0.003, 0.005, 0.01),
        "adadelta": (1.0, 2.0, 3.0, 5.0, 10.0),
    },
)
# Convolutions side by side are slow on CPU: one rate each, the best of a pilot (docs/adam.md).
CONVOLUTIONS = arms(
    briefly(PRESETS["convolutional"], 405),
    {"adam": (0.003,), "nesterov": (0.03,), "adagrad": (0.03,)},
)


CLAIMS = {
    "K1": Claim(
        says="Where b2 is close to 1, training without the correction is unstable.",
        paper="Fig. 4, without figures",
        arms=FIG4,
        figures=robustness,
        inequalities={
            f"the worst loss over the rates, b1 = {b1:g}, b2 = {b2:g}: without > 10 x with": (
                lambda by, b1=b1, b2=b2: math.log10(
                    by[f"without, b1 = {b1:g}, b2 = {b2:g}"]["worst"]
                    / by[f"with, b1 = {b1:g}, b2 = {b2:g}"]["worst"]
                    / 10
                )
            )
            for b1 in (0.0, 0.9)
            for b2 in (0.999, 0.9999)
        }
        | {
            "what it saves, b1 = 0.9, rate 0.01: b2 = 0.9999 > 0": lambda by: saved(by, 0.9999),
            "what it saves: b2 = 0.9999 > 0.999": lambda by: saved(by, 0.9999) - saved(by, 0.999),
            "what it saves: b2 = 0.999 > 0.99": lambda by: saved(by, 0.999) - saved(by, 0.99),
        },
        picture=draw_robustness,
        log_every=1,
    ),
    "K1c": Equation(
        says="Without the correction the first step is (1 - b1) / sqrt(1 - b2) times alpha.",
        paper="section 3",
        sides=adam_equations.first_steps,
    ),
    "K2": Claim(
        says="On a dense convex problem Adam matches Nesterov's momentum and beats AdaGrad.",
        paper="logistic regression on MNIST, Fig. 1 left, without figures",
        arms=CONVEX,
        figures=best,
        inequalities={
            "training cost: Adam < 1.02 Nesterov": lambda by: (
                1.02 * cost(by, "logistic, nesterov") - cost(by, "logistic, adam")
            ),
            "training cost: Adam < AdaGrad": lambda by: (
                cost(by, "logistic, adagrad") - cost(by, "logistic, adam")
            ),
        },
        picture=draw_costs,
        log_every=1,
    ),
    "K3": Claim(
        says="On sparse features Adam matches AdaGrad, and both beat Nesterov's momentum.",
        paper="bags of words of IMDB, Fig. 1 right, without figures",
        arms=SPARSE[0.5] | SPARSE[0.0],
        figures=best,
        inequalities={
            f"training cost, dropout {dropout:g}: {text}": (
                lambda by, dropout=dropout, a=a, b=b, factor=factor: (
                    factor * cost(by, f"words, dropout {dropout:g}, {b}")
                    - cost(by, f"words, dropout {dropout:g}, {a}")
                )
            )
            for dropout in SPARSE
            for text, a, b, factor in (
                ("Adam < 1.05 AdaGrad", "adam", "adagrad", 1.05),
                ("Adam < 0.95 Nesterov", "adam", "nesterov", 0.95),
                ("AdaGrad < 0.95 Nesterov", "adagrad", "nesterov", 0.95),
            )
        },
        picture=draw_costs,
        log_every=1,
    ),
    "K4": Claim(
        says="With dropout Adam trains a multilayer network as fast as any other or faster.",
        paper="MNIST, 1000-1000 ReLUs, Fig. 2a, without figures",
        arms=DROPOUT,
        figures=best,
        inequalities={
            "training cost: Adam < 1.02 the lowest other": lambda by: (
                1.02 * min(cost(by, arm) for arm in by if not arm.endswith(" adam"))
                - cost(by, "multilayer, adam")
            )
        },
        picture=draw_costs,
        log_every=1,
    ),
    "K5": Claim(
        says="On a convolutional network AdaGrad falls behind after the start.",
        paper="CIFAR-10, c64-c64-c128-1000, Fig. 3, without figures",
        arms=CONVOLUTIONS,
        figures=lambda trained: (
            best(trained)
            | {"in epoch 1": float(np.mean(cost_of(*trained.config.rates, trained)[:9]))}
        ),
        inequalities={
            "at the end: AdaGrad > 1.2 the lower of Adam and Nesterov": lambda by: (
                cost(by, "convolutional, adagrad")
                - 1.2 * min(cost(by, "convolutional, adam"), cost(by, "convolutional, nesterov"))
            ),
            "in epoch 1: AdaGrad < 1.2 the lower of Adam and Nesterov": lambda by: (
                1.2
                * min(by[f"convolutional, {name}"]["in epoch 1"] for name in ("adam", "nesterov"))
                - by["convolutional, adagrad"]["in epoch 1"]
            ),
        },
        picture=draw_costs,
        log_every=1,
        diverged={"training cost": np.inf, "in epoch 1": np.inf},
    ),
    "K6": Equation(
        says="The steps do not depend on the scale of the loss; those of SGD do.",
        paper="section 2.1",
        sides=adam_equations.scaled_losses,
    ),
    "O1": Equation(
        says="At high momentum Nesterov's damps what the heavy ball lets swing.",
        paper="Sutskever et al. 2013, section 2: as if the momentum were mu (1 - rate h)",
        sides=adam_equations.damping,
    ),
    "O2": Equation(
        says="AdaGrad's step shrinks as 1 / sqrt(t) along a steady gradient; RMSProp's does not.",
        paper="Duchi et al. 2011",
        sides=adam_equations.steady,
    ),
    "O4": Equation(
        says="L2 and weight decay are the same for SGD, and not for Adam.",
        paper="Loshchilov & Hutter 2019, propositions 1 and 2",
        sides=adam_equations.decays,
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
