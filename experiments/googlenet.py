"""Going Deeper with Convolutions.

Christian Szegedy, Wei Liu, Yangqing Jia, Pierre Sermanet, Scott Reed, Dragomir Anguelov, Dumitru
Erhan, Vincent Vanhoucke, Andrew Rabinovich, 2014. arXiv:1409.4842.

What changed: the model. A layer looks at several scales at once, each behind a 1x1 convolution that
makes it cheap, and an average stands where the fully connected layers were: 22 layers have less
than an eighth of AlexNet's parameters.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments import alexnet
from experiments.googlenet_imagenet import ImageNet, large_photographs
from jaxhist import devices, evaluate, flops, losses, plots
from jaxhist.algorithm import State, descend
from jaxhist.claims import Claim, Equation, Figures, Trained
from jaxhist.cli import main
from jaxhist.data import images
from jaxhist.data.images import Labelled
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models.googlenet import MODULES, GoogLeNet, Inception, NaiveInception, SmallGoogLeNet
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Not in the paper: small images."""

    data: str = "digits"  # "digits", or any TFDS set with images of one size and labels
    examples: NonNegativeInt = 0  # training examples to keep, 0 for all
    shrink: PositiveInt = 1  # this many pixels, squared, become one
    pad: NonNegativeInt = 1  # pixels added on each side before a random crop
    mirror: bool = False  # half of the images: right for photographs, wrong for digits
    validation: PositiveInt = 180  # training examples held out to choose the best checkpoint
    auxiliary: bool = True  # a second classifier, on the second module, in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: PositiveInt = 64
    rate: float = 0.02
    fall_every: NonNegativeInt = 157  # steps to a rate 4 % lower: 8 epochs; 0: never
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
        fall_every=5625,
        steps=64_000,
        evaluate_every=1000,
        patience=0,
    ),
    "paper": ImageNet(),
}


def build(config: Config | ImageNet | alexnet.Config, run: Run) -> Experiment:
    check(config)
    if isinstance(config, alexnet.Config):  # what a claim compares with
        return alexnet.build(config, run)
    if isinstance(config, ImageNet):
        return learn(config, run, large_photographs(config, run), GoogLeNet, "3a")
    model = partial(SmallGoogLeNet, auxiliary=config.auxiliary)
    return learn(config, run, small_images(config, run), model, "first", config.patience)


def small_images(config: Config, run: Run) -> Labelled:
    """All of a set or a part of it, padded and cropped at random."""
    # Data.
    source = images.named(config.data, config.validation)
    source = images.reduced(source, config.examples, config.shrink)
    mesh = devices.mesh(run.devices, run.mesh)
    return images.crops(source, config.batch, config.pad, config.mirror, run.seed, mesh)


def learn(config, run: Run, data: Labelled, model, first: str, patience: int = 0) -> Experiment:
    """The experiment with this data, and a model that is made from `classes` and `dtype`, whose
    first module has this name."""
    # Model.
    model = model(classes=data.classes, dtype=jnp.dtype(config.dtype))

    def init_model(key):
        params = model.init(key, jnp.zeros((1, *data.shape)), train=False)["params"]
        return params, params  # and their average

    # Loss. Section 5: "the losses of the auxiliary classifiers were weighted by 0.3".
    def loss(params, average, batch, key):
        logits, *others = model.apply(
            {"params": params}, batch["image"], train=True, rngs={"dropout": key}
        )
        values = losses.categorical_cross_entropy(logits, batch["label"])
        for auxiliary in others:
            values += 0.3 * losses.categorical_cross_entropy(auxiliary, batch["label"])
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        return values, (average, {"accuracy": accuracy, "count/examples": config.batch})

    def measure(state, batch):
        views = data.views(batch["image"])  # [V, B, H, W, C]
        logits = model.apply({"params": state.extra}, views.reshape(-1, *data.shape), train=False)
        return evaluate.classification(logits.reshape(*views.shape[:2], -1), batch["label"])

    # Algorithm. Section 6: SGD, momentum 0.9, a rate that falls by 4 % every 8 epochs, and an
    # average of the weights, which is what is tested.
    rate = optax.exponential_decay(config.rate, config.fall_every, 0.96, staircase=True)
    norm = optax.snapshot("gradient", lambda gradient: optax.tree.norm(gradient[first]))
    algorithm = descend(init_model, loss, optax.chain(norm, optax.sgd(rate, momentum=0.9)))

    def step(state: State, batch, key):
        state, metrics = algorithm.step(state, batch, key)
        average = polyak(state.extra, state.params, state.step)
        metrics["gradient"] = optax.tree.get(state.opt_state, "gradient")  # of the first module
        return state.replace(extra=average), metrics

    # Not in the paper: with small images, what is tested is the best checkpoint on images held out.
    mean = evaluate.means(measure, devices.mesh(run.devices, run.mesh), data.size)
    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        step=step,
        evaluate=lambda state: mean(state, data.validation()),
        test=lambda state: mean(state, data.test()),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        score=data.score,
        patience=patience,
    )


def polyak(average: Any, params: Any, step: jax.Array) -> Any:
    """The average of the weights, moved towards those after `step` steps, 1 being the first.

    Not in the paper: which average. This is polynomial-decay averaging (arXiv:1212.1824, section
    4): step s has a weight that grows like s^8, so the average looks back over a tenth of the
    training so far; and over 10,000 steps at most, since float32 would lose smaller changes.
    """
    weight = jnp.maximum(9 / (step + 8), 1e-4)
    return jax.tree.map(lambda a, p: a + weight * (p - a), average, params)


