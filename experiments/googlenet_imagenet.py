"""Going Deeper with Convolutions, sections 6 and 7: the data of the preset for ImageNet.

`python -m experiments.googlenet train paper` runs it; here are what it varies and how photographs
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
    """Section 6: photographs."""

    data: str = "imagenet2012"  # any TFDS set with images, labels, and splits train and validation
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    # Not in the paper: batch, rate and steps. They are those that arXiv:1502.03167 trains a variant
    # of this network with, to 72.2 % in one crop (Fig. 3).
    batch: PositiveInt = 32
    rate: float = 0.0015
    fall_every: NonNegativeInt = 320_292  # steps to a rate 4 % lower: 8 epochs; 0: never
    steps: NonNegativeInt = 31_000_000
    evaluate_every: PositiveInt = 1_000_000


def large_photographs(config: ImageNet, run: Run) -> Labelled:
    """Section 6: parts of random size and shape, mirrored. Section 7: tests on 144 crops.

    Not in the paper: its "photometric distortions" are AlexNet's shift of the colours.
    """
    source = photographs.from_tfds(config.data)
    view, test_view = photographs.inception_crop, photographs.inception_crops
    mesh = devices.mesh(run.devices, run.mesh)
    return photographs.crops(source, config.batch, view, test_view, run.seed, mesh, size=4)
