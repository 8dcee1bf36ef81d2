"""Deep Residual Learning for Image Recognition.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, 2015. arXiv:1512.03385. Here: the networks for
ImageNet (section 4.1, table 1) and for CIFAR-10 (section 4.2), and their plain twins.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist import UserError
from jaxhist.convolution import convolve

# Section 3.3. Where the shape changes, A subsamples and pads with zeros and B projects; C projects
# everywhere. A plain network has none.
Shortcut = Literal["A", "B", "C", "none"]

# Section 3.4: "We initialize the weights as in [13]", N(0, 2 / fan_in) (arXiv:1502.01852, eq. 10).
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Not in the paper: the last layer, which no ReLU follows, begins as in its first author's code
# (resnet-1k-layers, from fb.resnet.torch), that is at Torch's U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def convolution(filters: int, kernel: int, strides: int = 1, *, dtype: Any) -> nn.Conv:
    """A square convolution without bias.

    Padding is the same on each side, as in the paper's code; "SAME" with a stride of two would pad
    more on the right.
    """
    return nn.Conv(
        filters,
        (kernel, kernel),
        strides,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=he_normal,
        dtype=dtype,
        conv_general_dilated=convolve,
    )


def normalization(train: bool, dtype: Any) -> partial:
    """Batch normalization: statistics of the whole batch, over all devices, kept in float32."""
    return partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype
    )


def padded_identity(x: jax.Array, filters: int, strides: int) -> jax.Array:
    """Option A: the identity, subsampled, with zeros for the new channels.

    [B, H, W, C] -> [B, H / strides, W / strides, filters]. It has no parameters, so a residual
    network and its plain twin have the same number of them.
    """
    x = x[:, ::strides, ::strides]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, filters - x.shape[-1])))


def add_shortcut(y: jax.Array, x: jax.Array, strides: int, option: Shortcut, conv, norm):
    """F(x) + x (eq. 1), or F(x) + W x (eq. 2), or F(x) alone. To be called in a compact module."""
    if option == "none":
        return y
    changed = strides != 1 or x.shape[-1] != y.shape[-1]
    if option == "C" or (option == "B" and changed):
        return y + norm()(conv(y.shape[-1], 1, strides)(x))
    return y + padded_identity(x, y.shape[-1], strides)


class Block(nn.Module):
    """y = ReLU(x + F(x)), F two 3x3 convolutions (Fig. 5, left)."""

    filters: int
    strides: int
    shortcut: Shortcut
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm()(self.conv(self.filters, 3, self.strides)(x)))
        y = self.norm()(self.conv(self.filters, 3)(y))
        return nn.relu(add_shortcut(y, x, self.strides, self.shortcut, self.conv, self.norm))


class Bottleneck(nn.Module):
    """y = ReLU(x + F(x)), F 1x1, 3x3 and 1x1 convolutions, the last four times as wide (Fig. 5)."""

    filters: int
    strides: int
    shortcut: Shortcut
    conv: Any
    norm: Any
    v1_5: bool = False  # Not in the paper: the stride in the 3x3 instead of the first 1x1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = (1, self.strides) if self.v1_5 else (self.strides, 1)
        y = nn.relu(self.norm()(self.conv(self.filters, 1, first)(x)))
        y = nn.relu(self.norm()(self.conv(self.filters, 3, second)(y)))
        y = self.norm()(self.conv(4 * self.filters, 1)(y))
        return nn.relu(add_shortcut(y, x, self.strides, self.shortcut, self.conv, self.norm))


def classify(x: jax.Array, classes: int, dtype: Any) -> jax.Array:
    """Global mean and linear layer, [B, H, W, C] -> logits [B, classes], at least float32."""
    x = jnp.mean(x, axis=(1, 2))
    logits = nn.Dense(classes, kernel_init=torch_uniform, dtype=dtype)(x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def small_stages(depth: int, layers: int = 6) -> list[tuple[int, int]]:
    """Filters and strides of each block for CIFAR-10 (section 4.2): three stages of n blocks, 16,
    32 and 64 wide, at the full, half and quarter resolution.

    Args:
      depth: `layers` n + 2.
      layers: in one block of each stage, together; 9 with bottlenecks.

    Raises:
      UserError: there is no such n.
    """
    n, rest = divmod(depth - 2, layers)
    if n < 1 or rest:
        raise UserError(f"depth {depth} is not {layers}n + 2")
    return [
        (filters, 2 if filters > 16 and index == 0 else 1)
        for filters in (16, 32, 64)
        for index in range(n)
    ]


class SmallResNet(nn.Module):
    """The network for CIFAR-10 (section 4.2): 6n + 2 layers, three stages of n blocks.

    Widths 16, 32, 64 at the full, half and quarter resolution. Images are [B, H, W, C] of any size,
    logits [B, classes].
    """

    depth: int
    classes: int
    shortcut: Shortcut = "A"
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        conv, norm = partial(convolution, dtype=self.dtype), normalization(train, self.dtype)
        x = nn.relu(norm()(conv(16, 3)(image)))
        for filters, strides in small_stages(self.depth):
            x = Block(filters, strides, self.shortcut, conv, norm)(x)
        return classify(x, self.classes, self.dtype)


# Table 1: depth -> blocks in each of the four stages.
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class ResNet(nn.Module):
    """The network for ImageNet (table 1). Images [B, 224, 224, 3], logits [B, classes]."""

    depth: int
    classes: int
    shortcut: Shortcut = "B"
    v1_5: bool = False  # see Bottleneck; 18 and 34 layers have none
    dtype: Any = None  # of the activations; None is that of the parameters

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        if self.depth not in DEPTHS:
            raise UserError(f"depth {self.depth} is none of {', '.join(map(str, DEPTHS))}")
        conv, norm = partial(convolution, dtype=self.dtype), normalization(train, self.dtype)
        block = Block if self.depth < 50 else partial(Bottleneck, v1_5=self.v1_5)
        x = nn.relu(norm()(conv(64, 7, 2)(image)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(DEPTHS[self.depth]):
            for index in range(blocks):
                strides = 2 if stage > 0 and index == 0 else 1
                x = block(64 * 2**stage, strides, self.shortcut, conv, norm)(x)
        return classify(x, self.classes, self.dtype)
