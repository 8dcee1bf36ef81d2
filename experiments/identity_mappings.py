"""Identity Mappings in Deep Residual Networks.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, 2016. arXiv:1603.05027.

What changed: the model. Activations move from behind the sum into the residual function, so that
the signal passes through a thousand layers unchanged; any other shortcut than the identity scales
it by a factor per layer.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import resnet
from jaxhist import plots
from jaxhist.claims import Claim, Equation, Figures, Trained
from jaxhist.cli import main
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models.resnet import convolution, normalization
from jaxhist.models.resnet_v2 import Altered, AlteredBlock, AlteredResNet, SmallPreResNet
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    unit: Literal[Altered, "preactivation", "preactivation bottleneck"] = "preactivation"
    data: str = "digits"  # "digits", or any TFDS set with images of one size and labels
    pad: NonNegativeInt = 1  # pixels added on each side before a random crop
    mirror: bool = False  # half of the images: right for photographs, wrong for digits
    validation: PositiveInt = 180  # training examples held out to choose the best checkpoint
    depth: PositiveInt = 20  # 6n + 2 layers; with bottlenecks 9n + 2
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: PositiveInt = 64
    rate: float = 0.1  # a tenth of it after 1/2 of the steps, a hundredth after 3/4
    warmup: NonNegativeInt = 0  # steps at a tenth of the rate, before it
    steps: NonNegativeInt = 2400
    evaluate_every: PositiveInt = 50
    patience: NonNegativeInt = 24  # evaluations without a better score to stop after; 0: never


# Section 5: "we warm up the training by using a smaller learning rate of 0.01 at the beginning 400
# iterations", and all else as in 2015.
CIFAR = Config(
    data="cifar10",
    pad=4,
    mirror=True,
    validation=5000,
    batch=128,
    warmup=400,
    steps=64_000,
    evaluate_every=1000,
    patience=0,
)
PRESETS = {
    "small": Config(),
    "paper": replace(CIFAR, unit="preactivation bottleneck", depth=1001),
    "cifar164": replace(CIFAR, unit="preactivation bottleneck", depth=164),
    "cifar110": replace(CIFAR, depth=110),
}


def build(config: Config, run: Run) -> Experiment:
    check(config)
    # Data, loss and algorithm are those of 2015.
    if config.unit in get_args(Altered):
        model = partial(AlteredResNet, altered=config.unit)
    else:
        model = partial(SmallPreResNet, bottleneck=config.unit.endswith("bottleneck"))
    data = resnet.small_images(config, run)
    model = partial(model, config.depth)
    return resnet.learn(config, run, data, model, resnet.warmed(config), config.patience)


# Claims, on the digits.
SHORTCUTS = {
    unit: Config(unit=unit, depth=44, rate=0.02, steps=300, evaluate_every=300, patience=0)
    for unit in ("identity", "scaling", "gating", "convolution", "dropout")
}
DEEP = Config(depth=110, rate=0.02, steps=300, evaluate_every=300, patience=0)


def training_loss(first: int, last: int, trained: Trained) -> Figures:
    """The mean over the steps from `first` to `last`."""
    lines = [line for line in trained.lines if line.get("phase") == "train"]
    chosen = [line["loss"] for line in lines if first <= line["step"] <= last]
    return {"training loss": float(np.mean(chosen))}


def draw_training_losses(trained: dict[str, list[Trained]], figure: Figure):
    """A curve for each arm."""
    runs = {arm: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    plots.compare(axes, runs, lambda line: line["loss"], window=8)
    depth = next(iter(trained.values()))[0].config.depth
    axes.set(ylabel="training loss", yscale="log")
    axes.set_ylim(top=min(axes.get_ylim()[1], 1e3))  # what leaves the picture, diverges
    axes.set(title=f"digits, {depth} layers")


def gradients() -> dict[str, tuple[float, float]]:
    """|dL/dx_0| / |dL/dx_54| through 54 units whose F is 0, beside the product of their factors."""

    def passed(altered: Altered) -> float:
        unit = AlteredBlock(
            4, 1, altered, True, partial(convolution, dtype=None), normalization(True, None)
        )
        # Positive, so that no ReLU behind a sum is in the way.
        x = jnp.exp(jax.random.normal(jax.random.key(0), (2, 4, 4, 4)))
        variables = unit.init(jax.random.key(1), x)
        variables["params"]["BatchNorm_1"]["scale"] = jnp.zeros(4)  # F is 0

        through = jax.jit(lambda x: unit.apply(variables, x, mutable=["batch_stats"])[0])

        def forward(x):
            for _ in range(54):
                x = through(x)
            return x

        y, pull_back = jax.vjp(forward, x)
        gradient = jax.random.normal(jax.random.key(2), y.shape)
        return float(jnp.linalg.norm(pull_back(gradient)[0]) / jnp.linalg.norm(gradient))

    return {"identity": (passed("identity"), 1.0), "scaling": (passed("scaling"), 0.5**54)}


def others(by: dict[str, Figures]) -> list[float]:
    """How much higher each other loss is than that of the identity, in parts of it; sorted."""
    identity = by["identity"]["training loss"]
    return sorted(by[arm]["training loss"] / identity - 1 for arm in by if arm != "identity")


CLAIMS = {
    "R4a": Equation(
        says="The identity carries a gradient through any depth; a factor on it acts once a layer.",
        paper="equations 5 and 8",
        sides=gradients,
    ),
    "R4b": Claim(
        says="No other shortcut trains as well as the identity.",
        paper="CIFAR-10 test error, 110 layers: identity 6.61 %, scaling 12.35, gating 12.86, "
        "convolution 12.22, dropout fails (table 1)",
        arms=SHORTCUTS,
        figures=partial(training_loss, 225, 300),
        inequalities={
            "training loss: identity is the lowest": lambda by: others(by)[0],
            "training loss: 3 of the 4 others are higher by 5 %": lambda by: others(by)[1] - 0.05,
        },
        picture=draw_training_losses,
        diverged={"training loss": np.inf},
    ),
    "R5": Claim(
        says="Activation before the convolutions makes very deep networks easier to train.",
        paper="CIFAR-10 test error: 110 layers 6.61 -> 6.37 %, 1001 layers 7.61 -> 4.92 (table 3)",
        arms={
            "preactivation-110": DEEP,
            "original-110": replace(DEEP, unit="identity"),
        },
        figures=partial(training_loss, 100, 300),
        inequalities={
            "training loss, steps 100 to 300: preactivation < original": lambda by: (
                by["original-110"]["training loss"] - by["preactivation-110"]["training loss"]
            )
        },
        picture=draw_training_losses,
        diverged={"training loss": np.inf},
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
