"""A Simple Framework for Contrastive Learning of Visual Representations.

Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton, 2020. arXiv:2002.05709.

What changed: the data and the loss. No label is used: of two random views of each image in a batch,
a network learns to tell which ones belong together, and what it has to know for that is what a
linear classifier, or a few labels, can use afterwards.
"""

from dataclasses import dataclass, replace
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments import simclr_imagenet, simclr_probe
from experiments.simclr_imagenet import ImageNet, Learn, large_photographs
from jaxhist import devices, evaluate, losses
from jaxhist.algorithm import descend
from jaxhist.cli import main
from jaxhist.data import augment, batches, images
from jaxhist.models.simclr import Encoder, EncoderAndHead, Head, SmallEncoder
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    """Appendix B.9: small images."""

    data: str = "pieces"  # of photographs; or any TFDS set with images of one size and labels
    examples: int = 0  # training images to keep, 0 for all
    shrink: int = 1  # this many pixels, squared, become one
    validation: int = 400  # training images held out
    learn: Learn = "views"  # from "labels", or with "linear" from them by the last layer alone
    start: str = ""  # a run in the same directory as this one, whose encoder it begins with
    labels: int = 0  # training images whose labels are known, 0 for all
    area: float = 0.2  # the smallest part of an image that a view shows; 1 shows all of it
    mirror: bool = True  # half of the views: right for photographs, wrong for digits
    strength: float = 0.5  # s of the colour distortion; 0 leaves the colours
    depth: int = 0  # layers of the residual network; 0 for a small one with these widths
    widths: tuple[int, ...] = (64, 128, 256)
    head: Literal["nonlinear", "linear", "none"] = "nonlinear"
    temperature: float = 0.1
    normalize: bool = True  # compare by the cosine, not by the product
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: int = 128  # images, each seen twice
    rate: float = 1.0
    warmup: int = 100  # steps until the rate is reached
    steps: int = 1000
    evaluate_every: int = 250


CIFAR10 = Config(data="cifar10", validation=5000)
PRESETS = {
    "small": Config(),
    # Not in the paper: an encoder and images that two cores train with in an hour.
    "cifar10-small": replace(
        CIFAR10, shrink=2, batch=256, warmup=1750, steps=17_500, evaluate_every=1750
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
    """Views of a set or of a part of it. Tests see the images whole."""
    # Data.
    source = images.named(config.data, config.validation)
    source = images.reduced(source, config.examples, config.shrink)
    labelled = images.reduced(source, config.labels)
    views = 2 if config.learn == "views" else 1

    def view(image, key):
        crop_key, mirror_key, colour_key = jax.random.split(key, 3)
        image = augment.random_resized_crop(image, crop_key, config.area)
        if config.mirror:
            image = augment.random_mirror(image, mirror_key)
        if config.strength:
            image = augment.colour_distortion(image, colour_key, config.strength)
        return image

    def prepare(batch, key):
        image = jnp.stack(views * [batch["image"] / 255], 1)
        return {**batch, "image": augment.each(image, key, view)}

    mesh = devices.mesh(run.devices)
    load = lambda: labelled.load()["train"]
    train = batches.on_device(load, config.batch, run.seed, mesh, prepare)
    whole = lambda split: batches.slices(source.load()[split])
    shapes = augment.shapes(config.batch, views, source.shape)
    return augment.Views(source.shape, source.names, shapes, train, whole)


def build(config: Config | ImageNet, run: Run) -> Experiment:
    # Data.
    dtype = jnp.dtype(config.dtype)
    if isinstance(config, ImageNet):
        data, encoder = large_photographs(config, run), Encoder(config.depth, dtype=dtype)
        head, normalize = "nonlinear", True
    else:
        data = small_images(config, run)
        head, normalize = config.head, config.normalize
        if config.depth:
            encoder = Encoder(config.depth, small=True, dtype=dtype)
        else:
            encoder = SmallEncoder(config.widths, dtype)

    # Model. Labels are predicted by a linear layer in the place of the head.
    head = Head(head) if config.learn == "views" else nn.Dense(len(data.names))
    model = EncoderAndHead(encoder, head)

    def init_model(key):
        variables = model.init(key, jnp.zeros((1, *data.shape)), train=False)
        params, statistics = variables["params"], variables["batch_stats"]
        if config.start:
            found = simclr_probe.started(build, config, run)
            params, statistics = {**params, "encoder": found.params["encoder"]}, found.extra
        return params, statistics

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
    rate = optax.warmup_cosine_decay_schedule(0, config.rate, config.warmup, config.steps)
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
        mean = evaluate.means(measure, devices.mesh(run.devices), data.size)
        tests = lambda state, split: mean(state, data.whole(split))
    return Experiment(
        data=data.train,
        batch=data.batch,
        init=algorithm.init,
        step=algorithm.step,
        evaluate=lambda state: tests(state, "validation"),
        test=lambda state: tests(state, "test"),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
    )


# Claims.


CLAIMS = {}

if __name__ == "__main__":
    main(build, PRESETS, CLAIMS)