# Claims, on a part of CIFAR-10 at half its resolution.
SMALL = replace(
    PRESETS["cifar10"],
    examples=10_000,
    shrink=2,
    pad=2,
    validation=2000,
    auxiliary=False,
    batch=50,
    rate=0.03,
    fall_every=1600,
    steps=4000,
    evaluate_every=4000,
)
LARGE = replace(
    alexnet.PRESETS["cifar10"],
    examples=SMALL.examples,
    shrink=SMALL.shrink,
    pad=SMALL.pad,
    validation=SMALL.validation,
    hidden=(512, 512),
    normalize=False,
    batch=SMALL.batch,
    rate=0.03,
    falls=1,
    steps=SMALL.steps,
    evaluate_every=SMALL.evaluate_every,
)


def errors(trained: Trained) -> Figures:
    """Of what is tested, in %, and how many parameters that network has."""
    count = sum(leaf.size for leaf in jax.tree.leaves(trained.state().params))
    test = trained.lines[-1]["accuracy"]
    return {"test error": 100 * (1 - test), "parameters": float(count)}


def as_accurate(by: dict[str, Figures]) -> float:
    """Points of error. The parameters do not scatter: where they are few enough, it is the error
    that is put to the test."""
    large, small = by["alexnet"], by["inception"]
    fewer = large["parameters"] / 8 - small["parameters"]
    points = large["test error"] + 1 - small["test error"]
    return points if fewer >= 0 else min(points, fewer)


def draw_errors(trained: dict[str, list[Trained]], figure: Figure):
    """Training error over the steps (lines) and test error at the end (points)."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    label = {
        arm: f"{arm}, {errors(first)['parameters']:,.0f} parameters"
        for arm, (first, *_) in trained.items()
    }
    runs = {label[arm]: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(axes, runs, lambda line: 100 * (1 - line["accuracy"]), window=16)
    for index, of_arm in enumerate(trained.values()):
        end = [(one.config.steps * 1.03, errors(one)["test error"]) for one in of_arm]
        axes.plot(*np.transpose(end), "o", color=f"C{index}", markersize=4)
    axes.set(ylabel="error, %: training (lines), test (points)", ylim=(0, None))
    axes.set(title="CIFAR-10, 10,000 images of 16x16")


def products() -> dict[str, tuple[float, float]]:
    """Millions of multiply-adds of 3a and of 3b behind it, on 28x28 pixels: counted in the modules,
    and by hand from table 1."""
    sides = {}
    for module in (NaiveInception, Inception):
        x = jax.ShapeDtypeStruct((1, 28, 28, 192), jnp.float32)
        for name in ("3a", "3b"):
            width, C = MODULES[name][0], x.shape[-1]
            layer = module(width)
            variables = jax.eval_shape(layer.init, jax.random.key(0), x)
            program, x = jax.make_jaxpr(layer.apply, return_shape=True)(variables, x)
            if module is NaiveInception:
                by_hand = C * (width.one + 9 * width.three + 25 * width.five)
            else:
                reductions = width.three_reduce + width.five_reduce
                by_hand = C * (width.one + reductions + width.projection)
                by_hand += 9 * width.three_reduce * width.three
                by_hand += 25 * width.five_reduce * width.five
            counted = flops.count(program.jaxpr) / 2
            sides[f"{name} {module.__name__}"] = counted / 1e6, 28 * 28 * by_hand / 1e6
    return sides


FIRST = 200  # steps in which the gradient is measured


def first_gradient(trained: Trained) -> Figures:
    """The norm of the first module's gradient, the mean over every fifth of the first steps."""
    lines = [line for line in trained.lines if line.get("phase") == "train"]
    return {"gradient": float(np.mean([e["gradient"] for e in lines if e["step"] <= FIRST]))}


def draw_gradients(trained: dict[str, list[Trained]], figure: Figure):
    """Over the first steps."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    early = lambda lines: [line for line in lines if line["step"] <= FIRST]
    runs = {arm: [early(one.lines[1:]) for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(axes, runs, lambda line: line["gradient"], window=4)
    axes.set(ylabel="norm of the first module's gradient", ylim=(0, None))
    axes.set(title="CIFAR-10, 10,000 images of 16x16")


CLAIMS = {
    "G1": Claim(
        says="Inception modules are as accurate with a fraction of the parameters.",
        paper="ImageNet top-5 error 6.67 %, and 16.4 of AlexNet, which has 12 times the parameters "
        "(section 1, table 2)",
        arms={"alexnet": LARGE, "inception": SMALL},
        figures=errors,
        inequalities={
            "parameters: inception <= alexnet / 8, "
            "and test error: inception <= alexnet + 1 point": as_accurate
        },
        picture=draw_errors,
    ),
    "G2": Equation(
        says="Without 1x1 reductions a module needs 2.4 times the multiply-adds, the next 4.6.",
        paper="table 1: 128 million for 3a and 304 for 3b, with reductions",
        sides=products,
    ),
    "G3": Claim(
        says="An auxiliary head makes the gradient in the first module larger.",
        paper="section 5, without figures",
        arms={"inception": SMALL, "with-head": replace(SMALL, auxiliary=True, steps=FIRST)},
        figures=first_gradient,
        inequalities={
            "gradient: with-head > inception": lambda by: (
                by["with-head"]["gradient"] - by["inception"]["gradient"]
            )
        },
        picture=draw_gradients,
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
