"""A Simple Framework for Contrastive Learning of Visual Representations.

Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton, 2020. arXiv:2002.05709.

What changed: the data and the loss. No label is used: of two random views of each image in a batch,
a network learns to tell which ones belong together, and what it has to know for that is what a
linear classifier, or a few labels, can use afterwards.
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

from experiments import simclr_imagenet, simclr_probe
from experiments.simclr_imagenet import ImageNet, Learn, large_photographs
from jaxhist import devices, evaluate, losses, starting
from jaxhist.algorithm import descend
from jaxhist.claims import Claim, Figures, Trained
from jaxhist.cli import main
from jaxhist.data import augment, images
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models.simclr import Encoder, EncoderAndHead, Head, SmallEncoder
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Appendix B.9: small images."""

    data: str = "pieces"  # of photographs; or any TFDS set with images of one size and labels
    examples: NonNegativeInt = 0  # training images to keep, 0 for all
    shrink: PositiveInt = 1  # this many pixels, squared, become one
    validation: PositiveInt = 400  # training images held out
    learn: Learn = "views"  # from "labels", or with "linear" from them by the last layer alone
    start: str = ""  # a run in the same directory as this one, whose encoder it begins with
    labels: NonNegativeInt = 0  # training images whose labels are known, 0 for all
    area: float = 0.2  # the smallest part of an image that a view shows; 1 shows all of it
    mirror: bool = True  # half of the views: right for photographs, wrong for digits
    strength: float = 0.5  # s of the colour distortion; 0 leaves the colours
    depth: NonNegativeInt = 0  # layers of the residual network; 0 for a small one with these widths
    widths: tuple[PositiveInt, ...] = (64, 128, 256)
    head: Literal["nonlinear", "linear", "none"] = "nonlinear"
    temperature: float = 0.1
    normalize: bool = True  # compare by the cosine, not by the product
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: PositiveInt = 128  # images, each seen twice
    rate: float = 1.0
    warmup: NonNegativeInt = 100  # steps until the rate is reached
    steps: NonNegativeInt = 1000
    evaluate_every: PositiveInt = 250


CIFAR10 = Config(data="cifar10", validation=5000)
PRESETS = {
    "small": Config(),
    # Not in the paper: an encoder and images that two cores train with in an hour.
    "cifar10-small": replace(
        CIFAR10,
        shrink=2,
        widths=(128, 256, 512),
        batch=256,
        warmup=1050,
        steps=10_500,
        evaluate_every=1050,
    ),
    # 1000 epochs of 43 batches, 10 of them to warm up.
    "cifar10": replace(
        CIFAR10,
        area=0.08,
        depth=50,
        temperature=0.5,
        batch=1024,
        warmup=430,
        steps=43_000,
        evaluate_every=2150,
    ),
}
PRESETS |= simclr_imagenet.PRESETS


def small_images(config: Config, run: Run) -> augment.Views:
    """All of a set or a part of it."""
    source = images.named(config.data, config.validation)
    source = images.reduced(source, config.examples, config.shrink)
    labelled = images.reduced(source, config.labels)
    count, mesh = 2 if config.learn == "views" else 1, devices.mesh(run.devices, run.mesh)
    drawn = partial(augment.view, area=config.area, mirror=config.mirror, strength=config.strength)
    return augment.small_images(source, labelled, config.batch, count, drawn, run.seed, mesh)


