"""Deep Residual Learning for Image Recognition.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, 2015. arXiv:1512.03385.

What changed: the model. A layer learns what to add to its input instead of what to put in its
place, y = x + F(x); without that, a deeper network trains worse than a shallow one.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.resnet_imagenet import ImageNet, large_photographs
from jaxhist import devices, evaluate, losses, plots
from jaxhist.algorithm import descend
from jaxhist.claims import Claim, Figures, Trained
from jaxhist.cli import main
from jaxhist.data import images
from jaxhist.data.images import Labelled
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models.resnet import ResNet, Shortcut, SmallResNet
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Section 4.2: small images."""

    data: str = "digits"  # "digits", or any TFDS set with images of one size and labels
    pad: NonNegativeInt = 1  # pixels added on each side before a random crop
    mirror: bool = False  # half of the images: right for photographs, wrong for digits
    validation: PositiveInt = 180  # training examples held out to choose the best checkpoint
    depth: PositiveInt = 20  # 6n + 2 layers
    shortcut: Shortcut = "A"  # of section 3.3; "none" is the plain twin
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: PositiveInt = 64
    rate: float = 0.1  # a tenth of it after 1/2 of the steps, a hundredth after 3/4
    warmup: NonNegativeInt = 0  # steps at a tenth of the rate, before it
    steps: NonNegativeInt = 2400
    evaluate_every: PositiveInt = 50
    patience: NonNegativeInt = 24  # evaluations without a better score to stop after; 0: never


CIFAR10 = Config(
    data="cifar10",
    pad=4,
    mirror=True,
    validation=5000,
    batch=128,
    steps=64_000,
    evaluate_every=1000,
    patience=0,
)
PRESETS = {
    "small": Config(),
    "cifar10": CIFAR10,
    # 110 layers start at a rate of 0.01 until the training error is below 80 %, "about 400
    # iterations". Not in the paper: 400 in any case.
    "paper": replace(CIFAR10, depth=110, warmup=400),
    "imagenet18": ImageNet(depth=18),
    "imagenet50": ImageNet(),
    "imagenet50v1.5": ImageNet(v1_5=True),
}


def small_images(config: Config, run: Run) -> Labelled:
    """Section 4.2: pad, and crop at random the image or its mirror image."""
    source = images.named(config.data, config.validation)
    mesh = devices.mesh(run.devices, run.mesh)
    return images.crops(source, config.batch, config.pad, config.mirror, run.seed, mesh)


def build(config: Config | ImageNet, run: Run) -> Experiment:
    check(config)
    if isinstance(config, ImageNet):
        model = partial(ResNet, config.depth, shortcut=config.shortcut, v1_5=config.v1_5)
        # "Divided by 10 when the error plateaus". Not in the paper: at fixed steps.
        rate = falling(config, (1 / 4, 1 / 2, 3 / 4))
        return learn(config, run, large_photographs(config, run), model, rate)
    model = partial(SmallResNet, config.depth, shortcut=config.shortcut)
    return learn(config, run, small_images(config, run), model, warmed(config), config.patience)


def falling(config, parts: tuple[float, ...]) -> optax.Schedule:
    """The learning rate, divided by 10 after these parts of the steps."""
    falls = {int(config.steps * part): 0.1 for part in parts}
    return optax.piecewise_constant_schedule(config.rate, falls)


def warmed(config: Config) -> optax.Schedule:
    """Section 4.2: divided by 10 at 32k and 48k of 64k steps; a tenth of it in the warm-up."""
    fallen = falling(config, (1 / 2, 3 / 4))
    return lambda step: jnp.where(step < config.warmup, 0.1, 1.0) * fallen(step)


def learn(config, run: Run, data: Labelled, model, rate: optax.Schedule, patience: int = 0):
    """The experiment with this data, and a model that is made from `classes` and `dtype`."""
    # Model.
    model = model(classes=data.classes, dtype=jnp.dtype(config.dtype))

    def init_model(key):
        variables = model.init(key, jnp.zeros((1, *data.shape)), train=False)
        return variables["params"], variables["batch_stats"]

    # Loss.
    def loss(params, statistics, batch, key):
        variables = {"params": params, "batch_stats": statistics}
        logits, new = model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        values = losses.categorical_cross_entropy(logits, batch["label"])
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        return values, (new["batch_stats"], {"accuracy": accuracy, "count/examples": config.batch})

    def measure(state, batch):
        variables = {"params": state.params, "batch_stats": state.extra}
        views = data.views(batch["image"])  # [V, B, H, W, C]
        logits = model.apply(variables, views.reshape(-1, *data.shape), train=False)
        return evaluate.classification(logits.reshape(*views.shape[:2], -1), batch["label"])

    # Algorithm. Section 3.4: SGD, momentum 0.9, weight decay 1e-4 on all parameters.
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, momentum=0.9))
    algorithm = descend(init_model, loss, optimizer)

    # Not in the paper: with small images, what is tested is the best checkpoint on images held out.
    mean = evaluate.means(measure, devices.mesh(run.devices, run.mesh), data.size)
    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        step=algorithm.step,
        evaluate=lambda state: mean(state, data.validation()),
        test=lambda state: mean(state, data.test()),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        score=data.score,
        patience=patience,
    )


# Claims, on the digits: 400 steps are 20 epochs of them.
SCALE = Config(rate=0.02, steps=400, evaluate_every=400, patience=0)
ARMS = {
    f"{name}-{depth}": replace(SCALE, depth=depth, shortcut=shortcut)
    for name, shortcut in (("plain", "none"), ("residual", "A"))
    for depth in (20, 56)
}
LONG = replace(SCALE, steps=1000, evaluate_every=1000)


