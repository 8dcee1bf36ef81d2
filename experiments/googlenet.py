"""Going Deeper with Convolutions.

Christian Szegedy, Wei Liu, Yangqing Jia, Pierre Sermanet, Scott Reed, Dragomir Anguelov, Dumitru
Erhan, Vincent Vanhoucke, Andrew Rabinovich, 2014. arXiv:1409.4842.

What changed: the model. A layer looks at several scales at once, each behind a 1x1 convolution that
makes it cheap, and an average stands where the fully connected layers were: 22 layers have an
eighth of AlexNet's parameters.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxhist import devices, evaluate, losses
from jaxhist.algorithm import State, descend
from jaxhist.cli import main
from jaxhist.data import images, photographs
from jaxhist.data.images import Labelled
from jaxhist.models.googlenet import GoogLeNet, SmallGoogLeNet
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Not in the paper: small images."""

    data: str = "digits"  # "digits", or any TFDS set with images of one size and labels
    examples: int = 0  # training examples to keep, 0 for all
    shrink: int = 1  # this many pixels, squared, become one
    pad: int = 1  # pixels added on each side before a random crop
    mirror: bool = False  # half of the images: right for photographs, wrong for digits
    validation: int = 180  # training examples held out to choose the best checkpoint
    auxiliary: bool = True  # a second classifier, on the second module, in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: int = 64
    rate: float = 0.02
    fall_every: int = 157  # steps after which the rate is 4 % lower: 8 epochs
    steps: int = 1200
    evaluate_every: int = 50
    patience: int = 12  # evaluations without a better score before stopping; 0 never stops


@dataclass(frozen=True)
class ImageNet:
    """Section 6: photographs."""

    data: str = "imagenet2012"  # any TFDS set with images, labels, and splits train and validation
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    # Not in the paper: batch, rate and steps. They are those that arXiv:1502.03167 trains this
    # network with, to 72.2 % in one crop (Fig. 3).
    batch: int = 32
    rate: float = 0.0015
    fall_every: int = 320_292  # steps after which the rate is 4 % lower: 8 epochs
    steps: int = 31_000_000
    evaluate_every: int = 1_000_000


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


def build(config: Config | ImageNet, run: Run) -> Experiment:
    mesh = devices.mesh(run.devices)
    dtype = jnp.dtype(config.dtype)

    # Data, model.
    if isinstance(config, ImageNet):
        # Not in the paper: its "photometric distortions" are AlexNet's shift of the colours.
        source = photographs.from_tfds(config.data)
        view, test_view = photographs.inception_crop, photographs.inception_crops
        data = photographs.crops(source, config.batch, view, test_view, run.seed, mesh, size=4)
        return learn(config, run, data, GoogLeNet(data.classes, dtype), first="3a")
    source = images.named(config.data, config.validation)
    source = images.reduced(source, examples=config.examples, by=config.shrink)
    data = images.crops(source, config.batch, config.pad, config.mirror, run.seed, mesh)
    model = SmallGoogLeNet(data.classes, config.auxiliary, dtype)
    return learn(config, run, data, model, first="first", patience=config.patience)


def polyak(average: Any, params: Any, step: jax.Array) -> Any:
    """The average of the weights, moved towards the weights of this step, the first being 1.

    Not in the paper: which average. This is polynomial-decay averaging (arXiv:1212.1824, section
    4): step s has a weight that grows like s^8, so the average looks back over a tenth of the
    training, however long that is.
    """
    return jax.tree.map(lambda a, p: a + 9 / (step + 8) * (p - a), average, params)


def learn(config, run: Run, data: Labelled, model, first: str, patience: int = 0) -> Experiment:
    """The experiment with this data and model, whose first module has this name."""

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

    mean = evaluate.means(measure, devices.mesh(run.devices), data.size)
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


if __name__ == "__main__":
    main(build, PRESETS, {})
