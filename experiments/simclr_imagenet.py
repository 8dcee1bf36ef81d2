"""A Simple Framework for Contrastive Learning of Visual Representations: the data of the presets
for ImageNet.

`python -m experiments.simclr train paper` runs them; here are what they vary and how photographs
become views.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from jaxhist import devices
from jaxhist.data import augment, batches, labels, photographs
from jaxhist.fields import NonNegativeInt, PositiveInt
from jaxhist.train import Run

# What is learned from: two views of each image, without labels; labels; or labels, by the last
# layer alone, on features that stay as they are.
Learn = Literal["views", "labels", "linear"]


@dataclass(frozen=True)
class ImageNet:
    """Section 2: photographs."""

    data: str = "imagenet2012"  # any TFDS set with images, labels, and splits train and validation
    learn: Learn = "views"  # from "labels", or with "linear" from them by the last layer alone
    start: str = ""  # a run in the same directory as this one, whose encoder it begins with
    depth: PositiveInt = 50  # layers of the residual network
    temperature: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: PositiveInt = 4096  # images, each seen twice
    rate: float = 4.8  # 0.3 batch / 256 (section 2.2)
    warmup: NonNegativeInt = 3_128  # steps until the rate is reached: 10 epochs
    steps: NonNegativeInt = 31_278  # 100 epochs
    evaluate_every: PositiveInt = 3_128


# Appendices B.5 and B.6: 90 epochs of the last layer; of all weights 60 epochs of 1 % of the images
# with their labels, 30 of 10 %.
AFTER = {"start": "simclr-paper", "warmup": 0}
PART = {"learn": "labels", "rate": 0.8, "evaluate_every": 188, **AFTER}
PRESETS = {
    "paper": ImageNet(),
    "paper-linear": ImageNet(learn="linear", rate=1.6, steps=28_150, **AFTER),
    "paper-1pct": ImageNet("imagenet2012_subset/1pct", steps=188, **PART),
    "paper-10pct": ImageNet("imagenet2012_subset/10pct", steps=938, **PART),
}


def large_photographs(config: ImageNet, run: Run) -> augment.Views:
    """Appendix A: parts of random size and shape, mirrored; views to compare are also distorted in
    their colours and blurred. Tests see the central square."""
    source = photographs.from_tfds(config.data)
    known = lambda photograph: labels.known(photograph.label, source.classes, photograph.name)
    views = 2 if config.learn == "views" else 1

    def crops(photograph, random):
        crop = [photographs.inception_crop(photograph, random) for _ in range(views)]
        label = photograph.label if config.learn == "views" else known(photograph)
        return {"image": np.stack(crop), "label": label}

    def view(image, key):
        mirror_key, colour_key, blur_key = jax.random.split(key, 3)
        image = augment.random_mirror(image, mirror_key)
        if config.learn == "views":
            image = augment.colour_distortion(image, colour_key, 1.0)
            image = augment.random_blur(image, blur_key)
        return image

    def whole(split):
        """All of the split "validation", and as many of any other."""
        found = source.load("validation" if split == "test" else split)
        see = lambda i: {"image": photographs.center_crop(found[i]), "label": known(found[i])}
        return batches.in_order(np.arange(min(len(found), 50_000)), see, 32)

    shape = (photographs.SIZE, photographs.SIZE, 3)
    return augment.Views(
        shape,
        tuple(map(str, range(source.classes))),
        augment.shapes(config.batch, views, shape),
        batches.streamed(
            lambda: source.load("train"),
            crops,
            config.batch,
            run.seed,
            devices.mesh(run.devices, run.mesh),
            lambda batch, key: {**batch, "image": augment.each(batch["image"] / 255, key, view)},
        ),
        whole,
        size=32,
    )