def build(config: Config | ImageNet, run: Run) -> Experiment:
    check(config)
    # Data.
    dtype = jnp.dtype(config.dtype)
    if isinstance(config, ImageNet):
        data, encoder = large_photographs(config, run), Encoder(config.depth, dtype=dtype)
        head, normalize = "nonlinear", True
    else:
        data, head, normalize = small_images(config, run), config.head, config.normalize
        encoder = SmallEncoder(config.widths, dtype)
        if config.depth:
            encoder = Encoder(config.depth, small=True, dtype=dtype)

    # Model. Labels are predicted by a linear layer in the place of the head.
    head = Head(head) if config.learn == "views" else nn.Dense(len(data.names))
    model = EncoderAndHead(encoder, head)

    def init_model(key):
        variables = model.init(key, jnp.zeros((1, *data.shape)), train=False)
        return variables["params"], variables["batch_stats"]

    def begin(state):
        part = lambda state: (state.params["encoder"], state.extra)
        encoder, statistics = starting.learned(build, config, run, part, part(state))
        return state.replace(params={**state.params, "encoder": encoder}, extra=statistics)

    def apply(params, statistics, image, train):
        variables = {"params": params, "batch_stats": statistics}
        outputs, new = model.apply(variables, image, train=train, mutable=["batch_stats"])
        return outputs, new["batch_stats"]

    # Loss. Equation 1; or cross-entropy.
    def contrast(params, statistics, batch, key):
        image = batch["image"].reshape(-1, *data.shape)  # both views of the first, of the second ..
        (_, z), statistics = apply(params, statistics, image, True)
        values = losses.nt_xent(z, config.temperature, normalize)
        nearest = losses.view_logits(z, config.temperature, normalize).argmax(-1)
        found = jnp.mean(nearest == losses.other_view(len(z)))
        return values, (statistics, {"contrastive": found, "count/examples": config.batch})

    def classify(params, statistics, batch, key):
        if config.learn == "linear":
            params = {**params, "encoder": jax.lax.stop_gradient(params["encoder"])}
        image = batch["image"][:, 0]
        (_, logits), statistics = apply(params, statistics, image, config.learn == "labels")
        values = losses.categorical_cross_entropy(logits, batch["label"])
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        return values, (statistics, {"accuracy": accuracy, "count/examples": config.batch})

    # Algorithm. Section 2.2: LARS with a weight decay of 1e-6, neither of which is for biases and
    # batch normalization. Appendix B.5: labels are learned with Nesterov's momentum alone.
    end = max(config.steps, config.warmup + 1)  # a run that is shorter does nothing but warm up
    rate = optax.warmup_cosine_decay_schedule(0, config.rate, config.warmup, end)
    kernels = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    if config.learn == "views":
        optimizer = optax.lars(rate, 1e-6, kernels, trust_ratio_mask=kernels, momentum=0.9)
        algorithm = descend(init_model, contrast, optimizer)
    else:
        algorithm = descend(init_model, classify, optax.sgd(rate, momentum=0.9, nesterov=True))

    # Section 2.3: features are tested frozen, in the encoder's way of testing, of whole images.
    def encode(state, batch):
        return apply(state.params, state.extra, batch["image"] / 255, False)[0]

    def measure(state, batch):
        return evaluate.classification(encode(state, batch)[1][None], batch["label"])

    if config.learn == "views":
        tests = simclr_probe.tests(encode, data, algorithm.init, run)
    else:
        mean = evaluate.means(measure, devices.mesh(run.devices, run.mesh), data.size)
        tests = lambda state, split: mean(state, data.whole(split))
    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        begin=begin,
        step=algorithm.step,
        evaluate=lambda state: tests(state, "validation"),
        test=lambda state: tests(state, "test"),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
    )


# Claims, on a part of CIFAR-10 at half its resolution. An epoch is 39 steps.
SMALL = replace(
    CIFAR10,
    examples=10_000,
    shrink=2,
    validation=2000,
    widths=(32, 64, 128),
    batch=256,
    warmup=39,
    steps=975,
    evaluate_every=975,
)
VIEWS = {
    "simclr": SMALL,
    "crop": replace(SMALL, strength=0.0),
    "colour": replace(SMALL, area=1.0, mirror=False),
}
HEADS = {
    "simclr": SMALL,
    "linear": replace(SMALL, head="linear"),
    "none": replace(SMALL, head="none"),
}
TEMPERATURES = {
    "tau 0.05": replace(SMALL, temperature=0.05),
    "simclr": SMALL,  # 0.1
    "tau 0.5": replace(SMALL, temperature=0.5),
    "tau 1": replace(SMALL, temperature=1.0),
}
PRODUCTS = {"products": replace(SMALL, temperature=10.0, normalize=False)}
# 100 and 1,000 of the 10,000 labels; and all of them, for as many epochs as the views. Each has the
# best of the rates 0.005, 0.02 and 0.05 in a pilot (docs/simclr.md).
LABELS = replace(SMALL, learn="labels", strength=0.0, rate=0.1, warmup=0)
FEW = replace(LABELS, batch=100, steps=300, evaluate_every=300)
TUNED = replace(FEW, start="simclr-seed{seed}")
EFFICIENCY = {
    "simclr": SMALL,
    "supervised": LABELS,
    "scratch 100": replace(FEW, labels=100, rate=0.02),
    "scratch 1000": replace(FEW, labels=1000, rate=0.05),
    "tuned 100": replace(TUNED, labels=100, rate=0.005),
    "tuned 1000": replace(TUNED, labels=1000, rate=0.05),
}


