"""Deep Residual Learning for Image Recognition.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, 2015. arXiv:1512.03385.

What changed: the model. A layer learns what to add to its input instead of what to put in its
place, y = x + F(x); without that, a deeper network trains worse than a shallow one.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxhist import UserError, devices, evaluate, losses
from jaxhist.algorithm import descend
from jaxhist.cli import main
from jaxhist.data import batches, images
from jaxhist.models.resnet import SmallResNet
from jaxhist.train import Experiment, Run


@dataclass(frozen=True)
class Config:
    data: str = "digits"  # "digits", or any TFDS set with images of one size and labels
    pad: int = 1  # pixels added on each side before a random crop
    mirror: bool = False  # half of the images: right for photographs, wrong for digits
    validation: int = 180  # training examples held out to choose the best checkpoint
    depth: int = 20  # 6n + 2 layers
    residual: bool = True  # False is the plain twin, without shortcuts
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: int = 64
    rate: float = 0.02  # a tenth of it after 1/2 of the steps, a hundredth after 3/4
    steps: int = 1200
    evaluate_every: int = 50
    patience: int = 12  # evaluations without a better accuracy before stopping; 0 never stops


PRESETS = {
    "small": Config(),
    "cifar10": Config(
        data="cifar10",
        pad=4,
        mirror=True,
        validation=5000,
        batch=128,
        rate=0.1,
        steps=64_000,
        evaluate_every=1000,
        patience=0,
    ),
}


def build(config: Config, run: Run) -> Experiment:
    mesh = devices.mesh(run.devices)

    # Data. Section 4.2: the mean image subtracted, 4 pixels padded, a random crop or its mirror.
    # Not in the paper: pixels are divided by 255, which batch normalisation makes no difference to.
    if config.pad < 0:
        raise UserError(f"pad is {config.pad}; it cannot be negative")
    if config.data == "digits":
        source = images.digits(config.validation)
    else:
        source = images.from_tfds(config.data, config.validation)

    def center(image):
        mean = source.load()["train"]["image"].mean(0, keepdims=True, dtype=np.float32)
        return (image - mean) / 255

    def prepare(batch, key):
        crop_key, mirror_key = jax.random.split(key)
        image = images.random_crop(center(batch["image"]), crop_key, config.pad)
        if config.mirror:
            image = images.random_mirror(image, mirror_key)
        return {"image": image, "label": batch["label"]}

    data = batches.on_device(lambda: source.load()["train"], config.batch, run.seed, mesh, prepare)

    # Model.
    model = SmallResNet(config.depth, source.classes, config.residual, jnp.dtype(config.dtype))

    def init_model(key):
        variables = model.init(key, jnp.zeros((1, *source.shape)), train=False)
        return variables["params"], variables["batch_stats"]

    # Loss.
    def loss(params, statistics, batch, key):
        variables = {"params": params, "batch_stats": statistics}
        logits, new = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        values = losses.categorical_cross_entropy(logits, batch["label"])
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        return values, (new["batch_stats"], {"accuracy": accuracy, "count/examples": config.batch})

    def measure(state, batch):
        variables = {"params": state.params, "batch_stats": state.extra}
        logits = model.apply(variables, center(batch["image"]), train=False)
        return {
            "loss": losses.categorical_cross_entropy(logits, batch["label"]),
            "accuracy": logits.argmax(-1) == batch["label"],
        }

    # Algorithm. Section 4.2: SGD, momentum 0.9, weight decay 1e-4 on all parameters.
    drops = {config.steps // 2: 0.1, config.steps * 3 // 4: 0.1}
    rate = optax.piecewise_constant_schedule(config.rate, drops)
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, momentum=0.9))
    algorithm = descend(init_model, loss, optimizer)

    # Not in the paper: the checkpoint that is tested is the best on the examples held out.
    mean = evaluate.means(measure, mesh)
    return Experiment(
        data=data,
        batch={
            "image": jax.ShapeDtypeStruct((config.batch, *source.shape), jnp.float32),
            "label": jax.ShapeDtypeStruct((config.batch,), jnp.int32),
        },
        init=algorithm.init,
        step=algorithm.step,
        evaluate=lambda state: mean(state, batches.slices(source.load()["validation"])),
        test=lambda state: mean(state, batches.slices(source.load()["test"])),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        score="accuracy",
        patience=config.patience,
    )


if __name__ == "__main__":
    main(build, PRESETS)