def errors(trained: Trained) -> Figures:
    """In %. The training error is that of training mode, over the last quarter of the steps."""
    lines = [line for line in trained.lines if line.get("phase") == "train"]
    train = np.mean([line["accuracy"] for line in lines[-len(lines) // 4 :]])
    test = trained.lines[-1]["accuracy"]
    return {"training error": 100 * (1 - float(train)), "test error": 100 * (1 - test)}


def draw_errors(trained: dict[str, list[Trained]], figure: Figure):
    """Training error over the steps (lines) and test error at the end (points), as in Fig. 6."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    runs = {arm: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(axes, runs, lambda line: 100 * (1 - line["accuracy"]), window=8)
    for index, of_arm in enumerate(trained.values()):
        end = [(one.config.steps * 1.03, errors(one)["test error"]) for one in of_arm]
        axes.plot(*np.transpose(end), "o", color=f"C{index}", markersize=4)
    axes.set(ylabel="error, %: training (lines), test (points)", ylim=(0, None), title="digits")


def responses(trained: Trained) -> np.ndarray:
    """The standard deviation of each layer's output, normalized, before ReLU or addition (Fig. 7).

    Over 500 training examples, with their own statistics.
    """
    source = images.digits(trained.config.validation)
    model = SmallResNet(trained.config.depth, source.classes, trained.config.shortcut)
    train, state = source.load()["train"]["image"], trained.state()
    _, caught = model.apply(
        {"params": state.params, "batch_stats": state.extra},
        images.centered(train[:500], train),
        train=True,
        capture_intermediates=lambda module, method: isinstance(module, nn.BatchNorm),
        mutable=["batch_stats", "intermediates"],
    )
    norms = jax.tree.leaves_with_path(caught["intermediates"])
    by_name = {tuple(key.key for key in path[:2]): np.std(leaf) for path, leaf in norms}
    blocks = (trained.config.depth - 2) // 2
    inside = [(f"Block_{i}", f"BatchNorm_{j}") for i in range(blocks) for j in range(2)]
    return np.array([by_name[name] for name in [("BatchNorm_0", "__call__"), *inside]])


def draw_responses(trained: dict[str, list[Trained]], figure: Figure):
    """Of the first seed, by layer, as in Fig. 7."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    for arm, (first, *_) in trained.items():
        axes.plot(responses(first), label=arm, marker=".")
    axes.set(xlabel="layer", ylabel="standard deviation of its output", ylim=(0, None))
    axes.set(title="digits, seed 0")
    axes.grid(alpha=0.3)
    axes.legend()


CLAIMS = {
    "R1": Claim(
        says="A plain network with more layers trains worse: it is not overfitting.",
        paper="ImageNet top-1 error, plain: 18 layers 27.94 %, 34 layers 28.54 (table 2); Fig. 6",
        arms={arm: config for arm, config in ARMS.items() if arm.startswith("plain")},
        figures=errors,
        inequalities={
            "training error: plain-56 > plain-20 + 3 points": lambda by: (
                by["plain-56"]["training error"] - by["plain-20"]["training error"] - 3
            )
        },
        picture=draw_errors,
        diverged={"training error": 100.0, "test error": 100.0},
    ),
    "R2": Claim(
        says="With shortcuts the deep network trains as well as the shallow one.",
        paper="CIFAR-10 test error, residual: 20 layers 8.75 %, 56 layers 6.97 (table 6); Fig. 6",
        arms=ARMS,
        figures=errors,
        inequalities={
            "training error: residual-56 < residual-20 + 1 point": lambda by: (
                by["residual-20"]["training error"] + 1 - by["residual-56"]["training error"]
            ),
            "training error: residual-56 < plain-56 - 10 points": lambda by: (
                by["plain-56"]["training error"] - 10 - by["residual-56"]["training error"]
            ),
        },
        picture=draw_errors,
        diverged={"training error": 100.0, "test error": 100.0},
    ),
    "R3": Claim(
        says="A residual network that is too deep for its data trains well and predicts worse.",
        paper="CIFAR-10 test error: 110 layers 6.43 %, 1202 layers 7.93, "
        "training error < 0.1 (table 6)",
        arms={f"long-{depth}": replace(LONG, depth=depth) for depth in (20, 110)},
        figures=errors,
        inequalities={
            "training error: long-20 < 1 %": lambda by: 1 - by["long-20"]["training error"],
            "training error: long-110 < 1 %": lambda by: 1 - by["long-110"]["training error"],
            "test error: long-110 > long-20": lambda by: (
                by["long-110"]["test error"] - by["long-20"]["test error"]
            ),
        },
        picture=draw_errors,
    ),
    "R6": Claim(
        says="Residual functions are small, and smaller in a deeper network.",
        paper="the standard deviations of layer responses in Fig. 7, without figures",
        arms=ARMS,
        figures=lambda trained: {"median response": float(np.median(responses(trained)))},
        inequalities={
            "median response: residual-20 < plain-20": lambda by: (
                by["plain-20"]["median response"] - by["residual-20"]["median response"]
            ),
            "median response: residual-56 < plain-56": lambda by: (
                by["plain-56"]["median response"] - by["residual-56"]["median response"]
            ),
            "median response: residual-56 < residual-20": lambda by: (
                by["residual-20"]["median response"] - by["residual-56"]["median response"]
            ),
        },
        picture=draw_responses,
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