def accuracies(trained: Trained) -> Figures:
    """Of the test, in %; and how many views found the other one of their image, at the end."""
    *lines, test = trained.lines
    figures = {
        name.removeprefix("accuracy "): 100 * value
        for name, value in test.items()
        if name.startswith("accuracy")
    }
    if trained.config.learn == "views":
        found = [line["contrastive"] for line in lines if line.get("phase") == "train"]
        figures["contrastive"] = 100 * float(np.mean(found[-len(found) // 4 :]))
    return figures


def every(trained: dict[str, list[Trained]], arm: str, name: str) -> list[float]:
    """A figure of each seed."""
    return [accuracies(one)[name] for one in trained[arm]]


def draw_groups(figure: Figure, groups: dict[str, list[float]], title: str):
    """A point for each value, and a line with the mean of each group."""
    figure.set_size_inches(1.2 * len(groups) + 1.5, 4)
    axes = figure.subplots()
    for place, values in enumerate(groups.values()):
        mean = np.mean(values)
        axes.hlines(mean, place - 0.25, place + 0.25, color=f"C{place}", linewidth=3)
        axes.plot([place] * len(values), values, ".", color="black", markersize=5)
        axes.text(place + 0.28, mean, f"{mean:.1f}", va="center", fontsize=9)
    axes.set_xticks(range(len(groups)), groups, fontsize=9)
    axes.set(ylabel="accuracy, %", xlim=(-0.5, len(groups) - 0.3), title=title)
    axes.grid(alpha=0.3, axis="y")


def draw_views(trained: dict[str, list[Trained]], figure: Figure):
    """What a linear classifier makes of the features, by the views they were learned from."""
    names = {"crop": "crop alone", "colour": "colour alone", "simclr": "crop and\ncolour"}
    groups = {text: every(trained, arm, "probe") for arm, text in names.items()}
    groups = {"untrained": every(trained, "simclr", "untrained"), **groups}
    draw_groups(figure, groups, "linear classifier of h, CIFAR-10 of 16x16")


def draw_heads(trained: dict[str, list[Trained]], figure: Figure):
    """Before the head and behind it, as in Fig. 8."""
    names = {"none": "no head", "linear": "linear", "simclr": "nonlinear"}
    groups = {f"{text},\nh": every(trained, arm, "probe") for arm, text in names.items()}
    for arm in ("linear", "simclr"):
        groups[f"{names[arm]},\nz"] = every(trained, arm, "projection")
    draw_groups(figure, groups, "linear classifier of h or z, CIFAR-10 of 16x16")


def draw_temperatures(trained: dict[str, list[Trained]], figure: Figure):
    """As in table 5: a linear classifier, and the task that was learned."""
    figure.set_size_inches(8, 4)
    panels = figure.subplots(1, 2)
    titles = {"probe": "linear classifier of h", "contrastive": "finding the other view"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        values = np.array([every(trained, arm, name) for arm in TEMPERATURES])
        taus = [config.temperature for config in TEMPERATURES.values()]
        axes.plot(taus, values.mean(1), "-o", label="cosine")
        axes.plot(taus, values, ".", color="C0", markersize=4)
        products = every(trained, "products", name)
        axes.plot([10] * len(products), products, "s", color="C1", markersize=4, label="product")
        axes.set(xscale="log", xlabel="temperature", ylabel="accuracy, %", title=title)
        axes.set_xticks([*taus, 10], [*map("{:g}".format, taus), "10"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].legend()


def draw_labels(trained: dict[str, list[Trained]], figure: Figure):
    """Accuracy over the number of labels, with and without an encoder that has learned before."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    counts = {"100": 100, "1000": 1000}
    for color, (kind, text) in enumerate([("tuned", "fine-tuned"), ("scratch", "from scratch")]):
        values = np.array([every(trained, f"{kind} {count}", "accuracy") for count in counts])
        axes.plot(list(counts.values()), values.mean(1), "-o", color=f"C{color}", label=text)
        axes.plot(list(counts.values()), values, ".", color=f"C{color}", markersize=4)
    for arm, name, text, style in (
        ("supervised", "accuracy", "from scratch, all 10,000 labels", "C1s"),
        ("simclr", "probe", "linear classifier of h, all 10,000 labels", "C0^"),
    ):
        values = every(trained, arm, name)
        axes.plot([10_000] * len(values), values, style, markersize=4, label=text)
    axes.set(xlabel="labels", ylabel="accuracy, %", xscale="log", title="CIFAR-10 of 16x16")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def draw_baselines(trained: dict[str, list[Trained]], figure: Figure):
    """A linear classifier of what the image, or an encoder, says."""
    names = {"pixels": "pixels", "untrained": "h, untrained", "projection": "z", "probe": "h"}
    groups = {text: every(trained, "simclr", name) for name, text in names.items()}
    draw_groups(figure, groups, "linear classifier, CIFAR-10 of 16x16")


def best(by: dict[str, Figures]) -> Figures:
    """Of the temperatures 0.1 and 0.5, the better one."""
    return max(by["simclr"], by["tau 0.5"], key=lambda figures: figures["probe"])


def gain(by: dict[str, Figures], labels: int) -> float:
    """What an encoder that has learned before adds."""
    return by[f"tuned {labels}"]["accuracy"] - by[f"scratch {labels}"]["accuracy"]


CLAIMS = {
    "L1": Claim(
        says="Crops and colour distortion together make better features than either alone.",
        paper="ImageNet top-1, linear: 56.3 %; crops alone 33.1, colour alone 18.8, one branch "
        "transformed (Fig. 5)",
        arms=VIEWS,
        figures=accuracies,
        inequalities={
            f"probe: both > {arm} alone + 2 points": lambda by, arm=arm: (
                by["simclr"]["probe"] - by[arm]["probe"] - 2
            )
            for arm in ("crop", "colour")
        },
        picture=draw_views,
    ),
    "L2": Claim(
        says="Features are better before the head than behind it, and a nonlinear head is best.",
        paper="ImageNet top-1, linear: a nonlinear head is 3 points better than a linear one and "
        "more than 10 better than none; h is more than 10 better than z (section 4.2, Fig. 8)",
        arms=HEADS,
        figures=accuracies,
        inequalities={
            "probe of h: nonlinear > linear - 0.5 points": lambda by: (
                by["simclr"]["probe"] - by["linear"]["probe"] + 0.5
            ),
            "probe of h: nonlinear > none": lambda by: by["simclr"]["probe"] - by["none"]["probe"],
            "nonlinear: probe of h > probe of z": lambda by: (
                by["simclr"]["probe"] - by["simclr"]["projection"]
            ),
        },
        picture=draw_heads,
    ),
    "L3": Claim(
        says="The loss needs the cosine and a temperature that fits.",
        paper="ImageNet top-1, linear: tau 0.05 59.7 %, 0.1 64.4, 0.5 60.7, 1 58.0; products, tau "
        "10 57.2, though of the views 91.7 % are found, and 87.8 with tau 0.1 (table 5)",
        arms=TEMPERATURES | PRODUCTS,
        figures=accuracies,
        inequalities={
            "probe: the better of tau 0.1, 0.5 > the better of 0.05, 1": lambda by: (
                best(by)["probe"] - max(by["tau 0.05"]["probe"], by["tau 1"]["probe"])
            ),
            "views found: products > that one": lambda by: (
                by["products"]["contrastive"] - best(by)["contrastive"]
            ),
            "probe: products < that one": lambda by: best(by)["probe"] - by["products"]["probe"],
        },
        picture=draw_temperatures,
    ),
    "L5": Claim(
        says="With few labels an encoder that has learned without them is worth more.",
        paper="ImageNet top-5, ResNet-50: 1 % of the labels 75.5 %, supervised 48.4; 10 % 87.8, "
        "supervised 80.4 (table 7)",
        arms=EFFICIENCY,
        figures=accuracies,
        inequalities={
            "1 % of the labels: fine-tuned > from scratch + 3 points": lambda by: gain(by, 100) - 3,
            "what it gains: with 1 % > with 10 %": lambda by: gain(by, 100) - gain(by, 1000),
        },
        picture=draw_labels,
    ),
    "L7": Claim(
        says="It is what the encoder has learned that makes the features good, not its form.",
        paper="no figure; the check is ours",
        arms={"simclr": SMALL},
        figures=accuracies,
        inequalities={
            "probe: trained > untrained + 5 points": lambda by: (
                by["simclr"]["probe"] - by["simclr"]["untrained"] - 5
            )
        },
        picture=draw_baselines,
    ),
}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
