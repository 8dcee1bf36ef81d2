"""ImageNet Classification with Deep Convolutional Neural Networks, section 4.1: the data of the
ImageNet presets.

`python -m experiments.alexnet train paper` runs them; here are what they vary and how photographs
become batches.
"""

from dataclasses import dataclass
from typing import Literal

from jaxhist import devices
from jaxhist.data import photographs
from jaxhist.data.images import Labelled
from jaxhist.fields import NonNegativeInt, PositiveInt
from jaxhist.train import Run


@dataclass(frozen=True)
class ImageNet:
    """Section 5: photographs."""

    data: str = "imagenet2012"  # any TFDS set with images, labels, and splits train and validation
    towers: Literal[1, 2] = 2
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: PositiveInt = 128
    rate: float = 0.01  # divided by 10 after 1/4, 1/2 and 3/4 of the steps
    steps: NonNegativeInt = 900_000  # 90 epochs
    evaluate_every: PositiveInt = 10_000


def large_photographs(config: ImageNet, run: Run) -> Labelled:
    """Section 4.1: random crops, mirrored, in shifted colours; tests on ten crops."""
    source = photographs.from_tfds(config.data)
    view, test_view = photographs.square_crop, photographs.five_crops
    mesh = devices.mesh(run.devices, run.mesh)
    return photographs.crops(source, config.batch, view, test_view, run.seed, mesh)
