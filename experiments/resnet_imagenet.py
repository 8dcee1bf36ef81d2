"""Deep Residual Learning for Image Recognition, section 4.1: the data of the ImageNet presets.

`python -m experiments.resnet train imagenet50` runs them; here are what they vary and how
photographs become batches.
"""

from dataclasses import dataclass
from typing import Literal

from jaxhist import devices
from jaxhist.data import photographs
from jaxhist.data.images import Labelled
from jaxhist.fields import NonNegativeInt, PositiveInt
from jaxhist.models.resnet import Shortcut
from jaxhist.train import Run


@dataclass(frozen=True)
class ImageNet:
    """Section 4.1: photographs."""

    data: str = "imagenet2012"  # any TFDS set with images, labels, and splits train and validation
    depth: PositiveInt = 50  # 18, 34, 50, 101 or 152 layers
    shortcut: Shortcut = "B"  # of section 3.3; "none" is the plain twin
    v1_5: bool = False  # a bottleneck's stride in its 3x3 convolution, not in its first 1x1
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations
    batch: PositiveInt = 256
    rate: float = 0.1  # divided by 10 after 1/4, 1/2 and 3/4 of the steps
    steps: NonNegativeInt = 600_000
    evaluate_every: PositiveInt = 10_000


def large_photographs(config: ImageNet, run: Run) -> Labelled:
    """Section 3.4: crops at random scales, mirrored, in shifted colours; tests on ten crops."""
    source = photographs.from_tfds(config.data)
    view, test_view = photographs.scale_jitter, photographs.five_crops
    mesh = devices.mesh(run.devices, run.mesh)
    return photographs.crops(source, config.batch, view, test_view, run.seed, mesh)
