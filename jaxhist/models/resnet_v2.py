"""Identity Mappings in Deep Residual Networks.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, 2016. arXiv:1603.05027. Here: networks whose
residual functions begin with their activation (section 4), and what section 3 puts in the place of
the identity.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax

from jaxhist import UserError
from jaxhist.models.resnet import (
    DEPTHS,
    classify,
    convolution,
    he_normal,
    normalization,
    padded_identity,
    small_stages,
)


class Preactivation(nn.Module):
    """x + F(x), F two 3x3 or three 1x1, 3x3, 1x1 convolutions, each behind BN and ReLU (Fig. 4e).

    Nothing is behind the sum, so that x_L = x_l + the sum of all F between (eq. 4).
    """

    filters: int
    strides: int
    bottleneck: bool
    activated: bool  # the first unit: its input has been activated for both branches
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = 4 * self.filters if self.bottleneck else self.filters
        y = x if self.activated else nn.relu(self.norm()(x))
        if self.bottleneck and (self.strides != 1 or x.shape[-1] != width):
            x = self.conv(width, 1, self.strides)(y)
        else:
            x = padded_identity(x, width, self.strides)
        if not self.bottleneck:
            y = self.conv(self.filters, 3, self.strides)(y)
            return x + self.conv(self.filters, 3)(nn.relu(self.norm()(y)))
        y = self.conv(self.filters, 1, self.strides)(y)
        y = self.conv(self.filters, 3)(nn.relu(self.norm()(y)))
        return x + self.conv(width, 1)(nn.relu(self.norm()(y)))


class SmallPreResNet(nn.Module):
    """Networks for CIFAR-10: 6n + 2 layers, or 9n + 2 with bottlenecks (164, 1001).

    Widths 16, 32, 64 (four times that with bottlenecks) at the full, half and quarter resolution.
    Images are [B, H, W, C] of any size, logits [B, classes].
    """

    depth: int
    classes: int
    bottleneck: bool = False
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        conv, norm = partial(convolution, dtype=self.dtype), normalization(train, self.dtype)
        x = nn.relu(norm()(conv(16, 3)(image)))
        for index, (filters, strides) in enumerate(
            small_stages(self.depth, 9 if self.bottleneck else 6)
        ):
            x = Preactivation(filters, strides, self.bottleneck, index == 0, conv, norm)(x)
        return classify(nn.relu(norm()(x)), self.classes, self.dtype)


class PreResNet(nn.Module):
    """The network for ImageNet (appendix). Images [B, 224, 224, 3], logits [B, classes]."""

    depth: int
    classes: int
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        depths = {**DEPTHS, 200: (3, 24, 36, 3)}
        if self.depth not in depths:
            raise UserError(f"depth {self.depth} is none of {', '.join(map(str, depths))}")
        conv, norm = partial(convolution, dtype=self.dtype), normalization(train, self.dtype)
        x = nn.relu(norm()(conv(64, 7, 2)(image)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(depths[self.depth]):
            for index in range(blocks):
                strides = 2 if stage > 0 and index == 0 else 1
                first = stage == index == 0
                x = Preactivation(64 * 2**stage, strides, self.depth >= 50, first, conv, norm)(x)
        return classify(nn.relu(norm()(x)), self.classes, self.dtype)


# Table 1. What stands in the shortcut of the original unit.
Altered = Literal["identity", "scaling", "exclusive gating", "gating", "convolution", "dropout"]


class AlteredBlock(nn.Module):
    """y = ReLU(h(x) + F(x)), the unit of 2015 with another h than the identity (Fig. 2)."""

    filters: int
    strides: int
    altered: Altered
    train: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm()(self.conv(self.filters, 3, self.strides)(x)))
        y = self.norm()(self.conv(self.filters, 3)(y))
        h = padded_identity(x, self.filters, self.strides)
        gate = partial(nn.Conv, self.filters, (1, 1), self.strides, kernel_init=he_normal)
        match self.altered:
            case "scaling":  # section 3.1: constant, both by 0.5
                h, y = 0.5 * h, 0.5 * y
            case "exclusive gating":  # g on F, 1 - g on the shortcut; the best of its biases
                g = nn.sigmoid(gate(bias_init=nn.initializers.constant(-6.0))(x))
                h, y = (1 - g) * h, g * y
            case "gating":  # of the shortcut alone, bias 0
                h = (1 - nn.sigmoid(gate()(x))) * h
            case "convolution":  # 1x1 in every unit, as in option C
                h = self.norm()(self.conv(self.filters, 1, self.strides)(x))
            case "dropout":
                h = nn.Dropout(0.5, deterministic=not self.train)(h)
        return nn.relu(h + y)


class AlteredResNet(nn.Module):
    """The 6n + 2 layers of 2015 for CIFAR-10 with altered shortcuts (section 3, table 1).

    Images are [B, H, W, C] of any size, logits [B, classes]. Dropout needs a key named "dropout".
    """

    depth: int
    classes: int
    altered: Altered
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        conv, norm = partial(convolution, dtype=self.dtype), normalization(train, self.dtype)
        x = nn.relu(norm()(conv(16, 3)(image)))
        for filters, strides in small_stages(self.depth):
            x = AlteredBlock(filters, strides, self.altered, train, conv, norm)(x)
        return classify(x, self.classes, self.dtype)
